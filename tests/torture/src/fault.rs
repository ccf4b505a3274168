//! What is done to a contestant and to the servers around it.

use std::num::NonZeroU64;
use std::time::Duration;

use lockstep_kit::Random;
use lockstep_kit::clock::Clock;
use lockstep_kit::disk::SmallDisk;
use lockstep_kit::proxy::End;
use tokio::time::{Instant, sleep};

use crate::contestant::{Contestant, Subject};
use crate::servers::{Link, Servers};
use crate::topics::Growth;
use crate::workload::Workload;

/// How long an orderly end may take.
pub const STOP: Duration = Duration::from_secs(90);
/// How long records are waited for that a fault is to fall between.
const MIDWAY: Duration = Duration::from_secs(15);

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9` of the contestant.
    Kill,
    /// SIGTERM, and a start.
    Stop,
    /// SIGSTOP for a while.
    Freeze,
    /// PostgreSQL ends, by a fast or an immediate shutdown or by the death of all its processes, and starts again.
    Postgres,
    /// `kill -9` of Redis and a restart.
    Redis,
    /// `kill -9` of Kafka and a restart.
    Kafka,
    /// `kill -9` of OpenSearch and a restart.
    OpenSearch,
    /// `kill -9` of RabbitMQ and a restart.
    Rabbitmq,
    /// SIGSTOP of one of the servers, all its processes, for a while.
    Stall,
    /// All connections of a link are reset.
    Cut,
    /// A link gets slow to answer.
    Delay,
    /// One direction of a link's connections ends.
    HalfClose,
    /// A link takes everything and answers nothing, for a while; then half of the times its connections stay so.
    BlackHole,
    /// A link carries little.
    Slow,
    /// The disk under state, files and index is full for a while.
    Disk,
    /// The wall clock is set.
    Clock,
}

/// All kinds, in the order of the table.
pub const FAULTS: [Fault; 16] = [
    Fault::Kill,
    Fault::Stop,
    Fault::Freeze,
    Fault::Postgres,
    Fault::Redis,
    Fault::Kafka,
    Fault::OpenSearch,
    Fault::Rabbitmq,
    Fault::Stall,
    Fault::Cut,
    Fault::Delay,
    Fault::HalfClose,
    Fault::BlackHole,
    Fault::Slow,
    Fault::Disk,
    Fault::Clock,
];

impl Fault {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Freeze => "freeze",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Kafka => "kafka",
            Self::OpenSearch => "opensearch",
            Self::Rabbitmq => "rabbitmq",
            Self::Stall => "stall",
            Self::Cut => "cut",
            Self::Delay => "delay",
            Self::HalfClose => "half-close",
            Self::BlackHole => "black-hole",
            Self::Slow => "slow",
            Self::Disk => "disk-full",
            Self::Clock => "clock",
        }
    }

    /// Whether it can be brought about here: not every kernel lets a disk be mounted.
    pub fn is_possible(self) -> bool {
        self != Self::Disk || SmallDisk::start(1 << 20).is_ok()
    }

    /// How often it is injected in one run of a cell.
    pub fn times(self, contestant: Contestant) -> usize {
        if contestant != Contestant::Lockstep {
            return match self {
                Self::Kill | Self::Stop => 4,
                _ => 3,
            };
        }
        match self {
            Self::Kill => 8,
            Self::Stop | Self::Freeze | Self::Redis | Self::Clock => 5,
            Self::Postgres => 4,
            // They take seconds to come back.
            Self::Kafka | Self::OpenSearch | Self::Rabbitmq | Self::Disk => 3,
            // Each of the five servers or links once or twice.
            Self::Cut | Self::HalfClose => 8,
            Self::Stall | Self::Delay | Self::BlackHole | Self::Slow => 5,
        }
    }
}

/// Things of a run's own that are broken only there.
#[derive(Debug, Default)]
pub struct Own {
    /// Under state, files and index.
    pub disk: Option<SmallDisk>,
    /// The contestant's.
    pub clock: Option<Clock>,
}

impl Own {
    /// What this fault breaks, with its files in this folder.
    ///
    /// # Panics
    /// When it cannot be made here.
    pub fn new(fault: Fault, folder: &std::path::Path) -> Self {
        let disk = (fault == Fault::Disk).then(|| SmallDisk::start(DISK));
        let clock = (fault == Fault::Clock).then(|| Clock::new(folder));
        Self {
            disk: disk.map(|disk| disk.unwrap_or_else(|error| panic!("{error}"))),
            clock: clock.map(|clock| clock.unwrap_or_else(|error| panic!("{error}"))),
        }
    }
}

/// Room for all that a run writes.
const DISK: u64 = 1 << 30;

/// Brings faults of one kind about.
#[derive(Debug)]
pub struct Faults<'a> {
    kind: Fault,
    servers: &'a Servers,
    own: &'a Own,
    random: Random,
    contestant: Contestant,
    /// Those that are still to be hit before any is hit again.
    links: Vec<Link>,
    /// An end falls between rows that arrive: in imports, whose rows share LSNs, and for one that takes long to begin.
    growth: Option<Growth>,
    workload: Workload,
    /// Milliseconds that the clock is ahead.
    ahead: i64,
}

/// Further ahead than this, Kafka takes no record (`message.timestamp.after.max.ms`), and lockstep waits until the clock is right.
const AHEAD: i64 = 3_600_000;

impl<'a> Faults<'a> {
    /// Of this kind, for the run of this name.
    pub fn new(
        kind: Fault,
        (contestant, workload): (Contestant, Workload),
        name: &str,
        servers: &'a Servers,
        own: &'a Own,
        random: Random,
    ) -> Self {
        let slow = contestant != Contestant::Lockstep;
        let ends = matches!(kind, Fault::Kill | Fault::Stop);
        let midway = ends && (slow || workload == Workload::Copy);
        let topics = contestant.topics(name);
        Self {
            kind,
            servers,
            own,
            random,
            contestant,
            workload,
            ahead: 0,
            links: Vec::new(),
            growth: midway
                .then(|| Growth::new(servers.kafka.bootstrap(), &topics))
                .flatten(),
        }
    }

    /// Waits until rows arrive, and some more of them have; before a kill of one that keeps its position by the clock, until
    /// it has done so while they arrive.
    async fn midway(&mut self, subject: &Subject) {
        let Some(growth) = self.growth.clone() else {
            return;
        };
        let many = match self.workload {
            Workload::Copy | Workload::Large | Workload::FirstCopy => 1_500,
            _ => 50,
        };
        let more = self.random.below(many);
        let import = self.workload == Workload::Copy && self.kind == Fault::Kill;
        let kept = || subject.kept().filter(|_| import);
        let end = Instant::now() + MIDWAY;
        let mut last = (growth.records().await, kept());
        let arriving = last.0 + more;
        while Instant::now() < end {
            let now = (growth.records().await, kept());
            let is_kept = now.1.is_none() || now.1 != last.1 && now.0 > last.0;
            if now.0 > arriving && is_kept {
                return;
            }
            last = now;
        }
    }

    /// Waits for a random moment, injects one, and waits until the cause is over. Returns what was done, for the record.
    pub async fn inject(&mut self, subject: &mut Subject) -> String {
        sleep(self.random.millis(50, 900)).await;
        self.midway(subject).await;
        let away = self.random.millis(0, 1_200);
        // Most of the times a contestant is back at once; else what happens meanwhile waits for it.
        let short = away.saturating_sub(Duration::from_millis(900));
        let what = self.kind.name();
        match self.kind {
            Fault::Kill => {
                subject.program().kill();
                sleep(short).await;
                subject.program().start();
                subject.back().await;
                format!("{what}, back after {short:?}")
            }
            Fault::Stop => {
                let ended = subject.program().terminate(STOP).await;
                sleep(short).await;
                subject.program().start();
                subject.back().await;
                let how =
                    ended.map_or_else(|| "not ended in time".into(), |status| status.to_string());
                format!("{what}: {how}, back after {short:?}")
            }
            Fault::Freeze => {
                let frozen = self.random.millis(100, 3_000);
                subject.program().freeze(true);
                sleep(frozen).await;
                subject.program().freeze(false);
                format!("{what} for {frozen:?}")
            }
            Fault::Postgres => {
                let server = &self.servers.postgres;
                let how = match self.random.below(3) {
                    0 => {
                        server.kill_all();
                        "killed"
                    }
                    1 => {
                        server.stop_immediately().await;
                        "stopped at once"
                    }
                    _ => match server.stop().await {
                        true => "stopped in order",
                        false => "stopped by force: it waited for a confirmation that did not come",
                    },
                };
                sleep(away).await;
                server.restart().await;
                format!("{what} {how}, started after {away:?}")
            }
            Fault::Redis => {
                self.servers.redis.kill();
                sleep(away).await;
                self.servers.redis.restart().await;
                format!("{what} killed, started after {away:?}")
            }
            Fault::Kafka => {
                self.servers.kafka.kill();
                sleep(away).await;
                self.servers.kafka.restart().await;
                format!("{what} killed, started after {away:?}")
            }
            Fault::OpenSearch => {
                self.servers.opensearch.kill();
                sleep(away).await;
                self.servers.opensearch.restart().await;
                format!("{what} killed, started after {away:?}")
            }
            Fault::Rabbitmq => {
                self.servers.rabbitmq.kill();
                sleep(away).await;
                self.servers.rabbitmq.restart().await;
                format!("{what} killed, started after {away:?}")
            }
            Fault::Stall => {
                let link = self.next_link();
                let lasting = self.random.millis(500, 5_000);
                self.servers.freeze(link, true);
                sleep(lasting).await;
                self.servers.freeze(link, false);
                format!("{what} of {link:?} for {lasting:?}")
            }
            Fault::Cut | Fault::Delay | Fault::HalfClose | Fault::BlackHole | Fault::Slow => {
                self.misuse_a_link().await
            }
            Fault::Disk => self.fill_the_disk().await,
            Fault::Clock => self.set_the_clock().await,
        }
    }

    async fn fill_the_disk(&mut self) -> String {
        let Some(disk) = &self.own.disk else {
            return "no disk".into();
        };
        let lasting = self.random.millis(500, 4_000);
        disk.fill().expect("ballast can be written");
        sleep(lasting).await;
        disk.free().expect("ballast can be removed");
        format!("{} for {lasting:?}", self.kind.name())
    }

    async fn set_the_clock(&mut self) -> String {
        let Some(clock) = &self.own.clock else {
            return "no clock".into();
        };
        const SECOND: i64 = 1_000;
        const DAY: i64 = 86_400 * SECOND;
        let far = *self
            .random
            .pick(&[SECOND, 60 * SECOND, 3_600 * SECOND, DAY, 4_000 * DAY]);
        let by = if self.random.once_in(2) { -far } else { far };
        let lasting = self.random.millis(500, 2_500);
        clock.set(by).expect("the clock can be set");
        self.ahead = by;
        sleep(lasting).await;
        // Half of the times it stays wrong, until it is set the next time.
        let right = self.random.once_in(2);
        if right {
            clock.set(0).expect("the clock can be set");
            self.ahead = 0;
        }
        let then = if right { ", then right" } else { "" };
        format!(
            "{} {} s away for {lasting:?}{then}",
            self.kind.name(),
            by / SECOND
        )
    }

    /// Ends what would be waited for without end.
    pub fn end(&self) {
        if let Some(clock) = self.own.clock.as_ref().filter(|_| self.ahead > AHEAD) {
            clock.set(0).expect("the clock can be set");
        }
    }

    async fn misuse_a_link(&mut self) -> String {
        let link = self.next_link();
        let proxy = self.servers.proxy(link);
        let lasting = self.random.millis(500, 3_000);
        let how = match self.kind {
            Fault::Delay => {
                let latency = self.random.millis(20, 300);
                proxy.latency(latency);
                sleep(lasting).await;
                proxy.latency(Duration::ZERO);
                format!("by {latency:?} for {lasting:?}")
            }
            Fault::HalfClose => {
                let end = *self.random.pick(&[End::Client, End::Server]);
                proxy.half_close(end);
                format!("{end:?}")
            }
            Fault::BlackHole => {
                proxy.black_hole(true);
                sleep(lasting).await;
                let swallowed = proxy.connections();
                proxy.black_hole(false);
                let cut = self.random.once_in(2);
                for connection in swallowed {
                    if cut {
                        connection.cut();
                    } else {
                        // Nobody will ever tell that it is dead.
                        connection.black_hole(true);
                    }
                }
                format!(
                    "for {lasting:?}, then {}",
                    if cut { "cut" } else { "silent" }
                )
            }
            Fault::Slow => {
                let bandwidth = 10_000 + self.random.below(190_000);
                proxy.bandwidth(NonZeroU64::new(bandwidth));
                sleep(lasting).await;
                proxy.bandwidth(None);
                format!("{bandwidth} bytes/s for {lasting:?}")
            }
            _ => {
                proxy.cut();
                String::new()
            }
        };
        format!("{} {link:?} {how}", self.kind.name())
    }

    fn next_link(&mut self) -> Link {
        if self.links.is_empty() {
            self.links = match self.contestant {
                Contestant::Lockstep => vec![
                    Link::Postgres,
                    Link::Kafka,
                    Link::Redis,
                    Link::OpenSearch,
                    Link::Rabbitmq,
                ],
                Contestant::Debezium | Contestant::DebeziumWithTransactions => {
                    vec![Link::Postgres, Link::Kafka]
                }
            };
            self.random.shuffle(&mut self.links);
        }
        self.links.pop().unwrap_or(Link::Postgres)
    }
}

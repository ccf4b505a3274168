//! What is done to lockstep and to the servers around it.

use std::num::NonZeroU64;
use std::time::Duration;

use lockstep_kit::Random;
use lockstep_kit::proxy::End;
use tokio::time::sleep;

use crate::lockstep::Lockstep;
use crate::servers::{Link, Servers};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9` of lockstep.
    Kill,
    /// SIGSTOP of lockstep for a while.
    Freeze,
    /// PostgreSQL ends at once, by an immediate shutdown or by the death of all its processes, and starts again.
    Postgres,
    /// `kill -9` of Redis and a restart.
    Redis,
    /// `kill -9` of Kafka and a restart.
    Kafka,
    /// `kill -9` of OpenSearch and a restart.
    OpenSearch,
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
}

/// All kinds, in the order of the table.
pub const FAULTS: [Fault; 11] = [
    Fault::Kill,
    Fault::Freeze,
    Fault::Postgres,
    Fault::Redis,
    Fault::Kafka,
    Fault::OpenSearch,
    Fault::Cut,
    Fault::Delay,
    Fault::HalfClose,
    Fault::BlackHole,
    Fault::Slow,
];

impl Fault {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Kafka => "kafka",
            Self::OpenSearch => "opensearch",
            Self::Cut => "cut",
            Self::Delay => "delay",
            Self::HalfClose => "half-close",
            Self::BlackHole => "black-hole",
            Self::Slow => "slow",
        }
    }

    /// How often it is injected in one run of a cell.
    pub fn times(self) -> usize {
        match self {
            Self::Kill => 8,
            Self::Freeze | Self::Redis => 5,
            Self::Postgres => 4,
            // They take seconds to come back.
            Self::Kafka | Self::OpenSearch => 3,
            // Each of the four links once or twice.
            Self::Cut | Self::HalfClose => 8,
            Self::Delay | Self::BlackHole | Self::Slow => 4,
        }
    }
}

/// Brings faults of one kind about.
#[derive(Debug)]
pub struct Faults<'a> {
    kind: Fault,
    servers: &'a Servers,
    random: Random,
    /// Those that are still to be hit before any is hit again.
    links: Vec<Link>,
}

impl<'a> Faults<'a> {
    /// Of this kind.
    pub fn new(kind: Fault, servers: &'a Servers, random: Random) -> Self {
        Self {
            kind,
            servers,
            random,
            links: Vec::new(),
        }
    }

    /// Waits for a random moment, injects one, and waits until the cause is over. Returns what was done, for the record.
    pub async fn inject(&mut self, lockstep: &mut Lockstep) -> String {
        sleep(self.random.millis(50, 900)).await;
        let away = self.random.millis(0, 1_200);
        let what = self.kind.name();
        match self.kind {
            Fault::Kill => {
                lockstep.kill();
                // Most of the times it is back at once; else what happens meanwhile waits for it.
                let away = away.saturating_sub(Duration::from_millis(900));
                sleep(away).await;
                lockstep.start();
                format!("{what}, back after {away:?}")
            }
            Fault::Freeze => {
                let frozen = self.random.millis(100, 3_000);
                lockstep.freeze(true);
                sleep(frozen).await;
                lockstep.freeze(false);
                format!("{what} for {frozen:?}")
            }
            Fault::Postgres => {
                let all = self.random.once_in(2);
                let server = &self.servers.postgres;
                if all {
                    server.kill_all();
                } else {
                    server.stop_immediately().await;
                }
                sleep(away).await;
                server.restart().await;
                let how = if all { "killed" } else { "stopped at once" };
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
            Fault::Cut | Fault::Delay | Fault::HalfClose | Fault::BlackHole | Fault::Slow => {
                self.misuse_a_link().await
            }
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
                        // Nobody will ever tell lockstep that it is dead.
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
            self.links = vec![Link::Postgres, Link::Kafka, Link::Redis, Link::OpenSearch];
            self.random.shuffle(&mut self.links);
        }
        self.links.pop().unwrap_or(Link::Postgres)
    }
}

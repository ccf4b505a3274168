//! One pipeline runs and others stand by: who holds the lease is killed, or frozen and woken up later, under load.
//!
//! `LOCKSTEP_TEST_FAILOVERS` says how often, with each provider, of both; once by default. Each test prints what it has seen as a row
//! of a table, under [`Tally::HEAD`].

mod tally;

use std::time::{Duration, Instant};

use lockstep::demo::compare::Rules;
use lockstep_e2e::copies::Compare;
use lockstep_e2e::work::{self, Arrived, Work};
use lockstep_e2e::{Pipeline, Random, Setup};
use lockstep_kit::Component::{
    self, Kafka as NeedsKafka, Postgres as NeedsPostgres, Redis as NeedsRedis,
    Zookeeper as NeedsZookeeper,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::redis::Redis;
use lockstep_kit::zookeeper::Zookeeper;
use lockstep_kit::{require, unique};
use rustix::process::Signal;

use crate::api_server::ApiServer;
use crate::cluster::Cluster;
use crate::support::{cache, events, source, tables};

use tally::{Takeover, Tally};

const CATCH_UP: Duration = Duration::from_secs(120);

/// As long as a lease lasts: a holder on a busy machine is not to lose it for no reason.
const TTL: Duration = Duration::from_secs(4);

/// How often, when the environment does not say.
const FEW: usize = 1;

/// Transactions that each of three writers makes a second, of about ten changes, while faults happen.
const RATE: f64 = 200.0;

/// How many they make in a whole run, beside a trickle: what a topic then holds can be looked at.
const LOAD: u64 = 24_000;

/// A pipeline that two processes are ready to run.
struct Pair {
    processes: [Process; 2],
    /// Which of them runs it.
    active: usize,
}

/// One of them, with a state directory of its own.
struct Process {
    setup: Setup,
    running: Pipeline,
}

impl Process {
    fn start(setup: Setup) -> Self {
        let running = setup.start();
        Process { setup, running }
    }

    fn restart(&mut self) {
        self.running = self.setup.start();
    }

    /// What `/readyz` says. On a machine that is busy enough a holder may lose the lease and end, and is started again, as whatever watches
    /// over processes does.
    async fn says(&mut self) -> Result<String, String> {
        if self.running.exited().is_some() {
            let log = self.running.log();
            assert!(log.contains("the lease of the pipeline is lost"), "{log}");
            self.restart();
        }
        match self.running.get("/readyz").await {
            Ok((200, body)) => Ok(body),
            other => Err(format!("{other:?}")),
        }
    }

    /// Waits until it runs the pipeline, all sources and sinks at work; how long that took.
    async fn is_ready_since(&mut self, since: Instant) -> Duration {
        while self.says().await.as_deref() != Ok("ready\n") {
            let log = || self.running.log();
            assert!(since.elapsed() < CATCH_UP, "not taken over:\n{}", log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        since.elapsed()
    }

    /// As [`Process::is_ready_since`], and has written a record.
    async fn writes_since(&mut self, since: Instant) -> Takeover {
        let (mut leased, mut ready) = (None, None);
        loop {
            let says = self.says().await;
            let (held, wrote) = self.measures().await;
            let now = since.elapsed();
            if held {
                leased = leased.or(Some(now));
            }
            if says.as_deref() == Ok("ready\n") {
                ready = ready.or(Some(now));
            }
            if let (true, Some(leased), Some(ready)) = (wrote, leased, ready) {
                return Takeover {
                    leased,
                    ready,
                    wrote: now,
                };
            }
            let log = || self.running.log();
            assert!(now < CATCH_UP, "not taken over: {says:?}\n{}", log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether it holds the lease, and whether it has written anything to Kafka, which of the sinks takes longest.
    async fn measures(&mut self) -> (bool, bool) {
        let Ok((200, text)) = self.running.get("/metrics").await else {
            return (false, false);
        };
        let wrote = tally::value(
            &text,
            "lockstep_sink_records_total",
            &["sink=\"events\"", "outcome=\"written\""],
        );
        let held = tally::value(&text, "lockstep_lease_held", &[]);
        (held == Some(1.0), wrote.is_some_and(|count| count > 0.0))
    }

    /// The last that it tells, before it ends, of how many writes were refused to it. `None` where it tells nothing.
    async fn fenced_at_its_end(&mut self) -> Option<u64> {
        let mut fenced = None;
        let look = async {
            while self.running.exited().is_none() {
                if let Ok((200, text)) = self.running.get("/metrics").await {
                    fenced = tally::sum(&text, "lockstep_sink_fenced_total").or(fenced);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // Whether it ends is for the caller to see.
        let _ = tokio::time::timeout(CATCH_UP, look).await;
        fenced
    }

    async fn stands_by(&mut self) {
        let end = Instant::now() + CATCH_UP;
        while self.says().await.as_deref() != Ok("ready to take over\n") {
            assert!(Instant::now() < end, "no standby:\n{}", self.running.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Pair {
    /// Starts both; returns when the first runs the pipeline and the second stands by.
    async fn start(setups: [Setup; 2]) -> Self {
        let [first, second] = setups;
        let mut first = Process::start(first);
        first.is_ready_since(Instant::now()).await;
        // A copy that is made again, since nobody knows that it was whole, skips what was changed between the two.
        let is_durable = async |pipeline: &mut Pipeline| {
            let log = pipeline.log();
            let durable = log.contains("the copy is durable in every sink");
            durable.then_some(()).ok_or(log)
        };
        first
            .running
            .until(CATCH_UP, "the copy to be durable", is_durable)
            .await;
        let mut second = Process::start(second);
        second.stands_by().await;
        Pair {
            processes: [first, second],
            active: 0,
        }
    }

    /// Waits until `process` runs the pipeline and writes; how long that took.
    async fn taken_over(&mut self, since: Instant, process: usize) -> Takeover {
        let took = self.processes[process].writes_since(since).await;
        self.active = process;
        took
    }

    /// Kills who runs it; the other one takes over.
    async fn kill(&mut self) -> Takeover {
        let (one, other) = (self.active, 1 - self.active);
        let since = Instant::now();
        self.processes[one].running.signal(Signal::KILL);
        self.processes[one].running.wait_exit(CATCH_UP).await;
        let took = self.taken_over(since, other).await;
        self.processes[one].restart();
        self.processes[one].stands_by().await;
        took
    }

    /// Freezes who runs it, and wakes it up when the other one has taken over: it must end, and have changed nothing. Also gives how
    /// many of its writes it has seen refused, if it can be asked before it ends.
    async fn freeze(&mut self, random: &mut Random) -> (Takeover, Option<u64>) {
        let (one, other) = (self.active, 1 - self.active);
        let since = Instant::now();
        self.processes[one].running.signal(Signal::STOP);
        let took = self.taken_over(since, other).await;
        tokio::time::sleep(random.millis(0, 300)).await;
        let zombie = &mut self.processes[one];
        zombie.running.signal(Signal::CONT);
        let fenced = zombie.fenced_at_its_end().await;
        let status = zombie.running.wait_exit(CATCH_UP).await;
        let log = zombie.running.log();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("the lease of the pipeline is lost"), "{log}");
        zombie.restart();
        zombie.stands_by().await;
        (took, fenced)
    }
}

/// Where the lease is kept: the section of the file, and more for `[state]`.
struct Kept {
    provider: &'static str,
    lease: String,
    state: String,
}

async fn ground() -> (Database, &'static Kafka, &'static Redis) {
    let (shop, kafka, redis) = tokio::join!(
        async { Postgres::shared(17).await.database("shop").await },
        Kafka::shared(),
        Redis::shared(),
    );
    work::create(&shop, 2_000, 300).await;
    (shop, kafka, redis)
}

async fn goes_on_under_failovers(kept: Kept) {
    let mut random = Random::from_environment();
    let (shop, kafka, redis) = ground().await;
    // A lease in Kubernetes has a name without underscores, a slot one without hyphens.
    let name = unique("failover").replace('_', "-");
    let slot = name.replace('-', "_");
    let setup = || {
        let setup = Setup::new(&name, |_| {
            source(shop.url(), &slot, &["ledger", "counters", "items"])
                + &events(kafka.bootstrap(), &name, "exactly_once = true")
                + &cache(redis.url(), &name)
                + &format!(
                    "[dead_letters]\ntype = \"kafka\"\nbrokers = \"{}\"\ntopic = \"{name}.letters\"\n",
                    kafka.bootstrap()
                )
                + &format!("[lease]\nttl = \"{}s\"\n{}\n", TTL.as_secs(), kept.lease)
        });
        setup.change("[state]\n", &format!("[state]\n{}\n", kept.state));
        setup
    };
    let mut pair = Pair::start([setup(), setup()]).await;
    let begin = work::look(&shop).await;
    let times = std::env::var("LOCKSTEP_TEST_FAILOVERS").map_or(FEW, |times| {
        times.parse().expect("LOCKSTEP_TEST_FAILOVERS is a number")
    });
    let writers = Work::start_at(&shop, random.below(1_000), RATE).await;
    // Each fault comes while they write as fast as they can.
    let burst = (LOAD / (2 * times as u64)).max(60);
    let lasts = (burst as f64 / (3.0 * RATE) * 1000.0) as u64;
    let mut tally = Tally::default();
    for round in 1..=times {
        writers.burst(burst);
        tokio::time::sleep(random.millis(0, lasts.min(500))).await;
        let took = pair.kill().await;
        tally.kills.push(took);
        writers.burst(burst);
        tokio::time::sleep(random.millis(0, lasts.min(500))).await;
        let (took, fenced) = pair.freeze(&mut random).await;
        tally.freezes.push(took);
        tally.fenced(fenced);
        println!(
            "{} {round}/{times}: killed {:.2?}, frozen {took:.2?}",
            kept.provider,
            tally.kills[round - 1]
        );
    }
    writers.stop().await;
    let end = work::look(&shop).await;
    let active = &mut pair.processes[pair.active];
    active
        .running
        .wait_visible("shop", &end.lsn, CATCH_UP)
        .await;

    // Who ends in order hands over at once.
    let (one, other) = (pair.active, 1 - pair.active);
    let since = Instant::now();
    pair.processes[one].running.signal(Signal::TERM);
    let status = pair.processes[one].running.wait_exit(CATCH_UP).await;
    assert!(status.success());
    let took = pair.processes[other].is_ready_since(since).await;
    println!("handed over in {took:.2?}");
    let standing = &mut pair.processes[other].running;
    let (code, text) = standing.get("/metrics").await.expect("answers");
    assert_eq!(code, 200);
    assert!(text.contains("\nlockstep_lease_held 1\n"), "{text}");

    let arrived = Arrived::read(kafka.bootstrap(), &name).await;
    tally.double = arrived.duplicates().len();
    println!("{}\n{}", Tally::HEAD, tally.row(kept.provider));
    arrived.assert_exactly_once(&begin, &end);
    let compare = Compare {
        source: "shop",
        url: shop.url(),
        publication: "lockstep",
        tables: tables(),
        rules: Rules::default(),
    };
    compare.assert_equal(&pair.processes[other].setup).await;
    // Behind the lease's end comes what opening sources and sinks takes.
    let most = tally.all().map(|took| took.wrote).max();
    let most = most.expect("a takeover");
    assert!(most < 2 * TTL + Duration::from_secs(10), "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_in_postgresql() {
    require!(NeedsPostgres(16), NeedsPostgres(17), NeedsKafka, NeedsRedis);
    let leases = Postgres::shared(16).await.database("leases").await;
    goes_on_under_failovers(Kept {
        provider: "PostgreSQL",
        lease: format!("type = \"postgres\"\nurl = \"{}\"", leases.url()),
        state: String::new(),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_in_redis() {
    require!(NeedsPostgres(16), NeedsPostgres(17), NeedsKafka, NeedsRedis);
    let (records, redis) = tokio::join!(
        async { Postgres::shared(16).await.database("records").await },
        Redis::shared(),
    );
    goes_on_under_failovers(Kept {
        provider: "Redis",
        lease: format!("type = \"redis\"\nurl = \"{}\"", redis.url()),
        state: format!("url = \"{}\"", records.url()),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_in_zookeeper() {
    require!(
        NeedsPostgres(16),
        NeedsPostgres(17),
        NeedsKafka,
        NeedsRedis,
        NeedsZookeeper
    );
    let (records, zookeeper) = tokio::join!(
        async { Postgres::shared(16).await.database("records").await },
        Zookeeper::shared(),
    );
    goes_on_under_failovers(Kept {
        provider: "ZooKeeper",
        lease: format!(
            "type = \"zookeeper\"\nservers = \"{}/{}\"",
            zookeeper.address(),
            unique("failover")
        ),
        state: format!("url = \"{}\"", records.url()),
    })
    .await;
}

/// By a real API server where there is one, else by a stand-in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_in_kubernetes() {
    require!(NeedsPostgres(16), NeedsPostgres(17), NeedsKafka, NeedsRedis);
    let records = Postgres::shared(16).await.database("records").await;
    let state = format!("url = \"{}\"", records.url());
    if Component::Kubernetes.is_available() {
        let cluster = Cluster::shared().await;
        goes_on_under_failovers(Kept {
            provider: "Kubernetes",
            lease: format!(
                "type = \"kubernetes\"\nurl = \"{}\"\nnamespace = \"{}\"\ntoken = \"{}\"\nca = \"{}\"",
                cluster.server().url(),
                cluster.namespace(),
                cluster.token(),
                cluster.server().ca().display(),
            ),
            state,
        })
        .await;
    } else {
        let server = ApiServer::start().await;
        goes_on_under_failovers(Kept {
            provider: "a stand-in for Kubernetes",
            lease: format!(
                "type = \"kubernetes\"\nurl = \"http://{}\"\nnamespace = \"shop\"\ntoken = \"right\"",
                server.address()
            ),
            state,
        })
        .await;
    }
}

/// What would not be found by whoever takes over is told in the file, with the place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_here_is_no_good_for_a_standby() {
    let url = "postgres://lockstep@127.0.0.1:1/shop";
    let setup = Setup::new("shop", |folder| {
        source(url, "shop", &["ledger"])
            + &crate::support::files(folder)
            + &format!("[lease]\ntype = \"postgres\"\nurl = \"{url}\"\n")
    });
    let ended = setup.lockstep("check", &["--offline"]).await;
    assert_eq!(ended.code(), Some(2), "{ended:?}");
    for place in ["sinks.files", "dead_letters"] {
        assert!(ended.stderr.contains(place), "{ended:?}");
    }
    setup.change("[state]\n", "[state]\nshared = true\n");
    let ended = setup.lockstep("check", &["--offline"]).await;
    assert_eq!(ended.code(), Some(0), "{ended:?}");
}

//! One pipeline runs and others stand by: who holds the lease is killed, or frozen and woken up later, under load.
//!
//! `LOCKSTEP_TEST_FAILOVERS` says how often, with each provider, of both; once by default.

use std::time::{Duration, Instant};

use lockstep::demo::compare::Rules;
use lockstep_e2e::copies::Compare;
use lockstep_e2e::topics;
use lockstep_e2e::work::{self, Arrived, Work};
use lockstep_e2e::{Pipeline, Random, Setup};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, Postgres as NeedsPostgres, Redis as NeedsRedis,
    Zookeeper as NeedsZookeeper,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::redis::Redis;
use lockstep_kit::zookeeper::Zookeeper;
use lockstep_kit::{require, unique};
use rustix::process::Signal;

use crate::api_server::ApiServer;
use crate::support::{cache, events, source, tables};

const CATCH_UP: Duration = Duration::from_secs(120);

/// As long as a lease lasts: a holder on a busy machine is not to lose it for no reason.
const TTL: Duration = Duration::from_secs(4);

/// How often, when the environment does not say.
const FEW: usize = 1;

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
    async fn runs_since(&mut self, since: Instant) -> Duration {
        while self.says().await.as_deref() != Ok("ready\n") {
            let log = || self.running.log();
            assert!(since.elapsed() < CATCH_UP, "not taken over:\n{}", log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        since.elapsed()
    }

    /// How often the cache has refused it as too late; `None` when it cannot be asked.
    async fn refused_by_cache(&mut self) -> Option<u64> {
        let (_, text) = self.running.get("/metrics").await.ok()?;
        let start = "lockstep_sink_fenced_total{sink=\"cache\"} ";
        text.lines()
            .find_map(|line| line.strip_prefix(start)?.parse().ok())
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
        first.runs_since(Instant::now()).await;
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

    /// Waits until `process` runs the pipeline; how long that took.
    async fn taken_over(&mut self, since: Instant, process: usize) -> Duration {
        let took = self.processes[process].runs_since(since).await;
        self.active = process;
        took
    }

    /// Kills who runs it; the other one takes over.
    async fn kill(&mut self) -> Duration {
        let (one, other) = (self.active, 1 - self.active);
        let since = Instant::now();
        self.processes[one].running.signal(Signal::KILL);
        self.processes[one].running.wait_exit(CATCH_UP).await;
        let took = self.taken_over(since, other).await;
        self.processes[one].restart();
        self.processes[one].stands_by().await;
        took
    }

    /// Freezes who runs it, and wakes it up when the other one has taken over: it must end, and have changed nothing.
    async fn freeze(&mut self, random: &mut Random) -> Duration {
        let (one, other) = (self.active, 1 - self.active);
        let since = Instant::now();
        self.processes[one].running.signal(Signal::STOP);
        let took = self.taken_over(since, other).await;
        tokio::time::sleep(random.millis(0, 300)).await;
        let zombie = &mut self.processes[one];
        zombie.running.signal(Signal::CONT);
        // It ends at once, so that mostly nobody reads how often it was refused.
        let mut refused = 0;
        while zombie.running.exited().is_none() {
            refused = zombie.refused_by_cache().await.unwrap_or(refused);
        }
        let status = zombie.running.wait_exit(CATCH_UP).await;
        let log = zombie.running.log();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("the lease of the pipeline is lost"), "{log}");
        println!("woken up: told {refused} refusals");
        zombie.restart();
        zombie.stands_by().await;
        // Whoever has the lease is refused nothing, whoever woke up meanwhile. Who stands by again has no such measure.
        let told = self.processes[other].refused_by_cache().await;
        assert!(told.is_none_or(|refused| refused == 0), "{told:?}");
        took
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
    let writers = Work::start_at(&shop, random.below(1_000), 200.0).await;
    let times = std::env::var("LOCKSTEP_TEST_FAILOVERS").map_or(FEW, |times| {
        times.parse().expect("LOCKSTEP_TEST_FAILOVERS is a number")
    });
    let (mut kills, mut freezes) = (Vec::new(), Vec::new());
    for _ in 0..times {
        tokio::time::sleep(random.millis(0, 500)).await;
        kills.push(pair.kill().await);
        tokio::time::sleep(random.millis(0, 500)).await;
        freezes.push(pair.freeze(&mut random).await);
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
    let took = pair.taken_over(since, other).await;
    println!("handed over in {took:.2?}");
    let standing = &mut pair.processes[other].running;
    let (code, text) = standing.get("/metrics").await.expect("answers");
    assert_eq!(code, 200);
    assert!(text.contains("\nlockstep_lease_held 1\n"), "{text}");

    let read =
        async |table: &str| topics::read(kafka.bootstrap(), &format!("{name}.{table}")).await;
    let arrived = Arrived {
        ledger: read("ledger").await,
        counters: read("counters").await,
        items: read("items").await,
    };
    arrived.assert_exactly_once(&begin, &end);
    let compare = Compare {
        source: "shop",
        url: shop.url(),
        publication: "lockstep",
        tables: tables(),
        rules: Rules::default(),
    };
    compare.assert_equal(&pair.processes[other].setup).await;
    for (what, mut took) in [("kill", kills), ("freeze", freezes)] {
        took.sort_unstable();
        let at = |part: usize| took[(took.len() - 1) * part / 100];
        println!(
            "{} {what}s, lease in {}, {TTL:?}: taken over in {:.2?} (median), {:.2?} (p99), {:.2?} at most",
            took.len(),
            kept.provider,
            at(50),
            at(99),
            at(100),
        );
        // Behind the lease's end comes what opening sources and sinks takes.
        assert!(at(100) < 2 * TTL + Duration::from_secs(10), "{took:?}");
    }
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

/// Against a stand-in: a real API server is another matter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_in_kubernetes() {
    require!(NeedsPostgres(16), NeedsPostgres(17), NeedsKafka, NeedsRedis);
    let records = Postgres::shared(16).await.database("records").await;
    let server = ApiServer::start().await;
    goes_on_under_failovers(Kept {
        provider: "Kubernetes",
        lease: format!(
            "type = \"kubernetes\"\nurl = \"http://{}\"\nnamespace = \"shop\"\ntoken = \"right\"",
            server.address()
        ),
        state: format!("url = \"{}\"", records.url()),
    })
    .await;
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

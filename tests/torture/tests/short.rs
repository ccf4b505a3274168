//! The short form: a few cells of a fixed seed, so that what failed once fails again, and a few of a random one.

#![allow(clippy::print_stdout, reason = "tests tell what they measured")]

use std::time::{Duration, Instant};

use lockstep_kit::Component::{
    Kafka as NeedsKafka, OpenSearch as NeedsOpenSearch, Postgres as NeedsPostgres,
    Rabbitmq as NeedsRabbitmq, Redis as NeedsRedis,
};
use lockstep_kit::random::SEED_VARIABLE;
use lockstep_kit::{Random, require_own};
use lockstep_torture::cell::{Bench, run};
use lockstep_torture::contestant::Contestant;
use lockstep_torture::fault::Fault;
use lockstep_torture::lockstep::program;
use lockstep_torture::plan;
use lockstep_torture::report::Report;
use lockstep_torture::servers::{POSTGRES, Servers};
use lockstep_torture::sinks::SINKS;

const FIXED: u64 = 3;
/// No other run is begun after this.
const WHOLE: Duration = Duration::from_secs(140);
/// What has to hold in every run of the tests.
const CELLS: [&str; 6] = [
    "keys/kill",
    "first-copy/kill",
    "truncate/cut",
    "interleaved/postgres",
    "schema/redis",
    "keys/rabbitmq",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_reordered_or_stale() {
    require_own!(
        NeedsPostgres(POSTGRES),
        NeedsKafka,
        NeedsRedis,
        NeedsOpenSearch,
        NeedsRabbitmq
    );
    let mut random = Random::from_environment();
    let began = Instant::now();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = program().expect("lockstep is built");
    let servers = Servers::start().await;
    let bench = Bench {
        servers: &servers,
        program: &program,
        root: folder.path(),
        sinks: &SINKS,
        forget_peers: true,
    };
    let fixed = CELLS.map(|name| (plan::named(name).expect("a cell"), FIXED));
    let others = plan::round(random.below(1 << 31), 0).into_iter();
    let has_disk = Fault::Disk.is_possible();
    let others = others.filter(|(cell, _)| has_disk || cell.fault != Fault::Disk);
    let mut report = Report::default();
    for (at, (cell, seed)) in fixed.into_iter().chain(others).enumerate() {
        // Those that are always run take as long as they take: where all is slow, no other ones follow.
        if at >= CELLS.len() && began.elapsed() > WHOLE {
            break;
        }
        let outcome = run(&bench, Contestant::Lockstep, cell, seed).await;
        println!(
            "{} {seed}: {:?} {}",
            cell.name(),
            outcome.took,
            outcome.counts()
        );
        report.add(outcome);
    }
    println!("{}", report.tables());
    let wrong: Vec<String> = report.wrong().map(|outcome| outcome.story()).collect();
    assert!(
        wrong.is_empty(),
        "{SEED_VARIABLE} is told above\n{}",
        wrong.concat()
    );
    assert!(
        report.runs() >= CELLS.len() && report.faults() >= 20,
        "only {} runs with {} faults in {:?}",
        report.runs(),
        report.faults(),
        began.elapsed()
    );
}

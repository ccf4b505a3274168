//! The short form of `lockstep-soak --purchases`.

#![allow(clippy::print_stdout, reason = "tests tell what they measured")]

use std::time::Duration;

use lockstep_kit::Component::{
    Kafka as NeedsKafka, Managers, Postgres as NeedsPostgres, Redis as NeedsRedis,
};
use lockstep_kit::component::installed_or_say_so;
use lockstep_kit::random::SEED_VARIABLE;
use lockstep_kit::{Random, require_own};
use lockstep_torture::lockstep::program;
use lockstep_torture::soak::purchases::shop::Shop;
use lockstep_torture::soak::purchases::{Options, buyer, run};

/// Few, so that purchases wait for each other.
const ARTICLES: u64 = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_purchase_is_seen_whole_once_and_in_order() {
    require_own!(NeedsPostgres(16), NeedsPostgres(17), NeedsKafka, NeedsRedis);
    // Without them the others buy.
    installed_or_say_so(Managers);
    let mut random = Random::from_environment();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shop = Shop::open(buyer().expect("built"), ARTICLES).await;
    let options = Options {
        purchases: 100,
        lasts: Duration::from_secs(20),
        pause: Duration::from_millis(1_200),
        articles: ARTICLES,
        stitch: String::new(),
        invariants_every: "2s".to_owned(),
        seed: random.below(1 << 31),
        tell_every: None,
    };
    let program = program().expect("lockstep is built");
    let report = run(&options, &shop, &program, folder.path()).await;
    let report = report.unwrap_or_else(|error| panic!("{error}"));
    println!("{report}");
    assert!(report.is_clean(), "{SEED_VARIABLE} is told above\n{report}");
    let faults = [
        report.faulted_buyers,
        report.lockstep_kills,
        report.restarts,
    ];
    assert!(
        faults.iter().all(|&count| count > 0) && report.purchases > 100,
        "too little has happened: {report}"
    );
    for of in &report.kinds {
        assert!(
            of.purchases > 0,
            "{:?} has bought nothing: {report}",
            of.kind
        );
    }
}

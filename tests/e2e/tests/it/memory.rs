//! Resident memory of the process while one transaction is larger than all of it.

use std::time::Duration;

use lockstep_e2e::{Setup, topics};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, Postgres as NeedsPostgres, Redis as NeedsRedis,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::redis::{Redis, RedisOptions, Reply};
use lockstep_kit::{require, require_own, unique};

use crate::support::{cache, end_of_log, events, files, source};

/// Rows of the transaction: about 20 MB of log. [`ROWS_VARIABLE`] sets another number, as 1000000 with a release build.
const ROWS: u64 = 200_000;
const ROWS_VARIABLE: &str = "LOCKSTEP_TEST_ROWS";
/// The bound: 100 MB for a release build; the code of a debug build alone takes half of that.
const BOUND: u64 = if cfg!(debug_assertions) {
    250_000_000
} else {
    100_000_000
};
const DEADLINE: Duration = Duration::from_secs(300);

fn rows() -> u64 {
    let set = std::env::var(ROWS_VARIABLE).ok();
    set.map_or(ROWS, |rows| {
        rows.parse().expect("LOCKSTEP_TEST_ROWS is a number")
    })
}

/// One transaction of nine columns, as of a page of an order.
async fn transact(database: &Database, rows: u64) {
    database
        .execute(&format!(
            "INSERT INTO t SELECT n, n % 1000, 'customer-' || n % 5000, 'paid', 'EUR', (n % 100000) / 100.0,
             now(), n % 3 = 0, 'a note of middling length for row ' || n FROM generate_series(1, {rows}) n"
        ))
        .await;
}

const TABLE: &str =
    "CREATE TABLE t (id bigint PRIMARY KEY, shop int, customer text, status text, currency text,
    total numeric(12, 2), placed_at timestamptz, gift boolean, note text)";

async fn run(setup: &Setup, database: &Database, to: &str) {
    let rows = rows();
    let mut pipeline = setup.start_ready().await;
    pipeline.wait_streaming("shop").await;
    let idle = pipeline.peak_resident();
    let begun = std::time::Instant::now();
    transact(database, rows).await;
    let committed = begun.elapsed();
    pipeline
        .wait_visible("shop", &end_of_log(database).await, DEADLINE)
        .await;
    let (all, peak) = (begun.elapsed(), pipeline.peak_resident());
    println!(
        "{rows} rows in one transaction into {to}: peak {:.1} MiB (idle {:.1} MiB), committed after {committed:.1?}, \
         durable after {all:.1?}",
        peak as f64 / 1048576.0,
        idle as f64 / 1048576.0,
    );
    assert!(pipeline.terminate(DEADLINE).await.success());
    assert!(peak < BOUND, "{peak} bytes");
}

#[tokio::test]
async fn one_huge_transaction_fits_the_budget_on_its_way_to_redis() {
    require!(NeedsPostgres(17));
    require_own!(NeedsRedis);
    let database = Postgres::shared(17).await.database("huge").await;
    database.execute(TABLE).await;
    let redis = Redis::start(RedisOptions::default()).await;
    let name = unique("huge");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"]) + &cache(redis.url(), &name)
    });
    run(&setup, &database, "redis").await;
    let last = redis
        .command(&["EXISTS", &format!("{name}:t:{}", rows())])
        .await;
    assert_eq!(last.expect("an answer"), Reply::Integer(1));
}

#[tokio::test]
async fn one_huge_transaction_fits_the_budget_on_its_way_to_a_file() {
    require!(NeedsPostgres(17));
    let database = Postgres::shared(17).await.database("huge").await;
    database.execute(TABLE).await;
    let name = unique("huge");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["t"]) + &files(folder)
    });
    run(&setup, &database, "a file").await;
    let text = std::fs::read(setup.folder().join("t.jsonl")).expect("the file");
    assert_eq!(
        text.iter().filter(|byte| **byte == b'\n').count() as u64,
        rows()
    );
}

#[tokio::test]
async fn one_huge_transaction_fits_the_budget_on_its_way_to_kafka() {
    require!(NeedsPostgres(17), NeedsKafka);
    let database = Postgres::shared(17).await.database("huge").await;
    database.execute(TABLE).await;
    let kafka = Kafka::shared().await;
    let name = unique("huge");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"]) + &events(kafka.bootstrap(), &name, "")
    });
    run(&setup, &database, "kafka").await;
    let records = topics::read(kafka.bootstrap(), &format!("{name}.t")).await;
    assert_eq!(records.len() as u64, rows());
}

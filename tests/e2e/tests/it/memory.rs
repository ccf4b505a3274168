//! Resident memory of the process while one transaction is larger than all of it, and how long after its commit all of
//! it is durable.
//!
//! With a release build, `LOCKSTEP_TEST_ROWS=10000000 … cargo test --release -p lockstep-e2e --test it memory:: --
//! --nocapture --test-threads 1` is the demonstration of the former, and 1000000 the measurement of the latter, with
//! `LOCKSTEP_TEST_SECONDS=30` for a transaction that takes its time.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

use lockstep_e2e::topics::{self, Times};
use lockstep_e2e::{Pipeline, Setup};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, OpenSearch as NeedsOpenSearch, Postgres as NeedsPostgres,
    Redis as NeedsRedis,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::opensearch::OpenSearch;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::redis::{Redis, RedisOptions, Reply};
use lockstep_kit::{require, require_own, unique};
use serde_json::{Value, json};
use tantivy::schema::Value as _;

use crate::support::{cache, end_of_log, events, files, source};

/// Rows of the transaction: about 30 MB of log, and more than the server keeps in memory while it decodes.
const ROWS: u64 = 300_000;
const ROWS_VARIABLE: &str = "LOCKSTEP_TEST_ROWS";
/// How long the transaction is to take at least; as short as it can when not set.
const SECONDS_VARIABLE: &str = "LOCKSTEP_TEST_SECONDS";
/// What a process may take.
const BUDGET: u64 = 256_000_000;
/// With a sink that sends rows elsewhere: 200 MB for a release build, the code of a debug build alone takes half a hundred more.
/// Batches may hold 32 MiB, librdkafka's queue 16 MiB, and allocators keep as much again.
const BOUND: u64 = if cfg!(debug_assertions) {
    250_000_000
} else {
    200_000_000
};

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is a number")),
    )
}

fn rows() -> u64 {
    number(ROWS_VARIABLE).unwrap_or(ROWS)
}

/// Statements of the transaction.
const PARTS: u32 = 100;

fn deadline() -> Duration {
    Duration::from_secs(300 + rows() / 10_000)
}

const TABLE: &str =
    "CREATE TABLE t (id bigint PRIMARY KEY, shop int, customer text, status text, currency text,
    total numeric(12, 2), placed_at timestamptz, gift boolean, note text)";

/// One transaction of nine columns, as of a page of an order.
async fn transact(database: &Database, rows: u64) -> Duration {
    let client = database.client().await;
    let lasts = Duration::from_secs(number(SECONDS_VARIABLE).unwrap_or(0));
    let begun = Instant::now();
    client.batch_execute("BEGIN").await.expect("begun");
    let at = |part: u32| rows * u64::from(part) / u64::from(PARTS);
    for part in 0..PARTS {
        let (from, to) = (at(part), at(part + 1));
        let insert = format!(
            "INSERT INTO t SELECT n, n % 1000, 'customer-' || n % 5000, 'paid', 'EUR', (n % 100000) / 100.0,
             now(), n % 3 = 0, 'a note of middling length for row ' || n FROM generate_series({from} + 1, {to}) n"
        );
        client.batch_execute(&insert).await.expect("inserted");
        // The pace is the workload's: nothing is waited for.
        let due = lasts * (part + 1) / PARTS;
        tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
    }
    client.batch_execute("COMMIT").await.expect("committed");
    begun.elapsed()
}

/// The key of the source that is in question.
fn streaming(on: bool) -> &'static str {
    if on {
        "streaming = \"on\"\n"
    } else {
        "streaming = \"off\"\n"
    }
}

async fn run(setup: &Setup, database: &Database, slot: &str, on: bool, to: &str) {
    let rows = rows();
    let mut pipeline: Pipeline = setup.start_ready().await;
    pipeline.wait_streaming("shop").await;
    let idle = pipeline.peak_resident();
    let took = transact(database, rows).await;
    let committed = Instant::now();
    let end = end_of_log(database).await;
    pipeline.wait_visible("shop", &end, deadline()).await;
    let (durable, peak) = (committed.elapsed(), pipeline.peak_resident());
    println!(
        "{rows} rows in one transaction of {took:.1?} into {to}, {}: durable {durable:.2?} after its commit, \
         peak {:.1} MB (idle {:.1} MB)",
        streaming(on).trim(),
        peak as f64 / 1e6,
        idle as f64 / 1e6,
    );
    let streamed =
        format!("SELECT stream_txns > 0 FROM pg_stat_replication_slots WHERE slot_name = '{slot}'");
    let streamed = database.value(&streamed).await;
    assert_eq!(streamed.as_deref(), Some(if on { "t" } else { "f" }));
    assert!(pipeline.terminate(deadline()).await.success());
    // An index maps its files, too.
    let bound = if to == "tantivy" { BUDGET } else { BOUND };
    assert!(peak < bound, "{peak} bytes");
}

async fn to_redis(on: bool) {
    require!(NeedsPostgres(17));
    require_own!(NeedsRedis);
    let database = Postgres::shared(17).await.database("huge").await;
    database.execute(TABLE).await;
    let redis = Redis::start(RedisOptions::default()).await;
    let name = unique("huge");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"]) + streaming(on) + &cache(redis.url(), &name)
    });
    run(&setup, &database, &name, on, "redis").await;
    let mut there = 0;
    for from in (1..=rows()).step_by(1_000) {
        let ids = from..=rows().min(from + 999);
        let keys: Vec<String> = ids.map(|id| format!("{name}:t:{id}")).collect();
        let command: Vec<&str> = std::iter::once("EXISTS")
            .chain(keys.iter().map(String::as_str))
            .collect();
        match redis.command(&command).await.expect("an answer") {
            Reply::Integer(some) => there += some,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(there.cast_unsigned(), rows());
}

#[tokio::test]
async fn one_huge_transaction_fits_the_budget_on_its_way_to_redis() {
    to_redis(false).await;
}

#[tokio::test]
async fn one_huge_streamed_transaction_fits_the_budget_on_its_way_to_redis() {
    to_redis(true).await;
}

/// The keys of a file of the file sink, counted.
fn times(path: &Path) -> Times {
    let mut times = Times::new(rows());
    let file = std::fs::File::open(path).expect("the file");
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).expect("readable") > 0 {
        let name = b"\"key\":";
        let begin = line.windows(name.len()).position(|part| part == name);
        let begin = begin.expect("a key") + name.len();
        let length = line[begin..].iter().position(|byte| *byte == b'}');
        times.add(&line[begin..=begin + length.expect("an end")]);
        line.clear();
    }
    times
}

async fn to_file(on: bool) {
    require!(NeedsPostgres(17));
    let database = Postgres::shared(17).await.database("huge").await;
    database.execute(TABLE).await;
    let name = unique("huge");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["t"]) + streaming(on) + &files(folder)
    });
    run(&setup, &database, &name, on, "a file").await;
    let path = setup.folder().join("t.jsonl");
    assert_eq!(times(&path).not_once(), None);
}

#[tokio::test]
async fn one_huge_transaction_fits_the_budget_on_its_way_to_a_file() {
    to_file(false).await;
}

#[tokio::test]
async fn one_huge_streamed_transaction_fits_the_budget_on_its_way_to_a_file() {
    to_file(true).await;
}

async fn to_kafka(on: bool) {
    require!(NeedsPostgres(17), NeedsKafka);
    let database = Postgres::shared(17).await.database("huge").await;
    database.execute(TABLE).await;
    let kafka = Kafka::shared().await;
    let name = unique("huge");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"])
            + streaming(on)
            + &events(kafka.bootstrap(), &name, "")
    });
    run(&setup, &database, &name, on, "kafka").await;
    let topic = format!("{name}.t");
    let wrong = topics::not_once(kafka.bootstrap(), &topic, rows(), deadline()).await;
    assert_eq!(wrong, None);
}

#[tokio::test]
async fn one_huge_transaction_fits_the_budget_on_its_way_to_kafka() {
    to_kafka(false).await;
}

#[tokio::test]
async fn one_huge_streamed_transaction_fits_the_budget_on_its_way_to_kafka() {
    to_kafka(true).await;
}

async fn to_opensearch(on: bool) {
    require!(NeedsPostgres(17), NeedsOpenSearch);
    let database = Postgres::shared(17).await.database("huge").await;
    database.execute(TABLE).await;
    let search = OpenSearch::shared().await;
    let name = unique("huge");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"])
            + streaming(on)
            + &format!(
                "[sinks.search]\ntype = \"opensearch\"\ninputs = [\"shop\"]\nurl = \"{}\"\nindex = \"{name}-{{table}}\"\n",
                search.url()
            )
    });
    run(&setup, &database, &name, on, "opensearch").await;
    // Ids of documents are unique in an index.
    let ask = async |what: &str, body: &str| {
        let path = format!("/{name}-t/{what}");
        let (status, text) = search.request("POST", &path, body).await.expect("asked");
        assert_eq!(status, 200, "{text}");
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    ask("_refresh", "").await;
    let in_range = json!({"query": {"range": {"id": {"gte": 1, "lte": rows()}}}});
    let counted = ask("_count", &in_range.to_string()).await;
    assert_eq!(counted["count"], rows(), "{counted}");
}

#[tokio::test]
async fn one_huge_transaction_fits_the_budget_on_its_way_to_opensearch() {
    to_opensearch(false).await;
}

#[tokio::test]
async fn one_huge_streamed_transaction_fits_the_budget_on_its_way_to_opensearch() {
    to_opensearch(true).await;
}

/// The ids of the documents of an index, counted.
fn documents(path: &Path) -> tantivy::Result<Times> {
    let index = tantivy::Index::open_in_dir(path)?;
    let id = index.schema().get_field("_id")?;
    let mut times = Times::new(rows());
    for segment in index.reader()?.searcher().segment_readers() {
        let store = segment.get_store_reader(1)?;
        for document in store.iter::<tantivy::TantivyDocument>(segment.alive_bitset()) {
            let document = document?;
            let id = document.get_first(id).and_then(|id| id.as_str());
            let key = format!("{{\"id\":{}}}", id.expect("an id"));
            times.add(key.as_bytes());
        }
    }
    Ok(times)
}

async fn to_index(on: bool) {
    require!(NeedsPostgres(17));
    let database = Postgres::shared(17).await.database("huge").await;
    database.execute(TABLE).await;
    let name = unique("huge");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["t"])
            + streaming(on)
            + &format!(
                "[sinks.index]\ntype = \"tantivy\"\ninputs = [\"shop\"]\npath = \"{}/index\"\n",
                folder.display()
            )
    });
    run(&setup, &database, &name, on, "tantivy").await;
    let times = documents(&setup.folder().join("index")).expect("an index");
    assert_eq!(times.not_once(), None);
}

#[tokio::test]
async fn one_huge_transaction_fits_the_budget_on_its_way_to_the_embedded_index() {
    to_index(false).await;
}

#[tokio::test]
async fn one_huge_streamed_transaction_fits_the_budget_on_its_way_to_the_embedded_index() {
    to_index(true).await;
}

//! Real pipelines, and what arrives at a collector.

use std::time::{Duration, Instant};

use lockstep_e2e::{Pipeline, Setup};
use lockstep_kit::Component::{Postgres as NeedsPostgres, Redis as NeedsRedis};
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::redis::{Redis, RedisOptions};
use lockstep_kit::{require, require_own, unique, wait_for};
use tokio::net::TcpListener;

use crate::collector::{Collector, Seen};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Numbers of `opentelemetry.proto.trace.v1`.
const CLIENT: i32 = 3;
const ERROR: i32 = 2;
const SECRET: &str = "do-not-print-me";

async fn shop() -> Database {
    let database = Postgres::shared(16).await.database("shop").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY, name text)")
        .await;
    database
        .execute("INSERT INTO t SELECT n, 'copied' FROM generate_series(1, 20) n")
        .await;
    database
}

/// From a table of a database to keys in Redis.
fn setup(name: &str, database: &Database, redis: &Redis) -> Setup {
    let (from, to) = (database.url(), redis.url());
    Setup::new(name, |_| {
        format!(
            "shutdown_timeout = \"2s\"\n\
             [sources.shop]\ntype = \"postgres\"\nurl = \"{from}\"\nslot = \"{name}\"\ntables = [\"public.t\"]\n\
             [sinks.cache]\ntype = \"redis\"\ninputs = [\"shop\"]\nurl = \"{to}\"\nkey = \"{name}:{{table}}:{{key}}\"\n"
        )
    })
}

/// `lockstep run` with its traces going to `url`, and `more` variables.
fn run(setup: &Setup, url: &str, more: &[(&str, &str)]) -> Pipeline {
    let file = setup.file().display().to_string();
    let headers = format!("authorization=Bearer%20{SECRET}");
    let mut environment = vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url),
        ("OTEL_EXPORTER_OTLP_HEADERS", &*headers),
        // Those of tests that are about something else are not waited for.
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ("LOCKSTEP_LOG", "trace"),
    ];
    environment.extend(more);
    setup.spawn(&["run", &file], &environment)
}

async fn visible(pipeline: &mut Pipeline, database: &Database) {
    let end = database.value("SELECT pg_current_wal_flush_lsn()").await;
    let end = end.expect("an LSN");
    pipeline.wait_visible("shop", &end, PATIENCE).await;
}

/// The first span of a name that is like this, once it has arrived.
async fn span(collector: &Collector, name: &str, is_it: impl Fn(&Seen) -> bool) -> Seen {
    wait_for(PATIENCE, format!("a span {name}"), || async {
        let spans = collector.spans();
        let found = spans.iter().find(|seen| seen.name == name && is_it(seen));
        found.cloned().ok_or(spans)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pipeline_does_arrives_at_the_collector() {
    require!(NeedsPostgres(16), NeedsRedis);
    let (database, redis, collector) = tokio::join!(shop(), Redis::shared(), Collector::start());
    let name = unique("otel");
    let setup = setup(&name, &database, redis);
    let resource = "deployment.environment.name=test,service.instance.id=one";
    let more = [
        ("OTEL_SERVICE_NAME", "shop-to-redis"),
        ("OTEL_RESOURCE_ATTRIBUTES", resource),
    ];
    let mut pipeline = run(&setup, &collector.url, &more);
    pipeline.wait_ready().await;
    visible(&mut pipeline, &database).await;
    database
        .execute("INSERT INTO t VALUES (21, 'streamed')")
        .await;
    visible(&mut pipeline, &database).await;

    let is_streamed = |seen: &Seen| seen.get("phase") == "stream";
    let write = span(&collector, "write", is_streamed).await;
    let pairs = [("pipeline", &*name), ("source", "shop"), ("sink", "cache")];
    for (key, value) in pairs {
        assert_eq!(write.get(key), value, "{write:?}");
    }
    let counts = ["changes", "attempt", "written", "stale"].map(|key| write.get(key));
    assert_eq!(counts, ["1", "1", "1", "0"], "{write:?}");
    let ended = (write.get("outcome"), write.get("error"));
    assert_eq!(ended, ("durable", ""), "{write:?}");
    let (first, last) = (write.get("first"), write.get("last"));
    assert!(first.contains('/') && first.ends_with("#1"), "{write:?}");
    assert_eq!(first, last);
    assert_eq!((write.kind, write.status), (CLIENT, 0), "{write:?}");
    assert!(write.took > 0, "{write:?}");

    // The write is a part of the batch's way, which is as long at least.
    let batch = span(&collector, "batch", |seen| seen.id == write.parent).await;
    assert!(batch.parent.is_empty() && batch.trace == write.trace);
    assert!(batch.took >= write.took, "{batch:?} {write:?}");
    assert_eq!((batch.get("first"), batch.get("last")), (first, last));
    assert_eq!(batch.get("sink"), "");

    let expected = [
        ("service.name", "shop-to-redis"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", "one"),
        ("deployment.environment.name", "test"),
    ];
    for (key, value) in expected {
        let found = write.resource.get(key).map(String::as_str);
        assert_eq!(found, Some(value), "{key}");
    }
    assert!(collector.all_had("authorization", &format!("Bearer {SECRET}")));

    let copy = span(&collector, "copy", |_| true).await;
    let of_copy = ["pipeline", "source", "table", "rows", "outcome"].map(|key| copy.get(key));
    assert_eq!(of_copy, [&*name, "shop", "public.t", "20", "read"]);
    let copied = |seen: &Seen| seen.get("phase") == "snapshot";
    let copied = span(&collector, "write", copied).await;
    assert_eq!((copied.get("first"), copied.get("written")), ("", "20"));
    let confirmed = span(&collector, "confirm", |_| true).await;
    assert_eq!(confirmed.get("outcome"), "confirmed", "{confirmed:?}");

    // One row is not as it should be.
    let key = format!("{name}:t:7");
    redis.command(&["DEL", &key]).await.expect("an answer");
    let url = pipeline.url().await;
    let ended = setup.lockstep("reconcile", &["--url", &url]).await;
    assert_eq!(ended.code(), Some(3), "{ended:?}");
    let is_less = |seen: &Seen| seen.get("missing") == "1";
    let compared = span(&collector, "compare sink", is_less).await;
    let found = [
        "pipeline",
        "source",
        "table",
        "sink",
        "rows",
        "missing",
        "different",
        "outcome",
    ];
    let found = found.map(|key| compared.get(key));
    let expected = [
        &*name, "shop", "public.t", "cache", "21", "1", "0", "differs",
    ];
    assert_eq!(found, expected, "{compared:?}");
    let whole = span(&collector, "compare", |seen| seen.id == compared.parent).await;
    let found = ["rows", "undecided", "outcome"].map(|key| whole.get(key));
    assert_eq!(found, ["21", "0", "done"], "{whole:?}");

    let arguments = ["--table", "public.t", "--url", &url];
    let ended = setup.lockstep("snapshot", &arguments).await;
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let load = span(&collector, "load", |_| true).await;
    let found = ["source", "table", "rows", "outcome"].map(|key| load.get(key));
    assert_eq!(found, ["shop", "public.t", "21", "durable"], "{load:?}");

    pipeline.signal(rustix::process::Signal::TERM);
    let ended = pipeline.ends().await;
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert!(!ended.stderr.contains(SECRET), "{}", ended.stderr);
    for seen in collector.spans() {
        let text = format!("{seen:?}");
        let is_row = ["streamed", "copied"].iter().any(|row| text.contains(row));
        assert!(!is_row, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_attempt_is_a_write_of_its_own_and_a_failed_one_has_its_code() {
    require!(NeedsPostgres(16));
    require_own!(NeedsRedis);
    let (database, collector) = tokio::join!(shop(), Collector::start());
    let redis = Redis::start(RedisOptions {
        append_only: true,
        ..RedisOptions::default()
    })
    .await;
    let name = unique("otel");
    let setup = setup(&name, &database, &redis);
    let mut pipeline = run(&setup, &collector.url, &[]);
    pipeline.wait_ready().await;
    visible(&mut pipeline, &database).await;
    redis.kill();
    database
        .execute("INSERT INTO t VALUES (21, 'streamed')")
        .await;
    let of = |outcome: &'static str| {
        move |seen: &Seen| seen.get("phase") == "stream" && seen.get("outcome") == outcome
    };
    let failed = span(&collector, "write", of("failed")).await;
    redis.restart().await;
    visible(&mut pipeline, &database).await;
    let durable = span(&collector, "write", of("durable")).await;
    assert_eq!((failed.get("attempt"), failed.status), ("1", ERROR));
    assert_eq!(failed.get("error"), "LS003", "{failed:?}");
    assert_ne!(durable.get("attempt"), "1", "{durable:?}");
    assert_eq!(durable.get("error"), "", "{durable:?}");
    assert_eq!(failed.parent, durable.parent);
    assert!(pipeline.terminate(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_process_sends_what_is_left() {
    require!(NeedsPostgres(16), NeedsRedis);
    let (database, redis, collector) = tokio::join!(shop(), Redis::shared(), Collector::start());
    let name = unique("otel");
    let setup = setup(&name, &database, redis);
    let seldom = ("OTEL_BSP_SCHEDULE_DELAY", "3600000");
    let mut pipeline = run(&setup, &collector.url, &[seldom]);
    pipeline.wait_ready().await;
    visible(&mut pipeline, &database).await;
    assert!(collector.spans().is_empty(), "{:?}", collector.spans());
    assert!(pipeline.terminate(PATIENCE).await.success());
    let spans = collector.spans();
    let is_there = |name: &str| spans.iter().any(|seen| seen.name == name);
    assert!(is_there("write") && is_there("copy"), "{spans:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_stops_nothing_and_is_told_seldom() {
    require!(NeedsPostgres(16), NeedsRedis);
    let (database, redis) = tokio::join!(shop(), Redis::shared());
    let name = unique("otel");
    let setup = setup(&name, &database, redis);
    let mut pipeline = run(&setup, "http://127.0.0.1:1", &[]);
    pipeline.wait_ready().await;
    let told = "traces do not arrive";
    for n in 0.. {
        let insert = format!("INSERT INTO t VALUES ({}, 'streamed')", 100 + n);
        database.execute(&insert).await;
        visible(&mut pipeline, &database).await;
        if n > 10 && pipeline.log().contains(told) {
            break;
        }
        assert!(n < 10_000, "nothing is told");
    }
    pipeline.signal(rustix::process::Signal::TERM);
    let ended = pipeline.ends().await;
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert_eq!(ended.stderr.matches(told).count(), 1, "{}", ended.stderr);
    assert!(!ended.stderr.contains(SECRET), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_does_not_answer_holds_the_end_for_a_few_seconds_only() {
    require!(NeedsPostgres(16), NeedsRedis);
    let (database, redis) = tokio::join!(shop(), Redis::shared());
    // Whoever connects waits to be accepted.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("bound"));
    let name = unique("otel");
    let setup = setup(&name, &database, redis);
    let hour = ("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000");
    let mut pipeline = run(&setup, &url, &[hour]);
    pipeline.wait_ready().await;
    visible(&mut pipeline, &database).await;
    pipeline.signal(rustix::process::Signal::TERM);
    let asked = Instant::now();
    let drained = "everything received is durable";
    wait_for(PATIENCE, "the drain", || async {
        pipeline.log().contains(drained)
    })
    .await;
    let drained = Instant::now();
    let status = pipeline.wait_exit(PATIENCE).await;
    assert!(status.success(), "{status}");
    let held = drained.elapsed();
    assert!(
        held < Duration::from_secs(6),
        "{held:?} of {:?}",
        asked.elapsed()
    );
    let log = pipeline.log();
    assert!(log.contains("the last traces were not exported"), "{log}");
}

/// One process after the other runs a pipeline of two databases, and ends what a coordinator has left behind in one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_over_and_what_is_resolved_arrive_with_token_and_rule() {
    require_own!(NeedsPostgres(16));
    let server = Postgres::start(PostgresOptions::new(16)).await;
    let (orders, inventory) = (
        server.database("orders").await,
        server.database("inventory").await,
    );
    let name = unique("otel");
    let section = |of: &str, database: &Database| {
        let url = database.url();
        format!(
            "[sources.{of}]\ntype = \"postgres\"\nurl = \"{url}\"\nslot = \"{name}_{of}\"\ntables = [\"public.t\"]\ntwo_phase = true\n"
        )
    };
    for database in [&orders, &inventory] {
        database
            .execute("CREATE TABLE t (id int PRIMARY KEY)")
            .await;
    }
    let setup = Setup::new(&name, |folder| {
        section("orders", &orders)
            + &section("inventory", &inventory)
            + &format!(
                "[transforms.whole]\ntype = \"stitch\"\ninputs = [\"orders\", \"inventory\"]\n\
                 [sinks.files]\ntype = \"file\"\ninputs = [\"whole\"]\npath = \"{}/all.jsonl\"\n\
                 [transactions]\nautomatic = [\"narayana\"]\nevery = \"1s\"\nsafety_interval = \"1s\"\n\
                 [lease]\ntype = \"postgres\"\nurl = \"{}\"\nttl = \"3s\"\n",
                folder.display(),
                orders.url()
            )
    });
    setup.change("[state]\n", "[state]\nshared = true\n");
    let collector = Collector::start().await;
    let mut first = run(&setup, &collector.url, &[]);
    first.wait_ready().await;
    // Nobody can make a slot while something is prepared that was so before.
    first.wait_streaming("orders").await;
    first.wait_streaming("inventory").await;
    let took = span(&collector, "take over", |_| true).await;
    let found = ["pipeline", "outcome", "error"].map(|key| took.get(key));
    assert_eq!(found, [&*name, "runs", ""], "{took:?}");
    let token: u64 = took.get("token").parse().expect("a number");

    let mut second = run(&setup, &collector.url, &[]);
    second.wait_ready().await;
    first.kill9();
    let later = |seen: &Seen| {
        seen.get("token")
            .parse::<u64>()
            .is_ok_and(|now| now > token)
    };
    let took = span(&collector, "take over", later).await;
    assert_eq!(took.get("outcome"), "runs", "{took:?}");

    // As Narayana names its branches.
    let gid = |branch: &str| format!("131077_NA==_{branch}");
    for (database, branch) in [(&orders, "1w=="), (&inventory, "2w==")] {
        let gid = gid(branch);
        let work = format!("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION '{gid}'");
        database.execute(&work).await;
    }
    let commit = format!("COMMIT PREPARED '{}'", gid("1w=="));
    orders.execute(&commit).await;
    let resolved = span(&collector, "resolve", |_| true).await;
    let found = [
        "pipeline", "source", "gid", "rule", "action", "outcome", "error",
    ];
    let found = found.map(|key| resolved.get(key));
    let (gid, done) = (gid("2w=="), "done");
    let expected = [&*name, "inventory", &gid, "evidence", "committed", done, ""];
    assert_eq!(found, expected, "{resolved:?}");
    assert_eq!(resolved.kind, CLIENT);
    assert!(second.terminate(PATIENCE).await.success());
}

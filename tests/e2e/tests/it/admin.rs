//! The admin endpoint, `lockstep status` and `lockstep check` of a pipeline at work.

use std::collections::BTreeSet;

use lockstep_core::metrics;
use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::{Setup, http};
use lockstep_kit::Component::{Postgres as NeedsPostgres, Redis as NeedsRedis};
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::redis::{Redis, Reply};
use lockstep_kit::{require, unique};
use serde_json::Value;

use crate::support::{cache, end_of_log, files, source};

const TOKEN: &str = "open sesame, and a little longer";

async fn table() -> Database {
    let database = Postgres::shared(17).await.database("shop").await;
    database.execute("CREATE TABLE t (id int PRIMARY KEY, once text); INSERT INTO t VALUES (1, 'a'), (2, 'a')").await;
    database
}

/// Nothing has failed, and nothing is being copied any more; the table was never analysed; nobody asked for transactions
/// in progress, or for those that are prepared.
const ABSENT: [&str; 29] = [
    metrics::LEASE_HELD.name,
    metrics::LEASE_TOKEN.name,
    metrics::LEASE_LEFT.name,
    metrics::LEASE_ATTEMPTS.name,
    metrics::LEASE_WAIT.name,
    metrics::LEASE_LOST.name,
    metrics::TWO_PHASE_BRANCHES.name,
    metrics::TWO_PHASE_PREPARED.name,
    metrics::TWO_PHASE_VISIBLE.name,
    metrics::RESOLVER_ACTIONS.name,
    metrics::RESOLVER_BRANCHES.name,
    metrics::RESOLVER_LOOKS.name,
    metrics::STITCH_SKEW.name,
    metrics::STITCH_PASSED.name,
    metrics::STITCH_TRANSACTIONS.name,
    metrics::STITCH_HOLD.name,
    metrics::STITCH_DECIDED.name,
    metrics::STITCH_WAITING.name,
    metrics::STITCH_FILE_BYTES.name,
    metrics::SOURCE_IN_DOUBT.name,
    metrics::SOURCE_IN_DOUBT_SINCE.name,
    metrics::SOURCE_IN_DOUBT_BYTES.name,
    metrics::SOURCE_RECEIVES_IN_PROGRESS.name,
    metrics::SINK_ERRORS.name,
    metrics::SLOT_SAFE_BYTES.name,
    metrics::TRANSFORM_ERRORS.name,
    metrics::SNAPSHOT_ESTIMATED_ROWS.name,
    metrics::SNAPSHOT_ROWS_PER_SECOND.name,
    metrics::SNAPSHOT_REMAINING_SECONDS.name,
];

/// Every metric, none twice: names that have at least one line in a scrape.
fn names(metrics: &str) -> BTreeSet<&str> {
    let lines = metrics.lines().filter(|line| !line.starts_with('#'));
    let names = lines.filter_map(|line| line.split(['{', ' ']).next());
    names
        .map(|name| {
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix));
            base.filter(|base| *base == "lockstep_end_to_end_latency_seconds")
                .unwrap_or(name)
        })
        .collect()
}

#[tokio::test]
async fn a_pipeline_at_work_shows_every_metric_its_status_and_what_is_visible() {
    require!(NeedsPostgres(17), NeedsRedis);
    let (database, redis) = tokio::join!(table(), Redis::shared());
    let name = unique("admin");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["t"])
            + "[transforms.once]\ntype = \"dedupe\"\ninputs = [\"shop\"]\nkey = [\"once\"]\naction = \"dead_letter\"\n"
            + &cache(redis.url(), &name).replace("[\"shop\"]", "[\"once\"]")
            + &files(folder)
            + "[reconcile]\nevery = \"2s\"\n[[reconcile.invariants]]\nname = \"ids\"\nrule = \"unique\"\nkey = [\"id\"]\n\
               queries = { shop = \"SELECT id FROM t\" }\n"
    });
    let mut pipeline = setup.start_ready().await;
    pipeline.wait_streaming("shop").await;

    // Read your writes: nobody asks Redis before the endpoint says so.
    for id in 10..15 {
        database
            .execute(&format!("INSERT INTO t VALUES ({id}, 'row {id}')"))
            .await;
        pipeline
            .wait_visible("shop", &end_of_log(&database).await, PATIENCE)
            .await;
        let held = redis
            .command(&["EXISTS", &format!("{name}:t:{id}")])
            .await
            .expect("an answer");
        assert_eq!(held, Reply::Integer(1), "{id}");
    }
    let far = "/api/visible?source=shop&lsn=FFFFFF/0";
    let (code, body) = pipeline.get(far).await.expect("an answer");
    let answer: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(
        (code, &answer["visible"], &answer["sinks"]["cache"]),
        (200, &Value::Bool(false), &Value::Bool(false))
    );
    let (code, body) = pipeline
        .get("/api/visible?source=shpo&lsn=0/0")
        .await
        .expect("an answer");
    assert!(code == 404 && body.contains("shop"), "{code} {body}");
    assert_eq!(
        pipeline
            .get("/api/visible?source=shop&lsn=x")
            .await
            .expect("an answer")
            .0,
        400
    );
    assert_eq!(
        pipeline.get("/api/visible").await.expect("an answer").0,
        400
    );
    assert_eq!(pipeline.get("/nothing").await.expect("an answer").0, 404);
    assert_eq!(pipeline.get("/healthz").await.expect("an answer").0, 200);

    // The slot is looked at every few seconds.
    let metrics = pipeline
        .until(PATIENCE, "all metrics", async |pipeline| {
            let (code, metrics) = pipeline
                .get("/metrics")
                .await
                .map_err(|error| error.to_string())?;
            assert_eq!(code, 200);
            let there = names(&metrics);
            let absent: Vec<&str> = metrics::ALL
                .iter()
                .map(|metric| metric.name)
                .filter(|name| !ABSENT.contains(name))
                .filter(|name| !there.contains(name))
                .collect();
            if absent.is_empty() {
                Ok(metrics)
            } else {
                Err(format!("without {absent:?}"))
            }
        })
        .await;
    let known: BTreeSet<&str> = metrics::ALL.iter().map(|metric| metric.name).collect();
    let unknown: Vec<&str> = names(&metrics)
        .into_iter()
        .filter(|name| name.starts_with("lockstep_") && !known.contains(name))
        .collect();
    assert!(
        unknown.is_empty(),
        "not in lockstep_core::metrics::ALL: {unknown:?}"
    );
    for metric in metrics::ALL {
        for line in metrics
            .lines()
            .filter(|line| line.starts_with(&format!("{}{{", metric.name)))
        {
            for label in metric.labels {
                assert!(line.contains(&format!("{label}=\"")), "{label} in {line}");
            }
        }
    }
    let value = |start: &str| {
        let line = metrics.lines().find(|line| line.starts_with(start));
        line.and_then(|line| line.rsplit(' ').next())
            .and_then(|value| value.parse::<f64>().ok())
            .unwrap_or(f64::NAN)
    };
    assert_eq!(
        value("lockstep_duplicates_total{transform=\"once\"}"),
        1.0,
        "{metrics}"
    );
    assert_eq!(value("lockstep_source_connected{source=\"shop\"}"), 1.0);
    assert_eq!(value("lockstep_sink_up{sink=\"cache\"}"), 1.0);
    assert_eq!(
        value("lockstep_end_to_end_latency_seconds_count{sink=\"cache\"}"),
        5.0,
        "{metrics}"
    );
    assert!(value("process_resident_memory_bytes") > 1e6, "{metrics}");

    let url = pipeline.url().await;
    let status = setup.lockstep_with(&["status", "--url", &url], &[]).await;
    assert_eq!(status.code(), Some(0), "{status:?}");
    for word in [&*name, "ready", "shop", "cache", "files", "streaming"] {
        assert!(status.stdout.contains(word), "{word} in {}", status.stdout);
    }
    let status = setup
        .lockstep_with(
            &["status", "--format", "json"],
            &[("LOCKSTEP_ADMIN_URL", &url)],
        )
        .await;
    let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!(status["sinks"]["cache"]["state"], "running");
    assert_eq!(status["dead_letters"], 1);

    assert!(pipeline.terminate(PATIENCE).await.success());
    let gone = setup.lockstep_with(&["status", "--url", &url], &[]).await;
    assert_eq!(gone.code(), Some(1), "{gone:?}");
    assert!(gone.error().contains("Remedy: "), "{gone:?}");
}

#[tokio::test]
async fn the_token_is_asked_for_where_it_matters() {
    require!(NeedsPostgres(17));
    let database = table().await;
    let name = unique("token");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["t"])
            + &files(folder)
            + &format!("[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"{TOKEN}\"\n")
    });
    let mut pipeline = setup.start_ready().await;
    let address = pipeline.address().await;
    for path in [
        "/metrics",
        "/api/status",
        "/api/visible?source=shop&lsn=0/0",
        "/api/dead-letters",
    ] {
        for token in [None, Some("wrong"), Some("")] {
            let (code, body) = http::get(address, path, token).await.expect("an answer");
            assert_eq!(code, 401, "{path} {token:?}: {body}");
            assert!(!body.contains("shop"), "{body}");
        }
        assert_eq!(
            http::get(address, path, Some(TOKEN))
                .await
                .expect("an answer")
                .0,
            200,
            "{path}"
        );
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(
            http::get(address, path, None).await.expect("an answer").0,
            200,
            "{path}"
        );
    }
    let url = pipeline.url().await;
    let without = setup.lockstep_with(&["status", "--url", &url], &[]).await;
    assert_eq!(without.code(), Some(1), "{without:?}");
    assert!(
        without.error().contains("LS004") && without.error().contains("--token"),
        "{without:?}"
    );
    let with = setup
        .lockstep_with(
            &["status", "--url", &url],
            &[("LOCKSTEP_ADMIN_TOKEN", TOKEN)],
        )
        .await;
    assert_eq!(with.code(), Some(0), "{with:?}");
    assert!(!pipeline.log().contains(TOKEN), "{}", pipeline.log());
    assert!(pipeline.terminate(PATIENCE).await.success());
}

#[tokio::test]
async fn an_address_in_use_ends_the_run_before_the_copy() {
    require!(NeedsPostgres(17));
    let database = table().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let name = unique("port");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["t"])
            + &files(folder)
            + &format!("[admin]\nlisten = \"{address}\"\n")
    });
    let ended = setup.start().ends().await;
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert!(
        ended.error().contains("admin.listen") && ended.error().contains("Remedy: "),
        "{ended:?}"
    );
    let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}'");
    assert_eq!(database.value(&slots).await.as_deref(), Some("0"));
}

#[tokio::test]
async fn check_shows_what_is_right_and_how_to_repair_what_is_not_and_changes_nothing() {
    require!(NeedsPostgres(17), NeedsRedis);
    let (database, redis) = tokio::join!(table(), Redis::shared());
    let name = unique("check");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"]) + &cache(redis.url(), &name)
    });
    let check = setup.lockstep("check", &[]).await;
    assert_eq!(check.code(), Some(0), "{check:?}");
    for words in [
        "✓",
        "sources.shop",
        "sinks.cache",
        "wal_level",
        "free slots",
        "prepared transactions",
        "ready to run",
    ] {
        assert!(check.stdout.contains(words), "{words} in {}", check.stdout);
    }
    assert!(!check.stdout.contains('✗'), "{}", check.stdout);
    let made = "SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots WHERE slot_name = '";
    assert_eq!(
        database.value(&format!("{made}{name}')")).await.as_deref(),
        Some("0"),
        "it has made something"
    );

    database
        .execute("CREATE PUBLICATION lockstep FOR TABLE t WITH (publish = 'insert')")
        .await;
    setup.change(redis.url(), "redis://127.0.0.1:1");
    let check = setup.lockstep("check", &[]).await;
    assert_eq!(check.code(), Some(1), "{check:?}");
    assert!(
        check.stdout.contains("2 things to repair"),
        "{}",
        check.stdout
    );
    let statement =
        "ALTER PUBLICATION \"lockstep\" SET (publish = 'insert, update, delete, truncate')";
    assert!(check.stdout.contains(statement), "{}", check.stdout);
    let json = setup.lockstep("check", &["--format", "json"]).await;
    let json: Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(json["ok"], false);
    assert!(
        json["places"]
            .as_array()
            .is_some_and(|places| places.len() == 3),
        "{json:#}"
    );
    assert_eq!(
        setup.lockstep("check", &["--offline"]).await.code(),
        Some(0)
    );

    database.execute(statement).await;
    setup.change("redis://127.0.0.1:1", redis.url());
    assert_eq!(setup.lockstep("check", &[]).await.code(), Some(0));
}

/// The value of a metric of the source `shop`, if it has one.
fn value(metrics: &str, name: &str) -> Option<f64> {
    let line = format!("{name}{{source=\"shop\"}} ");
    let value = metrics.lines().find_map(|one| one.strip_prefix(&line))?;
    Some(value.parse().expect("a number"))
}

#[tokio::test]
async fn a_copy_tells_its_rate_and_the_time_left_when_that_is_known() {
    require!(NeedsPostgres(17));
    const RATE: &str = metrics::SNAPSHOT_ROWS_PER_SECOND.name;
    const LEFT: &str = metrics::SNAPSHOT_REMAINING_SECONDS.name;
    for analysed in [true, false] {
        let database = Postgres::shared(17).await.database("copy").await;
        database
            .execute(
                "CREATE TABLE t (id int PRIMARY KEY, note text) WITH (autovacuum_enabled = off);
                 INSERT INTO t SELECT n, repeat('x', 200) FROM generate_series(1, 100000) n",
            )
            .await;
        if analysed {
            database.execute("ANALYZE t").await;
        }
        let name = unique("copy");
        // The sink is down: the copy comes to the end of the memory, and stays a copy.
        let setup = Setup::new(&name, |_| {
            let memory = "memory = \"8MiB\"\n".to_owned();
            memory + &source(database.url(), &name, &["t"]) + &cache("redis://127.0.0.1:1", &name)
        });
        let mut pipeline = setup.start();
        let metrics = pipeline
            .until(PATIENCE, "a rate", async |pipeline| {
                let (_, metrics) = pipeline.get("/metrics").await.map_err(|e| e.to_string())?;
                let moves = value(&metrics, RATE).is_some_and(|rate| rate > 0.0);
                moves.then(|| metrics.clone()).ok_or(metrics)
            })
            .await;
        assert_eq!(value(&metrics, LEFT).is_some(), analysed, "{metrics}");
        assert!(
            value(&metrics, LEFT).is_none_or(|left| left > 0.0),
            "{metrics}"
        );
        let estimate = metrics.contains("lockstep_snapshot_estimated_rows{source=");
        assert_eq!(estimate, analysed, "{metrics}");
    }
}

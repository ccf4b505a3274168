//! `lockstep snapshot`: tables are loaded again while the stream goes on.

use std::time::Duration;

use lockstep::demo::compare::Rules;
use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::copies::Compare;
use lockstep_e2e::work::{self, Work};
use lockstep_e2e::{Pipeline, Random, Setup};
use lockstep_kit::Component::{Postgres as NeedsPostgres, Redis as NeedsRedis};
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::redis::Redis;
use lockstep_kit::{require, unique};
use serde_json::Value;

use crate::support::{cache, end_of_log, files, source, tables};

/// Loads a table through the command, and returns what it says.
async fn load(setup: &Setup, pipeline: &mut Pipeline, more: &[&str]) -> String {
    let url = pipeline.url().await;
    let ended = setup
        .lockstep("snapshot", &[more, &["--url", &url]].concat())
        .await;
    assert_eq!(ended.code(), Some(0), "{ended:?}\n{}", pipeline.log());
    ended.stdout
}

/// The requests of the source `shop`, as the endpoint tells them; none before it is open.
async fn requests(pipeline: &mut Pipeline) -> Vec<Value> {
    let (code, body) = pipeline.get("/api/snapshot").await.expect("an answer");
    assert_eq!(code, 200, "{body}");
    let all: Value = serde_json::from_str(&body).expect("JSON");
    all["shop"].as_array().cloned().unwrap_or_default()
}

async fn assert_equal(setup: &Setup, database: &Database, tables: Vec<String>) {
    let compare = Compare {
        source: "shop",
        url: database.url(),
        publication: "lockstep",
        tables,
        rules: Rules::default(),
    };
    compare.assert_equal(setup).await;
}

/// Ruins every third row of a table in Redis: gone, or something else.
async fn ruin(redis: &Redis, prefix: &str, database: &Database, table: &str, condition: &str) {
    let ids = format!("SELECT string_agg(id::text, ',') FROM {table} WHERE {condition}");
    let ids = database.value(&ids).await.expect("there are rows");
    for (at, id) in ids.split(',').step_by(3).enumerate() {
        let key = format!("{prefix}:{table}:{id}");
        let words: &[&str] = match at % 2 {
            0 => &["DEL", &key],
            _ => &["SET", &key, r#"{"id":"ruined"}"#],
        };
        redis.command(words).await.expect("Redis answers");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_loaded_again_under_load_and_no_stale_row_wins() {
    require!(NeedsPostgres(17), NeedsRedis);
    let mut random = Random::from_environment();
    let (postgres, redis) = tokio::join!(Postgres::shared(17), Redis::shared());
    let database = postgres.database("shop").await;
    work::create(&database, 6_000, 900).await;
    let name = unique("reload");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["ledger", "counters", "items"])
            + &cache(redis.url(), &name)
            + &files(folder)
    });
    let mut pipeline = setup.start_ready().await;
    pipeline.wait_streaming("shop").await;
    pipeline
        .wait_visible("shop", &end_of_log(&database).await, PATIENCE)
        .await;
    ruin(redis, &name, &database, "ledger", "true").await;
    ruin(redis, &name, &database, "counters", "id % 2 = 0").await;

    let writers = Work::start(&database, random.below(1_000)).await;
    let said = load(
        &setup,
        &mut pipeline,
        &["--table", "public.counters", "--where", "id % 2 = 0"],
    )
    .await;
    assert!(
        said.contains("100 rows") || said.contains("changed meanwhile"),
        "{said}"
    );
    // Again and again, so that chunks and changes meet.
    for _ in 0..5 {
        load(&setup, &mut pipeline, &["--table", "public.items"]).await;
        load(&setup, &mut pipeline, &["--table", "public.counters"]).await;
    }
    // With nothing but SQL.
    database
        .execute(
            r#"SELECT pg_logical_emit_message(true, 'lockstep.signal', '{"type": "snapshot", "table": "public.ledger"}')"#,
        )
        .await;
    pipeline
        .until(PATIENCE, "the ledger to be loaded", async |pipeline| {
            let requests = requests(pipeline).await;
            let done = requests
                .iter()
                .any(|one| one["table"] == "public.ledger" && one["state"] == "done");
            done.then_some(()).ok_or_else(|| format!("{requests:?}"))
        })
        .await;
    writers.stop().await;
    pipeline
        .wait_visible("shop", &end_of_log(&database).await, PATIENCE)
        .await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    assert_equal(&setup, &database, tables()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_goes_on_where_it_was_after_a_kill() {
    require!(NeedsPostgres(15), NeedsRedis);
    let mut random = Random::from_environment();
    let (postgres, redis) = tokio::join!(Postgres::shared(15), Redis::shared());
    let database = postgres.database("shop").await;
    database
        .execute(
            "CREATE TABLE t (a int, b text, note text, PRIMARY KEY (a, b));
             INSERT INTO t SELECT n % 100, 'k''' || n, repeat('n', 100) FROM generate_series(1, 200000) n",
        )
        .await;
    let name = unique("goes_on");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"]) + &cache(redis.url(), &name)
    });
    let mut pipeline = setup.start_ready().await;
    pipeline
        .wait_visible("shop", &end_of_log(&database).await, PATIENCE)
        .await;
    let url = pipeline.url().await;
    let asked = ["--table", "public.t", "--no-wait", "--url", &url];
    assert_eq!(setup.lockstep("snapshot", &asked).await.code(), Some(0));
    let mut rows = 0;
    for _ in 0..3 {
        let before = rows;
        rows = pipeline
            .until(PATIENCE, "some rows to be durable", async |pipeline| {
                let rows = requests(pipeline)
                    .await
                    .first()
                    .and_then(|one| one["rows"].as_u64());
                rows.filter(|rows| *rows > before)
                    .ok_or_else(|| format!("{rows:?} after {before}"))
            })
            .await;
        assert!(rows < 200_000, "it was killed too late to show anything");
        pipeline.kill9();
        tokio::time::sleep(random.millis(0, 50)).await;
        pipeline = setup.start();
    }
    pipeline
        .until(PATIENCE, "all rows to be durable", async |pipeline| {
            let requests = requests(pipeline).await;
            let one = requests.first().cloned().unwrap_or_default();
            (one["state"] == "done")
                .then_some(())
                .ok_or_else(|| one.to_string())
        })
        .await;
    let last = requests(&mut pipeline).await.remove(0);
    assert_eq!(
        last["rows"], 200_000,
        "what is counted is what was durable: {last}"
    );
    assert!(pipeline.terminate(Duration::from_secs(60)).await.success());
    assert_equal(&setup, &database, vec!["public.t".to_owned()]).await;
}

#[tokio::test]
async fn what_cannot_be_loaded_is_said() {
    require!(NeedsPostgres(17), NeedsRedis);
    let (postgres, redis) = tokio::join!(Postgres::shared(17), Redis::shared());
    let database = postgres.database("shop").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
        .await;
    let name = unique("said");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"]) + &cache(redis.url(), &name)
    });
    let mut pipeline = setup.start_ready().await;
    let url = pipeline.url().await;
    for (more, words) in [
        (vec!["--table", "public.tt"], "public.t"),
        (vec!["--table", "public.t", "--source", "shopp"], "shop"),
        (vec!["--table", "public.t", "--where", "id ="], "where"),
        (
            vec!["--table", "public.t", "--where", "true); DROP TABLE t; --"],
            "where",
        ),
    ] {
        let ended = setup
            .lockstep("snapshot", &[&more[..], &["--url", &url]].concat())
            .await;
        assert!(!ended.status.success(), "{ended:?}");
        assert!(ended.error().contains(words), "{words}: {ended:?}");
    }
    let said = load(&setup, &mut pipeline, &["--table", "public.t"]).await;
    assert!(said.contains("1 rows are durable"), "{said}");
}

//! Sinks that are down, come back, or refuse a row: a wait that `/readyz` explains or a clear end, and nothing is lost.

use std::path::Path;

use lockstep::demo::compare::Rules;
use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::copies::Compare;
use lockstep_e2e::work::{self, Arrived, Work};
use lockstep_e2e::{Setup, topics};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, OpenSearch as NeedsOpenSearch, Postgres as NeedsPostgres,
    Redis as NeedsRedis,
};
use lockstep_kit::kafka::{Kafka, KafkaOptions};
use lockstep_kit::opensearch::{OpenSearch, OpenSearchOptions};
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::proxy::Proxy;
use lockstep_kit::redis::{Redis, RedisOptions, Reply};
use lockstep_kit::{require, require_own, unique};

use crate::support::{cache, end_of_log, events, files, source, tables};

/// What it has acknowledged survives a kill: the log is written before the answer.
fn durable_redis() -> RedisOptions {
    RedisOptions {
        append_only: true,
        config: vec![("appendfsync".into(), "always".into())],
    }
}

async fn table(rows: u32) -> Database {
    let database = Postgres::shared(17).await.database("shop").await;
    database
        .execute(&format!(
            "CREATE TABLE t (id int PRIMARY KEY, note text); INSERT INTO t SELECT n, 'note ' || n FROM generate_series(1, {rows}) n"
        ))
        .await;
    database
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

#[tokio::test]
async fn sinks_that_are_down_at_the_start_are_waited_for_and_catch_up() {
    require!(NeedsPostgres(17), NeedsKafka);
    require_own!(NeedsRedis);
    let database = table(100).await;
    let (redis, kafka) = tokio::join!(Redis::start(RedisOptions::default()), Kafka::shared());
    redis.kill();
    // Nothing listens behind it yet.
    let proxy = Proxy::start("127.0.0.1:1").await;
    proxy.down().await;
    let name = unique("late");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["t"])
            + &cache(redis.url(), &name)
            + &events(
                &proxy.address(),
                &name,
                "properties = { \"socket.connection.setup.timeout.ms\" = 2000 }",
            )
            + &files(folder)
    });
    let check = setup.lockstep("check", &[]).await;
    assert_eq!(check.code(), Some(1), "{check:?}");
    assert!(check.stdout.contains("✗"), "{}", check.stdout);

    let mut pipeline = setup.start();
    pipeline
        .wait_unready_but(&["sinks.cache", "sinks.events", "LS003"], "sinks.files")
        .await;
    database
        .execute("INSERT INTO t VALUES (1000, 'while it was away')")
        .await;
    redis.restart().await;
    proxy.refuse(false).await;
    // The broker tells its clients its own address: the proxy is for the beginning alone.
    proxy.forward_to(kafka.bootstrap());
    pipeline.wait_ready().await;
    pipeline
        .wait_visible("shop", &end_of_log(&database).await, PATIENCE)
        .await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    assert_equal(&setup, &database, vec!["public.t".into()]).await;
    let records = topics::read(kafka.bootstrap(), &format!("{name}.t")).await;
    let created: Vec<_> = records
        .iter()
        .filter(|record| record.op() == "c")
        .map(|record| &record.key["id"])
        .collect();
    assert_eq!(created, [1000], "once");
    assert_eq!(records.len(), 101);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sinks_that_go_down_in_the_middle_get_everything_and_kafka_gets_it_once() {
    require!(NeedsPostgres(17));
    require_own!(NeedsRedis, NeedsKafka);
    let database = Postgres::shared(17).await.database("shop").await;
    work::create(&database, 200, 50).await;
    let (redis, kafka) = tokio::join!(
        Redis::start(durable_redis()),
        Kafka::start(KafkaOptions {
            proxy: true,
            ..KafkaOptions::default()
        }),
    );
    let name = unique("middle");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["ledger", "counters", "items"])
            + &cache(redis.url(), &name)
            + &events(
                &kafka.proxied_bootstrap(),
                &name,
                "properties = { \"socket.connection.setup.timeout.ms\" = 2000 }",
            )
    });
    let mut pipeline = setup.start_ready().await;
    work::slot_exists(&database, &name).await;
    let begin = work::look(&database).await;
    let writers = Work::start(&database, 7).await;

    redis.kill();
    pipeline
        .wait_unready_but(&["sinks.cache", "LS003"], "sinks.events")
        .await;
    redis.restart().await;
    pipeline.wait_ready().await;

    for _ in 0..3 {
        kafka.proxy().cut();
        pipeline
            .wait_visible("shop", &end_of_log(&database).await, PATIENCE)
            .await;
    }
    kafka.proxy().down().await;
    pipeline
        .wait_unready(&["sinks.events", "LS003", "the Kafka client reports"])
        .await;
    kafka.proxy().refuse(false).await;
    pipeline.wait_ready().await;

    writers.stop().await;
    let end = work::look(&database).await;
    pipeline.wait_visible("shop", &end.lsn, PATIENCE).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    assert_equal(&setup, &database, tables()).await;
    let read =
        async |table: &str| topics::read(kafka.bootstrap(), &format!("{name}.{table}")).await;
    let arrived = Arrived {
        ledger: read("ledger").await,
        counters: read("counters").await,
        items: read("items").await,
    };
    arrived.assert_exactly_once(&begin, &end);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opensearch_that_goes_down_in_the_middle_gets_everything() {
    require!(NeedsPostgres(17));
    require_own!(NeedsOpenSearch);
    let (database, search) =
        tokio::join!(table(50), OpenSearch::start(OpenSearchOptions::default()));
    let name = unique("search");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"])
            + &format!(
                "[sinks.search]\ntype = \"opensearch\"\ninputs = [\"shop\"]\nurl = \"{}\"\nindex = \"{name}-{{table}}\"\n",
                search.url()
            )
    });
    let mut pipeline = setup.start_ready().await;
    search.kill();
    database
        .execute("UPDATE t SET note = 'new' WHERE id % 2 = 0; DELETE FROM t WHERE id % 5 = 0")
        .await;
    let said = pipeline.wait_unready(&["sinks.search", "LS003"]).await;
    assert!(
        said.contains(search.url().trim_start_matches("http://")),
        "{said}"
    );
    search.restart().await;
    pipeline.wait_ready().await;
    pipeline
        .wait_visible("shop", &end_of_log(&database).await, PATIENCE)
        .await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    assert_equal(&setup, &database, vec!["public.t".into()]).await;
}

/// Runs until the refusal, checks what is told, runs once more in vain, removes the cause, and runs to the end.
async fn refused(setup: &Setup, database: &Database, words: &[&str], remove: impl AsyncFnOnce()) {
    for _ in 0..2 {
        let ended = setup.start().ends().await;
        assert_eq!(ended.code(), Some(1), "{ended:?}");
        let error = ended.error();
        let missing: Vec<_> = words
            .iter()
            .filter(|word| !error.contains(**word))
            .collect();
        assert!(missing.is_empty(), "{missing:?} in {error}");
        assert!(
            error.contains("LS009") && error.contains("Remedy: "),
            "{error}"
        );
    }
    remove().await;
    let mut pipeline = setup.start_ready().await;
    pipeline
        .wait_visible("shop", &end_of_log(database).await, PATIENCE)
        .await;
    assert!(pipeline.terminate(PATIENCE).await.success());
}

#[tokio::test]
async fn a_row_that_redis_refuses_stops_the_pipeline_at_its_key_until_the_cause_is_gone() {
    require!(NeedsPostgres(17), NeedsRedis);
    let (database, redis) = tokio::join!(table(10), Redis::shared());
    database
        .execute("ALTER TABLE t ADD big text; ALTER TABLE t ALTER big SET STORAGE EXTERNAL; UPDATE t SET big = repeat('x', 9000)")
        .await;
    let name = unique("wrongtype");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"])
            + &cache(redis.url(), &name)
            + "value = \"hash\"\non_error = \"stop\"\n"
    });
    let mut pipeline = setup.start_ready().await;
    pipeline
        .wait_visible("shop", &end_of_log(&database).await, PATIENCE)
        .await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    // Somebody else's list lies where the row of 5 belongs, and an update that leaves a large value alone keeps what
    // is there.
    let (key, aside) = (format!("{name}:t:5"), format!("{name}-aside"));
    let ask = async |words: &[&str]| redis.command(words).await.expect("an answer");
    assert_eq!(
        ask(&["RENAME", &key, &aside]).await,
        Reply::Text("OK".into())
    );
    assert_eq!(ask(&["RPUSH", &key, "not ours"]).await, Reply::Integer(1));
    database
        .execute("UPDATE t SET note = 'new' WHERE id IN (4, 5, 6); DELETE FROM t WHERE id = 1")
        .await;
    refused(
        &setup,
        &database,
        &["sinks.cache", &key, "WRONGTYPE"],
        async || {
            assert_eq!(
                ask(&["RENAME", &aside, &key]).await,
                Reply::Text("OK".into())
            );
        },
    )
    .await;
    assert_equal(&setup, &database, vec!["public.t".into()]).await;
}

#[tokio::test]
async fn a_row_that_is_too_large_for_kafka_stops_the_pipeline_at_its_place_until_it_fits() {
    require!(NeedsPostgres(17), NeedsKafka);
    let (database, kafka) = tokio::join!(table(10), Kafka::shared());
    let name = unique("large");
    let small = "on_error = \"stop\"\nproperties = { \"message.max.bytes\" = 100000 }";
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"]) + &events(kafka.bootstrap(), &name, small)
    });
    let pipeline = setup.start_ready().await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    database
        .execute("INSERT INTO t VALUES (11, 'eleven'), (12, repeat('x', 200000)), (13, 'thirteen')")
        .await;
    refused(
        &setup,
        &database,
        &["sinks.events", &format!("{name}.t"), "message.max.bytes"],
        async || {
            setup.change(small, "properties = { \"message.max.bytes\" = 900000 }");
        },
    )
    .await;
    let records = topics::read(kafka.bootstrap(), &format!("{name}.t")).await;
    let created: Vec<_> = records
        .iter()
        .filter(|record| record.op() == "c")
        .map(|record| &record.key["id"])
        .collect();
    assert_eq!(created, [11, 12, 13], "each once");
}

#[tokio::test]
async fn a_file_that_cannot_be_written_stops_the_pipeline_with_the_path() {
    require!(NeedsPostgres(17));
    let database = table(10).await;
    let name = unique("file");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["t"]) + &files(&folder.join("not-a-folder"))
    });
    let blocker: &Path = &setup.folder().join("not-a-folder");
    std::fs::write(blocker, "in the way").expect("the folder can be written");
    let ended = setup.start().ends().await;
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert!(
        ended.error().contains("sinks.files") && ended.error().contains("not-a-folder"),
        "{ended:?}"
    );
    let check = setup.lockstep("check", &[]).await;
    assert_eq!(check.code(), Some(1), "{check:?}");
    std::fs::remove_file(blocker).expect("it is there");
    let mut pipeline = setup.start_ready().await;
    pipeline
        .wait_visible("shop", &end_of_log(&database).await, PATIENCE)
        .await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    // The copy of the first start had not arrived: it begins anew, which a TRUNCATE says.
    let records = topics::read_file(&blocker.join("t.jsonl"));
    let rows = records.iter().filter(|record| record.op() == "r");
    assert_eq!(rows.count(), 10);
}

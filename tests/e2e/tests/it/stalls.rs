//! What stops without a word: `/readyz` is red within 30 s, with the defaults of everything, and green again by itself.

use std::time::{Duration, Instant};

use lockstep_e2e::child::{PATIENCE, Pipeline};
use lockstep_e2e::{Setup, topics};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, OpenSearch as NeedsOpenSearch, Postgres as NeedsPostgres,
    Redis as NeedsRedis,
};
use lockstep_kit::disk::SmallDisk;
use lockstep_kit::kafka::{Kafka, KafkaOptions};
use lockstep_kit::opensearch::OpenSearch;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::proxy::Proxy;
use lockstep_kit::redis::{Redis, Reply};
use lockstep_kit::{require, require_own, unique};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{cache, end_of_log, events, files, source};

/// From the stall to the red light.
const PROMISED: Duration = Duration::from_secs(30);

async fn table(database: &Database) {
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY, note text); INSERT INTO t VALUES (1, 'one')")
        .await;
}

/// Waits until `/readyz` names all of `parts` at once, no longer than promised since `from`.
async fn red(pipeline: &mut Pipeline, from: Instant, parts: &[&str]) {
    let left = PROMISED.saturating_sub(from.elapsed());
    let what = format!("/readyz to name {parts:?} within {PROMISED:?}");
    pipeline
        .until(left, what, async |pipeline| {
            match pipeline.get("/readyz").await {
                Ok((503, body)) if parts.iter().all(|part| body.contains(part)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
}

async fn caught_up(pipeline: &mut Pipeline, database: &Database) {
    let end = end_of_log(database).await;
    pipeline.wait_visible("shop", &end, PATIENCE).await;
}

/// A network that takes everything and brings nothing, until its connections end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sink_behind_a_black_hole() {
    require!(NeedsPostgres(17), NeedsRedis, NeedsOpenSearch);
    require_own!(NeedsKafka);
    let proxied = KafkaOptions {
        proxy: true,
        ..KafkaOptions::default()
    };
    let (server, redis, search, kafka) = tokio::join!(
        Postgres::shared(17),
        Redis::shared(),
        OpenSearch::shared(),
        Kafka::start(proxied)
    );
    let database = server.database("shop").await;
    table(&database).await;
    let host = |url: &str| url.split("://").last().unwrap_or(url).to_owned();
    let (to_redis, to_search) = tokio::join!(
        Proxy::start(host(redis.url())),
        Proxy::start(host(search.url()))
    );
    let name = unique("hole");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["t"])
            + &files(folder)
            + &cache(&format!("redis://{}", to_redis.address()), &name)
            + &events(&kafka.proxied_bootstrap(), &name, "exactly_once = true")
            + &format!(
                "[sinks.search]\ntype = \"opensearch\"\ninputs = [\"shop\"]\nurl = \"http://{}\"\nindex = \"{name}-{{table}}\"\n",
                to_search.address()
            )
    });
    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;

    let proxies = [&to_redis, &to_search, kafka.proxy()];
    for proxy in proxies {
        proxy.black_hole(true);
    }
    database.execute("INSERT INTO t VALUES (2, 'two')").await;
    let sinks = ["sinks.cache", "sinks.search", "sinks.events"];
    red(&mut pipeline, Instant::now(), &sinks).await;
    let (_, body) = pipeline.get("/readyz").await.expect("an answer");
    assert!(!body.contains("sinks.files"), "{body}");

    for proxy in proxies {
        proxy.black_hole(false);
        proxy.cut();
    }
    caught_up(&mut pipeline, &database).await;
    pipeline.wait_ready().await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    let records = topics::read(kafka.bootstrap(), &format!("{name}.t")).await;
    let created: Vec<_> = records.iter().map(|record| &record.key["id"]).collect();
    assert_eq!(created, [1, 2], "each once");
}

/// The link to the source, and then the server's process that sends: it is stopped, and not ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_says_nothing() {
    require_own!(NeedsPostgres(17));
    let server = Postgres::start(PostgresOptions::new(17)).await;
    let database = server.database("shop").await;
    table(&database).await;
    let direct = format!("127.0.0.1:{}", server.port());
    let proxy = Proxy::start(&*direct).await;
    let url = database.url().replace(&direct, &proxy.address());
    let setup = |name: &'static str, url: &str| {
        Setup::new(&unique(name), |folder| {
            source(url, name, &["t"]) + &files(folder)
        })
    };
    let (behind, beside) = (setup("behind", &url), setup("beside", database.url()));
    let (mut behind_it, mut beside_it) = tokio::join!(behind.start_ready(), beside.start_ready());
    behind_it.wait_streaming("shop").await;
    beside_it.wait_streaming("shop").await;
    let pid = database
        .value("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'beside'")
        .await;
    let pid: i32 = pid.expect("a walsender").parse().expect("a number");
    let walsender = Pid::from_raw(pid).expect("not 0");

    let from = Instant::now();
    proxy.black_hole(true);
    kill_process(walsender, Signal::STOP).expect("the tests may signal it");
    database.execute("INSERT INTO t VALUES (2, 'two')").await;
    let parts = ["sources.shop", "no word from the server"];
    tokio::join!(
        red(&mut behind_it, from, &parts),
        red(&mut beside_it, from, &parts)
    );

    proxy.black_hole(false);
    proxy.cut();
    kill_process(walsender, Signal::CONT).expect("it is still there");
    for (setup, mut pipeline) in [(behind, behind_it), (beside, beside_it)] {
        caught_up(&mut pipeline, &database).await;
        pipeline.wait_ready().await;
        assert!(pipeline.terminate(PATIENCE).await.success());
        let records = topics::read_file(&setup.folder().join("t.jsonl"));
        let ids: Vec<_> = records.iter().map(|record| &record.key["id"]).collect();
        assert_eq!(ids, [1, 2], "each once");
    }
}

/// `None`, loudly, where the kernel lets nobody mount.
fn small_disk() -> Option<SmallDisk> {
    match SmallDisk::start(256 << 20) {
        Ok(disk) => Some(disk),
        Err(error) => {
            eprintln!("NOT RUN: {error}");
            None
        }
    }
}

/// The state cannot be written, and then a row that is refused cannot be kept: nothing is confirmed, and nothing lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_state_and_dead_letters() {
    require!(NeedsPostgres(17), NeedsRedis);
    let Some(disk) = small_disk() else {
        return;
    };
    let (server, redis) = tokio::join!(Postgres::shared(17), Redis::shared());
    let database = server.database("shop").await;
    table(&database).await;
    database
        .execute("ALTER TABLE t ADD big text; ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
        .await;
    let name = unique("fulldisk");
    let setup = Setup::on_disk(&name, disk, |folder| {
        source(database.url(), &name, &["t"])
            + &files(folder)
            + &cache(redis.url(), &name)
            + "value = \"hash\"\n"
    });
    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;

    setup.disk().fill().expect("ballast can be written");
    database
        .execute("INSERT INTO t VALUES (2, 'two', repeat('x', 9000))")
        .await;
    red(&mut pipeline, Instant::now(), &["LS015", "No space left"]).await;
    assert!(pipeline.exited().is_none());
    setup.disk().free().expect("ballast can be removed");
    caught_up(&mut pipeline, &database).await;
    pipeline.wait_ready().await;

    // A key of another type: an update that leaves a large value as it is, is refused for good.
    let (key, aside) = (format!("{name}:t:2"), format!("{name}-aside"));
    let ask = async |words: &[&str]| redis.command(words).await.expect("an answer");
    let renamed = ask(&["RENAME", &key, &aside]).await;
    assert_eq!(renamed, Reply::Text("OK".into()));
    assert_eq!(ask(&["RPUSH", &key, "not ours"]).await, Reply::Integer(1));
    setup.disk().fill().expect("ballast can be written");
    database.execute("INSERT INTO t VALUES (3, 'three')").await;
    red(&mut pipeline, Instant::now(), &["LS015"]).await;
    // Those who failed have left the room of what they could not write.
    setup.disk().fill().expect("ballast can be written");
    database
        .execute("UPDATE t SET note = 'refused' WHERE id = 2")
        .await;
    let words = ["sinks.cache", "dead letters", "LS015"];
    red(&mut pipeline, Instant::now(), &words).await;
    assert!(pipeline.exited().is_none());
    setup.disk().free().expect("ballast can be removed");
    caught_up(&mut pipeline, &database).await;
    pipeline.wait_ready().await;
    let status = pipeline.status().await;
    assert_eq!(status["sinks"]["cache"]["dead_letters"], 1, "{status}");
    assert!(pipeline.terminate(PATIENCE).await.success());

    let records = topics::read_file(&setup.folder().join("t.jsonl"));
    let ids: Vec<_> = records.iter().map(|record| &record.key["id"]).collect();
    assert_eq!(ids, [1, 2, 3, 2], "each once");
}

/// Keys cannot be noted: no row goes on without, and afterwards each goes on once and repeats do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_dedupe_store() {
    require!(NeedsPostgres(17));
    let Some(disk) = small_disk() else {
        return;
    };
    let database = Postgres::shared(17).await.database("shop").await;
    table(&database).await;
    let name = unique("fullkeys");
    let setup = Setup::on_disk(&name, disk, |folder| {
        source(database.url(), &name, &["t"])
            + "[transforms.once]\ntype = \"dedupe\"\ninputs = [\"shop\"]\nkey = [\"note\"]\n"
            + &files(folder).replace("\"shop\"", "\"once\"")
    });
    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;

    setup.disk().fill().expect("ballast can be written");
    database
        .execute("INSERT INTO t SELECT n, 'key ' || n FROM generate_series(2, 3000) n")
        .await;
    red(&mut pipeline, Instant::now(), &["transforms.once", "LS015"]).await;
    assert!(pipeline.exited().is_none());
    setup.disk().free().expect("ballast can be removed");
    caught_up(&mut pipeline, &database).await;
    pipeline.wait_ready().await;
    database
        .execute("INSERT INTO t SELECT n + 10000, 'key ' || n FROM generate_series(2, 3000) n")
        .await;
    caught_up(&mut pipeline, &database).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    let records = topics::read_file(&setup.folder().join("t.jsonl"));
    let ids: Vec<_> = records
        .iter()
        .filter_map(|record| record.key["id"].as_u64())
        .collect();
    assert_eq!(ids, (1..=3000).collect::<Vec<_>>(), "each once");
}

//! The log is lost, or another one, while the process runs: with `stop` it ends and says why, with `resync` the copies
//! equal the source afterwards, and a failover that loses nothing is gone through without a change passed over or doubled.

use std::path::Path;

use lockstep::demo::compare::Rules;
use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::copies::Compare;
use lockstep_e2e::{Pipeline, Setup, topics};
use lockstep_kit::Component::{Postgres as NeedsPostgres, Redis as NeedsRedis};
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::proxy::Proxy;
use lockstep_kit::redis::Redis;
use lockstep_kit::{require, require_own, unique, wait_for};

use crate::support::{cache, end_of_log, files, source};

const ROWS: &str = "CREATE TABLE t (id int PRIMARY KEY, note text);
    INSERT INTO t SELECT g, 'first' FROM generate_series(1, 50) g";

/// Where the server of a URL listens.
fn place(url: &str) -> &str {
    let (_, place) = url.rsplit_once('@').expect("a user");
    place.split_once('/').map_or(place, |(place, _)| place)
}

fn through(proxy: &Proxy, database: &Database) -> String {
    format!(
        "postgres://postgres@{}/{}",
        proxy.address(),
        database.name()
    )
}

fn pipeline(url: &str, slot: &str, more: &str, redis: &Redis, folder: &Path) -> String {
    source(url, slot, &["t"]) + more + "\n" + &cache(redis.url(), slot) + &files(folder)
}

async fn assert_equal(setup: &Setup, database: &Database) {
    let compare = Compare {
        source: "shop",
        url: database.url(),
        publication: "lockstep",
        tables: vec!["public.t".to_owned()],
        rules: Rules::default(),
    };
    compare.assert_equal(setup).await;
}

async fn visible(pipeline: &mut Pipeline, database: &Database) {
    let end = end_of_log(database).await;
    pipeline.wait_visible("shop", &end, PATIENCE).await;
}

/// Waits until the copy is on record as done. A log that goes before that is no loss: the copy is made again.
async fn copied(pipeline: &mut Pipeline) {
    pipeline
        .until(PATIENCE, "a confirmed position", async |pipeline| {
            let confirmed = pipeline.status().await["sources"]["shop"]["confirmed"].clone();
            if confirmed.as_u64() > Some(0) {
                Ok(())
            } else {
                Err(confirmed.to_string())
            }
        })
        .await;
}

/// Waits until it is another log than this one that the pipeline reads.
async fn reads_another(pipeline: &mut Pipeline, log: &str) {
    let what = format!("a log that is not {log}");
    let there = pipeline.until(PATIENCE, what, async |pipeline| {
        let now = log_of(pipeline).await;
        if now == log || now == "null" {
            Err(now)
        } else {
            Ok(())
        }
    });
    there.await;
}

/// Which log the pipeline reads.
async fn log_of(pipeline: &mut Pipeline) -> String {
    pipeline.status().await["sources"]["shop"]["identity"].to_string()
}

async fn drop_slot(database: &Database, slot: &str) {
    let free = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'");
    wait_for(PATIENCE, "the slot to be free", async || {
        match database.value(&free).await.as_deref() {
            Some("f") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let drop = format!("SELECT pg_drop_replication_slot('{slot}')");
    database.execute(&drop).await;
}

/// A pipeline that has copied its table, and copies again when the log is lost.
async fn resyncing(server: &Postgres, prefix: &str) -> (Database, Setup, Pipeline) {
    let redis = Redis::shared().await;
    let database = server.database("shop").await;
    database.execute(ROWS).await;
    let slot = unique(prefix);
    let resync = "on_slot_lost = \"resync\"";
    let setup = Setup::new(&slot, |folder| {
        pipeline(database.url(), &slot, resync, redis, folder)
    });
    let mut running = setup.start_ready().await;
    copied(&mut running).await;
    (database, setup, running)
}

/// Positions come again with other rows: sinks must take them for new ones.
#[tokio::test]
async fn a_server_restored_to_an_earlier_point_under_resync() {
    require_own!(NeedsPostgres(16));
    require!(NeedsRedis);
    let server = Postgres::start(PostgresOptions::new(16)).await;
    let (database, setup, mut running) = resyncing(&server, "restored").await;
    let log = log_of(&mut running).await;
    let saved = server.stop_and_save().await;
    server.restart().await;
    database
        .execute("DELETE FROM t WHERE id < 10; UPDATE t SET note = 'lost' WHERE id < 30; INSERT INTO t SELECT g, 'lost' FROM generate_series(100, 3000) g")
        .await;
    visible(&mut running, &database).await;
    server.restore(&saved).await;
    reads_another(&mut running, &log).await;
    database
        .execute("UPDATE t SET note = 'again' WHERE id = 20; INSERT INTO t VALUES (100, 'again'); DELETE FROM t WHERE id = 21")
        .await;
    visible(&mut running, &database).await;
    running.wait_ready().await;
    assert_equal(&setup, &database).await;
    assert!(running.terminate(PATIENCE).await.success());
    // And the next start goes on from there.
    let mut running = setup.start_ready().await;
    database.execute("DELETE FROM t WHERE id = 22").await;
    visible(&mut running, &database).await;
    assert_equal(&setup, &database).await;
    assert!(running.terminate(PATIENCE).await.success());
    let records = topics::read_file(&setup.folder().join("t.jsonl"));
    let deleted = |id: i64| {
        let of = |record: &&topics::Record| record.op() == "d" && record.key["id"] == id;
        records.iter().filter(of).count()
    };
    assert_eq!(
        (deleted(9), deleted(21), deleted(22)),
        (1, 1, 1),
        "each once"
    );
    // And when nobody remembers which log it was, the sinks do not take it for the first one.
    std::fs::remove_dir_all(setup.state()).expect("removed");
    database
        .execute("DELETE FROM t WHERE id = 23; UPDATE t SET note = 'unseen' WHERE id = 24")
        .await;
    let mut running = setup.start_ready().await;
    visible(&mut running, &database).await;
    assert_equal(&setup, &database).await;
    assert!(running.terminate(PATIENCE).await.success());
}

/// What was handed on in the last moment before a kill counts, although the state file does not have it yet.
#[tokio::test]
async fn a_server_restored_into_the_last_moment_before_a_kill() {
    require_own!(NeedsPostgres(16));
    require!(NeedsRedis);
    let server = Postgres::start(PostgresOptions::new(16)).await;
    let (database, setup, running) = resyncing(&server, "moment").await;
    assert!(running.terminate(PATIENCE).await.success());
    let saved = server.stop_and_save().await;
    server.restart().await;
    let mut running = setup.start_ready().await;
    let log = log_of(&mut running).await;

    // From here on the state file stays as it is.
    let next = setup.state().join("sources/shop/source.json.new");
    wait_for(PATIENCE, "the state file to be held", async || {
        std::os::unix::fs::symlink("/dev/full", &next).map_err(|error| error.to_string())
    })
    .await;
    database
        .execute("INSERT INTO t VALUES (100, 'lost'); DELETE FROM t WHERE id = 20")
        .await;
    visible(&mut running, &database).await;
    running.kill9();
    std::fs::remove_file(&next).expect("held until now");

    // The log that has gone on from the earlier point is longer than the one that was read.
    server.restore(&saved).await;
    database
        .execute(
            "CREATE TABLE filler AS SELECT repeat('x', 1000) AS text FROM generate_series(1, 5000)",
        )
        .await;
    database
        .execute("UPDATE t SET note = 'again' WHERE id = 21")
        .await;
    let mut running = setup.start_ready().await;
    reads_another(&mut running, &log).await;
    visible(&mut running, &database).await;
    assert_equal(&setup, &database).await;
    assert!(running.terminate(PATIENCE).await.success());
}

/// The slot goes during an outage of the connection.
#[tokio::test]
async fn a_slot_dropped_during_an_outage() {
    require!(NeedsPostgres(17), NeedsRedis);
    let (server, redis) = tokio::join!(Postgres::shared(17), Redis::shared());
    let database = server.database("shop").await;
    database.execute(ROWS).await;
    let proxy = Proxy::start(place(database.url())).await;
    let slot = unique("outage");
    let url = through(&proxy, &database);
    let stop = "on_slot_lost = \"stop\"";
    let setup = Setup::new(&slot, |folder| pipeline(&url, &slot, stop, redis, folder));
    let mut running = setup.start_ready().await;
    copied(&mut running).await;
    proxy.down().await;
    drop_slot(&database, &slot).await;
    let gap = "DELETE FROM t WHERE id < 10; UPDATE t SET note = 'gap' WHERE id = 20";
    database.execute(gap).await;
    let written = std::fs::read(setup.folder().join("t.jsonl")).expect("a file");
    proxy.refuse(false).await;
    let ended = running.ends().await;
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    let error = ended.error();
    for word in [
        "LS011",
        "sources.shop",
        &slot,
        "Remedy: ",
        "on_slot_lost = \"resync\"",
    ] {
        assert!(error.contains(word), "{word} in {error}");
    }
    let after = std::fs::read(setup.folder().join("t.jsonl")).expect("a file");
    assert_eq!(written, after, "no sink was written");
    let check = setup.lockstep("check", &[]).await;
    assert_eq!(check.code(), Some(1), "{check:?}");
    let gone = format!("the slot {slot} is gone");
    assert!(
        check.stdout.contains('✗') && check.stdout.contains(&gone),
        "{}",
        check.stdout
    );

    // The same again, and nobody has to come.
    setup.change(stop, "on_slot_lost = \"resync\"");
    let check = setup.lockstep("check", &[]).await;
    assert_eq!(check.code(), Some(0), "{check:?}");
    let mut running = setup.start_ready().await;
    visible(&mut running, &database).await;
    assert_equal(&setup, &database).await;
    copied(&mut running).await;
    proxy.down().await;
    drop_slot(&database, &slot).await;
    database
        .execute("DELETE FROM t WHERE id = 11; INSERT INTO t VALUES (11, 'other'), (60, 'new')")
        .await;
    proxy.refuse(false).await;
    running.wait_ready().await;
    visible(&mut running, &database).await;
    assert_equal(&setup, &database).await;
    assert!(running.terminate(PATIENCE).await.success());
    drop_slot(&database, &slot).await;
}

/// The primary goes, its standby takes over with everything, and the process does not notice more than an outage.
#[tokio::test]
async fn a_failover_that_loses_nothing() {
    require_own!(NeedsPostgres(17));
    require!(NeedsRedis);
    let redis = Redis::shared().await;
    let primary = Postgres::start(PostgresOptions::new(17)).await;
    let database = primary.database("shop").await;
    database.execute(ROWS).await;
    primary
        .execute("SELECT pg_create_physical_replication_slot('standby')")
        .await;
    let waits = "ALTER SYSTEM SET synchronized_standby_slots = 'standby'";
    primary.execute(waits).await;
    primary.execute("SELECT pg_reload_conf()").await;
    let options = PostgresOptions::standby_of(&primary)
        .set("synchronized_standby_slots", "")
        .set("primary_slot_name", "standby")
        .set("hot_standby_feedback", "on")
        .set("sync_replication_slots", "on");
    let standby = Postgres::start(options).await;
    let proxy = Proxy::start(place(primary.url())).await;
    let slot = unique("failover");
    let url = through(&proxy, &database);
    let setup = Setup::new(&slot, |folder| {
        pipeline(&url, &slot, "failover = true", redis, folder)
    });
    let mut running = setup.start_ready().await;
    visible(&mut running, &database).await;
    let log = log_of(&mut running).await;
    let kept =
        format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = '{slot}' AND NOT temporary");
    wait_for(PATIENCE * 2, "the slot on the standby", async || {
        database.execute("SELECT pg_log_standby_snapshot()").await;
        standby.value(&kept).await.ok_or("not yet")
    })
    .await;
    for id in 100..200 {
        let sql = format!(
            "INSERT INTO t VALUES ({id}, 'before'); DELETE FROM t WHERE id = {}",
            id - 100
        );
        database.execute(&sql).await;
    }
    primary.kill();
    proxy.forward_to(place(standby.url()));
    running.wait_unready(&["sources.shop"]).await;
    standby.promote().await;
    let there = database.on(&standby);
    for id in 200..250 {
        let sql = format!("INSERT INTO t VALUES ({id}, 'after')");
        there.execute(&sql).await;
    }
    visible(&mut running, &there).await;
    running.wait_ready().await;
    assert_eq!(log_of(&mut running).await, log, "it goes on");
    assert_equal(&setup, &there).await;
    // Killed, it still goes on from there.
    running.kill9();
    there.execute("INSERT INTO t VALUES (250, 'last')").await;
    let mut running = setup.start_ready().await;
    visible(&mut running, &there).await;
    assert_equal(&setup, &there).await;
    assert!(running.terminate(PATIENCE).await.success());
    let records = topics::read_file(&setup.folder().join("t.jsonl"));
    let inserted: Vec<i64> = records
        .iter()
        .filter(|record| record.op() == "c")
        .filter_map(|record| record.key["id"].as_i64())
        .collect();
    let present = there
        .value("SELECT string_agg(id::text, ' ' ORDER BY id) FROM t WHERE id >= 100")
        .await;
    let expected: Vec<i64> = present
        .unwrap_or_default()
        .split(' ')
        .filter_map(|id| id.parse().ok())
        .collect();
    assert_eq!(inserted, expected, "each once, in order");
}

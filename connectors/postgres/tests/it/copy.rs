//! The initial copy, and what follows it.

use std::collections::BTreeMap;

use lockstep_core::batch::{Op, Phase};
use lockstep_core::position::Lsn;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::{Component, require_own, wait_for};
use lockstep_postgres::PostgresConfig;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::harness::{DEADLINE, Opened, config};
use crate::stream::MAJORS;

/// What a state sink would hold: last value per id, deletions honoured.
pub fn state_of(opened: &Opened) -> BTreeMap<i64, String> {
    let mut rows = BTreeMap::new();
    for seen in &opened.seen {
        match seen.op {
            Op::Delete => {
                rows.remove(
                    &seen.old["id"]
                        .as_deref()
                        .expect("a key")
                        .parse()
                        .expect("a number"),
                );
            }
            Op::Read | Op::Insert | Op::Update => {
                rows.insert(
                    seen.value("id").parse().expect("a number"),
                    seen.value("v").to_owned(),
                );
            }
            Op::Truncate => rows.clear(),
            Op::Message | Op::Event => {}
        }
    }
    rows
}

pub async fn truth(database: &Database) -> BTreeMap<i64, String> {
    let rows = database
        .client()
        .await
        .query("SELECT id::int8, v FROM t", &[])
        .await
        .expect("rows");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test]
async fn copy_then_stream_without_gap_or_overlap_on_every_version() {
    for major in MAJORS {
        lockstep_kit::require!(Component::Postgres(major));
        let database = Postgres::shared(major).await.database("copy").await;
        database
            .execute(
                "CREATE TABLE t (id int PRIMARY KEY, v text); \
                 INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 20000) g",
            )
            .await;
        let writer = {
            let client = database.client().await;
            tokio::spawn(async move {
                for round in 0..300 {
                    let sql = format!(
                        "UPDATE t SET v = 'r{round}' WHERE id = {}; INSERT INTO t VALUES ({}, 'new'); \
                         DELETE FROM t WHERE id = {}",
                        round * 7 + 1,
                        30_000 + round,
                        round * 11 + 2
                    );
                    client.batch_execute(&sql).await.expect("writes");
                }
            })
        };
        let state = tempfile::tempdir().expect("a directory");
        let mut opened = Opened::open(
            &config(database.url(), &["public.t"], json!({})),
            state.path(),
        )
        .await;
        writer.await.expect("the writer ends");
        opened.catch_up(&database).await;
        assert_eq!(
            state_of(&opened),
            truth(&database).await,
            "PostgreSQL {major}"
        );
        // No change twice: every streamed change is of a transaction the copy did not see.
        let inserts = opened
            .seen
            .iter()
            .filter(|seen| seen.op == Op::Insert)
            .count();
        let read_new = opened
            .seen
            .iter()
            .filter(|seen| seen.op == Op::Read && seen.value("v") == "new")
            .count();
        assert_eq!(inserts + read_new, 300);
        let first_streamed = opened
            .seen
            .iter()
            .position(|seen| seen.phase == Phase::Stream)
            .unwrap_or(opened.seen.len());
        assert!(
            opened.seen[first_streamed..]
                .iter()
                .all(|seen| seen.phase == Phase::Stream),
            "the copy comes first"
        );
        opened.close().await;
    }
}

#[tokio::test]
async fn an_interrupted_copy_is_done_again_and_ends_right() {
    let database = Postgres::shared(15).await.database("twice").await;
    database
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text); \
             INSERT INTO t SELECT g, repeat('v', 200) FROM generate_series(1, 20000) g",
        )
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let section = config(database.url(), &["public.t"], json!({}));
    let mut opened = Opened::open(&section, state.path()).await;
    opened.next().await.expect("a first batch");
    let half = opened.seen.clone();
    assert!(half.len() < 20_000);
    drop(opened);
    // What the first attempt may have delivered is deleted, changed and added to before the second.
    database
        .execute("DELETE FROM t WHERE id % 2 = 0; UPDATE t SET v = 'changed' WHERE id % 3 = 0; INSERT INTO t VALUES (0, 'n')")
        .await;
    let mut opened = retry_open(&section, state.path()).await;
    opened.seen = half;
    opened.catch_up(&database).await;
    assert_eq!(state_of(&opened), truth(&database).await);
    opened.close().await;
}

/// Drops the slot as soon as nobody uses it.
async fn drop_slot(database: &Database, section: &PostgresConfig) {
    let slot = section.slot_name("shop");
    let drop = format!(
        "SELECT pg_drop_replication_slot(slot_name) IS NOT NULL FROM pg_replication_slots \
         WHERE slot_name = '{slot}' AND active_pid IS NULL"
    );
    wait_for(DEADLINE, "the slot to be dropped", async || {
        database.value(&drop).await
    })
    .await;
}

#[tokio::test]
async fn a_copy_after_the_slot_is_gone_voids_what_an_earlier_one_delivered() {
    let database = Postgres::shared(16).await.database("void").await;
    database
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text); \
             INSERT INTO t SELECT g, repeat('v', 200) FROM generate_series(1, 20000) g",
        )
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let section = config(
        database.url(),
        &["public.t"],
        json!({ "snapshot": "when_needed" }),
    );
    let mut opened = Opened::open(&section, state.path()).await;
    opened.next().await.expect("a first batch");
    assert!(
        opened.seen.iter().all(|seen| seen.op == Op::Read),
        "a first copy has nothing to void"
    );
    let half = opened.seen.clone();
    drop(opened);

    // The first copy was interrupted, and then its slot dropped.
    drop_slot(&database, &section).await;
    database.execute("DELETE FROM t WHERE id % 2 = 0").await;
    let mut opened = retry_open(&section, state.path()).await;
    opened.seen = half;
    opened.catch_up(&database).await;
    assert_eq!(state_of(&opened), truth(&database).await);
    opened.feedback.confirm(opened.through);
    let whole = opened.seen.clone();
    opened.close().await;

    // The second was complete, and its slot is dropped while the pipeline is away.
    drop_slot(&database, &section).await;
    database.execute("DELETE FROM t WHERE id % 3 = 0").await;
    let mut opened = Opened::open(&section, state.path()).await;
    opened.seen = whole;
    opened.catch_up(&database).await;
    assert_eq!(state_of(&opened), truth(&database).await);
    opened.close().await;
}

#[tokio::test]
async fn a_slot_whose_log_is_gone_is_replaced_when_needed() {
    let options = PostgresOptions::new(17)
        .set("max_slot_wal_keep_size", "1MB")
        .set("min_wal_size", "32MB")
        .set("max_wal_size", "32MB");
    let server = Postgres::start(options).await;
    let database = server.database("gone").await;
    database
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')",
        )
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let initial = config(database.url(), &["public.t"], json!({}));
    let mut opened = Opened::open(&initial, state.path()).await;
    opened.catch_up(&database).await;
    opened.feedback.confirm(opened.through);
    let before = opened.seen.clone();
    opened.close().await;
    database.execute("DELETE FROM t WHERE id = 1").await;
    wait_for(DEADLINE, "the slot's log to be removed", async || {
        database
            .execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000)); SELECT pg_switch_wal()")
            .await;
        database.execute("CHECKPOINT").await;
        let status = "SELECT wal_status FROM pg_replication_slots";
        database.value(status).await.as_deref() == Some("lost")
    })
    .await;
    let error = Opened::try_open(&initial, state.path())
        .await
        .err()
        .expect("refused");
    assert_eq!(error.kind(), lockstep_core::ErrorKind::Lost, "{error}");
    let when_needed = config(
        database.url(),
        &["public.t"],
        json!({ "snapshot": "when_needed" }),
    );
    let mut opened = Opened::open(&when_needed, state.path()).await;
    opened.seen = before;
    opened.catch_up(&database).await;
    assert_eq!(state_of(&opened), truth(&database).await);
    opened.close().await;
}

/// A dropped source may hold its slot for a moment.
pub async fn retry_open(section: &PostgresConfig, state: &std::path::Path) -> Opened {
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        match Opened::try_open(section, state).await {
            Ok(opened) => return opened,
            Err(error)
                if error.kind() == lockstep_core::ErrorKind::Busy
                    && std::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_finished_copy_is_not_done_again() {
    let database = Postgres::shared(16).await.database("once").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let section = config(database.url(), &["public.t"], json!({}));
    let mut opened = Opened::open(&section, state.path()).await;
    opened.catch_up(&database).await;
    opened.feedback.confirm(opened.through);
    opened.close().await;
    database.execute("INSERT INTO t VALUES (2, 'b')").await;
    let mut opened = Opened::open(&section, state.path()).await;
    opened.catch_up(&database).await;
    let rows = opened.seen.iter().filter(|seen| seen.op != Op::Message);
    let ids: Vec<&str> = rows.map(|seen| seen.value("id")).collect();
    assert_eq!(ids, ["2"]);
    opened.close().await;
}

#[tokio::test]
async fn odd_names_and_values_survive() {
    let database = Postgres::shared(18).await.database("odd").await;
    database
        .execute(
            "CREATE SCHEMA \"Odd\"; CREATE TABLE \"Odd\".\"t \"\"x\"\" é\" (\"Id\" int PRIMARY KEY, \"v w\" text); \
             INSERT INTO \"Odd\".\"t \"\"x\"\" é\" VALUES (1, E'tab\\t nl\\n bs\\\\ \\\\N cr\\r'), (2, NULL), (3, ''), \
             (4, '\\N')",
        )
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let mut opened =
        Opened::open(&config(database.url(), &["Odd.*"], json!({})), state.path()).await;
    let mut seen = opened.changes(4).await.to_vec();
    seen.sort_by_key(|seen| seen.value("Id").to_owned());
    let values: Vec<Option<&str>> = seen.iter().map(|seen| seen.new["v w"].as_deref()).collect();
    assert_eq!(
        values,
        [
            Some("tab\t nl\n bs\\ \\N cr\r"),
            None,
            Some(""),
            Some("\\N")
        ]
    );
    opened.close().await;
}

/// Whatever moves between the pieces meanwhile: the copy has every row once, as it was when the copy began.
#[tokio::test]
async fn large_tables_are_cut_and_every_row_arrives_once() {
    for major in [14, 18] {
        lockstep_kit::require!(Component::Postgres(major));
        let database = Postgres::shared(major).await.database("cut").await;
        database
            .execute(
                "CREATE TABLE t (id int PRIMARY KEY, v text); \
                 INSERT INTO t SELECT g, 'v' || repeat('x', 200) FROM generate_series(1, 5000) g",
            )
            .await;
        let pages: usize = database
            .value("SELECT pg_relation_size('t') / 8192")
            .await
            .expect("a size")
            .parse()
            .expect("a number");
        // A new version of a row goes to another page: freed ones at the front, new ones behind the end.
        let stop = CancellationToken::new();
        let writer = tokio::spawn({
            let (client, stop) = (database.client().await, stop.clone());
            async move {
                for round in 0.. {
                    if stop.is_cancelled() {
                        return round;
                    }
                    let sql = format!(
                        "UPDATE t SET v = 'r{round}' || repeat('y', 200) WHERE id % 50 = {}; VACUUM t",
                        round % 50
                    );
                    for statement in sql.split("; ") {
                        client.batch_execute(statement).await.expect("writes");
                    }
                }
                0
            }
        });
        let state = tempfile::tempdir().expect("a directory");
        let more = json!({ "snapshot_chunk": "24KiB", "snapshot_workers": 4 });
        let mut opened =
            Opened::open(&config(database.url(), &["public.t"], more), state.path()).await;
        while opened.through == Lsn::ZERO {
            opened.next().await.expect("the copy goes on");
        }
        stop.cancel();
        assert!(writer.await.expect("the writer ends") > 0);
        assert!(
            opened.batches > pages / 3,
            "{} batches of {pages} pages",
            opened.batches
        );
        let mut ids: Vec<i64> = opened
            .seen
            .iter()
            .map(|seen| seen.value("id").parse().expect("a number"))
            .collect();
        ids.sort_unstable();
        assert!(ids.iter().copied().eq(1..=5000), "PostgreSQL {major}");
        opened.catch_up(&database).await;
        assert_eq!(
            state_of(&opened),
            truth(&database).await,
            "PostgreSQL {major}"
        );
        opened.close().await;
    }
}

/// Timings are no test, but what a rate forbids is: nothing may be quicker.
#[tokio::test]
async fn a_copy_keeps_to_its_rate_and_pauses_while_the_server_is_busy() {
    require_own!(Component::Postgres(16));
    // Others that are active on a shared server would hold it back, too.
    let server = Postgres::start(PostgresOptions::new(16)).await;
    let database = server.database("held_back").await;
    database
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text); \
             INSERT INTO t SELECT g, repeat('v', 200) FROM generate_series(1, 10000) g",
        )
        .await;
    let state = tempfile::tempdir().expect("a directory");
    // Some two megabytes at one per second.
    let section = config(
        database.url(),
        &["public.t"],
        json!({ "snapshot_rate": "1MiB", "slot": "held_back_rate" }),
    );
    let begun = std::time::Instant::now();
    let mut opened = Opened::open(&section, state.path()).await;
    opened.catch_up(&database).await;
    assert!(begun.elapsed().as_secs_f64() > 1.0, "{:?}", begun.elapsed());
    assert_eq!(state_of(&opened), truth(&database).await);
    opened.close().await;

    let state = tempfile::tempdir().expect("a directory");
    let section = config(
        database.url(),
        &["public.t"],
        json!({ "snapshot_max_load": 0, "slot": "held_back_load" }),
    );
    let client = database.client().await;
    let busy = tokio::spawn(async move {
        let _ = client.simple_query("SELECT pg_sleep(600)").await;
    });
    let sleeps = "SELECT pid::text FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' \
                  AND state = 'active' AND datname = current_database()";
    let pid = wait_for(DEADLINE, "a busy session", async || {
        database.value(sleeps).await
    })
    .await;
    let mut opened = Opened::open(&section, state.path()).await;
    // It asks about the load, and nothing comes.
    let asks = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%backend_type = ''client backend''%' \
                AND application_name LIKE 'lockstep%' AND datname = current_database() AND state = 'idle'";
    wait_for(DEADLINE, "a look at the load", async || {
        database.value(asks).await
    })
    .await;
    nothing_comes(&mut opened).await;
    database
        .execute(&format!("SELECT pg_cancel_backend({pid})"))
        .await;
    busy.await.expect("ends");
    goes_on(&mut opened, 10_000).await;
    opened.close().await;
}

#[tokio::test]
async fn a_copy_waits_for_a_standby_that_is_behind() {
    require_own!(Component::Postgres(16));
    let primary = Postgres::start(PostgresOptions::new(16)).await;
    let database = primary.database("lagging").await;
    let standby = Postgres::start(PostgresOptions::standby_of(&primary)).await;
    standby.execute("SELECT pg_wal_replay_pause()").await;
    database
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text); \
             INSERT INTO t SELECT g, repeat('v', 200) FROM generate_series(1, 20000) g",
        )
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let more = json!({ "snapshot_max_replica_lag": "1MiB" });
    let section = config(database.url(), &["public.t"], more);
    let mut opened = Opened::open(&section, state.path()).await;
    let asks = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_stat_replication%' \
                AND application_name LIKE 'lockstep%' AND datname = current_database() AND state = 'idle'";
    wait_for(DEADLINE, "a look at the standby", async || {
        database.value(asks).await.ok_or("not yet")
    })
    .await;
    nothing_comes(&mut opened).await;
    standby.execute("SELECT pg_wal_replay_resume()").await;
    goes_on(&mut opened, 20_000).await;
    opened.close().await;
}

async fn nothing_comes(opened: &mut Opened) {
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), opened.next()).await;
    assert!(early.is_err(), "{} rows have come", opened.seen.len());
}

/// Reads so many rows.
async fn goes_on(opened: &mut Opened, rows: usize) {
    opened.seen.clear();
    while opened.seen.len() < rows {
        opened.next().await.expect("the copy goes on");
    }
}

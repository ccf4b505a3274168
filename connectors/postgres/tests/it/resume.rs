//! A copy that was interrupted goes on where it was, and what has moved meanwhile is missed nowhere.

use std::collections::BTreeMap;
use std::path::Path;

use lockstep_core::batch::Op;
use lockstep_core::source::ReloadState;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::{Component, require, wait_for};
use lockstep_postgres::PostgresConfig;
use serde_json::{Value, json};

use crate::copy::retry_open;
use crate::harness::{DEADLINE, Opened, Seen, config};

/// A page holds some forty rows; their large values lie elsewhere.
const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text, big text);
    ALTER TABLE t ALTER COLUMN big SET STORAGE EXTERNAL;
    INSERT INTO t SELECT g, repeat('v', 120), repeat('b', 2100) || g FROM generate_series(1, 4000) g;
    CREATE TABLE whole (id int PRIMARY KEY, v text, big text);
    INSERT INTO whole SELECT g, 'w', 'b' FROM generate_series(1, 100) g";

/// By table and key: the other columns.
type Rows = BTreeMap<(String, String), [Option<String>; 2]>;

/// What a copy holds that applies what has come: a value that was left out is the one it holds.
fn copy_of(seen: &[Seen]) -> Rows {
    let mut rows = Rows::new();
    for change in seen {
        let key = |values: &BTreeMap<String, Option<String>>| {
            let id = values.get("id").cloned().flatten();
            id.map(|id| (change.table.clone(), id))
        };
        match change.op {
            Op::Truncate | Op::Message | Op::Event => {}
            Op::Delete => {
                rows.remove(&key(&change.old).expect("a key"));
            }
            Op::Read | Op::Insert | Op::Update => {
                let new = key(&change.new).expect("a key");
                let held = rows.remove(&key(&change.old).unwrap_or_else(|| new.clone()));
                let values = ["v", "big"].map(|column| {
                    let value = change.new[column].clone();
                    match value.as_deref() {
                        Some("~") => held
                            .as_ref()
                            .map_or_else(|| Some("not held".to_owned()), |[_, big]| big.clone()),
                        _ => value,
                    }
                });
                rows.insert(new, values);
            }
        }
    }
    rows
}

async fn truth(database: &Database) -> Rows {
    let client = database.client().await;
    let mut rows = Rows::new();
    for table in ["t", "whole"] {
        let all = format!("SELECT id::text, v, big FROM {table}");
        for row in client.query(&all, &[]).await.expect("rows") {
            let key = (format!("public.{table}"), row.get(0));
            rows.insert(key, [row.get(1), row.get(2)]);
        }
    }
    rows
}

fn section(database: &Database) -> PostgresConfig {
    let tables = ["public.t", "public.whole"];
    let more = json!({ "snapshot_chunk": "16KiB", "snapshot_workers": 2 });
    config(database.url(), &tables, more)
}

fn record(state: &Path) -> Option<Value> {
    let text = std::fs::read_to_string(state.join("copy.json")).ok()?;
    serde_json::from_str(&text).ok()
}

/// A copy of which about half is durable, and some more was sent, when it is interrupted. What it sent.
async fn half(section: &PostgresConfig, state: &Path) -> Vec<Seen> {
    let mut opened = Opened::open(section, state).await;
    while opened.mark < 30 {
        opened.next().await.expect("the copy goes on");
    }
    opened.feedback.confirm_mark(opened.mark);
    let durable = opened.mark;
    while opened.mark < durable + 10 {
        opened.next().await.expect("the copy goes on");
    }
    wait_for(DEADLINE, "the record", async || {
        let record = record(state)?;
        let heaps = record["tables"]["public.t"]["heaps"].clone();
        (!heaps[0]["done"].as_array()?.is_empty()).then_some(())
    })
    .await;
    opened.seen
}

/// Reads until nothing is left to load, confirming all of it.
async fn finish(opened: &mut Opened, database: &Database) {
    let reloads = opened.source.reloads().expect("a desk");
    let open = |state| matches!(state, ReloadState::Waiting | ReloadState::Running);
    while reloads.list().iter().any(|one| open(one.state)) {
        opened.catch_up(database).await;
        opened.feedback.confirm(opened.through);
    }
    for one in reloads.list() {
        assert_eq!(one.problem, None, "{one:?}");
    }
    opened.catch_up(database).await;
}

async fn let_go(database: &Database) {
    let sql = "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() \
               AND application_name LIKE 'lockstep%'";
    wait_for(DEADLINE, "the sessions to end", async || {
        (database.value(sql).await.as_deref() == Some("0")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_rest_is_read_and_rows_that_moved_are_whole_on_every_version() {
    for major in [14, 16, 18] {
        require!(Component::Postgres(major));
        let database = Postgres::shared(major).await.database("resume").await;
        database.execute(TABLE).await;
        let state = tempfile::tempdir().expect("a directory");
        let section = section(&database);
        let first = half(&section, state.path()).await;
        let_go(&database).await;
        // Room in pages that are durable, and rows of the others that go there, all but their large values in the log.
        database
            .execute("DELETE FROM t WHERE id <= 800 AND id % 2 = 0")
            .await;
        database.execute("VACUUM t").await;
        database
            .execute("UPDATE t SET v = repeat('w', 150) WHERE id > 3500")
            .await;
        database
            .execute("UPDATE t SET id = id - 3000 WHERE id > 3100 AND id <= 3800 AND id % 2 = 0")
            .await;
        database
            .execute("INSERT INTO t VALUES (5000, 'new', 'n'); UPDATE t SET v = 'changed' WHERE id % 100 = 1; DELETE FROM t WHERE id % 100 = 2")
            .await;
        let moved = "SELECT count(*)::text FROM t WHERE id > 3500 AND ctid < '(15,0)'::tid";
        let moved = database.value(moved).await.expect("a number");
        assert_ne!(moved, "0", "no row went where it would be missed");

        let mut opened = retry_open(&section, state.path()).await;
        finish(&mut opened, &database).await;
        assert_eq!(record(state.path()), None, "of use to nobody any more");
        let again = opened
            .seen
            .iter()
            .filter(|seen| seen.op == Op::Read)
            .count();
        let truncated = opened.seen.iter().any(|seen| seen.op == Op::Truncate);
        assert!(!truncated, "nothing was wrong with what was copied");
        let sent = first.iter().filter(|seen| seen.op == Op::Read).count();
        assert!(sent + again < 6500, "{sent} rows, then {again}, of 4100");
        let all = [first, std::mem::take(&mut opened.seen)].concat();
        let (copy, truth) = (copy_of(&all), truth(&database).await);
        for (key, row) in &truth {
            assert_eq!(copy.get(key), Some(row), "{key:?} on {major}");
        }
        assert_eq!(copy.len(), truth.len(), "{major}");
        opened.close().await;
    }
}

#[tokio::test]
async fn a_table_in_another_file_is_read_as_a_whole() {
    require!(Component::Postgres(17));
    let database = Postgres::shared(17).await.database("rewritten").await;
    database.execute(TABLE).await;
    let state = tempfile::tempdir().expect("a directory");
    let section = section(&database);
    let first = half(&section, state.path()).await;
    let_go(&database).await;
    database.execute("DELETE FROM t WHERE id % 3 = 0").await;
    database.execute("VACUUM FULL t").await;
    let mut opened = retry_open(&section, state.path()).await;
    finish(&mut opened, &database).await;
    let read = |seen: &&Seen| seen.op == Op::Read && seen.table == "public.t";
    let again = opened.seen.iter().filter(read).count();
    assert_eq!(again, 4000 - 1333);
    let all = [first, std::mem::take(&mut opened.seen)].concat();
    assert_eq!(copy_of(&all), truth(&database).await);
    opened.close().await;
}

/// What is left to do is on record, and then the rows go elsewhere.
#[tokio::test]
async fn a_table_that_gets_another_file_while_the_rest_is_read_is_read_as_a_whole() {
    require!(Component::Postgres(16));
    let database = Postgres::shared(16).await.database("between").await;
    database.execute(TABLE).await;
    let state = tempfile::tempdir().expect("a directory");
    let section = section(&database);
    let first = half(&section, state.path()).await;
    let_go(&database).await;
    drop(retry_open(&section, state.path()).await);
    assert_eq!(record(state.path()), None, "its requests are taken");
    let_go(&database).await;
    // Rows that were not read move into the pages that were.
    database.execute("DELETE FROM t WHERE id <= 2000").await;
    database.execute("VACUUM FULL t").await;
    let mut opened = retry_open(&section, state.path()).await;
    finish(&mut opened, &database).await;
    let all = [first, std::mem::take(&mut opened.seen)].concat();
    let (copy, truth) = (copy_of(&all), truth(&database).await);
    assert_eq!(copy.len(), truth.len());
    assert_eq!(copy, truth);
    opened.close().await;
}

#[tokio::test]
async fn without_a_key_to_read_by_the_copy_is_made_anew() {
    require!(Component::Postgres(17));
    let database = Postgres::shared(17).await.database("keyless").await;
    database.execute(TABLE).await;
    let keyless = "CREATE TABLE log (note text); ALTER TABLE log REPLICA IDENTITY FULL; INSERT INTO log VALUES ('x')";
    database.execute(keyless).await;
    let state = tempfile::tempdir().expect("a directory");
    let tables = ["public.t", "public.whole", "public.log"];
    let more = json!({ "snapshot_chunk": "16KiB", "snapshot_workers": 1 });
    let section = config(database.url(), &tables, more);
    half(&section, state.path()).await;
    let mut opened = retry_open(&section, state.path()).await;
    opened.catch_up(&database).await;
    assert!(opened.seen.iter().any(|seen| seen.op == Op::Truncate));
    let read = opened.seen.iter().filter(|seen| seen.op == Op::Read);
    assert_eq!(read.count(), 4101);
    opened.close().await;
}

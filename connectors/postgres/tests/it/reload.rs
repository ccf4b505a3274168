//! Tables that are loaded again beside the stream.

use std::collections::BTreeMap;

use lockstep_core::batch::Op;
use lockstep_core::memory::Budget;
use lockstep_core::source::{ReloadRequest, ReloadState};
use lockstep_kit::postgres::{Postgres, PostgresOptions};
use lockstep_kit::{Component, require, require_own};
use serde_json::json;

use crate::harness::{DEADLINE, Opened, config};

fn whole(table: &str) -> ReloadRequest {
    ReloadRequest {
        table: table.into(),
        condition: None,
        truncate: false,
    }
}

/// Asks for a table, and reads on until it is loaded.
async fn load(opened: &mut Opened, table: &str) {
    let reloads = opened.source.reloads().expect("a desk");
    let id = reloads.request(whole(table)).expect("taken");
    let loaded = async {
        loop {
            opened.next().await.expect("the stream goes on");
            let through = opened.through;
            opened.feedback.confirm(through);
            let all = reloads.list();
            let one = all.iter().find(|one| one.id == id).expect("it is known");
            assert_ne!(one.state, ReloadState::Failed, "{one:?}");
            if one.state == ReloadState::Done {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, loaded)
        .await
        .expect("an end");
}

/// The fence of a chunk comes in a batch that needs room, too.
#[tokio::test]
async fn rows_that_are_larger_than_the_budget_are_loaded() {
    require!(Component::Postgres(17));
    let database = Postgres::shared(17).await.database("wide").await;
    // The size of the first ones says nothing of the others.
    database
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text); \
             INSERT INTO t SELECT n, repeat('x', CASE WHEN n <= 600 THEN 10 ELSE 100000 END) FROM generate_series(1, 1000) n; \
             INSERT INTO t VALUES (1001, repeat('y', 20000000))",
        )
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let section = config(database.url(), &["public.t"], json!({"snapshot": "never"}));
    let opened = Opened::try_open_with(&section, state.path(), Budget::new(2 << 20)).await;
    let mut opened = opened.expect("the source opens");
    load(&mut opened, "public.t").await;
    let read = opened.seen.iter().filter(|seen| seen.op == Op::Read);
    let ids: Vec<u32> = read
        .map(|seen| seen.value("id").parse().expect("a number"))
        .collect();
    assert_eq!(ids, (1..=1001).collect::<Vec<_>>());
    assert!(opened.largest < 32 << 20, "{} bytes", opened.largest);
    opened.close().await;
}

/// An UPDATE that leaves a large value out overtakes the rows that hold it.
#[tokio::test]
async fn a_value_that_an_update_left_out_comes_with_the_row() {
    require_own!(Component::Postgres(17));
    // A commit is streamed, and not seen, for as long as a standby takes that does not exist.
    let options = PostgresOptions::new(17)
        .set("synchronous_standby_names", "nobody")
        .set("synchronous_commit", "local");
    let server = Postgres::start(options).await;
    let database = server.database("left").await;
    database
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text, big text); \
             ALTER TABLE t ALTER big SET STORAGE EXTERNAL; \
             INSERT INTO t SELECT n * 10, 'old', repeat('b', 3000) || n FROM generate_series(1, 2000) n",
        )
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let more = json!({"snapshot": "never", "snapshot_rate": "1MiB"});
    let section = config(database.url(), &["public.t"], more);
    let mut opened = Opened::open(&section, state.path()).await;
    let writer = database.client().await;
    let reloads = opened.source.reloads().expect("a desk");
    reloads.request(whole("public.t")).expect("taken");
    while opened.seen.iter().all(|seen| seen.op != Op::Read) {
        opened.next().await.expect("the first chunk");
    }
    // Of a row that is not read yet; and one is moved from there to where rows have been read.
    let update = writer.batch_execute(
        "SET synchronous_commit = on; BEGIN; UPDATE t SET v = 'new' WHERE id = 6000; \
         UPDATE t SET id = 15, v = 'moved' WHERE id = 6010; COMMIT",
    );
    let reads = async {
        let is_read = |opened: &Opened, id: &str| {
            let mut seen = opened.seen.iter();
            seen.any(|seen| seen.op == Op::Read && seen.value("id") == id)
        };
        while !is_read(&opened, "20000") {
            opened.next().await.expect("the load goes on");
            let through = opened.through;
            opened.feedback.confirm(through);
        }
        let release =
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        assert_eq!(server.value(release).await.as_deref(), Some("t"));
        while reloads.list()[0].state != ReloadState::Done {
            opened.next().await.expect("the load goes on");
            let through = opened.through;
            opened.feedback.confirm(through);
        }
        opened
    };
    let (updated, opened) = tokio::join!(update, reads);
    updated.expect("updated");
    let mut rows: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for seen in &opened.seen {
        match seen.op {
            Op::Read | Op::Update => {
                if let Some(Some(old)) = seen.old.get("id") {
                    rows.remove(old.as_str());
                }
                let held = rows.get(seen.value("id")).map_or("", |(_, big)| big);
                let big = match seen.value("big") {
                    "~" => held,
                    big => big,
                };
                rows.insert(seen.value("id"), (seen.value("v"), big));
            }
            _ => {}
        }
    }
    let expected = |n: u32| format!("{}{n}", "b".repeat(3000));
    assert_eq!(rows["6000"], ("new", &*expected(600)));
    assert_eq!(rows["15"], ("moved", &*expected(601)));
    assert_eq!(rows.len(), 2000);
    opened.close().await;
}

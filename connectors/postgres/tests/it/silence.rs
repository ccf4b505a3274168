//! Nothing comes, and the server is at work on it, or not.

use std::num::NonZeroU64;
use std::time::Duration;

use lockstep_core::ErrorKind;
use lockstep_core::batch::Op;
use lockstep_core::memory::Budget;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::proxy::Proxy;
use lockstep_kit::{Component, require, wait_for};
use serde_json::json;

use crate::harness::{Opened, config};

/// The server is asked after half a minute.
const PATIENCE: Duration = Duration::from_secs(90);
/// Twenty megabytes.
const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); \
    ALTER TABLE t ALTER v SET STORAGE EXTERNAL; \
    INSERT INTO t SELECT n, repeat('x', 1000) || n FROM generate_series(1, 20000) n";

async fn through(database: &Database) -> (Proxy, String) {
    let (before, place) = database.url().split_once('@').expect("a user");
    let (place, name) = place.split_once('/').expect("a database");
    let proxy = Proxy::start(place).await;
    let url = format!("{before}@{}/{name}", proxy.address());
    (proxy, url)
}

/// Nothing comes any more by the connections that are open.
fn swallow(proxy: &Proxy) {
    for connection in proxy.connections() {
        connection.black_hole(true);
    }
}

#[tokio::test]
async fn a_copy_whose_connections_have_gone_silent_is_given_up() {
    require!(Component::Postgres(17));
    let database = Postgres::shared(17).await.database("silent").await;
    database.execute(TABLE).await;
    let (proxy, url) = through(&database).await;
    proxy.bandwidth(NonZeroU64::new(1 << 20));
    let state = tempfile::tempdir().expect("a directory");
    let mut opened = Opened::open(&config(&url, &["public.t"], json!({})), state.path()).await;
    while opened.seen.is_empty() {
        opened.next().await.expect("the copy has begun");
    }
    swallow(&proxy);
    // What the server still has to say is swallowed soon.
    proxy.bandwidth(None);
    let ends = async {
        loop {
            if let Err(error) = opened.source.next().await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, ends).await.expect("an end");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("at work on nothing"), "{error}");
}

#[tokio::test]
async fn a_copy_that_waits_for_a_lock_is_waited_for() {
    require!(Component::Postgres(17));
    let database = Postgres::shared(17).await.database("locked").await;
    database.execute(TABLE).await;
    let small = "CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1), (2)";
    database.execute(small).await;
    let more = json!({"snapshot_workers": 1});
    let section = config(database.url(), &["public.t", "public.u"], more);
    let state = tempfile::tempdir().expect("a directory");
    // The larger table comes first, and does not get far while nobody reads.
    let opened = Opened::try_open_with(&section, state.path(), Budget::new(1 << 20)).await;
    let mut opened = opened.expect("the source opens");
    opened.next().await.expect("the copy has begun");
    let holder = database.client().await;
    let lock = "BEGIN; LOCK TABLE u IN ACCESS EXCLUSIVE MODE";
    holder.batch_execute(lock).await.expect("locked");
    while opened.seen.len() < 20_000 {
        opened.next().await.expect("the copy goes on");
    }
    wait_for(PATIENCE, "the copy to have waited for long", async || {
        let sql = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() \
            AND wait_event_type = 'Lock' AND query LIKE 'COPY %' AND clock_timestamp() - query_start > interval '34 s'";
        let rows = holder.query(sql, &[]).await.expect("asked");
        !rows.is_empty()
    })
    .await;
    holder.batch_execute("COMMIT").await.expect("released");
    opened.changes(20_002).await;
    opened.close().await;
}

/// While a slot is being made the server waits for transactions, and says nothing.
#[tokio::test]
async fn a_slot_whose_making_is_not_heard_of_is_made_anew() {
    require!(Component::Postgres(17));
    // Of its own: nobody on the server can make a slot meanwhile.
    let server = Postgres::start(PostgresOptions::new(17)).await;
    let database = server.database("made").await;
    database.execute(TABLE).await;
    let holder = database.client().await;
    let begun = "BEGIN; CREATE TABLE holds ()";
    holder.batch_execute(begun).await.expect("begun");
    let (proxy, url) = through(&database).await;
    let section = config(&url, &["public.t"], json!({}));
    let state = tempfile::tempdir().expect("a directory");
    let unheard = async {
        wait_for(PATIENCE, "the slot to be in the making", async || {
            let sql = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                AND query LIKE 'CREATE_REPLICATION_SLOT%'";
            server.value(sql).await.ok_or("not yet")
        })
        .await;
        swallow(&proxy);
        holder.batch_execute("COMMIT").await.expect("ended");
    };
    let opens = tokio::time::timeout(PATIENCE, Opened::try_open(&section, state.path()));
    let (opened, ()) = tokio::join!(opens, unheard);
    let error = opened.expect("an end").err().expect("not heard of");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("at work on nothing"), "{error}");
    let mut opened = crate::copy::retry_open(&section, state.path()).await;
    // Perhaps behind a TRUNCATE, which what an earlier try has left is emptied by.
    let read = |opened: &Opened| {
        opened
            .seen
            .iter()
            .filter(|seen| seen.op == Op::Read)
            .count()
    };
    while read(&opened) < 20_000 {
        opened.next().await.expect("the copy goes on");
    }
    opened.close().await;
}

/// A table that somebody keeps locked can be in no publication: that is told, and no session stays behind for it.
#[tokio::test]
async fn a_publication_that_waits_for_a_lock_says_so() {
    require!(Component::Postgres(17));
    let database = Postgres::shared(17).await.database("kept").await;
    let table = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)";
    database.execute(table).await;
    let holder = database.client().await;
    let lock = "BEGIN; LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE";
    holder.batch_execute(lock).await.expect("locked");
    let section = config(database.url(), &["public.t"], json!({}));
    let state = tempfile::tempdir().expect("a directory");
    let opens = Opened::try_open(&section, state.path());
    let opened = tokio::time::timeout(PATIENCE, opens).await.expect("an end");
    let error = opened.err().expect("the table is locked");
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    let said = error.to_string();
    assert!(said.contains("create the publication"), "{said}");
    let waiting = "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    assert_eq!(database.value(waiting).await.as_deref(), Some("0"));
    holder.batch_execute("COMMIT").await.expect("released");
    let mut opened = crate::copy::retry_open(&section, state.path()).await;
    opened.changes(1).await;
    opened.close().await;
}

//! Nothing comes, and the server is at work on it, or not.

use std::num::NonZeroU64;
use std::time::Duration;

use lockstep_core::ErrorKind;
use lockstep_core::memory::Budget;
use lockstep_kit::postgres::Postgres;
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

#[tokio::test]
async fn a_copy_whose_connections_have_gone_silent_is_given_up() {
    require!(Component::Postgres(17));
    let database = Postgres::shared(17).await.database("silent").await;
    database.execute(TABLE).await;
    let (before, place) = database.url().split_once('@').expect("a user");
    let (place, name) = place.split_once('/').expect("a database");
    let proxy = Proxy::start(place).await;
    proxy.bandwidth(NonZeroU64::new(1 << 20));
    let url = format!("{before}@{}/{name}", proxy.address());
    let state = tempfile::tempdir().expect("a directory");
    let mut opened = Opened::open(&config(&url, &["public.t"], json!({})), state.path()).await;
    while opened.seen.is_empty() {
        opened.next().await.expect("the copy has begun");
    }
    for connection in proxy.connections() {
        connection.black_hole(true);
    }
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

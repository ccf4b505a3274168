//! Transactions in progress: what is received of them arrives exactly as if the server had kept it until the commit.

mod beside;
mod chance;
mod ends;
mod savepoints;
mod shapes;

use std::sync::Arc;

use lockstep_core::batch::Op;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::wait_for;
use serde_json::json;
use tokio_postgres::Client;

use crate::copy::retry_open;
use crate::harness::{DEADLINE, Opened, Seen, config};

/// The oldest and the newest server, where what lies between adds nothing.
const ENDS: [u16; 2] = [14, 18];

/// Two sources on one database, of which one receives transactions in progress.
struct Pair {
    // Of its own: transactions stay open, and nobody on the server could make a slot meanwhile.
    _server: Arc<Postgres>,
    database: Database,
    tables: Vec<String>,
    states: [tempfile::TempDir; 2],
    on: Opened,
    off: Opened,
}

async fn server(major: u16) -> Arc<Postgres> {
    Arc::new(Postgres::start(PostgresOptions::new(major)).await)
}

impl Pair {
    /// On a table `t` of numbers and notes.
    async fn of_notes(server: &Arc<Postgres>) -> Pair {
        let sql = "CREATE TABLE t (id bigint PRIMARY KEY, note text)";
        Pair::open(server, sql, &["public.t"]).await
    }

    async fn open(server: &Arc<Postgres>, sql: &str, tables: &[&str]) -> Pair {
        let database = server.database("streamed").await;
        let name = database.name();
        database
            .execute(&format!(
                "ALTER DATABASE \"{name}\" SET logical_decoding_work_mem = '64kB'; {sql}"
            ))
            .await;
        let tables: Vec<String> = tables.iter().map(|&table| table.into()).collect();
        let states = [0, 1].map(|_| tempfile::tempdir().expect("a directory"));
        let on = source(&database, &tables, &states[0], true).await;
        let off = source(&database, &tables, &states[1], false).await;
        Pair {
            _server: Arc::clone(server),
            database,
            tables,
            states,
            on,
            off,
        }
    }

    /// Reads on with both, and compares.
    async fn catch_up(&mut self) {
        self.on.catch_up(&self.database).await;
        self.off.catch_up(&self.database).await;
        same(&self.on.seen, &self.off.seen);
    }

    /// How many transactions the server has streamed.
    async fn streamed(&self) -> i64 {
        let slot = format!("{}_on", crate::harness::slot_name(self.database.url()));
        let sql = format!(
            "SELECT stream_txns::text FROM pg_stat_replication_slots WHERE slot_name = '{slot}'"
        );
        let text = self.database.value(&sql).await;
        text.map_or(0, |text| text.parse().expect("a number"))
    }

    /// What the one has read is confirmed, and the server knows.
    async fn confirm(&mut self) {
        let confirmed = self.on.through;
        self.on.feedback.confirm(confirmed);
        let slot = format!("{}_on", crate::harness::slot_name(self.database.url()));
        let passed = format!(
            "SELECT confirmed_flush_lsn >= '{confirmed}' FROM pg_replication_slots WHERE slot_name = '{slot}'"
        );
        wait_for(DEADLINE, "the server to hear of it", async || {
            self.database.value(&passed).await.as_deref() == Some("t")
        })
        .await;
    }

    async fn wait_streamed(&self, at_least: i64) {
        wait_for(DEADLINE, "the server to stream", async || {
            // Before 15, the server counts when a transaction ends.
            self.database
                .execute("SELECT pg_logical_emit_message(true, 'test', '')")
                .await;
            self.streamed().await >= at_least
        })
        .await;
    }
}

async fn source(
    database: &Database,
    tables: &[String],
    state: &tempfile::TempDir,
    streaming: bool,
) -> Opened {
    let slot = crate::harness::slot_name(database.url());
    source_on(
        database,
        tables,
        state,
        streaming,
        if streaming { "on" } else { "off" },
        &slot,
    )
    .await
}

async fn source_on(
    database: &Database,
    tables: &[String],
    state: &tempfile::TempDir,
    streaming: bool,
    of: &str,
    slot: &str,
) -> Opened {
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    let more = json!({
        "snapshot": "never",
        "slot": format!("{slot}_{of}"),
        "streaming": if streaming { "on" } else { "off" },
    });
    // The server may not have noticed yet that a connection is gone.
    retry_open(&config(database.url(), &tables, more), state.path()).await
}

/// Without the messages that mark the end of what is compared.
pub fn without_marks(seen: &[Seen]) -> Vec<Seen> {
    let mark = |seen: &&Seen| seen.op != Op::Message || seen.value("prefix") != "test";
    let mut seen: Vec<Seen> = seen.iter().filter(mark).cloned().collect();
    for seen in &mut seen {
        if seen.xid == 0 {
            // Of a message outside any transaction: when it was received.
            seen.micros = 0;
        }
    }
    seen
}

pub fn same(on: &[Seen], off: &[Seen]) {
    let (on, off) = (without_marks(on), without_marks(off));
    for (on, off) in on.iter().zip(&off) {
        assert_eq!(on, off);
    }
    assert_eq!(on.len(), off.len());
}

pub async fn run(client: &Client, sql: &str) {
    client
        .batch_execute(sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// Rows that are more than the server keeps.
pub fn many(table: &str, from: u64, count: u64) -> String {
    format!(
        "INSERT INTO {table} SELECT n, repeat('x', 100) || n FROM generate_series({from}, {from} + {count} - 1) n"
    )
}

/// Takes what comes again after `seen` off `again`, and compares all with what the other source has seen.
fn same_after(mut seen: Vec<Seen>, again: &mut Opened, off: &mut Opened) -> Vec<Seen> {
    let last = seen.last().map(|seen| seen.position);
    seen.extend(
        again
            .seen
            .drain(..)
            .filter(|seen| Some(seen.position) > last),
    );
    for seen in seen.iter_mut().chain(&mut off.seen) {
        // What came before a connection is not known to it.
        seen.previous_commit = None;
    }
    same(&seen, &off.seen);
    without_marks(&seen)
}

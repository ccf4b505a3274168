//! Transactions that are prepared: what is received of them arrives when they commit, exactly as if the server had kept it until
//! then, and with their names.

mod early;
mod refused;
mod restart;
mod shapes;

use std::sync::Arc;

use lockstep_core::batch::Op;
use lockstep_core::position::Lsn;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::wait_for;
use lockstep_postgres::PostgresConfig;
use serde_json::json;

use crate::copy::retry_open;
use crate::harness::{DEADLINE, Opened, Seen, config, slot_name};
use crate::streamed::{many, run, same, without_marks};

/// All that send them.
const SERVERS: [u16; 4] = [15, 16, 17, 18];

/// Two sources on one database, of which one receives transactions when they are prepared.
struct Pair {
    // Of its own: while one is prepared, nobody on the server could make a slot.
    server: Arc<Postgres>,
    database: Database,
    states: [tempfile::TempDir; 2],
    on: Opened,
    off: Opened,
}

impl Pair {
    /// On a table `t` of numbers and notes, and one `u` like it.
    async fn open(major: u16, streaming: bool) -> Pair {
        let server = Arc::new(Postgres::start(PostgresOptions::new(major)).await);
        let database = server.database("two_phase").await;
        database
            .execute(&format!(
                "ALTER DATABASE \"{}\" SET logical_decoding_work_mem = '64kB'; \
                 CREATE TABLE t (id bigint PRIMARY KEY, note text); CREATE TABLE u (LIKE t INCLUDING ALL); \
                 CREATE TABLE unpublished (LIKE t INCLUDING ALL)",
                database.name()
            ))
            .await;
        let states = [0, 1].map(|_| tempfile::tempdir().expect("a directory"));
        let on = retry_open(&section(&database, true, streaming), states[0].path()).await;
        let off = retry_open(&section(&database, false, streaming), states[1].path()).await;
        Pair {
            server,
            database,
            states,
            on,
            off,
        }
    }

    /// Opens the one again.
    async fn open_again(&mut self) {
        let section = section(&self.database, true, false);
        self.on = retry_open(&section, self.states[0].path()).await;
    }

    /// Reads on with both.
    async fn catch_up(&mut self) {
        self.on.catch_up(&self.database).await;
        self.off.catch_up(&self.database).await;
    }

    /// Reads on with both, and compares.
    async fn agree(&mut self) {
        self.catch_up().await;
        same(&nameless(&self.on.seen), &self.off.seen);
    }

    async fn lsn(&self, what: &str) -> Lsn {
        let text = self.database.value(&format!("SELECT ({what})::text")).await;
        text.expect("a place").parse().expect("an LSN")
    }

    /// Where the server's log ends.
    async fn here(&self) -> Lsn {
        self.lsn("pg_current_wal_insert_lsn()").await
    }

    /// Up to where the slot is confirmed.
    async fn confirmed(&self) -> Lsn {
        let slot = format!("{}_on", slot_name(self.database.url()));
        let ask = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name";
        self.lsn(&format!("{ask} = '{slot}'")).await
    }
}

fn section(database: &Database, two_phase: bool, streaming: bool) -> PostgresConfig {
    let of = if two_phase { "on" } else { "off" };
    let more = json!({
        "snapshot": "never",
        "slot": format!("{}_{of}", slot_name(database.url())),
        "two_phase": two_phase,
        "streaming": if streaming { "on" } else { "off" },
    });
    config(database.url(), &["public.t", "public.u"], more)
}

/// Prepares a transaction that does `work`.
async fn prepare(database: &Database, gid: &str, work: &str) {
    run(
        &database.client().await,
        &format!("BEGIN; {work}; PREPARE TRANSACTION '{gid}'"),
    )
    .await;
}

async fn commit(database: &Database, gid: &str) {
    database.execute(&format!("COMMIT PREPARED '{gid}'")).await;
}

async fn roll_back(database: &Database, gid: &str) {
    database
        .execute(&format!("ROLLBACK PREPARED '{gid}'"))
        .await;
}

/// As the other source sees it.
fn nameless(seen: &[Seen]) -> Vec<Seen> {
    let mut seen = seen.to_vec();
    for seen in &mut seen {
        seen.gid = None;
    }
    seen
}

/// The names of what arrived, with the ids of the rows.
fn named(seen: &[Seen]) -> Vec<(String, String)> {
    let rows = without_marks(seen);
    let rows = rows.iter().filter(|seen| seen.op != Op::Message);
    let named = rows.map(|seen| {
        (
            seen.gid.clone().unwrap_or_default(),
            seen.value("id").to_owned(),
        )
    });
    named.collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let pair = |(gid, id): &(&str, &str)| ((*gid).to_owned(), (*id).to_owned());
    expected.iter().map(pair).collect()
}

#[tokio::test]
async fn what_is_prepared_arrives_when_it_commits_with_its_name() {
    for major in SERVERS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let mut pair = Pair::open(major, false).await;
        let database = &pair.database;
        let work = "INSERT INTO t VALUES (1, 'a'); SAVEPOINT s; INSERT INTO t VALUES (2); ROLLBACK TO s; \
             UPDATE t SET note = 'b' WHERE id = 1; SELECT pg_logical_emit_message(true, 'gtx', 'one')";
        prepare(database, "one", work).await;
        prepare(database, "two", "INSERT INTO u VALUES (3); DELETE FROM u").await;
        database.execute("INSERT INTO u VALUES (4)").await;
        prepare(database, "three", "INSERT INTO u VALUES (5)").await;
        prepare(database, "elsewhere", "INSERT INTO unpublished VALUES (1)").await;
        commit(database, "three").await;
        roll_back(database, "two").await;
        commit(database, "elsewhere").await;
        commit(database, "one").await;
        database.execute("DELETE FROM t").await;
        pair.agree().await;
        let expected = [
            ("", "4"),
            ("three", "5"),
            ("one", "1"),
            ("one", "1"),
            ("", "NULL"),
        ];
        assert_eq!(named(&pair.on.seen), pairs(&expected), "PostgreSQL {major}");
        let message = pair
            .on
            .seen
            .iter()
            .find(|seen| seen.value("prefix") == "gtx");
        let message = message.expect("the message");
        assert_eq!(message.gid.as_deref(), Some("one"));
        assert!(pair.off.seen.iter().all(|seen| seen.gid.is_none()));
        pair.on.close().await;
        pair.off.close().await;
    }
}

#[tokio::test]
async fn large_ones_arrive_in_pieces_and_whole_alike() {
    for major in SERVERS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        for streaming in [true, false] {
            let mut pair = Pair::open(major, streaming).await;
            let database = &pair.database;
            let work = format!(
                "{}; SAVEPOINT s; {}; ROLLBACK TO s; {}",
                many("t", 0, 2_000),
                many("t", 10_000, 2_000),
                many("u", 20_000, 2_000)
            );
            prepare(database, "large", &work).await;
            prepare(database, "gone", &many("t", 30_000, 2_000)).await;
            database.execute(&many("t", 40_000, 10)).await;
            commit(database, "large").await;
            roll_back(database, "gone").await;
            pair.agree().await;
            let of_large = named(&pair.on.seen);
            let of_large = of_large.iter().filter(|(gid, _)| gid == "large");
            assert_eq!(of_large.count(), 4_000, "PostgreSQL {major}");
            wait_for(DEADLINE, "nothing to be kept", async || {
                let state = pair.on.status.get();
                let kept = (state.in_progress, state.in_progress_bytes);
                (kept == (0, 0)).then_some(()).ok_or(kept)
            })
            .await;
            pair.on.close().await;
            pair.off.close().await;
        }
    }
}

#[tokio::test]
async fn what_is_in_doubt_is_told() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(16));
    let mut pair = Pair::open(16, false).await;
    let before = pair.here().await;
    prepare(&pair.database, "a", "INSERT INTO t VALUES (1)").await;
    let after = pair.here().await;
    prepare(&pair.database, "b", "INSERT INTO t VALUES (2)").await;
    let status = pair.on.status.clone();
    let told = async |count: u64| {
        wait_for(DEADLINE, "it to be told", async || {
            let state = status.get();
            (state.in_doubt == Some(count)).then_some(state)
        })
        .await
    };
    pair.catch_up().await;
    let state = told(2).await;
    let from = Lsn(state.in_doubt_from.expect("a place"));
    assert!(before <= from && from < after, "{before} {from} {after}");
    assert!(state.in_doubt_since_ms.is_some());
    assert!(pair.off.status.get().in_doubt.is_none(), "it does not know");
    commit(&pair.database, "a").await;
    roll_back(&pair.database, "b").await;
    pair.agree().await;
    let state = told(0).await;
    assert_eq!((state.in_doubt_from, state.in_doubt_since_ms), (None, None));
    pair.on.close().await;
    pair.off.close().await;
}

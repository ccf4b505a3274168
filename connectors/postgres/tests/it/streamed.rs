//! Transactions in progress: what is received of them arrives exactly as if the server had kept it until the commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_core::batch::Op;
use lockstep_core::position::Lsn;
use lockstep_core::source::{Reload, ReloadRequest, ReloadState};
use lockstep_kit::disk::SmallDisk;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::random::Random;
use lockstep_kit::wait_for;
use serde_json::json;
use tokio_postgres::Client;

use crate::copy::retry_open;
use crate::harness::{DEADLINE, Opened, Seen, config};
use crate::stream::MAJORS;

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
fn without_marks(seen: &[Seen]) -> Vec<Seen> {
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

fn same(on: &[Seen], off: &[Seen]) {
    let (on, off) = (without_marks(on), without_marks(off));
    for (on, off) in on.iter().zip(&off) {
        assert_eq!(on, off);
    }
    assert_eq!(on.len(), off.len());
}

async fn run(client: &Client, sql: &str) {
    client
        .batch_execute(sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// Rows that are more than the server keeps.
fn many(table: &str, from: u64, count: u64) -> String {
    format!(
        "INSERT INTO {table} SELECT n, repeat('x', 100) || n FROM generate_series({from}, {from} + {count} - 1) n"
    )
}

/// A session that does as chance has it. Tables are its own, but for the one all share.
struct Session {
    client: Client,
    number: u64,
    /// Savepoints that are open.
    depth: u32,
    open: bool,
    /// It has locked its table against everybody, who looks its shape up included.
    locks: bool,
    next: u64,
    columns: u64,
}

impl Session {
    async fn act(&mut self, random: &mut Random) {
        let number = self.number;
        if !self.open {
            run(&self.client, "BEGIN").await;
            self.open = true;
        }
        let sql = match random.below(20) {
            0..=5 => {
                let count = 1 + random.below(300);
                // Keys that no other session has.
                let from = number * 1_000_000 + self.next;
                self.next += count;
                many("shared", from, count)
            }
            6..=8 => {
                let count = 1 + random.below(300);
                let from = number * 1_000_000 + self.next;
                self.next += count;
                format!(
                    "INSERT INTO own{number} (id, note, big) SELECT n, 'a', repeat('y', 3000) \
                     FROM generate_series({from}, {from} + {count} - 1) n"
                )
            }
            9 => format!(
                "UPDATE own{number} SET note = note || 'b' WHERE id % 7 = {}",
                random.below(7)
            ),
            10 => format!(
                "UPDATE own{number} SET id = -id WHERE id % 11 = {}",
                random.below(11)
            ),
            11 => format!("DELETE FROM own{number} WHERE id % 5 = {}", random.below(5)),
            // Not where they may be rolled back alone: see the last test.
            12 if self.depth == 0 && random.once_in(4) => {
                self.locks = true;
                format!("TRUNCATE own{number}")
            }
            13 if self.depth == 0 && random.once_in(2) => {
                self.locks = true;
                self.columns += 1;
                format!(
                    "ALTER TABLE own{number} ADD c{} int DEFAULT {number}",
                    self.columns
                )
            }
            14 => "SELECT pg_logical_emit_message(false, 'outside', 'x')".to_owned(),
            15 | 16 => {
                self.depth += 1;
                format!("SAVEPOINT s{}", self.depth)
            }
            17 if self.depth > 0 => {
                // With those inside it.
                let to = 1 + random.below(u64::from(self.depth));
                self.depth = to as u32 - 1;
                format!("RELEASE s{to}")
            }
            18 if self.depth > 0 => {
                let to = 1 + random.below(u64::from(self.depth));
                self.depth = to as u32;
                format!("ROLLBACK TO s{to}")
            }
            19 => {
                let end = if random.once_in(4) {
                    "ROLLBACK"
                } else {
                    "COMMIT"
                };
                return self.end(end).await;
            }
            _ => format!(
                "UPDATE shared SET note = 'again' WHERE id BETWEEN {0} AND {0} + 50",
                number * 1_000_000
            ),
        };
        run(&self.client, &sql).await;
    }

    async fn end(&mut self, how: &str) {
        run(&self.client, how).await;
        (self.open, self.depth, self.locks) = (false, 0, false);
    }
}

#[tokio::test]
async fn whatever_happens_arrives_as_without_streaming() {
    const SESSIONS: u64 = 6;
    let mut random = Random::from_environment();
    for major in MAJORS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let server = server(major).await;
        let mut sql = "CREATE TABLE shared (id bigint PRIMARY KEY, note text);".to_owned();
        let mut tables = vec!["public.shared".to_owned()];
        for number in 0..SESSIONS {
            sql += &format!(
                "CREATE TABLE own{number} (id bigint PRIMARY KEY, note text, big text); \
                 ALTER TABLE own{number} ALTER big SET STORAGE EXTERNAL;"
            );
            tables.push(format!("public.own{number}"));
        }
        sql +=
            "ALTER TABLE own1 REPLICA IDENTITY FULL; CREATE TABLE hidden (id bigint, note text);";
        let names: Vec<&str> = tables.iter().map(String::as_str).collect();
        let mut pair = Pair::open(&server, &sql, &names).await;
        let mut sessions = Vec::new();
        for number in 0..SESSIONS {
            sessions.push(Session {
                client: pair.database.client().await,
                number,
                depth: 0,
                open: false,
                locks: false,
                next: 0,
                columns: 0,
            });
        }
        for round in 0..4 {
            for _ in 0..100 {
                let at = random.below(SESSIONS) as usize;
                sessions[at].act(&mut random).await;
            }
            for session in sessions.iter_mut().filter(|session| session.locks) {
                session.end("COMMIT").await;
            }
            // Large, and nothing of it is published.
            pair.database.execute(&many("hidden", 0, 2_000)).await;
            pair.catch_up().await;
            println!(
                "PostgreSQL {major}, round {round}: {} changes",
                pair.on.seen.len()
            );
        }
        let streamed = pair.streamed().await;
        assert!(streamed > 0, "PostgreSQL {major} has streamed");
        println!("PostgreSQL {major}: {streamed} transactions streamed");
        drop(sessions);
        pair.on.close().await;
        pair.off.close().await;
    }
}

#[tokio::test]
async fn a_thousand_savepoints_of_which_some_are_rolled_back() {
    for major in ENDS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let server = server(major).await;
        let mut pair = Pair::open(
            &server,
            "CREATE TABLE t (id bigint PRIMARY KEY, note text)",
            &["public.t"],
        )
        .await;
        let client = pair.database.client().await;
        run(&client, "BEGIN").await;
        for number in 0..1000_u64 {
            // Every third is rolled back, every seventh holds one that is; every tenth is released first, into one that is
            // rolled back every hundredth time.
            let mut sql = format!("SAVEPOINT a; {};", many("t", number * 100, 5));
            if number % 7 == 0 {
                sql += &format!(
                    "SAVEPOINT b; {}; ROLLBACK TO b;",
                    many("t", number * 100 + 10, 5)
                );
            }
            if number % 10 == 0 {
                sql += &format!(
                    "SAVEPOINT c; {}; RELEASE c;",
                    many("t", number * 100 + 20, 5)
                );
            }
            sql += if number % 3 == 0 || number % 100 == 0 {
                "ROLLBACK TO a; RELEASE a"
            } else {
                "RELEASE a"
            };
            run(&client, &sql).await;
        }
        pair.wait_streamed(1).await;
        run(&client, "COMMIT").await;
        pair.catch_up().await;
        let seen = without_marks(&pair.on.seen);
        let ids: Vec<String> = seen
            .iter()
            .map(|seen| seen.value("id").to_owned())
            .collect();
        let rows = client
            .query("SELECT id::text FROM t ORDER BY t.id", &[])
            .await
            .expect("rows");
        let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(ids, rows, "PostgreSQL {major}");
        let ordinals: Vec<u64> = seen.iter().map(|seen| seen.position.ordinal).collect();
        assert_eq!(ordinals, (1..=rows.len() as u64).collect::<Vec<_>>());
        pair.on.close().await;
        pair.off.close().await;
    }
}

#[tokio::test]
async fn fifty_open_transactions_take_turns() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(17));
    let server = server(17).await;
    let mut pair = Pair::open(
        &server,
        "CREATE TABLE t (id bigint PRIMARY KEY, note text)",
        &["public.t"],
    )
    .await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        let client = pair.database.client().await;
        run(&client, "BEGIN").await;
        clients.push(client);
    }
    for turn in 0..5 {
        for (number, client) in (0..).zip(&clients) {
            run(client, &many("t", number * 10_000 + turn * 1_000, 150)).await;
        }
    }
    // All of them are streamed before the first ends.
    pair.wait_streamed(50).await;
    for (number, client) in clients.iter().enumerate().rev() {
        let end = if number % 5 == 0 {
            "ROLLBACK"
        } else {
            "COMMIT"
        };
        run(client, end).await;
    }
    pair.catch_up().await;
    assert_eq!(without_marks(&pair.on.seen).len(), 40 * 5 * 150);
    pair.on.close().await;
    pair.off.close().await;
}

/// An open source loses its connection.
async fn terminate(database: &Database, of: &str) {
    let slot = format!("{}_{of}", crate::harness::slot_name(database.url()));
    database
        .execute(&format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}'"
        ))
        .await;
}

#[tokio::test]
async fn a_connection_lost_in_the_middle_loses_nothing() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(17));
    let server = server(17).await;
    let mut pair = Pair::open(
        &server,
        "CREATE TABLE t (id bigint PRIMARY KEY, note text)",
        &["public.t"],
    )
    .await;
    let slow = pair.database.client().await;
    run(&slow, "BEGIN").await;
    run(&slow, &many("t", 0, 2_000)).await;
    pair.wait_streamed(1).await;
    // Others commit, and are confirmed, while it is open.
    pair.database.execute(&many("t", 10_000, 10)).await;
    pair.catch_up().await;
    assert_eq!(without_marks(&pair.on.seen).len(), 10);
    let confirmed = pair.on.through;
    pair.on.feedback.confirm(confirmed);
    let slot = format!("{}_on", crate::harness::slot_name(pair.database.url()));
    let passed = format!(
        "SELECT confirmed_flush_lsn >= '{confirmed}' FROM pg_replication_slots WHERE slot_name = '{slot}'"
    );
    wait_for(DEADLINE, "the server to hear of it", async || {
        pair.database.value(&passed).await.as_deref() == Some("t")
    })
    .await;

    // The server's side ends in the middle: everything that is open comes again.
    terminate(&pair.database, "on").await;
    while pair.on.next().await.is_ok() {}
    let mut seen = std::mem::take(&mut pair.on.seen);
    let slot = crate::harness::slot_name(pair.database.url());
    pair.on = source_on(
        &pair.database,
        &pair.tables,
        &pair.states[0],
        true,
        "on",
        &slot,
    )
    .await;
    let before = pair.streamed().await;
    run(&slow, &many("t", 2_000, 2_000)).await;
    pair.wait_streamed(before + 1).await;

    // It goes on without streaming: the open transaction comes when it commits.
    pair.on.close().await;
    let mut on = source_on(
        &pair.database,
        &pair.tables,
        &pair.states[0],
        false,
        "on",
        &slot,
    )
    .await;
    run(&slow, "COMMIT").await;
    on.catch_up(&pair.database).await;
    pair.off.catch_up(&pair.database).await;
    seen.append(&mut on.seen);
    for seen in &mut seen {
        // What came before a connection is not known to it.
        seen.previous_commit = None;
    }
    for seen in &mut pair.off.seen {
        seen.previous_commit = None;
    }
    same(&seen, &pair.off.seen);
    assert_eq!(without_marks(&seen).len(), 4_010);
    on.close().await;
    pair.off.close().await;
}

#[tokio::test]
async fn a_transaction_that_comes_again_has_the_same_positions_either_way() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(16));
    let server = server(16).await;
    let mut pair = Pair::open(
        &server,
        "CREATE TABLE t (id bigint PRIMARY KEY, note text)",
        &["public.t"],
    )
    .await;
    let client = pair.database.client().await;
    // More than a batch, so that a part of it can be received without the rest.
    let large = format!(
        "BEGIN; {}; SAVEPOINT a; {}; ROLLBACK TO a; {}; COMMIT",
        many("t", 0, 15_000),
        many("t", 20_000, 100),
        many("t", 30_000, 15_000)
    );
    run(&client, &large).await;
    let slot = crate::harness::slot_name(pair.database.url());
    let mut parts = Vec::new();
    for streaming in [true, false, true] {
        while pair.on.seen.len() < 5_000 {
            pair.on.next().await.expect("the stream goes on");
        }
        assert!(
            pair.on.through < pair.on.seen[0].position.commit,
            "nothing of it is confirmed"
        );
        parts.push(std::mem::take(&mut pair.on.seen));
        pair.on.close().await;
        pair.on = source_on(
            &pair.database,
            &pair.tables,
            &pair.states[0],
            streaming,
            "on",
            &slot,
        )
        .await;
    }
    pair.catch_up().await;
    for part in parts {
        assert!(without_marks(&pair.off.seen).starts_with(&part));
    }
    pair.on.close().await;
    pair.off.close().await;
}

#[tokio::test]
async fn messages_that_may_have_been_rolled_back_are_told_apart_without_streaming() {
    for major in ENDS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let server = server(major).await;
        let mut pair = Pair::open(
            &server,
            "CREATE TABLE t (id bigint PRIMARY KEY, note text)",
            &["public.t"],
        )
        .await;
        let emit = |text: &str| format!("SELECT pg_logical_emit_message(true, 'p', '{text}')");
        let client = pair.database.client().await;
        // Certain: a row of the transaction itself is behind it.
        run(
            &client,
            &format!(
                "BEGIN; {}; {}; {}",
                many("t", 0, 2_000),
                emit("kept"),
                many("t", 2_000, 2_000)
            ),
        )
        .await;
        run(&client, "SAVEPOINT a").await;
        run(&client, &many("t", 5_000, 2_000)).await;
        pair.wait_streamed(1).await;
        run(&client, "ROLLBACK TO a; COMMIT").await;
        pair.catch_up().await;
        assert_eq!(without_marks(&pair.on.seen).len(), 4_001);
        let slot = format!("{}_on", crate::harness::slot_name(pair.database.url()));
        let pid =
            format!("SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = '{slot}'");
        let before = pair.database.value(&pid).await;
        let streamed = pair.streamed().await;

        // In doubt: the server does not say whose they are.
        run(&client, "BEGIN").await;
        run(&client, &emit("kept too")).await;
        run(&client, "SAVEPOINT a").await;
        run(&client, &emit("rolled back")).await;
        run(&client, &many("t", 10_000, 2_000)).await;
        pair.wait_streamed(streamed + 1).await;
        run(&client, "ROLLBACK TO a").await;
        run(&client, &many("t", 20_000, 2_000)).await;
        wait_for(DEADLINE, "another connection", async || {
            let now = pair.database.value(&pid).await;
            now.is_some() && now != before
        })
        .await;
        run(&client, "COMMIT").await;
        // What was not confirmed comes again; whoever receives it knows its position.
        let seen = std::mem::take(&mut pair.on.seen);
        pair.on.catch_up(&pair.database).await;
        pair.off.catch_up(&pair.database).await;
        let messages = same_after(seen, &mut pair.on, &mut pair.off);
        let messages = messages.iter().filter(|seen| seen.op == Op::Message);
        let messages: Vec<&str> = messages.map(|seen| seen.value("content")).collect();
        assert_eq!(messages, ["kept", "kept too"], "PostgreSQL {major}");
        pair.on.close().await;
        pair.off.close().await;
    }
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

#[tokio::test]
async fn a_change_of_shape_inside_holds_where_it_was_made() {
    for major in MAJORS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let server = server(major).await;
        let mut pair = Pair::open(
            &server,
            "CREATE TABLE t (id bigint PRIMARY KEY, note text); CREATE TABLE u (id bigint PRIMARY KEY, note text)",
            &["public.t", "public.u"],
        )
        .await;
        let client = pair.database.client().await;
        // One that stays, and one of a transaction that is rolled back whole.
        run(&client, &format!("BEGIN; {}", many("t", 0, 4_000))).await;
        pair.wait_streamed(1).await;
        pair.database.execute(&many("u", 0, 10)).await;
        run(&client, "SAVEPOINT a; ALTER TABLE t ADD more int DEFAULT 7").await;
        run(
            &client,
            &format!("{}; RELEASE a; COMMIT", many("t", 4_000, 4_000)),
        )
        .await;
        // Before anybody locks the tables again: new shapes are looked up.
        pair.catch_up().await;
        run(&client, "BEGIN; ALTER TABLE t DROP note").await;
        run(
            &client,
            "INSERT INTO t SELECT n FROM generate_series(10000, 13000) n",
        )
        .await;
        pair.wait_streamed(2).await;
        run(&client, "ROLLBACK").await;
        pair.database.execute(&many("t", 8_000, 10)).await;
        pair.catch_up().await;
        let seen = without_marks(&pair.on.seen);
        let with = seen
            .iter()
            .filter(|seen| seen.new.contains_key("more"))
            .count();
        assert_eq!((seen.len(), with), (8_020, 4_010), "PostgreSQL {major}");
        pair.on.close().await;
        pair.off.close().await;
    }
}

#[tokio::test]
async fn a_transaction_that_the_server_cannot_stream_comes_without_streaming() {
    for major in ENDS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let server = server(major).await;
        let mut pair = Pair::open(
            &server,
            "CREATE TABLE t (id bigint PRIMARY KEY, note text)",
            &["public.t"],
        )
        .await;
        pair.database.execute("INSERT INTO t VALUES (-1, '')").await;
        pair.catch_up().await;
        let client = pair.database.client().await;
        // PostgreSQL: could not map filenode … to relation OID.
        run(
            &client,
            &format!(
                "BEGIN; {}; SAVEPOINT a; ALTER TABLE t ADD gone int",
                many("t", 0, 2_000)
            ),
        )
        .await;
        run(&client, &many("t", 2_000, 2_000)).await;
        run(
            &client,
            &format!("ROLLBACK TO a; {}", many("t", 4_000, 2_000)),
        )
        .await;
        run(&client, "ALTER TABLE t ADD more int").await;
        run(
            &client,
            &format!("{}; COMMIT", many("t (id, note)", 6_000, 2_000)),
        )
        .await;
        let seen = std::mem::take(&mut pair.on.seen);
        pair.on.catch_up(&pair.database).await;
        pair.off.catch_up(&pair.database).await;
        let all = same_after(seen, &mut pair.on, &mut pair.off);
        assert_eq!(all.len(), 6_001, "PostgreSQL {major}");
        assert!(all.iter().all(|seen| !seen.new.contains_key("gone")));
        pair.on.close().await;
        pair.off.close().await;
    }
}

#[tokio::test]
async fn a_disk_without_room_is_left_alone_and_nothing_is_lost() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(17));
    // Most of it is to stay free.
    let disk = match SmallDisk::start(70 << 20) {
        Ok(disk) => disk,
        Err(error) => {
            println!("NOT RUN: {error}");
            return;
        }
    };
    let server = server(17).await;
    let mut pair = Pair::open(
        &server,
        "CREATE TABLE t (id bigint PRIMARY KEY, note text)",
        &["public.t"],
    )
    .await;
    pair.on.close().await;
    let slot = crate::harness::slot_name(pair.database.url());
    let state = tempfile::tempdir_in(disk.seen()).expect("a directory");
    let before = pair.states[0].path().join("source.json");
    std::fs::copy(before, state.path().join("source.json")).expect("copied");
    pair.on = source_on(&pair.database, &pair.tables, &state, true, "on", &slot).await;
    let free = || {
        let room = rustix::fs::statvfs(state.path()).expect("a file system");
        room.f_bavail * room.f_frsize
    };
    let client = pair.database.client().await;
    run(&client, &format!("BEGIN; {}", many("t", 0, 50_000))).await;
    pair.wait_streamed(1).await;
    run(&client, &many("t", 50_000, 100_000)).await;
    run(&client, "COMMIT").await;
    let seen = std::mem::take(&mut pair.on.seen);
    pair.on.catch_up(&pair.database).await;
    pair.off.catch_up(&pair.database).await;
    let all = same_after(seen, &mut pair.on, &mut pair.off);
    assert_eq!(all.len(), 150_000);
    assert!(free() > 64 << 20, "{} bytes are free", free());
    // It has gone on without streaming.
    let streamed = pair.streamed().await;
    run(&client, &many("t", 200_000, 10_000)).await;
    pair.on.catch_up(&pair.database).await;
    assert_eq!(pair.streamed().await, streamed);
    // Once it is opened anew, it streams again.
    pair.on.close().await;
    pair.on = source_on(&pair.database, &pair.tables, &state, true, "on", &slot).await;
    run(&client, &many("t", 300_000, 10_000)).await;
    pair.wait_streamed(streamed + 1).await;
    pair.on.close().await;
    pair.off.close().await;
}

#[tokio::test]
async fn a_table_is_loaded_again_while_a_transaction_on_it_is_in_progress() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(17));
    let server = server(17).await;
    let mut pair = Pair::open(
        &server,
        "CREATE TABLE t (id bigint PRIMARY KEY, note text)",
        &["public.t"],
    )
    .await;
    pair.database.execute(&many("t", 0, 5_000)).await;
    pair.on.catch_up(&pair.database).await;
    let client = pair.database.client().await;
    let change = "UPDATE t SET note = 'changed' WHERE id % 2 = 0; DELETE FROM t WHERE id % 5 = 0";
    run(
        &client,
        &format!("BEGIN; {change}; {}", many("t", 5_000, 1_000)),
    )
    .await;
    pair.wait_streamed(1).await;
    let reloads = pair
        .on
        .source
        .reloads()
        .expect("tables can be loaded again");
    let request = ReloadRequest {
        table: "public.t".into(),
        condition: None,
        truncate: false,
    };
    reloads.request(request).expect("taken");
    let loaded = |seen: &[Seen]| seen.iter().filter(|seen| seen.op == Op::Read).count();
    while loaded(&pair.on.seen) == 0 {
        pair.on.next().await.expect("the stream goes on");
    }
    run(&client, "COMMIT").await;
    let done = || {
        let ended = |one: &Reload| one.state == ReloadState::Done;
        reloads.list().iter().all(ended)
    };
    while !done() {
        pair.on.catch_up(&pair.database).await;
        pair.on.feedback.confirm(pair.on.through);
    }
    let mut rows: BTreeMap<String, (Lsn, Option<String>)> = BTreeMap::new();
    for seen in without_marks(&pair.on.seen) {
        let values = if seen.op == Op::Delete {
            &seen.old
        } else {
            &seen.new
        };
        let key = values["id"].clone().expect("a key");
        let version = seen.position.commit;
        let note = (seen.op != Op::Delete).then(|| seen.value("note").to_owned());
        // As a sink that keeps versions.
        let known = rows.get(&key).map_or(Lsn::ZERO, |(version, _)| *version);
        if version >= known {
            rows.insert(key, (version, note));
        }
    }
    let there = client.query("SELECT id::text, note FROM t", &[]).await;
    let there: BTreeMap<String, String> = there
        .expect("rows")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let arrived: BTreeMap<String, String> = rows
        .into_iter()
        .filter_map(|(key, (_, note))| Some((key, note?)))
        .collect();
    assert_eq!(arrived, there);
    assert!(loaded(&pair.on.seen) > 1_000);
    pair.on.close().await;
    pair.off.close().await;
}

#[tokio::test]
async fn a_transaction_that_a_crash_of_the_server_ended_does_not_arrive() {
    for major in ENDS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let server = server(major).await;
        let mut pair = Pair::open(
            &server,
            "CREATE TABLE t (id bigint PRIMARY KEY, note text)",
            &["public.t"],
        )
        .await;
        let client = pair.database.client().await;
        run(&client, &format!("BEGIN; {}", many("t", 0, 2_000))).await;
        pair.wait_streamed(1).await;
        // On disk, so that the server streams it again after the crash, and only then learns that it has ended.
        pair.database.execute(&many("t", 10_000, 10)).await;
        pair.catch_up().await;
        let mut seen = [
            std::mem::take(&mut pair.on.seen),
            std::mem::take(&mut pair.off.seen),
        ];
        server.kill_all();
        for opened in [&mut pair.on, &mut pair.off] {
            while opened.next().await.is_ok() {}
        }
        server.restart().await;
        let slot = crate::harness::slot_name(pair.database.url());
        pair.on = source_on(
            &pair.database,
            &pair.tables,
            &pair.states[0],
            true,
            "on",
            &slot,
        )
        .await;
        pair.off = source_on(
            &pair.database,
            &pair.tables,
            &pair.states[1],
            false,
            "off",
            &slot,
        )
        .await;
        pair.database.execute(&many("t", 20_000, 2_000)).await;
        pair.on.catch_up(&pair.database).await;
        pair.off.catch_up(&pair.database).await;
        for (seen, opened) in seen.iter_mut().zip([&mut pair.on, &mut pair.off]) {
            let last = seen.last().map(|seen| seen.position);
            let more = opened.seen.drain(..);
            seen.extend(more.filter(|seen| Some(seen.position) > last));
            for seen in seen {
                seen.previous_commit = None;
            }
        }
        same(&seen[0], &seen[1]);
        assert_eq!(without_marks(&seen[0]).len(), 2_010, "PostgreSQL {major}");
        pair.on.close().await;
        pair.off.close().await;
    }
}

#[tokio::test]
async fn a_prepared_transaction_comes_when_it_is_committed() {
    for major in ENDS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let server = server(major).await;
        let mut pair = Pair::open(
            &server,
            "CREATE TABLE t (id bigint PRIMARY KEY, note text)",
            &["public.t"],
        )
        .await;
        let client = pair.database.client().await;
        for (gid, from) in [("kept", 0), ("gone", 10_000)] {
            run(&client, &format!("BEGIN; {}", many("t", from, 2_000))).await;
            run(&client, &format!("PREPARE TRANSACTION '{gid}'")).await;
        }
        pair.wait_streamed(2).await;
        pair.catch_up().await;
        assert!(without_marks(&pair.on.seen).is_empty());
        run(&client, "ROLLBACK PREPARED 'gone'").await;
        run(&client, "COMMIT PREPARED 'kept'").await;
        pair.catch_up().await;
        assert_eq!(
            without_marks(&pair.on.seen).len(),
            2_000,
            "PostgreSQL {major}"
        );
        pair.on.close().await;
        pair.off.close().await;
    }
}

//! The decoder over what real servers send, for every protocol version that they know.

use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::wait_for;
use lockstep_postgres::pgoutput::{Context, Message, Old, Tuple, Value, decode};
use tokio_postgres::Client;

use crate::harness::DEADLINE;
use crate::stream::MAJORS;

const TABLES: &str = "\
    CREATE TYPE mood AS ENUM ('sad', 'ok'); \
    CREATE TABLE t (id int PRIMARY KEY, v text, big text, m mood); \
    ALTER TABLE t ALTER big SET STORAGE EXTERNAL; \
    CREATE TABLE f (id int PRIMARY KEY, v text); ALTER TABLE f REPLICA IDENTITY FULL; \
    CREATE PUBLICATION p FOR TABLE t, f";

/// A slot, and the options of one way to read it. The log is only looked at, so several ways see the same.
struct Reading<'a> {
    client: &'a Client,
    slot: &'a str,
}

impl Reading<'_> {
    async fn new<'a>(client: &'a Client, slot: &'a str, two_phase: bool) -> Reading<'a> {
        let create =
            "SELECT pg_create_logical_replication_slot($1::text::name, 'pgoutput', false, $2)";
        client
            .query(create, &[&slot, &two_phase])
            .await
            .expect("a slot");
        // The least there is: transactions of more than that are streamed where the client asks for it.
        client
            .batch_execute("SET logical_decoding_work_mem = '64kB'")
            .await
            .expect("sets");
        Reading { client, slot }
    }

    async fn payloads(&self, options: &[&str]) -> Vec<Vec<u8>> {
        let options: Vec<String> = ["publication_names", "p", "messages", "true"]
            .iter()
            .chain(options)
            .map(|option| format!("'{option}'"))
            .collect();
        let sql = format!(
            "SELECT data FROM pg_logical_slot_peek_binary_changes('{}', NULL, NULL, {})",
            self.slot,
            options.join(", ")
        );
        let rows = self.client.query(&sql, &[]).await.expect("changes");
        rows.iter().map(|row| row.get(0)).collect()
    }
}

/// Every payload decoded, with the xid of a streamed one.
fn decode_all(payloads: &[Vec<u8>], parallel: bool) -> Vec<(Message<'_>, Option<u32>)> {
    let mut in_stream = false;
    let decode = |payload| {
        let context = Context {
            in_stream,
            parallel,
        };
        let (message, xid) =
            decode(payload, context).unwrap_or_else(|error| panic!("{error}: {payload:02x?}"));
        match message {
            Message::StreamStart { .. } => in_stream = true,
            Message::StreamStop => in_stream = false,
            _ => {}
        }
        (message, xid)
    };
    payloads.iter().map(Vec::as_slice).map(decode).collect()
}

/// The types of the messages: of several inserts behind each other only the first, and the pieces of a streamed
/// transaction as one.
fn kinds(payloads: &[Vec<u8>]) -> String {
    let mut kinds: Vec<u8> = payloads.iter().map(|payload| payload[0]).collect();
    kinds.dedup_by(|next, last| *next == b'I' && *last == b'I');
    String::from_utf8_lossy(&kinds)
        .replace("IESI", "I")
        .replace("ESI", "")
}

fn cells<'a>(tuple: &Tuple<'a>) -> Vec<Value<'a>> {
    tuple.values().collect()
}

async fn write_plain(database: &Database, origin: &Client) {
    for sql in [
        "BEGIN; INSERT INTO t VALUES (1, NULL, repeat('y', 10000), 'ok'); UPDATE t SET v = 'w'; \
         UPDATE t SET id = 2; DELETE FROM t; COMMIT",
        "INSERT INTO f VALUES (1, 'a')",
        "UPDATE f SET v = 'b'",
        "DELETE FROM f",
        "SELECT pg_logical_emit_message(true, 'x', 'inside')",
        "SELECT pg_logical_emit_message(false, 'x', 'out')",
        "TRUNCATE t, f RESTART IDENTITY CASCADE",
    ] {
        database.execute(sql).await;
    }
    let far = "BEGIN; SELECT pg_replication_origin_xact_setup('0/1234', now()); \
               INSERT INTO f VALUES (3, 'far'); COMMIT";
    origin.batch_execute(far).await.expect("writes");
}

/// Transactions that are too large to be held back: one with a savepoint rolled back, one rolled back whole.
async fn write_large(database: &Database) {
    let rows = |from: u32| {
        format!(
            "INSERT INTO t SELECT g, repeat('z', 100) FROM generate_series({from}, {}) g",
            from + 1999
        )
    };
    let savepoint = format!(
        "BEGIN; {}; SAVEPOINT a; {}; ROLLBACK TO a; INSERT INTO f VALUES (9, 'end'); COMMIT",
        rows(1),
        rows(3001)
    );
    database.execute(&savepoint).await;
    let whole = format!("BEGIN; {}; ROLLBACK", rows(6001));
    database.execute(&whole).await;
}

async fn write_prepared(database: &Database) {
    for sql in [
        "BEGIN; INSERT INTO f VALUES (21, 'p'); PREPARE TRANSACTION 'one'",
        "COMMIT PREPARED 'one'",
        "BEGIN; INSERT INTO f VALUES (22, 'p'); PREPARE TRANSACTION 'two'",
        "ROLLBACK PREPARED 'two'",
        "BEGIN; INSERT INTO t SELECT g, repeat('z', 100) FROM generate_series(9001, 11000) g; \
         PREPARE TRANSACTION 'three'",
        "COMMIT PREPARED 'three'",
    ] {
        database.execute(sql).await;
    }
}

const PLAIN: &str = "BYRIUUDCBRICBUCBDCBMCMBYRRTC";
const FAR: &str = "BORIC";

#[tokio::test]
async fn everything_that_every_version_sends() {
    for major in MAJORS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        // Prepared transactions would hold up the slots of other tests.
        let server = Postgres::start(PostgresOptions::new(major)).await;
        let database = server.database("decode").await;
        database.execute(TABLES).await;
        let (client, origin) = (database.client().await, database.client().await);
        let set_up = "SELECT pg_replication_origin_create('there'); \
                      SELECT pg_replication_origin_session_setup('there')";
        origin.batch_execute(set_up).await.expect("an origin");
        // A slot for two-phase decoding sends PREPAREs whatever the version asked for.
        let prepares = major >= 15;
        let reading = Reading::new(&client, "s", prepares).await;
        write_plain(&database, &origin).await;
        write_large(&database).await;
        if prepares {
            write_prepared(&database).await;
        }
        // Nobody waits for the log of a rollback to be written, and only what is written can be read.
        let written = "SELECT pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn()";
        wait_for(DEADLINE, "the log to be written", async || {
            database.value(written).await.as_deref() == Some("t")
        })
        .await;
        // Since 18 the server looks whether a transaction was rolled back before it streams it.
        let rolled_back = if major >= 18 { "" } else { "SYRIEA" };
        let (held, streamed) = match prepares {
            true => ("bIPKbIPrbIPK", "bIPKbIPrSYRIEpK"),
            false => ("", ""),
        };
        let whole = format!("{PLAIN}{FAR}BYRIC{held}");
        let pieces = format!("SYRIEASRIEc{rolled_back}{streamed}");
        let far = format!("{PLAIN}{FAR}{pieces}");

        let text = reading.payloads(&["proto_version", "1"]).await;
        assert_eq!(kinds(&text), whole, "PostgreSQL {major}");
        check_plain(&decode_all(&text, false), false);
        let binary = ["proto_version", "1", "binary", "true"];
        let binary = reading.payloads(&binary).await;
        assert_eq!(kinds(&binary), whole, "PostgreSQL {major}");
        check_plain(&decode_all(&binary, false), true);
        let two = ["proto_version", "2", "streaming", "on"];
        let two = reading.payloads(&two).await;
        assert_eq!(kinds(&two), far, "PostgreSQL {major}");
        check_streamed(&decode_all(&two, false), false);
        if major >= 15 {
            let three = ["proto_version", "3", "streaming", "on", "two_phase", "true"];
            let three = reading.payloads(&three).await;
            assert_eq!(kinds(&three), far, "PostgreSQL {major}");
            let all = decode_all(&three, false);
            check_streamed(&all, false);
            check_prepared(&all);
        }
        if major >= 16 {
            let four = [
                "proto_version",
                "4",
                "streaming",
                "parallel",
                "two_phase",
                "true",
                "origin",
                "none",
            ];
            let four = reading.payloads(&four).await;
            assert_eq!(
                kinds(&four),
                format!("{PLAIN}{pieces}"),
                "PostgreSQL {major}"
            );
            let all = decode_all(&four, true);
            check_streamed(&all, true);
            check_prepared(&all);
        }
    }
}

/// The contents behind `PLAIN` and `FAR`.
fn check_plain(all: &[(Message<'_>, Option<u32>)], binary: bool) {
    let number = |one: &'static [u8; 4], text: &'static str| match binary {
        true => Value::Binary(one),
        false => Value::Text(text.as_bytes()),
    };
    let text = |text: &'static str| match binary {
        true => Value::Binary(text.as_bytes()),
        false => Value::Text(text.as_bytes()),
    };
    let (one, two) = (number(&[0, 0, 0, 1], "1"), number(&[0, 0, 0, 2], "2"));
    let big = "y".repeat(10_000);
    let [
        (
            Message::Begin {
                commit_lsn, xid, ..
            },
            None,
        ),
        (
            Message::Type {
                name: b"mood",
                schema: b"public",
                ..
            },
            None,
        ),
        (Message::Relation(t), None),
        (
            Message::Insert {
                relation,
                new: inserted,
            },
            None,
        ),
        (
            Message::Update {
                old: None,
                new: updated,
                ..
            },
            None,
        ),
        (
            Message::Update {
                old: Some(Old::Key(old)),
                new: moved,
                ..
            },
            None,
        ),
        (
            Message::Delete {
                old: Old::Key(deleted),
                ..
            },
            None,
        ),
        (
            Message::Commit {
                commit_lsn: committed,
                end_lsn,
                ..
            },
            None,
        ),
        ..,
    ] = all
    else {
        panic!("{:?}", &all[..8])
    };
    assert_eq!((t.name, t.identity, t.oid), (&b"t"[..], b'd', *relation));
    let keys: Vec<bool> = t.columns().map(|column| column.identity).collect();
    assert_eq!(keys, [true, false, false, false]);
    assert!(commit_lsn == committed && end_lsn > committed && *xid > 0);
    let values = cells(inserted);
    assert_eq!(
        (values[0], values[1], values[3]),
        (one, Value::Null, text("ok"))
    );
    let (Value::Text(bytes) | Value::Binary(bytes)) = values[2] else {
        panic!("{:?}", values[2])
    };
    assert_eq!(bytes, big.as_bytes());
    assert_eq!(
        cells(updated),
        [one, text("w"), Value::Unchanged, text("ok")]
    );
    assert_eq!(cells(old), [one, Value::Null, Value::Null, Value::Null]);
    assert_eq!(cells(moved), [two, text("w"), Value::Unchanged, text("ok")]);
    assert_eq!(cells(deleted), [two, Value::Null, Value::Null, Value::Null]);

    let rest: Vec<_> = all[8..].iter().map(|(message, _)| *message).collect();
    let full: Vec<_> = rest
        .iter()
        .filter_map(|message| match message {
            Message::Update {
                old: Some(Old::Row(old)),
                new,
                ..
            } => Some((cells(old), cells(new))),
            Message::Delete {
                old: Old::Row(old), ..
            } => Some((cells(old), Vec::new())),
            _ => None,
        })
        .collect();
    let (a, b) = (vec![one, text("a")], vec![one, text("b")]);
    assert_eq!(full, [(a, b.clone()), (b, Vec::new())]);
    let messages: Vec<_> = rest
        .iter()
        .filter_map(|message| match message {
            Message::Logical {
                transactional,
                prefix,
                content,
                lsn,
            } => {
                assert!(*lsn > 0);
                Some((*transactional, *prefix, *content))
            }
            _ => None,
        })
        .collect();
    assert_eq!(
        messages,
        [(true, &b"x"[..], &b"inside"[..]), (false, b"x", b"out")]
    );
    assert!(rest.iter().any(|message| matches!(
        message,
        Message::Truncate { relations, cascade: true, restart_identity: true } if relations.iter().count() == 2
    )));
    let origin = Message::Origin {
        lsn: 0x1234,
        name: b"there",
    };
    assert!(rest.contains(&origin), "the origin");
}

/// The streamed transaction with a savepoint.
fn check_streamed(all: &[(Message<'_>, Option<u32>)], parallel: bool) {
    let start = all
        .iter()
        .position(|(message, _)| matches!(message, Message::StreamStart { .. }))
        .expect("a streamed transaction");
    let Message::StreamStart {
        xid: top,
        first: true,
    } = all[start].0
    else {
        panic!("{:?}", all[start])
    };
    let mut rows = std::collections::BTreeMap::new();
    for (message, xid) in &all[start + 1..] {
        match message {
            Message::StreamStart { xid, first } => assert_eq!((*xid, *first), (top, false)),
            Message::Insert { .. } => *rows.entry(xid.expect("an xid")).or_insert(0) += 1,
            Message::Relation(_) | Message::Type { .. } => assert!(xid.is_some()),
            Message::StreamAbort { xid, subxid, at } => {
                assert!(*xid == top && *subxid != top && at.is_some() == parallel);
                assert!(at.is_none_or(|(lsn, time)| lsn > 0 && time > 0));
                // Some of the part that was rolled back may never have been sent.
                assert!(rows.remove(subxid).is_some_and(|count| count > 0));
            }
            Message::StreamCommit {
                xid,
                commit_lsn,
                end_lsn,
                commit_time,
            } => {
                assert!(*xid == top && end_lsn > commit_lsn && *commit_time > 0);
                break;
            }
            _ => {}
        }
    }
    // What follows the savepoint is in a subtransaction of its own.
    assert_eq!(rows.values().sum::<i32>(), 2001, "{rows:?}");
}

fn check_prepared(all: &[(Message<'_>, Option<u32>)]) {
    let gids: Vec<(char, &[u8])> = all
        .iter()
        .filter_map(|(message, _)| match message {
            Message::BeginPrepare(prepared) => Some(('b', prepared.gid)),
            Message::Prepare(prepared) => {
                assert!(prepared.end_lsn > prepared.prepare_lsn && prepared.xid > 0);
                Some(('P', prepared.gid))
            }
            Message::StreamPrepare(prepared) => Some(('p', prepared.gid)),
            Message::CommitPrepared {
                gid,
                commit_lsn,
                end_lsn,
                ..
            } => {
                assert!(end_lsn > commit_lsn);
                Some(('K', *gid))
            }
            Message::RollbackPrepared {
                gid,
                prepare_end_lsn,
                rollback_end_lsn,
                ..
            } => {
                assert!(rollback_end_lsn > prepare_end_lsn);
                Some(('r', *gid))
            }
            _ => None,
        })
        .collect();
    let expected: [(char, &[u8]); 8] = [
        ('b', b"one"),
        ('P', b"one"),
        ('K', b"one"),
        ('b', b"two"),
        ('P', b"two"),
        ('r', b"two"),
        ('p', b"three"),
        ('K', b"three"),
    ];
    assert_eq!(gids, expected);
}

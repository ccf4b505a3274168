//! The stream: rows, keys, schema changes, progress, restarts.

use lockstep_core::batch::{OldImage, Op, Phase};
use lockstep_core::memory::Budget;
use lockstep_core::position::Lsn;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::wait_for;
use serde_json::json;
use tokio_postgres::Client;

use crate::harness::{DEADLINE, Opened, config, slot_name};

/// Every supported major, or the ones this machine has.
pub const MAJORS: [u16; 5] = [14, 15, 16, 17, 18];

async fn streaming(database: &Database, tables: &[&str], state: &tempfile::TempDir) -> Opened {
    Opened::open(
        &config(database.url(), tables, json!({ "snapshot": "never" })),
        state.path(),
    )
    .await
}

#[tokio::test]
async fn rows_of_every_kind_on_every_version() {
    for major in MAJORS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let database = Postgres::shared(major).await.database("kinds").await;
        database
            .execute(
                "CREATE TABLE t (b int, a text, v text, big text, PRIMARY KEY (b, a)); \
                 ALTER TABLE t ALTER big SET STORAGE EXTERNAL; \
                 CREATE TABLE f (id int PRIMARY KEY, v text, big text); \
                 ALTER TABLE f ALTER big SET STORAGE EXTERNAL; ALTER TABLE f REPLICA IDENTITY FULL",
            )
            .await;
        let state = tempfile::tempdir().expect("a directory");
        let mut opened = streaming(&database, &["public.t", "public.f"], &state).await;
        database
            .execute(
                "BEGIN; INSERT INTO t VALUES (1, 'x', NULL, repeat('y', 10000)); \
                 UPDATE t SET v = 'w'; UPDATE t SET a = 'z'; DELETE FROM t; COMMIT; \
                 INSERT INTO f VALUES (1, 'a', repeat('y', 10000)); UPDATE f SET v = 'b'; DELETE FROM f; \
                 TRUNCATE t, f; \
                 SELECT pg_logical_emit_message(true, 'p', 'inside')",
            )
            .await;
        database
            .execute("SELECT pg_logical_emit_message(false, 'p', 'out'); INSERT INTO f VALUES (2)")
            .await;
        let seen = opened.changes(12).await.to_vec();
        let ops: Vec<Op> = seen.iter().map(|seen| seen.op).collect();
        use Op::{Delete, Insert, Message, Truncate, Update};
        assert_eq!(
            ops[..9],
            [
                Insert, Update, Update, Delete, Insert, Update, Delete, Truncate, Truncate
            ],
            "PostgreSQL {major}"
        );
        assert_eq!(ops[9..], [Message, Message, Insert]);
        assert_eq!(seen[0].key, ["b", "a"], "key order, not table order");
        assert_eq!((seen[0].value("a"), seen[0].value("v")), ("x", "NULL"));
        assert_eq!((seen[1].value("v"), seen[1].value("big")), ("w", "~"));
        assert_eq!(seen[1].old_image, OldImage::None);
        assert_eq!(seen[2].old_image, OldImage::Key);
        assert_eq!(seen[2].old["a"].as_deref(), Some("x"));
        assert_eq!(
            (seen[3].old["a"].as_deref(), &seen[3].old["v"]),
            (Some("z"), &None)
        );
        assert_eq!(seen[5].old_image, OldImage::Full);
        assert_eq!(
            seen[5].value("big").len(),
            10_000,
            "FULL fills in the unchanged value"
        );
        assert_eq!(seen[9].value("content"), "inside");
        assert_eq!(seen[10].position.ordinal, 0, "outside any transaction");
        // One transaction, ordinals from 1; the next transactions have higher commits.
        let ordinals: Vec<u64> = seen[..4].iter().map(|seen| seen.position.ordinal).collect();
        assert_eq!(ordinals, [1, 2, 3, 4]);
        assert!(
            seen[..4]
                .iter()
                .all(|other| other.position.commit == seen[0].position.commit)
        );
        assert!(
            seen.windows(2)
                .all(|pair| pair[0].position < pair[1].position),
            "{seen:#?}"
        );
        assert!(seen.iter().all(|seen| seen.phase == Phase::Stream));
        opened.close().await;
    }
}

#[tokio::test]
async fn values_have_the_pinned_text_whatever_the_database_says() {
    let database = Postgres::shared(15).await.database("pinned").await;
    database
        .execute(&format!(
            "ALTER DATABASE \"{}\" SET DateStyle = 'German'; ALTER DATABASE \"{0}\" SET TimeZone = 'Asia/Kolkata'; \
             ALTER DATABASE \"{0}\" SET IntervalStyle = 'iso_8601'; ALTER DATABASE \"{0}\" SET bytea_output = 'escape'; \
             ALTER DATABASE \"{0}\" SET extra_float_digits = -10; \
             CREATE TABLE t (id int PRIMARY KEY, d date, z timestamptz, i interval, b bytea, f float8)",
            database.name()
        ))
        .await;
    let state = tempfile::tempdir().expect("a directory");
    database
        .execute("INSERT INTO t VALUES (1, '2024-02-29', '2024-02-29 12:00:00+02', '1 day 2 hours', '\\xdead', 0.1)")
        .await;
    let mut opened = Opened::open(
        &config(database.url(), &["public.t"], json!({})),
        state.path(),
    )
    .await;
    opened.changes(1).await;
    database
        .execute("INSERT INTO t SELECT 2, d, z, i, b, f FROM t")
        .await;
    let seen = opened.changes(2).await;
    for seen in seen {
        let got = ["d", "z", "i", "b", "f"].map(|column| seen.value(column).to_owned());
        assert_eq!(
            got,
            [
                "2024-02-29",
                "2024-02-29 10:00:00+00",
                "1 day 02:00:00",
                "\\xdead",
                "0.1"
            ],
            "{:?}",
            seen.op
        );
    }
    opened.close().await;
}

#[tokio::test]
async fn a_schema_change_in_mid_stream_applies_from_its_row_on() {
    let database = Postgres::shared(16).await.database("schema").await;
    database
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TYPE mood AS ENUM ('sad', 'ok')",
        )
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let mut opened = streaming(&database, &["public.t"], &state).await;
    database
        .execute(
            "BEGIN; INSERT INTO t VALUES (1, 'a'); ALTER TABLE t ADD COLUMN m mood DEFAULT 'ok'; \
             INSERT INTO t VALUES (2, 'b', 'sad'); ALTER TABLE t DROP COLUMN v; \
             INSERT INTO t VALUES (3, 'ok'); ALTER TABLE t RENAME COLUMN m TO n; INSERT INTO t VALUES (4, 'ok'); COMMIT",
        )
        .await;
    let seen = opened.changes(4).await;
    let columns: Vec<Vec<&str>> = seen
        .iter()
        .map(|seen| seen.new.keys().map(String::as_str).collect())
        .collect();
    assert_eq!(
        columns,
        [
            vec!["id", "v"],
            vec!["id", "m", "v"],
            vec!["id", "m"],
            vec!["id", "n"]
        ]
    );
    assert_eq!(seen[1].value("m"), "sad");
    opened.close().await;
}

#[tokio::test]
async fn partitions_arrive_under_their_root() {
    for major in [14, 18] {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let database = Postgres::shared(major).await.database("parts").await;
        database
            .execute(
                "CREATE TABLE p (id int, at int, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at); \
                 CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); \
                 CREATE TABLE p2 (v text, at int NOT NULL, id int NOT NULL); \
                 ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20); \
                 INSERT INTO p VALUES (1, 1, 'a'), (2, 12, 'b')",
            )
            .await;
        let state = tempfile::tempdir().expect("a directory");
        let mut opened = Opened::open(
            &config(database.url(), &["public.p"], json!({})),
            state.path(),
        )
        .await;
        let mut copied: Vec<(String, String)> = opened
            .changes(2)
            .await
            .iter()
            .map(|seen| (seen.value("id").into(), seen.value("v").into()))
            .collect();
        copied.sort();
        assert_eq!(copied, [("1".into(), "a".into()), ("2".into(), "b".into())]);
        // Into the partition with another column order, and across partitions: a delete and an insert.
        database
            .execute("INSERT INTO p VALUES (3, 13, 'c'); UPDATE p SET at = 15 WHERE id = 1")
            .await;
        let seen = opened.changes(5).await;
        assert!(
            seen.iter().all(|seen| seen.table == "public.p"),
            "{seen:#?}"
        );
        assert_eq!((seen[2].value("id"), seen[2].value("v")), ("3", "c"));
        assert_eq!((seen[3].op, seen[4].op), (Op::Delete, Op::Insert));
        opened.close().await;
    }
}

#[tokio::test]
async fn what_is_confirmed_does_not_come_again_and_the_rest_does() {
    let database = Postgres::shared(17).await.database("again").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let mut opened = streaming(&database, &["public.t"], &state).await;
    database.execute("INSERT INTO t VALUES (1)").await;
    opened.changes(1).await;
    // The end of the transaction may come by itself.
    while opened.through <= opened.seen[0].position.commit {
        opened.next().await.expect("the stream goes on");
    }
    let first = opened.through;
    database.execute("INSERT INTO t VALUES (2)").await;
    database.execute("INSERT INTO t VALUES (3)").await;
    opened.changes(3).await;
    let positions: Vec<_> = opened.seen.iter().map(|seen| seen.position).collect();
    opened.feedback.confirm(first);
    opened.close().await;
    let mut opened = streaming(&database, &["public.t"], &state).await;
    let again: Vec<_> = opened
        .changes(2)
        .await
        .iter()
        .map(|seen| seen.position)
        .collect();
    assert_eq!(
        again,
        positions[1..],
        "the same changes have the same positions"
    );
    opened.close().await;
}

#[tokio::test]
async fn an_idle_source_does_not_pin_the_log() {
    let database = Postgres::shared(15).await.database("idle").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (v text)")
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let mut opened = streaming(&database, &["public.t"], &state).await;
    database
        .execute("INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 5000)")
        .await;
    let here: Lsn = database
        .value("SELECT pg_current_wal_insert_lsn()::text")
        .await
        .expect("one")
        .parse()
        .expect("an LSN");
    let slot = slot_name(database.url());
    let feedback = opened.feedback.clone();
    let reader = tokio::spawn(async move {
        while opened.next().await.is_ok() {
            assert!(opened.seen.is_empty());
            opened.feedback.confirm(opened.through);
        }
    });
    wait_for(DEADLINE, "the slot to pass the unpublished changes", || async {
        let confirmed = database
            .value(&format!("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '{slot}'"))
            .await;
        confirmed.expect("a slot").parse::<Lsn>().expect("an LSN") >= here
    })
    .await;
    assert!(feedback.confirmed() >= here);
    reader.abort();
}

/// A server that gives up on a client after four silent seconds, and asks it after two; our own reports come every ten.
async fn impatient() -> Postgres {
    Postgres::start(PostgresOptions::new(15).set("wal_sender_timeout", "4s")).await
}

/// Waits until the server's only sender has heard from its client some timeouts later than now.
async fn stays_connected(client: &Client) {
    // The view would join pg_authid, which a test may have locked.
    let ask = "SELECT pid, extract(epoch FROM reply_time)::float8, extract(epoch FROM clock_timestamp())::float8 \
               FROM pg_stat_get_wal_senders()";
    let look = async || {
        let sender = client.query_one(ask, &[]).await.expect("a sender");
        (
            sender.get::<_, i32>(0),
            sender.get::<_, Option<f64>>(1),
            sender.get::<_, f64>(2),
        )
    };
    let (pid, _, start) = look().await;
    wait_for(DEADLINE, "answers for several timeouts", async || {
        let (now, heard, _) = look().await;
        assert_eq!(now, pid, "the same connection is still there");
        heard.is_some_and(|heard| heard > start + 8.0)
    })
    .await;
}

#[tokio::test]
async fn a_slow_reader_does_not_cost_the_connection() {
    let server = impatient().await;
    let database = server.database("slow").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await;
    let client = database.client().await;
    // Much more than fits the budget, the block and the socket: the server's questions are stuck behind it.
    let state = tempfile::tempdir().expect("a directory");
    let section = config(
        database.url(),
        &["public.t"],
        json!({ "snapshot": "never" }),
    );
    let mut opened = Opened::try_open_with(&section, state.path(), Budget::new(2 << 20))
        .await
        .expect("the source opens");
    database
        .execute("INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 50000) g")
        .await;
    stays_connected(&client).await;
    opened.changes(50_000).await;
    opened.feedback.confirm(opened.through);
    opened.close().await;
    // Two batches, of which one fits: the socket is dry, and the questions come alone.
    let mut opened = Opened::try_open_with(&section, state.path(), Budget::new(1))
        .await
        .expect("the source opens");
    database
        .execute("UPDATE t SET v = repeat('y', 2000) WHERE id = 1")
        .await;
    let sent = "SELECT pg_stat_get_wal_senders.sent_lsn >= pg_current_wal_lsn() FROM pg_stat_get_wal_senders()";
    let is_sent = async || {
        let row = client.query_opt(sent, &[]).await.expect("an answer");
        row.and_then(|row| row.get(0)).unwrap_or(false)
    };
    wait_for(DEADLINE, "the first to be sent", is_sent).await;
    database
        .execute("UPDATE t SET v = repeat('z', 2000) WHERE id = 1")
        .await;
    wait_for(DEADLINE, "the second to be sent", is_sent).await;
    stays_connected(&client).await;
    opened.changes(2).await;
    opened.close().await;
}

#[tokio::test]
async fn a_catalog_that_does_not_answer_does_not_cost_the_connection() {
    let server = impatient().await;
    let database = server.database("slow").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let url = format!("{}?connect_timeout=60", database.url());
    let section = config(&url, &["public.t"], json!({ "snapshot": "never" }));
    let mut opened = Opened::open(&section, state.path()).await;
    database.execute("INSERT INTO t VALUES (1)").await;
    opened.changes(1).await;
    let (client, changer) = (database.client().await, database.client().await);
    // Nobody can log in, and a new shape of the table has to be looked up.
    client
        .batch_execute("BEGIN; LOCK TABLE pg_catalog.pg_authid IN ACCESS EXCLUSIVE MODE")
        .await
        .expect("locks");
    changer
        .batch_execute("ALTER TABLE t ADD COLUMN v text; INSERT INTO t VALUES (2, 'new')")
        .await
        .expect("changes");
    stays_connected(&client).await;
    assert_eq!(opened.seen.len(), 1);
    client.batch_execute("ROLLBACK").await.expect("unlocks");
    assert_eq!(opened.changes(2).await[1].value("v"), "new");
    opened.close().await;
}

#[tokio::test]
async fn a_restarted_server_is_reported_as_unavailable() {
    let server = Postgres::start(PostgresOptions::new(15)).await;
    let database = server.database("gone").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let mut opened = streaming(&database, &["public.t"], &state).await;
    server.kill();
    let error = loop {
        if let Err(error) = opened.next().await {
            break error;
        }
    };
    assert_eq!(
        error.kind().policy(),
        lockstep_core::error::Policy::Retry,
        "{error}"
    );
}

#[tokio::test]
async fn a_small_transaction_goes_on_whole() {
    let database = Postgres::shared(15).await.database("whole").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let mut opened = streaming(&database, &["public.t"], &state).await;
    for id in 1..=20 {
        database
            .execute(&format!("INSERT INTO t VALUES ({id})"))
            .await;
        opened.changes(id).await;
        let last = opened.seen.last().expect("the row").position;
        assert!(
            opened.through > last.commit,
            "the commit is in the batch of its row"
        );
    }
    opened.close().await;
}

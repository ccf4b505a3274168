//! Which tables, rows and columns are published, and what identifies a row.

use std::collections::BTreeMap;

use lockstep_core::ErrorKind;
use lockstep_core::batch::{OldImage, Op};
use lockstep_core::check::Verdict;
use lockstep_core::source::SourceFactory;
use lockstep_kit::postgres::{Postgres, PostgresOptions};
use lockstep_kit::wait_for;
use lockstep_postgres::PostgresFactory;
use serde_json::json;

use crate::harness::{DEADLINE, Opened, Seen, config};

/// A row as `column=value`, in the order of the names.
fn row(values: &BTreeMap<String, Option<String>>) -> String {
    let cells: Vec<String> = values
        .iter()
        .map(|(name, value)| format!("{name}={}", value.as_deref().unwrap_or("NULL")))
        .collect();
    cells.join(" ")
}

/// The changes as `op new row`, or the old one where there is no new.
fn shown(seen: &[Seen]) -> Vec<String> {
    seen.iter()
        .map(|seen| match seen.op {
            Op::Delete => format!("Delete {}", row(&seen.old)),
            op => format!("{op:?} {}", row(&seen.new)),
        })
        .collect()
}

#[tokio::test]
async fn the_index_of_the_replica_identity_is_the_key() {
    let database = Postgres::shared(16).await.database("index").await;
    database
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text, a int NOT NULL, b int NOT NULL, UNIQUE (b, a)); \
             ALTER TABLE t REPLICA IDENTITY USING INDEX t_b_a_key; INSERT INTO t VALUES (1, 'copied', 2, 1)",
        )
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let mut opened = Opened::open(
        &config(database.url(), &["public.t"], json!({})),
        state.path(),
    )
    .await;
    opened.changes(1).await;
    for sql in ["UPDATE t SET id = 7", "UPDATE t SET a = 3", "DELETE FROM t"] {
        database.execute(sql).await;
    }
    let seen = opened.changes(4).await;
    assert!(seen.iter().all(|seen| seen.key == ["b", "a"]), "{seen:#?}");
    let images: Vec<OldImage> = seen.iter().map(|seen| seen.old_image).collect();
    assert_eq!(
        images,
        [OldImage::None, OldImage::None, OldImage::Key, OldImage::Key]
    );
    assert_eq!(row(&seen[2].old), "a=2 b=1 id=NULL v=NULL");
    assert_eq!(row(&seen[2].new), "a=3 b=1 id=7 v=copied");
    assert_eq!(row(&seen[3].old), "a=3 b=1 id=NULL v=NULL");
    opened.close().await;
}

#[tokio::test]
async fn tables_without_an_identity_are_refused_before_they_are_published() {
    let database = Postgres::shared(16).await.database("noid").await;
    let cases = [
        (
            "nothing",
            "id int PRIMARY KEY",
            "NOTHING",
            "REPLICA IDENTITY DEFAULT",
        ),
        ("nokey", "id int", "DEFAULT", "ADD PRIMARY KEY"),
        (
            "late",
            "id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED",
            "DEFAULT",
            "NOT DEFERRABLE",
        ),
        (
            "gone",
            "id int PRIMARY KEY, u int NOT NULL CONSTRAINT gone_u UNIQUE",
            "USING INDEX gone_u; ALTER TABLE gone DROP CONSTRAINT gone_u",
            "REPLICA IDENTITY DEFAULT",
        ),
    ];
    for (table, columns, identity, remedy) in cases {
        database
            .execute(&format!(
                "CREATE TABLE {table} ({columns}); ALTER TABLE {table} REPLICA IDENTITY {identity}"
            ))
            .await;
        let name = format!("public.{table}");
        // The publication that the first attempt makes must not be the next one's.
        let section = config(database.url(), &[&name], json!({ "publication": table }));
        let findings =
            PostgresFactory::preflight(&section, "p", "shop", std::path::Path::new("")).await;
        let finding = findings
            .iter()
            .find(|finding| finding.subject == format!("table {name}"))
            .expect("looked at");
        assert_eq!(finding.verdict, Verdict::Fail, "{finding:?}");
        assert!(
            finding
                .remedy
                .as_deref()
                .is_some_and(|text| text.contains(remedy)),
            "{finding:?}"
        );
        let state = tempfile::tempdir().expect("a directory");
        let error = Opened::try_open(&section, state.path())
            .await
            .err()
            .expect("refused");
        assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
        assert!(
            error.to_string().contains(&name) && error.to_string().contains(remedy),
            "{error}"
        );
        let published = format!("SELECT 1 FROM pg_publication WHERE pubname = '{table}'");
        assert_eq!(database.value(&published).await, None, "{table}");
    }
}

#[tokio::test]
async fn column_lists_and_row_filters_hold_for_the_copy_and_the_stream() {
    for major in [15, 18] {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let database = Postgres::shared(major).await.database("lists").await;
        database
            .execute(
                "CREATE TABLE t (secret text DEFAULT 's', v text, id int PRIMARY KEY); \
                 INSERT INTO t (id, v) VALUES (1, 'below'), (11, 'above'); \
                 CREATE PUBLICATION lockstep FOR TABLE t (id, v) WHERE (id > 10)",
            )
            .await;
        let state = tempfile::tempdir().expect("a directory");
        let mut opened = Opened::open(
            &config(database.url(), &["public.t"], json!({})),
            state.path(),
        )
        .await;
        opened.changes(1).await;
        for sql in [
            "INSERT INTO t (id, v) VALUES (2, 'below')",
            "INSERT INTO t (id, v) VALUES (12, 'above')",
            "UPDATE t SET id = 22 WHERE id = 2",
            "UPDATE t SET id = 3 WHERE id = 12",
            "UPDATE t SET secret = 'x', v = 'w' WHERE id = 11",
            "DELETE FROM t WHERE id = 3",
            "DELETE FROM t WHERE id = 11",
        ] {
            database.execute(sql).await;
        }
        opened.catch_up(&database).await;
        let rows: Vec<Seen> = opened
            .seen
            .iter()
            .filter(|seen| seen.op != Op::Message)
            .cloned()
            .collect();
        assert_eq!(
            shown(&rows),
            [
                "Read id=11 v=above",
                "Insert id=12 v=above",
                "Insert id=22 v=below",
                "Delete id=12 v=NULL",
                "Update id=11 v=w",
                "Delete id=11 v=NULL",
            ],
            "PostgreSQL {major}"
        );
        opened.close().await;
    }
}

#[tokio::test]
async fn generated_columns_are_sent_where_they_are_published() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(18));
    let ways = [
        (
            "FOR TABLE t WITH (publish_generated_columns = stored)",
            "g=2 id=1",
            "g=4 id=2",
        ),
        ("FOR TABLE t (g, id)", "g=2 id=1", "g=4 id=2"),
        ("FOR TABLE t", "id=1", "id=2"),
    ];
    for (publication, copied, streamed) in ways {
        let database = Postgres::shared(18).await.database("generated").await;
        database
            .execute(&format!(
                "CREATE TABLE t (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id * 2) STORED, \
                 w int GENERATED ALWAYS AS (id * 3) VIRTUAL); INSERT INTO t VALUES (1); \
                 CREATE PUBLICATION lockstep {publication}"
            ))
            .await;
        let state = tempfile::tempdir().expect("a directory");
        let mut opened = Opened::open(
            &config(database.url(), &["public.t"], json!({})),
            state.path(),
        )
        .await;
        opened.changes(1).await;
        database.execute("INSERT INTO t VALUES (2)").await;
        let seen = shown(opened.changes(2).await);
        let expected = [format!("Read {copied}"), format!("Insert {streamed}")];
        assert_eq!(seen, expected, "{publication}");
        opened.close().await;
    }
}

#[tokio::test]
async fn without_the_root_partitions_are_tables_of_their_own() {
    for major in [14, 18] {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let database = Postgres::shared(major).await.database("leaves").await;
        database
            .execute(
                "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); \
                 CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); \
                 CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20); \
                 INSERT INTO p VALUES (1, 'a'), (11, 'b'); CREATE PUBLICATION lockstep FOR TABLE p",
            )
            .await;
        let state = tempfile::tempdir().expect("a directory");
        let root = config(database.url(), &["public.p"], json!({}));
        let error = Opened::try_open(&root, state.path())
            .await
            .err()
            .expect("refused");
        assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
        assert!(
            error.to_string().contains("publish_via_partition_root"),
            "{error}"
        );
        let leaves = config(database.url(), &["public.p1", "public.p2"], json!({}));
        let mut opened = Opened::open(&leaves, state.path()).await;
        opened.changes(2).await;
        opened.seen.sort_by_key(|seen| seen.table.clone());
        database
            .execute(
                "INSERT INTO p VALUES (2, 'c'); UPDATE p SET id = 12 WHERE id = 1; TRUNCATE p2",
            )
            .await;
        let seen: Vec<(Op, String)> = opened
            .changes(6)
            .await
            .iter()
            .map(|seen| (seen.op, seen.table.clone()))
            .collect();
        let expected = [
            (Op::Read, "public.p1"),
            (Op::Read, "public.p2"),
            (Op::Insert, "public.p1"),
            (Op::Delete, "public.p1"),
            (Op::Insert, "public.p2"),
            (Op::Truncate, "public.p2"),
        ];
        let expected = expected.map(|(op, table)| (op, table.to_owned()));
        assert_eq!(seen, expected, "PostgreSQL {major}");
        opened.close().await;
    }
}

/// What a table sent before another one took its name is still that name's; what it sends afterwards is nobody's.
#[tokio::test]
async fn a_table_that_gave_its_name_away_is_told_apart_by_its_oid() {
    let database = Postgres::shared(16).await.database("swap").await;
    database
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text);
             CREATE PUBLICATION lockstep FOR ALL TABLES WITH (publish_via_partition_root = true)",
        )
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let section = config(
        database.url(),
        &["public.t"],
        json!({ "snapshot": "never" }),
    );
    Opened::open(&section, state.path()).await.close().await;
    for sql in [
        "INSERT INTO t VALUES (1, 'before')",
        "ALTER TABLE t RENAME TO t_old; CREATE TABLE t (v text, id int PRIMARY KEY)",
        "INSERT INTO t_old VALUES (2, 'nobody''s')",
        "INSERT INTO t VALUES ('after', 3)",
        "INSERT INTO t_old VALUES (4, 'nobody''s')",
        "INSERT INTO t VALUES ('after', 5)",
    ] {
        database.execute(sql).await;
    }
    // Nothing is confirmed: each time it begins before the exchange.
    for _ in 0..2 {
        let mut opened = Opened::open(&section, state.path()).await;
        opened.catch_up(&database).await;
        let inserted = opened.seen.iter().filter(|seen| seen.op == Op::Insert);
        let inserted: Vec<String> = inserted.map(|seen| row(&seen.new)).collect();
        assert_eq!(inserted, ["id=1 v=before", "id=3 v=after", "id=5 v=after"]);
        opened.close().await;
    }
}

/// A commit is streamed once it is on disk, and seen by others a moment later: the catalog shows the old name until then.
#[tokio::test]
async fn a_rename_that_nobody_sees_yet_is_waited_for() {
    lockstep_kit::require_own!(lockstep_kit::Component::Postgres(17));
    // The moment is as long as a standby takes that does not exist, for a session that waits for it.
    let options = PostgresOptions::new(17)
        .set("synchronous_standby_names", "nobody")
        .set("synchronous_commit", "local");
    let server = Postgres::start(options).await;
    let database = server.database("unseen").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let section = config(database.url(), &["public.t"], json!({}));
    let mut opened = Opened::open(&section, state.path()).await;
    database.execute("INSERT INTO t VALUES (1, 'a')").await;
    opened.catch_up(&database).await;
    let renamer = database.client().await;
    let rename = renamer.batch_execute(
        "SET synchronous_commit = on; \
         BEGIN; ALTER TABLE t RENAME TO u; INSERT INTO u VALUES (2, 'b'); COMMIT",
    );
    let release =
        async {
            wait_for(DEADLINE, "lockstep to look whether it sees it", async || {
            let sql = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'lockstep%' \
                AND query LIKE '%pg_current_snapshot%'";
            server.value(sql).await.ok_or("not yet")
        })
        .await;
            let sql =
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
            assert_eq!(server.value(sql).await.as_deref(), Some("t"));
        };
    let reads = async {
        loop {
            if let Err(error) = opened.next().await {
                return error;
            }
        }
    };
    let (error, renamed, ()) = tokio::join!(reads, rename, release);
    renamed.expect("renamed");
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    assert!(
        error.to_string().contains("was renamed to public.u"),
        "{error}"
    );
    let inserted = opened.seen.iter().filter(|seen| seen.op == Op::Insert);
    let inserted: Vec<&str> = inserted.map(|seen| seen.value("id")).collect();
    assert_eq!(inserted, ["1"]);
}

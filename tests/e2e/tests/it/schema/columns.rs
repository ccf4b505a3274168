//! Columns come, go, get other names and other types.

use std::collections::BTreeMap;

use lockstep_e2e::child::PATIENCE;
use lockstep_kit::Component::{
    Kafka as NeedsKafka, OpenSearch as NeedsOpenSearch, Postgres as NeedsPostgres,
    Redis as NeedsRedis,
};
use lockstep_kit::require;
use serde_json::Value;

use super::{Lab, names};

/// A change of the table, and whether its new state can be used in the same transaction.
const CHANGES: &[(&str, bool)] = &[
    ("ALTER TABLE t ADD COLUMN plain text", true),
    // No row is rewritten for the first two defaults; the third is another value for each row.
    (
        "ALTER TABLE t ADD COLUMN fixed int NOT NULL DEFAULT 7",
        true,
    ),
    (
        "ALTER TABLE t ADD COLUMN today date DEFAULT current_date",
        true,
    ),
    (
        "ALTER TABLE t ADD COLUMN each uuid DEFAULT gen_random_uuid()",
        true,
    ),
    (
        "ALTER TABLE t ADD COLUMN twice int GENERATED ALWAYS AS (n * 2) STORED",
        true,
    ),
    ("ALTER TABLE t RENAME COLUMN label TO title", true),
    ("ALTER TABLE t DROP COLUMN gone", true),
    ("ALTER TABLE t ALTER COLUMN wide TYPE bigint", true),
    ("ALTER TABLE t ALTER COLUMN code TYPE text", true),
    (
        "ALTER TABLE t ALTER COLUMN moment DROP DEFAULT, ALTER COLUMN moment TYPE timestamptz USING moment::timestamptz",
        true,
    ),
    ("ALTER TABLE t ALTER COLUMN price TYPE numeric(12, 4)", true),
    ("ALTER TYPE mood ADD VALUE 'elated'", false),
    ("ALTER TYPE mood RENAME VALUE 'calm' TO 'quiet'", true),
    ("ALTER TABLE t REPLICA IDENTITY FULL", true),
    (
        "ALTER TABLE t DROP COLUMN plain, ADD COLUMN plain int DEFAULT 3",
        true,
    ),
    ("ALTER TABLE t REPLICA IDENTITY DEFAULT", true),
];

const TABLE: &str = "CREATE TYPE mood AS ENUM ('calm', 'angry');
    CREATE TABLE t (id int PRIMARY KEY, label text, gone text DEFAULT 'g', wide int DEFAULT 1, code int DEFAULT 5, n int DEFAULT 4,
        moment varchar(40) DEFAULT '2024-05-06 07:08:09+00', price numeric(10, 2) DEFAULT 1.5, mood mood DEFAULT 'angry',
        big text);
    ALTER TABLE t ALTER COLUMN big SET STORAGE EXTERNAL;
    INSERT INTO t (id, big) SELECT n, repeat('x', 5000) FROM generate_series(1, 20) n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sinks_follow_every_change_of_columns_and_a_load_brings_the_rows_that_nobody_wrote() {
    require!(NeedsPostgres(17), NeedsRedis, NeedsKafka, NeedsOpenSearch);
    let lab = Lab::new(17, TABLE, &["public.t"], "").await;
    let mut pipeline = lab.setup.start_ready().await;
    pipeline.wait_streaming("shop").await;
    // By id: the names of the columns when the row was written.
    let mut expected: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    let mut id = 100;
    for (change, at_once) in CHANGES {
        let before = lab.columns("t").await;
        // Rows are written before, between and after, in one transaction and in others; what is large stays untouched.
        let (first, second, third) = (id, id + 1, id + 2);
        let insert = |id| format!("INSERT INTO t (id, big) VALUES ({id}, repeat('y', 5000))");
        let touch = |id| format!("UPDATE t SET n = n + 1 WHERE id = {id}");
        if *at_once {
            lab.database
                .execute(&format!(
                    "BEGIN; {}; {change}; {}; {}; {}; COMMIT",
                    insert(first),
                    insert(second),
                    touch(first),
                    touch(1 + id % 10)
                ))
                .await;
        } else {
            lab.database.execute(&insert(first)).await;
            lab.database.execute(change).await;
            lab.database.execute(&insert(second)).await;
        }
        lab.database.execute(&insert(third)).await;
        lab.database.execute(&touch(second)).await;
        let after = lab.columns("t").await;
        expected.extend([(first, before), (second, after.clone()), (third, after)]);
        id += 3;
    }
    lab.database
        .execute("UPDATE t SET wide = 9007199254740993, code = 'C-' || id, mood = 'elated' WHERE id >= 100")
        .await;
    lab.settle(&mut pipeline).await;

    let (flat, debezium, lines) = (
        lab.events("t").await,
        lab.debezium("t").await,
        lab.lines("t"),
    );
    for (id, columns) in &expected {
        let inserted = |row: &Value| row["id"] == *id;
        let one = flat
            .iter()
            .find(|one| one.op() == "c" && inserted(&one.value["row"]));
        assert_eq!(
            &names(&one.expect("an event").value["row"]),
            columns,
            "flat, {id}"
        );
        let one = lines
            .iter()
            .find(|one| one.op() == "c" && inserted(&one.value["row"]));
        assert_eq!(
            &names(&one.expect("a line").value["row"]),
            columns,
            "file, {id}"
        );
        let one = debezium
            .iter()
            .find(|one| one.op() == "c" && inserted(&one.value["after"]));
        assert_eq!(
            &names(&one.expect("an event").value["after"]),
            columns,
            "debezium, {id}"
        );
    }
    // Rows that were written since the last change are as they should be everywhere; the others are when they are loaded.
    let log = pipeline.log();
    assert!(log.contains("added columns to the mapping"), "{log}");
    assert!(
        log.contains("another type than its field, which is long: values that do not fit are kept"),
        "int to text\n{log}"
    );
    lab.load(&mut pipeline, "public.t", &[]).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    lab.assert_equal(&["public.t"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_reads_the_columns_there_are_although_no_row_has_passed_in_their_shape() {
    require!(NeedsPostgres(17), NeedsRedis, NeedsKafka, NeedsOpenSearch);
    let lab = Lab::new(17, TABLE, &["public.t"], "").await;
    let mut pipeline = lab.setup.start_ready().await;
    pipeline.wait_streaming("shop").await;
    lab.settle(&mut pipeline).await;
    for change in [
        "ALTER TABLE t ADD COLUMN fixed int NOT NULL DEFAULT 7",
        "ALTER TABLE t RENAME COLUMN label TO title; ALTER TABLE t DROP COLUMN gone",
        "ALTER TABLE t RENAME COLUMN id TO number",
    ] {
        lab.database.execute(change).await;
        lab.load(&mut pipeline, "public.t", &[]).await;
        let columns = lab.columns("t").await;
        let lines = lab.lines("t");
        let last = lines.last().expect("lines");
        assert_eq!(names(&last.value["row"]), columns, "{change}");
    }
    assert!(pipeline.terminate(PATIENCE).await.success());
    lab.assert_equal(&["public.t"]).await;
}

/// A row whose large value is unchanged, in a column that has another name by now: nobody holds it under that name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_value_of_a_renamed_column_is_told_and_loaded() {
    require!(NeedsPostgres(17), NeedsRedis, NeedsKafka, NeedsOpenSearch);
    let lab = Lab::new(17, TABLE, &["public.t"], "").await;
    let mut pipeline = lab.setup.start_ready().await;
    lab.database
        .execute("ALTER TABLE t RENAME COLUMN big TO huge; UPDATE t SET n = 9 WHERE id = 3")
        .await;
    lab.settle(&mut pipeline).await;
    let status = pipeline.status().await;
    for sink in ["json", "hash"] {
        assert_eq!(status["sinks"][sink]["incomplete"], 1, "{status:#}");
    }
    for sink in ["search", "embedded"] {
        assert_eq!(status["sinks"][sink]["dead_letters"], 1, "{status:#}");
    }
    lab.load(&mut pipeline, "public.t", &[]).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    let file = lab.setup.file().display().to_string();
    let shown = lab
        .setup
        .lockstep_with(&["dead-letters", "list", &file, "--format", "json"], &[])
        .await;
    assert!(
        shown.stdout.contains("lockstep snapshot"),
        "{}",
        shown.stdout
    );
    let discard = ["dead-letters", "discard", &file, "--all"];
    assert_eq!(lab.setup.lockstep_with(&discard, &[]).await.code(), Some(0));
    lab.assert_equal(&["public.t"]).await;
}

/// A field that cannot take what the column holds now: rows are put aside, and the way out is the one that is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_type_that_the_index_cannot_take_is_a_dead_letter_with_the_way_out() {
    require!(NeedsPostgres(17), NeedsRedis, NeedsKafka, NeedsOpenSearch);
    let sql = "CREATE TABLE t (id int PRIMARY KEY, doc text);
        INSERT INTO t SELECT n, '{\"n\": ' || n || '}' FROM generate_series(1, 5) n";
    let lab = Lab::new(17, sql, &["public.t"], "").await;
    let mut pipeline = lab.setup.start_ready().await;
    lab.database
        .execute("ALTER TABLE t ALTER COLUMN doc TYPE jsonb USING doc::jsonb; INSERT INTO t VALUES (6, '{\"n\": 6}')")
        .await;
    lab.settle(&mut pipeline).await;
    let log = pipeline.log();
    assert!(
        log.contains("which is text: values that do not fit are refused"),
        "{log}"
    );
    let status = pipeline.status().await;
    assert_eq!(status["sinks"]["search"]["dead_letters"], 1, "{status:#}");
    let file = lab.setup.file().display().to_string();
    let url = pipeline.url().await;
    let letters = [
        "dead-letters",
        "list",
        &*file,
        "--format",
        "json",
        "--url",
        &*url,
    ];
    let shown = lab.setup.lockstep_with(&letters, &[]).await;
    for word in ["mapping", "delete the index", "lockstep snapshot"] {
        assert!(shown.stdout.contains(word), "{word}: {}", shown.stdout);
    }
    // As it says.
    assert!(pipeline.terminate(PATIENCE).await.success());
    let index = format!("/{}-t", lab.name);
    let (code, body) = lab
        .search
        .request("DELETE", &index, "")
        .await
        .expect("an answer");
    assert_eq!(code, 200, "{body}");
    let mut pipeline = lab.setup.start_ready().await;
    lab.load(&mut pipeline, "public.t", &[]).await;
    let discard = [
        "dead-letters",
        "discard",
        &*file,
        "--all",
        "--url",
        &*pipeline.url().await,
    ];
    assert_eq!(lab.setup.lockstep_with(&discard, &[]).await.code(), Some(0));
    assert!(pipeline.terminate(PATIENCE).await.success());
    lab.assert_equal(&["public.t"]).await;
}

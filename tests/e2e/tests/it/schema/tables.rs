//! Tables get other names, are created anew, leave the publication, change their keys.

use lockstep_e2e::child::PATIENCE;
use lockstep_kit::Component::{
    Kafka as NeedsKafka, OpenSearch as NeedsOpenSearch, Postgres as NeedsPostgres,
    Redis as NeedsRedis,
};
use lockstep_kit::require;
use rustix::process::Signal;

use super::{Lab, names};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);
    INSERT INTO t SELECT n, 'v' || n FROM generate_series(1, 10) n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renamed_table_stops_the_pipeline_and_nothing_of_it_is_lost() {
    require!(NeedsPostgres(17), NeedsRedis, NeedsKafka, NeedsOpenSearch);
    let lab = Lab::new(17, TABLE, &["public.t"], "").await;
    let mut pipeline = lab.setup.start_ready().await;
    // No row comes: it is seen in the catalog. Renamed back, all is well.
    lab.database.execute("ALTER TABLE t RENAME TO u").await;
    pipeline
        .wait_unready(&[
            "table public.t",
            "was renamed to public.u",
            "rename it back",
        ])
        .await;
    lab.database.execute("ALTER TABLE u RENAME TO t").await;
    pipeline.wait_ready().await;
    // A swap and back between two rows.
    lab.database
        .execute("INSERT INTO t VALUES (11, 'a'); ALTER TABLE t RENAME TO u; INSERT INTO u VALUES (12, 'b'); ALTER TABLE u RENAME TO t")
        .await;
    lab.settle(&mut pipeline).await;
    lab.database
        .execute("BEGIN; INSERT INTO t VALUES (13, 'c'); ALTER TABLE t RENAME TO u; INSERT INTO u VALUES (14, 'd'); COMMIT")
        .await;
    let ended = lab.stops(pipeline).await;
    for word in [
        "LS006",
        "table public.t",
        "was renamed to public.u",
        "`tables`",
    ] {
        assert!(ended.error().contains(word), "{word}: {}", ended.error());
    }
    // Without a change of the file it stays so.
    let ended = lab.setup.start().ends().await;
    assert!(
        ended.error().contains("does not contain public.t"),
        "{}",
        ended.error()
    );
    lab.database.execute("INSERT INTO u VALUES (15, 'e')").await;
    lab.setup
        .change("tables = [\"public.t\"]", "tables = [\"public.u\"]");
    let mut pipeline = lab.setup.start_ready().await;
    lab.settle(&mut pipeline).await;
    assert_eq!(lab.inserted(&["t", "u"]), (11..=15).collect());
    lab.load(&mut pipeline, "public.u", &[]).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    lab.assert_equal(&["public.u"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_created_anew_is_added_emptied_and_loaded() {
    require!(NeedsPostgres(14), NeedsRedis, NeedsKafka, NeedsOpenSearch);
    let lab = Lab::new(14, TABLE, &["public.t"], "").await;
    let mut pipeline = lab.setup.start_ready().await;
    lab.settle(&mut pipeline).await;
    lab.database
        .execute("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, w int); INSERT INTO t VALUES (5, 55), (20, 200)")
        .await;
    lab.loads(&mut pipeline, "public.t").await;
    lab.database
        .execute("INSERT INTO t VALUES (21, 210); UPDATE t SET w = 1 WHERE id = 5")
        .await;
    lab.settle(&mut pipeline).await;
    pipeline.wait_ready().await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    lab.assert_equal(&["public.t"]).await;
    // The next start has nothing to load.
    let mut pipeline = lab.setup.start_ready().await;
    lab.settle(&mut pipeline).await;
    let (_, requests) = pipeline.get("/api/snapshot").await.expect("an answer");
    assert!(!requests.contains("public.t"), "{requests}");
    assert!(pipeline.terminate(PATIENCE).await.success());
}

/// Somebody else's publication, in which a pattern finds what it finds: it is not altered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_created_anew_is_a_gap_until_it_is_published() {
    require!(NeedsPostgres(16), NeedsRedis, NeedsKafka, NeedsOpenSearch);
    let sql = format!("{TABLE}; CREATE PUBLICATION lockstep FOR TABLE t");
    let lab = Lab::new(16, &sql, &["public.*"], "").await;
    let mut pipeline = lab.setup.start_ready().await;
    lab.settle(&mut pipeline).await;
    lab.database
        .execute("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, w int); INSERT INTO t VALUES (5, 55), (20, 200)")
        .await;
    let told = [
        "created anew",
        "not in the publication",
        "ALTER PUBLICATION",
        "ADD TABLE",
    ];
    pipeline.wait_unready(&told).await;
    let (_, metrics) = pipeline.get("/metrics").await.expect("an answer");
    assert!(
        metrics.contains("lockstep_source_gaps{source=\"shop\"} 1"),
        "{metrics}"
    );
    // As it says.
    lab.database
        .execute("ALTER PUBLICATION lockstep ADD TABLE public.t")
        .await;
    lab.loads(&mut pipeline, "public.t").await;
    pipeline.wait_ready().await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    lab.assert_equal(&["public.t"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_come_are_followed_and_loaded_without_a_restart() {
    require!(NeedsPostgres(17), NeedsRedis, NeedsKafka, NeedsOpenSearch);
    let lab = Lab::new(17, TABLE, &["public.*"], "").await;
    let mut pipeline = lab.setup.start_ready().await;
    let process = pipeline.id();
    lab.settle(&mut pipeline).await;
    // Rows before it is seen, while it is loaded, and after.
    lab.database
        .execute("CREATE TABLE late (id int PRIMARY KEY, v text); INSERT INTO late SELECT n, 'l' FROM generate_series(1, 3000) n")
        .await;
    for id in 3001..3100 {
        let sql = format!(
            "INSERT INTO late VALUES ({id}, 'more'); DELETE FROM late WHERE id = {}; UPDATE late SET v = 'u' WHERE id = {}",
            id - 3000,
            id - 2500
        );
        lab.database.execute(&sql).await;
    }
    lab.loads(&mut pipeline, "public.late").await;
    lab.database
        .execute("DELETE FROM late WHERE id % 7 = 0")
        .await;
    lab.settle(&mut pipeline).await;
    assert_eq!(pipeline.id(), process);
    assert!(pipeline.terminate(PATIENCE).await.success());
    lab.assert_equal(&["public.t", "public.late"]).await;
}

/// In a file that names its tables in full, a new one is a change of the file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_the_file_names_later_is_added_and_loaded() {
    require!(NeedsPostgres(15), NeedsRedis, NeedsKafka, NeedsOpenSearch);
    let sql = format!(
        "{TABLE}; CREATE TABLE more (id int PRIMARY KEY, v text); INSERT INTO more VALUES (1, 'm'), (2, 'm')"
    );
    let lab = Lab::new(15, &sql, &["public.t"], "").await;
    let mut pipeline = lab.setup.start_ready().await;
    lab.settle(&mut pipeline).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    lab.database
        .execute("DELETE FROM more WHERE id = 1; INSERT INTO more VALUES (3, 'm')")
        .await;
    lab.setup.change(
        "tables = [\"public.t\"]",
        "tables = [\"public.t\", \"public.more\"]",
    );
    let mut pipeline = lab.setup.start_ready().await;
    lab.loads(&mut pipeline, "public.more").await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    lab.assert_equal(&["public.t", "public.more"]).await;
    // While it runs, the file is read again.
    lab.database.execute("CREATE TABLE third (id int PRIMARY KEY, v text); INSERT INTO third VALUES (1, 't'), (2, 't')").await;
    let all = "tables = [\"public.t\", \"public.more\", \"public.third\"]";
    let mut pipeline = lab.setup.start_ready().await;
    let process = pipeline.id();
    lab.setup
        .change("tables = [\"public.t\", \"public.more\"]", all);
    pipeline.signal(Signal::HUP);
    lab.loads(&mut pipeline, "public.third").await;
    lab.database
        .execute("INSERT INTO third VALUES (3, 't'); INSERT INTO t VALUES (11, 't')")
        .await;
    lab.settle(&mut pipeline).await;
    assert_eq!(pipeline.id(), process);
    // What takes a restart is told, and changes nothing.
    lab.setup
        .change("number_of_replicas = 0", "number_of_replicas = 1");
    pipeline.signal(Signal::HUP);
    pipeline
        .until(PATIENCE, "a word about it", async |pipeline| {
            let log = pipeline.log();
            let told = log.contains("sinks.search changed, which takes a restart");
            told.then_some(()).ok_or(log)
        })
        .await;
    lab.setup
        .change("number_of_replicas = 1", "number_of_replicas = 0");
    pipeline.wait_ready().await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    lab.assert_equal(&["public.t", "public.more", "public.third"])
        .await;
    // Left out for a while, and back: what sinks hold of it is of no use.
    lab.setup.change(all, "tables = [\"public.t\"]");
    let mut pipeline = lab.setup.start_ready().await;
    lab.database.execute("DELETE FROM more WHERE id = 2").await;
    lab.settle(&mut pipeline).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    lab.setup.change(
        "tables = [\"public.t\"]",
        "tables = [\"public.t\", \"public.more\"]",
    );
    let mut pipeline = lab.setup.start_ready().await;
    lab.loads(&mut pipeline, "public.more").await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    lab.assert_equal(&["public.t", "public.more"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_publication_of_all_tables_the_new_table_is_followed_at_once() {
    require!(NeedsPostgres(17), NeedsRedis, NeedsKafka, NeedsOpenSearch);
    let sql = format!(
        "{TABLE}; CREATE PUBLICATION lockstep FOR ALL TABLES WITH (publish_via_partition_root = true)"
    );
    let lab = Lab::new(17, &sql, &["public.t"], "").await;
    let mut pipeline = lab.setup.start_ready().await;
    lab.database
        .execute(
            "BEGIN; INSERT INTO t VALUES (11, 'old'); DROP TABLE t; CREATE TABLE t (key text, id int PRIMARY KEY);
             INSERT INTO t VALUES ('new', 11), ('new', 12); COMMIT; UPDATE t SET key = 'newer' WHERE id = 12",
        )
        .await;
    lab.loads(&mut pipeline, "public.t").await;
    pipeline.wait_ready().await;
    let rows: Vec<String> = lab
        .events("t")
        .await
        .iter()
        .filter(|one| one.op() != "r" && one.op() != "t")
        .map(|one| one.value["row"].to_string())
        .collect();
    let expected = [
        r#"{"id":11,"v":"old"}"#,
        r#"{"key":"new","id":11}"#,
        r#"{"key":"new","id":12}"#,
        r#"{"key":"newer","id":12}"#,
    ];
    assert_eq!(rows, expected);
    // Nothing of the table before is left.
    assert!(pipeline.terminate(PATIENCE).await.success());
    lab.assert_equal(&["public.t"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_leaves_or_joins_the_publication_is_told() {
    require!(NeedsPostgres(17), NeedsRedis, NeedsKafka, NeedsOpenSearch);
    let sql = format!("{TABLE}; CREATE TABLE other (id int PRIMARY KEY)");
    let lab = Lab::new(17, &sql, &["public.*"], "").await;
    let mut pipeline = lab.setup.start_ready().await;
    lab.database
        .execute("ALTER PUBLICATION lockstep DROP TABLE t")
        .await;
    pipeline
        .wait_unready(&["table public.t", "not in the publication lockstep any more"])
        .await;
    lab.database
        .execute("INSERT INTO t VALUES (11, 'missed'); ALTER PUBLICATION lockstep ADD TABLE t")
        .await;
    pipeline.wait_ready().await;
    lab.load(&mut pipeline, "public.t", &[]).await;
    lab.database
        .execute("ALTER PUBLICATION lockstep SET (publish = 'insert')")
        .await;
    pipeline
        .wait_unready(&[
            "publication lockstep",
            "leaves out some operations",
            "SET (publish",
        ])
        .await;
    lab.database
        .execute("ALTER PUBLICATION lockstep SET (publish = 'insert, update, delete, truncate')")
        .await;
    pipeline.wait_ready().await;
    lab.database.execute("DROP TABLE other").await;
    lab.notice(&mut pipeline, &["table public.other", "was dropped"])
        .await;
    pipeline.wait_ready().await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    lab.assert_equal(&["public.t"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_key_is_told_and_a_truncate_and_a_load_bring_the_copies_to_it() {
    require!(NeedsPostgres(17), NeedsRedis, NeedsKafka, NeedsOpenSearch);
    let sql = "CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL UNIQUE, v text);
        INSERT INTO t SELECT n, 'c' || n, 'v' FROM generate_series(1, 10) n";
    let lab = Lab::new(17, sql, &["public.t"], "").await;
    let mut pipeline = lab.setup.start_ready().await;
    // Another name: rows stay where they are, Kafka's keys have the new name in them.
    lab.database
        .execute("ALTER TABLE t RENAME COLUMN id TO number; UPDATE t SET v = 'w'; INSERT INTO t VALUES (11, 'c11', 'v')")
        .await;
    lab.settle(&mut pipeline).await;
    lab.notice(&mut pipeline, &["keyed by (number) now and was by (id)"])
        .await;
    let events = lab.events("t").await;
    assert_eq!(names(&events.last().expect("events").key), ["number"]);
    pipeline.wait_ready().await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    lab.assert_equal(&["public.t"]).await;

    // Other columns, by way of the replica identity and of the primary key.
    let mut pipeline = lab.setup.start_ready().await;
    lab.database
        .execute(
            "BEGIN; UPDATE t SET v = 'x' WHERE number = 1; ALTER TABLE t REPLICA IDENTITY USING INDEX t_code_key;
             UPDATE t SET v = 'y' WHERE number = 1; COMMIT",
        )
        .await;
    lab.notice(
        &mut pipeline,
        &[
            "keyed by (code) now and was by (number)",
            "lockstep snapshot",
        ],
    )
    .await;
    lab.database
        .execute(
            "ALTER TABLE t REPLICA IDENTITY DEFAULT; ALTER TABLE t DROP CONSTRAINT t_pkey;
             ALTER TABLE t ADD PRIMARY KEY (code, number); UPDATE t SET v = 'z' WHERE number = 2",
        )
        .await;
    lab.settle(&mut pipeline).await;
    lab.notice(
        &mut pipeline,
        &["keyed by (code, number) now and was by (number)"],
    )
    .await;
    let last = lab.events("t").await.pop().expect("events");
    assert_eq!(names(&last.key), ["code", "number"]);
    lab.database
        .execute("ALTER TABLE t DROP CONSTRAINT t_pkey")
        .await;
    lab.notice(
        &mut pipeline,
        &["nothing to identify its rows by", "ADD PRIMARY KEY"],
    )
    .await;
    // As it says.
    lab.database
        .execute(
            "ALTER TABLE t ADD PRIMARY KEY (code, number); CREATE TABLE rows AS SELECT * FROM t;
             BEGIN; TRUNCATE t; INSERT INTO t SELECT * FROM rows; COMMIT",
        )
        .await;
    lab.settle(&mut pipeline).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    let mut pipeline = lab.setup.start_ready().await;
    lab.load(&mut pipeline, "public.t", &[]).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    lab.assert_equal(&["public.t"]).await;
}

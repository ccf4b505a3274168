//! Wrong set-ups end in an error that names place, cause and remedy.

use std::path::Path;

use lockstep_core::ErrorKind;
use lockstep_core::batch::Op;
use lockstep_core::check::Verdict;
use lockstep_core::error::Policy;
use lockstep_core::source::SourceFactory;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_postgres::PostgresFactory;
use serde_json::{Value, json};

use crate::harness::{Opened, config, slot_name};

async fn refusal(database: &Database, tables: &[&str], more: Value) -> lockstep_core::Error {
    let state = tempfile::tempdir().expect("a directory");
    match Opened::try_open(&config(database.url(), tables, more), state.path()).await {
        Ok(_) => panic!("opened"),
        Err(error) => {
            assert!(error.remedy_text().is_some(), "no remedy: {error}");
            error
        }
    }
}

#[tokio::test]
async fn wal_level_replica() {
    let server = Postgres::start(PostgresOptions::new(15).set("wal_level", "replica")).await;
    let database = server.database("replica").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await;
    let error = refusal(&database, &["public.t"], json!({})).await;
    assert_eq!(error.kind(), ErrorKind::Setup);
    assert!(
        error.to_string().contains("wal_level = 'logical'"),
        "{error}"
    );
    let findings = PostgresFactory::preflight(
        &config(database.url(), &["public.t"], json!({})),
        "p",
        "shop",
        Path::new(""),
    )
    .await;
    let wal = findings
        .iter()
        .find(|finding| finding.subject == "wal_level")
        .expect("looked at");
    assert_eq!(wal.verdict, Verdict::Fail);
}

#[tokio::test]
async fn tables_that_cannot_be_identified_or_do_not_exist() {
    let database = Postgres::shared(15).await.database("nokey").await;
    database
        .execute("CREATE TABLE nokey (v text); CREATE TABLE fine (id int PRIMARY KEY)")
        .await;
    let error = refusal(&database, &["public.nokey"], json!({})).await;
    assert_eq!(error.kind(), ErrorKind::Setup);
    assert!(
        error.to_string().contains("public.nokey") && error.to_string().contains("PRIMARY KEY"),
        "{error}"
    );
    let error = refusal(
        &database,
        &["public.orders"],
        json!({ "publication": "p2" }),
    )
    .await;
    assert!(
        error.to_string().contains("public.fine"),
        "lists the tables there are: {error}"
    );
}

#[tokio::test]
async fn a_publication_is_never_altered() {
    let database = Postgres::shared(15).await.database("publ").await;
    database
        .execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE PUBLICATION lockstep FOR TABLE a")
        .await;
    let error = refusal(&database, &["public.a", "public.b"], json!({})).await;
    assert!(
        error
            .to_string()
            .contains("ALTER PUBLICATION \"lockstep\" ADD TABLE public.b"),
        "{error}"
    );
    database.execute("DROP PUBLICATION lockstep; CREATE PUBLICATION lockstep FOR TABLE a, b WITH (publish = 'insert')").await;
    let error = refusal(&database, &["public.a"], json!({})).await;
    assert!(error.to_string().contains("SET (publish ="), "{error}");
}

#[tokio::test]
async fn missing_rights() {
    let server = Postgres::shared(15).await;
    let database = server.database("rights").await;
    let role = format!("weak_{}", database.name());
    database
        .execute(&format!(
            "CREATE TABLE t (id int PRIMARY KEY); CREATE ROLE \"{role}\" LOGIN"
        ))
        .await;
    let (_, address) = database.url().split_once('@').expect("a user");
    let url = format!("postgres://{role}@{address}");
    let state = tempfile::tempdir().expect("a directory");
    let error = Opened::try_open(&config(&url, &["public.t"], json!({})), state.path())
        .await
        .err()
        .expect("refused");
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    let findings = PostgresFactory::preflight(
        &config(&url, &["public.t"], json!({})),
        "p",
        "shop",
        Path::new(""),
    )
    .await;
    let failed: Vec<&str> = findings
        .iter()
        .filter(|f| f.verdict == Verdict::Fail)
        .map(|f| f.subject.as_str())
        .collect();
    assert!(failed.contains(&"REPLICATION right"), "{findings:#?}");
    database
        .execute(&format!("ALTER ROLE \"{role}\" REPLICATION"))
        .await;
    let error = Opened::try_open(&config(&url, &["public.t"], json!({})), state.path())
        .await
        .err()
        .expect("refused");
    assert_eq!(error.kind(), ErrorKind::Permission);
    assert!(error.to_string().contains("CREATE PUBLICATION"), "{error}");
}

/// Its changes come by the log, whatever the policies hide: a copy without them would be wrong, and nobody would know.
#[tokio::test]
async fn rows_that_policies_hide_are_not_left_out_in_silence() {
    let server = Postgres::shared(15).await;
    let database = server.database("policies").await;
    let role = format!("hidden_{}", database.name());
    database
        .execute(&format!(
            "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2);
             ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON t USING (id = 1);
             CREATE PUBLICATION lockstep FOR TABLE t;
             CREATE ROLE \"{role}\" LOGIN REPLICATION; GRANT SELECT ON t TO \"{role}\""
        ))
        .await;
    let (_, address) = database.url().split_once('@').expect("a user");
    let config = config(
        &format!("postgres://{role}@{address}"),
        &["public.t"],
        json!({}),
    );
    let state = tempfile::tempdir().expect("a directory");
    let mut opened = Opened::open(&config, state.path()).await;
    let error = loop {
        if let Err(error) = opened.next().await {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    assert!(error.to_string().contains("BYPASSRLS"), "{error}");
    database
        .execute(&format!("ALTER ROLE \"{role}\" BYPASSRLS"))
        .await;
    let mut opened = Opened::open(&config, state.path()).await;
    while opened
        .seen
        .iter()
        .filter(|seen| seen.op == Op::Read)
        .count()
        < 2
    {
        opened.next().await.expect("it goes on");
    }
    opened.close().await;
}

#[tokio::test]
async fn nobody_there_and_no_such_database() {
    let database = Postgres::shared(15).await.database("none").await;
    let state = tempfile::tempdir().expect("a directory");
    let nobody = config("postgres://u@127.0.0.1:1/d", &["public.t"], json!({}));
    let error = Opened::try_open(&nobody, state.path())
        .await
        .err()
        .expect("refused");
    assert_eq!(
        (error.kind(), error.kind().policy()),
        (ErrorKind::Unavailable, Policy::Retry)
    );
    let url = format!("{}_nope", database.url());
    let error = Opened::try_open(&config(&url, &["public.t"], json!({})), state.path())
        .await
        .err()
        .expect("refused");
    assert_eq!(error.kind(), ErrorKind::Setup);
    assert!(error.to_string().contains("database"), "{error}");
}

#[tokio::test]
async fn a_slot_in_use_a_lost_one_and_a_foreign_one() {
    let database = Postgres::shared(17).await.database("slots").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let section = config(database.url(), &["public.t"], json!({}));
    let mut opened = Opened::open(&section, state.path()).await;
    opened.catch_up(&database).await;
    opened.feedback.confirm(opened.through);
    let error = Opened::try_open(&section, state.path())
        .await
        .err()
        .expect("refused");
    assert_eq!(
        (error.kind(), error.kind().policy()),
        (ErrorKind::Busy, Policy::Retry),
        "{error}"
    );
    opened.close().await;

    let slot = slot_name(database.url());
    database
        .execute(&format!("SELECT pg_drop_replication_slot('{slot}')"))
        .await;
    let error = Opened::try_open(&section, state.path())
        .await
        .err()
        .expect("refused");
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert!(error.to_string().contains("on_slot_lost"), "{error}");

    database
        .execute(&format!(
            "SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"
        ))
        .await;
    let error = Opened::try_open(&section, state.path())
        .await
        .err()
        .expect("refused");
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    database
        .execute(&format!("SELECT pg_drop_replication_slot('{slot}')"))
        .await;

    let section = config(
        database.url(),
        &["public.t"],
        json!({ "snapshot": "when_needed" }),
    );
    let mut opened = Opened::open(&section, state.path()).await;
    database.execute("INSERT INTO t VALUES (1)").await;
    let ops: Vec<Op> = opened.changes(2).await.iter().map(|seen| seen.op).collect();
    assert_eq!(ops, [Op::Truncate, Op::Insert]);
    opened.close().await;
}

#[tokio::test]
async fn prepared_transactions_are_named_instead_of_waited_for() {
    let server = Postgres::start(PostgresOptions::new(15)).await;
    let database = server.database("prep").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await;
    database
        .execute("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'left behind'")
        .await;
    let error = refusal(&database, &["public.t"], json!({})).await;
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("left behind"), "{error}");
    database.execute("COMMIT PREPARED 'left behind'").await;
    let state = tempfile::tempdir().expect("a directory");
    let mut opened = Opened::open(
        &config(database.url(), &["public.t"], json!({})),
        state.path(),
    )
    .await;
    opened.changes(1).await;
    opened.close().await;
}

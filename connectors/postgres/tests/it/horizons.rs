//! What is known of where in the log rows were written.

use std::path::Path;

use lockstep_core::position::Lsn;
use lockstep_core::source::{CheckRequest, CheckRows, Checked, Purpose};
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::{Component, require_own};
use serde_json::json;

use crate::harness::{DEADLINE, Opened, config};

/// Sends rows to be compared, and reads on until they have come.
async fn check(opened: &mut Opened, purpose: Purpose, rows: CheckRows) -> Checked {
    let checks = opened.source.checks().expect("rows can be compared");
    let request = CheckRequest {
        number: 1,
        purpose,
        table: "public.t".into(),
        rows,
        condition: None,
        sample: None,
    };
    let mut checked = std::pin::pin!(checks.check(request));
    let answer = async {
        loop {
            tokio::select! {
                checked = &mut checked => return checked.expect("checked"),
                next = opened.next() => next.expect("the stream goes on"),
            }
        }
    };
    tokio::time::timeout(DEADLINE, answer)
        .await
        .expect("in time")
}

/// The place behind which each of these rows was written, as far as it is known.
async fn changed_after(opened: &mut Opened, ids: &[&str]) -> Vec<Option<Lsn>> {
    let keys = ids.iter().map(|id| vec![(*id).to_owned()]).collect();
    let checked = check(opened, Purpose::Compare, CheckRows::Keys(keys)).await;
    assert_eq!(checked.unsteady, Vec::<Vec<String>>::new());
    let place = |id: &&str| {
        let mut keys = checked.keys.iter();
        let at = keys.position(|key| key[0] == **id).expect("all are told");
        checked.changed_after[at]
    };
    ids.iter().map(place).collect()
}

async fn lsn(database: &Database, expression: &str) -> Lsn {
    let text = database
        .value(&format!("SELECT ({expression})::text"))
        .await;
    text.expect("a place").parse().expect("an LSN")
}

const NOW: &str = "pg_current_wal_insert_lsn()";
const REDO: &str = "SELECT redo_lsn FROM pg_control_checkpoint()";

/// Changes a row, and tells of the commit by the stream.
async fn update(opened: &mut Opened, database: &Database, id: &str) -> Lsn {
    let statement = format!("UPDATE t SET v = v + 1 WHERE id = {id}");
    database.execute(&statement).await;
    opened.catch_up(database).await;
    let mut seen = opened.seen.iter().rev();
    let last = seen.find(|seen| seen.key == ["id"] && seen.value("id") == id);
    last.expect("it has come").position.commit
}

async fn open(database: &Database, state: &Path) -> Opened {
    let more = json!({"snapshot": "never"});
    Opened::open(&config(database.url(), &["public.t"], more), state).await
}

#[tokio::test]
async fn rows_are_known_to_be_written_behind_checkpoints_and_fences() {
    require_own!(Component::Postgres(17));
    let server = Postgres::start(PostgresOptions::new(17)).await;
    let database = server.database("horizons").await;
    // Partitions have rows with numbers of transactions as other tables do.
    database
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL DEFAULT 0) PARTITION BY RANGE (id); \
             CREATE TABLE t_low PARTITION OF t FOR VALUES FROM (0) TO (2); \
             CREATE TABLE t_high PARTITION OF t FOR VALUES FROM (2) TO (1000); \
             INSERT INTO t VALUES (1)",
        )
        .await;
    let before = lsn(&database, NOW).await;
    database.execute("CHECKPOINT").await;
    let redo = lsn(&database, REDO).await;
    database.execute("INSERT INTO t VALUES (2)").await;
    let state = tempfile::tempdir().expect("a directory");
    let mut opened = open(&database, state.path()).await;
    let ids = ["1", "2", "3"];
    // It is asked for while the source opens.
    let asked = async {
        loop {
            let told = changed_after(&mut opened, &ids).await;
            if told[1].is_some() {
                return told;
            }
        }
    };
    let told = tokio::time::timeout(DEADLINE, asked).await;
    let told = told.expect("a checkpoint in time");
    assert!(redo >= before);
    assert_eq!(
        told,
        [None, Some(redo), None],
        "written before it, behind it, never"
    );

    // A fence tells of what comes behind it what had come before it.
    let first = update(&mut opened, &database, "1").await;
    let fence = check(&mut opened, Purpose::Compare, CheckRows::Behind(None)).await;
    assert!(fence.changed_after.is_empty() && fence.keys.len() == 2);
    let second = update(&mut opened, &database, "1").await;
    assert!(first < fence.fence && fence.fence < second);
    let told = changed_after(&mut opened, &ids).await;
    let after = told[0].expect("a fence came before");
    assert!(first <= after && after < second, "{first} {after} {second}");
    assert_eq!((told[1], told[2]), (Some(redo), None));

    // So does a subtransaction, which has a number of its own; and what only locks a row writes nothing.
    let third = {
        let statement = "BEGIN; SAVEPOINT a; UPDATE t SET v = 9 WHERE id = 1; RELEASE a; COMMIT; \
            BEGIN; SELECT FROM t WHERE id = 2 FOR UPDATE; COMMIT";
        database.execute(statement).await;
        lsn(&database, NOW).await
    };
    opened.catch_up(&database).await;
    let told = changed_after(&mut opened, &ids).await;
    let after = told[0].expect("known");
    assert!(second <= after && after < third, "{second} {after} {third}");
    assert_eq!(told[1], Some(redo));

    // Written to be mended, nobody has to know.
    let keys = CheckRows::Keys(vec![vec!["1".into()]]);
    let repair = check(&mut opened, Purpose::Repair, keys).await;
    assert_eq!((repair.keys.len(), repair.changed_after), (1, vec![]));

    // What is known outlives the process.
    opened.feedback.confirm(opened.through);
    opened.close().await;
    let mut opened = open(&database, state.path()).await;
    let again = changed_after(&mut opened, &ids).await;
    assert_eq!(again, told);
    opened.close().await;
}

/// Without the right to ask for checkpoints there are fences.
#[tokio::test]
async fn who_may_not_ask_for_checkpoints_knows_by_fences() {
    require_own!(Component::Postgres(15));
    let server = Postgres::start(PostgresOptions::new(15)).await;
    let database = server.database("horizons").await;
    let name = database.name();
    database
        .execute(&format!(
            "REVOKE EXECUTE ON FUNCTION pg_control_checkpoint() FROM PUBLIC; \
             CREATE ROLE reader LOGIN REPLICATION; \
             CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL DEFAULT 0); \
             ALTER TABLE t OWNER TO reader; GRANT ALL ON DATABASE \"{name}\" TO reader",
        ))
        .await;
    database.execute("INSERT INTO t VALUES (1)").await;
    let state = tempfile::tempdir().expect("a directory");
    let url = database.url().replacen("postgres@", "reader@", 1);
    assert_ne!(url, database.url());
    let section = config(&url, &["public.t"], json!({"snapshot": "never"}));
    let mut opened = Opened::open(&section, state.path()).await;
    let told = changed_after(&mut opened, &["1"]).await;
    assert_eq!(told, [None], "written before the stream began");
    let first = update(&mut opened, &database, "1").await;
    changed_after(&mut opened, &["1"]).await;
    let second = update(&mut opened, &database, "1").await;
    let told = changed_after(&mut opened, &["1"]).await;
    let after = told[0].expect("known by a fence");
    assert!(first <= after && after < second, "{first} {after} {second}");
    opened.close().await;
}

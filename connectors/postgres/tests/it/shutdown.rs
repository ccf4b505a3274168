//! Servers that shut down: they are not kept from it by what cannot be confirmed, and nothing of it is lost.

use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::{Component, require_own, wait_for};
use serde_json::json;

use crate::copy::retry_open;
use crate::harness::{DEADLINE, Opened, config};

const TABLE: &str = "CREATE TABLE t (id bigint PRIMARY KEY, note text)";

async fn database(server: &Postgres) -> Database {
    let database = server.database("shutdown").await;
    database.execute(TABLE).await;
    database
}

/// Reads on until the source ends.
async fn ended(opened: &mut Opened) -> String {
    loop {
        if let Err(error) = opened.next().await {
            return error.to_string();
        }
    }
}

/// What is read after `server` is there again.
async fn ids_again(
    server: &Postgres,
    section: &lockstep_postgres::PostgresConfig,
    state: &std::path::Path,
    database: &Database,
) -> Vec<String> {
    server.restart().await;
    let mut opened = retry_open(section, state).await;
    database.execute("INSERT INTO t VALUES (100, 'last')").await;
    opened.catch_up(database).await;
    let rows = opened.seen.iter().filter(|seen| seen.table == "public.t");
    let ids = rows.map(|seen| seen.value("id").to_owned()).collect();
    opened.close().await;
    ids
}

/// Nobody can end a prepared transaction where nobody can log in: the server would wait for ever.
#[tokio::test]
async fn what_is_in_doubt_keeps_no_server_from_it() {
    require_own!(Component::Postgres(17));
    let server = Postgres::start(PostgresOptions::new(17)).await;
    let database = database(&server).await;
    let state = tempfile::tempdir().expect("a directory");
    let more = json!({"two_phase": true, "snapshot": "never"});
    let section = config(database.url(), &["public.t"], more);
    let mut opened = Opened::open(&section, state.path()).await;
    database
        .execute("BEGIN; INSERT INTO t VALUES (1, 'in doubt'); PREPARE TRANSACTION 'one'")
        .await;
    database.execute("INSERT INTO t VALUES (2, 'there')").await;
    opened.catch_up(&database).await;
    opened.feedback.confirm(opened.through);
    let (in_order, said) = tokio::join!(server.stop(), ended(&mut opened));
    assert!(said.contains("the server shuts down"), "{said}");
    assert!(in_order, "it had to be stopped by force");
    opened.close().await;
    server.restart().await;
    database.execute("COMMIT PREPARED 'one'").await;
    let ids = ids_again(&server, &section, state.path(), &database).await;
    assert_eq!(ids, ["2", "1", "100"]);
}

/// Nor does what no sink has taken, also where there is no room to read on.
#[tokio::test]
async fn a_sink_that_is_away_keeps_no_server_from_it() {
    require_own!(Component::Postgres(17));
    let server = Postgres::start(PostgresOptions::new(17)).await;
    for rows in [3, 20_000] {
        let database = database(&server).await;
        let state = tempfile::tempdir().expect("a directory");
        let section = config(database.url(), &["public.t"], json!({"snapshot": "never"}));
        let budget = lockstep_core::memory::Budget::new(64 << 10);
        let mut opened = Opened::try_open_with(&section, state.path(), budget)
            .await
            .expect("the source opens");
        // Who has confirmed nothing is not waited for.
        opened.catch_up(&database).await;
        opened.feedback.confirm(opened.through);
        let ask = "SELECT flush_lsn FROM pg_stat_replication WHERE flush_lsn >=";
        let ask = format!("{ask} '{}'", opened.through);
        wait_for(DEADLINE, "the confirmation", async || {
            database.value(&ask).await.ok_or("not told yet")
        })
        .await;
        database
            .execute(&format!(
                "INSERT INTO t SELECT 200 + n, repeat('x', 100) FROM generate_series(1, {rows}) n"
            ))
            .await;
        while opened.seen.is_empty() {
            opened.next().await.expect("the stream goes on");
        }
        assert!(server.stop().await, "it had to be stopped by force: {rows}");
        let said = ended(&mut opened).await;
        assert!(said.contains("the server shuts down"), "{rows}: {said}");
        opened.close().await;
        let ids = ids_again(&server, &section, state.path(), &database).await;
        assert_eq!(ids.len(), rows + 1, "{rows}");
    }
}

/// What can be confirmed is: the server has been told of all of it when it is down.
#[tokio::test]
async fn a_server_with_nothing_in_doubt_has_been_told_all() {
    require_own!(Component::Postgres(17));
    let server = Postgres::start(PostgresOptions::new(17)).await;
    let database = database(&server).await;
    let state = tempfile::tempdir().expect("a directory");
    let section = config(database.url(), &["public.t"], json!({"snapshot": "never"}));
    let mut opened = Opened::open(&section, state.path()).await;
    database.execute("INSERT INTO t VALUES (1, 'there')").await;
    opened.catch_up(&database).await;
    let feedback = opened.feedback.clone();
    let told = async {
        loop {
            feedback.confirm(opened.through);
            if let Err(error) = opened.next().await {
                return error.to_string();
            }
        }
    };
    let (in_order, said) = tokio::join!(server.stop(), told);
    assert!(!said.contains("the server shuts down"), "{said}");
    assert!(in_order, "it had to be stopped by force");
    opened.close().await;
    let ids = ids_again(&server, &section, state.path(), &database).await;
    assert_eq!(ids, ["100"]);
}

//! `deploy/postgresql/role.sql`: its role can do what a pipeline needs, and nothing else.

use std::path::Path;
use std::process::Command;

use lockstep_e2e::Setup;
use lockstep_e2e::child::PATIENCE;
use lockstep_kit::Component::{Postgres as NeedsPostgres, Redis as NeedsRedis};
use lockstep_kit::postgres::Postgres;
use lockstep_kit::redis::Redis;
use lockstep_kit::{require, unique};

use crate::reconcile::equal;
use crate::support::{cache, end_of_log, files, source};

/// What the role must not be able to do.
const BEYOND: [&str; 8] = [
    "INSERT INTO t VALUES (7)",
    "UPDATE t SET id = 8",
    "DELETE FROM t",
    "TRUNCATE t",
    "SELECT * FROM hidden",
    "ALTER PUBLICATION narrow ADD TABLE hidden",
    "CREATE TABLE mine (id int)",
    "CREATE ROLE another",
];

async fn a_pipeline_runs_as_the_role(major: u16) {
    let server = Postgres::shared(major).await;
    let database = server.database("shop").await;
    // Before 15 everyone may create in `public`.
    database
        .execute(
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC; CREATE TABLE t (id int PRIMARY KEY); \
             CREATE TABLE hidden (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)",
        )
        .await;
    let role = unique("reader");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/postgresql/role.sql");
    // The second time changes nothing.
    for _ in 0..2 {
        let ran = Command::new(server.bin_dir().join("psql"))
            .args([
                "-X",
                "-q",
                "-v",
                &format!("role={role}"),
                "-v",
                "publication=narrow",
            ])
            .args(["-v", "schema=public", "-v", "tables=public.t", "-f"])
            .arg(&script)
            .arg(database.url())
            .output()
            .expect("psql can be started");
        assert!(
            ran.status.success(),
            "{}",
            String::from_utf8_lossy(&ran.stderr)
        );
    }
    let (scheme, rest) = database.url().split_once("://").expect("a URL");
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let url = format!("{scheme}://{role}@{rest}");
    let name = unique("role");
    let cached = Redis::shared().await;
    let setup = Setup::new(&name, |folder| {
        source(&url, &name, &["t"])
            + "publication = \"narrow\"\n"
            + &files(folder)
            + &cache(cached.url(), &name)
    });
    let checked = setup.lockstep("check", &[]).await;
    assert_eq!(checked.code(), Some(0), "{}", checked.stdout);
    let mut pipeline = setup.start_ready().await;
    pipeline.wait_streaming("shop").await;
    database
        .execute("INSERT INTO t VALUES (101); DELETE FROM t WHERE id = 1")
        .await;
    let end = end_of_log(&database).await;
    pipeline.wait_visible("shop", &end, PATIENCE).await;
    // A load of the table again, which marks the log.
    let address = pipeline.url().await;
    let file = setup.file().display().to_string();
    let loaded = setup
        .lockstep_with(
            &["snapshot", &file, "--table", "public.t", "--url", &address],
            &[],
        )
        .await;
    assert_eq!(loaded.code(), Some(0), "{loaded:?}");
    // Comparisons read the table, and mark the log too.
    equal(&setup, &mut pipeline, &[]).await;
    assert!(pipeline.terminate(PATIENCE).await.success());

    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .expect("the role may log in");
    let connection = tokio::spawn(connection);
    for statement in BEYOND {
        let refused = client.batch_execute(statement).await.expect_err(statement);
        let code = refused.code().map(tokio_postgres::error::SqlState::code);
        assert_eq!(code, Some("42501"), "{statement}: {refused}");
    }
    drop(client);
    connection.await.expect("no panic").expect("a connection");
    database.execute(&format!("DROP OWNED BY \"{role}\"")).await;
}

#[tokio::test]
async fn a_pipeline_runs_as_the_narrow_role_on_15() {
    require!(NeedsPostgres(15), NeedsRedis);
    a_pipeline_runs_as_the_role(15).await;
}

#[tokio::test]
async fn a_pipeline_runs_as_the_narrow_role_on_18() {
    require!(NeedsPostgres(18), NeedsRedis);
    a_pipeline_runs_as_the_role(18).await;
}

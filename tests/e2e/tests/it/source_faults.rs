//! What can be wrong with PostgreSQL: a clear end, or a wait that `/readyz` explains; nothing is lost.

use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::{Setup, topics};
use lockstep_kit::Component::{Postgres as NeedsPostgres, Redis as NeedsRedis};
use lockstep_kit::postgres::{Auth, Database, Postgres, PostgresOptions};
use lockstep_kit::proxy::Proxy;
use lockstep_kit::redis::Redis;
use lockstep_kit::{require, require_own, unique, wait_for};

use crate::support::{cache, end_of_log, files, source};

/// Another user or password in a URL of the kit.
fn with_user(url: &str, user: &str) -> String {
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let (_, host) = rest.rsplit_once('@').expect("a user");
    format!("{scheme}://{user}@{host}")
}

async fn table(database: &Database) {
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY, note text); INSERT INTO t VALUES (1, 'one')")
        .await;
}

/// `run` fails, and `check` finds the same: both name all of `words`. Neither prints the password.
async fn assert_fails(setup: &Setup, code: &str, words: &[&str]) {
    let ended = setup.start().ends().await;
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    let error = ended.error();
    let missing: Vec<_> = words
        .iter()
        .filter(|word| !error.contains(**word))
        .collect();
    assert!(missing.is_empty(), "{missing:?} in {error}");
    assert!(
        error.contains(code) && error.contains("sources.shop") && error.contains("Remedy: "),
        "{error}"
    );
    assert!(!ended.stderr.contains("wrong-secret"), "{}", ended.stderr);
    let check = setup.lockstep("check", &[]).await;
    assert_eq!(check.code(), Some(1), "{check:?}");
    assert!(
        check.stdout.contains('✗') && check.stdout.contains('→'),
        "{}",
        check.stdout
    );
    assert!(!check.stdout.contains("wrong-secret"), "{}", check.stdout);
}

#[tokio::test]
async fn a_wrong_password_ends_the_run_and_is_not_printed() {
    require_own!(NeedsPostgres(16));
    let server = Postgres::start(PostgresOptions {
        auth: Auth::Scram,
        ..PostgresOptions::new(16)
    })
    .await;
    let database = server.database("shop").await;
    table(&database).await;
    let url = with_user(database.url(), "postgres:wrong-secret");
    let setup = Setup::new(&unique("password"), |folder| {
        source(&url, "wrong_password", &["t"]) + &files(folder)
    });
    assert_fails(&setup, "LS004", &["password", "28P01"]).await;
    // With the right one it runs.
    setup.change(&url, database.url());
    let pipeline = setup.start_ready().await;
    assert!(pipeline.terminate(PATIENCE).await.success());
}

#[tokio::test]
async fn a_server_without_logical_wal_ends_the_run_with_the_statement_that_helps() {
    require_own!(NeedsPostgres(16));
    let server = Postgres::start(PostgresOptions::new(16).set("wal_level", "replica")).await;
    let database = server.database("shop").await;
    table(&database).await;
    let setup = Setup::new(&unique("wal"), |folder| {
        source(database.url(), "no_wal", &["t"]) + &files(folder)
    });
    assert_fails(
        &setup,
        "LS006",
        &["wal_level", "ALTER SYSTEM SET wal_level = 'logical'"],
    )
    .await;
}

#[tokio::test]
async fn a_missing_right_to_publish_ends_the_run_with_the_statement_for_the_owner() {
    require!(NeedsPostgres(17));
    let database = Postgres::shared(17).await.database("shop").await;
    table(&database).await;
    let role = unique("reader");
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON t TO {role}"
        ))
        .await;
    let url = with_user(database.url(), &role);
    let slot = unique("rights");
    let setup = Setup::new(&slot, |folder| source(&url, &slot, &["t"]) + &files(folder));
    let statement = "CREATE PUBLICATION \"lockstep\" FOR TABLE \"public\".\"t\"";
    assert_fails(&setup, "LS005", &["publication", statement]).await;
    let check = setup.lockstep("check", &[]).await;
    assert!(check.stdout.contains(statement), "{}", check.stdout);
    // The owner does as told, and the same file runs.
    database
        .execute(&format!(
            "{statement} WITH (publish_via_partition_root = true)"
        ))
        .await;
    assert_eq!(setup.lockstep("check", &[]).await.code(), Some(0));
    let mut pipeline = setup.start_ready().await;
    pipeline
        .wait_visible("shop", &end_of_log(&database).await, PATIENCE)
        .await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    database
        .execute(&format!(
            "SELECT pg_drop_replication_slot('{slot}'); DROP OWNED BY {role}; DROP ROLE {role}"
        ))
        .await;
}

#[tokio::test]
async fn a_table_that_is_not_there_is_told_with_those_that_are() {
    require!(NeedsPostgres(17));
    let database = Postgres::shared(17).await.database("shop").await;
    table(&database).await;
    let slot = unique("absent");
    let setup = Setup::new(&slot, |folder| {
        source(database.url(), &slot, &["tt"]) + &files(folder)
    });
    assert_fails(&setup, "LS006", &["public.tt", "public.t"]).await;
}

#[tokio::test]
async fn a_table_without_a_key_is_refused_before_anything_is_written() {
    require!(NeedsPostgres(17), NeedsRedis);
    let (postgres, redis) = tokio::join!(Postgres::shared(17), Redis::shared());
    let database = postgres.database("shop").await;
    database
        .execute("CREATE TABLE t (id int, note text); INSERT INTO t VALUES (1, 'one')")
        .await;
    let slot = unique("keyless");
    let setup = Setup::new(&slot, |_| {
        source(database.url(), &slot, &["t"]) + &cache(redis.url(), &slot)
    });
    let ended = setup.start().ends().await;
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    let error = ended.error();
    assert!(
        error.contains("public.t") && error.contains("Remedy: ") && error.contains("LS006"),
        "{error}"
    );
    let check = setup.lockstep("check", &[]).await;
    assert_eq!(check.code(), Some(1), "{check:?}");
    // It gets one, and arrives: no row was passed over meanwhile.
    database
        .execute("ALTER TABLE t ADD PRIMARY KEY (id); INSERT INTO t VALUES (2, 'two')")
        .await;
    let mut pipeline = setup.start_ready().await;
    pipeline
        .wait_visible("shop", &end_of_log(&database).await, PATIENCE)
        .await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    for id in [1, 2] {
        let key = format!("{slot}:t:{id}");
        let held = redis
            .command(&["EXISTS", &key])
            .await
            .expect("Redis answers");
        assert_eq!(held, lockstep_kit::redis::Reply::Integer(1), "{key}");
    }
}

#[tokio::test]
async fn a_slot_in_use_is_waited_for_and_taken_over() {
    require!(NeedsPostgres(17));
    let database = Postgres::shared(17).await.database("shop").await;
    table(&database).await;
    let slot = unique("taken");
    let body = |folder: &std::path::Path| source(database.url(), &slot, &["t"]) + &files(folder);
    let (first, second) = (Setup::new("first", body), Setup::new("second", body));
    let mut holder = first.start_ready().await;
    holder.wait_streaming("shop").await;
    let mut waiting = second.start();
    let said = waiting
        .wait_unready(&["sources.shop", &slot, "in use"])
        .await;
    assert!(said.contains("process"), "{said}");
    assert!(waiting.log().contains("in use"), "{}", waiting.log());
    assert_eq!(waiting.get("/healthz").await.expect("an answer").0, 200);
    holder.kill9();
    waiting.wait_ready().await;
    database.execute("INSERT INTO t VALUES (2, 'two')").await;
    waiting
        .wait_visible("shop", &end_of_log(&database).await, PATIENCE)
        .await;
    assert!(waiting.terminate(PATIENCE).await.success());
    let records = topics::read_file(&second.folder().join("t.jsonl"));
    assert!(
        records
            .iter()
            .any(|record| record.op() == "c" && record.key["id"] == 2),
        "{records:?}"
    );
}

#[tokio::test]
async fn a_second_lockstep_of_the_same_pipeline_is_refused() {
    require!(NeedsPostgres(17));
    let database = Postgres::shared(17).await.database("shop").await;
    table(&database).await;
    let slot = unique("twice");
    let setup = Setup::new(&slot, |folder| {
        source(database.url(), &slot, &["t"]) + &files(folder)
    });
    let first = setup.start_ready().await;
    let ended = setup.start().ends().await;
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert!(
        ended
            .error()
            .contains("another process uses the state directory"),
        "{ended:?}"
    );
    assert!(first.terminate(PATIENCE).await.success());
}

#[tokio::test]
async fn readyz_turns_red_while_postgresql_is_away_and_green_again() {
    require_own!(NeedsPostgres(16));
    let server = Postgres::start(PostgresOptions::new(16)).await;
    let database = server.database("shop").await;
    table(&database).await;
    let setup = Setup::new(&unique("away"), |folder| {
        source(database.url(), "away", &["t"]) + &files(folder)
    });
    let mut pipeline = setup.start_ready().await;
    pipeline.wait_streaming("shop").await;

    server.kill();
    pipeline.wait_unready(&["sources.shop", "LS003"]).await;
    server.restart().await;
    pipeline.wait_ready().await;

    database.execute("INSERT INTO t VALUES (2, 'two')").await;
    pipeline
        .wait_visible("shop", &end_of_log(&database).await, PATIENCE)
        .await;
    server.stop().await;
    pipeline.wait_unready(&["sources.shop"]).await;
    server.restart().await;
    database.execute("INSERT INTO t VALUES (3, 'three')").await;
    pipeline
        .wait_visible("shop", &end_of_log(&database).await, PATIENCE)
        .await;
    pipeline.wait_ready().await;
    let status = pipeline.terminate(PATIENCE).await;
    assert!(status.success());
    let records = topics::read_file(&setup.folder().join("t.jsonl"));
    let ids: Vec<_> = records
        .iter()
        .filter(|record| record.op() == "c")
        .map(|record| &record.key["id"])
        .collect();
    assert_eq!(ids, [2, 3], "each once");
}

/// A connection that nobody ends and on which nothing comes any more, as behind a proxy that lost its other half. Every
/// packet is acknowledged, so no keepalive of the kernel notices.
#[tokio::test]
async fn a_dead_connection_that_looks_alive_is_made_anew() {
    require_own!(NeedsPostgres(16));
    // The server lets the slot go when it hears nothing.
    let options = PostgresOptions::new(16).set("wal_sender_timeout", "3s");
    let server = Postgres::start(options).await;
    let database = server.database("shop").await;
    table(&database).await;
    let direct = format!("127.0.0.1:{}", server.port());
    let proxy = Proxy::start(&*direct).await;
    let url = database.url().replace(&direct, &proxy.address());
    let setup = Setup::new(&unique("dead"), |folder| {
        source(&url, "dead", &["t"]) + "status_interval = \"1s\"\n" + &files(folder)
    });
    let mut pipeline = setup.start_ready().await;
    pipeline.wait_streaming("shop").await;
    for connection in proxy.connections() {
        connection.black_hole(true);
    }
    database
        .execute("INSERT INTO t VALUES (2, 'unheard')")
        .await;
    // The server gives up, and lockstep does not hear of it.
    wait_for(PATIENCE, "the walsender to end", async || {
        let sql = "SELECT active::text FROM pg_replication_slots WHERE slot_name = 'dead'";
        database.value(sql).await.as_deref() == Some("false")
    })
    .await;
    let end = end_of_log(&database).await;
    pipeline.wait_visible("shop", &end, PATIENCE).await;
    let log = pipeline.log();
    assert!(log.contains("no answer from the server for"), "{log}");
    assert!(pipeline.terminate(PATIENCE).await.success());
}

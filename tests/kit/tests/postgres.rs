//! PostgreSQL as the kit gives it to tests.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::process::Command;
use std::time::{Duration, Instant};

use lockstep_kit::Component::Postgres as NeedsPostgres;
use lockstep_kit::postgres::{Auth, PASSWORD, Postgres, PostgresOptions};
use lockstep_kit::{require, require_own, wait_for};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, NoTls};

const SOON: Duration = Duration::from_secs(30);

async fn shared_server(major: u16) {
    require!(NeedsPostgres(major));
    let began = Instant::now();
    let server = Postgres::shared(major).await;
    println!(
        "PostgreSQL {} after {:?}",
        server.version(),
        began.elapsed()
    );
    assert_eq!(
        server.version().split('.').next(),
        Some(major.to_string().as_str())
    );
    let database = server.database("kit").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (7)")
        .await;
    let client = database.client().await;
    let row = client
        .query_one("SELECT id, current_database() FROM t", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i32>(0), 7);
    assert_eq!(row.get::<_, &str>(1), database.name());
    assert_eq!(
        database.value("SHOW wal_level").await.as_deref(),
        Some("logical")
    );
    assert_eq!(
        database.value("SHOW TimeZone").await.as_deref(),
        Some("Asia/Kolkata")
    );
    assert_eq!(database.value("SELECT id FROM t WHERE false").await, None);
}

#[tokio::test]
async fn postgres_14_answers() {
    shared_server(14).await;
}

#[tokio::test]
async fn postgres_15_answers() {
    shared_server(15).await;
}

#[tokio::test]
async fn postgres_16_answers() {
    shared_server(16).await;
}

#[tokio::test]
async fn postgres_17_answers() {
    shared_server(17).await;
}

#[tokio::test]
async fn postgres_18_answers() {
    shared_server(18).await;
}

#[tokio::test]
async fn a_url_has_the_databases_name() {
    require!(NeedsPostgres(18));
    let database = Postgres::shared(18).await.database("kit_url").await;
    let (client, connection) = tokio_postgres::connect(database.url(), NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let row = client
        .query_one("SELECT current_database()", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), database.name());
}

#[tokio::test]
async fn a_dropped_database_takes_its_slots_and_prepared_transactions_along() {
    require!(NeedsPostgres(17));
    let server = Postgres::shared(17).await;
    let database = server.database("kit_drop").await;
    let name = database.name().to_owned();
    database
        .execute("SELECT pg_create_logical_replication_slot('kit_idle', 'pgoutput')")
        .await;
    database.execute("CREATE TABLE t (id int)").await;
    database
        .execute("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'it''s'")
        .await;
    let mut receiver = Command::new(server.bin_dir().join("pg_recvlogical"))
        .stderr(std::process::Stdio::null())
        .args([
            "--slot=kit_idle",
            "--start",
            "--file=/dev/null",
            "-o",
            "proto_version=1",
        ])
        .args([
            "-o",
            "publication_names=none",
            "--no-loop",
            "--dbname",
            database.url(),
        ])
        .spawn()
        .unwrap();
    let admin = server.client().await;
    let active = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'kit_idle' AND active";
    wait_for(SOON, "the slot to be in use", async || {
        admin.query_opt(active, &[]).await.unwrap()
    })
    .await;
    drop(database);
    let left = "SELECT (SELECT count(*) FROM pg_database WHERE datname = $1)
                     + (SELECT count(*) FROM pg_replication_slots WHERE database = $1)
                     + (SELECT count(*) FROM pg_prepared_xacts WHERE database = $1)";
    assert_eq!(
        admin
            .query_one(left, &[&name])
            .await
            .unwrap()
            .get::<_, i64>(0),
        0
    );
    receiver.kill().unwrap();
    receiver.wait().unwrap();
}

#[tokio::test]
async fn what_was_committed_survives_kill_and_restart() {
    require_own!(NeedsPostgres(16));
    let server = Postgres::start(PostgresOptions::new(16).set("wal_level", "replica")).await;
    let database = server.database("kit_kill").await;
    database
        .execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
        .await;
    server.kill();
    assert!(tokio_postgres::connect(server.url(), NoTls).await.is_err());
    server.restart().await;
    assert_eq!(
        database.value("SELECT id FROM t").await.as_deref(),
        Some("1")
    );
    assert_eq!(
        server.value("SHOW wal_level").await.as_deref(),
        Some("replica")
    );
    server.stop().await;
    server.restart().await;
    server.execute("SELECT 1").await;
    assert!(server.log().contains("ready to accept connections"));
}

#[tokio::test]
async fn passwords_are_asked_for() {
    require_own!(NeedsPostgres(18));
    for auth in [Auth::Scram, Auth::Md5, Auth::Password] {
        let server = Postgres::start(PostgresOptions {
            auth,
            ..PostgresOptions::new(18)
        })
        .await;
        drop(tokio_postgres::connect(server.url(), NoTls).await.unwrap());
        let mut wrong: Config = server.url().parse().unwrap();
        assert_eq!(wrong.get_password(), Some(PASSWORD.as_bytes()));
        wrong.password("wrong");
        let error = wrong.connect(NoTls).await.map(drop).unwrap_err();
        assert_eq!(
            error.code(),
            Some(&SqlState::INVALID_PASSWORD),
            "{auth:?}: {error:?}"
        );
    }
}

#[tokio::test]
async fn tls_verifies_the_right_name_and_authority_only() {
    require_own!(NeedsPostgres(16));
    let hba = Some("hostssl all all 127.0.0.0/8 cert".to_owned());
    let server = Postgres::start(PostgresOptions {
        ssl: true,
        hba,
        ..PostgresOptions::new(16)
    })
    .await;
    let files = server.certificates();
    let psql = |host: &str, ca: &std::path::Path| {
        let url = format!(
            "host={host} port={} user=postgres dbname=postgres sslmode=verify-full",
            server.port()
        );
        let output = Command::new(server.bin_dir().join("psql"))
            .args([
                "-Atc",
                "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
                "--dbname",
            ])
            .arg(url)
            .env("PGSSLROOTCERT", ca)
            .env("PGSSLCERT", &files.client)
            .env("PGSSLKEY", &files.client_key)
            .output()
            .unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    assert_eq!(psql("127.0.0.1", &files.ca).trim(), "t");
    assert_eq!(psql("localhost", &files.ca).trim(), "t");
    assert!(psql("127.0.0.2", &files.ca).contains("does not match host name"));
    assert!(psql("localhost", &files.other_ca).contains("certificate verify failed"));
    let plain = tokio_postgres::connect(server.url(), NoTls)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(
        plain.code(),
        Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION),
        "{plain:?}"
    );
}

#[tokio::test]
async fn a_dropped_server_leaves_nothing() {
    require_own!(NeedsPostgres(14));
    let server = Postgres::start(PostgresOptions::new(14)).await;
    let data = std::path::PathBuf::from(server.value("SHOW data_directory").await.unwrap());
    assert!(data.exists());
    let address = ("127.0.0.1", server.port());
    drop(server);
    assert!(!data.exists());
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[tokio::test]
#[should_panic(expected = "unrecognized configuration parameter \"no_such\"")]
async fn a_server_that_does_not_start_says_why() {
    if !NeedsPostgres(16).is_installed() {
        panic!("NOT RUN: unrecognized configuration parameter \"no_such\"");
    }
    Postgres::start(PostgresOptions::new(16).set("no_such", "1")).await;
}

#[tokio::test]
async fn a_cluster_ends_as_a_whole_and_keeps_what_was_committed() {
    require_own!(NeedsPostgres(16));
    let server = Postgres::start(PostgresOptions::new(16)).await;
    server.execute("CREATE TABLE t (id int)").await;
    for round in 0..2 {
        let session = server.client().await;
        let row = session.query_one("SELECT pg_backend_pid()", &[]).await;
        let backend: i32 = row.unwrap().get(0);
        session
            .batch_execute(&format!("INSERT INTO t VALUES ({round})"))
            .await
            .unwrap();
        if round == 0 {
            server.kill_all();
        } else {
            server.stop_immediately().await;
        }
        wait_for(
            Duration::from_secs(10),
            "the backend to be gone",
            async || {
                let stat = std::fs::read_to_string(format!("/proc/{backend}/stat"));
                // A zombie waits for a parent that may never look.
                stat.map_or(true, |stat| stat.contains(") Z "))
            },
        )
        .await;
        assert!(session.simple_query("SELECT 1").await.is_err());
        server.restart().await;
        let count = server.value("SELECT count(*) FROM t").await;
        assert_eq!(count, Some((round + 1).to_string()));
    }
}

#[tokio::test]
async fn a_frozen_cluster_is_silent_until_it_goes_on() {
    require_own!(NeedsPostgres(16));
    let server = Postgres::start(PostgresOptions::new(16)).await;
    let session = server.client().await;
    server.freeze(true);
    let query = session.simple_query("SELECT 1");
    let mut query = std::pin::pin!(query);
    let look = tokio::time::timeout(Duration::from_millis(200), &mut query).await;
    assert!(look.is_err(), "it answers");
    server.freeze(false);
    query.await.unwrap();
    server.freeze(true);
    // The drop ends it all the same.
}

//! Passwords and TLS.

use lockstep_core::ErrorKind;
use lockstep_core::check::Verdict;
use lockstep_core::source::SourceFactory;
use lockstep_kit::postgres::{Auth, PASSWORD, Postgres, PostgresOptions};
use lockstep_postgres::PostgresFactory;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use crate::harness::{Opened, config};

/// `postgres:password`, as a URL wants it.
fn login() -> String {
    format!(
        "postgres:{}",
        utf8_percent_encode(PASSWORD, NON_ALPHANUMERIC)
    )
}

/// Opens with a URL; the streamed row shows that SQL, replication and copy connections all got in.
async fn open(
    server: &Postgres,
    database: &str,
    login: &str,
    host: &str,
    parameters: &str,
) -> lockstep_core::Result<()> {
    let url = format!(
        "postgres://{login}@{host}:{}/{database}{parameters}",
        server.port()
    );
    let state = tempfile::tempdir().expect("a directory");
    let slot = lockstep_kit::unique("login")
        .replace('-', "_")
        .to_lowercase();
    let mut opened = Opened::try_open(
        &config(&url, &["public.t"], json!({ "slot": slot })),
        state.path(),
    )
    .await?;
    opened.changes(1).await;
    opened.close().await;
    server
        .execute(&format!("SELECT pg_drop_replication_slot('{slot}')"))
        .await;
    Ok(())
}

async fn server(auth: Auth, hba: Option<&str>, ssl: bool) -> (Postgres, String) {
    let mut options = PostgresOptions::new(17);
    options.auth = auth;
    options.hba = hba.map(str::to_owned);
    options.ssl = ssl;
    let server = Postgres::start(options).await;
    let database = server.database("login").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
        .await;
    let name = database.name().to_owned();
    // The database must outlive the value here: the server's folder goes at the end anyway.
    std::mem::forget(database);
    (server, name)
}

#[tokio::test]
async fn scram_with_the_right_and_the_wrong_password() {
    let (server, database) = server(Auth::Scram, None, false).await;
    open(&server, &database, &login(), "127.0.0.1", "")
        .await
        .expect("logs in");
    let error = open(&server, &database, "postgres:wrong", "127.0.0.1", "")
        .await
        .expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
    assert!(
        !error.to_string().contains("wrong"),
        "the password is not repeated: {error}"
    );
    let error = open(&server, &database, "postgres", "127.0.0.1", "")
        .await
        .expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
    let required = "?sslmode=disable&channel_binding=require";
    let error = open(&server, &database, &login(), "127.0.0.1", required).await;
    assert_eq!(
        error.expect_err("refused").kind(),
        ErrorKind::Authentication
    );
}

#[tokio::test]
async fn the_ssl_modes_of_libpq() {
    let (server, database) = server(Auth::Scram, None, true).await;
    let login = login();
    let certificates = server.certificates();
    let (ca, other) = (
        certificates.ca.display().to_string(),
        certificates.other_ca.display().to_string(),
    );
    let good = [
        ("127.0.0.1", "?sslmode=disable".to_owned()),
        ("127.0.0.1", "?sslmode=allow".to_owned()),
        ("127.0.0.1", "?sslmode=prefer".to_owned()),
        (
            "127.0.0.1",
            "?sslmode=require&channel_binding=require".to_owned(),
        ),
        ("127.0.0.2", format!("?sslmode=require&sslrootcert={ca}")),
        ("127.0.0.2", format!("?sslmode=verify-ca&sslrootcert={ca}")),
        (
            "localhost",
            format!("?sslmode=verify-full&sslrootcert={ca}&channel_binding=require"),
        ),
        (
            "127.0.0.1",
            format!("?sslmode=verify-full&sslrootcert={ca}"),
        ),
    ];
    for (host, parameters) in good {
        open(&server, &database, &login, host, &parameters)
            .await
            .unwrap_or_else(|error| panic!("{parameters}: {error}"));
    }
    let bad = [
        (
            "127.0.0.2",
            format!("?sslmode=verify-full&sslrootcert={ca}"),
        ),
        (
            "127.0.0.1",
            format!("?sslmode=verify-ca&sslrootcert={other}"),
        ),
        ("127.0.0.1", format!("?sslmode=require&sslrootcert={other}")),
        (
            "127.0.0.1",
            "?sslmode=verify-full&sslrootcert=/no/such/file".to_owned(),
        ),
    ];
    for (host, parameters) in bad {
        let error = open(&server, &database, &login, host, &parameters)
            .await
            .expect_err(&parameters);
        assert!(
            matches!(error.kind(), ErrorKind::Setup | ErrorKind::Config),
            "{parameters}: {error}"
        );
    }
}

#[tokio::test]
async fn a_server_without_tls_and_one_that_insists() {
    let (plain, database) = server(Auth::Trust, None, false).await;
    open(
        &plain,
        &database,
        "postgres",
        "127.0.0.1",
        "?sslmode=prefer",
    )
    .await
    .expect("falls back to plain");
    let error = open(
        &plain,
        &database,
        "postgres",
        "127.0.0.1",
        "?sslmode=require",
    )
    .await
    .expect_err("no TLS");
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    let lines = "hostssl all all 127.0.0.0/8 cert\nhostssl replication all 127.0.0.0/8 cert";
    let (insists, database) = server(Auth::Trust, Some(lines), true).await;
    let files = insists.certificates();
    let client = format!(
        "&sslcert={}&sslkey={}",
        files.client.display(),
        files.client_key.display()
    );
    open(
        &insists,
        &database,
        "postgres",
        "127.0.0.1",
        &format!("?sslmode=require{client}"),
    )
    .await
    .expect("by certificate");
    open(
        &insists,
        &database,
        "postgres",
        "127.0.0.1",
        &format!("?sslmode=allow{client}"),
    )
    .await
    .expect("plain, then TLS");
    let error = open(
        &insists,
        &database,
        "postgres",
        "127.0.0.1",
        "?sslmode=require",
    )
    .await
    .expect_err("no certificate");
    assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
    let error = open(
        &insists,
        &database,
        "postgres",
        "127.0.0.1",
        "?sslmode=disable",
    )
    .await
    .expect_err("plain");
    assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
}

/// Every way in that is not bound to the TLS connection is refused under `channel_binding=require`, by the replication
/// connection (which a source opens first) and by plain SQL (which a preflight opens first), and no password is sent:
/// the server logs each login that it accepts.
#[tokio::test]
async fn required_channel_binding_sends_no_password_without_it() {
    let ways = [
        (Auth::Password, true, "?sslmode=require"),
        (Auth::Md5, true, "?sslmode=require"),
        (Auth::Trust, true, "?sslmode=require"),
        (Auth::Password, false, "?sslmode=disable"),
        (Auth::Scram, true, "?sslmode=disable"),
    ];
    for (auth, ssl, parameters) in ways {
        let mut options = PostgresOptions::new(17).set("log_connections", "on").set(
            "password_encryption",
            if auth == Auth::Md5 {
                "md5"
            } else {
                "scram-sha-256"
            },
        );
        (options.auth, options.ssl) = (auth, ssl);
        let server = Postgres::start(options).await;
        let url = format!(
            "postgres://{}@127.0.0.1:{}/postgres{parameters}&channel_binding=require",
            login(),
            server.port()
        );
        let section = config(&url, &["public.t"], json!({}));
        let state = tempfile::tempdir().expect("a directory");
        let error = Opened::try_open(&section, state.path())
            .await
            .err()
            .expect("refused");
        let findings =
            PostgresFactory::preflight(&section, "p", "shop", std::path::Path::new("")).await;
        let failed = findings
            .iter()
            .find(|finding| finding.verdict == Verdict::Fail)
            .expect("refused");
        assert_eq!(error.kind(), ErrorKind::Authentication, "{auth:?}: {error}");
        for text in [error.to_string(), failed.detail.clone()] {
            assert!(
                text.contains("LS004") && text.contains("channel binding"),
                "{auth:?}: {text}"
            );
        }
        let log = server.log();
        for accepted in ["method=password", "method=md5", "method=scram"] {
            assert!(!log.contains(accepted), "{auth:?}: {log}");
        }
    }
}

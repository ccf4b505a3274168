//! Where it cannot be had, and where it would lose something.

use lockstep_core::ErrorKind;
use lockstep_kit::postgres::{Postgres, PostgresOptions};

use super::{Pair, config, json, prepare, section, slot_name};
use crate::harness::Opened;

#[tokio::test]
async fn a_server_that_does_not_send_them_is_refused_with_the_reason() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(14));
    let server = Postgres::shared(14).await;
    let database = server.database("two_phase").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await;
    let state = tempfile::tempdir().expect("a directory");
    let section = config(database.url(), &["public.t"], json!({ "two_phase": true }));
    let error = Opened::try_open(&section, state.path()).await;
    let error = error.map(|_| ()).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Setup);
    let text = error.to_string();
    assert!(
        text.contains("needs PostgreSQL 15") && text.contains("is PostgreSQL 14"),
        "{text}"
    );
}

#[tokio::test]
async fn a_slot_that_was_switched_by_hand_is_lost_where_that_loses_what_was_prepared() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(18));
    let mut pair = Pair::open(18, false).await;
    prepare(&pair.database, "before", "INSERT INTO t VALUES (1)").await;
    pair.off.catch_up(&pair.database).await;
    pair.off.feedback.confirm(pair.off.through);
    pair.off.source.close().await.expect("closes");
    let slot = format!("{}_off", slot_name(pair.database.url()));
    let altered = std::process::Command::new(pair.server.bin_dir().join("psql"))
        .args([
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            &format!("{}?replication=database", pair.database.url()),
            "-c",
            &format!("ALTER_REPLICATION_SLOT {slot} (TWO_PHASE true)"),
        ])
        .output()
        .expect("psql runs");
    assert!(
        altered.status.success(),
        "{}",
        String::from_utf8_lossy(&altered.stderr)
    );
    let section = section(&pair.database, false, false);
    let error = Opened::try_open(&section, pair.states[1].path()).await;
    let error = error.map(|_| ()).expect_err("it is lost");
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert!(
        error.to_string().contains("ALTER_REPLICATION_SLOT"),
        "{error}"
    );
    pair.on.close().await;
}

#[tokio::test]
async fn a_slot_made_for_it_by_hand_is_taken() {
    for major in super::SERVERS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let server = Postgres::start(PostgresOptions::new(major)).await;
        let database = server.database("two_phase").await;
        database
            .execute("CREATE TABLE t (id bigint PRIMARY KEY, note text)")
            .await;
        let slot = slot_name(database.url());
        database
            .execute(&format!(
                "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput', false, true)"
            ))
            .await;
        let state = tempfile::tempdir().expect("a directory");
        let more = json!({ "two_phase": true, "snapshot": "never" });
        let mut opened =
            Opened::open(&config(database.url(), &["public.t"], more), state.path()).await;
        prepare(&database, "a", "INSERT INTO t VALUES (1)").await;
        super::commit(&database, "a").await;
        opened.catch_up(&database).await;
        assert_eq!(super::named(&opened.seen), super::pairs(&[("a", "1")]));
        opened.close().await;
    }
}

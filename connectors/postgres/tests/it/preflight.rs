//! What `lockstep check` says about a server that is not as it should be.

use std::path::Path;

use lockstep_core::check::{Finding, Verdict};
use lockstep_core::source::SourceFactory;
use lockstep_kit::postgres::{Postgres, PostgresOptions};
use lockstep_pg::wire::target::Target;
use lockstep_pg::wire::{Connection, Mode};
use lockstep_postgres::{PostgresConfig, PostgresFactory};
use serde_json::json;

use crate::harness::{Opened, config, slot_name};

async fn check(section: &PostgresConfig) -> Vec<Finding> {
    PostgresFactory::preflight(section, "p", "shop", Path::new("")).await
}

fn about<'a>(findings: &'a [Finding], subject: &str) -> &'a Finding {
    findings
        .iter()
        .find(|finding| finding.subject == subject)
        .unwrap_or_else(|| panic!("nothing about {subject}: {findings:#?}"))
}

fn failures(findings: &[Finding]) -> Vec<&str> {
    findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Fail)
        .map(|finding| finding.subject.as_str())
        .collect()
}

#[tokio::test]
async fn a_server_whose_limits_are_reached_and_one_with_an_open_prepared_transaction() {
    let options = PostgresOptions::new(17)
        .set("max_replication_slots", "1")
        .set("max_wal_senders", "1");
    let server = Postgres::start(options).await;
    let database = server.database("limits").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await;
    let section = config(database.url(), &["public.t"], json!({}));
    assert_eq!(failures(&check(&section).await), [""; 0]);

    let slot = "SELECT pg_create_physical_replication_slot('taken')";
    database.execute(slot).await;
    database
        .execute("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'left behind'")
        .await;
    let target = Target::parse(database.url()).expect("a URL");
    let _taken = Connection::open(&target, Mode::Replication)
        .await
        .expect("the only sender");
    let findings = check(&section).await;
    assert_eq!(
        failures(&findings),
        [
            "replication login",
            "free slots",
            "prepared transactions",
            "free WAL senders"
        ]
    );
    for (subject, remedy) in [
        ("replication login", "max_wal_senders"),
        ("free slots", "max_replication_slots"),
        ("prepared transactions", "ROLLBACK PREPARED"),
        ("free WAL senders", "max_wal_senders"),
    ] {
        let found = about(&findings, subject).remedy.as_deref();
        assert!(
            found.is_some_and(|text| text.contains(remedy)),
            "{subject}: {found:?}"
        );
    }
    let prepared = about(&findings, "prepared transactions");
    assert!(prepared.detail.contains("left behind"), "{prepared:?}");
}

#[tokio::test]
async fn missing_rights_are_named_with_their_grants() {
    let database = Postgres::shared(16).await.database("grants").await;
    let role = format!("reader_{}", database.name());
    database
        .execute(&format!(
            "CREATE ROLE \"{role}\" LOGIN REPLICATION; CREATE SCHEMA shop; \
             CREATE TABLE shop.t (id int PRIMARY KEY); CREATE PUBLICATION lockstep FOR TABLE shop.t"
        ))
        .await;
    let (_, address) = database.url().split_once('@').expect("a user");
    let url = format!("postgres://{role}@{address}");
    let section = config(&url, &["shop.t"], json!({}));
    let grants = [
        format!("GRANT USAGE ON SCHEMA \"shop\" TO \"{role}\""),
        format!("GRANT SELECT ON \"shop\".\"t\" TO \"{role}\""),
    ];
    for missing in [&grants[..], &grants[1..]] {
        let findings = check(&section).await;
        assert_eq!(failures(&findings), ["table shop.t"]);
        let remedy = about(&findings, "table shop.t").remedy.as_deref();
        assert_eq!(remedy, Some(&*missing.join("; ")));
        // The remedy, as it stands, repairs it.
        database.execute(&missing[0]).await;
    }
    assert_eq!(failures(&check(&section).await), [""; 0]);
}

#[tokio::test]
async fn a_slot_in_use_is_fine_while_the_pipeline_runs_and_not_when_a_stranger_has_it() {
    let database = Postgres::shared(15).await.database("inuse").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await;
    let section = config(
        database.url(),
        &["public.t"],
        json!({ "snapshot": "never" }),
    );
    let stranger = format!("{}?application_name=stranger", database.url());
    let stranger = config(
        &stranger,
        &["public.t"],
        json!({ "snapshot": "never", "slot": slot_name(database.url()) }),
    );
    let subject = format!("slot {}", slot_name(database.url()));
    for (runs, verdict, name) in [
        (&section, Verdict::Warn, "lockstep"),
        (&stranger, Verdict::Fail, "stranger"),
    ] {
        let state = tempfile::tempdir().expect("a directory");
        let mut opened = Opened::open(runs, state.path()).await;
        opened.catch_up(&database).await;
        let findings = check(&section).await;
        let found = about(&findings, &subject);
        assert_eq!(found.verdict, verdict, "{found:?}");
        assert!(found.detail.contains(name), "{found:?}");
        let failed = failures(&findings);
        assert!(failed.iter().all(|failed| *failed == subject), "{failed:?}");
        opened.close().await;
    }
}

//! A log that cannot be continued is seen, whatever became of it: `stop` leaves everything as it is, `resync` ends with
//! copies that equal the source.

use lockstep_core::batch::Op;
use lockstep_core::check::{Finding, Verdict};
use lockstep_core::error::Policy;
use lockstep_core::position::{Lsn, SourceIdentity};
use lockstep_core::source::SourceFactory;
use lockstep_core::{Error, ErrorKind};
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::{Component, require, require_own, wait_for};
use lockstep_postgres::PostgresFactory;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::copy::{state_of, truth};
use crate::harness::{DEADLINE, Opened, Seen, config, slot_name};

const TABLE: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')";

/// A source that has streamed for a while and is away now.
pub struct Away {
    /// Of the database, as the source sees it.
    pub url: String,
    pub slot: String,
    /// Further keys of the section.
    pub more: Value,
    pub state: TempDir,
    /// The name of the log that it has read.
    pub identity: SourceIdentity,
}

impl Away {
    /// Copies, streams a change, confirms all of it, and ends.
    pub async fn from(database: &Database) -> Self {
        Self::through(database, database.url(), json!({})).await
    }

    pub async fn through(database: &Database, url: &str, more: Value) -> Self {
        database.execute(TABLE).await;
        let mut away = Away {
            url: url.to_owned(),
            slot: slot_name(url),
            more,
            state: tempfile::tempdir().expect("a directory"),
            identity: SourceIdentity {
                system: 0,
                timeline: 0,
                incarnation: 0,
                database: database.name().into(),
            },
        };
        let mut opened = away.open("stop").await;
        away.identity = opened.source.info().identity.clone();
        // Sinks may know other names from before; this one they do not.
        assert!(away.identity.incarnation > 1_700_000_000);
        opened.changes(2).await;
        database.execute("INSERT INTO t VALUES (3, 'c')").await;
        opened.catch_up(database).await;
        assert_eq!(state_of(&opened), truth(database).await);
        away.leave(opened).await;
        away
    }

    pub fn section(&self, policy: &str) -> lockstep_postgres::PostgresConfig {
        let mut more = self.more.clone();
        more["on_slot_lost"] = policy.into();
        config(&self.url, &["public.t"], more)
    }

    pub async fn open(&self, policy: &str) -> Opened {
        Opened::open(&self.section(policy), self.state.path()).await
    }

    /// Confirms everything and closes.
    pub async fn leave(&self, opened: Opened) {
        opened.feedback.confirm(opened.through);
        opened.close().await;
    }

    pub fn record(&self) -> Value {
        let text = std::fs::read(self.state.path().join("source.json")).expect("a state file");
        serde_json::from_slice(&text).expect("JSON")
    }

    pub async fn refusal(&self, policy: &str) -> Error {
        let opened = Opened::try_open(&self.section(policy), self.state.path()).await;
        opened.err().expect("refused")
    }

    pub async fn check(&self, policy: &str) -> Finding {
        let section = self.section(policy);
        let findings = PostgresFactory::preflight(&section, "p", "shop", self.state.path()).await;
        let subject = format!("slot {}", self.slot);
        let found = findings.iter().find(|finding| finding.subject == subject);
        found.unwrap_or_else(|| panic!("{findings:#?}")).clone()
    }

    /// With `stop` it is refused with this cause, by `run` and by `check`, and nothing changes.
    pub async fn assert_lost(&self, server: &Postgres, cause: &str) {
        let before = (self.record(), self.slot_on(server).await);
        let error = self.refusal("stop").await;
        assert_eq!(
            (error.kind(), error.kind().code(), error.kind().policy()),
            (ErrorKind::Lost, "LS011", Policy::Stop),
            "{error}"
        );
        assert!(error.to_string().contains(cause), "{error}");
        let remedy = error.remedy_text().expect("a remedy");
        assert!(remedy.contains("on_slot_lost = \"resync\""), "{remedy}");
        let finding = self.check("stop").await;
        assert_eq!(finding.verdict, Verdict::Fail, "{finding:?}");
        assert!(finding.detail.contains(cause), "{finding:?}");
        assert_eq!(finding.remedy.as_deref(), Some(remedy));
        let finding = self.check("resync").await;
        assert_eq!(finding.verdict, Verdict::Warn, "{finding:?}");
        assert!(finding.detail.contains(cause), "{finding:?}");
        assert_eq!((self.record(), self.slot_on(server).await), before);
    }

    pub async fn slot_on(&self, server: &Postgres) -> Option<String> {
        let sql = format!(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '{}'",
            self.slot
        );
        server.value(&sql).await
    }

    /// With `resync` the tables are copied again, and from then on everything is as ever. Gives the identity.
    pub async fn assert_resyncs(&self, database: &Database) -> SourceIdentity {
        let mut opened = self.open("resync").await;
        opened.catch_up(database).await;
        assert_eq!(opened.seen[0].op, Op::Truncate);
        assert_eq!(state_of(&opened), truth(database).await);
        let identity = opened.source.info().identity.clone();
        self.leave(opened).await;
        let finding = self.check("stop").await;
        assert_eq!(finding.verdict, Verdict::Pass, "{finding:?}");
        let mut opened = self.open("stop").await;
        database
            .execute("INSERT INTO t VALUES (1000, 'after')")
            .await;
        assert_eq!(opened.rows(1).await[0].value("id"), "1000");
        assert_eq!(opened.source.info().identity, identity);
        opened.close().await;
        identity
    }

    /// The name of a log that has taken the place of the one that was read, so many times.
    pub fn another(&self, times: u32) -> SourceIdentity {
        let first = &self.identity;
        SourceIdentity {
            incarnation: first.incarnation + times,
            ..first.clone()
        }
    }
}

/// What happens while nobody reads: a row goes, one changes, one comes.
pub async fn gap(database: &Database) {
    database
        .execute("DELETE FROM t WHERE id = 1; UPDATE t SET v = 'x' WHERE id = 2; INSERT INTO t VALUES (9, 'gap')")
        .await;
}

#[tokio::test]
async fn a_slot_that_was_dropped() {
    require!(Component::Postgres(15));
    let server = Postgres::shared(15).await;
    let database = server.database("dropped").await;
    let away = Away::from(&database).await;
    let drop = format!("SELECT pg_drop_replication_slot('{}')", away.slot);
    database.execute(&drop).await;
    gap(&database).await;
    away.assert_lost(server, "is gone: somebody dropped it")
        .await;
    away.assert_resyncs(&database).await;
}

/// The worst one: everything looks well, and the changes of the gap would never come.
#[tokio::test]
async fn a_slot_that_was_made_again_by_hand() {
    for major in [14, 18] {
        require!(Component::Postgres(major));
        let server = Postgres::shared(major).await;
        let database = server.database("again").await;
        let away = Away::from(&database).await;
        let slot = &away.slot;
        let drop = format!("SELECT pg_drop_replication_slot('{slot}')");
        database.execute(&drop).await;
        gap(&database).await;
        let make = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
        database.execute(&make).await;
        away.assert_lost(server, "beyond").await;
        let identity = away.assert_resyncs(&database).await;
        assert_eq!(identity, away.identity, "positions only grow");
    }
}

/// Somebody else's reader moves the slot, and a copy of the slot from before brings it back.
#[tokio::test]
async fn a_slot_that_something_else_has_read() {
    require!(Component::Postgres(16));
    let server = Postgres::shared(16).await;
    let database = server.database("moved").await;
    let away = Away::from(&database).await;
    let slot = &away.slot;
    let keep = format!("SELECT pg_copy_logical_replication_slot('{slot}', '{slot}_kept')");
    database.execute(&keep).await;
    gap(&database).await;
    let advance = format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())");
    database.execute(&advance).await;
    away.assert_lost(server, "something else has read from it")
        .await;
    let back = format!(
        "SELECT pg_drop_replication_slot('{slot}'); SELECT pg_copy_logical_replication_slot('{slot}_kept', '{slot}')"
    );
    database.execute(&back).await;
    let mut opened = away.open("stop").await;
    let ops: Vec<Op> = opened.rows(3).await.iter().map(|seen| seen.op).collect();
    assert_eq!(ops, [Op::Delete, Op::Update, Op::Insert]);
    opened.close().await;
}

async fn until_lost(server: &Postgres, slot: &str) {
    let status = format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{slot}'");
    wait_for(DEADLINE, "the slot to be given up", async || {
        let noise = "SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1000000)) FROM generate_series(1, 20)";
        server.execute(noise).await;
        server.execute("SELECT pg_switch_wal()").await;
        server.execute("CHECKPOINT").await;
        match server.value(&status).await.as_deref() {
            Some("lost") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_slot_that_kept_too_much_log() {
    for major in [14, 17] {
        require_own!(Component::Postgres(major));
        let server = Postgres::start(
            PostgresOptions::new(major)
                .set("max_slot_wal_keep_size", "32MB")
                .set("max_wal_size", "48MB")
                .set("min_wal_size", "32MB"),
        )
        .await;
        let database = server.database("kept").await;
        let away = Away::from(&database).await;
        gap(&database).await;
        until_lost(&server, &away.slot).await;
        away.assert_lost(&server, "wal_removed").await;
        away.assert_resyncs(&database).await;
    }
}

/// It is said while there is still something to be done about it.
#[tokio::test]
async fn a_slot_that_keeps_much_is_warned_of_before_the_server_gives_it_up() {
    require_own!(Component::Postgres(17));
    let server = Postgres::start(
        PostgresOptions::new(17)
            .set("max_slot_wal_keep_size", "64MB")
            .set("max_wal_size", "1GB"),
    )
    .await;
    let database = server.database("kept").await;
    let away = Away::from(&database).await;
    // Nothing that is read from now on is confirmed.
    let opened = away.open("stop").await;
    let state = || opened.status.get();
    wait_for(DEADLINE, "a look at the slot", async || {
        state().safe_bytes.ok_or("not yet")
    })
    .await;
    assert_eq!(state().warning, None);
    let more =
        "SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, ";
    let mut megabytes = 40;
    while state().warning.is_none() {
        database.execute(&format!("{more}{megabytes})")).await;
        megabytes = 2;
        let end = database.value("SELECT pg_current_wal_lsn()").await;
        let end: Lsn = end.expect("a position").parse().expect("a position");
        wait_for(DEADLINE, "another look at the slot", async || {
            (state().server >= end.0).then_some(()).ok_or("not yet")
        })
        .await;
    }
    let warning = state().warning.expect("a warning");
    assert!(
        warning.contains("MiB more the server may give it up"),
        "{warning}"
    );
    assert!(state().retained_bytes > Some(40_000_000), "{:?}", state());
    let lost = server
        .value("SELECT 1 FROM pg_replication_slots WHERE wal_status = 'lost'")
        .await;
    assert_eq!(lost, None, "it was said in time");
    opened.close().await;
}

#[tokio::test]
async fn a_slot_that_nobody_read_for_too_long() {
    require_own!(Component::Postgres(18));
    let server =
        Postgres::start(PostgresOptions::new(18).set("idle_replication_slot_timeout", "1s")).await;
    let database = server.database("idle").await;
    let away = Away::from(&database).await;
    gap(&database).await;
    wait_for(DEADLINE, "the slot to be given up", async || {
        server.execute("CHECKPOINT").await;
        let sql = "SELECT invalidation_reason FROM pg_replication_slots";
        server.value(sql).await.ok_or("not yet")
    })
    .await;
    away.assert_lost(&server, "idle_timeout").await;
    // Every start-up of the source is quicker than that; the end is not looked at, since it would be too long away.
    let mut opened = away.open("resync").await;
    opened.catch_up(&database).await;
    assert_eq!(state_of(&opened), truth(&database).await);
    opened.close().await;
}

#[tokio::test]
async fn a_slot_in_use_is_waited_for_under_either_policy() {
    require!(Component::Postgres(17));
    let server = Postgres::shared(17).await;
    let database = server.database("in_use").await;
    let away = Away::from(&database).await;
    let running = away.open("stop").await;
    let copied = away.record()["copy"].clone();
    wait_for(DEADLINE, "the slot to be read", async || {
        let sql = format!(
            "SELECT 1 FROM pg_replication_slots WHERE active AND slot_name = '{}'",
            away.slot
        );
        server.value(&sql).await.ok_or("not yet")
    })
    .await;
    for policy in ["stop", "resync"] {
        let error = away.refusal(policy).await;
        assert_eq!(
            (error.kind(), error.kind().policy()),
            (ErrorKind::Busy, Policy::Retry),
            "{error}"
        );
        let finding = away.check(policy).await;
        // By its name it is a lockstep: `check` may well be run beside the pipeline.
        assert_eq!(finding.verdict, Verdict::Warn);
        assert!(finding.detail.contains("in use by process"), "{finding:?}");
    }
    assert_eq!(away.record()["copy"], copied);
    running.close().await;
    away.open("stop").await.close().await;
}

/// What the copies hold is unknown then: they are emptied and filled again, under either policy.
#[tokio::test]
async fn a_state_directory_that_was_removed() {
    require!(Component::Postgres(15));
    let server = Postgres::shared(15).await;
    let database = server.database("forgotten").await;
    let away = Away::from(&database).await;
    gap(&database).await;
    std::fs::remove_file(away.state.path().join("source.json")).expect("removed");
    let finding = away.check("stop").await;
    assert_eq!(finding.verdict, Verdict::Warn);
    assert!(
        finding.detail.contains("nothing is remembered"),
        "{finding:?}"
    );
    let mut opened = away.open("stop").await;
    opened.catch_up(&database).await;
    assert_eq!(opened.seen[0].op, Op::Truncate);
    assert_eq!(state_of(&opened), truth(&database).await);
    let identity = opened.source.info().identity.clone();
    assert!(
        identity.incarnation >= away.identity.incarnation,
        "{identity}"
    );
    away.leave(opened).await;
    assert_eq!(away.check("stop").await.verdict, Verdict::Pass);
    let opened = away.open("stop").await;
    assert_eq!(opened.source.info().identity, identity);
    opened.close().await;
}

#[tokio::test]
async fn a_server_that_was_restored_to_an_earlier_point() {
    require_own!(Component::Postgres(16));
    let server = Postgres::start(PostgresOptions::new(16)).await;
    let database = server.database("restored").await;
    let away = Away::from(&database).await;
    let saved = server.stop_and_save().await;
    server.restart().await;
    // What is read now is gone after the restore, from the server and only there.
    let mut opened = away.open("stop").await;
    database
        .execute("INSERT INTO t SELECT g, 'lost' FROM generate_series(10, 2000) g; DELETE FROM t WHERE id = 3")
        .await;
    opened.catch_up(&database).await;
    away.leave(opened).await;
    server.restore(&saved).await;
    away.assert_lost(&server, "restored to an earlier point")
        .await;
    let identity = away.assert_resyncs(&database).await;
    assert_eq!(identity, away.another(1), "LSNs come again");
}

/// By the time it is looked at, the log is as long as it was: only what is in it tells.
#[tokio::test]
async fn a_server_that_was_restored_and_has_gone_on_since() {
    for major in [14, 17] {
        require_own!(Component::Postgres(major));
        let server = Postgres::start(PostgresOptions::new(major)).await;
        let database = server.database("gone_on").await;
        let away = Away::from(&database).await;
        let saved = server.stop_and_save().await;
        server.restart().await;
        let mut opened = away.open("stop").await;
        database.execute("INSERT INTO t VALUES (4, 'lost')").await;
        opened.catch_up(&database).await;
        let end = opened.through;
        away.leave(opened).await;
        server.restore(&saved).await;
        wait_for(DEADLINE, "the log to be as long as it was", async || {
            gap(&database).await;
            database.execute("DELETE FROM t WHERE id = 9").await;
            let passed = format!("SELECT pg_current_wal_lsn() > '{end}'");
            match server.value(&passed).await.as_deref() {
                Some("t") => Ok(()),
                _ => Err("shorter"),
            }
        })
        .await;
        let before = away.slot_on(&server).await;
        let mut opened = away.open("stop").await;
        let error = loop {
            if let Err(error) = opened.next().await {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
        assert!(
            error.to_string().contains("does not have transaction"),
            "{error}"
        );
        let none = opened.seen.iter().any(|seen| seen.position.commit > end);
        assert!(!none, "nothing behind it was sent");
        opened.close().await;
        assert_eq!(away.slot_on(&server).await, before, "nothing was confirmed");
        away.assert_lost(&server, "does not have transaction").await;
        let identity = away.assert_resyncs(&database).await;
        assert_eq!(identity, away.another(1));
    }
}

/// Seen while it runs, `resync` opens it again by itself.
#[tokio::test]
async fn a_log_that_turns_out_to_be_another_one_is_retried_under_resync() {
    require_own!(Component::Postgres(17));
    let server = Postgres::start(PostgresOptions::new(17)).await;
    let database = server.database("retried").await;
    let away = Away::from(&database).await;
    let saved = server.stop_and_save().await;
    server.restart().await;
    let mut opened = away.open("resync").await;
    database.execute("INSERT INTO t VALUES (4, 'lost')").await;
    opened.catch_up(&database).await;
    away.leave(opened).await;
    server.restore(&saved).await;
    database
        .execute("INSERT INTO t SELECT g, 'new' FROM generate_series(10, 900) g")
        .await;
    let mut opened = away.open("resync").await;
    let error = loop {
        if let Err(error) = opened.next().await {
            break error;
        }
    };
    assert_eq!(error.kind().policy(), Policy::Retry, "{error}");
    opened.close().await;
    away.assert_resyncs(&database).await;
}

/// A crash of the server takes its slot back to where it was saved last. What was confirmed since does not come again, but for the last
/// transaction, which shows that it is the same log.
#[tokio::test]
async fn a_server_that_crashed_goes_on() {
    require_own!(Component::Postgres(17));
    let server = Postgres::start(PostgresOptions::new(17)).await;
    let database = server.database("crashed").await;
    let away = Away::from(&database).await;
    // With some confirmations the server saves the slot: with the first after it has noted, each 15 s, which transactions run.
    for first in (4..).step_by(3).take(10) {
        let mut opened = away.open("stop").await;
        for id in first..first + 3 {
            let insert = format!("INSERT INTO t VALUES ({id}, 'd')");
            database.execute(&insert).await;
        }
        opened.catch_up(&database).await;
        let of_first = |seen: &&Seen| seen.value("id") == first.to_string();
        let found = opened.seen.iter().find(of_first).expect("it has come");
        let commit = found.position.commit;
        opened.feedback.confirm(opened.through);
        opened.close().await;
        server.kill();
        server.restart().await;
        let after = away.slot_on(&server).await;
        let stands: Lsn = after.as_deref().expect("a slot").parse().expect("an LSN");
        if stands >= commit {
            continue;
        }
        let mut opened = away.open("stop").await;
        let next = (first + 3).to_string();
        let insert = format!("INSERT INTO t VALUES ({next}, 'g')");
        database.execute(&insert).await;
        while !opened.seen.iter().any(|seen| seen.value("id") == next) {
            opened.next().await.expect("the stream goes on");
        }
        let ids: Vec<_> = opened.seen.iter().map(|seen| seen.value("id")).collect();
        assert_eq!(ids, [(first + 2).to_string(), next]);
        opened.catch_up(&database).await;
        away.leave(opened).await;
        assert_ne!(away.slot_on(&server).await, after, "it confirms again");
        return;
    }
    panic!("the slot was saved with each confirmation: there is nothing to see here");
}

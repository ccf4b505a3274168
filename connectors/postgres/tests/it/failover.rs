//! Another server behind the same address: it goes on where that is certain, and is seen where it is not.

use lockstep_core::batch::Op;
use lockstep_core::check::Verdict;
use lockstep_core::position::SourceIdentity;
use lockstep_core::source::SourceFactory;
use lockstep_core::{Error, ErrorKind};
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::proxy::Proxy;
use lockstep_kit::{Component, require, require_own, wait_for};
use lockstep_postgres::PostgresFactory;
use serde_json::{Value, json};

use crate::copy::{state_of, truth};
use crate::harness::{DEADLINE, Opened, config};
use crate::lost::{Away, gap};

/// Where a server is reached, whatever its address.
fn place(server: &Postgres) -> String {
    format!("127.0.0.1:{}", server.port())
}

async fn away_through(proxy: &Proxy, database: &Database, more: Value) -> Away {
    let url = format!(
        "postgres://postgres@{}/{}",
        proxy.address(),
        database.name()
    );
    Away::through(database, &url, more).await
}

/// Waits until a standby has replayed everything there is.
async fn caught_up(primary: &Postgres, standby: &Postgres) {
    let end = primary.value("SELECT pg_current_wal_flush_lsn()").await;
    let sql = format!(
        "SELECT pg_last_wal_replay_lsn() >= '{}'",
        end.expect("an LSN")
    );
    wait_for(DEADLINE, "the standby to catch up", async || match standby
        .value(&sql)
        .await
        .as_deref()
    {
        Some("t") => Ok(()),
        _ => Err("behind"),
    })
    .await;
}

#[tokio::test]
async fn another_system_and_the_first_one_again() {
    require_own!(Component::Postgres(16));
    let options = || PostgresOptions::new(16);
    let (first, second) = tokio::join!(Postgres::start(options()), Postgres::start(options()));
    let here = first.database("system").await;
    second
        .execute(&format!("CREATE DATABASE \"{}\"", here.name()))
        .await;
    let there = here.on(&second);
    let table = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (7, 'there')";
    there.execute(table).await;
    let proxy = Proxy::start(place(&first)).await;
    let away = away_through(&proxy, &here, json!({})).await;

    proxy.forward_to(place(&second));
    away.assert_lost(&second, "the server is another one").await;
    let identity = away.assert_resyncs(&there).await;
    assert_ne!(identity.system, away.identity.system);
    assert_eq!(identity.branch(), away.another(1).branch());

    // The first one again is no log that can be continued either, and not the name it had: what the sinks hold under
    // that name is older than what they hold of the second.
    proxy.forward_to(place(&first));
    away.assert_lost(&first, "the server is another one").await;
    let identity = away.assert_resyncs(&here).await;
    assert_eq!(identity, away.another(2));
}

#[tokio::test]
async fn a_standby_that_lagged() {
    require_own!(Component::Postgres(15));
    let primary = Postgres::start(PostgresOptions::new(15)).await;
    let database = primary.database("lagged").await;
    let standby = Postgres::start(PostgresOptions::standby_of(&primary)).await;
    let proxy = Proxy::start(place(&primary)).await;
    let away = away_through(&proxy, &database, json!({})).await;
    caught_up(&primary, &standby).await;
    standby.stop().await;
    let mut opened = away.open("stop").await;
    database
        .execute("INSERT INTO t SELECT g, 'lost' FROM generate_series(10, 1000) g")
        .await;
    opened.catch_up(&database).await;
    away.leave(opened).await;
    primary.stop().await;
    standby.restart().await;
    proxy.forward_to(place(&standby));
    // Not promoted yet, it may get the rest yet.
    let error = away.refusal("resync").await;
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(error.to_string().contains("is a standby"), "{error}");
    standby.promote().await;
    let there = database.on(&standby);
    gap(&there).await;
    away.assert_lost(&standby, "a standby that lagged was promoted")
        .await;
    let identity = away.assert_resyncs(&there).await;
    let another = SourceIdentity {
        timeline: 2,
        ..away.another(1)
    };
    assert_eq!(identity, another);
}

/// The log goes on, and the slot was left behind: that is what happens before version 17.
#[tokio::test]
async fn a_standby_without_the_slot() {
    require_own!(Component::Postgres(15));
    let primary = Postgres::start(PostgresOptions::new(15)).await;
    let database = primary.database("slotless").await;
    let standby = Postgres::start(PostgresOptions::standby_of(&primary)).await;
    let proxy = Proxy::start(place(&primary)).await;
    let away = away_through(&proxy, &database, json!({})).await;
    gap(&database).await;
    caught_up(&primary, &standby).await;
    primary.stop().await;
    proxy.forward_to(place(&standby));
    let error = away.refusal("stop").await;
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    standby.promote().await;
    away.assert_lost(&standby, "is gone").await;
    let identity = away.assert_resyncs(&database.on(&standby)).await;
    assert_eq!(identity, away.identity, "the log is the same one");
}

/// A primary whose stream waits for its standby, and the standby, which keeps the slots.
async fn pair(major: u16) -> (Postgres, Postgres) {
    let primary = Postgres::start(PostgresOptions::new(major)).await;
    primary
        .execute("SELECT pg_create_physical_replication_slot('standby')")
        .await;
    let waits = "ALTER SYSTEM SET synchronized_standby_slots = 'standby'";
    primary.execute(waits).await;
    primary.execute("SELECT pg_reload_conf()").await;
    let options = PostgresOptions::standby_of(&primary)
        .set("synchronized_standby_slots", "")
        .set("primary_slot_name", "standby")
        .set("hot_standby_feedback", "on")
        .set("sync_replication_slots", "on");
    let standby = Postgres::start(options).await;
    (primary, standby)
}

/// Reads until the standby has the slot for good: it keeps it once the slot has moved past where its own log begins.
async fn synced(database: &Database, standby: &Postgres, away: &Away) {
    let sql = format!(
        "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}' AND NOT temporary",
        away.slot
    );
    let mut opened = away.open("stop").await;
    let deadline = tokio::time::Instant::now() + DEADLINE * 3;
    while standby.value(&sql).await.is_none() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "no slot on the standby"
        );
        database.execute("SELECT pg_log_standby_snapshot()").await;
        opened.catch_up(database).await;
        opened.feedback.confirm(opened.through);
    }
    away.leave(opened).await;
}

#[tokio::test]
async fn a_failover_slot_goes_on_where_it_was() {
    for major in [17, 18] {
        require_own!(Component::Postgres(major));
        let (primary, standby) = pair(major).await;
        let database = primary.database("failover").await;
        let proxy = Proxy::start(place(&primary)).await;
        let away = away_through(&proxy, &database, json!({ "failover": true })).await;
        synced(&database, &standby, &away).await;
        gap(&database).await;
        caught_up(&primary, &standby).await;
        primary.stop().await;

        // The address moves before the promotion.
        proxy.forward_to(place(&standby));
        let error = away.refusal("stop").await;
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert!(error.to_string().contains("kept in step"), "{error}");
        standby.promote().await;
        let there = database.on(&standby);
        there.execute("INSERT INTO t VALUES (10, 'there')").await;
        assert_eq!(away.check("stop").await.verdict, Verdict::Pass);

        let mut opened = away.open("stop").await;
        let ops: Vec<Op> = opened.rows(4).await.iter().map(|seen| seen.op).collect();
        assert_eq!(ops, [Op::Delete, Op::Update, Op::Insert, Op::Insert]);
        let identity = &opened.source.info().identity;
        assert_eq!(identity, &away.identity, "the log is the same one");
        opened.catch_up(&there).await;
        away.leave(opened).await;
        assert_eq!(away.record()["reached"]["timeline"], 2);

        // And once more from there.
        let mut opened = away.open("stop").await;
        there.execute("DELETE FROM t WHERE id = 10").await;
        assert_eq!(opened.rows(1).await[0].op, Op::Delete);
        opened.close().await;
    }
}

/// The old primary comes back under the address after the new one has been read: its log is another one by now.
#[tokio::test]
async fn an_old_primary_that_comes_back() {
    require_own!(Component::Postgres(17));
    let (primary, standby) = pair(17).await;
    let database = primary.database("old").await;
    let proxy = Proxy::start(place(&primary)).await;
    let away = away_through(&proxy, &database, json!({ "failover": true })).await;
    synced(&database, &standby, &away).await;
    caught_up(&primary, &standby).await;
    primary.stop().await;
    standby.promote().await;
    proxy.forward_to(place(&standby));
    let there = database.on(&standby);
    let mut opened = away.open("stop").await;
    there.execute("INSERT INTO t VALUES (10, 'there')").await;
    opened.catch_up(&there).await;
    away.leave(opened).await;

    primary.restart().await;
    proxy.forward_to(place(&primary));
    away.assert_lost(&primary, "does not descend from timeline 2")
        .await;
    // Its stream would wait for a standby that is gone.
    primary
        .execute("ALTER SYSTEM RESET synchronized_standby_slots")
        .await;
    primary.execute("SELECT pg_reload_conf()").await;
    let mut opened = away.open("resync").await;
    while opened.seen.len() < 4 {
        opened.next().await.expect("the copy");
    }
    assert_eq!(opened.seen[0].op, Op::Truncate);
    assert_eq!(state_of(&opened), truth(&database).await);
    assert_eq!(opened.source.info().identity, away.another(1));
    opened.close().await;
}

async fn refusal(database: &Database, more: Value) -> Error {
    let state = tempfile::tempdir().expect("a directory");
    let section = config(database.url(), &["public.t"], more);
    let opened = Opened::try_open(&section, state.path()).await;
    let error = opened.err().expect("refused");
    let findings = PostgresFactory::preflight(&section, "p", "shop", state.path()).await;
    let same = findings.iter().any(|finding| {
        finding.verdict == Verdict::Fail && finding.remedy.as_deref() == error.remedy_text()
    });
    assert!(same, "{error}\n{findings:#?}");
    error
}

#[tokio::test]
async fn failover_slots_need_a_server_that_has_them() {
    require!(Component::Postgres(16), Component::Postgres(17));
    let (old, new) = tokio::join!(Postgres::shared(16), Postgres::shared(17));
    let table = "CREATE TABLE t (id int PRIMARY KEY, v text)";
    let database = old.database("older").await;
    database.execute(table).await;
    let error = refusal(&database, json!({ "failover": true })).await;
    assert_eq!(error.kind(), ErrorKind::Setup);
    assert!(error.to_string().contains("needs PostgreSQL 17"), "{error}");

    let database = new.database("newer").await;
    database.execute(table).await;
    let state = tempfile::tempdir().expect("a directory");
    let section = config(database.url(), &["public.t"], json!({}));
    Opened::open(&section, state.path()).await.close().await;
    let error = refusal(&database, json!({ "failover": true })).await;
    assert_eq!(error.kind(), ErrorKind::Setup);
    assert!(error.to_string().contains("(FAILOVER true)"), "{error}");
}

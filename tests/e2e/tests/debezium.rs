//! The `debezium` format beside Debezium 3.6.3 itself, on the same tables and the same log: byte for byte, except for
//! what `debezium/differences.rs` lists with a reason.

#[path = "../debezium/compare.rs"]
mod compare;
#[path = "../debezium/differences.rs"]
mod differences;
#[path = "../debezium/oracle.rs"]
mod oracle;
#[path = "../debezium/ours.rs"]
mod ours;
#[path = "../debezium/record.rs"]
mod record;

use std::collections::BTreeSet;

use lockstep_encode::envelope::Decimals;
use lockstep_kit::Component::{Debezium as NeedsDebezium, Postgres as NeedsPostgres};
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::require;

use crate::compare::{Difference, differences as compare};
use crate::differences::ALLOWED;
use crate::oracle::Oracle;
use crate::ours::Ours;

/// With the extensions of the type table.
const POSTGRES: u16 = 15;
/// Name of the source, and prefix of topics.
const NAME: &str = "shop";

/// The part of the type table between `-- == name` and the next such line.
fn section(name: &str) -> &'static str {
    let script = include_str!("../debezium/types.sql");
    let start = script
        .find(&format!("-- == {name}\n"))
        .expect("a section of this name");
    let rest = &script[start..];
    &rest[..rest.find("\n-- == ").unwrap_or(rest.len())]
}

/// Runs both sides and returns all that differs.
async fn run(database: &Database, decimals: Decimals, mode: &str) -> Vec<Difference> {
    // The kit's servers have odd defaults, which Debezium leans on in part.
    for setting in [
        "TimeZone = 'UTC'",
        "DateStyle = 'ISO'",
        "IntervalStyle = 'postgres'",
        "bytea_output = 'hex'",
        "extra_float_digits = 1",
    ] {
        let name = database.name();
        database
            .execute(&format!("ALTER DATABASE \"{name}\" SET {setting}"))
            .await;
    }
    database.execute(section("tables")).await;
    database.execute(section("rows")).await;
    let mut oracle = Oracle::start(database, NAME, mode);
    let theirs = oracle
        .read_until(|record| record.source("snapshot").as_deref() == Some("\"last\""))
        .await;
    let mut ours = Ours::open(database, NAME, decimals).await;
    let mine = ours.read_until(|batch, _| batch.through.is_some()).await;
    let mut found = compare(&theirs, &mine, true);

    database.execute(section("stream")).await;
    let theirs = oracle
        .read_until(|record| record.topic.ends_with(".done"))
        .await;
    let mine = ours
        .read_until(|_, records| {
            records
                .last()
                .is_some_and(|record| record.topic.ends_with(".done"))
        })
        .await;
    assert!(
        !theirs.iter().any(record::Record::is_snapshot),
        "the snapshot was over"
    );
    found.extend(compare(&theirs, &mine, false));
    found
}

/// A Java virtual machine at a time is enough for a small machine.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Fails on a difference that is not listed, and on a listed one that is not there.
async fn check(decimals: Decimals, mode: &str) {
    let _turn = ONE_AT_A_TIME.lock().await;
    let database = Postgres::shared(POSTGRES).await.database(mode).await;
    let found = run(&database, decimals, mode).await;
    let mut seen = BTreeSet::new();
    let mut unexpected = Vec::new();
    for difference in &found {
        match ALLOWED
            .iter()
            .position(|allowed| allowed.explains(difference))
        {
            Some(index) => {
                seen.insert(index);
            }
            None => unexpected.push(difference.to_string()),
        }
    }
    let gone: Vec<&str> = ALLOWED
        .iter()
        .enumerate()
        .filter(|(index, allowed)| !seen.contains(index) && allowed.modes.contains(&mode))
        .map(|(_, allowed)| allowed.reason)
        .collect();
    assert!(
        unexpected.is_empty(),
        "decimals {mode}: {} differences are not listed:\n{}",
        unexpected.len(),
        unexpected.join("\n")
    );
    assert!(
        gone.is_empty(),
        "decimals {mode}: listed, but not there any more:\n{}",
        gone.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_as_debezium_with_decimals_as_strings() {
    require!(NeedsPostgres(POSTGRES), NeedsDebezium);
    check(Decimals::String, "string").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_as_debezium_with_precise_decimals() {
    require!(NeedsPostgres(POSTGRES), NeedsDebezium);
    check(Decimals::Precise, "precise").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_as_debezium_with_doubles() {
    require!(NeedsPostgres(POSTGRES), NeedsDebezium);
    check(Decimals::Double, "double").await;
}

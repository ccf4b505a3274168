//! `lockstep check` finds what `run` would stumble over between the servers: columns and keys.

use lockstep_e2e::Setup;
use lockstep_kit::Component::{Postgres as NeedsPostgres, Redis as NeedsRedis};
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::redis::Redis;
use lockstep_kit::{require, unique};

use crate::support::{cache, files, source};

async fn table() -> Database {
    let database = Postgres::shared(17).await.database("shop").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY, status text, email text, card text, idempotency_key text)")
        .await;
    database
}

/// A transform of each kind that names columns: its kind, its setting, the name misspelt there, and the right one.
const MISSPELT: [[&str; 4]; 4] = [
    [
        "dedupe",
        "key = [\"idempotncy_key\"]",
        "idempotncy_key",
        "idempotency_key",
    ],
    [
        "filter",
        "where = \"statsu <> 'cancelled'\"",
        "statsu",
        "status",
    ],
    ["project", "drop = [\"crad\"]", "crad", "card"],
    ["mask", "redact = [\"emial\"]", "emial", "email"],
];

fn transforms() -> String {
    let transforms = MISSPELT.iter().map(|[kind, setting, ..]| {
        format!("[transforms.{kind}]\ntype = \"{kind}\"\ninputs = [\"shop\"]\n{setting}\n")
    });
    transforms.collect()
}

/// The lines below a place, down to the next one.
fn section<'a>(output: &'a str, place: &str) -> Vec<&'a str> {
    let lines = output.lines().skip_while(|line| *line != place).skip(1);
    let lines: Vec<&str> = lines.take_while(|line| line.starts_with(' ')).collect();
    assert!(!lines.is_empty(), "{place} in\n{output}");
    lines
}

/// Each of them fails by its column, and tells the columns there are.
fn assert_all_told(output: &str) {
    for [kind, _, wrong, right] in MISSPELT {
        let lines = section(output, &format!("transforms.{kind}")).join("\n");
        let told = ["✗", wrong, right].iter().all(|word| lines.contains(word));
        assert!(told, "{kind}: {lines}\n{output}");
    }
}

#[tokio::test]
async fn misspelt_columns_are_found_before_and_after_the_first_run() {
    require!(NeedsPostgres(17));
    let database = table().await;
    let name = unique("check");
    let inputs = MISSPELT.map(|[kind, ..]| format!("\"{kind}\"")).join(", ");
    let setup = Setup::new(&name, |folder| {
        let files = files(folder).replace("[\"shop\"]", &format!("[{inputs}]"));
        source(database.url(), &name, &["t"]) + &transforms() + &files
    });
    let ended = setup.lockstep("check", &[]).await;
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert_all_told(&ended.stdout);
    // It has looked, and left nothing.
    let publications = database.value("SELECT count(*) FROM pg_publication").await;
    assert_eq!(publications.as_deref(), Some("0"));
    assert!(!setup.state().exists());

    // With a publication the tables are those that it publishes.
    database
        .execute("CREATE PUBLICATION lockstep FOR TABLE t")
        .await;
    let ended = setup.lockstep("check", &[]).await;
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert_all_told(&ended.stdout);

    for [.., wrong, right] in MISSPELT {
        setup.change(wrong, right);
    }
    let ended = setup.lockstep("check", &[]).await;
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    for [kind, ..] in MISSPELT {
        let lines = section(&ended.stdout, &format!("transforms.{kind}"));
        assert!(lines[0].contains('✓'), "{lines:?}");
    }
    // And it does run.
    let pipeline = setup.start_ready().await;
    let drained = pipeline.terminate(lockstep_e2e::child::PATIENCE).await;
    assert!(drained.success(), "{drained}");
}

#[tokio::test]
async fn a_table_without_a_key_fails_the_check_of_a_sink_that_needs_one_and_of_no_other() {
    require!(NeedsPostgres(17), NeedsRedis);
    let database = table().await;
    database
        .execute(
            "CREATE TABLE log (at timestamptz, line text); ALTER TABLE log REPLICA IDENTITY FULL",
        )
        .await;
    let redis = Redis::shared().await;
    let name = unique("keyless");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["t", "log"]) + &cache(redis.url(), &name) + &files(folder)
    });
    let ended = setup.lockstep("check", &[]).await;
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    let cache = section(&ended.stdout, "sinks.cache").join("\n");
    assert!(
        cache.contains("✗ fail  table public.log") && cache.contains("ADD PRIMARY KEY"),
        "{cache}"
    );
    assert!(!cache.contains("public.t "), "{cache}");
    let files = section(&ended.stdout, "sinks.files").join("\n");
    assert!(!files.contains('✗'), "{files}");

    setup.change(
        "inputs = [\"shop\"]\nurl",
        "inputs = [\"shop:public.t\"]\nurl",
    );
    let ended = setup.lockstep("check", &[]).await;
    assert_eq!(ended.code(), Some(0), "{ended:?}");
}

#[tokio::test]
async fn columns_that_a_format_has_no_form_for_are_told_before_and_during_the_run() {
    require!(NeedsPostgres(17));
    let database = table().await;
    database
        .execute(
            "CREATE TYPE pair AS (a int, b int);
             CREATE TABLE shapes (id int PRIMARY KEY, outline pair, note text)",
        )
        .await;
    let name = unique("shapes");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["t", "shapes"]) + &files(folder) + "format = \"debezium\"\n"
    });
    let ended = setup.lockstep("check", &[]).await;
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let files = section(&ended.stdout, "sinks.files").join("\n");
    assert!(
        files.contains("table public.shapes") && files.contains("outline"),
        "{files}"
    );
    let mut pipeline = setup.start_ready().await;
    database
        .execute("INSERT INTO shapes VALUES (1, (2, 3), 'x')")
        .await;
    let end = crate::support::end_of_log(&database).await;
    pipeline
        .wait_visible("shop", &end, lockstep_e2e::child::PATIENCE)
        .await;
    let log = pipeline.log();
    assert!(
        log.contains("columns are left out") && log.contains("outline"),
        "{log}"
    );
}

//! An initial copy that is killed again and again ends with every row, and reads few of them twice.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Instant;

use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::{Pipeline, Random, Setup};
use lockstep_kit::Component::Postgres as NeedsPostgres;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::{require, unique};
use serde_json::Value;

use crate::support::{end_of_log, files, source};

/// Times that lockstep is killed.
const KILLS: u64 = 5;

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |data| data.len())
}

/// Bytes per line, by the first ones.
fn line(path: &Path) -> Option<u64> {
    let mut head = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(1 << 16).read_to_end(&mut head).ok()?;
    let lines = head.iter().filter(|byte| **byte == b'\n').count() as u64;
    (lines > 10).then(|| head.len() as u64 / lines)
}

/// The id of a record of a copied row. Not parsed: there are millions.
fn id_of_copied(line: &str) -> Option<usize> {
    let (_, rest) = line.split_once("\"key\":{\"id\":")?;
    let (id, rest) = rest.split_once('}')?;
    rest.contains("\"op\":\"r\"").then(|| id.parse().ok())?
}

/// Waits until about so many rows have been written.
async fn written(pipeline: &mut Pipeline, path: &Path, rows: u64) {
    pipeline
        .until(PATIENCE * 10, "more rows", async |_| {
            let length = length(path);
            match line(path) {
                Some(line) if length >= rows * line => Ok(()),
                _ => Err(format!("{length} bytes")),
            }
        })
        .await;
}

/// Waits until some of the copy is on record as durable: before that, an interrupted one begins anew.
async fn recorded(pipeline: &mut Pipeline, setup: &Setup) {
    let state = setup.state().join("sources").join("shop");
    let is_there = |name: &str, what: &str| {
        let text = std::fs::read_to_string(state.join(name)).unwrap_or_default();
        text.contains(what)
    };
    pipeline
        .until(PATIENCE, "a record of the copy", async |_| {
            let recorded =
                is_there("copy.json", "\"from\"") || is_there("reloads.json", "\"after\"");
            recorded.then_some(()).ok_or_else(|| "none".to_owned())
        })
        .await;
}

/// Waits until nothing is left to load.
pub async fn loaded(pipeline: &mut Pipeline, database: &Database) {
    pipeline
        .until(PATIENCE * 10, "the rest to be loaded", async |pipeline| {
            let (_, body) = pipeline
                .get("/api/snapshot")
                .await
                .map_err(|error| error.to_string())?;
            let all: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
            let open = |one: &Value| one["state"] == "waiting" || one["state"] == "running";
            match all["shop"].as_array() {
                Some(requests) if !requests.iter().any(open) => Ok(()),
                _ => Err(body),
            }
        })
        .await;
    let end = end_of_log(database).await;
    pipeline.wait_visible("shop", &end, PATIENCE * 10).await;
}

async fn copy_with_kills(rows: u64, chunk: &str) {
    let mut random = Random::from_environment();
    let database = Postgres::shared(17).await.database("shop").await;
    database
        .execute(&format!(
            "CREATE TABLE t (id bigint PRIMARY KEY, customer int, note text);
             INSERT INTO t SELECT g, g % 1000, md5(g::text) FROM generate_series(1, {rows}) g"
        ))
        .await;
    let name = unique("resume");
    let setup = Setup::new(&name, |folder| {
        let chunk = format!("snapshot_chunk = \"{chunk}\"\n");
        source(database.url(), &name, &["t"]) + &chunk + &files(folder)
    });
    let path = setup.folder().join("t.jsonl");
    let begun = Instant::now();
    for kill in 0..KILLS {
        let mut pipeline = setup.start();
        let share = rows / (KILLS + 1);
        let target = kill * share + share / 2 + random.below(share);
        written(&mut pipeline, &path, target).await;
        recorded(&mut pipeline, &setup).await;
        pipeline.kill9();
    }
    let mut pipeline = setup.start_ready().await;
    loaded(&mut pipeline, &database).await;
    let seconds = begun.elapsed().as_secs_f64();
    assert!(pipeline.terminate(PATIENCE).await.success());

    let mut times = vec![0u8; rows as usize + 1];
    let lines = BufReader::new(std::fs::File::open(&path).expect("a file")).lines();
    for line in lines {
        let line = line.expect("a line");
        let id = id_of_copied(&line).unwrap_or_else(|| panic!("not a copied row: {line}"));
        times[id] += 1;
    }
    let missing = times[1..].iter().filter(|times| **times == 0).count();
    assert_eq!(missing, 0, "rows that are missing");
    let all: u64 = times.iter().map(|times| u64::from(*times)).sum();
    let again = all - rows;
    let percent = again as f64 * 100.0 / rows as f64;
    println!("{rows} rows, {KILLS} kills: {again} read again ({percent:.2} %), {seconds:.0} s");
    assert!(percent < 10.0, "{again} of {rows} rows were read again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_killed_five_times_reads_few_rows_again() {
    require!(NeedsPostgres(17));
    copy_with_kills(2_500_000, "1MiB").await;
}

/// The size that `docs/reliability.md` speaks of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes"]
async fn five_million_rows_killed_five_times() {
    require!(NeedsPostgres(17));
    copy_with_kills(5_000_000, "8MiB").await;
}

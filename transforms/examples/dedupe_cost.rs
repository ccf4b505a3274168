//! What `dedupe` costs: time per keyed row, memory, and what the store takes, while keys pour through a window.
//!
//! `cargo run --release -p lockstep-transforms --example dedupe_cost [million rows] [million rows per window] [redis://…]`
//!
//! Without a URL the embedded store is measured.

#![allow(clippy::print_stdout, clippy::expect_used, reason = "a measurement")]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_core::Result;
use lockstep_core::batch::{Batch, BatchBuilder, Cell, Change, Op, Phase, Row, Transaction};
use lockstep_core::position::{Lsn, SourceIdentity, SourceInfo};
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};
use lockstep_core::transform::{DeadLetters, TransformContext, TransformFactory};
use lockstep_transforms::Dedupe;
use lockstep_transforms::dedupe::DedupeConfig;

const BATCH: u64 = 1000;
/// One row in so many repeats the key of the row before it.
const REPEATS: u64 = 100;

struct Nowhere;

impl DeadLetters for Nowhere {
    fn keep(&self, _: &str, _: &str, _: &Batch, _: &Change, _: Option<Row<'_>>) -> Result<()> {
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::result::Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut million = |default: f64| -> std::result::Result<u64, Box<dyn Error>> {
        let number = arguments.next().map(|text| text.parse::<f64>());
        Ok((number.transpose()?.unwrap_or(default) * 1e6) as u64)
    };
    let (rows, per_window) = (million(3.0)?, million(1.0)?);
    let store = match arguments.next() {
        Some(url) => serde_json::json!({"type": "redis", "url": url}),
        None => serde_json::json!({"type": "embedded"}),
    };
    let directory = tempfile::tempdir()?;
    let config: DedupeConfig = serde_json::from_value(serde_json::json!({
        "key": ["idempotency_key"], "window": "100d", "store": store
    }))?;
    let context = TransformContext {
        pipeline: format!("cost-{}", std::process::id()).into(),
        name: "once".into(),
        state: directory.path().to_owned(),
        dead_letters: Arc::new(Nowhere),
    };
    let mut dedupe = Dedupe::open(&config, context)?;
    let schema = payments();
    dedupe.bind(&schema)?;
    dedupe.ready().await?;
    let before = resident();
    let (mut cpu, mut wall, mut slowest) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let (mut passed, mut part) = (0, (Duration::ZERO, Duration::ZERO));
    for batch in 0..rows / BATCH {
        // 100 days of commit time pass in `per_window` rows.
        let micros = (batch * BATCH) as i64 * (100 * 86_400_000_000 / per_window as i64);
        let input = inserts(&schema, batch, micros);
        let (start, busy) = (Instant::now(), thread_cpu());
        let output = dedupe.apply(Arc::new(input)).await?;
        let (took, busy) = (start.elapsed(), thread_cpu().saturating_sub(busy));
        slowest = slowest.max(took);
        (cpu, wall) = (cpu + busy, wall + took);
        part = (part.0 + busy, part.1 + took);
        passed += output.changes().len() as u64;
        let done = (batch + 1) * BATCH;
        if done.is_multiple_of(rows / 10) {
            let per_row = |time: Duration| time.as_secs_f64() * 1e6 / (rows / 10) as f64;
            let size = dedupe.size().unwrap_or_default();
            println!(
                "{done:>10} rows  {:>6.2} CPU-µs/row  {:>6.2} µs/row  resident +{:>4} MiB  {:>9} keys {:>5} MiB  files {:>5} MiB",
                per_row(part.0),
                per_row(part.1),
                resident().saturating_sub(before) >> 20,
                size.keys,
                size.bytes.unwrap_or(0) >> 20,
                disk(directory.path()) >> 20,
            );
            part = (Duration::ZERO, Duration::ZERO);
        }
    }
    let start = Instant::now();
    dedupe.persist()?;
    let synced = start.elapsed();
    println!(
        "{:.2} CPU-µs/row and {:.2} µs/row over all, slowest batch of {BATCH} {:.1} ms, persist {:.1} ms, {passed} passed, {} repeats",
        cpu.as_secs_f64() * 1e6 / rows as f64,
        wall.as_secs_f64() * 1e6 / rows as f64,
        slowest.as_secs_f64() * 1e3,
        synced.as_secs_f64() * 1e3,
        dedupe.duplicates(),
    );
    let start = Instant::now();
    drop(dedupe);
    println!("closed in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// Rows with their own primary keys and uuids as keys, in random order of digests.
fn inserts(schema: &Arc<TableSchema>, batch: u64, micros: i64) -> Batch {
    let mut builder = BatchBuilder::new();
    let mut block = Vec::new();
    builder.begin(Transaction {
        commit: Lsn(batch + 1),
        commit_micros: micros,
        xid: 1,
        origin: None,
        previous_commit: None,
        prepared: None,
        global: None,
    });
    let index = builder.schema(schema);
    for row in 0..BATCH {
        let id = batch * BATCH + row;
        let key = if id % REPEATS == 1 { id - 1 } else { id };
        let start = builder.cells().len();
        for text in [
            id.to_string(),
            format!("{key:08x}-0000-4000-8000-{key:012x}"),
            "paid".to_owned(),
        ] {
            let cell = Cell::text(block.len() as u32, text.len() as u32);
            block.extend_from_slice(text.as_bytes());
            builder.cells().push(cell);
        }
        builder.push(Op::Insert, index, row + 1, Lsn(batch), None, Some(start));
    }
    let source = SourceInfo {
        name: "orders".into(),
        identity: SourceIdentity {
            system: 1,
            timeline: 1,
            incarnation: 0,
            database: "orders".into(),
        },
    };
    builder.finish(Arc::new(source), Phase::Stream, None, Bytes::from(block))
}

fn payments() -> Arc<TableSchema> {
    let column = |slot: u16, name: &str, oid, ty: &str| Column {
        name: name.into(),
        ty: ColumnType {
            oid,
            typmod: -1,
            name: ty.into(),
            kind: TypeKind::Base,
        },
        slot,
        not_null: false,
    };
    Arc::new(TableSchema {
        source: "orders".into(),
        id: TableId::new("public", "payments"),
        origin: TableId::new("public", "payments"),
        relation: 1,
        version: 1,
        columns: vec![
            column(0, "id", 20, "int8"),
            column(1, "idempotency_key", 2950, "uuid"),
            column(2, "status", 25, "text"),
        ],
        key: vec![0],
        identity: ReplicaIdentity::Default,
        width: 3,
    })
}

/// Time that this thread was on a CPU: other work on the machine does not count.
fn thread_cpu() -> Duration {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = statistics
        .split_whitespace()
        .next()
        .and_then(|text| text.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// Resident memory of this process, where the system tells.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line
        .and_then(|line| line.split_whitespace().nth(1))
        .and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn disk(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => disk(&entry.path()),
            Ok(meta) => used(&meta),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(unix)]
fn used(meta: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(meta) * 512
}

#[cfg(not(unix))]
fn used(meta: &std::fs::Metadata) -> u64 {
    meta.len()
}

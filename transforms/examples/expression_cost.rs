//! What an expression costs per change, beside the same condition in SQL, and what a `map` costs.
//!
//! `cargo run --release -p lockstep-transforms --example expression_cost [million changes]`

#![allow(clippy::print_stdout, clippy::expect_used, reason = "a measurement")]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use lockstep_core::Result;
use lockstep_core::batch::{Batch, BatchBuilder, Cell, Change, Op, Phase, Row, Transaction};
use lockstep_core::position::{Lsn, SourceIdentity, SourceInfo};
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};
use lockstep_core::transform::{DeadLetters, Transform, TransformContext, TransformFactory};
use lockstep_transforms::{Filter, Map};
use serde_json::{Value, json};

const BATCH: u64 = 1000;
/// Times that each is measured; the least counts.
const RUNS: usize = 5;

/// Pairs of conditions that mean the same: in SQL and in CEL.
const CONDITIONS: [(&str, &str, &str); 4] = [
    ("one text", "status <> 'cancelled'", "status != 'cancelled'"),
    (
        "text and decimal",
        "status <> 'cancelled' and total > 10",
        "status != 'cancelled' && total > 10",
    ),
    (
        "list and integer",
        "status in ('paid', 'sent') or quantity >= 900",
        "status in ['paid', 'sent'] || quantity >= 900",
    ),
    (
        "time",
        "at >= '2026-01-01'",
        "at >= timestamp('2026-01-01T00:00:00Z')",
    ),
];

const MAPS: [(&str, &str); 4] = [
    ("map: a column again", "status"),
    ("map: integers", "quantity * 2 + 1"),
    ("map: decimals", "total * 1.19"),
    ("map: texts", "status.upperAscii() + '/' + string(id)"),
];

struct Nowhere;

impl DeadLetters for Nowhere {
    fn keep(&self, _: &str, _: &str, _: &Batch, _: &Change, _: Option<Row<'_>>) -> Result<()> {
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::result::Result<(), Box<dyn Error>> {
    let million = std::env::args().nth(1).map(|text| text.parse::<f64>());
    let batches = (million.transpose()?.unwrap_or(1.0) * 1e6) as u64 / BATCH;
    let schema = orders();
    let batch = Arc::new(inserts(&schema));
    println!("{:<22} {:>10} {:>10}", "per change", "SQL", "CEL");
    for (name, sql, cel) in CONDITIONS {
        let sql = cost::<Filter>(json!({ "where": sql }), &schema, &batch, batches).await?;
        let cel = cost::<Filter>(json!({ "when": cel }), &schema, &batch, batches).await?;
        println!("{name:<22} {sql:>7.0} ns {cel:>7.0} ns");
    }
    for (name, expression) in MAPS {
        let section = json!({ "set": { "made": expression } });
        let cel = cost::<Map>(section, &schema, &batch, batches).await?;
        println!("{name:<22} {:>10} {cel:>7.0} ns", "");
    }
    Ok(())
}

/// Nanoseconds of the CPU per change.
async fn cost<F: TransformFactory>(
    section: Value,
    schema: &Arc<TableSchema>,
    batch: &Arc<Batch>,
    batches: u64,
) -> std::result::Result<f64, Box<dyn Error>> {
    let config: F::Config = serde_json::from_value(section)?;
    let context = TransformContext {
        pipeline: "cost".into(),
        name: "here".into(),
        state: Path::new("/nonexistent").to_owned(),
        dead_letters: Arc::new(Nowhere),
    };
    let mut transform: Box<dyn Transform> = F::open(&config, context)?;
    transform.bind(schema)?;
    let mut least = f64::MAX;
    for _ in 0..RUNS {
        let start = Instant::now();
        for _ in 0..batches.div_ceil(RUNS as u64) {
            std::hint::black_box(transform.apply(Arc::clone(batch)).await?);
        }
        let changes = batches.div_ceil(RUNS as u64) * BATCH;
        least = least.min(start.elapsed().as_secs_f64() * 1e9 / changes as f64);
    }
    Ok(least)
}

fn orders() -> Arc<TableSchema> {
    let columns = [
        ("id", "int8", 20),
        ("status", "text", 25),
        ("total", "numeric", 1700),
        ("quantity", "int4", 23),
        ("at", "timestamptz", 1184),
        ("note", "text", 25),
    ];
    let columns = columns
        .iter()
        .zip(0..)
        .map(|((name, ty, oid), slot)| Column {
            name: (*name).into(),
            ty: ColumnType {
                oid: *oid,
                typmod: -1,
                name: (*ty).into(),
                kind: TypeKind::Base,
            },
            slot,
            not_null: true,
        });
    Arc::new(TableSchema {
        source: "shop".into(),
        id: TableId::new("public", "orders"),
        origin: TableId::new("public", "orders"),
        relation: 1,
        version: 1,
        columns: columns.collect(),
        key: vec![0],
        identity: ReplicaIdentity::Full,
        width: 6,
    })
}

fn inserts(schema: &Arc<TableSchema>) -> Batch {
    let mut builder = BatchBuilder::new();
    let mut block = Vec::new();
    builder.begin(Transaction {
        commit: Lsn(1),
        commit_micros: 0,
        xid: 1,
        origin: None,
        previous_commit: None,
        prepared: None,
        global: None,
    });
    let index = builder.schema(schema);
    for row in 0..BATCH {
        let start = builder.cells().len();
        let status = ["paid", "sent", "cancelled", "open"][row as usize % 4];
        let values = [
            row.to_string(),
            status.to_owned(),
            format!("{}.{:02}", row % 300, row % 100),
            (row % 1000).to_string(),
            format!("202{}-11-23 04:05:{:02}.123456+00", 4 + row % 4, row % 60),
            "a note that nobody looks at".to_owned(),
        ];
        for value in values {
            let offset = block.len() as u32;
            block.extend_from_slice(value.as_bytes());
            builder.cells().push(Cell::text(offset, value.len() as u32));
        }
        builder.push(Op::Insert, index, row + 1, Lsn(1), None, Some(start));
    }
    let source = Arc::new(SourceInfo {
        name: "shop".into(),
        identity: SourceIdentity {
            system: 1,
            timeline: 1,
            incarnation: 0,
            database: "shop".into(),
        },
    });
    builder.finish(source, Phase::Stream, Some(Lsn(1)), Bytes::from(block))
}

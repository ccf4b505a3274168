//! Nanoseconds per change of a nine-column row, in one thread: `cargo bench -p lockstep-encode`.
//!
//! Each round encodes the same batch of 1,000 changes (about as much as a connector reads at a time) into reused buffers,
//! and is shorter than a time slice: the fastest round is what the work takes, the median what a busy machine made of it.

#![allow(clippy::print_stdout, clippy::expect_used, missing_docs)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use lockstep_core::batch::{Batch, BatchBuilder, Cell, OldImage, Op, Phase, Transaction};
use lockstep_core::position::{Lsn, SourceIdentity, SourceInfo};
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};
use lockstep_encode::avro::Ids;
use lockstep_encode::envelope::{DebeziumOptions, Decimals, Encoder, Format};
use lockstep_encode::fold::fold;
use lockstep_encode::row::RowJson;

const CHANGES: u64 = 1000;
const ROUNDS: usize = 1001;

fn schema() -> Arc<TableSchema> {
    let columns = [
        ("id", 20, "int8", -1),
        ("customer_id", 20, "int8", -1),
        ("status", 25, "text", -1),
        ("total", 1700, "numeric", (12 << 16 | 2) + 4),
        ("paid", 16, "bool", -1),
        ("created_at", 1184, "timestamptz", -1),
        ("updated_at", 1114, "timestamp", -1),
        ("reference", 2950, "uuid", -1),
        ("note", 25, "text", -1),
    ];
    let id = TableId::new("public", "orders");
    Arc::new(TableSchema {
        source: "orders".into(),
        id: id.clone(),
        origin: id,
        relation: 16_384,
        version: 1,
        columns: columns
            .iter()
            .enumerate()
            .map(|(slot, (name, oid, ty, typmod))| Column {
                name: (*name).into(),
                ty: ColumnType {
                    oid: *oid,
                    typmod: *typmod,
                    name: (*ty).into(),
                    kind: TypeKind::Base,
                },
                slot: slot as u16,
                not_null: true,
            })
            .collect(),
        key: vec![0],
        identity: ReplicaIdentity::Default,
        width: 9,
    })
}

fn batch(op: Op, old: bool) -> Batch {
    let schema = schema();
    let mut block = Vec::new();
    let mut builder = BatchBuilder::new();
    for ordinal in 0..CHANGES {
        if ordinal % 100 == 0 {
            builder.begin(Transaction {
                commit: Lsn(29_672_896 + ordinal * 500),
                commit_micros: 1_795_342_720_581_473 + ordinal as i64,
                xid: 801,
                origin: None,
                previous_commit: Some(Lsn(29_672_000 + ordinal * 500)),
                prepared: None,
                global: None,
            });
        }
        let values = [
            (1_000_000 + ordinal).to_string(),
            (ordinal % 977).to_string(),
            "processing".to_owned(),
            format!("{}.{:02}", ordinal % 1000, ordinal % 100),
            "t".to_owned(),
            format!("2026-11-22 10:18:{:02}.581473+00", ordinal % 60),
            format!("2026-11-22 10:18:{:02}.123", ordinal % 60),
            format!("a0eebc99-9c0b-4ef8-bb6d-{ordinal:012}"),
            format!("leave it at the door of the neighbour, order {ordinal:08}"),
        ];
        let mut row = || {
            let start = builder.cells().len();
            for value in &values {
                let cell = Cell::text(block.len() as u32, value.len() as u32);
                block.extend_from_slice(value.as_bytes());
                builder.cells().push(cell);
            }
            start
        };
        let before = old.then(&mut row);
        let after = row();
        let index = builder.schema(&schema);
        let lsn = Lsn(29_672_896 + ordinal * 400);
        let before = before.map(|start| (OldImage::Full, start));
        builder.push(op, index, ordinal % 1000 + 1, lsn, before, Some(after));
    }
    let source = SourceInfo {
        name: "orders".into(),
        identity: SourceIdentity {
            system: 7_000_000_000_000_000_001,
            timeline: 1,
            incarnation: 0,
            database: "shop".into(),
        },
    };
    builder.finish(Arc::new(source), Phase::Stream, None, Bytes::from(block))
}

/// Runs `work` over the batch, which returns how many `unit`s it made, and prints what one change took.
fn measure(name: &str, unit: &str, mut work: impl FnMut() -> usize) {
    let mut made = 0;
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            made = black_box(work());
            start.elapsed().as_nanos() as f64 / CHANGES as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    let (best, median) = (rounds[0], rounds[ROUNDS / 2]);
    println!(
        "{name:<28} {best:>6.0} ns/change (median {median:.0}) {:>6} {unit}",
        made as u64 / CHANGES
    );
}

fn encode(name: &str, format: Format, batch: &Batch) {
    encode_by(Encoder::new(format), name, batch);
}

fn encode_in_avro(name: &str, format: Format, batch: &Batch) {
    let mut encoder = Encoder::avro(format).expect("has a form");
    encoder.register(&batch.schemas()[0], Ids { key: 1, value: 2 });
    encode_by(encoder, name, batch);
}

fn encode_by(mut encoder: Encoder, name: &str, batch: &Batch) {
    measure(name, "bytes", || {
        let mut bytes = 0;
        for change in batch.changes() {
            encoder
                .encode(batch, change, &mut |record| {
                    let record = black_box(record);
                    bytes += record.value.map_or(0, <[u8]>::len);
                    Ok(())
                })
                .expect("valid values");
        }
        bytes
    });
}

fn main() {
    let insert = batch(Op::Insert, false);
    let full = batch(Op::Update, true);
    encode("debezium insert", Format::default(), &insert);
    for (name, decimals) in [
        ("debezium insert, precise", Decimals::Precise),
        ("debezium insert, double", Decimals::Double),
    ] {
        encode(
            name,
            Format::Debezium(DebeziumOptions { decimals }),
            &insert,
        );
    }
    encode("debezium update, FULL", Format::default(), &full);
    encode("flat insert", Format::Flat, &insert);
    encode_in_avro("debezium insert, Avro", Format::default(), &insert);
    encode_in_avro("debezium update, FULL, Avro", Format::default(), &full);
    encode_in_avro("flat insert, Avro", Format::Flat, &insert);
    let rows = RowJson::new(&insert.schemas()[0]);
    let (mut out, mut missing) = (Vec::new(), Vec::new());
    measure("row JSON", "bytes", || {
        let mut bytes = 0;
        for change in insert.changes() {
            out.clear();
            let row = insert.new_row(change).expect("an insert has a row");
            rows.write(row, &mut out, &mut missing)
                .expect("valid values");
            bytes += black_box(&out).len();
        }
        bytes
    });
    measure("fold, all keys distinct", "write", || {
        black_box(fold(&insert)).expect("has a key").len()
    });
}

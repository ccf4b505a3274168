//! Decoding and encoding alone, in memory, on one thread.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use lockstep_core::batch::Batch;
use lockstep_core::position::{Lsn, SourceIdentity, SourceInfo};
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};
use lockstep_encode::avro::Ids;
use lockstep_encode::envelope::{DEFAULT_DECIMALS, DebeziumOptions, Encoder, Format};
use lockstep_pg::wire::frame;
use lockstep_postgres::assemble::{Assembler, Step};

use crate::Result;
use crate::report::median;

/// As the stream cuts its batches.
const BLOCK: usize = 512 * 1024;
const REPEATS: usize = 9;
const RELATION: u32 = 16_400;

/// Measures and prints.
///
/// # Errors
/// When what was made here cannot be decoded.
pub fn print(quick: bool) -> Result<()> {
    let rows = if quick { 20_000 } else { 200_000 };
    for per_transaction in [1000, 1] {
        let stream = stream(rows, per_transaction);
        let mut decode = Vec::new();
        let mut encode = FORMATS.map(|_| Vec::new());
        let mut bytes = FORMATS.map(|_| 0);
        for _ in 0..REPEATS {
            let mut batches = Vec::new();
            let started = Instant::now();
            let decoded = decoded(&stream, |batch| batches.push(batch))?;
            decode.push(started.elapsed().as_nanos() as f64 / rows as f64);
            if decoded != rows {
                return Err(format!("{decoded} of {rows} rows decoded").into());
            }
            // Side by side, so that a busy moment is none of one alone.
            for (at, (_, format, is_avro)) in FORMATS.iter().enumerate() {
                let started = Instant::now();
                bytes[at] = encoded(&batches, *format, *is_avro)?;
                encode[at].push(started.elapsed().as_nanos() as f64 / rows as f64);
            }
        }
        println!(
            "in memory, {per_transaction:>4} rows/tx: frames to batches {:>4.0} ns/row",
            median(decode)
        );
        for (((name, ..), times), bytes) in FORMATS.iter().zip(encode).zip(bytes) {
            println!(
                "in memory, {per_transaction:>4} rows/tx: batches to {:>3} B of {name} {:>4.0} ns/row",
                bytes / rows,
                median(times)
            );
        }
    }
    Ok(())
}

/// As the stream's thread does it: bytes into a block, frames out of it, a batch per block.
fn decoded(stream: &[u8], mut hand_on: impl FnMut(Batch)) -> Result<u64> {
    let mut assembler = Assembler::new(source(), Lsn(1));
    let (mut rows, mut at) = (0, 0);
    let mut rest: Vec<u8> = Vec::new();
    while at < stream.len() {
        let mut block = Vec::with_capacity(BLOCK);
        block.extend_from_slice(&rest);
        let take = (BLOCK - block.len()).min(stream.len() - at);
        block.extend_from_slice(&stream[at..at + take]);
        at += take;
        let mut parsed = 0;
        while let Some(found) = frame::next(&block, parsed)? {
            match assembler.take(&block, found.start + 25, found.end, Lsn(1))? {
                Step::Taken => {}
                Step::Define(described) | Step::DefineFirst(described) => {
                    assembler.define(described, Some(schema()));
                }
            }
            parsed = found.end;
        }
        rest = block.split_off(parsed);
        let batch = assembler.flush(Bytes::from(block));
        rows += batch.changes().len() as u64;
        hand_on(batch);
    }
    Ok(rows)
}

/// What is compared: name, envelope, and whether it is in Avro.
const FORMATS: [(&str, Format, bool); 4] = [
    ("debezium JSON", Format::Debezium(DEFAULT), false),
    ("debezium Avro", Format::Debezium(DEFAULT), true),
    ("flat JSON", Format::Flat, false),
    ("flat Avro", Format::Flat, true),
];
const DEFAULT: DebeziumOptions = DebeziumOptions {
    decimals: DEFAULT_DECIMALS,
};

/// Bytes of keys and values.
fn encoded(batches: &[Batch], format: Format, is_avro: bool) -> Result<u64> {
    let mut encoder = match is_avro {
        true => Encoder::avro(format)?,
        false => Encoder::new(format),
    };
    let mut bytes = 0;
    for batch in batches {
        for schema in batch.schemas() {
            if encoder.unregistered(schema)?.is_some() {
                encoder.register(schema, Ids { key: 1, value: 2 });
            }
        }
        for change in batch.changes() {
            encoder.encode(batch, change, &mut |record| {
                bytes += record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
                black_box(&record);
                Ok(())
            })?;
        }
    }
    Ok(bytes as u64)
}

fn source() -> Arc<SourceInfo> {
    Arc::new(SourceInfo {
        name: "shop".into(),
        identity: SourceIdentity {
            system: 7_300_000_000_000_000_000,
            timeline: 1,
            incarnation: 0,
            database: "bench".into(),
        },
    })
}

const COLUMNS: [(&str, u32, i32, &str); 9] = [
    ("id", 20, -1, "int8"),
    ("customer_id", 20, -1, "int8"),
    ("reference", 2950, -1, "uuid"),
    ("status", 25, -1, "text"),
    ("quantity", 23, -1, "int4"),
    ("total", 1700, (12 << 16) | (2 + 4), "numeric"),
    ("created_at", 1184, -1, "timestamptz"),
    ("updated_at", 1184, -1, "timestamptz"),
    ("note", 25, -1, "text"),
];

fn schema() -> Arc<TableSchema> {
    let columns = COLUMNS.iter().zip(0..);
    let id = TableId::new("public", "batches");
    Arc::new(TableSchema {
        source: "shop".into(),
        id: id.clone(),
        origin: id,
        relation: RELATION,
        version: 1,
        columns: columns
            .map(|(&(name, oid, typmod, ty), slot)| Column {
                name: name.into(),
                ty: ColumnType {
                    oid,
                    typmod,
                    name: ty.into(),
                    kind: TypeKind::Base,
                },
                slot,
                not_null: true,
            })
            .collect(),
        key: vec![0],
        identity: ReplicaIdentity::Default,
        width: COLUMNS.len() as u16,
    })
}

/// What the server would send for such rows, framing included (PostgreSQL documentation, §55.9).
fn stream(rows: u64, per_transaction: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut relation = vec![b'R'];
    relation.extend_from_slice(&RELATION.to_be_bytes());
    relation.extend_from_slice(b"public\0batches\0d");
    relation.extend_from_slice(&(COLUMNS.len() as u16).to_be_bytes());
    for (at, (name, oid, typmod, _)) in COLUMNS.iter().enumerate() {
        relation.push(u8::from(at == 0));
        relation.extend_from_slice(name.as_bytes());
        relation.push(0);
        relation.extend_from_slice(&oid.to_be_bytes());
        relation.extend_from_slice(&typmod.to_be_bytes());
    }
    framed(&mut out, &relation);
    for row in 0..rows {
        let commit = 1000 + row / per_transaction * 1000;
        if row % per_transaction == 0 {
            let mut begin = vec![b'B'];
            begin.extend_from_slice(&commit.to_be_bytes());
            begin.extend_from_slice(&[0; 12]);
            framed(&mut out, &begin);
        }
        framed(&mut out, &insert(row + 1));
        if (row + 1) % per_transaction == 0 {
            let mut end = vec![b'C', 0];
            end.extend_from_slice(&commit.to_be_bytes());
            end.extend_from_slice(&(commit + 8).to_be_bytes());
            end.extend_from_slice(&[0; 8]);
            framed(&mut out, &end);
        }
    }
    out
}

fn framed(out: &mut Vec<u8>, payload: &[u8]) {
    out.push(b'd');
    out.extend_from_slice(&(4 + 25 + payload.len() as u32).to_be_bytes());
    out.push(b'w');
    out.extend_from_slice(&[0; 24]);
    out.extend_from_slice(payload);
}

fn insert(id: u64) -> Vec<u8> {
    let values = [
        id.to_string(),
        (id % 90_000 + 10_000).to_string(),
        format!("{id:08x}-1111-2222-3333-444455556666"),
        "returned".to_owned(),
        (id % 90 + 10).to_string(),
        format!("{}.{:02}", id % 9000 + 1000, id % 100),
        format!("2026-11-22 10:11:{:02}.123456+00", id % 60),
        format!("2026-11-22 11:12:{:02}.654321+00", id % 60),
        format!("{id:060}"),
    ];
    let mut out = vec![b'I'];
    out.extend_from_slice(&RELATION.to_be_bytes());
    out.push(b'N');
    out.extend_from_slice(&(values.len() as u16).to_be_bytes());
    for value in values {
        out.push(b't');
        out.extend_from_slice(&(value.len() as u32).to_be_bytes());
        out.extend_from_slice(value.as_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_here_is_decoded_and_encoded() {
        let mut batches = Vec::new();
        let stream = stream(3000, 1000);
        assert_eq!(
            decoded(&stream, |batch| batches.push(batch)).expect("valid"),
            3000
        );
        assert_eq!(
            batches.last().and_then(|batch| batch.through),
            Some(Lsn(3008))
        );
        for (name, format, is_avro) in FORMATS {
            let bytes = encoded(&batches, format, is_avro).expect("encodes");
            assert!(bytes > 3000 * 100, "{name}: {bytes}");
        }
    }
}

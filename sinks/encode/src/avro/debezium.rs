//! Debezium's envelope. What each field says is as in [`crate::envelope`]'s JSON.

use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::batch::{Phase, Transaction};
use lockstep_core::position::{Lsn, SourceInfo};
use lockstep_core::schema::TableSchema;

use super::columns::Columns;
use super::wire::{HEADER, NULL, PRESENT, write_bytes, write_long, write_some_long};
use crate::envelope::encoder::{Context, Event};
use crate::value::Mapping;

/// What is fixed for one schema version.
#[derive(Debug)]
pub(crate) struct Body {
    header: [u8; HEADER],
    columns: Columns,
    /// The beginning of `source`: version, connector, name.
    source: Vec<u8>,
    /// Database.
    database: Vec<u8>,
    /// Schema and table.
    table: Vec<u8>,
    transaction: TransactionBytes,
}

/// The parts of `source` that all changes of one transaction to one table share.
#[derive(Debug, Default)]
struct TransactionBytes {
    /// What they were made from.
    of: Option<(Phase, Transaction)>,
    /// From the beginning to `sequence`.
    head: Vec<u8>,
    /// `["29672000","` of `sequence`.
    sequence: Vec<u8>,
    /// From `sequence` to `lsn`.
    middle: Vec<u8>,
    /// What follows, and the `transaction` that there is none of.
    tail: Vec<u8>,
}

impl Body {
    pub(super) fn new(
        schema: &Arc<TableSchema>,
        mapping: Mapping,
        source: &SourceInfo,
        header: [u8; HEADER],
    ) -> Result<Self> {
        let strings = |parts: &[&str]| {
            let mut out = Vec::new();
            for part in parts {
                write_bytes(part.as_bytes(), &mut out);
            }
            out
        };
        let version = concat!("lockstep-", env!("CARGO_PKG_VERSION"));
        Ok(Body {
            header,
            columns: Columns::all(schema, mapping)?.0,
            source: strings(&[version, "postgresql", &*source.name]),
            database: strings(&[&*source.identity.database]),
            table: strings(&[&*schema.origin.schema, &*schema.origin.name]),
            transaction: TransactionBytes::default(),
        })
    }

    /// Gets ready for the changes of a transaction.
    pub(crate) fn begin(&mut self, phase: Phase, transaction: &Transaction) {
        let known = self.transaction.of.as_ref();
        if known.is_some_and(|(of, known)| *of == phase && known == transaction) {
            return;
        }
        let mut bytes = std::mem::take(&mut self.transaction);
        bytes.of = Some((phase, transaction.clone()));
        let micros = transaction.commit_micros;
        let head = &mut bytes.head;
        head.clear();
        head.extend_from_slice(&self.source);
        write_long(micros.div_euclid(1000), head);
        // Of this union null is the second branch.
        head.push(0);
        let snapshot: &[u8] = match phase {
            Phase::Stream | Phase::Replay => b"false",
            Phase::Snapshot | Phase::Check => b"true",
        };
        write_bytes(snapshot, head);
        head.extend_from_slice(&self.database);
        head.push(PRESENT);

        bytes.sequence.clear();
        match transaction.previous_commit {
            Some(previous) => {
                bytes.sequence.extend_from_slice(b"[\"");
                let mut number = itoa::Buffer::new();
                bytes
                    .sequence
                    .extend_from_slice(number.format(previous.0).as_bytes());
                bytes.sequence.extend_from_slice(b"\",\"");
            }
            None => bytes.sequence.extend_from_slice(b"[null,\""),
        }

        let middle = &mut bytes.middle;
        middle.clear();
        write_some_long(micros, middle);
        write_some_long(micros.saturating_mul(1000), middle);
        middle.extend_from_slice(&self.table);
        match transaction.xid {
            0 => middle.push(NULL),
            xid => write_some_long(i64::from(xid), middle),
        }
        middle.push(PRESENT);

        let tail = &mut bytes.tail;
        tail.clear();
        // `xmin`.
        tail.push(NULL);
        match &transaction.origin {
            None => tail.push(NULL),
            Some(origin) => {
                tail.push(PRESENT);
                write_bytes(origin.as_bytes(), tail);
            }
        }
        // `origin_lsn`.
        tail.push(NULL);
        self.transaction = bytes;
    }

    pub(super) fn write(
        &self,
        context: Context<'_>,
        event: Event<'_>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        out.extend_from_slice(&self.header);
        match event.before {
            None => out.push(NULL),
            Some(before) => {
                out.push(PRESENT);
                self.columns.write(before, event.after, out)?;
            }
        }
        match event.after {
            None => out.push(NULL),
            Some(after) => {
                out.push(PRESENT);
                self.columns.write(after, event.before, out)?;
            }
        }
        self.write_source(context.change.lsn, out);
        // No `transaction`; `op` of one letter.
        out.extend_from_slice(&[NULL, 1 << 1, event.op]);
        write_some_long(context.now.millis as i64, out);
        write_some_long(context.now.micros as i64, out);
        write_some_long(context.now.nanos as i64, out);
        Ok(())
    }

    /// A logical message: other fields, in another order.
    pub(super) fn write_message(
        &self,
        context: Context<'_>,
        prefix: &[u8],
        content: &[u8],
        out: &mut Vec<u8>,
    ) {
        out.extend_from_slice(&self.header);
        out.extend_from_slice(&[1 << 1, b'm']);
        write_some_long(context.now.millis as i64, out);
        self.write_source(context.change.lsn, out);
        // No `transaction`.
        out.extend_from_slice(&[NULL, PRESENT]);
        write_bytes(prefix, out);
        out.push(PRESENT);
        write_bytes(content, out);
    }

    fn write_source(&self, lsn: Lsn, out: &mut Vec<u8>) {
        let of = &self.transaction;
        let mut number = itoa::Buffer::new();
        let digits = number.format(lsn.0).as_bytes();
        out.extend_from_slice(&of.head);
        write_long((of.sequence.len() + digits.len() + 2) as i64, out);
        out.extend_from_slice(&of.sequence);
        out.extend_from_slice(digits);
        out.extend_from_slice(b"\"]");
        out.extend_from_slice(&of.middle);
        // PostgreSQL's positions stay far below half of what 64 bits hold.
        write_long(lsn.0.cast_signed(), out);
        out.extend_from_slice(&of.tail);
    }
}

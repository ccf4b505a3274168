//! The value as Debezium's PostgreSQL connector 3.6.3 writes it with `schemas.enable=false`, field for field.

use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::batch::{Phase, Transaction};
use lockstep_core::position::{Lsn, SourceInfo};
use lockstep_core::schema::TableSchema;

use super::encoder::{Context, Event};
use crate::columns::Columns;
use crate::value::Mapping;
use crate::value::text::{write_base64_string, write_string};

/// What is fixed for one schema version.
#[derive(Debug)]
pub(super) struct Body {
    columns: Columns,
    /// `"source":{"version":…,"ts_ms":`
    source: Vec<u8>,
    /// `,"snapshot":"false","db":"shop","sequence":"[`
    stream: Vec<u8>,
    /// The same for the initial copy.
    snapshot: Vec<u8>,
    /// `,"schema":"public","table":"orders","txId":`
    table: Vec<u8>,
    transaction: TransactionText,
}

/// The parts of `source` that all changes of one transaction to one table share.
#[derive(Debug, Default)]
struct TransactionText {
    /// What the text was made from.
    of: Option<(Phase, Transaction)>,
    /// From `"source":{` to the LSN in `sequence`.
    head: Vec<u8>,
    /// From there to the LSN in `lsn`.
    middle: Vec<u8>,
    /// From there to the comma behind `"transaction":null`.
    tail: Vec<u8>,
}

impl Body {
    pub(super) fn new(schema: &Arc<TableSchema>, mapping: Mapping, source: &SourceInfo) -> Self {
        let text = |parts: &[(&str, Option<&str>)]| {
            let mut out = Vec::new();
            for (literal, value) in parts {
                out.extend_from_slice(literal.as_bytes());
                if let Some(value) = value {
                    write_string(value.as_bytes(), &mut out).expect("a str is UTF-8");
                }
            }
            out
        };
        let phase = |word| {
            text(&[
                (",\"snapshot\":", Some(word)),
                (",\"db\":", Some(&*source.identity.database)),
                (",\"sequence\":\"[", None),
            ])
        };
        Body {
            columns: Columns::all(schema, mapping),
            source: text(&[
                (
                    "\"source\":{\"version\":",
                    Some(concat!("lockstep-", env!("CARGO_PKG_VERSION"))),
                ),
                (",\"connector\":", Some("postgresql")),
                (",\"name\":", Some(&*source.name)),
                (",\"ts_ms\":", None),
            ]),
            stream: phase("false"),
            snapshot: phase("true"),
            table: text(&[
                (",\"schema\":", Some(&*schema.origin.schema)),
                (",\"table\":", Some(&*schema.origin.name)),
                (",\"txId\":", None),
            ]),
            transaction: TransactionText::default(),
        }
    }

    /// Gets ready for the changes of a transaction.
    pub(super) fn begin(&mut self, phase: Phase, transaction: &Transaction) {
        let known = self.transaction.of.as_ref();
        if known.is_some_and(|(of, known)| *of == phase && known == transaction) {
            return;
        }
        let mut text = std::mem::take(&mut self.transaction);
        text.of = Some((phase, transaction.clone()));
        text.head.clear();
        self.write_head(phase, transaction, &mut text.head);
        text.middle.clear();
        self.write_middle(transaction, &mut text.middle);
        text.tail.clear();
        text.tail.extend_from_slice(b",\"xmin\":null,\"origin\":");
        match &transaction.origin {
            None => text.tail.extend_from_slice(b"null"),
            Some(origin) => {
                write_string(origin.as_bytes(), &mut text.tail).expect("a str is UTF-8");
            }
        }
        text.tail
            .extend_from_slice(b",\"origin_lsn\":null},\"transaction\":null,");
        self.transaction = text;
    }

    pub(super) fn write(
        &self,
        context: Context<'_>,
        event: Event<'_>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        match event.before {
            None => out.extend_from_slice(b"{\"before\":null,\"after\":"),
            Some(before) => {
                out.extend_from_slice(b"{\"before\":");
                self.columns.write(before, out)?;
                out.extend_from_slice(b",\"after\":");
            }
        }
        match event.after {
            None => out.extend_from_slice(b"null"),
            Some(after) => self.columns.write(after, out)?,
        }
        out.push(b',');
        self.write_source(context.change.lsn, out);
        out.extend_from_slice(b"\"op\":\"");
        out.push(event.op);
        out.extend_from_slice(b"\",");
        out.extend_from_slice(context.now.fields.as_bytes());
        out.push(b'}');
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
        out.extend_from_slice(b"{\"op\":\"m\",\"ts_ms\":");
        out.extend_from_slice(itoa::Buffer::new().format(context.now.millis).as_bytes());
        out.push(b',');
        self.write_source(context.change.lsn, out);
        out.extend_from_slice(b"\"message\":{\"prefix\":");
        out.extend_from_slice(prefix);
        out.extend_from_slice(b",\"content\":");
        write_base64_string(content, out);
        out.extend_from_slice(b"}}");
    }

    fn write_source(&self, lsn: Lsn, out: &mut Vec<u8>) {
        let mut number = itoa::Buffer::new();
        let lsn = number.format(lsn.0).as_bytes();
        for part in [
            &self.transaction.head,
            lsn,
            &self.transaction.middle,
            lsn,
            &self.transaction.tail,
        ] {
            out.extend_from_slice(part);
        }
    }

    fn write_head(&self, phase: Phase, transaction: &Transaction, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.source);
        write_number(transaction.commit_micros.div_euclid(1000), out);
        out.extend_from_slice(match phase {
            Phase::Stream | Phase::Replay => &self.stream,
            Phase::Snapshot | Phase::Check => &self.snapshot,
        });
        match transaction.previous_commit {
            Some(previous) => {
                out.extend_from_slice(br#"\""#);
                out.extend_from_slice(itoa::Buffer::new().format(previous.0).as_bytes());
                out.extend_from_slice(br#"\""#);
            }
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(br#",\""#);
    }

    fn write_middle(&self, transaction: &Transaction, out: &mut Vec<u8>) {
        let micros = transaction.commit_micros;
        out.extend_from_slice(br#"\"]","ts_us":"#);
        write_number(micros, out);
        out.extend_from_slice(b",\"ts_ns\":");
        write_number(micros.saturating_mul(1000), out);
        out.extend_from_slice(&self.table);
        if transaction.xid == 0 {
            out.extend_from_slice(b"null");
        } else {
            out.extend_from_slice(itoa::Buffer::new().format(transaction.xid).as_bytes());
        }
        out.extend_from_slice(b",\"lsn\":");
    }
}

fn write_number(value: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

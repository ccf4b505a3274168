//! The `flat` format: one object with the row in the natural mapping ([`crate::row`]) and what is known of the change.
//!
//! | field | value |
//! |---|---|
//! | `op` | `r` row of the initial copy, `c` insert, `u` update, `d` delete, `t` truncate, `m` logical message |
//! | `source`, `schema`, `table` | where the row lives; of a message, `schema` and `table` are `""` |
//! | `commit_lsn`, `ordinal` | the identity of the change: 16 hex digits, and the count inside the transaction from 1 |
//! | `xid` | transaction id, or null |
//! | `ts` | commit time, ISO 8601, UTC, microseconds |
//! | `key` | the key columns in key order, or null without a key |
//! | `row` | the new row; absent for `d`, `t`, `m` |
//! | `old` | the whole old row, where the table sends it (REPLICA IDENTITY FULL) |
//! | `unchanged` | names of columns left out of `row`: large values that the update did not touch |
//! | `new_key`, `old_key` | on the `d` and on the `c` that a key change becomes: the other key |
//! | `message` | of a message: `prefix`, and `content` in base64 |
//! | `duplicate` | `true` when `dedupe` marked the change, else absent |

use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::batch::OldImage;
use lockstep_core::position::SourceInfo;
use lockstep_core::schema::TableSchema;

use super::encoder::{Context, Event, write_hex16};
use crate::columns::Columns;
use crate::value::Mapping;
use crate::value::temporal::write_micros_iso;
use crate::value::text::{write_base64_string, write_string};

/// What is fixed for one schema version.
#[derive(Debug)]
pub(super) struct Body {
    columns: Columns,
    /// `","source":"orders","schema":"public","table":"orders","commit_lsn":"`
    table: Vec<u8>,
}

impl Body {
    pub(super) fn new(schema: &Arc<TableSchema>, source: &SourceInfo) -> Self {
        let mut table = Vec::new();
        for (literal, value) in [
            ("\",\"source\":", &source.name),
            (",\"schema\":", &schema.origin.schema),
            (",\"table\":", &schema.origin.name),
        ] {
            table.extend_from_slice(literal.as_bytes());
            write_string(value.as_bytes(), &mut table).expect("a str is UTF-8");
        }
        table.extend_from_slice(b",\"commit_lsn\":\"");
        Body {
            columns: Columns::all(schema, Mapping::Natural),
            table,
        }
    }

    pub(super) fn write(
        &self,
        context: Context<'_>,
        event: Event<'_>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        self.write_head(context, event.op, out);
        out.extend_from_slice(b",\"key\":");
        out.extend_from_slice(event.key.unwrap_or(b"null"));
        if let Some(other) = event.other_key {
            out.extend_from_slice(if event.after.is_some() {
                b",\"old_key\":"
            } else {
                b",\"new_key\":"
            });
            out.extend_from_slice(other);
        }
        let mut missing = Vec::new();
        if let Some(after) = event.after {
            out.extend_from_slice(b",\"row\":");
            self.columns.write_present(after, out, &mut missing)?;
        }
        if let Some(before) = event.before
            && context.change.old_image == OldImage::Full
        {
            out.extend_from_slice(b",\"old\":");
            self.columns.write_present(before, out, &mut Vec::new())?;
        }
        self.write_unchanged(&missing, out);
        write_tail(context, out);
        Ok(())
    }

    pub(super) fn write_message(
        &self,
        context: Context<'_>,
        prefix: &[u8],
        content: &[u8],
        out: &mut Vec<u8>,
    ) {
        self.write_head(context, b'm', out);
        out.extend_from_slice(b",\"message\":{\"prefix\":");
        out.extend_from_slice(prefix);
        out.extend_from_slice(b",\"content\":");
        write_base64_string(content, out);
        out.push(b'}');
        write_tail(context, out);
    }

    fn write_head(&self, context: Context<'_>, op: u8, out: &mut Vec<u8>) {
        let Context { batch, change, .. } = context;
        let transaction = batch.transaction(change);
        out.extend_from_slice(b"{\"op\":\"");
        out.push(op);
        out.extend_from_slice(&self.table);
        write_hex16(transaction.commit.0, out);
        out.extend_from_slice(b"\",\"ordinal\":");
        out.extend_from_slice(itoa::Buffer::new().format(change.ordinal).as_bytes());
        out.extend_from_slice(b",\"xid\":");
        if transaction.xid == 0 {
            out.extend_from_slice(b"null");
        } else {
            out.extend_from_slice(itoa::Buffer::new().format(transaction.xid).as_bytes());
        }
        out.extend_from_slice(b",\"ts\":");
        write_micros_iso(transaction.commit_micros, out);
    }

    fn write_unchanged(&self, missing: &[u16], out: &mut Vec<u8>) {
        if missing.is_empty() {
            return;
        }
        out.extend_from_slice(b",\"unchanged\":[");
        for (count, index) in missing.iter().enumerate() {
            if count > 0 {
                out.push(b',');
            }
            let name = &self.columns.schema().columns[usize::from(*index)].name;
            write_string(name.as_bytes(), out).expect("a str is UTF-8");
        }
        out.push(b']');
    }
}

fn write_tail(context: Context<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(if context.change.duplicate {
        b",\"duplicate\":true}"
    } else {
        b"}"
    });
}

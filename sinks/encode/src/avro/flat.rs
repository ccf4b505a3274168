//! The `flat` envelope. What each field says is as in [`crate::envelope`]'s JSON; what may be absent there is null here, and
//! `unchanged` is empty.

use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::batch::OldImage;
use lockstep_core::position::SourceInfo;
use lockstep_core::schema::TableSchema;

use super::columns::Columns;
use super::wire::{
    Blocks, HEADER, NULL, PRESENT, string_of_quoted, write_bytes, write_long, write_some_long,
};
use crate::envelope::encoder::{Context, Event, write_hex16};
use crate::value::Mapping;
use crate::value::temporal::write_micros_iso;

/// What is fixed for one schema version.
#[derive(Debug)]
pub(crate) struct Body {
    header: [u8; HEADER],
    columns: Columns,
    /// Source, schema and table.
    table: Vec<u8>,
    has_key: bool,
}

impl Body {
    pub(super) fn new(
        schema: &Arc<TableSchema>,
        source: &SourceInfo,
        header: [u8; HEADER],
    ) -> Result<Self> {
        let mut table = Vec::new();
        let origin = &schema.origin;
        for part in [&*source.name, &*origin.schema, &*origin.name] {
            write_bytes(part.as_bytes(), &mut table);
        }
        Ok(Body {
            header,
            columns: Columns::all(schema, Mapping::Natural)?.0,
            table,
            has_key: !Columns::key(schema, Mapping::Natural)?.0.is_empty(),
        })
    }

    pub(super) fn write(
        &self,
        context: Context<'_>,
        event: Event<'_>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        self.write_head(context, event.op, out);
        if self.has_key {
            let (new_key, old_key) = match event.after {
                Some(_) => (None, event.other_key),
                None => (event.other_key, None),
            };
            for key in [event.key, new_key, old_key] {
                write_key(key, out);
            }
        }
        let mut missing = Vec::new();
        match event.after {
            Some(after) => {
                out.push(PRESENT);
                self.columns
                    .write_present(after, event.before, out, &mut missing)?;
            }
            None => out.push(NULL),
        }
        match event.before {
            Some(before) if context.change.old_image == OldImage::Full => {
                out.push(PRESENT);
                self.columns
                    .write_present(before, event.after, out, &mut Vec::new())?;
            }
            _ => out.push(NULL),
        }
        let mut blocks = Blocks::default();
        for index in &missing {
            blocks.item(out);
            let column = &self.columns.schema().columns[usize::from(*index)];
            write_bytes(column.name.as_bytes(), out);
        }
        blocks.end(out);
        out.push(u8::from(context.change.duplicate));
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
        write_bytes(prefix, out);
        write_bytes(content, out);
        out.push(u8::from(context.change.duplicate));
    }

    fn write_head(&self, context: Context<'_>, op: u8, out: &mut Vec<u8>) {
        let Context { batch, change, .. } = context;
        let transaction = batch.transaction(change);
        out.extend_from_slice(&self.header);
        out.extend_from_slice(&[1 << 1, op]);
        out.extend_from_slice(&self.table);
        out.push(16 << 1);
        write_hex16(transaction.commit.0, out);
        write_long(change.ordinal.cast_signed(), out);
        match transaction.xid {
            0 => out.push(NULL),
            xid => write_some_long(i64::from(xid), out),
        }
        let start = out.len();
        write_micros_iso(transaction.commit_micros, out);
        string_of_quoted(start, out);
    }
}

/// A key of a record, without what its schema is called.
fn write_key(key: Option<&[u8]>, out: &mut Vec<u8>) {
    match key.and_then(|key| key.get(HEADER..)) {
        Some(key) => {
            out.push(PRESENT);
            out.extend_from_slice(key);
        }
        None => out.push(NULL),
    }
}

//! Events of an outbox: key, payload and headers are what the application wrote, byte for byte. No envelope, whatever the format.

use std::borrow::Cow;

use lockstep_core::Result;
use lockstep_core::batch::{CellRef, Row};
use lockstep_core::schema::{Column, EVENT_COLUMNS, TableSchema};

use crate::value::Bad;
use crate::value::text::hex_bytes;

/// `bytea`, of `pg_type.dat`.
const BYTEA: u32 = 17;

/// What an event says.
pub(super) struct Said<'a> {
    pub(super) key: Option<Cow<'a, [u8]>>,
    /// `None` is a tombstone.
    pub(super) payload: Option<Cow<'a, [u8]>>,
    /// The event's id first. What is NULL is left out.
    pub(super) headers: Vec<(&'a str, Cow<'a, [u8]>)>,
}

/// # Errors
/// Kind `Refused`, naming table and column, for a value that the log does not carry as text.
pub(super) fn said<'a>(schema: &'a TableSchema, row: Row<'a>) -> Result<Said<'a>> {
    let value = |column: &'a Column| bytes(schema, column, row.get(column));
    let headers = schema.columns[..1]
        .iter()
        .chain(&schema.columns[EVENT_COLUMNS..]);
    let headers = headers.filter_map(|column| {
        let value = value(column).transpose()?;
        Some(value.map(|value| (&*column.name, value)))
    });
    Ok(Said {
        headers: headers.collect::<Result<_>>()?,
        key: value(&schema.columns[1])?,
        payload: value(&schema.columns[2])?,
    })
}

/// The bytes of a value: of `bytea` those it stands for, of other types their text.
fn bytes<'a>(
    schema: &TableSchema,
    column: &Column,
    cell: CellRef<'a>,
) -> Result<Option<Cow<'a, [u8]>>> {
    const EXPECTED: &str = r"`\x` and hexadecimal digits";
    match cell {
        CellRef::Null => Ok(None),
        CellRef::Text(text) if column.ty.oid == BYTEA => {
            let decoded = match text.strip_prefix(br"\x") {
                Some(hex) => hex_bytes(hex, EXPECTED),
                None => Err(Bad::Malformed(EXPECTED)),
            };
            let decoded = decoded.map_err(|bad| bad.of(schema, column))?;
            Ok(Some(Cow::Owned(decoded)))
        }
        CellRef::Text(text) => Ok(Some(Cow::Borrowed(text))),
        CellRef::Binary(bytes) if column.ty.oid == BYTEA => Ok(Some(Cow::Borrowed(bytes))),
        CellRef::Binary(_) => Err(Bad::Binary.of(schema, column)),
        CellRef::Unchanged => Err(crate::errors::absent(schema, column)),
    }
}

//! Events of an outbox: key, payload and headers are what the application wrote, byte for byte. No envelope, whatever the format.

use std::borrow::Cow;

use lockstep_core::Result;
use lockstep_core::batch::{CellRef, Row};
use lockstep_core::schema::{Column, EVENT_COLUMNS, TableSchema};
use serde::de::IgnoredAny;

use crate::value::Bad;
use crate::value::text::{hex_bytes, write_base64_string, write_string};

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

/// Text as a JSON string; other bytes as [`json_of`] has them.
pub(super) fn json_of_text(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 2);
    if write_string(bytes, &mut out).is_err() {
        out.clear();
        out.extend_from_slice(br#"{"base64":"#);
        write_base64_string(bytes, &mut out);
        out.push(b'}');
    }
    out
}

/// JSON as it is, and all else as [`json_of_text`] has it.
pub(super) fn json_of(bytes: &[u8]) -> Cow<'_, [u8]> {
    match serde_json::from_slice::<IgnoredAny>(bytes) {
        Ok(_) => Cow::Borrowed(bytes),
        Err(_) => Cow::Owned(json_of_text(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::json_of;

    #[test]
    fn anything_becomes_json() {
        for (bytes, json) in [
            (&br#"{"a": 1.50}"#[..], r#"{"a": 1.50}"#),
            (b"hi \"there\"", r#""hi \"there\"""#),
            (b"", r#""""#),
            (b"\xff\x00", r#"{"base64":"/wA="}"#),
        ] {
            assert_eq!(String::from_utf8_lossy(&json_of(bytes)), json);
        }
    }
}

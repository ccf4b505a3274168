//! The key of a row.

use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::batch::{CellRef, Row};
use lockstep_core::schema::TableSchema;

use crate::columns::Columns;
use crate::errors::{absent, no_key};
use crate::value::{Bad, Mapping};

/// Appends the key of a row as one text, the `{key}` of templates: the key values in key order, as PostgreSQL prints
/// them, joined by `:`. `%` and `:` inside a value are written `%25` and `%3A`, so that different keys have different
/// texts.
///
/// # Errors
/// Kind `Setup` when the table has no key; kind `Refused`, naming table and column, when a key value is absent or not
/// UTF-8. `out` then holds part of the key.
pub fn key_text(schema: &TableSchema, row: Row<'_>, out: &mut String) -> Result<()> {
    key_text_or(schema, row, None, out)
}

/// [`key_text`] of a row whose unchanged key values are to be found in `old`.
pub(crate) fn key_text_or(
    schema: &TableSchema,
    row: Row<'_>,
    old: Option<Row<'_>>,
    out: &mut String,
) -> Result<()> {
    if schema.key.is_empty() {
        return Err(no_key(schema));
    }
    for (index, column) in schema.key_columns().enumerate() {
        if index > 0 {
            out.push(':');
        }
        let cell = match (row.get(column), old) {
            (CellRef::Unchanged, Some(old)) => old.get(column),
            (cell, _) => cell,
        };
        let value = match cell {
            CellRef::Text(value) => value,
            CellRef::Null | CellRef::Unchanged => return Err(absent(schema, column)),
            CellRef::Binary(_) => return Err(Bad::Binary.of(schema, column)),
        };
        let value = std::str::from_utf8(value).map_err(|_| Bad::NotUtf8.of(schema, column))?;
        push_escaped(value, out);
    }
    Ok(())
}

/// The key values that [`key_text`] has made `text` of; `None` when it makes that of no values of this many columns. `{` and `}`
/// may be percent-encoded, too.
#[must_use]
pub fn key_values(text: &str, columns: usize) -> Option<Vec<String>> {
    let values: Vec<String> = text.split(':').map(unescaped).collect::<Option<_>>()?;
    (values.len() == columns).then_some(values)
}

fn unescaped(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut out = parts.next()?.to_owned();
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        out.push(match code {
            "25" => '%',
            "3A" => ':',
            "7B" => '{',
            "7D" => '}',
            _ => return None,
        });
        out.push_str(rest);
    }
    Some(out)
}

fn push_escaped(value: &str, out: &mut String) {
    let mut rest = value;
    while let Some(at) = memchr::memchr2(b'%', b':', rest.as_bytes()) {
        out.push_str(&rest[..at]);
        out.push_str(if rest.as_bytes()[at] == b'%' {
            "%25"
        } else {
            "%3A"
        });
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
}

/// Whether an update moved the row to another key. `old` is the old image; key values it does not carry, and values the
/// update did not touch, count as equal.
pub(crate) fn key_changed(schema: &TableSchema, old: Row<'_>, new: Row<'_>) -> bool {
    old.has_key(schema)
        && schema.key_columns().any(|column| match new.get(column) {
            CellRef::Unchanged => false,
            cell => cell != old.get(column),
        })
}

/// Writes the key of rows of one schema version as a JSON object in key order, `{"id":1}`: the key of Kafka messages.
#[derive(Debug)]
pub struct KeyJson {
    columns: Columns,
}

impl KeyJson {
    /// The plan for `schema`, in the natural mapping.
    #[must_use]
    pub fn new(schema: &Arc<TableSchema>) -> Self {
        Self::with(schema, Mapping::Natural)
    }

    pub(crate) fn with(schema: &Arc<TableSchema>, mapping: Mapping) -> Self {
        KeyJson {
            columns: Columns::key(schema, mapping),
        }
    }

    /// Appends the key of `row`. `Ok(false)` and nothing written when the table has no key.
    ///
    /// # Errors
    /// Kind `Refused`, naming table and column, when a key value is absent or not what its type can have.
    pub fn write(&self, row: Row<'_>, out: &mut Vec<u8>) -> Result<bool> {
        self.write_or(row, row, out)
    }

    /// [`KeyJson::write`] of a row whose unchanged key values are to be found in `old`.
    pub(crate) fn write_or(&self, row: Row<'_>, old: Row<'_>, out: &mut Vec<u8>) -> Result<bool> {
        if self.columns.is_empty() {
            return Ok(false);
        }
        let schema = self.columns.schema();
        for column in schema.key_columns() {
            let present = |cell| matches!(cell, CellRef::Text(_) | CellRef::Binary(_));
            let cell = row.get(column);
            if !(present(cell) || cell == CellRef::Unchanged && present(old.get(column))) {
                return Err(absent(schema, column));
            }
        }
        self.columns.write_or(row, old, out)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_from_the_text_of_a_key() {
        let text = |values: &[&str]| {
            let mut out = String::new();
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    out.push(':');
                }
                push_escaped(value, &mut out);
            }
            out
        };
        for values in [&["1"][..], &["a:b", "50%", ""], &["%3A", "ü"], &[""]] {
            let back = key_values(&text(values), values.len());
            assert_eq!(
                back.as_deref(),
                Some(
                    &values
                        .iter()
                        .map(|value| (*value).to_owned())
                        .collect::<Vec<_>>()[..]
                )
            );
        }
        assert_eq!(key_values("%7Ba%7D", 1), Some(vec!["{a}".to_owned()]));
        for (text, columns) in [
            ("a:b", 1),
            ("a", 2),
            ("%", 1),
            ("%4", 1),
            ("%41", 1),
            ("%ü", 1),
        ] {
            assert_eq!(key_values(text, columns), None, "{text}");
        }
    }
}

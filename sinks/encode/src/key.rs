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

/// Fails, naming table and column, unless `row` has all key values, or `old` those that an update left as they were.
pub(crate) fn check_present(schema: &TableSchema, row: Row<'_>, old: Row<'_>) -> Result<()> {
    let present = |cell| matches!(cell, CellRef::Text(_) | CellRef::Binary(_));
    for column in schema.key_columns() {
        let cell = row.get(column);
        if !(present(cell) || cell == CellRef::Unchanged && present(old.get(column))) {
            return Err(absent(schema, column));
        }
    }
    Ok(())
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

    /// Whether [`KeyJson::values`] can tell the values of keys at all: not where a type loses something as JSON.
    #[must_use]
    pub fn reads_back(&self) -> bool {
        !self.columns.is_empty() && self.columns.read_back()
    }

    /// The values, as PostgreSQL prints them, of which [`KeyJson::write`] makes just this key; `None` when it is no key of a row.
    #[must_use]
    pub fn values(&self, key: &[u8]) -> Option<Vec<String>> {
        self.columns.values(key)
    }

    /// [`KeyJson::write`] of a row whose unchanged key values are to be found in `old`.
    pub(crate) fn write_or(&self, row: Row<'_>, old: Row<'_>, out: &mut Vec<u8>) -> Result<bool> {
        if self.columns.is_empty() {
            return Ok(false);
        }
        check_present(self.columns.schema(), row, old)?;
        self.columns.write_or(row, old, out)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{Decimals, Format};
    use crate::testing::{Maker, Value, base, table, typed};
    use lockstep_core::batch::{Op, Phase};

    #[test]
    fn values_come_back_from_the_json_of_a_key() {
        let types = [
            (base(23, "int4"), &["7", "-1", "0"][..]),
            (base(16, "bool"), &["t", "f"]),
            (base(25, "text"), &["", "a \"b\" \\ ü\n", "7"]),
            (
                base(2950, "uuid"),
                &["b68a35a7-17ad-35b3-af2a-ae46edb4545a"],
            ),
            (base(1700, "numeric"), &["0.50", "-12", "NaN", "-Infinity"]),
            (base(17, "bytea"), &["\\x", "\\xdeadbeef00"]),
            (base(1560, "bit"), &["1"]),
            (
                base(1082, "date"),
                &[
                    "2024-02-29",
                    "12024-01-01",
                    "0044-03-15 BC",
                    "0001-01-01 BC",
                    "infinity",
                    "-infinity",
                ],
            ),
            (base(1083, "time"), &["13:51:30.5", "00:00:00", "24:00:00"]),
            (typed(1114, "timestamp", 3), &["2024-02-29 13:51:30.123"]),
            (
                base(1114, "timestamp"),
                &[
                    "2024-02-29 13:51:30",
                    "1969-12-31 23:59:59.999999",
                    "0044-03-15 12:00:00 BC",
                    "infinity",
                    "-infinity",
                ],
            ),
            (
                base(1184, "timestamptz"),
                &[
                    "2024-02-29 13:51:30.123+00",
                    "2024-02-29 13:51:30+00",
                    "12024-01-01 00:00:00+00",
                    "0044-03-15 12:00:00+00 BC",
                    "infinity",
                ],
            ),
        ];
        for (ty, values) in types {
            let schema = table("t", &[("a", ty.clone()), ("b", base(25, "text"))], 2);
            for format in [Format::Flat, Format::default()] {
                // A bit as Debezium has it is a truth value, several are bytes.
                if &*ty.name == "bit" && format != Format::Flat {
                    continue;
                }
                let key = format.key(&schema);
                assert!(key.reads_back());
                for value in values {
                    let mut maker = Maker::new(1);
                    let row = [Value::Text(value), Value::Text("x")];
                    maker.push(Op::Read, &schema, None, Some(&row));
                    let batch = maker.batch(Phase::Snapshot);
                    let row = batch.new_row(&batch.changes()[0]).expect("a row");
                    let mut json = Vec::new();
                    key.write(row, &mut json).expect("a key");
                    let text = String::from_utf8_lossy(&json).into_owned();
                    let back = key.values(&json).unwrap_or_else(|| panic!("{text}"));
                    assert_eq!(back, [*value, "x"], "{text}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_key_of_a_row_has_no_values() {
        let columns = [("a", base(23, "int4")), ("b", base(25, "text"))];
        let key = Format::Flat.key(&table("t", &columns, 2));
        assert!(key.values(br#"{"a":1,"b":"x"}"#).is_some());
        for other in [
            r#"{"a":1}"#,
            r#"{"b":"x","a":1}"#,
            r#"{"a":"1","b":"x"}"#,
            r#"{"a":1, "b":"x"}"#,
            r#"{"a":01,"b":"x"}"#,
            r#"{"a":1,"b":"\u0078"}"#,
            r#"{"a":1,"b":"x","c":2}"#,
            r#"{"a":1,"c":"x"}"#,
            r#"{"a":null,"b":"x"}"#,
            "17",
            "",
        ] {
            assert_eq!(key.values(other.as_bytes()), None, "{other}");
        }
        let lossy = table("t", &[("a", base(701, "float8"))], 1);
        let debezium = Format::default().with_decimals(Decimals::Double);
        assert!(!debezium.key(&lossy).reads_back());
    }

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

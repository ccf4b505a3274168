//! Rows of a state sink beside those of the table.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Findings;
use super::expected::Table;

/// Rows by key.
pub(super) type Rows = BTreeMap<i64, Value>;

pub(super) fn compare(place: &str, expected: &Table, rows: &Rows, findings: &mut Findings) {
    for (id, row) in &expected.rows {
        match rows.get(id) {
            None => findings.lost(format_args!("{place} has no {id}")),
            Some(found) => {
                if let Some(difference) = difference(row, found) {
                    findings.stale(format_args!("{place} {id}: {difference}"));
                }
            }
        }
    }
    for (id, row) in rows {
        if !expected.rows.contains_key(id) {
            let row = shortened(&row.to_string());
            findings.stale(format_args!("{place} {id} should be gone: {row}"));
        }
    }
}

/// The first column that differs. A column that is not there is NULL; what only the copy has is of a dropped column.
pub(super) fn difference(expected: &Value, found: &Value) -> Option<String> {
    let columns = expected.as_object()?;
    columns.iter().find_map(|(name, value)| {
        let (value, found) = (text(value), text(&found[name]));
        let shown =
            |value: &Option<String>| value.as_deref().map_or_else(|| "NULL".into(), shortened);
        (value != found).then(|| format!("{name} is {} and not {}", shown(&found), shown(&value)))
    })
}

/// As text: Redis' hashes have no types, and rows written before a column changed its type keep the former one.
pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

pub(super) fn shortened(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{:?}… ({} bytes)", &text[..at], text.len()),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::expected::Table;
    use super::super::{Counts, Findings};
    use super::{Rows, compare};

    #[test]
    fn missing_different_and_extra_rows_are_counted() {
        let expected = Table {
            rows: Rows::from([
                (1, json!({"id": 1, "note": "same", "x": null})),
                (2, json!({"id": 2, "note": "new"})),
                (3, json!({"id": 3, "note": "lost"})),
                (4, json!({"id": 4, "note": null})),
            ]),
            ..Table::default()
        };
        let found = Rows::from([
            (1, json!({"id": "1", "note": "same", "dropped": 1})),
            (2, json!({"id": 2, "note": "old"})),
            (4, json!({"id": 4, "note": ""})),
            (5, json!({"id": 5})),
        ]);
        let mut findings = Findings::default();
        compare("here", &expected, &found, &mut findings);
        let counts = Counts {
            lost: 1,
            stale: 3,
            ..Counts::default()
        };
        assert_eq!(findings.counts, counts, "{:?}", findings.examples);
    }
}

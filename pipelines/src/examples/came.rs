//! What has come of an example, beside what was expected.

use lockstep_core::batch::{Batch, CellRef, Change, OldImage, Op, Row};
use lockstep_core::schema::{Column, ColumnType, TableSchema};
use serde::Serialize;
use serde_json::Value;

use super::table::text;
use super::{Example, Operation};
use crate::file::Section;

/// A line of a comparison.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "is", content = "change", rename_all = "snake_case")]
pub enum Line {
    /// Expected, and it came.
    Same(String),
    /// Expected, and it did not come.
    Missing(String),
    /// Not expected, and it came.
    Surplus(String),
}

/// A change that has come.
#[derive(Clone, Debug)]
pub(crate) struct Came {
    op: Op,
    source: String,
    table: String,
    new: Option<Vec<Field>>,
    old: Option<Vec<Field>>,
}

#[derive(Clone, Debug)]
struct Field {
    name: String,
    ty: ColumnType,
    value: Held,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    Null,
    Unchanged,
    Text(String),
}

impl Came {
    pub(crate) fn of(batch: &Batch, change: &Change) -> Self {
        let schema = batch.schema(change);
        let table = match schema.destination() {
            Some(topic) => topic.to_owned(),
            None => schema.id.to_string(),
        };
        let key_only = change.old_image == OldImage::Key;
        Came {
            op: change.op,
            source: schema.source.to_string(),
            table,
            new: batch.new_row(change).map(|row| fields(schema, row, false)),
            old: batch
                .old_row(change)
                .map(|row| fields(schema, row, key_only)),
        }
    }

    fn line(&self) -> String {
        let mut line = format!("{} {}", self.op.as_str(), self.table);
        for field in self.new.iter().flatten() {
            line += &field.shown();
        }
        if let Some(old) = &self.old {
            line += " old:";
            line.extend(old.iter().map(Field::shown));
        }
        line
    }

    /// Whether it is what was expected; `table`: where that does not say of which table.
    fn is(&self, expected: &Example, table: &str) -> bool {
        let table = expected.table.as_deref().unwrap_or(table);
        let named = table == self.table || *table == format!("{}.{}", self.source, self.table);
        let op = match expected.op {
            Operation::Read => Op::Read,
            Operation::Insert => Op::Insert,
            Operation::Update => Op::Update,
            Operation::Delete => Op::Delete,
            Operation::Truncate => Op::Truncate,
            Operation::Event => Op::Event,
        };
        let new = match (&expected.row, &self.new) {
            (None, None) => true,
            (Some(row), Some(fields)) => same_row(row, &expected.unchanged, fields),
            _ => false,
        };
        let old = expected.old.as_ref().is_none_or(|old| {
            let fields = self.old.as_deref().unwrap_or_default();
            old.iter().all(|(name, value)| {
                fields
                    .iter()
                    .any(|field| field.name == *name && field.is(value))
            })
        });
        named && op == self.op && new && old
    }
}

fn fields(schema: &TableSchema, row: Row<'_>, key_only: bool) -> Vec<Field> {
    let columns: Vec<&Column> = match key_only {
        true => schema.key_columns().collect(),
        false => schema.columns.iter().collect(),
    };
    let field = |column: &Column| Field {
        name: column.name.to_string(),
        ty: column.ty.clone(),
        value: match row.get(column) {
            CellRef::Null => Held::Null,
            CellRef::Unchanged => Held::Unchanged,
            CellRef::Text(bytes) | CellRef::Binary(bytes) => {
                Held::Text(String::from_utf8_lossy(bytes).into_owned())
            }
        },
    };
    columns.into_iter().map(field).collect()
}

/// These columns with these values, and NULL in all others: in TOML nothing can be written for it.
fn same_row(row: &Section, unchanged: &[String], fields: &[Field]) -> bool {
    let names = row.keys().chain(unchanged);
    let there = |name: &String| fields.iter().any(|field| field.name == *name);
    names.into_iter().all(there)
        && fields.iter().all(|field| match row.get(&field.name) {
            Some(value) => field.is(value),
            None if unchanged.contains(&field.name) => field.value == Held::Unchanged,
            None => field.value == Held::Null,
        })
}

impl Field {
    fn shown(&self) -> String {
        let value = match &self.value {
            Held::Null => "NULL",
            Held::Unchanged => "(unchanged)",
            Held::Text(text) => text,
        };
        format!(" {}={value}", self.name)
    }

    fn is(&self, expected: &Value) -> bool {
        match (text(expected, &self.ty), &self.value) {
            (None, held) => *held == Held::Null,
            (Some(expected), Held::Text(held)) => {
                *held == expected
                    || self.same_number(held, &expected)
                    || self.same_json(held, &expected)
            }
            (Some(_), Held::Null | Held::Unchanged) => false,
        }
    }

    /// `19.9` is `19.90`.
    fn same_number(&self, a: &str, b: &str) -> bool {
        let is_number = matches!(
            &*self.ty.name,
            "int2" | "int4" | "int8" | "float4" | "float8" | "numeric"
        );
        is_number && plain(a) == plain(b)
    }

    fn same_json(&self, a: &str, b: &str) -> bool {
        let parsed = |text: &str| serde_json::from_str::<Value>(text).ok();
        matches!(&*self.ty.name, "json" | "jsonb") && parsed(a).is_some() && parsed(a) == parsed(b)
    }
}

/// A number without zeros that say nothing.
fn plain(number: &str) -> &str {
    match number.contains(['.']) && !number.contains(['e', 'E']) {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => number,
    }
}

/// What was expected, as it would have come.
fn wished(expected: &Example, table: &str, came: &[Came]) -> String {
    let op = format!("{:?}", expected.op).to_lowercase();
    let mut line = format!("{op} {}", expected.table.as_deref().unwrap_or(table));
    let value = |value: &Value| match value {
        Value::Null => "NULL".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    // In the order of the columns, as far as it is known: the file's is lost where it is read.
    let like = came.iter().find_map(|came| came.new.as_deref());
    let place = |name: &String| {
        let fields = like.unwrap_or_default();
        let at = fields.iter().position(|field| field.name == *name);
        (at.unwrap_or(usize::MAX), name.clone())
    };
    let mut row: Vec<(&String, &Value)> = expected.row.iter().flatten().collect();
    row.sort_by_key(|(name, _)| place(name));
    for (name, held) in row {
        line += &format!(" {name}={}", value(held));
    }
    for name in &expected.unchanged {
        line += &format!(" {name}=(unchanged)");
    }
    if let Some(old) = &expected.old {
        line += " old:";
        for (name, held) in old {
            line += &format!(" {name}={}", value(held));
        }
    }
    line
}

/// What was expected beside what came, in order: as many lines as possible are the same.
pub(crate) fn compare(expected: &[Example], came: &[Came], table: &str) -> Vec<Line> {
    let (n, m) = (expected.len(), came.len());
    // How many are the same from each pair of places on.
    let mut same = vec![vec![0_usize; m + 1]; n + 1];
    for i in (0..n).rev() {
        for j in (0..m).rev() {
            same[i][j] = match came[j].is(&expected[i], table) {
                true => same[i + 1][j + 1] + 1,
                false => same[i + 1][j].max(same[i][j + 1]),
            };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < n || j < m {
        if i < n && j < m && came[j].is(&expected[i], table) {
            lines.push(Line::Same(came[j].line()));
            (i, j) = (i + 1, j + 1);
        } else if i < n && (j == m || same[i + 1][j] >= same[i][j + 1]) {
            lines.push(Line::Missing(wished(&expected[i], table, came)));
            i += 1;
        } else {
            lines.push(Line::Surplus(came[j].line()));
            j += 1;
        }
    }
    lines
}

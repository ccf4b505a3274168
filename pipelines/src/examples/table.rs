//! Tables of examples, and their rows in the form that a source has them in.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_core::batch::{Batch, BatchBuilder, Cell, OldImage, Op, Phase, Transaction};
use lockstep_core::position::{Lsn, SourceIdentity, SourceInfo};
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};
use lockstep_core::{Error, ErrorKind, Result};
use serde_json::Value;

use super::{Example, Identity, Operation, Table};
use crate::file::{Section, nearest};

/// Names of types, with PostgreSQL's oids.
const TYPES: &[(&str, &str, u32)] = &[
    ("bool", "bool", 16),
    ("boolean", "bool", 16),
    ("bytea", "bytea", 17),
    ("name", "name", 19),
    ("int8", "int8", 20),
    ("bigint", "int8", 20),
    ("bigserial", "int8", 20),
    ("int2", "int2", 21),
    ("smallint", "int2", 21),
    ("int4", "int4", 23),
    ("int", "int4", 23),
    ("integer", "int4", 23),
    ("serial", "int4", 23),
    ("text", "text", 25),
    ("json", "json", 114),
    ("float4", "float4", 700),
    ("real", "float4", 700),
    ("float8", "float8", 701),
    ("double precision", "float8", 701),
    ("inet", "inet", 869),
    ("char", "bpchar", 1042),
    ("bpchar", "bpchar", 1042),
    ("varchar", "varchar", 1043),
    ("character varying", "varchar", 1043),
    ("date", "date", 1082),
    ("time", "time", 1083),
    ("timestamp", "timestamp", 1114),
    ("timestamptz", "timestamptz", 1184),
    ("timestamp with time zone", "timestamptz", 1184),
    ("interval", "interval", 1186),
    ("numeric", "numeric", 1700),
    ("decimal", "numeric", 1700),
    ("uuid", "uuid", 2950),
    ("jsonb", "jsonb", 3802),
    // Of extensions, which have other oids in every database.
    ("citext", "citext", 70_001),
    ("hstore", "hstore", 70_002),
    ("ltree", "ltree", 70_003),
];
/// What an enum is written as, whatever it is called.
const ENUM: &str = "enum";
const ENUM_OID: u32 = 70_000;

fn wrong(problem: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, problem).remedy(remedy)
}

/// `(source, schema.table)`; the only source where none is named.
pub(crate) fn named<'a>(name: &'a str, sources: &'a [Arc<str>]) -> Result<(&'a str, TableId)> {
    let parts: Vec<&str> = name.split('.').collect();
    let (source, schema, table) = match (parts.as_slice(), sources) {
        ([schema, table], [only]) => (&**only, *schema, *table),
        ([source, schema, table], _) => (*source, *schema, *table),
        _ => {
            return Err(wrong(
                format!("`{name}` is no table"),
                "write `schema.table`, or `source.schema.table` where there are several sources",
            ));
        }
    };
    if !sources.iter().any(|known| **known == *source) {
        let near = nearest(source, sources.iter().map(|source| &**source));
        return Err(wrong(
            format!("there is no source `{source}`"),
            near.map_or_else(
                || "name a source".to_owned(),
                |near| format!("write `{near}`"),
            ),
        ));
    }
    Ok((source, TableId::new(schema, table)))
}

/// The table as a source would describe it.
pub(crate) fn schema(table: &Table, sources: &[Arc<str>]) -> Result<Arc<TableSchema>> {
    let (source, id) = named(&table.table, sources)?;
    let column = |(slot, text): (usize, &String)| {
        let (name, ty) = text.trim().split_once(' ').ok_or_else(|| {
            wrong(
                format!("`{text}` is no column"),
                "write a name and a type: `total numeric`",
            )
        })?;
        Ok(Column {
            name: name.into(),
            ty: column_type(ty.trim())?,
            slot: slot as u16,
            not_null: table.key.iter().any(|key| key == name),
        })
    };
    let columns: Vec<Column> = table
        .columns
        .iter()
        .enumerate()
        .map(column)
        .collect::<Result<_>>()?;
    let key = table.key.iter().map(|name| {
        let at = columns.iter().position(|column| *column.name == **name);
        at.map(|at| at as u16).ok_or_else(|| {
            wrong(
                format!("there is no column `{name}` for the key"),
                "name a column",
            )
        })
    });
    Ok(Arc::new(TableSchema {
        source: source.into(),
        origin: id.clone(),
        id,
        relation: 1,
        version: 1,
        key: key.collect::<Result<_>>()?,
        identity: match table.identity {
            Identity::Default => ReplicaIdentity::Default,
            Identity::Full => ReplicaIdentity::Full,
        },
        width: columns.len() as u16,
        columns,
    }))
}

fn column_type(text: &str) -> Result<ColumnType> {
    let text = text.to_lowercase();
    if let Some(element) = text.strip_suffix("[]") {
        let element = column_type(element)?;
        return Ok(ColumnType {
            oid: 0,
            typmod: -1,
            name: format!("_{}", element.name).into(),
            kind: TypeKind::Array(Arc::new(element)),
        });
    }
    let bare = text.split('(').next().unwrap_or(&text).trim();
    if bare == ENUM {
        return Ok(ColumnType {
            oid: ENUM_OID,
            typmod: -1,
            name: ENUM.into(),
            kind: TypeKind::Enum,
        });
    }
    let known = TYPES.iter().find(|(name, ..)| *name == bare);
    let Some((_, name, oid)) = known else {
        let near = nearest(bare, TYPES.iter().map(|(name, ..)| *name));
        let remedy = near.map_or_else(
            || "write a built-in type of PostgreSQL, `enum` for any enum, `text` for what is only passed on".to_owned(),
            |near| format!("write `{near}`, if that is meant"),
        );
        return Err(wrong(
            format!("the type `{bare}` is not known here"),
            remedy,
        ));
    };
    Ok(ColumnType {
        oid: *oid,
        typmod: -1,
        name: (*name).into(),
        kind: TypeKind::Base,
    })
}

/// A value of an example as PostgreSQL writes it; `None` for NULL.
pub(crate) fn text(value: &Value, ty: &ColumnType) -> Option<String> {
    let is_json = matches!(&*ty.name, "json" | "jsonb");
    Some(match (value, &ty.kind) {
        (Value::Null, _) => return None,
        (Value::String(text), _) => text.clone(),
        (Value::Bool(value), _) if !is_json => if *value { "t" } else { "f" }.to_owned(),
        (Value::Array(elements), TypeKind::Array(element)) => {
            let elements: Vec<String> = elements
                .iter()
                .map(|value| match text(value, element) {
                    None => "NULL".to_owned(),
                    Some(text) => quoted(&text),
                })
                .collect();
            format!("{{{}}}", elements.join(","))
        }
        (value, _) => value.to_string(),
    })
}

/// An element of an array, in quotes where PostgreSQL writes them.
fn quoted(text: &str) -> String {
    let special = |c: char| matches!(c, '{' | '}' | ',' | '"' | '\\') || c.is_whitespace();
    if text.is_empty() || text.eq_ignore_ascii_case("null") || text.contains(special) {
        let text = text.replace('\\', r"\\").replace('"', "\\\"");
        return format!("\"{text}\"");
    }
    text.to_owned()
}

/// Puts changes of one source into a batch, each a transaction of its own.
pub(crate) struct Feed {
    source: Arc<SourceInfo>,
    builder: BatchBuilder,
    block: Vec<u8>,
    last: Lsn,
}

impl Feed {
    pub(crate) fn new(source: &str) -> Self {
        Feed {
            source: Arc::new(SourceInfo {
                name: source.into(),
                identity: SourceIdentity {
                    system: 1,
                    timeline: 1,
                    incarnation: 0,
                    database: source.into(),
                },
            }),
            builder: BatchBuilder::new(),
            block: Vec::new(),
            last: Lsn::ZERO,
        }
    }

    /// Adds a change, the `number`th of its test.
    pub(crate) fn push(
        &mut self,
        schema: &Arc<TableSchema>,
        example: &Example,
        number: u64,
    ) -> Result<()> {
        let op = match example.op {
            Operation::Read => Op::Read,
            Operation::Insert => Op::Insert,
            Operation::Update => Op::Update,
            Operation::Delete => Op::Delete,
            Operation::Truncate => Op::Truncate,
            Operation::Event => {
                return Err(wrong(
                    "an event does not go in",
                    "write the row that an outbox makes it of",
                ));
            }
        };
        let full = schema.identity == ReplicaIdentity::Full;
        let needs_new = matches!(op, Op::Read | Op::Insert | Op::Update);
        if needs_new != example.row.is_some() {
            let problem = format!(
                "{} {} row",
                op.as_str(),
                if needs_new { "needs a" } else { "has no" }
            );
            return Err(wrong(problem, "the new row is `row`, the old one `old`"));
        }
        let needs_old = op == Op::Delete || (op == Op::Update && full);
        if needs_old && example.old.is_none() {
            let problem = format!("{} of this table has the old row, or its key", op.as_str());
            return Err(wrong(problem, "add `old = { … }`"));
        }
        if example.old.is_some() && !matches!(op, Op::Update | Op::Delete) {
            return Err(wrong(
                format!("{} has no old row", op.as_str()),
                "take `old` out",
            ));
        }
        let old = match &example.old {
            None => None,
            Some(old) => {
                let image = if full { OldImage::Full } else { OldImage::Key };
                Some((image, self.row(schema, old, &[], image == OldImage::Key)?))
            }
        };
        let new = match &example.row {
            None => None,
            Some(row) => Some(self.row(schema, row, &example.unchanged, false)?),
        };
        self.last = Lsn(number * 64);
        self.builder.begin(Transaction {
            commit: self.last,
            // A second apart, and far from the beginning of time.
            commit_micros: 1_700_000_000_000_000 + number as i64 * 1_000_000,
            xid: number as u32,
            origin: None,
            previous_commit: None,
            prepared: None,
            global: None,
        });
        let index = self.builder.schema(schema);
        self.builder.push(op, index, 1, self.last, old, new);
        self.builder.end_transaction();
        Ok(())
    }

    fn row(
        &mut self,
        schema: &TableSchema,
        row: &Section,
        unchanged: &[String],
        key_only: bool,
    ) -> Result<usize> {
        let mut values: BTreeMap<&str, &Value> = row
            .iter()
            .map(|(name, value)| (name.as_str(), value))
            .collect();
        let known = |name: &str| schema.column(name).is_some();
        let unknown = values
            .keys()
            .copied()
            .chain(unchanged.iter().map(String::as_str))
            .find(|name| !known(name));
        if let Some(name) = unknown {
            let near = nearest(name, schema.columns.iter().map(|column| &*column.name));
            return Err(wrong(
                format!(
                    "there is no column `{name}`; there are {}",
                    schema.column_list()
                ),
                near.map_or_else(
                    || "name a column of the table".to_owned(),
                    |near| format!("write `{near}`"),
                ),
            ));
        }
        let start = self.builder.cells().len();
        for (index, column) in schema.columns.iter().enumerate() {
            let of_key = schema.key.contains(&(index as u16));
            let value = values.remove(&*column.name).filter(|_| of_key || !key_only);
            let cell = match value.and_then(|value| text(value, &column.ty)) {
                _ if unchanged.iter().any(|name| **name == *column.name) => Cell::UNCHANGED,
                None => Cell::NULL,
                Some(text) => {
                    let offset = self.block.len() as u32;
                    self.block.extend_from_slice(text.as_bytes());
                    Cell::text(offset, text.len() as u32)
                }
            };
            self.builder.cells().push(cell);
        }
        Ok(start)
    }

    pub(crate) fn finish(mut self) -> Batch {
        self.builder.finish(
            self.source,
            Phase::Stream,
            Some(self.last),
            self.block.into(),
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn types_are_known_by_their_names() {
        for (text, name, oid) in [
            ("numeric(10, 2)", "numeric", 1700),
            ("Timestamp With Time Zone", "timestamptz", 1184),
            ("varchar(5)", "varchar", 1043),
        ] {
            let ty = column_type(text).expect(text);
            assert_eq!((&*ty.name, ty.oid), (name, oid));
        }
        let tags = column_type("text[]").expect("an array");
        assert!(matches!(tags.kind, TypeKind::Array(_)));
        let error = column_type("intger").expect_err("no type").to_string();
        assert!(error.contains("`integer`"), "{error}");
    }

    #[test]
    fn values_are_written_as_postgresql_writes_them() {
        let of = |value: Value, ty: &str| text(&value, &column_type(ty).expect(ty));
        assert_eq!(of(json!(true), "bool").as_deref(), Some("t"));
        assert_eq!(of(json!(true), "jsonb").as_deref(), Some("true"));
        assert_eq!(of(json!(1.5), "numeric").as_deref(), Some("1.5"));
        assert_eq!(of(json!({"a": 1}), "jsonb").as_deref(), Some(r#"{"a":1}"#));
        assert_eq!(of(json!(null), "text"), None);
        let list = json!(["a", "b c", "", null, "say \"x\""]);
        assert_eq!(
            of(list, "text[]").as_deref(),
            Some(r#"{a,"b c","",NULL,"say \"x\""}"#)
        );
    }
}

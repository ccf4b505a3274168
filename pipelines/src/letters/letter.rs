//! A dead letter: one change with all that is needed to write it again, as JSON that people can read.

use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::batch::{
    Batch, BatchBuilder, Cell, CellRef, Change, Global, OldImage, Op, Phase, Prepared, Row,
    Transaction,
};
use lockstep_core::position::{Lsn, Position, SourceIdentity, SourceInfo};
use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::shape::{Schemas, Shape};
use crate::run::now_micros;

/// What lists show of a letter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// Its number in the store, from 1; 0 until it is there. Never used twice.
    pub id: u64,
    /// Who put it aside: `sinks.cache`, `transforms.once`.
    pub place: String,
    /// A word of [`lockstep_core::refusal::reason`], or a transform's own.
    pub reason: String,
    /// What was said when it was refused last.
    pub message: String,
    /// Name of the source in the pipeline file.
    pub source: String,
    /// Whose log it is from.
    pub identity: SourceIdentity,
    /// Where its records go, `schema.table`.
    pub table: String,
    /// The key of the row, as in `{key}` of templates; two when the change moved the row, old and new; none without a key.
    pub keys: Vec<String>,
    /// `read`, `insert`, `update`, `delete`, `truncate`, `message`.
    pub op: String,
    /// Whether it is a row of an initial copy: its position then says only which copy.
    pub copied: bool,
    /// Commit LSN and ordinal, `16/B374D848#1`.
    #[serde(with = "position")]
    pub position: Position,
    /// The idempotency id of the change, as `lockstep.id` in Kafka.
    pub change: String,
    /// Commit time, microseconds since the Unix epoch.
    pub commit_micros: i64,
    /// When it was put aside, microseconds since the Unix epoch.
    pub kept_micros: i64,
    /// When it was refused last, microseconds since the Unix epoch.
    pub tried_micros: i64,
    /// How often the sink has refused it.
    pub attempts: u32,
    /// What has passed it and leaves nothing for it to do in a sink that holds rows: `delete at 16/B374D848#2`.
    pub overtaken: Option<String>,
    /// Bytes it takes in the store.
    pub bytes: u64,
}

/// The change itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Body {
    /// Transaction id.
    xid: u32,
    /// Replication origin.
    origin: Option<Arc<str>>,
    previous_commit: Option<Lsn>,
    /// How it was prepared, when it was: not in letters of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prepared: Option<Prepared>,
    /// What it was a branch of, where branches go on together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    global: Option<Global>,
    /// LSN of the change itself.
    lsn: Lsn,
    duplicate: bool,
    /// `key` or `full` when there is an old row.
    old_image: Option<String>,
    /// By column: `null`, the text form, `{"unchanged":true}`, `{"text_hex":…}` for what is not UTF-8, `{"binary_hex":…}`.
    old: Option<Map<String, Value>>,
    new: Option<Map<String, Value>>,
    schema: Shape,
}

/// A letter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Letter {
    /// What lists show.
    #[serde(flatten)]
    pub head: Head,
    /// The change.
    #[serde(flatten)]
    pub body: Body,
}

/// Names and values of a letter in a queue.
pub(crate) type Record = [(&'static str, Value); 8];

impl Letter {
    /// The letter of a change of a batch.
    pub(crate) fn of(
        place: &str,
        reason: &str,
        message: String,
        batch: &Batch,
        change: &Change,
    ) -> Self {
        let (schema, position) = (batch.schema(change), batch.position(change));
        let transaction = batch.transaction(change);
        let now = now_micros();
        let row = |row: Option<Row<'_>>| row.map(|row| cells(schema, row));
        Letter {
            head: Head {
                id: 0,
                place: place.to_owned(),
                reason: reason.to_owned(),
                message,
                source: batch.source.name.to_string(),
                identity: batch.source.identity.clone(),
                table: schema.id.to_string(),
                keys: keys(batch, change),
                op: change.op.as_str().to_owned(),
                copied: batch.phase == Phase::Snapshot,
                position,
                change: batch.source.change_id(position),
                commit_micros: transaction.commit_micros,
                kept_micros: now,
                tried_micros: now,
                attempts: 1,
                overtaken: None,
                bytes: 0,
            },
            body: Body {
                xid: transaction.xid,
                origin: transaction.origin.clone(),
                previous_commit: transaction.previous_commit,
                prepared: transaction.prepared.as_deref().cloned(),
                global: transaction.global.as_deref().cloned(),
                lsn: change.lsn,
                duplicate: change.duplicate,
                old_image: match change.old_image {
                    OldImage::None => None,
                    OldImage::Key => Some("key".to_owned()),
                    OldImage::Full => Some("full".to_owned()),
                },
                old: row(batch.old_row(change)),
                new: row(batch.new_row(change)),
                schema: Shape::of(schema),
            },
        }
    }

    /// The change as a batch of its own, at its own position. It confirms nothing.
    ///
    /// # Errors
    /// Kind `Storage` when the letter is not one that this version has written.
    pub(crate) fn batch(&self, schemas: &mut Schemas) -> Result<Batch> {
        let (head, body) = (&self.head, &self.body);
        let op = OPS.into_iter().find(|op| op.as_str() == head.op);
        let op = op.ok_or_else(|| self.broken(&format!("there is no operation `{}`", head.op)))?;
        let schema = schemas.get(&body.schema);
        let mut builder = BatchBuilder::new();
        builder.begin(Transaction {
            commit: head.position.commit,
            commit_micros: head.commit_micros,
            xid: body.xid,
            origin: body.origin.clone(),
            previous_commit: body.previous_commit,
            prepared: body.prepared.clone().map(Arc::new),
            global: body.global.clone().map(Arc::new),
        });
        let index = builder.schema(&schema);
        let mut block = Vec::new();
        let mut row = |row: &Option<Map<String, Value>>| -> Result<Option<usize>> {
            let Some(row) = row else { return Ok(None) };
            let start = builder.cells().len();
            for column in &schema.columns {
                let cell = row
                    .get(&*column.name)
                    .and_then(|value| cell(value, &mut block));
                let cell = cell
                    .ok_or_else(|| self.broken(&format!("column {} has no value", column.name)))?;
                builder.cells().push(cell);
            }
            Ok(Some(start))
        };
        let (old, new) = (row(&body.old)?, row(&body.new)?);
        let image = match body.old_image.as_deref() {
            Some("full") => OldImage::Full,
            _ => OldImage::Key,
        };
        let old = old.map(|start| (image, start));
        builder.push(op, index, head.position.ordinal, body.lsn, old, new);
        let source = Arc::new(SourceInfo {
            name: head.source.as_str().into(),
            identity: head.identity.clone(),
        });
        let phase = if head.copied {
            Phase::Snapshot
        } else {
            Phase::Replay
        };
        let batch = builder.finish(source, phase, None, Bytes::from(block));
        if !body.duplicate {
            return Ok(batch);
        }
        let mut tagged = batch.rewrite();
        tagged.set_duplicate(0);
        Ok(tagged.finish())
    }

    /// Bytes it takes in memory, roughly.
    pub(crate) fn size(&self) -> usize {
        let values = |row: &Option<Map<String, Value>>| {
            let values = row.iter().flat_map(Map::values);
            values
                .map(|value| 32 + value.as_str().map_or(64, str::len))
                .sum::<usize>()
        };
        512 + values(&self.body.old) + values(&self.body.new)
    }

    /// The letter as a row of a table of letters: how a queue takes it. The change keeps its identity.
    pub(crate) fn record(&self) -> Record {
        self.record_with(json!(self))
    }

    /// As [`Letter::record`], for a queue that refuses that: the row is left out, and `left_out` says why.
    pub(crate) fn without_row(&self, refused: &Error) -> Record {
        let mut letter = json!(self.head);
        letter["left_out"] = format!("the row: {refused}").into();
        self.record_with(letter)
    }

    fn record_with(&self, letter: Value) -> Record {
        let head = &self.head;
        let id = format!("{}/{}/{}", head.place, head.table, head.change);
        [
            ("id", id.into()),
            ("place", head.place.as_str().into()),
            ("reason", head.reason.as_str().into()),
            ("message", head.message.as_str().into()),
            ("source", head.source.as_str().into()),
            ("table", head.table.as_str().into()),
            ("position", head.position.to_string().into()),
            ("letter", letter),
        ]
    }

    fn broken(&self, what: &str) -> Error {
        Error::new(
            ErrorKind::Storage,
            format!("dead letter {} cannot be read: {what}", self.head.id),
        )
        .remedy("use the version of lockstep that kept it")
    }
}

const OPS: [Op; 7] = [
    Op::Read,
    Op::Insert,
    Op::Update,
    Op::Delete,
    Op::Truncate,
    Op::Message,
    Op::Event,
];

fn cells(schema: &TableSchema, row: Row<'_>) -> Map<String, Value> {
    let columns = schema.columns.iter();
    columns
        .map(|column| {
            let value = match row.get(column) {
                CellRef::Null => Value::Null,
                CellRef::Unchanged => json!({ "unchanged": true }),
                CellRef::Text(text) => match std::str::from_utf8(text) {
                    Ok(text) => text.into(),
                    Err(_) => json!({ "text_hex": hex(text) }),
                },
                CellRef::Binary(bytes) => json!({ "binary_hex": hex(bytes) }),
            };
            (column.name.to_string(), value)
        })
        .collect()
}

fn cell(value: &Value, block: &mut Vec<u8>) -> Option<Cell> {
    let offset = u32::try_from(block.len()).ok()?;
    let object = match value {
        Value::Null => return Some(Cell::NULL),
        Value::String(text) => {
            block.extend_from_slice(text.as_bytes());
            return Some(Cell::text(offset, u32::try_from(text.len()).ok()?));
        }
        Value::Object(object) => object,
        _ => return None,
    };
    if object.contains_key("unchanged") {
        return Some(Cell::UNCHANGED);
    }
    let bytes = |key: &str| object.get(key).and_then(Value::as_str).and_then(unhex);
    let (bytes, text) = match bytes("text_hex") {
        Some(bytes) => (bytes, true),
        None => (bytes("binary_hex")?, false),
    };
    block.extend_from_slice(&bytes);
    let length = u32::try_from(bytes.len()).ok()?;
    Some(if text {
        Cell::text(offset, length)
    } else {
        Cell::binary(offset, length)
    })
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    let digits = bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
    digits.collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

/// The keys that a change is about: of the row as it was, where it moved or went, and of the row as it is.
pub(crate) fn keys(batch: &Batch, change: &Change) -> Vec<String> {
    let schema = batch.schema(change);
    let (old, new) = (batch.old_row(change), batch.new_row(change));
    let before = old.and_then(|row| key(schema, row, None));
    let after = new.and_then(|row| key(schema, row, old));
    let mut keys: Vec<String> = before.into_iter().chain(after).collect();
    keys.dedup();
    keys
}

/// The key values in key order, joined by `:`; `%` and `:` in them are written `%25` and `%3A`. `None` when the row does
/// not carry its key.
fn key(schema: &TableSchema, row: Row<'_>, old: Option<Row<'_>>) -> Option<String> {
    let mut text = String::new();
    for (index, column) in schema.key_columns().enumerate() {
        if index > 0 {
            text.push(':');
        }
        let value = match (row.get(column), old) {
            (CellRef::Unchanged, Some(old)) => old.get(column),
            (cell, _) => cell,
        };
        match value {
            CellRef::Text(value) => {
                let value = String::from_utf8_lossy(value);
                text.push_str(&value.replace('%', "%25").replace(':', "%3A"));
            }
            CellRef::Binary(value) => text.push_str(&hex(value)),
            CellRef::Null | CellRef::Unchanged => return None,
        }
    }
    (!schema.key.is_empty()).then_some(text)
}

/// Positions as people see them.
mod position {
    use lockstep_core::position::Position;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(position: &Position, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(position)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Position, D::Error> {
        let text = String::deserialize(from)?;
        let parse = || {
            let (commit, ordinal) = text.split_once('#')?;
            Some(Position {
                commit: commit.parse().ok()?,
                ordinal: ordinal.parse().ok()?,
            })
        };
        parse().ok_or_else(|| D::Error::custom(format!("`{text}` is not a position")))
    }
}

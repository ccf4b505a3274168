//! What is worked out for a version of a table: the names of its rows and of their keys, and what a change means to the
//! judge.

use std::sync::Arc;

use lockstep_core::batch::{Batch, Change, OldImage, Op, Row};
use lockstep_core::position::Position;
use lockstep_core::schema::{Column, ReplicaIdentity, TableSchema};

use super::config::{DedupeConfig, Scope};
use super::digest::{Digest, Hasher};
use super::history::Moment;
use super::judge::{Alteration, Arrival, Case, KeyAfter};
use crate::tables::is_no_table;
use crate::text::{Value, value};

/// What is worked out for a version of a table that has the key.
pub(crate) struct Plan {
    pub(crate) schema: Arc<TableSchema>,
    key: Vec<Column>,
    /// Every column of the key belongs to the replica identity, so that an UPDATE that sends no old image has not
    /// touched it.
    key_in_identity: bool,
    key_space: Digest,
    row_space: Digest,
}

/// When a change was. Rows of an initial copy come in any order, and in another one when it is repeated.
fn moment(batch: &Batch, change: &Change, source: u16) -> Moment {
    let transaction = batch.transaction(change);
    let ordinal = if change.op == Op::Read {
        0
    } else {
        change.ordinal
    };
    Moment {
        source,
        position: Position {
            commit: transaction.commit,
            ordinal,
        },
        micros: transaction.commit_micros,
    }
}

impl Plan {
    /// `None` when the table lacks the key.
    pub(crate) fn new(config: &DedupeConfig, schema: &Arc<TableSchema>) -> Option<Arc<Self>> {
        if is_no_table(schema) {
            return None;
        }
        let columns = config.key.iter().map(|name| schema.column(name));
        let columns = columns.collect::<Option<Vec<_>>>()?;
        let in_identity = |index: &usize| schema.key.contains(&(*index as u16));
        let mut key_space = Hasher::root("key");
        for name in &config.key {
            key_space.part(name.as_bytes());
        }
        let mut row_space = Hasher::root("row");
        let place = [&schema.source, &schema.id.schema, &schema.id.name];
        for part in place {
            row_space.part(part.as_bytes());
            if config.scope == Scope::Table {
                key_space.part(part.as_bytes());
            }
        }
        for part in [&schema.origin.schema, &schema.origin.name] {
            row_space.part(part.as_bytes());
        }
        Some(Arc::new(Plan {
            schema: Arc::clone(schema),
            key_in_identity: schema.identity != ReplicaIdentity::Full
                && columns.iter().all(|(index, _)| in_identity(index)),
            key: columns
                .into_iter()
                .map(|(_, column)| column.clone())
                .collect(),
            key_space: key_space.finish(),
            row_space: row_space.finish(),
        }))
    }

    /// What a change means to the judge.
    pub(crate) fn case(&self, batch: &Batch, change: &Change, source: u16) -> Case {
        let at = moment(batch, change, source);
        if batch.check.is_some() {
            // Compared, or mended where a comparison found it to differ: what was decided about it stays.
            let named = batch.new_row(change).and_then(|row| self.row(row));
            return named.map_or(Case::Passes, |row| Case::Asks { at, row });
        }
        match (change.op, batch.new_row(change), batch.old_row(change)) {
            (Op::Insert | Op::Read, Some(new), _) => {
                let named = self.row(new);
                Case::Arrives(Arrival {
                    at,
                    row: named.unwrap_or_else(|| self.unnamed(new, &at, change.op)),
                    recognisable: named.is_some(),
                    key: self.key(new),
                    copied: change.op == Op::Read,
                })
            }
            (Op::Update, Some(new), old) => {
                // An old image that lacks the primary key was sent for another reason: the row kept its name.
                let from = old.and_then(|old| self.row(old));
                match self.row(new).or(from) {
                    None => Case::Passes,
                    Some(row) => Case::Changes(Alteration {
                        at,
                        from: from.unwrap_or(row),
                        row,
                        key: self.key_after(new, old, change.old_image),
                    }),
                }
            }
            (Op::Delete, _, Some(old)) => match self.row(old) {
                Some(row) => Case::Departs { at, row },
                None => Case::Passes,
            },
            _ => Case::Passes,
        }
    }

    /// The idempotency key of a row; `None` when a part of it is not there.
    fn key(&self, row: Row<'_>) -> Option<Digest> {
        let mut hasher = Hasher::new(&self.key_space);
        let mut columns = self.key.iter();
        columns
            .all(|column| hasher.value(&value(&column.ty, row.get(column))))
            .then(|| hasher.finish())
    }

    /// The name of a row by its primary key; `None` when the table has none or the image lacks a part of it.
    fn row(&self, row: Row<'_>) -> Option<Digest> {
        if self.schema.key.is_empty() {
            return None;
        }
        let mut hasher = Hasher::new(&self.row_space);
        let mut columns = self.schema.key_columns();
        columns
            .all(|column| hasher.value(&value(&column.ty, row.get(column))))
            .then(|| hasher.finish())
    }

    /// A name for a row that has no primary key: its place in the log, or for a copied row what it holds.
    fn unnamed(&self, row: Row<'_>, at: &Moment, op: Op) -> Digest {
        let mut hasher = Hasher::new(&self.row_space);
        if op == Op::Read {
            for column in &self.schema.columns {
                let there = hasher.value(&value(&column.ty, row.get(column)));
                hasher.part(&[u8::from(there)]);
            }
        } else {
            hasher.part(&at.source.to_be_bytes());
            hasher.part(&at.position.commit.0.to_be_bytes());
            hasher.part(&at.position.ordinal.to_be_bytes());
        }
        hasher.finish()
    }

    /// What an UPDATE did to the key of a row.
    fn key_after(&self, new: Row<'_>, old: Option<Row<'_>>, image: OldImage) -> KeyAfter {
        let is = |wanted: &Value<'_>| {
            let mut columns = self.key.iter();
            columns.any(|column| value(&column.ty, new.get(column)) == *wanted)
        };
        if is(&Value::Null) {
            return KeyAfter::None;
        }
        if is(&Value::Unchanged) {
            return KeyAfter::Kept(None);
        }
        let Some(key) = self.key(new) else {
            return KeyAfter::None;
        };
        match (image, old) {
            (OldImage::Full, Some(old)) => self.compare(key, old),
            (OldImage::Key, Some(old)) if self.key_in_identity => self.compare(key, old),
            (OldImage::None, _) if self.key_in_identity => KeyAfter::Kept(Some(key)),
            _ => KeyAfter::Perhaps(key),
        }
    }

    fn compare(&self, key: Digest, old: Row<'_>) -> KeyAfter {
        if self.key(old) == Some(key) {
            KeyAfter::Kept(Some(key))
        } else {
            KeyAfter::Set(key)
        }
    }
}

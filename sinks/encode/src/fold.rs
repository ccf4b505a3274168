//! The last write per key of one batch, for sinks that keep state.

#[cfg(test)]
mod crashes;
pub mod held;
mod rounds;

use std::collections::HashMap;
use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::batch::{Batch, Cell, Change, Op, Row};
use lockstep_core::position::Position;
use lockstep_core::refusal::Refusals;
use lockstep_core::schema::{Column, TableId, TableSchema};

use crate::errors::{no_image, no_key};
use crate::key::{key_changed, key_text, key_text_or};

/// What consecutive changes of a batch come to. Nearly every batch is one part.
///
/// **Order.** A part begins when everything before it has been acknowledged, as if it were a batch of its own. Within it
/// no key is written twice, so its writes may be applied in any order, once all that its `missing_from` name has been
/// read. A TRUNCATE is alone in its part. **Crashes.** A sink whose writes are not one atomic step, and whose replay may
/// cut the batches elsewhere, applies a part by [`Part::rounds`].
#[derive(Debug)]
pub struct Part<'a> {
    writes: Vec<Write<'a>>,
    /// Rows that moved to another key, with values that the log does not carry.
    moves: Vec<Move<'a>>,
}

/// A row's way to another key.
#[derive(Debug)]
struct Move<'a> {
    table: &'a TableId,
    from: String,
    to: String,
}

impl<'a> Part<'a> {
    /// The writes. In this order each stands before the delete of the key it reads.
    #[must_use]
    pub fn writes(&self) -> &[Write<'a>] {
        &self.writes
    }

    /// The TRUNCATE that the part is, if it is one.
    #[must_use]
    pub fn truncate(&self) -> Option<(&'a Arc<TableSchema>, Position)> {
        match self.writes[..] {
            [Write::Truncate { schema, position }] => Some((schema, position)),
            _ => None,
        }
    }

    /// The writes in rounds, each to be acknowledged before the next begins, so that a crash at any moment leaves every
    /// value that the log does not carry where a replay looks for it: a key from which a row moved is written after the
    /// key that it moved to. One round unless rows have moved.
    #[must_use]
    pub fn rounds(&self) -> Vec<Vec<&Write<'a>>> {
        rounds::of(self)
    }
}

/// One write of a part.
#[derive(Debug)]
pub enum Write<'a> {
    /// The row as it is after the batch.
    Upsert {
        /// [`crate::key::key_text`] of the row.
        key: String,
        /// The schema the row was last written under.
        schema: &'a Arc<TableSchema>,
        /// The row.
        row: Folded<'a>,
        /// `Some` if and only if some column is still unchanged TOAST: the key under which the sink holds those columns:
        /// the row's own, or the old one after a key change.
        missing_from: Option<String>,
        /// Of the change that the values under `missing_from` must come before: after a key change that change, else the
        /// last one. In a replay the sink may hold something later there; the values are then under `key`, where the
        /// change has put them.
        missing_before: Position,
        /// Of the last change of the row: the version.
        position: Position,
        /// Commit time of that change, microseconds since the Unix epoch.
        commit_micros: i64,
    },
    /// The row is gone.
    Delete {
        /// The key it had.
        key: String,
        /// The schema of the change that removed it.
        schema: &'a Arc<TableSchema>,
        /// Of the change that removed it.
        position: Position,
        /// Commit time of that change, microseconds since the Unix epoch.
        commit_micros: i64,
    },
    /// All rows of the table are gone; writes of it that follow in the list come after.
    Truncate {
        /// The table.
        schema: &'a Arc<TableSchema>,
        /// Of the change.
        position: Position,
    },
}

impl<'a> Write<'a> {
    /// The schema of the write.
    #[must_use]
    pub fn schema(&self) -> &'a Arc<TableSchema> {
        match self {
            Write::Upsert { schema, .. }
            | Write::Delete { schema, .. }
            | Write::Truncate { schema, .. } => schema,
        }
    }

    /// The position of the write: the version of the row.
    #[must_use]
    pub fn position(&self) -> Position {
        match self {
            Write::Upsert { position, .. }
            | Write::Delete { position, .. }
            | Write::Truncate { position, .. } => *position,
        }
    }
}

/// A row put together from one change or from several.
#[derive(Debug, Clone)]
pub struct Folded<'a>(Cells<'a>);

#[derive(Debug, Clone)]
enum Cells<'a> {
    /// As one change has it.
    Whole(&'a [Cell]),
    /// Put together.
    Merged(Box<[Cell]>),
}

impl Folded<'_> {
    fn cells(&self) -> &[Cell] {
        match &self.0 {
            Cells::Whole(cells) => cells,
            Cells::Merged(cells) => cells,
        }
    }

    fn cell(&self, column: &Column) -> Cell {
        self.cells()[usize::from(column.slot)]
    }

    /// Puts a value in the place of a cell.
    fn set(&mut self, column: &Column, cell: Cell) {
        if let Cells::Whole(cells) = self.0 {
            self.0 = Cells::Merged(cells.into());
        }
        if let Cells::Merged(cells) = &mut self.0 {
            cells[usize::from(column.slot)] = cell;
        }
    }

    /// The row; `batch` is the one that was folded.
    #[must_use]
    pub fn row<'b>(&'b self, batch: &'b Batch) -> Row<'b> {
        batch.row_of(self.cells())
    }
}

/// Folds a batch to the writes that a state sink needs, in the parts that follow one another. A key change is a
/// [`Write::Delete`] of the old key and a [`Write::Upsert`] of the new one. Logical messages are skipped.
///
/// # Errors
/// Kind `Setup` for a table without a key; kind `Refused`, naming all changes of the batch that it is about, for rows that do
/// not carry their key, and keys that are not UTF-8.
pub fn fold(batch: &Batch) -> Result<Vec<Part<'_>>> {
    let mut fold = Fold {
        batch,
        parts: Vec::with_capacity(1),
        writes: Vec::with_capacity(batch.changes().len()),
        moves: Vec::new(),
        tables: Tables::default(),
    };
    let mut refusals = Refusals::default();
    for change in batch.changes() {
        let (table, position) = (&batch.schema(change).id, batch.position(change));
        let taken = fold.take(change);
        refusals.take(taken.map_err(|error| error.about(&batch.source, table, position)))?;
    }
    refusals.finish()?;
    fold.cut();
    Ok(fold.parts)
}

/// Whether the writes may be applied at once, in any order, without reading anything. There is at most one part then.
#[must_use]
pub fn is_independent(parts: &[Part<'_>]) -> bool {
    let whole = |write: &Write<'_>| match write {
        Write::Upsert { missing_from, .. } => missing_from.is_none(),
        Write::Delete { .. } => true,
        Write::Truncate { .. } => false,
    };
    match parts {
        [] => true,
        [part] => part.moves.is_empty() && part.writes.iter().all(whole),
        _ => false,
    }
}

/// Where the pending write of each key stands in the list.
type Pending = HashMap<String, usize>;

/// The pending writes by table; few tables, neighbours repeat.
#[derive(Default)]
struct Tables<'a> {
    entries: Vec<(&'a TableId, Pending)>,
    last: usize,
}

impl<'a> Tables<'a> {
    fn of(&mut self, table: &'a TableId) -> &mut Pending {
        let known = self
            .entries
            .get(self.last)
            .is_some_and(|(id, _)| *id == table);
        if !known {
            self.last = match self.entries.iter().position(|(id, _)| *id == table) {
                Some(index) => index,
                None => {
                    self.entries.push((table, Pending::new()));
                    self.entries.len() - 1
                }
            };
        }
        &mut self.entries[self.last].1
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.last = 0;
    }
}

/// The fold under way: the parts that are complete, and the one that is not.
///
/// A pending write is replaced where it stands. A write that reads another key (`missing_from`) is added while no write
/// of that key is pending but one that reads it itself, which is taken out: the row it reads is in the sink.
struct Fold<'a> {
    batch: &'a Batch,
    parts: Vec<Part<'a>>,
    /// `None` where a write was taken out.
    writes: Vec<Option<Write<'a>>>,
    moves: Vec<Move<'a>>,
    tables: Tables<'a>,
}

impl<'a> Fold<'a> {
    fn take(&mut self, change: &'a Change) -> Result<()> {
        let schema = self.batch.schema(change);
        match change.op {
            Op::Message | Op::Event => Ok(()),
            Op::Truncate => {
                self.truncate(schema, self.batch.position(change));
                Ok(())
            }
            _ if schema.key.is_empty() => Err(no_key(schema)),
            Op::Read | Op::Insert | Op::Update => self.upsert(change, schema),
            Op::Delete => {
                let Some(old) = self.batch.old_row(change) else {
                    return Err(no_image(schema));
                };
                let mut key = String::new();
                key_text(schema, old, &mut key)?;
                let write = self.delete(change, schema, key.clone());
                self.put(schema, key, write);
                Ok(())
            }
        }
    }

    /// Writes of the table that are pending vanish; those of another table of the database stay, wherever they go.
    fn truncate(&mut self, schema: &'a Arc<TableSchema>, position: Position) {
        let is_of = |write: &Write<'_>| {
            write.schema().id == schema.id && write.schema().origin == schema.origin
        };
        self.writes
            .retain(|write| write.as_ref().is_some_and(|write| !is_of(write)));
        self.cut();
        self.parts.push(Part {
            writes: vec![Write::Truncate { schema, position }],
            moves: Vec::new(),
        });
    }

    /// What is pending becomes a part; what comes finds it in the sink.
    fn cut(&mut self) {
        self.tables.clear();
        let (writes, moves) = (self.writes.drain(..), std::mem::take(&mut self.moves));
        let writes: Vec<_> = writes.flatten().collect();
        if !writes.is_empty() {
            self.parts.push(Part { writes, moves });
        }
    }

    fn upsert(&mut self, change: &'a Change, schema: &'a Arc<TableSchema>) -> Result<()> {
        let Some(new) = self.batch.new_row(change) else {
            return Err(no_image(schema));
        };
        let old = self
            .batch
            .old_row(change)
            .filter(|_| change.op == Op::Update);
        let mut key = String::new();
        key_text_or(schema, new, old, &mut key)?;
        let mut row = Folded(Cells::Whole(new.cells()));
        if let Some(old) = old {
            // A key value may itself be unchanged TOAST; the old image then carries it.
            for column in schema.key_columns() {
                if row.cell(column).is_unchanged() {
                    row.set(column, old.cells()[usize::from(column.slot)]);
                }
            }
        }
        match old.filter(|old| key_changed(schema, *old, new)) {
            Some(old) => {
                let mut old_key = String::new();
                key_text(schema, old, &mut old_key)?;
                self.rekey(change, schema, old_key, key, row);
            }
            None => {
                let missing = self.complete(schema, &mut row, &key);
                let write = self.row(change, schema, key.clone(), row, missing);
                self.put(schema, key, write);
            }
        }
        Ok(())
    }

    /// A key change.
    fn rekey(
        &mut self,
        change: &'a Change,
        schema: &'a Arc<TableSchema>,
        old_key: String,
        key: String,
        mut row: Folded<'a>,
    ) {
        let keeps_values = is_incomplete(schema, &row);
        if keeps_values && self.was_left(schema, &key) {
            // The moves of a part never lead back to where they began: there would be no order for its writes.
            self.cut();
        }
        let position = self.batch.position(change);
        let missing = match self.complete(schema, &mut row, &old_key) {
            None => None,
            Some(missing) => {
                if missing.from == old_key {
                    // What is pending under the old key adds to a row that is about to go; its values have been taken over.
                    if let Some(pending) = self.tables.of(&schema.id).remove(&old_key) {
                        self.writes[pending] = None;
                    }
                } else {
                    // The old row itself is to be read from a third key. A replay may find it there or under the old key,
                    // and must be told which of the two steps it is at.
                    self.cut();
                }
                Some(Missing {
                    from: old_key.clone(),
                    before: Some(position),
                })
            }
        };
        if keeps_values {
            self.moves.push(Move {
                table: &schema.id,
                from: old_key.clone(),
                to: key.clone(),
            });
        }
        let delete = self.delete(change, schema, old_key.clone());
        let upsert = self.row(change, schema, key.clone(), row, missing);
        self.put(schema, key, upsert);
        self.put(schema, old_key, delete);
    }

    /// Whether a row with unchanged values has moved away from `key` in this part.
    fn was_left(&self, schema: &TableSchema, key: &str) -> bool {
        self.moves
            .iter()
            .any(|moved| *moved.table == schema.id && moved.from == key)
    }

    /// Fills unchanged cells of `row` from the pending row under `key`; says where the sink holds those still unchanged.
    fn complete(
        &mut self,
        schema: &'a Arc<TableSchema>,
        row: &mut Folded<'a>,
        key: &str,
    ) -> Option<Missing> {
        let own = || {
            Some(Missing {
                from: key.to_owned(),
                before: None,
            })
        };
        if !is_incomplete(schema, row) {
            return None;
        }
        let pending = self.tables.of(&schema.id).get(key).copied();
        let Some(Write::Upsert {
            schema: before,
            row: held,
            missing_from,
            missing_before,
            ..
        }) = pending.and_then(|index| self.writes[index].as_ref())
        else {
            return own();
        };
        let mut unresolved = false;
        for column in &schema.columns {
            if !row.cell(column).is_unchanged() {
                continue;
            }
            match same_column(before, schema, column) {
                Some(same) if !held.cell(same).is_unchanged() => row.set(column, held.cell(same)),
                Some(_) => unresolved = true,
                // The table changed its shape in between. What is pending must reach the sink as it is, before this.
                None => {
                    self.cut();
                    return own();
                }
            }
        }
        let from = missing_from.as_ref().filter(|_| unresolved)?;
        Some(Missing {
            before: (from != key).then_some(*missing_before),
            from: from.clone(),
        })
    }

    /// Makes `write` the pending write of `key`.
    fn put(&mut self, schema: &'a Arc<TableSchema>, key: String, write: Write<'a>) {
        let next = self.writes.len();
        let index = *self.tables.of(&schema.id).entry(key).or_insert(next);
        if index == next {
            self.writes.push(Some(write));
        } else {
            self.writes[index] = Some(write);
        }
    }

    fn row(
        &self,
        change: &Change,
        schema: &'a Arc<TableSchema>,
        key: String,
        row: Folded<'a>,
        missing: Option<Missing>,
    ) -> Write<'a> {
        let position = self.batch.position(change);
        let before = missing.as_ref().and_then(|missing| missing.before);
        Write::Upsert {
            key,
            schema,
            row,
            missing_from: missing.map(|missing| missing.from),
            missing_before: before.unwrap_or(position),
            position,
            commit_micros: self.batch.transaction(change).commit_micros,
        }
    }

    fn delete(&self, change: &Change, schema: &'a Arc<TableSchema>, key: String) -> Write<'a> {
        Write::Delete {
            key,
            schema,
            position: self.batch.position(change),
            commit_micros: self.batch.transaction(change).commit_micros,
        }
    }
}

fn is_incomplete(schema: &TableSchema, row: &Folded<'_>) -> bool {
    schema
        .columns
        .iter()
        .any(|column| row.cell(column).is_unchanged())
}

/// Where the sink holds the columns that are still unchanged.
struct Missing {
    from: String,
    /// After a key change, its position.
    before: Option<Position>,
}

/// The column of an earlier shape of the table whose values mean the same as those of `column`.
fn same_column<'s>(
    before: &'s Arc<TableSchema>,
    after: &Arc<TableSchema>,
    column: &'s Column,
) -> Option<&'s Column> {
    if Arc::ptr_eq(before, after) {
        return Some(column);
    }
    before
        .column(&column.name)
        .map(|(_, same)| same)
        .filter(|same| same.ty == column.ty)
}

#[cfg(test)]
mod tests;

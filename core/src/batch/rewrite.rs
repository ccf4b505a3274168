//! A batch that a transform changes.

use std::sync::Arc;

use super::cell::EXTRA;
use super::{Batch, Cell, CellRef, NONE, OldImage, Op};
use crate::schema::TableSchema;

/// What becomes of a cell in [`Rewrite::edit_cell`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// It stays.
    Keep,
    /// It becomes NULL.
    Null,
    /// It becomes what was appended to the block.
    Text,
}

/// A batch being rewritten by a transform. Cells are copied on the first change of a value.
#[derive(Debug)]
pub struct Rewrite {
    pub(super) batch: Batch,
    pub(super) cells: Option<Vec<Cell>>,
    pub(super) extra: Vec<u8>,
}

impl Rewrite {
    /// The batch as it was.
    #[must_use]
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Adds a schema and returns its index.
    pub fn add_schema(&mut self, schema: Arc<TableSchema>) -> u16 {
        if let Some(index) = self
            .batch
            .schemas
            .iter()
            .position(|known| Arc::ptr_eq(known, &schema))
        {
            return index as u16;
        }
        self.batch.schemas.push(schema);
        (self.batch.schemas.len() - 1) as u16
    }

    /// Puts another schema of the same width under a change.
    pub fn set_schema(&mut self, change: usize, schema: u16) {
        self.batch.changes[change].schema = schema;
    }

    /// Makes an event of a change: `schema` says which cells of its new row it has.
    pub fn become_event(&mut self, change: usize, schema: u16) {
        let change = &mut self.batch.changes[change];
        (change.op, change.schema) = (Op::Event, schema);
        (change.old, change.old_image) = (NONE, OldImage::None);
    }

    /// Makes an event of a change, with a row of these values; `None` is NULL.
    pub fn become_event_of(&mut self, change: usize, schema: u16, values: &[Option<&[u8]>]) {
        let cells = self.cells.get_or_insert_with(|| self.batch.cells.to_vec());
        let start = cells.len() as u32;
        for value in values {
            cells.push(match value {
                None => Cell::NULL,
                Some(value) => {
                    let offset = self.extra.len() as u32;
                    self.extra.extend_from_slice(value);
                    Cell::extra_text(offset, value.len() as u32)
                }
            });
        }
        self.become_event(change, schema);
        self.batch.changes[change].new = start;
    }

    /// Marks a change as a duplicate.
    pub fn set_duplicate(&mut self, change: usize) {
        self.batch.changes[change].duplicate = true;
    }

    /// Shows `edit` the value of `slot` in the old and/or new row of a change. A text it makes is appended to the block
    /// it is given. A value that this rewrite has made already is left alone, so that a row which two heads share is
    /// edited once.
    pub fn edit_cell(
        &mut self,
        change: usize,
        slot: u16,
        mut edit: impl FnMut(CellRef<'_>, &mut Vec<u8>) -> Edit,
    ) {
        let head = self.batch.changes[change];
        for start in [head.old, head.new] {
            if start == NONE {
                continue;
            }
            let index = start as usize + usize::from(slot);
            let cell = self.cells.as_deref().unwrap_or(&self.batch.cells)[index];
            if cell.tagged & EXTRA != 0 && cell.offset as usize >= self.batch.extra.len() {
                continue;
            }
            let offset = self.extra.len();
            let made = match edit(self.batch.resolve(cell), &mut self.extra) {
                Edit::Keep => continue,
                Edit::Null => Cell::NULL,
                Edit::Text => Cell::extra_text(offset as u32, (self.extra.len() - offset) as u32),
            };
            let cells = self.cells.get_or_insert_with(|| self.batch.cells.to_vec());
            cells[index] = made;
        }
    }

    /// Puts a text beside the batch, for [`Rewrite::widen`]: what `write` appends to the block that it is given.
    pub fn text(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Cell {
        let offset = self.extra.len();
        write(&mut self.extra);
        Cell::extra_text(offset as u32, (self.extra.len() - offset) as u32)
    }

    /// Gives a change rows with more cells: those that they have, and these behind them. Its schema must then be as much wider. An old
    /// image is from then on what is said of it here.
    pub fn widen(&mut self, change: usize, old: Option<(OldImage, &[Cell])>, new: Option<&[Cell]>) {
        let head = self.batch.changes[change];
        let width = usize::from(self.batch.schema(&head).width);
        let cells = self.cells.get_or_insert_with(|| self.batch.cells.to_vec());
        let mut row = |start: u32, more: &[Cell]| {
            let (from, to) = (start as usize, cells.len() as u32);
            cells.extend_from_within(from..from + width);
            cells.extend_from_slice(more);
            to
        };
        let changed = &mut self.batch.changes[change];
        if let Some((image, more)) = old.filter(|_| head.old != NONE) {
            (changed.old, changed.old_image) = (row(head.old, more), image);
        }
        if let Some(more) = new.filter(|_| head.new != NONE) {
            changed.new = row(head.new, more);
        }
    }

    /// Keeps the changes for which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(usize) -> bool) {
        let mut index = 0;
        self.batch.changes.retain(|_| {
            index += 1;
            keep(index - 1)
        });
    }

    /// The rewritten batch.
    #[must_use]
    pub fn finish(self) -> Batch {
        let mut batch = self.batch;
        if let Some(cells) = self.cells {
            batch.cells = Arc::new(cells);
        }
        if self.extra.len() != batch.extra.len() {
            batch.extra = self.extra.into();
        }
        batch
    }
}

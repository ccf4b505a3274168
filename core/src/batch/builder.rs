//! A batch that a connector makes.

use std::sync::Arc;

use bytes::Bytes;

use super::{Batch, Cell, Change, NONE, OldImage, Op, Phase, Transaction};
use crate::position::{Lsn, SourceInfo};
use crate::schema::TableSchema;

/// Collects changes over a block that is still being read. Used by connectors; offsets are into the block that is
/// handed to [`BatchBuilder::finish`].
#[derive(Debug)]
pub struct BatchBuilder {
    received: Option<std::time::Instant>,
    cells: Vec<Cell>,
    schemas: Vec<Arc<TableSchema>>,
    transactions: Vec<Transaction>,
    changes: Vec<Change>,
    open: bool,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchBuilder {
    /// An empty builder. It keeps its room over [`BatchBuilder::finish`].
    #[must_use]
    pub fn new() -> Self {
        BatchBuilder {
            received: None,
            cells: Vec::new(),
            schemas: Vec::new(),
            transactions: Vec::new(),
            changes: Vec::new(),
            open: false,
        }
    }

    /// Whether no change has been added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Changes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Notes when the first byte came, if not noted yet.
    pub fn received(&mut self, at: std::time::Instant) {
        self.received.get_or_insert(at);
    }

    /// The index of `schema`, added when missing.
    pub fn schema(&mut self, schema: &Arc<TableSchema>) -> u16 {
        // A batch rarely holds more than a handful of tables, and neighbours repeat: search from the end.
        if let Some(index) = self
            .schemas
            .iter()
            .rposition(|known| Arc::ptr_eq(known, schema))
        {
            return index as u16;
        }
        self.schemas.push(Arc::clone(schema));
        (self.schemas.len() - 1) as u16
    }

    /// Adds a transaction (or a further part of one that an earlier batch began); changes added next belong to it.
    pub fn begin(&mut self, transaction: Transaction) {
        self.transactions.push(transaction);
        self.open = true;
    }

    /// The transaction is complete; the next change needs a [`BatchBuilder::begin`].
    pub fn end_transaction(&mut self) {
        self.open = false;
    }

    /// Whether a transaction has begun in this batch and not ended.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.open
    }

    /// The cells added so far; push a row's cells here, then name their start in [`BatchBuilder::push`].
    pub fn cells(&mut self) -> &mut Vec<Cell> {
        &mut self.cells
    }

    /// Adds a change to the latest transaction. `old` and `new` are starts in [`BatchBuilder::cells`].
    pub fn push(
        &mut self,
        op: Op,
        schema: u16,
        ordinal: u64,
        lsn: Lsn,
        old: Option<(OldImage, usize)>,
        new: Option<usize>,
    ) {
        debug_assert!(
            !self.transactions.is_empty(),
            "a change belongs to a transaction"
        );
        self.changes.push(Change {
            op,
            old_image: old.map_or(OldImage::None, |(image, _)| image),
            duplicate: false,
            schema,
            transaction: (self.transactions.len() - 1) as u32,
            ordinal,
            lsn,
            old: old.map_or(NONE, |(_, start)| start as u32),
            new: new.map_or(NONE, |start| start as u32),
        });
    }

    /// The batch over `block`; the builder is empty again and keeps its schemas' and vectors' room.
    pub fn finish(
        &mut self,
        source: Arc<SourceInfo>,
        phase: Phase,
        through: Option<Lsn>,
        block: Bytes,
    ) -> Batch {
        let cells = self.cells.len();
        let changes = self.changes.len();
        self.open = false;
        let batch = Batch {
            source,
            phase,
            through,
            mark: None,
            check: None,
            standing: None,
            branch: None,
            received: self.received.take().unwrap_or_else(std::time::Instant::now),
            block,
            extra: Bytes::new(),
            cells: Arc::new(std::mem::take(&mut self.cells)),
            schemas: std::mem::take(&mut self.schemas),
            transactions: Arc::new(std::mem::take(&mut self.transactions)),
            changes: std::mem::take(&mut self.changes),
            permit: None,
        };
        self.cells.reserve(cells);
        self.changes.reserve(changes);
        batch
    }
}

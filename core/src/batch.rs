//! The unit handed between stages: changes of many tables in commit order over one shared block of bytes.
//!
//! Bytes are read once into the block and not copied again until they are encoded. A cell is an offset into it, a
//! projection changes the schema only, a filter drops change heads only.

use std::sync::Arc;

use bytes::Bytes;

use crate::memory::Permit;
use crate::position::{Lsn, Position, SourceInfo};
use crate::schema::{Column, TableSchema};

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A row of the initial copy.
    Read,
    /// INSERT.
    Insert,
    /// UPDATE. When the key changed, [`Batch::old`] holds the old key (or row).
    Update,
    /// DELETE. Only [`Batch::old`] is there.
    Delete,
    /// TRUNCATE of this table; no cells.
    Truncate,
    /// A logical message; cells `prefix` and `content` of [`TableSchema::message`], the content as raw bytes.
    Message,
}

impl Op {
    /// The word used in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
            Op::Truncate => "truncate",
            Op::Message => "message",
        }
    }
}

/// What the old image of an UPDATE or DELETE holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OldImage {
    /// There is none.
    None,
    /// Only the replica-identity columns; NULL in any other column means *not sent*.
    Key,
    /// The whole old row (REPLICA IDENTITY FULL).
    Full,
}

/// A value as the wire had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellRef<'a> {
    /// SQL NULL.
    Null,
    /// A TOASTed value that the UPDATE did not touch and the log does not carry.
    Unchanged,
    /// The type's text form, under `DateStyle ISO`, `IntervalStyle postgres`, `TimeZone UTC`, `bytea_output hex`,
    /// `extra_float_digits 3`. Server encoding is UTF-8.
    Text(&'a [u8]),
    /// The type's binary (`typsend`) form.
    Binary(&'a [u8]),
}

impl<'a> CellRef<'a> {
    /// The bytes of a text value.
    #[must_use]
    pub fn text(self) -> Option<&'a [u8]> {
        match self {
            CellRef::Text(bytes) => Some(bytes),
            CellRef::Null | CellRef::Unchanged | CellRef::Binary(_) => None,
        }
    }
}

/// An offset and a length into one of a batch's two blocks, with a tag. Eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    offset: u32,
    /// Top two bits: kind. Next: which block. Rest: length.
    tagged: u32,
}

const KIND_SHIFT: u32 = 30;
const KIND_NULL: u32 = 0;
const KIND_UNCHANGED: u32 = 1;
const KIND_TEXT: u32 = 2;
const KIND_BINARY: u32 = 3;
const EXTRA: u32 = 1 << 29;
const LENGTH: u32 = EXTRA - 1;

impl Cell {
    /// The longest value a cell can hold, 512 MiB − 1. PostgreSQL's own limit for a value is 1 GiB, and a row that
    /// close to it cannot be decoded by the server either (the text form must fit 1 GiB with the rest of the row).
    pub const MAX_LENGTH: usize = LENGTH as usize;
    /// SQL NULL.
    pub const NULL: Cell = Cell {
        offset: 0,
        tagged: KIND_NULL << KIND_SHIFT,
    };
    /// Unchanged TOAST.
    pub const UNCHANGED: Cell = Cell {
        offset: 0,
        tagged: KIND_UNCHANGED << KIND_SHIFT,
    };

    /// A text value at `offset` of the main block. `length` is at most [`Cell::MAX_LENGTH`].
    #[must_use]
    pub fn text(offset: u32, length: u32) -> Self {
        debug_assert!(length <= LENGTH);
        Cell {
            offset,
            tagged: KIND_TEXT << KIND_SHIFT | (length & LENGTH),
        }
    }

    /// A binary value at `offset` of the main block. `length` is at most [`Cell::MAX_LENGTH`].
    #[must_use]
    pub fn binary(offset: u32, length: u32) -> Self {
        debug_assert!(length <= LENGTH);
        Cell {
            offset,
            tagged: KIND_BINARY << KIND_SHIFT | (length & LENGTH),
        }
    }

    /// A text value at `offset` of the extra block, where transforms put what they make.
    #[must_use]
    pub fn extra_text(offset: u32, length: u32) -> Self {
        debug_assert!(length <= LENGTH);
        Cell {
            offset,
            tagged: KIND_TEXT << KIND_SHIFT | EXTRA | (length & LENGTH),
        }
    }

    /// The bytes of a value of the main block, before the block has become a batch's; `None` when there is none.
    #[must_use]
    pub fn bytes(self, block: &[u8]) -> Option<&[u8]> {
        let has_value = self.tagged >> KIND_SHIFT >= KIND_TEXT && self.tagged & EXTRA == 0;
        let (start, length) = (self.offset as usize, (self.tagged & LENGTH) as usize);
        has_value
            .then(|| block.get(start..start + length))
            .flatten()
    }

    /// Whether this is [`Cell::UNCHANGED`].
    #[must_use]
    pub fn is_unchanged(self) -> bool {
        self.tagged >> KIND_SHIFT == KIND_UNCHANGED
    }
}

/// No cells.
const NONE: u32 = u32::MAX;

/// The head of one change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub op: Op,
    /// What the old image holds.
    pub old_image: OldImage,
    /// Marked by `dedupe` with `action = "tag"`: an earlier change had the same idempotency key.
    pub duplicate: bool,
    /// Index into [`Batch::schemas`].
    pub schema: u16,
    /// Index into [`Batch::transactions`].
    pub transaction: u32,
    /// Ordinal inside the transaction, from 1 (0: outside any transaction).
    pub ordinal: u64,
    /// LSN of the change itself. For people and for Debezium's `source.lsn`; identifies nothing.
    pub lsn: Lsn,
    old: u32,
    new: u32,
}

impl Change {
    /// The row leaves the flow: the UPDATE as a DELETE. Its old image stays; where none was sent the key has not
    /// changed, and the new row's key stands in for it.
    #[must_use]
    pub fn into_delete(mut self) -> Change {
        if self.old == NONE {
            self.old = self.new;
            self.old_image = OldImage::Key;
        }
        self.op = Op::Delete;
        self.new = NONE;
        self
    }

    /// The row enters the flow: the UPDATE as an INSERT, without an old image.
    #[must_use]
    pub fn into_insert(mut self) -> Change {
        self.op = Op::Insert;
        self.old = NONE;
        self.old_image = OldImage::None;
        self
    }
}

/// The transaction that changes belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// LSN of the commit record: the version of every row it wrote.
    pub commit: Lsn,
    /// Commit time, microseconds since the Unix epoch.
    pub commit_micros: i64,
    /// Transaction id, 0 when there is none (initial copy, non-transactional message).
    pub xid: u32,
    /// Replication origin, when the transaction was itself replicated.
    pub origin: Option<Arc<str>>,
    /// LSN of the commit of the transaction before this one in the stream, when one has been seen.
    pub previous_commit: Option<Lsn>,
}

/// Where a batch comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The initial copy.
    Snapshot,
    /// The stream.
    Stream,
    /// Changes of the stream that were put aside and are written again, each at its own position: like the stream in all but
    /// one, that their positions say nothing of what a sink holds. Never skipped, never noted as progress.
    Replay,
}

/// Changes in commit order. See the module's page.
#[derive(Debug)]
pub struct Batch {
    /// Whose changes these are.
    pub source: Arc<SourceInfo>,
    /// Initial copy or stream.
    pub phase: Phase,
    /// Everything that commits with an end at or below this LSN is in this batch or in an earlier one: once the batch
    /// is durable, the source may confirm it. `None` while a transaction is cut by the batch's end, and for all
    /// batches of an initial copy but the last. An idle source sends batches with a `through` and no changes.
    pub through: Option<Lsn>,
    /// How an initial copy, which has no positions to confirm, learns how far it is durable: a number of its own, counted
    /// up from 1 in each opening of the source. It comes back by [`crate::feedback::Feedback::marked`] once all
    /// batches sent before are durable in every sink. Only batches without changes carry one.
    pub mark: Option<u64>,
    /// When the first byte of it was read, for latencies: `Instant` of the process.
    pub received: std::time::Instant,
    block: Bytes,
    extra: Bytes,
    cells: Arc<Vec<Cell>>,
    schemas: Vec<Arc<TableSchema>>,
    transactions: Arc<Vec<Transaction>>,
    changes: Vec<Change>,
    permit: Option<Arc<Permit>>,
}

impl Batch {
    /// An empty batch that only moves the position.
    #[must_use]
    pub fn progress(source: Arc<SourceInfo>, through: Lsn) -> Self {
        let mut builder = BatchBuilder::new();
        builder.finish(source, Phase::Stream, Some(through), Bytes::new())
    }

    /// An empty batch that only asks to be told when all before it is durable.
    #[must_use]
    pub fn marker(source: Arc<SourceInfo>, mark: u64) -> Self {
        let mut builder = BatchBuilder::new();
        let batch = builder.finish(source, Phase::Snapshot, None, Bytes::new());
        Batch {
            mark: Some(mark),
            ..batch
        }
    }

    /// The changes, in stream order.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// The schemas that changes index into.
    #[must_use]
    pub fn schemas(&self) -> &[Arc<TableSchema>] {
        &self.schemas
    }

    /// The transactions that changes index into.
    #[must_use]
    pub fn transactions(&self) -> &[Transaction] {
        &self.transactions
    }

    /// The schema of a change.
    #[inline]
    #[must_use]
    pub fn schema(&self, change: &Change) -> &Arc<TableSchema> {
        &self.schemas[usize::from(change.schema)]
    }

    /// The transaction of a change.
    #[inline]
    #[must_use]
    pub fn transaction(&self, change: &Change) -> &Transaction {
        &self.transactions[change.transaction as usize]
    }

    /// The identity of a change.
    #[inline]
    #[must_use]
    pub fn position(&self, change: &Change) -> Position {
        Position {
            commit: self.transaction(change).commit,
            ordinal: change.ordinal,
        }
    }

    /// The new row, absent for DELETE and TRUNCATE.
    #[inline]
    #[must_use]
    pub fn new_row(&self, change: &Change) -> Option<Row<'_>> {
        self.row(change, change.new)
    }

    /// The old row or key, see [`Change::old_image`].
    #[inline]
    #[must_use]
    pub fn old_row(&self, change: &Change) -> Option<Row<'_>> {
        self.row(change, change.old)
    }

    #[inline]
    fn row(&self, change: &Change, start: u32) -> Option<Row<'_>> {
        if start == NONE {
            return None;
        }
        let width = usize::from(self.schema(change).width);
        let start = start as usize;
        Some(Row {
            batch: self,
            cells: &self.cells[start..start + width],
        })
    }

    /// A row put together from cells of this batch, one per slot: what a fold of several changes makes.
    #[must_use]
    pub fn row_of<'a>(&'a self, cells: &'a [Cell]) -> Row<'a> {
        Row { batch: self, cells }
    }

    /// The value of a cell of this batch.
    #[inline]
    #[must_use]
    pub fn resolve(&self, cell: Cell) -> CellRef<'_> {
        let bytes = || {
            let block = if cell.tagged & EXTRA == 0 {
                &self.block
            } else {
                &self.extra
            };
            let start = cell.offset as usize;
            &block[start..start + (cell.tagged & LENGTH) as usize]
        };
        match cell.tagged >> KIND_SHIFT {
            KIND_NULL => CellRef::Null,
            KIND_UNCHANGED => CellRef::Unchanged,
            KIND_TEXT => CellRef::Text(bytes()),
            _ => CellRef::Binary(bytes()),
        }
    }

    /// Bytes this batch keeps alive.
    #[must_use]
    pub fn size(&self) -> usize {
        self.block.len()
            + self.extra.len()
            + self.cells.len() * size_of::<Cell>()
            + self.changes.len() * size_of::<Change>()
    }

    /// Ties a share of the memory budget to the batch and to everything derived from it.
    #[must_use]
    pub fn with_permit(mut self, permit: Permit) -> Self {
        self.permit = Some(Arc::new(permit));
        self
    }

    /// The same bytes with other change heads, for filters and for parts of a flow.
    #[must_use]
    pub fn with_changes(&self, changes: Vec<Change>) -> Batch {
        self.share(self.schemas.clone(), changes)
    }

    /// The same changes under other schemas, one for one: projections and routes.
    #[must_use]
    pub fn with_schemas(&self, schemas: Vec<Arc<TableSchema>>) -> Batch {
        debug_assert_eq!(schemas.len(), self.schemas.len());
        self.share(schemas, self.changes.clone())
    }

    /// The same bytes with other change heads over a longer list of schemas, whose beginning is this batch's list:
    /// routes that decide per row.
    #[must_use]
    pub fn with_parts(&self, schemas: Vec<Arc<TableSchema>>, changes: Vec<Change>) -> Batch {
        debug_assert!(schemas.len() >= self.schemas.len());
        self.share(schemas, changes)
    }

    fn share(&self, schemas: Vec<Arc<TableSchema>>, changes: Vec<Change>) -> Batch {
        Batch {
            source: Arc::clone(&self.source),
            phase: self.phase,
            through: self.through,
            mark: self.mark,
            received: self.received,
            block: self.block.clone(),
            extra: self.extra.clone(),
            cells: Arc::clone(&self.cells),
            schemas,
            transactions: Arc::clone(&self.transactions),
            changes,
            permit: self.permit.clone(),
        }
    }

    /// Opens the batch for a transform that changes schemas per change or values.
    #[must_use]
    pub fn rewrite(&self) -> Rewrite {
        Rewrite {
            extra: self.extra.to_vec(),
            cells: None,
            batch: self.share(self.schemas.clone(), self.changes.clone()),
        }
    }
}

/// One row of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    batch: &'a Batch,
    cells: &'a [Cell],
}

impl<'a> Row<'a> {
    /// The value of a column.
    #[inline]
    #[must_use]
    pub fn get(&self, column: &Column) -> CellRef<'a> {
        self.batch.resolve(self.cells[usize::from(column.slot)])
    }

    /// The raw cells, by slot.
    #[must_use]
    pub fn cells(&self) -> &'a [Cell] {
        self.cells
    }

    /// Whether the columns of `key` are all present and not NULL.
    pub fn has_key(&self, schema: &TableSchema) -> bool {
        schema
            .key_columns()
            .all(|column| matches!(self.get(column), CellRef::Text(_) | CellRef::Binary(_)))
    }
}

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
    batch: Batch,
    cells: Option<Vec<Cell>>,
    extra: Vec<u8>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::SourceIdentity;

    fn batch() -> Batch {
        let schema = Arc::new(TableSchema::message("orders".into()));
        let source = Arc::new(SourceInfo {
            name: "orders".into(),
            identity: SourceIdentity {
                system: 1,
                timeline: 1,
                incarnation: 0,
                database: "orders".into(),
            },
        });
        let mut builder = BatchBuilder::new();
        let transaction = Transaction {
            commit: Lsn(10),
            commit_micros: 0,
            xid: 7,
            origin: None,
            previous_commit: None,
        };
        builder.begin(transaction);
        let index = builder.schema(&schema);
        for ordinal in 1..=2 {
            let start = builder.cells().len();
            builder.cells().extend([Cell::text(0, 2), Cell::text(2, 3)]);
            builder.push(Op::Insert, index, ordinal, Lsn(9), None, Some(start));
        }
        builder.finish(
            source,
            Phase::Stream,
            Some(Lsn(11)),
            Bytes::from_static(b"abcde"),
        )
    }

    #[test]
    fn cells_resolve_to_the_block() {
        let batch = batch();
        let change = batch.changes()[1];
        let row = batch.new_row(&change).expect("insert has a new row");
        assert_eq!(
            row.get(&batch.schema(&change).columns[1]),
            CellRef::Text(b"cde")
        );
        assert_eq!(
            batch.position(&change),
            Position {
                commit: Lsn(10),
                ordinal: 2
            }
        );
        assert!(batch.old_row(&change).is_none());
    }

    #[test]
    fn a_shared_row_is_edited_once() {
        let batch = batch();
        let head = batch.changes()[0];
        let twice = batch.with_changes(vec![head, head]);
        let mut rewrite = twice.rewrite();
        for change in 0..2 {
            rewrite.edit_cell(change, 0, |value, out| {
                out.extend_from_slice(value.text().expect("text"));
                out.push(b'!');
                Edit::Text
            });
            rewrite.edit_cell(change, 1, |_, _| Edit::Null);
        }
        let edited = rewrite.finish();
        for change in edited.changes() {
            let row = edited.new_row(change).expect("row");
            let columns = &edited.schema(change).columns;
            assert_eq!(row.get(&columns[0]), CellRef::Text(b"ab!"));
            assert_eq!(row.get(&columns[1]), CellRef::Null);
        }
    }

    #[test]
    fn an_update_becomes_a_delete_of_its_own_key() {
        let batch = batch();
        let head = batch.changes()[0].into_delete();
        assert_eq!((head.op, head.old_image), (Op::Delete, OldImage::Key));
        let batch = batch.with_changes(vec![head]);
        assert!(batch.new_row(&head).is_none());
        assert!(batch.old_row(&head).is_some());
    }

    #[test]
    fn a_rewrite_leaves_the_original_alone() {
        let batch = batch();
        let mut rewrite = batch.rewrite();
        rewrite.edit_cell(0, 1, |value, out| {
            out.extend(value.text().unwrap_or_default().repeat(2));
            Edit::Text
        });
        rewrite.retain(|index| index == 0);
        let masked = rewrite.finish();
        let column = &batch.schemas()[0].columns[1];
        assert_eq!(masked.changes().len(), 1);
        assert_eq!(
            masked
                .new_row(&masked.changes()[0])
                .expect("row")
                .get(column),
            CellRef::Text(b"cdecde")
        );
        assert_eq!(
            batch.new_row(&batch.changes()[0]).expect("row").get(column),
            CellRef::Text(b"cde")
        );
        let mut again = masked.rewrite();
        again.edit_cell(0, 0, |_, out| {
            out.push(b'x');
            Edit::Text
        });
        let again = again.finish();
        assert_eq!(
            again.new_row(&again.changes()[0]).expect("row").get(column),
            CellRef::Text(b"cdecde")
        );
    }
}

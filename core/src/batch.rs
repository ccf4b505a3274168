//! The unit handed between stages: changes of many tables in commit order over one shared block of bytes.
//!
//! Bytes are read once into the block and not copied again until they are encoded. A cell is an offset into it, a
//! projection changes the schema only, a filter drops change heads only.

mod builder;
mod cell;
mod folded;
mod join;
mod rewrite;

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::memory::Permit;
use crate::position::{Lsn, Position, SourceInfo};
use crate::progress::{Progress, Standing};
use crate::schema::{Column, TableSchema};

pub use builder::BatchBuilder;
pub use cell::{Cell, CellRef};
use cell::{EXTRA, KIND_NULL, KIND_SHIFT, KIND_TEXT, KIND_UNCHANGED, LENGTH};
pub use folded::Folded;
pub use rewrite::{Edit, Rewrite};

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
    /// What a row of an outbox says, for queues: cells of [`TableSchema::event`]. It is no row of a table: sinks that hold rows
    /// leave it out.
    Event,
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
            Op::Event => "event",
        }
    }

    /// The letter that records have for it.
    #[must_use]
    pub fn letter(self) -> &'static str {
        match self {
            Op::Read => "r",
            Op::Insert => "c",
            Op::Update => "u",
            Op::Delete => "d",
            Op::Truncate => "t",
            Op::Message => "m",
            Op::Event => "e",
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

    /// The same change at another place of its transaction.
    #[must_use]
    pub fn at(mut self, ordinal: u64) -> Change {
        self.ordinal = ordinal;
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
    /// How it was prepared, where it was a branch of a two-phase commit and the source decodes these.
    pub prepared: Option<Arc<Prepared>>,
    /// What it is a branch of, where branches go on together.
    pub global: Option<Arc<Global>>,
}

impl Transaction {
    /// Whether it is a branch that has not committed: its `commit` is the place where it was prepared, and its time is that.
    #[must_use]
    pub fn is_early(&self) -> bool {
        let prepared = self.prepared.as_ref();
        prepared.is_some_and(|prepared| prepared.lsn == self.commit)
    }
}

/// A transaction of several databases, all of whose branches go on together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Global {
    /// What its branches share: who named it, a colon, and the name.
    pub id: Arc<str>,
    /// How many branches go on together.
    pub branches: u32,
    /// They go on in pieces: there is more of them than can be held at a time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

/// What a source says of a two-phase commit beside its changes. It has a batch of its own, at its place of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Branch {
    /// One was prepared: its changes follow when it commits.
    Prepared(Arc<Prepared>),
    /// One that was prepared has been rolled back.
    RolledBack(Arc<Prepared>),
    /// One that was prepared has committed, and no change of it follows: it has changed nothing that is read.
    Empty(Arc<Prepared>),
    /// All changes of one have come that is prepared and was asked for ([`Transaction::is_early`]). They come again when it commits.
    Early(Arc<Prepared>),
}

/// Prefix of the logical message in which a transaction says what it is a branch of.
pub const MARKER: &str = "gtx";

/// The first phase of a transaction that committed in two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// What its coordinator calls it: unique among those that are prepared on the server at a time.
    pub gid: Arc<str>,
    /// LSN of the PREPARE record. Like every place of the log but the commit it identifies nothing.
    pub lsn: Lsn,
    /// When it was prepared, microseconds since the Unix epoch.
    pub micros: i64,
    /// What it says itself that it is a branch of: the content of a logical message with the prefix [`MARKER`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marker: Option<Arc<str>>,
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
    /// Rows as they must stand in a sink at this place of the stream, to be compared and not written: an
    /// [`Op::Read`] as it is, an [`Op::Delete`] not at all. They go through the transforms as a copy's rows do, and leave
    /// nothing there. A sink never gets them.
    Check,
}

/// Changes in commit order. See the module's page.
#[derive(Debug)]
pub struct Batch {
    /// Whose changes these are.
    pub source: Arc<SourceInfo>,
    /// Initial copy or stream.
    pub phase: Phase,
    /// Everything that commits with an end at or below this LSN is in this batch or in an earlier one: once the batch
    /// is durable, the source may confirm it. `None`, or an end before it, while a transaction is cut by the batch's end;
    /// `None` for all batches of an initial copy but the last. An idle source sends batches with a `through` and no changes.
    pub through: Option<Lsn>,
    /// How an initial copy, which has no positions to confirm, learns how far it is durable: a number of its own, counted
    /// up from 1 in each opening of the source. It comes back by [`crate::feedback::Feedback::marked`] once all
    /// batches sent before are durable in every sink. Only batches without changes carry one.
    pub mark: Option<u64>,
    /// Which check it is, in the phase `Check`; in the phase `Snapshot`, which check's sinks it is for, and no others.
    pub check: Option<u64>,
    /// What else has gone on of the source, where that is not simply all before; for [`Batch::progress_at`].
    pub standing: Option<Arc<Standing>>,
    /// Word of a two-phase commit. Only batches without changes carry one.
    pub branch: Option<Branch>,
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

    /// An empty batch with word of a two-phase commit.
    #[must_use]
    pub fn of_branch(source: Arc<SourceInfo>, branch: Branch) -> Self {
        let mut builder = BatchBuilder::new();
        let batch = builder.finish(source, Phase::Stream, None, Bytes::new());
        Batch {
            branch: Some(branch),
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

    /// What a sink holds of the source once it has this change of the batch, those before it, and all batches before.
    #[must_use]
    pub fn progress_at(&self, change: &Change) -> Progress {
        let position = self.position(change);
        match &self.standing {
            Some(standing) if self.is_early(change) => standing.with_early(position),
            Some(standing) => standing.with(position),
            None => position.into(),
        }
    }

    /// Whether a change is of a branch that goes on before it commits.
    #[inline]
    #[must_use]
    pub fn is_early(&self, change: &Change) -> bool {
        self.transaction(change).is_early()
    }

    /// Whether a change is there where this much is.
    #[must_use]
    pub fn is_held(&self, change: &Change, held: &Progress) -> bool {
        let position = self.position(change);
        match self.is_early(change) {
            true => held.holds_early(position),
            false => held.holds(position),
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

    /// Whether a share of the memory budget is tied to the batch.
    #[must_use]
    pub fn has_permit(&self) -> bool {
        self.permit.is_some()
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

    /// The same, with what each transaction is a branch of.
    #[must_use]
    pub fn with_globals(&self, global: impl Fn(&Transaction) -> Option<Arc<Global>>) -> Batch {
        let mut batch = self.share(self.schemas.clone(), self.changes.clone());
        let transactions = self.transactions.iter().map(|transaction| Transaction {
            global: global(transaction),
            ..transaction.clone()
        });
        batch.transactions = Arc::new(transactions.collect());
        batch
    }

    /// The same, beside something else.
    #[must_use]
    pub fn with_standing(&self, standing: Standing) -> Batch {
        let mut batch = self.share(self.schemas.clone(), self.changes.clone());
        batch.standing = Some(Arc::new(standing));
        batch
    }

    fn share(&self, schemas: Vec<Arc<TableSchema>>, changes: Vec<Change>) -> Batch {
        Batch {
            source: Arc::clone(&self.source),
            phase: self.phase,
            through: self.through,
            mark: self.mark,
            check: self.check,
            standing: self.standing.clone(),
            branch: None,
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

    /// The values of all slots, in order.
    pub fn values(&self) -> impl Iterator<Item = CellRef<'a>> + '_ {
        self.cells.iter().map(|&cell| self.batch.resolve(cell))
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

#[cfg(test)]
mod tests;

//! Where rows that are loaded again enter the stream.
//!
//! A chunk of rows is read under a snapshot; afterwards a *fence*, a logical message in a transaction of its own, is
//! committed. Whatever the snapshot sees was committed before the fence, so it has passed in the stream when the fence
//! comes by. What has passed and the snapshot does not see is newer than the chunk: its keys are taken out of the chunk.
//! The rest goes on at the place of the fence, with the fence's commit as its version. (An LSN alone could not tell:
//! a commit may be in the log, and in the stream, before snapshots see it.)

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::Error;
use lockstep_core::batch::{
    Batch, BatchBuilder, Branch, CellRef, Change, Op, Phase, Row, Transaction,
};
use lockstep_core::position::{Lsn, SourceInfo};
use lockstep_core::schema::{TableId, TableSchema};
use lockstep_core::source::Checked;
use tokio::sync::oneshot;

use super::check::Wanted;
use crate::copy_out::Rows;
use crate::horizons::{Horizon, Horizons};
use crate::visible::Visible;

/// Prefix of the messages that mark where a chunk belongs.
pub(super) const FENCE: &str = "lockstep.fence";
/// Prefix of the messages that ask for something.
pub(super) const SIGNAL: &str = "lockstep.signal";

/// Transactions remembered as having passed. More than can be committed and not yet seen by snapshots: each of those
/// holds a connection.
const RECENT: usize = 4096;
/// Bytes of keys remembered; beyond, the chunk is read again.
const MOST_KEYS: usize = 16 << 20;

/// A chunk that waits for its fence.
pub(super) struct Offer {
    /// The message's content.
    pub(super) fence: String,
    pub(super) schema: Arc<TableSchema>,
    /// The version in which the table had passed last, before the chunk was read.
    pub(super) passed: Option<u32>,
    /// `None`: the table is emptied in the sinks.
    pub(super) rows: Option<Rows>,
    pub(super) permit: lockstep_core::memory::Permit,
    pub(super) visible: Visible,
    /// The rows are to be compared, and not written.
    pub(super) check: Option<Wanted>,
    pub(super) answer: oneshot::Sender<Merged>,
}

/// What became of a chunk.
#[derive(Clone, Debug)]
pub(super) enum Merged {
    /// It went on: durable when more than `fence` is confirmed.
    Passed {
        fence: Lsn,
        rows: u64,
        superseded: u64,
    },
    /// It went on, to be compared, or nothing of it was to.
    Checked(Checked),
    /// It cannot be compared.
    Failed(Error),
    /// It is to be read again: too much has changed meanwhile, or the table has another shape.
    Again,
}

/// What has passed in the stream, as far as chunks need to know.
#[derive(Default)]
pub(super) struct Window {
    recent: VecDeque<u32>,
    /// Those that have passed before they have committed, by where they were prepared.
    early: HashMap<Lsn, u32>,
    /// The latest shape of each table that has passed, by its name in the database.
    shapes: HashMap<TableId, Arc<TableSchema>>,
    watched: Option<Watched>,
    /// What the log has reached for certain: the commit of the last transaction that has passed, or the place where the stream
    /// began.
    latest: Lsn,
    horizons: Horizons,
}

/// The table that is being loaded.
struct Watched {
    table: TableId,
    /// What has passed under each key.
    touched: HashMap<Vec<u8>, Touch>,
    bytes: usize,
    truncated: Option<u32>,
    offer: Option<Offer>,
    /// What had passed when it was handed over, before its fence was committed.
    reached: Lsn,
    /// Rows are compared: nobody owes a row that is not written.
    compares: bool,
    /// See [`Found::owed`].
    owed: Vec<Vec<String>>,
}

/// The last change under a key.
#[derive(Clone, Copy)]
struct Touch {
    xid: u32,
    /// It did not send all values again, and sinks may not hold the row that it changes.
    part: bool,
}

/// What a pass of a batch has found besides.
#[derive(Default)]
pub(super) struct Found {
    /// The batch, and the chunks in it, in order.
    pub(super) batches: Vec<Batch>,
    /// The contents of signals.
    pub(super) signals: Vec<String>,
    /// Keys of the watched table whose rows sinks may lack a large value of, which an UPDATE did not send again: it
    /// overtook the chunk that has the value, or it moved the row to where chunks have been. They must be read once more.
    pub(super) owed: Vec<Vec<String>>,
}

impl Window {
    /// One whose fences make horizons, for a stream from this place of the log.
    pub(super) fn new(horizons: Horizons, from: Lsn) -> Self {
        Window {
            latest: from,
            horizons,
            ..Window::default()
        }
    }

    /// Begins to note the changes of a table. Returns the transactions that have passed before: the first snapshot must
    /// see them all.
    pub(super) fn watch(&mut self, table: TableId, compares: bool) -> Vec<u32> {
        self.watched = Some(Watched {
            table,
            compares,
            touched: HashMap::new(),
            bytes: 0,
            truncated: None,
            offer: None,
            reached: Lsn::ZERO,
            owed: Vec::new(),
        });
        let recent = self.recent.iter();
        recent.chain(self.early.values()).copied().collect()
    }

    /// Ends it.
    pub(super) fn rest(&mut self) {
        self.watched = None;
    }

    /// Hands over a chunk, before its fence is committed.
    pub(super) fn offer(&mut self, offer: Offer) {
        if let Some(watched) = &mut self.watched {
            watched.offer = Some(offer);
            watched.reached = self.latest;
        }
    }

    /// The shape in which a table passed last.
    pub(super) fn shape(&self, table: &TableId) -> Option<Arc<TableSchema>> {
        self.shapes.get(table).cloned()
    }

    /// Takes note of a batch of the stream, takes our messages out of it, and puts the chunk that waits at its place.
    pub(super) fn pass(&mut self, batch: Batch) -> Found {
        if let Some(Branch::RolledBack(prepared) | Branch::Empty(prepared)) = &batch.branch {
            self.early.remove(&prepared.lsn);
        }
        for transaction in batch.transactions() {
            self.seen(transaction);
        }
        for schema in batch.schemas() {
            if self
                .shapes
                .get(&schema.origin)
                .is_none_or(|known| !Arc::ptr_eq(known, schema))
            {
                self.shapes
                    .insert(schema.origin.clone(), Arc::clone(schema));
            }
        }
        let messages = batch
            .changes()
            .iter()
            .any(|change| change.op == Op::Message);
        if self.watched.is_none() && !messages {
            return Found {
                batches: vec![batch],
                ..Found::default()
            };
        }
        let mut found = Found::default();
        let mut kept: Vec<Change> = Vec::with_capacity(batch.changes().len());
        for change in batch.changes() {
            match message(&batch, change) {
                Some((SIGNAL, content)) => found.signals.push(content.to_owned()),
                Some((FENCE, content)) => {
                    if let Some(chunk) = self.merge(&batch, change, content) {
                        found.part(&batch, &mut kept);
                        found.batches.extend(chunk);
                    }
                }
                _ => {
                    self.touch(&batch, change);
                    kept.push(*change);
                }
            }
        }
        if found.batches.is_empty() || !kept.is_empty() {
            found.batches.push(batch.with_changes(kept));
        }
        for part in &mut found.batches {
            part.through = None;
        }
        if let Some(last) = found.batches.last_mut() {
            last.through = batch.through;
        }
        if let Some(watched) = &mut self.watched {
            found.owed = std::mem::take(&mut watched.owed);
        }
        found
    }

    fn seen(&mut self, transaction: &Transaction) {
        if transaction.is_early() {
            // Whatever is read before it ends is older than what has passed of it.
            self.early.insert(transaction.commit, transaction.xid);
            return;
        }
        if let Some(prepared) = &transaction.prepared {
            self.early.remove(&prepared.lsn);
        }
        self.latest = self.latest.max(transaction.commit);
        if transaction.xid == 0 || self.recent.back() == Some(&transaction.xid) {
            return;
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(transaction.xid);
    }

    fn touch(&mut self, batch: &Batch, change: &Change) {
        let Some(watched) = &mut self.watched else {
            return;
        };
        let schema = batch.schema(change);
        if schema.origin != watched.table {
            return;
        }
        let xid = batch.transaction(change).xid;
        if change.op == Op::Truncate {
            watched.truncated = Some(xid);
        }
        let key_of = |row| key(schema, row);
        let (old, new) = (batch.old_row(change), batch.new_row(change));
        let (from, to) = (old.map(key_of), new.map(key_of));
        if from == Some(None) || to == Some(None) {
            // A large key that was not sent again: the chunk may hold the row.
            watched.bytes = usize::MAX;
            return;
        }
        let (from, to) = (from.flatten(), to.flatten());
        let (Some(row), Some(to)) = (new, to) else {
            if let Some(from) = from {
                watched.note(from, xid, false);
            }
            return;
        };
        let moved = from.filter(|from| *from != to);
        let before = watched.touched.get(moved.as_ref().unwrap_or(&to));
        let part = !is_whole(schema, row) && before.is_none_or(|before| before.part);
        if let Some(moved) = moved {
            if part {
                watched.owe(schema, row);
            }
            watched.note(moved, xid, false);
        }
        watched.note(to, xid, part);
    }

    /// The chunk that waits for this fence: `None` when it is not ours, or has been given up.
    fn merge(&mut self, batch: &Batch, change: &Change, content: &str) -> Option<Option<Batch>> {
        let watched = self.watched.as_mut()?;
        let offer = watched.offer.take_if(|offer| offer.fence == content)?;
        let fence = batch.transaction(change).clone();
        // Begun when the log had reached what had passed by then, as are all that have a higher number.
        let xid = offer.visible.near(fence.xid).filter(|_| fence.xid != 0);
        if let Some(xid) = xid {
            self.horizons.note(Horizon {
                reached: watched.reached,
                xid: xid + 1,
            });
        }
        // Nothing has passed in another shape meanwhile, or it is the chunk's own: then what follows is written like it.
        let same_shape = self.shapes.get(&watched.table).is_none_or(|shape| {
            offer.passed == Some(shape.version)
                || (shape.columns == offer.schema.columns && shape.key == offer.schema.key)
        });
        if watched.bytes > MOST_KEYS || !same_shape {
            // Whoever reads may have gone.
            let _ = offer.answer.send(Merged::Again);
            return None;
        }
        let commit = fence.commit;
        let Some(rows) = offer.rows else {
            let _ = offer.answer.send(Merged::Passed {
                fence: commit,
                rows: 0,
                superseded: 0,
            });
            let batch = emptying(&batch.source, &offer.schema, fence);
            return Some(Some(batch.with_permit(offer.permit)));
        };
        let count = rows.count() as u64;
        let rows = rows.into_batch(&batch.source, &offer.schema, fence, 1);
        let emptied = watched
            .truncated
            .is_some_and(|xid| !offer.visible.sees(xid));
        if let Some(wanted) = offer.check {
            let is_steady = |key: &[String]| !emptied && watched.is_steady(key, &offer.visible);
            let made = wanted.make(rows, &offer.schema, is_steady);
            watched.forget(&offer.visible);
            return match made {
                Ok(made) => {
                    let _ = offer.answer.send(Merged::Checked(made.checked));
                    Some(made.batch.map(|batch| batch.with_permit(offer.permit)))
                }
                Err(error) => {
                    let _ = offer.answer.send(Merged::Failed(error));
                    None
                }
            };
        }
        let mut kept: Vec<Change> = Vec::with_capacity(rows.changes().len());
        for change in rows.changes().iter().filter(|_| !emptied) {
            let Some(row) = rows.new_row(change) else {
                continue;
            };
            let key = key(&offer.schema, row);
            let touch = key.and_then(|key| watched.touched.get(&key)).copied();
            match touch.filter(|touch| !offer.visible.sees(touch.xid)) {
                None => kept.push(*change),
                Some(newer) if newer.part => watched.owe(&offer.schema, row),
                Some(_) => {}
            }
        }
        let superseded = count - kept.len() as u64;
        watched.forget(&offer.visible);
        let _ = offer.answer.send(Merged::Passed {
            fence: commit,
            rows: kept.len() as u64,
            superseded,
        });
        Some((!kept.is_empty()).then(|| rows.with_changes(kept).with_permit(offer.permit)))
    }
}

/// A TRUNCATE at the place of a fence.
fn emptying(source: &Arc<SourceInfo>, schema: &Arc<TableSchema>, fence: Transaction) -> Batch {
    let lsn = fence.commit;
    let mut builder = BatchBuilder::new();
    builder.begin(fence);
    let index = builder.schema(schema);
    builder.push(Op::Truncate, index, 1, lsn, None, None);
    builder.finish(Arc::clone(source), Phase::Snapshot, None, Bytes::new())
}

impl Found {
    /// What has come before a chunk.
    fn part(&mut self, batch: &Batch, kept: &mut Vec<Change>) {
        if !kept.is_empty() {
            self.batches.push(batch.with_changes(std::mem::take(kept)));
        }
    }
}

impl Watched {
    fn note(&mut self, key: Vec<u8>, xid: u32, part: bool) {
        if self.bytes > MOST_KEYS {
            return;
        }
        let bytes = noted(&key);
        if self.touched.insert(key, Touch { xid, part }).is_none() {
            self.bytes += bytes;
        }
    }

    /// Whether nothing of the row has passed that the snapshot does not see.
    fn is_steady(&self, key: &[String], visible: &Visible) -> bool {
        if self.touched.is_empty() {
            return true;
        }
        let mut noted = Vec::new();
        for value in key {
            noted.extend_from_slice(&(value.len() as u32).to_be_bytes());
            noted.extend_from_slice(value.as_bytes());
        }
        let touch = self.touched.get(&noted);
        touch.is_none_or(|touch| visible.sees(touch.xid))
    }

    /// The row must be read once more.
    fn owe(&mut self, schema: &TableSchema, row: Row<'_>) {
        if self.compares {
            return;
        }
        let text = |column| {
            let bytes = row.get(column).text()?;
            String::from_utf8(bytes.to_vec()).ok()
        };
        match schema.key_columns().map(text).collect() {
            Some(key) => self.owed.push(key),
            // Not in text: then the whole chunk is read again.
            None => self.bytes = usize::MAX,
        }
    }

    /// What a snapshot sees, all later ones see.
    fn forget(&mut self, visible: &Visible) {
        self.touched.retain(|_, touch| !visible.sees(touch.xid));
        self.bytes = self.touched.keys().map(|key| noted(key)).sum();
        self.truncated.take_if(|xid| visible.sees(*xid));
    }
}

/// Bytes that a noted key takes, about.
fn noted(key: &[u8]) -> usize {
    key.len() + size_of::<(Vec<u8>, Touch)>()
}

/// Whether all values are there.
fn is_whole(schema: &TableSchema, row: Row<'_>) -> bool {
    let mut cells = schema.columns.iter().map(|column| row.get(column));
    !cells.any(|cell| matches!(cell, CellRef::Unchanged))
}

/// The values of a row's key, told apart from one another; `None` when one was not sent.
fn key(schema: &TableSchema, row: Row<'_>) -> Option<Vec<u8>> {
    let mut key = Vec::new();
    for column in schema.key_columns() {
        match row.get(column) {
            CellRef::Text(bytes) | CellRef::Binary(bytes) => {
                key.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
                key.extend_from_slice(bytes);
            }
            CellRef::Null => key.extend_from_slice(&u32::MAX.to_be_bytes()),
            CellRef::Unchanged => return None,
        }
    }
    Some(key)
}

/// The prefix and the content of a message of ours.
fn message<'a>(batch: &'a Batch, change: &Change) -> Option<(&'static str, &'a str)> {
    if change.op != Op::Message {
        return None;
    }
    let (row, columns) = (batch.new_row(change)?, &batch.schema(change).columns);
    let text = |at: usize| {
        let bytes = row.get(columns.get(at)?).text()?;
        std::str::from_utf8(bytes).ok()
    };
    let prefix = text(0)?;
    let ours = [FENCE, SIGNAL].into_iter().find(|ours| *ours == prefix)?;
    Some((ours, text(1)?))
}

#[cfg(test)]
mod tests;

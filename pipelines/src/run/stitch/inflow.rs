//! Batches of one source, cut into transactions.

use std::ops::Range;
use std::sync::Arc;

use lockstep_core::batch::{Batch, Change, Op, Prepared, Transaction};
use lockstep_core::position::{Lsn, Position};
use lockstep_transactions::marker::{self, Marker};

use super::rows::Rows;
use super::shelf::Slice;

/// A transaction of which all has come, or a part.
pub(super) struct Came {
    /// Its last position.
    pub place: Position,
    /// When it committed, microseconds since the Unix epoch.
    pub committed_micros: i64,
    /// How it was prepared.
    pub prepared: Option<Arc<Prepared>>,
    /// What it says that it is a branch of.
    pub marker: Option<Marker>,
    /// Which rows it has changed, where that is asked for.
    pub rows: Rows,
    pub slices: Vec<Slice>,
}

/// Changes of a batch that are of one transaction.
pub(super) struct Run<'a> {
    pub transaction: &'a Transaction,
    pub changes: Range<usize>,
    /// Where it ends, or a place behind, when all of it has come.
    pub end: Option<Lsn>,
}

/// Cuts the changes of a batch of the stream.
pub(super) fn cut(batch: &Batch) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    let same = |a: &Change, b: &Change| a.transaction == b.transaction;
    for changes in batch.changes().chunk_by(same) {
        let from = runs.last().map_or(0, |run| run.changes.end);
        let transaction = batch.transaction(&changes[0]);
        if let Some(last) = runs.last_mut() {
            // The end of a commit record lies at the next one, or before it.
            last.end = Some(transaction.commit.max(behind(last.transaction.commit)));
        }
        runs.push(Run {
            transaction,
            changes: from..from + changes.len(),
            end: None,
        });
    }
    if let Some(last) = runs.last_mut() {
        let commit = last.transaction.commit;
        let whole = batch.through.filter(|through| *through > commit);
        // What is written outside of transactions is whole as it is.
        let alone = (last.transaction.xid == 0).then(|| behind(commit));
        last.end = whole.or(alone);
    }
    runs
}

/// A place behind a commit record: not its end, and before any other commit record's end.
pub(super) fn behind(commit: Lsn) -> Lsn {
    Lsn(commit.0.saturating_add(1))
}

/// The last position of a transaction, whatever comes of it.
pub(super) fn place(transaction: &Transaction) -> Position {
    Position {
        commit: transaction.commit,
        ordinal: match transaction.xid {
            0 => 0,
            _ => u64::MAX,
        },
    }
}

/// What changes say that their transaction is a branch of.
pub(super) fn marker(batch: &Batch, changes: &[Change]) -> Option<Marker> {
    let mut messages = changes.iter().filter(|change| change.op == Op::Message);
    messages.find_map(|change| {
        let row = batch.new_row(change)?;
        let mut values = batch.schema(change).columns.iter();
        let prefix = row.get(values.next()?).text()?;
        let content = row.get(values.next()?).text()?;
        if prefix != marker::PREFIX.as_bytes() {
            return None;
        }
        Marker::parse(content)
            .inspect_err(|error| tracing::warn!(source = %batch.source.name, %error, "a branch is not told apart"))
            .ok()
    })
}

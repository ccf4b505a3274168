//! Batches of one source, cut into transactions.

use std::collections::HashSet;
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

/// Branches of a batch, of all that committed before `through`, whose changes are all gone on the way here: nothing else is said of them.
/// Those of the transaction that was open at this place have come before.
pub(super) fn without_changes<'a>(
    batch: &'a Batch,
    runs: &[Run<'_>],
    open: Option<Position>,
    through: Lsn,
) -> Vec<&'a Prepared> {
    let branches = batch.transactions().iter().filter_map(|transaction| {
        let prepared = transaction.prepared.as_deref()?;
        (transaction.commit < through).then(|| (place(transaction), prepared))
    });
    let mut branches = branches.peekable();
    if branches.peek().is_none() {
        return Vec::new();
    }
    let with_changes = runs.iter().map(|run| place(run.transaction));
    let with_changes: HashSet<Position> = with_changes.chain(open).collect();
    let without = branches.filter(|(place, _)| !with_changes.contains(place));
    without.map(|(_, prepared)| prepared).collect()
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

#[cfg(test)]
mod tests {
    use lockstep_conformance::feed::{Feed, INT8, V, lsn, source, table};

    use super::*;

    #[test]
    fn a_branch_is_without_changes_when_it_has_none_here_and_had_none_before() {
        let rows = table("orders", "orders", 1, &[("id", "int8", INT8)]);
        let mut feed = Feed::new(&source("orders"));
        for (at, commit) in [(1, 10), (2, 20), (3, 30)] {
            feed.commit_prepared(at, commit);
            feed.insert(&rows, &[V::Text("1")]);
        }
        feed.begin(40).insert(&rows, &[V::Text("2")]);
        let whole = feed.finish();
        let left = |open: Option<u64>, through: u64| -> Vec<Lsn> {
            let kept = whole.changes().iter();
            let kept = kept.filter(|change| whole.transaction(change).commit != lsn(20));
            let batch = whole.with_changes(kept.copied().collect());
            let open = open.map(|commit| Position {
                commit: lsn(commit),
                ordinal: u64::MAX,
            });
            let left = without_changes(&batch, &cut(&batch), open, lsn(through));
            left.iter().map(|prepared| prepared.lsn).collect()
        };
        assert_eq!(left(None, 41), [lsn(2)]);
        assert_eq!(left(Some(20), 41), [], "its changes have come");
        assert_eq!(left(None, 20), [], "not all of it may have come");
    }
}

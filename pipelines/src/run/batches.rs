//! Cutting, selecting and merging batches. Change heads are copied at most; rows never.

use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::batch::{Batch, Change, Phase};
use lockstep_core::position::Position;
use lockstep_core::progress::Progress;
use lockstep_core::schema::{TableId, TableSchema};

use crate::selector::Selector;

/// The position of the last change of a stream batch; `None` for the initial copy and for empty batches.
pub(super) fn last_position(batch: &Batch) -> Option<Position> {
    match batch.phase {
        Phase::Stream => batch.changes().last().map(|change| batch.position(change)),
        Phase::Snapshot | Phase::Replay | Phase::Check => None,
    }
}

/// What a sink holds of the source once it has a batch of the stream; `None` for the initial copy and for empty batches.
pub(super) fn progress(batch: &Batch) -> Option<Progress> {
    match batch.phase {
        Phase::Stream => batch.changes().last().map(|last| batch.progress_at(last)),
        Phase::Snapshot | Phase::Replay | Phase::Check => None,
    }
}

/// Whether it is of a branch that goes on before it commits: a batch is all of such, or has none.
pub(super) fn is_early(batch: &Batch) -> bool {
    let first = batch.changes().first();
    batch.phase == Phase::Stream && first.is_some_and(|first| batch.is_early(first))
}

/// Whether all that a sink holds has gone on before a batch of the stream.
pub(super) fn is_past(batch: &Batch, held: &Progress) -> bool {
    let standing = batch.standing.as_ref().and_then(|standing| standing.upto);
    match (standing, batch.changes().first()) {
        (Some(upto), _) => upto >= held.last(),
        (None, Some(first)) => batch.position(first) > held.last(),
        (None, None) => false,
    }
}

/// What a sink does not hold of a batch of the stream, beside what it holds; `None` when it holds all.
pub(super) fn beyond(batch: &Arc<Batch>, held: &Progress) -> Option<Arc<Batch>> {
    let changes = batch.changes().iter();
    let changes: Vec<Change> = changes
        .filter(|change| !held.holds(batch.position(change)))
        .copied()
        .collect();
    if changes.is_empty() {
        return None;
    }
    let has_gaps = held.last() > held.upto();
    let beside = has_gaps || batch.standing.is_some();
    if changes.len() == batch.changes().len() && !beside {
        return Some(Arc::clone(batch));
    }
    let mut rest = batch.with_changes(changes);
    if beside {
        let standing = batch.standing.as_deref().cloned().unwrap_or_default();
        rest.standing = Some(Arc::new(standing.beside(held)));
    }
    Some(Arc::new(rest))
}

/// What is left of a batch when the stream up to `done` is known to be there.
pub(super) enum Rest {
    /// Nothing of it was there.
    Whole,
    /// Its first changes were there; these were not.
    Part(Box<Batch>),
    /// All of it was there.
    Nothing,
}

/// Cuts off the changes at or below `done`. Rows of the initial copy are never cut: they are sent again at the same
/// version. One comparison when nothing is to be cut, else a binary search, since positions ascend.
pub(super) fn after(batch: &Batch, done: Position) -> Rest {
    let changes = batch.changes();
    let Some(first) = changes.first() else {
        return Rest::Whole;
    };
    if batch.phase != Phase::Stream || batch.position(first) > done {
        return Rest::Whole;
    }
    let cut = changes.partition_point(|change| batch.position(change) <= done);
    if cut == changes.len() {
        Rest::Nothing
    } else {
        Rest::Part(Box::new(batch.with_changes(changes[cut..].to_vec())))
    }
}

/// The part of a batch that any of the selectors takes; `None` when that is nothing. The same `Arc` when it is everything.
pub(super) fn select(batch: Arc<Batch>, selectors: &[Selector]) -> Option<Arc<Batch>> {
    if batch.changes().is_empty() {
        return None;
    }
    let taken: Vec<bool> = batch
        .schemas()
        .iter()
        .map(|schema| selectors.iter().any(|selector| selector.matches(schema)))
        .collect();
    if taken.iter().all(|taken| *taken) {
        return Some(batch);
    }
    let changes: Vec<Change> = batch
        .changes()
        .iter()
        .filter(|change| taken[usize::from(change.schema)])
        .copied()
        .collect();
    if changes.len() == batch.changes().len() {
        return Some(batch);
    }
    if changes.is_empty() {
        return None;
    }
    Some(Arc::new(hide_unused_schemas(batch.with_changes(changes))))
}

/// Hides the schemas that no change has any more behind one that is used, so that nobody downstream prepares for
/// tables that do not come. Indices stay as they are.
pub(super) fn hide_unused_schemas(batch: Batch) -> Batch {
    let mut used = vec![false; batch.schemas().len()];
    for change in batch.changes() {
        used[usize::from(change.schema)] = true;
    }
    let Some(stand_in) = used.iter().position(|used| *used) else {
        return batch;
    };
    if used.iter().all(|used| *used) {
        return batch;
    }
    let stand_in = &batch.schemas()[stand_in];
    let schemas: Vec<Arc<TableSchema>> = batch
        .schemas()
        .iter()
        .zip(used)
        .map(|(schema, used)| Arc::clone(if used { schema } else { stand_in }))
        .collect();
    batch.with_schemas(schemas)
}

/// A batch for someone who changes it: itself when nobody else holds it, else a copy of its change heads.
pub(super) fn owned(batch: Arc<Batch>) -> Batch {
    Arc::try_unwrap(batch).unwrap_or_else(|shared| shared.with_changes(shared.changes().to_vec()))
}

/// The changes of a batch in runs: those that are suspected by themselves, those in between together. Changes at one
/// position stay together, since whoever has one of them counts as having all.
pub(super) fn runs(
    batch: &Batch,
    is_suspect: impl Fn(&Change) -> bool,
) -> Vec<(bool, Vec<Change>)> {
    let mut runs: Vec<(bool, Vec<Change>)> = Vec::new();
    let positions = batch
        .changes()
        .chunk_by(|a, b| batch.position(a) == batch.position(b));
    for changes in positions {
        let alone = changes.iter().any(&is_suspect);
        match runs.last_mut() {
            Some((false, run)) if !alone => run.extend_from_slice(changes),
            _ => runs.push((alone, changes.to_vec())),
        }
    }
    runs
}

/// Merges what came by several inputs, all made from one batch, in the order of positions: one batch again, since a sink
/// that has one change of a position counts as having all of them. A change that came by more than one input is taken from
/// the first: its position and its table identify it, and a sink gets each change once. (A row that moves to another table
/// is two changes at one position.)
///
/// # Errors
/// See [`Batch::join`].
pub(super) fn merge(mut inputs: Vec<Arc<Batch>>) -> Result<Option<Arc<Batch>>> {
    inputs.retain(|batch| !batch.changes().is_empty());
    if inputs.len() < 2 {
        return Ok(inputs.pop());
    }
    let mut cursors: Vec<Cursor<'_>> = inputs.iter().map(|batch| Cursor::new(batch)).collect();
    let mut picked: Vec<(usize, Change)> = Vec::new();
    while let Some(next) = cursors.iter().filter_map(Cursor::identity).min() {
        let mut taken = false;
        for (input, cursor) in cursors.iter_mut().enumerate() {
            if cursor.identity() == Some(next) {
                let change = cursor.take();
                if !std::mem::replace(&mut taken, true) {
                    picked.push((input, change));
                }
            }
        }
    }
    Ok(Batch::join(&inputs, &picked)?.map(Arc::new))
}

/// A place in the changes of a batch.
struct Cursor<'a> {
    batch: &'a Batch,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(batch: &'a Batch) -> Self {
        Cursor { batch, at: 0 }
    }

    /// What tells the change it stands at from all others, in the order of the stream.
    fn identity(&self) -> Option<(Position, &'a TableId)> {
        let change = self.batch.changes().get(self.at)?;
        Some((self.batch.position(change), &self.batch.schema(change).id))
    }

    /// The change it stands at; only called when there is one.
    fn take(&mut self) -> Change {
        self.at += 1;
        self.batch.changes()[self.at - 1]
    }
}

#[cfg(test)]
mod tests {
    use lockstep_core::batch::{BatchBuilder, Op, Transaction};
    use lockstep_core::position::{Lsn, SourceIdentity, SourceInfo};

    use super::*;

    /// Messages at these ordinals of one transaction.
    fn batch(ordinals: &[u64]) -> Batch {
        let mut builder = BatchBuilder::new();
        builder.begin(Transaction {
            commit: Lsn(10),
            commit_micros: 0,
            xid: 1,
            origin: None,
            previous_commit: None,
            prepared: None,
            global: None,
        });
        let index = builder.schema(&Arc::new(TableSchema::message("a".into())));
        for &ordinal in ordinals {
            builder.push(Op::Message, index, ordinal, Lsn(9), None, None);
        }
        let source = SourceInfo {
            name: "a".into(),
            identity: SourceIdentity {
                system: 1,
                timeline: 1,
                incarnation: 0,
                database: "a".into(),
            },
        };
        builder.finish(Arc::new(source), Phase::Stream, None, Vec::new().into())
    }

    #[test]
    fn a_run_never_ends_within_a_position() {
        let batch = batch(&[1, 2, 2, 3, 4, 4, 5]);
        let last_of_four = &batch.changes()[5];
        let runs = runs(&batch, |change| std::ptr::eq(change, last_of_four));
        let shown: Vec<(bool, Vec<u64>)> = runs
            .into_iter()
            .map(|(alone, run)| (alone, run.iter().map(|change| change.ordinal).collect()))
            .collect();
        let expected = [
            (false, vec![1, 2, 2, 3]),
            (true, vec![4, 4]),
            (false, vec![5]),
        ];
        assert_eq!(shown, expected);
    }
}

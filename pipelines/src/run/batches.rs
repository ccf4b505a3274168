//! Cutting, selecting and merging batches. Change heads are copied at most; rows never.

use std::sync::Arc;

use lockstep_core::batch::{Batch, Change, Phase};
use lockstep_core::position::Position;
use lockstep_core::schema::{TableId, TableSchema};

use crate::selector::Selector;

/// The position of the last change of a stream batch; `None` for the initial copy and for empty batches.
pub(super) fn last_position(batch: &Batch) -> Option<Position> {
    match batch.phase {
        Phase::Stream => batch.changes().last().map(|change| batch.position(change)),
        Phase::Snapshot | Phase::Replay => None,
    }
}

/// What is left of a batch when the stream up to `done` is known to be there.
pub(super) enum Rest {
    /// Nothing of it was there.
    Whole,
    /// Its first changes were there; these were not.
    Part(Batch),
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
        Rest::Part(batch.with_changes(changes[cut..].to_vec()))
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

/// Merges what came by several inputs, all made from one batch, in the order of positions. A change that came by more
/// than one input is taken from the first: its position and its table identify it, and a sink gets each change once. (A
/// row that moves to another table is two changes at one position.)
pub(super) fn merge(mut flows: Vec<Vec<Arc<Batch>>>) -> Vec<Arc<Batch>> {
    flows.retain(|flow| flow.iter().any(|batch| !batch.changes().is_empty()));
    match flows.len() {
        0 => return Vec::new(),
        1 => return flows.swap_remove(0),
        _ => {}
    }
    let through = flows.iter().flatten().find_map(|batch| batch.through);
    let mut cursors: Vec<Cursor<'_>> = flows.iter().map(|flow| Cursor::new(flow)).collect();
    let mut merged: Vec<Batch> = Vec::new();
    let mut run: Option<(*const Batch, &Batch, Vec<Change>)> = None;
    while let Some(next) = cursors.iter().filter_map(Cursor::identity).min() {
        let mut taken = false;
        for cursor in &mut cursors {
            if cursor.identity() != Some(next) {
                continue;
            }
            let (batch, change) = cursor.take();
            if std::mem::replace(&mut taken, true) {
                continue;
            }
            match &mut run {
                Some((at, _, changes)) if std::ptr::eq(*at, batch) => changes.push(change),
                _ => {
                    let begun = run.replace((batch, batch, vec![change]));
                    merged.extend(begun.map(|(_, batch, changes)| batch.with_changes(changes)));
                }
            }
        }
    }
    merged.extend(run.map(|(_, batch, changes)| batch.with_changes(changes)));
    let last = merged.len().saturating_sub(1);
    for (index, batch) in merged.iter_mut().enumerate() {
        batch.through = through.filter(|_| index == last);
    }
    merged.into_iter().map(Arc::new).collect()
}

/// A place in the changes of several batches.
struct Cursor<'a> {
    batches: &'a [Arc<Batch>],
    change: usize,
}

impl<'a> Cursor<'a> {
    fn new(batches: &'a [Arc<Batch>]) -> Self {
        let mut cursor = Cursor { batches, change: 0 };
        cursor.settle();
        cursor
    }

    /// Moves to the next batch that has a change left.
    fn settle(&mut self) {
        while let Some(batch) = self.batches.first()
            && self.change >= batch.changes().len()
        {
            self.batches = &self.batches[1..];
            self.change = 0;
        }
    }

    /// What tells the change it stands at from all others, in the order of the stream.
    fn identity(&self) -> Option<(Position, &'a TableId)> {
        let batch: &'a Batch = self.batches.first()?;
        let change = &batch.changes()[self.change];
        Some((batch.position(change), &batch.schema(change).id))
    }

    /// The change it stands at; only called when there is a position.
    fn take(&mut self) -> (&'a Batch, Change) {
        let batch: &'a Batch = &self.batches[0];
        let change = batch.changes()[self.change];
        self.change += 1;
        self.settle();
        (batch, change)
    }
}

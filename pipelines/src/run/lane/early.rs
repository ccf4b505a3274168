//! Branches that a sink got before they committed.
//!
//! They come again when they have committed. A sink that keeps rows takes them again, under the place of the commit; one that keeps every
//! change has had them. Which they are is with the progress that it keeps, by the places where they were prepared, until it is told that nothing
//! before such a place is in doubt.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_core::batch::{Batch, Change, Phase};
use lockstep_core::position::{Lsn, Position};
use lockstep_core::progress::Progress;

use super::super::batches;

/// Of each source, by where they were prepared. See the module's page.
#[derive(Debug, Default)]
pub(super) struct EarlyBranches(BTreeMap<usize, BTreeMap<Lsn, Early>>);

#[derive(Clone, Copy, Debug)]
struct Early {
    /// Its last change that the sink got.
    ordinal: u64,
    /// Its commit has come: what is written behind that says that it is there.
    has_committed: bool,
}

impl EarlyBranches {
    /// The sink was opened, and holds this of a source.
    pub fn opened(&mut self, source: usize, held: Option<&Progress>) {
        let early = held.map_or(&[][..], Progress::early).iter();
        let early = early.map(|held| {
            let early = Early {
                ordinal: held.ordinal,
                has_committed: false,
            };
            (held.commit, early)
        });
        let early: BTreeMap<Lsn, Early> = early.collect();
        match early.is_empty() {
            true => self.0.remove(&source),
            false => self.0.insert(source, early),
        };
    }

    /// The source reads another log.
    pub fn forget(&mut self, source: usize) {
        self.0.remove(&source);
    }

    /// Whatever was prepared in the source before this place has ended, and is there.
    pub fn settled(&mut self, source: usize, lsn: Lsn) {
        if let Some(early) = self.0.get_mut(&source) {
            *early = early.split_off(&lsn);
            if early.is_empty() {
                self.0.remove(&source);
            }
        }
    }

    /// What the sink is to get of a batch that is about to be written, and has not got before; it says what else went early.
    pub fn rest(&mut self, source: usize, batch: Arc<Batch>) -> Option<Arc<Batch>> {
        let is_early = batches::is_early(&batch);
        if batch.phase != Phase::Stream || !is_early && !self.0.contains_key(&source) {
            return Some(batch);
        }
        let known = self.0.entry(source).or_default();
        // Of those that it has changes of: a part of a batch knows all transactions of the whole.
        let of = |change: &Change| Some(batch.transaction(change).prepared.as_ref()?.lsn);
        let mut prepared: Vec<Lsn> = batch.changes().iter().filter_map(of).collect();
        prepared.dedup();
        known.retain(|lsn, early| !early.has_committed || prepared.contains(lsn));
        let had = |change: &Change| {
            let prepared = batch.transaction(change).prepared.as_ref();
            let last = prepared.and_then(|prepared| known.get(&prepared.lsn));
            last.is_some_and(|last| change.ordinal <= last.ordinal)
        };
        let left = batch.changes().iter().filter(|change| !had(change));
        let left: Vec<Change> = left.copied().collect();
        let rest = left.first().copied().map(|first| {
            let own = is_early.then(|| batch.transaction(&first).commit);
            let others = known.iter().filter(|(lsn, _)| Some(**lsn) != own);
            let others = others.map(|(lsn, last)| Position {
                commit: *lsn,
                ordinal: last.ordinal,
            });
            let standing = batch.standing.as_deref().cloned().unwrap_or_default();
            let standing = standing.and_early(others);
            Arc::new(batch.with_changes(left).with_standing(standing))
        });
        for change in batch.changes().iter().filter(|_| is_early) {
            let early = known.entry(batch.transaction(change).commit);
            let early = early.or_insert(Early {
                ordinal: 0,
                has_committed: false,
            });
            early.ordinal = early.ordinal.max(change.ordinal);
        }
        if !is_early {
            for lsn in prepared {
                if let Some(early) = known.get_mut(&lsn) {
                    early.has_committed = true;
                }
            }
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use lockstep_conformance::feed::{Feed, INT8, V, lsn, position as at, source, table};

    use super::*;

    /// Inserts, so many, of what was prepared and committed there.
    fn batch(prepared: Option<u64>, commit: u64, count: usize) -> Arc<Batch> {
        let rows = table("a", "t", 1, &[("id", "int8", INT8)]);
        let mut feed = Feed::new(&source("a"));
        match prepared {
            Some(at) => feed.commit_prepared(at, commit),
            None => feed.begin(commit),
        };
        for _ in 0..count {
            feed.insert(&rows, &[V::Text("1")]);
        }
        feed.finish()
    }

    /// A part of a batch knows the transactions of the whole, and has changes of its own alone.
    #[test]
    fn a_commit_has_come_with_its_changes_and_not_before() {
        let mut early = EarlyBranches::default();
        rest(&mut early, batch(Some(20), 20, 1)).expect("new");
        let whole = batch(Some(20), 40, 1);
        assert!(
            early
                .rest(0, Arc::new(whole.with_changes(Vec::new())))
                .is_none()
        );
        rest(&mut early, batch(None, 35, 1)).expect("another");
        assert_eq!(rest(&mut early, whole), None, "it was there");
    }

    /// The ordinals that are left of a batch, and the progress that comes with it.
    fn rest(early: &mut EarlyBranches, batch: Arc<Batch>) -> Option<(Vec<u64>, Progress)> {
        let rest = early.rest(0, batch)?;
        let ordinals = rest.changes().iter().map(|change| change.ordinal);
        let progress = batches::progress(&rest).expect("of the stream");
        Some((ordinals.collect(), progress))
    }

    #[test]
    fn what_went_early_is_not_taken_again_and_stays_with_what_is_written_until_it_is_settled() {
        let mut early = EarlyBranches::default();
        let (ordinals, progress) = rest(&mut early, batch(Some(20), 20, 2)).expect("new");
        assert_eq!((ordinals, progress.early()), (vec![1, 2], &[at(20, 2)][..]));
        assert_eq!(rest(&mut early, batch(Some(20), 20, 2)), None, "again");
        let (_, progress) = rest(&mut early, batch(None, 30, 1)).expect("another");
        assert_eq!(progress, Progress::from(at(30, 1)).and_early([at(20, 2)]));
        let (_, progress) = rest(&mut early, batch(Some(25), 25, 1)).expect("new");
        assert_eq!(progress.early(), [at(20, 2), at(25, 1)]);
        // A part of it was there when the process ended.
        early.opened(0, Some(&Progress::from(at(30, 1)).and_early([at(20, 1)])));
        let (ordinals, progress) = rest(&mut early, batch(Some(20), 40, 2)).expect("more");
        assert_eq!(ordinals, [2]);
        assert_eq!(progress.early(), [at(20, 1)]);
        early.settled(0, lsn(20));
        // Its commit may come in several batches; what is written behind it covers it.
        assert_eq!(rest(&mut early, batch(Some(20), 40, 1)), None);
        let (_, progress) = rest(&mut early, batch(None, 50, 1)).expect("another");
        assert_eq!(progress, at(50, 1).into());
        // One that was rolled back has no commit.
        rest(&mut early, batch(Some(60), 60, 1));
        early.settled(0, lsn(61));
        let (_, progress) = rest(&mut early, batch(None, 70, 1)).expect("another");
        assert_eq!(progress, at(70, 1).into());
    }
}

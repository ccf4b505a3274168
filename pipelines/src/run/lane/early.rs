//! Branches that a sink got before they committed.
//!
//! They come again when they have committed. A sink that keeps rows takes them again, under the place of the commit; one that keeps every
//! change has had them. Which they are is with the progress that sinks keep, by the places where they were prepared, until it is told that nothing
//! before such a place is in doubt.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockstep_core::batch::{Batch, Change, Phase};
use lockstep_core::position::{Lsn, Position};
use lockstep_core::progress::Progress;
use lockstep_core::schema::TableId;

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct EarlyBranches(BTreeMap<usize, BTreeMap<Lsn, Early>>);

#[derive(Debug)]
struct Early {
    /// Its last change that the sink got.
    ordinal: u64,
    /// Tables in the database that it has changed; not known of one that an earlier life has sent.
    tables: Option<BTreeSet<TableId>>,
}

impl EarlyBranches {
    /// The sink was opened, and holds this of a source.
    pub fn opened(&mut self, source: usize, held: Option<&Progress>) {
        let mut known = self.0.remove(&source).unwrap_or_default();
        let early = held.map_or(&[][..], Progress::early).iter();
        let early = early.map(|place| {
            let tables = known.remove(&place.commit).and_then(|early| early.tables);
            let ordinal = place.ordinal;
            (place.commit, Early { ordinal, tables })
        });
        let early: BTreeMap<Lsn, Early> = early.collect();
        if !early.is_empty() {
            self.0.insert(source, early);
        }
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

    /// Whether a table of the database may be ahead of it.
    pub fn may_have_changed(&self, source: usize, table: &TableId) -> bool {
        let mut early = self.0.get(&source).into_iter().flat_map(BTreeMap::values);
        early.any(|early| {
            let tables = early.tables.as_ref();
            tables.is_none_or(|tables| tables.contains(table))
        })
    }

    /// What the sink is to get of a batch that is about to be written, and has not got before; it says what else went early.
    pub fn rest(
        &mut self,
        source: usize,
        batch: Arc<Batch>,
        keeps_rows: bool,
    ) -> Option<Arc<Batch>> {
        if batch.phase != Phase::Stream || batch.changes().is_empty() {
            return Some(batch);
        }
        let is_early = super::super::batches::is_early(&batch);
        if !is_early && !self.0.contains_key(&source) {
            return Some(batch);
        }
        let known = self.0.entry(source).or_default();
        let had = |change: &Change| {
            let prepared = batch.transaction(change).prepared.as_ref();
            let early = prepared.and_then(|prepared| known.get(&prepared.lsn));
            early.is_some_and(|early| change.ordinal <= early.ordinal)
        };
        let is_left = |change: &&Change| keeps_rows || !had(change);
        let left = batch.changes().iter().filter(is_left).copied();
        let left: Vec<Change> = left.collect();
        let rest = (!left.is_empty()).then(|| {
            let own = is_early.then(|| batch.transaction(&left[0]).commit);
            let others = known.iter().filter(|(lsn, _)| Some(**lsn) != own);
            let others = others.map(|(lsn, early)| Position {
                commit: *lsn,
                ordinal: early.ordinal,
            });
            let standing = batch.standing.as_deref().cloned().unwrap_or_default();
            let standing = standing.and_early(others);
            Arc::new(batch.with_changes(left).with_standing(standing))
        });
        if is_early {
            for change in batch.changes() {
                let early = known.entry(batch.transaction(change).commit);
                let early = early.or_insert_with(|| Early {
                    ordinal: 0,
                    tables: Some(BTreeSet::new()),
                });
                early.ordinal = early.ordinal.max(change.ordinal);
                let origin = &batch.schema(change).origin;
                if let Some(tables) = early.tables.as_mut().filter(|all| !all.contains(origin)) {
                    tables.insert(origin.clone());
                }
            }
        }
        rest
    }
}

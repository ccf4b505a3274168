//! Branches that go on before they have committed.

use std::sync::Arc;

use lockstep_core::position::{Lsn, Position};
use lockstep_core::progress::Standing;

use super::candidates::Look;
use super::{Ended, Fences, Member, Order, Unit, Waiting};

/// A branch that has gone on, and not ended.
#[derive(Debug)]
pub(super) struct Gone {
    pub global: Arc<str>,
    /// Where others of its transaction had ended.
    pub siblings: Ended,
}

impl Order {
    /// Units that have been found to have committed, with all their branches known, and to wait for the end of one; each once. Numbers for
    /// [`Order::prepared_in`]. To be asked for behind [`Order::release`].
    pub fn undecided(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.undecided)
    }

    /// The branches of a unit that keep it waiting: sources, and places where they were prepared. Empty when it waits for none, and when it has
    /// to wait until they have committed.
    #[must_use]
    pub fn prepared_in(&self, unit: u64) -> Vec<(usize, Lsn)> {
        let Some(waiting) = self.units.get(&unit) else {
            return Vec::new();
        };
        let is_hidden = |(source, lsn): &(usize, Lsn)| self.sources[*source].loaded() >= *lsn;
        if waiting.prepared.iter().any(is_hidden) {
            return Vec::new();
        }
        let prepared = waiting.prepared.iter().copied();
        let is_shown = |branch: &(usize, Lsn)| waiting.shown.contains(branch);
        prepared.filter(|branch| !is_shown(branch)).collect()
    }

    /// A unit is to go on before all of it has ended, once what is prepared of it is shown: all of its branches are to be known by then.
    pub fn goes_early(&mut self, unit: u64) {
        if let Some(waiting) = self.units.get_mut(&unit) {
            waiting.is_early = true;
            self.want_anew(unit);
        }
    }

    /// What a unit waits for that goes on before all of it has ended. That a branch has ended in a source is a fence of its log; that one is prepared there
    /// is none, as another one may be, of the same database.
    pub(super) fn unread_early(&self, waiting: &Waiting) -> Option<Look> {
        if waiting.prepared.is_empty() {
            return None;
        }
        let open = (0..self.sources.len()).filter(|source| !waiting.has_ended_in(*source));
        let Fences::At(ends) = &waiting.fences else {
            return Some(Look::Incomplete);
        };
        let mut unread = open.filter(|source| !self.sources[*source].is_read_to(ends[*source]));
        unread
            .next()
            .map(|source| Look::Unread(source, ends[source]))
    }

    /// A branch that is prepared can go on as it is. False when nothing waits for it.
    pub fn shown(&mut self, source: usize, global: &Arc<str>, lsn: Lsn) -> bool {
        if self.sources[source].loaded() >= lsn {
            return false;
        }
        let found = self.find(global, source, lsn);
        let Some((id, waiting)) = found.and_then(|id| Some((id, self.units.get_mut(&id)?))) else {
            return false;
        };
        waiting.shown.push((source, lsn));
        self.candidates.look_at(id);
        true
    }

    /// Rows have been read, to be written where the source is read: what was prepared before would come too late for them, and waits for its commit.
    pub(super) fn hide_early(&mut self, source: usize) {
        self.sources[source].load();
        for id in &self.named {
            if let Some(waiting) = self.units.get_mut(id) {
                waiting.shown.retain(|(of, _)| *of != source);
            }
        }
    }

    /// As [`Order::standing`], for a branch of the last step that has not committed. It goes on behind all of the step that has committed in its
    /// source.
    #[must_use]
    pub fn standing_early(&self, source: usize, later: &[Position]) -> Standing {
        let reach = self.sources[source].reach();
        let ahead = reach.ahead.into_iter();
        Standing {
            upto: Some(reach.upto),
            ahead: ahead.filter(|ahead| !later.contains(ahead)).collect(),
            spans: reach.spans,
            early: Vec::new(),
        }
    }

    /// Whatever was prepared in a source before this place has ended, and gone on.
    #[must_use]
    pub fn settled(&self, source: usize) -> Lsn {
        self.sources[source].settled()
    }

    /// What such a place of a branch is called among positions.
    #[must_use]
    pub fn early_place(lsn: Lsn) -> Position {
        Position {
            commit: lsn,
            ordinal: u64::MAX,
        }
    }

    pub(super) fn go_early<'a>(
        &mut self,
        unit: &mut Unit,
        branches: impl Iterator<Item = &'a (usize, Lsn)>,
        siblings: &Ended,
    ) {
        let Some(global) = unit.global.clone() else {
            return;
        };
        for &(source, lsn) in branches {
            unit.members.push(Member {
                source,
                place: Order::early_place(lsn),
                prepared: lsn,
                early: true,
                at: u64::MAX,
            });
            let gone = Gone {
                global: Arc::clone(&global),
                siblings: siblings.clone(),
            };
            self.early.insert((source, lsn), gone);
        }
    }

    /// Whether a branch that has committed had gone on before: what comes of it now is by itself.
    pub(super) fn has_gone_early(&mut self, source: usize, global: &Arc<str>, lsn: Lsn) -> bool {
        let had = self.early.remove(&(source, lsn)).is_some();
        if had {
            self.gone.put(global, source);
        }
        had
    }
}

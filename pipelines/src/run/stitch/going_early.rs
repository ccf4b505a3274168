//! A transaction goes on before all of its branches have committed.

use std::sync::Arc;

use lockstep_core::batch::{Batch, Prepared};
use lockstep_transactions::order::{Order, Unit};

use super::shelf::Slice;
use super::{Key, Stitch};

impl Stitch {
    /// Asks for the branches that keep a unit waiting, as they are prepared.
    pub(super) fn ask_early(&mut self, unit: u64) {
        self.order.goes_early(unit);
        for place in self.order.prepared_in(unit) {
            if let Some(prepared) = self.desk.get(place) {
                let share = &self.sources[place.0].share;
                self.early.ask(unit, place, prepared, share);
            }
        }
    }

    /// Rows of a branch that was asked for.
    pub(super) fn take_early(&mut self, source: usize, batch: Batch) {
        let Some(first) = batch.changes().first() else {
            return;
        };
        let lsn = batch.transaction(first).commit;
        let to = batch.changes().len();
        let slice = Slice {
            batch: self.shelf.put(Arc::new(batch), 1),
            from: 0,
            to,
            parts: 1,
        };
        let left = self.early.take((source, lsn), slice);
        self.let_go(left.into_iter().collect());
    }

    /// All of them have come: with them its transaction can go on.
    pub(super) fn have_early(&mut self, source: usize, prepared: &Prepared) {
        let Some(slices) = self.early.whole((source, prepared.lsn)) else {
            return;
        };
        let global = self.global_of(source, prepared);
        if self.order.shown(source, &global, prepared.lsn) {
            let place = Order::early_place(prepared.lsn);
            self.wait(Key::Transaction(source, place), slices, None);
        } else {
            self.let_go(slices);
        }
    }

    /// A branch was rolled back that has gone on, since its transaction has committed elsewhere.
    pub(super) fn went_wrong(&mut self, source: usize, prepared: &Prepared) {
        tracing::error!(
            stitch = %self.name, source = %self.sources[source].share.name, gid = %prepared.gid,
            "a branch was rolled back by hand although its transaction has committed elsewhere, and it has gone on: compare its tables, and mend them"
        );
        self.metrics.undone(prepared);
    }

    /// Branches that have not committed go on: their siblings do not come again once their sources are told, so what is known through them is kept.
    pub(super) fn note_early(&mut self, unit: &Unit) {
        let is_early = unit.members.iter().any(|member| member.early);
        let Some(global) = unit.global.as_ref().filter(|_| is_early) else {
            return;
        };
        for member in unit.members.iter().filter(|member| !member.early) {
            self.note(member.source, member.place.commit, global);
        }
    }
}

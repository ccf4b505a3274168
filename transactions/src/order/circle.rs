//! What waits for each other and for nobody else.

use std::collections::BTreeSet;

use super::{Order, Source, Waiting};

impl Order {
    /// Units that are complete, and go behind each other only; where rows that were read are among them, some of these: they are what
    /// finds no place. There are no others while coordinators commit nothing before all is prepared.
    pub(super) fn next_circle(&self) -> Option<Vec<u64>> {
        if !self.may_be_in_circles() {
            return None;
        }
        let mut left: BTreeSet<u64> = self.units.keys().copied().collect();
        left.retain(|id| self.is_complete(*id) && self.has_complete_heads(*id));
        loop {
            let is_closed = |id: &u64| self.blockers(*id).all(|blocker| left.contains(&blocker));
            let closed: BTreeSet<u64> = left.iter().copied().filter(is_closed).collect();
            if closed.len() == left.len() {
                break;
            }
            left = closed;
        }
        // Others may be behind a circle, and in none: the least of what anyone waits for is one.
        let waited_for = left.iter().map(|id| self.waited_for(*id));
        let circle = waited_for.min_by_key(BTreeSet::len)?;
        let rows = circle.iter().copied().find(|id| self.is_of_rows(*id));
        Some(rows.map_or_else(|| circle.into_iter().collect(), |id| vec![id]))
    }

    /// Whether there can be a circle. Of every circle something is first in a source: what goes before a unit there goes behind the first
    /// one or is it, and so does the unit. So it is enough to follow first ones from one to the next: where all that are met
    /// are complete there may be one, and where one is not, what waits for it is in none.
    fn may_be_in_circles(&self) -> bool {
        let firsts = || self.sources.iter().filter_map(Source::first);
        firsts().any(|first| {
            let (mut met, mut next) = (BTreeSet::from([first]), vec![first]);
            while let Some(id) = next.pop() {
                if !self.is_complete(id) {
                    return false;
                }
                let before = self.firsts_before(id).filter(|before| met.insert(*before));
                next.extend(before);
            }
            true
        })
    }

    /// Of what goes before a unit those that are first in a source.
    fn firsts_before(&self, id: u64) -> impl Iterator<Item = u64> {
        let waiting = self.units.get(&id);
        let places = waiting.into_iter().flat_map(Waiting::places);
        places.filter_map(move |(source, prepared, at)| {
            let first = self.sources[source].held_before(prepared, at).next();
            first.filter(|first| *first != id)
        })
    }

    /// All that goes before a unit, and before that.
    pub(super) fn waited_for(&self, id: u64) -> BTreeSet<u64> {
        let (mut all, mut next) = (BTreeSet::new(), vec![id]);
        while let Some(id) = next.pop() {
            next.extend(self.blockers(id).filter(|blocker| all.insert(*blocker)));
        }
        all
    }

    fn is_of_rows(&self, id: u64) -> bool {
        let unit = self.units.get(&id);
        unit.is_some_and(|waiting| waiting.unit.rows.is_some())
    }

    /// Whether what is held first in each of its sources is complete: where it is not, it waits for that.
    fn has_complete_heads(&self, id: u64) -> bool {
        let waiting = self.units.get(&id);
        let mut places = waiting.into_iter().flat_map(Waiting::places);
        places.all(|(source, ..)| {
            let head = self.sources.get(source).and_then(Source::first);
            head.is_none_or(|head| head == id || self.is_complete(head))
        })
    }
}

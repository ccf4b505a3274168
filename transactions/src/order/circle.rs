//! What waits for each other and for nobody else.

use std::collections::BTreeSet;

use super::{Order, Source};

impl Order {
    /// Units that are complete, and go behind each other only. There are none while coordinators commit nothing before all is
    /// prepared.
    pub(super) fn next_circle(&self) -> Option<Vec<u64>> {
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
        (!left.is_empty()).then(|| left.into_iter().collect())
    }

    /// Whether what is held first in each of its sources is complete: where it is not, it waits for that.
    fn has_complete_heads(&self, id: u64) -> bool {
        let members = self.units.get(&id).map(|waiting| &waiting.unit.members);
        members.into_iter().flatten().all(|member| {
            let head = self.sources.get(member.source).and_then(Source::first);
            head.is_none_or(|head| self.is_complete(head))
        })
    }
}

//! When transactions of several databases would have gone on, had all gone on as soon as their branches were known: what a release at the
//! decision would be worth.

use std::collections::BTreeMap;
use std::time::Instant;

use lockstep_core::position::Lsn;
use lockstep_transactions::order::Unit;

/// Steps that are remembered of a source. What goes on behind what committed before all of them counts as if nothing had gone before it.
const REMEMBERED: usize = 1_024;

/// By source, and by their commits: when the last of all transactions up to there would have gone on. Each step is later than the one before.
pub(super) struct Decided(Vec<BTreeMap<Lsn, Instant>>);

impl Decided {
    pub fn new(sources: usize) -> Self {
        Decided(vec![BTreeMap::new(); sources])
    }

    /// When a unit would have gone on whose branches were `known` then: not before what goes before it. To be asked for in the order in which
    /// units go on.
    pub fn at(&mut self, unit: &Unit, known: Instant) -> Instant {
        let before = unit.members.iter().filter_map(|member| {
            let before = self.0[member.source].range(..member.prepared);
            before.map(|(_, at)| *at).next_back()
        });
        let at = before.fold(known, Instant::max);
        for member in &unit.members {
            note(&mut self.0[member.source], member.place.commit, at);
        }
        at
    }

    /// The source reads another log from now on.
    pub fn forget(&mut self, source: usize) {
        self.0[source].clear();
    }
}

fn note(steps: &mut BTreeMap<Lsn, Instant>, commit: Lsn, at: Instant) {
    let before = steps.range(..=commit).next_back();
    if before.is_some_and(|(_, before)| *before >= at) {
        return;
    }
    while let Some((&next, _)) = steps
        .range(commit..)
        .next()
        .filter(|(_, next)| **next <= at)
    {
        steps.remove(&next);
    }
    steps.insert(commit, at);
    if steps.len() > REMEMBERED {
        steps.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lockstep_core::position::Position;
    use lockstep_transactions::order::{Committed, Keys, Order, Reach};

    use super::*;

    /// A unit with a branch in each of these sources, prepared and committed there.
    fn unit(branches: &[(usize, u64, u64)]) -> Unit {
        let mut order = Order::new(vec![Reach::default(); 2]);
        for &(source, prepared, commit) in branches {
            order.committed(Committed {
                source,
                place: Position {
                    commit: Lsn(commit),
                    ordinal: u64::MAX,
                },
                end: Lsn(commit + 5),
                branch: Some(("g".into(), Lsn(prepared))),
                keys: Keys::Any,
            });
        }
        if let Some(ticket) = order.wanted() {
            order.fenced(ticket, Some(&[Lsn(0), Lsn(0)]));
        }
        order.release().expect("it goes on").remove(0)
    }

    #[test]
    fn nobody_goes_on_before_what_goes_before_him() {
        let began = Instant::now();
        let then = |millis| began + Duration::from_millis(millis);
        let mut decided = Decided::new(2);
        let mut at = |branches: &[(usize, u64, u64)], known| {
            let at = decided.at(&unit(branches), then(known));
            (at - began).as_millis()
        };
        assert_eq!(at(&[(0, 10, 20), (1, 10, 30)], 8), 8);
        // It was prepared before the first has committed, in both.
        assert_eq!(at(&[(0, 15, 40), (1, 15, 40)], 3), 3);
        // Behind both, in one source, and behind the second, in the other.
        assert_eq!(at(&[(0, 50, 60)], 2), 8);
        assert_eq!(at(&[(1, 25, 50)], 2), 2);
        // By the third, that of the fourth's source is behind the first.
        assert_eq!(at(&[(0, 70, 80), (1, 70, 80)], 9), 9);
        assert_eq!(at(&[(1, 85, 90)], 1), 9);
    }

    #[test]
    fn steps_rise_and_are_not_kept_for_ever() {
        let now = Instant::now();
        let then = |millis| now + Duration::from_millis(millis);
        let mut steps = BTreeMap::new();
        for (commit, millis) in [(20, 2), (40, 4), (30, 1), (10, 3)] {
            note(&mut steps, Lsn(commit), then(millis));
        }
        let all: Vec<(u64, Instant)> = steps.iter().map(|(commit, at)| (commit.0, *at)).collect();
        assert_eq!(all, [(10, then(3)), (40, then(4))]);
        for step in 0..3 * REMEMBERED as u64 {
            note(&mut steps, Lsn(50 + step), then(5 + step));
        }
        assert_eq!(steps.len(), REMEMBERED);
    }
}

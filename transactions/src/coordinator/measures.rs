//! What a coordinator counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of one coordinator, since it was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) begun: AtomicU64,
    pub(super) committed: AtomicU64,
    pub(super) aborted: AtomicU64,
    pub(super) heuristic: AtomicU64,
    pub(super) deciding_micros: AtomicU64,
    pub(super) behind: AtomicU64,
    pub(super) recovered_committed: AtomicU64,
    pub(super) recovered_rolled_back: AtomicU64,
}

/// What a coordinator has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// Transactions that were begun. Those that are neither committed nor aborted are under way, or were dropped.
    pub begun: u64,
    /// Those that were decided to commit.
    pub committed: u64,
    /// Those that were rolled back after `commit()` was called.
    pub aborted: u64,
    /// Branches that ended otherwise than was decided, or whose end nobody can tell: somebody decided by hand, or a server has lost
    /// what it had prepared.
    pub heuristic: u64,
    /// Of those that committed: from `begin()` to the decision, all together.
    pub deciding: Duration,
    /// Branches that are decided, and have not been brought to their end yet.
    pub behind: u64,
    /// Branches of earlier coordinators that were committed.
    pub recovered_committed: u64,
    /// Branches of earlier coordinators that were rolled back.
    pub recovered_rolled_back: u64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn decided(&self, after: Duration) {
        Self::add(&self.committed);
        let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        self.deciding_micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub(super) fn now(&self) -> Measures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Measures {
            begun: read(&self.begun),
            committed: read(&self.committed),
            aborted: read(&self.aborted),
            heuristic: read(&self.heuristic),
            deciding: Duration::from_micros(read(&self.deciding_micros)),
            behind: read(&self.behind),
            recovered_committed: read(&self.recovered_committed),
            recovered_rolled_back: read(&self.recovered_rolled_back),
        }
    }
}

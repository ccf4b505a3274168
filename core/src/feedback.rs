//! The confirmed position on its way back: monotonic atomics, no lock, no reply.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::position::Lsn;

/// How far every sink has made a source durable. Clones share the values. They never move back.
#[derive(Clone, Debug, Default)]
pub struct Feedback(Arc<Reached>);

#[derive(Debug, Default)]
struct Reached {
    lsn: AtomicU64,
    mark: AtomicU64,
}

impl Feedback {
    /// Everything that ends at or below `lsn` is durable in every sink.
    pub fn confirm(&self, lsn: Lsn) {
        self.0.lsn.fetch_max(lsn.0, Ordering::Release);
    }

    /// The confirmed position, as the end of a commit record (see [`crate::batch::Batch::through`]); zero until the
    /// first confirmation.
    #[must_use]
    pub fn confirmed(&self) -> Lsn {
        Lsn(self.0.lsn.load(Ordering::Acquire))
    }

    /// Everything that was sent before this mark is durable in every sink.
    pub fn confirm_mark(&self, mark: u64) {
        self.0.mark.fetch_max(mark, Ordering::Release);
    }

    /// The last confirmed mark of those that were sent since the source was opened (see
    /// [`crate::batch::Batch::mark`]); zero until the first.
    #[must_use]
    pub fn marked(&self) -> u64 {
        self.0.mark.load(Ordering::Acquire)
    }
}

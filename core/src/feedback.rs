//! The confirmed position on its way back: one monotonic atomic, no lock, no reply.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::position::Lsn;

/// How far every sink has made a source durable, as the end of a commit record (see [`crate::batch::Batch::through`]).
/// Clones share the value. It never moves back.
#[derive(Clone, Debug, Default)]
pub struct Feedback(Arc<AtomicU64>);

impl Feedback {
    /// Everything that ends at or below `lsn` is durable in every sink.
    pub fn confirm(&self, lsn: Lsn) {
        self.0.fetch_max(lsn.0, Ordering::Release);
    }

    /// The confirmed position; zero until the first confirmation.
    #[must_use]
    pub fn confirmed(&self) -> Lsn {
        Lsn(self.0.load(Ordering::Acquire))
    }
}

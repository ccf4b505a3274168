//! What was seen that may not be.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Examples that are shown.
const SHOWN: usize = 20;

/// All that watch write into one. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Violations(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    count: u64,
    examples: Vec<String>,
}

impl Violations {
    /// One was seen.
    pub fn add(&self, what: String) {
        let mut seen = self.lock();
        seen.count += 1;
        if seen.examples.len() < SHOWN {
            seen.examples.push(what);
        }
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.lock().count
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.lock();
        for example in &seen.examples {
            writeln!(f, "violation: {example}")?;
        }
        match seen.count.saturating_sub(SHOWN as u64) {
            0 => Ok(()),
            more => writeln!(f, "… and {more} more"),
        }
    }
}

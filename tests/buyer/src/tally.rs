//! What was bought so far, and how long that took: told every second, since nobody is asked before he is killed.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets: a time in microseconds has so many bits at most.
const BITS: usize = 65;

/// All workers count into one.
#[derive(Debug)]
pub(crate) struct Tally {
    bought: AtomicU64,
    gave_up: AtomicU64,
    failed: AtomicU64,
    /// At `n`: purchases of less than 2^n microseconds, and of half of that at least.
    took: [AtomicU64; BITS],
}

impl Default for Tally {
    fn default() -> Self {
        Tally {
            bought: AtomicU64::new(0),
            gave_up: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            took: [const { AtomicU64::new(0) }; BITS],
        }
    }
}

impl Tally {
    /// One was bought.
    pub(crate) fn bought(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bits = (u64::BITS - micros.leading_zeros()) as usize;
        self.took[bits].fetch_add(1, Ordering::Relaxed);
        self.bought.fetch_add(1, Ordering::Relaxed);
    }

    /// One was given up, as it should be.
    pub(crate) fn gave_up(&self) {
        self.gave_up.fetch_add(1, Ordering::Relaxed);
    }

    /// One has failed, as far as the buyer was told.
    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Display for Tally {
    /// As `Shop.java` and `shop.py` of the kit tell it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let took: Vec<String> = (0..)
            .zip(self.took.iter().map(read))
            .filter(|(_, count)| *count > 0)
            .map(|(bits, count): (u32, u64)| format!("{bits}:{count}"))
            .collect();
        write!(
            f,
            "tally bought={} gave_up={} failed={} took={}",
            read(&self.bought),
            read(&self.gave_up),
            read(&self.failed),
            took.join(",")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_by_powers_of_two() {
        let tally = Tally::default();
        for micros in [0, 1, 4_095, 4_096, 4_097] {
            tally.bought(Duration::from_micros(micros));
        }
        tally.gave_up();
        tally.failed();
        assert_eq!(
            tally.to_string(),
            "tally bought=5 gave_up=1 failed=1 took=0:1,1:1,12:1,13:2"
        );
    }
}

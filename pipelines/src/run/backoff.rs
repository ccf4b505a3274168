//! Growing pauses between attempts.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

/// The first pause: short enough that a restarted server is not waited for.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause: long enough to leave a server in trouble alone, short enough that its return is noticed.
const LONGEST: Duration = Duration::from_secs(10);

/// Pauses that double from 100 ms to 10 s, each between half and the whole of its length, so that many lanes do not
/// come back at the same moment. They begin anew once something worked, or stayed open for longer than the longest
/// pause.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    opened: Option<Instant>,
}

impl Backoff {
    /// How often it failed in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// It is open; whether it works remains to be seen.
    pub fn opened(&mut self) {
        self.opened = Some(Instant::now());
    }

    /// Something worked: the next pause is short again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The pause after one more failure.
    pub fn next(&mut self) -> Duration {
        if self
            .opened
            .take()
            .is_some_and(|opened| opened.elapsed() > LONGEST)
        {
            self.reset();
        }
        let whole = FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        // The standard library's only source of randomness; quality does not matter here.
        let random = RandomState::new().build_hasher().finish();
        whole.mul_f64(0.5 + 0.5 * (random as f64 / u64::MAX as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let mut backoff = Backoff::default();
        for failures in 0..40 {
            let whole = FIRST.saturating_mul(1 << failures.min(16)).min(LONGEST);
            let pause = backoff.next();
            assert!(
                pause >= whole / 2 && pause <= whole,
                "{failures}: {pause:?}"
            );
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}

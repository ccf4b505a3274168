//! How fast the shop is visited.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What is counted by the second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// Purchases, each with all that goes with it: about 30 changes in 10 transactions.
    Purchases(f64),
    /// Changes that the log carries.
    Changes(f64),
    /// As fast as the servers take it.
    Unlimited,
}

/// Changes of a visit before it is known how many they were.
const TYPICAL_CHANGES: f64 = 30.0;

/// Time that a held-up shop makes good afterwards; the rest is forgotten, so that a pause is not followed by a rush.
const CATCH_UP: Duration = Duration::from_millis(250);

/// A token bucket that all shoppers share: each visit has its moment.
#[derive(Debug)]
pub(super) struct Pace {
    rate: Rate,
    next: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(rate: Rate) -> Self {
        Pace {
            rate,
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits for the moment of the next visit; false when `stop` came first. Cancel-safe but for the visit's share.
    pub(super) async fn turn(&self, stop: &CancellationToken) -> bool {
        if stop.is_cancelled() {
            return false;
        }
        let at = match self.rate {
            Rate::Purchases(per_second) => self.reserve(1.0 / per_second),
            Rate::Changes(per_second) => self.reserve(TYPICAL_CHANGES / per_second),
            Rate::Unlimited => return true,
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => false,
            () = tokio::time::sleep_until(at) => true,
        }
    }

    /// Corrects the share of a visit that made `changes`.
    pub(super) fn settle(&self, changes: u64) {
        if let Rate::Changes(per_second) = self.rate {
            let more = (changes as f64 - TYPICAL_CHANGES) / per_second;
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next = if more > 0.0 {
                *next + seconds(more)
            } else {
                *next - seconds(-more)
            };
        }
    }

    /// The moment of a visit that takes up `share` seconds.
    fn reserve(&self, share: f64) -> Instant {
        let now = Instant::now();
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let at = (*next).max(now.checked_sub(CATCH_UP).unwrap_or(now));
        *next = at + seconds(share);
        at
    }
}

/// A rate of 0 asks for a visit at the end of time; an hour is as good.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.min(3_600.0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn visits_come_at_the_rate() {
        let pace = Pace::new(Rate::Purchases(100.0));
        let stop = CancellationToken::new();
        let start = Instant::now();
        for _ in 0..201 {
            assert!(pace.turn(&stop).await);
        }
        let took = start.elapsed();
        assert!((1_900..2_100).contains(&took.as_millis()), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_settled_afterwards() {
        let pace = Pace::new(Rate::Changes(1_000.0));
        let stop = CancellationToken::new();
        let start = Instant::now();
        for _ in 0..50 {
            assert!(pace.turn(&stop).await);
            pace.settle(20);
        }
        let took = start.elapsed();
        assert!((900..1_100).contains(&took.as_millis()), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_not_followed_by_a_rush() {
        let pace = Pace::new(Rate::Purchases(100.0));
        let stop = CancellationToken::new();
        tokio::time::advance(Duration::from_secs(60)).await;
        let start = Instant::now();
        for _ in 0..126 {
            assert!(pace.turn(&stop).await);
        }
        let took = start.elapsed();
        assert!((900..1_100).contains(&took.as_millis()), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_wait() {
        let pace = Pace::new(Rate::Purchases(0.0));
        let stop = CancellationToken::new();
        assert!(pace.turn(&stop).await);
        let (went, ()) = tokio::join!(pace.turn(&stop), async { stop.cancel() });
        assert!(!went);
    }
}

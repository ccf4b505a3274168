//! When something has waited for so long that what has nothing to do with it passes by.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// By what it is called, what waits and since when, in the order in which it came.
pub(super) struct Lag<K> {
    /// How long; `None`: for ever.
    max: Option<Duration>,
    waiting: VecDeque<(Instant, K)>,
    /// As many as this are looked through for those that wait no more.
    enough: usize,
    is_over: bool,
}

/// So many are not looked through.
const FEW: usize = 1_024;

impl<K> Lag<K> {
    pub fn new(max: Option<Duration>) -> Self {
        Lag {
            max,
            waiting: VecDeque::new(),
            enough: FEW,
            is_over: false,
        }
    }

    /// Whether anything ever passes.
    pub fn is_asked_for(&self) -> bool {
        self.max.is_some()
    }

    /// Something waits from now on.
    pub fn waits(&mut self, key: K) {
        if self.max.is_some() {
            self.waiting.push_back((Instant::now(), key));
        }
    }

    /// Whether the first of those that wait still does so for too long, when that has changed.
    pub fn look(&mut self, waits: impl Fn(&K) -> bool) -> Option<bool> {
        if self.waiting.len() >= self.enough {
            self.waiting.retain(|(_, key)| waits(key));
            self.enough = (2 * self.waiting.len()).max(FEW);
        }
        while self.waiting.front().is_some_and(|(_, key)| !waits(key)) {
            self.waiting.pop_front();
        }
        let is_over = self.due().is_some_and(|due| due <= Instant::now());
        let has_changed = std::mem::replace(&mut self.is_over, is_over) != is_over;
        has_changed.then_some(is_over)
    }

    fn due(&self) -> Option<Instant> {
        Some(self.waiting.front()?.0 + self.max?)
    }

    /// Pends until it is time to look. Cancel-safe.
    pub async fn is_due(&self) {
        match self.due().filter(|_| !self.is_over) {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_that_waits_decides() {
        let mut lag = Lag::new(Some(Duration::from_secs(30)));
        let mut left = BTreeSet::from([1, 2]);
        lag.waits(1);
        tokio::time::advance(Duration::from_secs(20)).await;
        lag.waits(2);
        assert_eq!(lag.look(|key| left.contains(key)), None);
        let begun = Instant::now();
        lag.is_due().await;
        assert_eq!(begun.elapsed().as_secs(), 10);
        assert_eq!(lag.look(|key| left.contains(key)), Some(true));
        assert_eq!(lag.look(|key| left.contains(key)), None, "told once");
        left.remove(&1);
        assert_eq!(lag.look(|key| left.contains(key)), Some(false));
        lag.is_due().await;
        assert_eq!(lag.look(|key| left.contains(key)), Some(true));
        left.remove(&2);
        assert_eq!(lag.look(|key| left.contains(key)), Some(false));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_is_over() {
        let mut lag = Lag::new(None);
        lag.waits(1);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(lag.look(|_: &i32| true), None);
    }
}

//! What came of attempts to acquire: how often, and after how long.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Counts since the start of the process. Read them by [`Measures::figures`].
#[derive(Debug, Default)]
pub struct Measures {
    acquired: AtomicU64,
    refused: AtomicU64,
    timed_out: AtomicU64,
    given_up: AtomicU64,
    failed: AtomicU64,
    waited: AtomicU64,
    lost: AtomicU64,
}

/// The counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Attempts that ended with the lease.
    pub acquired: u64,
    /// Attempts that would not wait, while somebody had the lease.
    pub refused: u64,
    /// Attempts that ended without it after as long as they would wait.
    pub timed_out: u64,
    /// Attempts whose caller did not wait for the end.
    pub given_up: u64,
    /// Attempts that ended with an error.
    pub failed: u64,
    /// How long the attempts that ended with the lease took, all together.
    pub waited: Duration,
    /// Leases that were lost while they were held: not renewed in time, or taken away.
    pub lost: u64,
}

impl Measures {
    /// The counts now. Each is exact; one that is counted at this moment may be missing beside another.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Figures {
            acquired: read(&self.acquired),
            refused: read(&self.refused),
            timed_out: read(&self.timed_out),
            given_up: read(&self.given_up),
            failed: read(&self.failed),
            waited: Duration::from_nanos(read(&self.waited)),
            lost: read(&self.lost),
        }
    }

    pub(crate) fn lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Begins an attempt, which is given up unless it is told otherwise.
    pub(crate) fn begin(&self) -> Attempted<'_> {
        Attempted {
            measures: self,
            began: Instant::now(),
            end: End::GivenUp,
        }
    }
}

impl Figures {
    /// Of all attempts that have ended, the part that ended with the lease; `None` before the first has.
    #[must_use]
    pub fn success_rate(&self) -> Option<f64> {
        let without = self.refused + self.timed_out + self.given_up + self.failed;
        let all = self.acquired + without;
        (all > 0).then(|| self.acquired as f64 / all as f64)
    }

    /// How long an attempt that ended with the lease took on average; `None` before the first has.
    #[must_use]
    pub fn average_wait(&self) -> Option<Duration> {
        (self.acquired > 0).then(|| self.waited.div_f64(self.acquired as f64))
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Acquired,
    Refused,
    TimedOut,
    GivenUp,
    Failed,
}

/// An attempt, counted when it is dropped.
pub(crate) struct Attempted<'a> {
    measures: &'a Measures,
    began: Instant,
    end: End,
}

impl Attempted<'_> {
    pub(crate) fn ends(mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Attempted<'_> {
    fn drop(&mut self) {
        let measures = self.measures;
        let count = match self.end {
            End::Acquired => {
                let waited = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                measures.waited.fetch_add(waited, Ordering::Relaxed);
                &measures.acquired
            }
            End::Refused => &measures.refused,
            End::TimedOut => &measures.timed_out,
            End::GivenUp => &measures.given_up,
            End::Failed => &measures.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attempt_counts_once_and_one_that_is_dropped_too() {
        let measures = Measures::default();
        assert_eq!(measures.figures().success_rate(), None);
        assert_eq!(measures.figures().average_wait(), None);
        for end in [End::Acquired, End::Refused, End::TimedOut, End::Failed] {
            measures.begin().ends(end);
        }
        drop(measures.begin());
        let figures = measures.figures();
        let counts = [
            figures.acquired,
            figures.refused,
            figures.timed_out,
            figures.given_up,
            figures.failed,
        ];
        assert_eq!(counts, [1; 5]);
        assert_eq!(figures.success_rate(), Some(0.2));
        assert_eq!(figures.average_wait(), Some(figures.waited));
    }
}

//! How long a lease is good for, by the holder's own clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Goes on while the machine is suspended, where the platform has such a clock. No one can set it.
#[cfg(any(target_os = "linux", target_os = "android"))]
const CLOCK: ClockId = ClockId::Boottime;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const CLOCK: ClockId = ClockId::Monotonic;

/// A moment of this machine, in nanoseconds since it started; of no meaning anywhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    pub(crate) fn now() -> Self {
        let time = clock_gettime(CLOCK);
        // Neither is negative on a clock that begins at zero.
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
        Moment(seconds.saturating_mul(1_000_000_000) + nanoseconds)
    }

    pub(crate) fn plus(self, span: Duration) -> Self {
        let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Moment(self.0.saturating_add(span))
    }

    /// Zero for a moment that comes later.
    pub(crate) fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// One part in so many of what the provider grants is not used: two clocks may run at speeds that differ by this much.
const DRIFT: u32 = 20;

/// The end of a lease. Once it has come it stays: a lease that was lost for a moment was lost.
#[derive(Debug)]
pub(crate) struct Term(AtomicU64);

/// No moment: it is over.
const OVER: u64 = 0;

impl Term {
    /// One that lasts for what was granted by a request that was sent after `asked`.
    pub(crate) fn new(asked: Moment, granted: Duration) -> Self {
        Term(AtomicU64::new(end(asked, granted)))
    }

    /// What is left of it; `None` when it is over.
    pub(crate) fn left(&self, now: Moment) -> Option<Duration> {
        let end = self.0.load(Ordering::SeqCst);
        if now.0 < end {
            return Some(Duration::from_nanos(end - now.0));
        }
        // Whoever looks first decides it for all, unless it has been prolonged in this moment.
        match self
            .0
            .compare_exchange(end, OVER, Ordering::SeqCst, Ordering::SeqCst)
        {
            Err(later) if now.0 < later => Some(Duration::from_nanos(later - now.0)),
            _ => None,
        }
    }

    /// Prolongs it; `false` when it is over. What ends earlier than before changes nothing.
    pub(crate) fn prolong(&self, now: Moment, asked: Moment, granted: Duration) -> bool {
        let longer = |end_now: u64| {
            (end_now != OVER && now.0 < end_now).then(|| end_now.max(end(asked, granted)))
        };
        let prolonged = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, longer);
        prolonged.is_ok()
    }

    /// Ends it.
    pub(crate) fn end(&self) {
        self.0.store(OVER, Ordering::SeqCst);
    }
}

fn end(asked: Moment, granted: Duration) -> u64 {
    asked.plus(granted - granted / DRIFT).0
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Moment {
        Moment(seconds * 1_000_000_000)
    }

    #[test]
    fn it_ends_before_the_provider_lets_it_end() {
        let term = Term::new(at(100), 20 * SECOND);
        assert_eq!(term.left(at(100)), Some(19 * SECOND));
        assert_eq!(term.left(at(118)), Some(SECOND));
        assert_eq!(term.left(at(119)), None);
    }

    #[test]
    fn what_is_over_stays_over() {
        let term = Term::new(at(100), 20 * SECOND);
        assert!(term.prolong(at(110), at(109), 20 * SECOND));
        assert_eq!(term.left(at(120)), Some(8 * SECOND));
        assert_eq!(term.left(at(128)), None);
        assert!(!term.prolong(at(128), at(127), 20 * SECOND));
        assert_eq!(term.left(at(110)), None);
    }

    #[test]
    fn an_answer_that_comes_too_late_prolongs_nothing() {
        let term = Term::new(at(100), 20 * SECOND);
        assert!(!term.prolong(at(119), at(110), 20 * SECOND));
        assert_eq!(term.left(at(119)), None);
    }

    #[test]
    fn prolonging_never_shortens() {
        let term = Term::new(at(100), 20 * SECOND);
        assert!(term.prolong(at(101), at(100), SECOND));
        assert_eq!(term.left(at(101)), Some(18 * SECOND));
    }

    #[test]
    fn the_clock_goes_on() {
        let earlier = Moment::now();
        assert!(Moment::now() >= earlier);
        assert_eq!(earlier.since(earlier.plus(SECOND)), Duration::ZERO);
        assert_eq!(earlier.plus(SECOND).since(earlier), SECOND);
    }
}

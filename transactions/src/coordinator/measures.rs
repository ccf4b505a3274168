//! What a coordinator counts.

use std::fmt::Write as _;
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

impl Measures {
    /// Of the transactions that `commit()` was called for and that have been decided, the part that committed; `None` without any.
    #[must_use]
    pub fn success_rate(&self) -> Option<f64> {
        let decided = self.committed + self.aborted;
        (decided > 0).then(|| self.committed as f64 / decided as f64)
    }

    /// From `begin()` to the decision to commit, on average.
    #[must_use]
    pub fn mean_deciding(&self) -> Option<Duration> {
        let committed = u32::try_from(self.committed).ok()?;
        self.deciding.checked_div(committed)
    }

    /// In Prometheus' text format, with the coordinator's name as label.
    #[must_use]
    pub fn to_prometheus(&self, coordinator: &str) -> String {
        let mut text = String::new();
        let name = coordinator
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        let mut one = |metric: &str, kind: &str, help: &str, values: &[(&str, f64)]| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {metric} {help}\n# TYPE {metric} {kind}");
            for (suffix, value) in values {
                let (suffix, labels) = match suffix.split_once('=') {
                    Some((label, of)) => ("", format!(",{label}=\"{of}\"")),
                    None => (*suffix, String::new()),
                };
                let _ = writeln!(
                    text,
                    "{metric}{suffix}{{coordinator=\"{name}\"{labels}}} {value}"
                );
            }
        };
        one(
            "lockstep_coordinator_begun_total",
            "counter",
            "How many transactions were begun?",
            &[("", self.begun as f64)],
        );
        one(
            "lockstep_coordinator_decided_total",
            "counter",
            "How many were decided, and how?",
            &[
                ("outcome=committed", self.committed as f64),
                ("outcome=aborted", self.aborted as f64),
            ],
        );
        one(
            "lockstep_coordinator_deciding_seconds",
            "summary",
            "How long from begin() to the decision to commit?",
            &[
                ("_sum", self.deciding.as_secs_f64()),
                ("_count", self.committed as f64),
            ],
        );
        one(
            "lockstep_coordinator_heuristic_total",
            "counter",
            "How many branches ended otherwise than was decided?",
            &[("", self.heuristic as f64)],
        );
        one(
            "lockstep_coordinator_behind",
            "gauge",
            "How many branches are decided, and have not ended yet?",
            &[("", self.behind as f64)],
        );
        one(
            "lockstep_coordinator_recovered_total",
            "counter",
            "How many branches of earlier coordinators were ended, and how?",
            &[
                ("outcome=committed", self.recovered_committed as f64),
                ("outcome=rolled_back", self.recovered_rolled_back as f64),
            ],
        );
        text
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_told_as_rates_and_as_text() {
        assert_eq!(Measures::default().success_rate(), None);
        assert_eq!(Measures::default().mean_deciding(), None);
        let measures = Measures {
            begun: 5,
            committed: 3,
            aborted: 1,
            deciding: Duration::from_millis(6),
            ..Measures::default()
        };
        assert_eq!(measures.success_rate(), Some(0.75));
        assert_eq!(measures.mean_deciding(), Some(Duration::from_millis(2)));
        let text = measures.to_prometheus("the \"shop\"");
        for line in [
            "lockstep_coordinator_begun_total{coordinator=\"the \\\"shop\\\"\"} 5",
            "lockstep_coordinator_decided_total{coordinator=\"the \\\"shop\\\"\",outcome=\"aborted\"} 1",
            "lockstep_coordinator_deciding_seconds_sum{coordinator=\"the \\\"shop\\\"\"} 0.006",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} in {text}");
        }
        let mut help = text.lines().filter(|line| line.starts_with("# HELP"));
        assert!(help.all(|line| line.ends_with('?')), "{text}");
    }
}

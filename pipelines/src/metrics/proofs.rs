//! What has been proven of copies, and of databases between themselves: comparisons and invariants.

use lockstep_reconciler::invariants::InvariantReport;
use lockstep_reconciler::{State, TableReport};
use prometheus::{IntCounterVec, IntGaugeVec};

/// What comparisons have found. Clones share it.
#[derive(Clone)]
pub(crate) struct ReconcileMetrics {
    pub(super) compared: IntCounterVec,
    pub(super) drift: IntCounterVec,
    pub(super) repaired: IntCounterVec,
    pub(super) differing: IntGaugeVec,
    pub(super) verified: IntGaugeVec,
}

impl ReconcileMetrics {
    /// A comparison has ended: of the whole table, or of some rows, which prove nothing of the others.
    pub fn compared(&self, report: &TableReport, whole: bool) {
        for (sink, told) in report.sinks.iter().filter(|(_, told)| !told.unreadable) {
            let labels = &[&*report.source, &*report.table, &**sink];
            self.compared
                .with_label_values(labels)
                .inc_by(told.compared);
            self.repaired
                .with_label_values(labels)
                .inc_by(told.repaired);
            for (drift, rows) in [
                ("missing", told.missing),
                ("different", told.different),
                ("stale", told.stale),
                ("extra", told.extra),
            ] {
                let labels = &[&*report.source, &*report.table, &**sink, drift];
                self.drift.with_label_values(labels).inc_by(rows);
            }
        }
        if whole {
            self.known(report);
        }
    }

    /// What is known from a comparison of a whole table that has ended, perhaps before this process began.
    pub fn known(&self, report: &TableReport) {
        let is_whole = report.state == State::Done && report.undecided == 0;
        for (sink, told) in &report.sinks {
            if !is_whole || told.problem.is_some() || told.unreadable {
                continue;
            }
            let labels = &[&*report.source, &*report.table, &**sink];
            let left = i64::try_from(told.left()).unwrap_or(i64::MAX);
            self.differing.with_label_values(labels).set(left);
            if left == 0 {
                let seconds = report.began_micros / 1_000_000;
                self.verified.with_label_values(labels).set(seconds);
            }
        }
    }
}

/// What evaluations of invariants have found. Clones share it.
#[derive(Clone)]
pub(crate) struct InvariantMetrics {
    pub(super) evaluations: IntCounterVec,
    pub(super) violations: IntGaugeVec,
    pub(super) in_doubt: IntGaugeVec,
    pub(super) undecided: IntGaugeVec,
    pub(super) verified: IntGaugeVec,
}

impl InvariantMetrics {
    /// An evaluation has ended.
    pub fn evaluated(&self, report: &InvariantReport) {
        let outcome = match report {
            _ if report.state != State::Done => "failed",
            _ if report.violated > 0 => "violated",
            _ if report.in_doubt > 0 => "in_doubt",
            _ if report.undecided > 0 => "undecided",
            _ => "holds",
        };
        let name = &*report.invariant;
        self.evaluations.with_label_values(&[name, outcome]).inc();
        // What one that failed has seen is not all there is.
        if report.state != State::Done {
            return;
        }
        for (gauge, keys) in [
            (&self.violations, report.violated),
            (&self.in_doubt, report.in_doubt),
            (&self.undecided, report.undecided),
        ] {
            let keys = i64::try_from(keys).unwrap_or(i64::MAX);
            gauge.with_label_values(&[name]).set(keys);
        }
        if report.holds() {
            self.verified_at(name, report.began_micros);
        }
    }

    /// What is known from before this process began.
    pub fn known(&self, name: &str, violated: usize, verified_micros: Option<i64>) {
        let violated = i64::try_from(violated).unwrap_or(i64::MAX);
        self.violations.with_label_values(&[name]).set(violated);
        if let Some(micros) = verified_micros {
            self.verified_at(name, micros);
        }
    }

    fn verified_at(&self, name: &str, micros: i64) {
        self.verified
            .with_label_values(&[name])
            .set(micros / 1_000_000);
    }
}

//! Comparisons that are under way or wait, and what is told of them.

use std::collections::VecDeque;
use std::sync::Arc;

use lockstep_reconciler::{Pass, State, TableReport};
use serde::{Deserialize, Serialize};

use super::ReconcileRequest;
use super::history::{History, Unfinished};

/// A comparison, and what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconcile {
    /// Its number, counted from 1 in the pipeline's state.
    pub id: u64,
    /// What was asked for.
    #[serde(flatten)]
    pub request: ReconcileRequest,
    /// All of it has been looked at, or could not be.
    pub done: bool,
    /// How many tables there are.
    pub tables: usize,
    /// Those that have been looked at, and the one that is being.
    pub reports: Vec<TableReport>,
}

impl Reconcile {
    /// Whether a table was compared with these sinks, and nothing kept it from the end.
    pub(super) fn has_completed(&self, source: &str, table: &str, sinks: &[Arc<str>]) -> bool {
        let mut reports = self.reports.iter();
        let report = reports.find(|report| report.source == source && report.table == table);
        report.is_some_and(|report| {
            report.state == State::Done
                && sinks.iter().all(|sink| {
                    let told = report.sinks.get(&**sink);
                    told.is_some_and(|told| told.problem.is_none())
                })
        })
    }

    /// When it began, microseconds since the Unix epoch; `None` when it has looked at nothing.
    pub(super) fn began_micros(&self) -> Option<i64> {
        self.reports.iter().map(|report| report.began_micros).min()
    }
}

/// One that has not ended.
pub(super) struct Job {
    pub id: u64,
    pub request: ReconcileRequest,
    pub tables: usize,
    /// Tables that have been looked at.
    pub reports: Vec<TableReport>,
    /// The one that is being.
    pub now: Option<Pass>,
}

impl Job {
    pub fn told(&self, done: bool) -> Reconcile {
        let reports = self.reports.iter().cloned();
        Reconcile {
            id: self.id,
            request: self.request.clone(),
            done,
            tables: self.tables,
            reports: reports.chain(self.now.as_ref().map(Pass::report)).collect(),
        }
    }

    pub fn unfinished(&self) -> Unfinished {
        Unfinished {
            id: self.id,
            request: self.request.clone(),
            tables: self.tables,
            reports: self.reports.clone(),
            now: self.now.as_ref().map(Pass::bookmark),
        }
    }
}

impl From<Unfinished> for Job {
    fn from(kept: Unfinished) -> Self {
        Job {
            id: kept.id,
            request: kept.request,
            tables: kept.tables,
            reports: kept.reports,
            now: kept.now.map(Pass::resumed),
        }
    }
}

/// All of them.
pub(super) struct Jobs {
    /// Under way, or waiting for their turn.
    pub open: VecDeque<Job>,
    pub history: History,
    /// The number of the one that was begun last.
    pub last: u64,
}

//! Comparisons that are under way or wait, and what is told of them.

use std::collections::VecDeque;

use lockstep_reconciler::{Pass, TableReport};
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

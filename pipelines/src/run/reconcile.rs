//! Comparisons that a running pipeline is asked for, or makes by itself: which tables, one after the other, and what came
//! of them.

mod audit;
mod history;

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_core::{Error, ErrorKind, Result};
use lockstep_reconciler::{Ends, Pass, TableReport};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::checks::{CheckDesk, Route};
use super::lane_state::LaneState;
use super::lock;
use super::source_state::SourceShare;
use crate::file::Reconciling;
use crate::metrics::ReconcileMetrics;
use crate::registry::SinkComponent;
use audit::Kept;
use history::History;

/// Comparisons that may wait for their turn.
const MOST: usize = 10;
/// Between two looks whether the pipeline is open far enough to be compared.
const LOOK: Duration = Duration::from_secs(2);

/// What is to be compared. Everything that is given must hold; nothing given means all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReconcileRequest {
    /// Tables of this source.
    pub source: Option<String>,
    /// This table, `schema.table` or the bare name.
    pub table: Option<String>,
    /// With this sink.
    pub sink: Option<String>,
    /// A condition in SQL that rows must meet. Rows that should not be there are not looked for then.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// What differs is mended; else it is only told.
    pub repair: bool,
    /// Who asks, for the record of repairs.
    pub by: Option<String>,
}

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

struct Job {
    id: u64,
    request: ReconcileRequest,
    tables: usize,
    passes: Vec<Pass>,
}

impl Job {
    fn told(&self, done: bool) -> Reconcile {
        Reconcile {
            id: self.id,
            request: self.request.clone(),
            done,
            tables: self.tables,
            reports: self.passes.iter().map(Pass::report).collect(),
        }
    }
}

struct Jobs {
    /// Under way, or waiting for their turn.
    open: VecDeque<Job>,
    history: History,
    last: u64,
}

/// What comparisons need of a running pipeline.
pub(super) struct Parts {
    pub sources: Vec<Arc<SourceShare>>,
    pub lanes: Vec<Arc<LaneState>>,
    /// By index of the lane.
    pub sinks: Vec<Arc<dyn SinkComponent>>,
    pub desk: Arc<CheckDesk>,
    pub metrics: ReconcileMetrics,
    /// The pipeline stops.
    pub stopping: CancellationToken,
}

/// See the module's page. Clones share it.
#[derive(Clone)]
pub(super) struct Reconciler {
    parts: Arc<Parts>,
    repairs: Arc<Path>,
    jobs: Arc<Mutex<Jobs>>,
    /// One at a time: comparisons of one table would only take turns.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Reconciler {
    /// With the history that the state directory has.
    pub fn new(parts: Parts, state: &Path) -> Self {
        let history = History::open(state.join("reconciles.json"));
        for one in &history.ended {
            one.reports
                .iter()
                .for_each(|report| parts.metrics.known(report));
        }
        let last = history.ended.back().map_or(0, |one| one.id);
        Reconciler {
            parts: Arc::new(parts),
            repairs: state.join("repairs.jsonl").into(),
            jobs: Arc::new(Mutex::new(Jobs {
                open: VecDeque::new(),
                history,
                last,
            })),
            turn: Arc::default(),
        }
    }

    /// Where lanes answer.
    pub fn desk(&self) -> &Arc<CheckDesk> {
        &self.parts.desk
    }

    /// Begins a comparison once those before it have ended, and returns its number.
    ///
    /// # Errors
    /// Of kind `Invalid` when there is nothing to compare, `Overloaded` when many wait already.
    pub fn begin(&self, request: ReconcileRequest) -> Result<u64> {
        let routes = self.routes(&request)?;
        let id = {
            let mut jobs = lock(&self.jobs);
            if jobs.open.len() >= MOST {
                let message = format!("{MOST} comparisons wait already");
                return Err(
                    Error::new(ErrorKind::Overloaded, message).remedy("wait until some have ended")
                );
            }
            jobs.last += 1;
            let id = jobs.last;
            jobs.open.push_back(Job {
                id,
                request: request.clone(),
                tables: routes.len(),
                passes: Vec::new(),
            });
            id
        };
        let this = self.clone();
        tokio::spawn(async move {
            let stopping = this.parts.stopping.clone();
            tokio::select! {
                biased;
                () = stopping.cancelled() => {}
                () = this.compare(id, &request, &routes) => {}
            }
            // It waits for the disk.
            tokio::task::spawn_blocking(move || this.end(id));
        });
        Ok(id)
    }

    async fn compare(&self, id: u64, request: &ReconcileRequest, routes: &[Route]) {
        let _turn = self.turn.lock().await;
        for route in routes {
            let mut pass = Pass::new(&route.source.name, &route.table);
            if request.repair {
                pass = pass.mending(Arc::new(Kept {
                    path: self.repairs.to_path_buf(),
                    by: request.by.clone(),
                }));
            }
            if let Some(job) = lock(&self.jobs).open.iter_mut().find(|job| job.id == id) {
                job.passes.push(pass.clone());
            }
            pass.run(route).await;
            let report = pass.report();
            self.parts.metrics.compared(&report);
            log(&report);
        }
    }

    fn is_open(&self, id: u64) -> bool {
        lock(&self.jobs).open.iter().any(|job| job.id == id)
    }

    fn end(&self, id: u64) {
        let mut jobs = lock(&self.jobs);
        let at = jobs.open.iter().position(|job| job.id == id);
        if let Some(job) = at.and_then(|at| jobs.open.remove(at)) {
            jobs.history.push(job.told(true));
        }
    }

    /// The comparisons that have ended lately, the one under way, and those that wait.
    pub fn list(&self) -> Vec<Reconcile> {
        let jobs = lock(&self.jobs);
        let open = jobs.open.iter().map(|job| job.told(false));
        jobs.history.ended.iter().cloned().chain(open).collect()
    }

    /// Compares everything again and again until the pipeline stops.
    pub async fn run(self, section: Reconciling) {
        let request = ReconcileRequest {
            repair: section.repair,
            by: Some("[reconcile]".to_owned()),
            ..ReconcileRequest::default()
        };
        let work = async {
            let mut due = tokio::time::Instant::now();
            loop {
                tokio::time::sleep_until(due).await;
                // Until sources and sinks have been open there is nothing to compare.
                let Ok(id) = self.begin(request.clone()) else {
                    due += LOOK;
                    continue;
                };
                due += section.every.0;
                while self.is_open(id) {
                    tokio::time::sleep(LOOK).await;
                }
                due = due.max(tokio::time::Instant::now());
            }
        };
        tokio::select! {
            biased;
            () = self.parts.stopping.cancelled() => {}
            () = work => {}
        }
    }

    fn routes(&self, request: &ReconcileRequest) -> Result<Vec<Route>> {
        let parts = &self.parts;
        let is_table = |name: &str| {
            request
                .table
                .as_deref()
                .is_none_or(|wanted| name == wanted || name.rsplit('.').next() == Some(wanted))
        };
        if let Some(sink) = &request.sink
            && !parts.lanes.iter().any(|lane| *lane.name == **sink)
        {
            let names: Vec<&str> = parts.lanes.iter().map(|lane| &*lane.name).collect();
            let error = Error::new(ErrorKind::Invalid, format!("there is no sink {sink}"));
            return Err(error.remedy(format!("choose one of {}", names.join(", "))));
        }
        let mut routes = Vec::new();
        let mut tables_there = BTreeSet::new();
        for (index, source) in parts.sources.iter().enumerate() {
            let lanes: Vec<_> = parts
                .lanes
                .iter()
                .zip(&parts.sinks)
                .filter(|(lane, _)| lane.sources.contains(&index))
                .map(|(lane, sink)| (Arc::clone(lane), Arc::clone(sink)))
                .collect();
            let mut tables = BTreeSet::new();
            for (lane, _) in &lanes {
                let reached = lane.reached_by(index);
                let all = reached.iter().flat_map(|reached| &reached.tables);
                let ours = all.filter(|table| !table.key.is_empty());
                tables.extend(ours.map(|table| table.origin.to_string()));
            }
            let is_source = request
                .source
                .as_deref()
                .is_none_or(|wanted| *source.name == *wanted);
            let named = tables
                .iter()
                .map(|table| format!("{}.{table}", source.name));
            tables_there.extend(named);
            for table in tables {
                let route = Route {
                    desk: Arc::clone(&parts.desk),
                    source: Arc::clone(source),
                    index,
                    lanes: lanes.clone(),
                    wanted: request.sink.clone(),
                    condition: request.condition.clone(),
                    table,
                };
                if is_source && is_table(&route.table) && !route.sinks().is_empty() {
                    routes.push(route);
                }
            }
        }
        if routes.is_empty() {
            let there: Vec<String> = tables_there.into_iter().collect();
            let error = Error::new(ErrorKind::Invalid, "there is nothing to compare");
            return Err(error.remedy(match there.is_empty() {
                true => "wait until the pipeline's sources are open".to_owned(),
                false => format!("there are {}", there.join(", ")),
            }));
        }
        Ok(routes)
    }
}

/// Tells how a pass has ended.
fn log(report: &TableReport) {
    let table = format!("{}.{}", report.source, report.table);
    if let Some(problem) = &report.problem {
        tracing::warn!(table, problem, "the comparison was not completed");
    }
    for (sink, told) in &report.sinks {
        let (missing, different, extra) = (told.missing, told.different, told.extra);
        if let Some(problem) = &told.problem {
            tracing::warn!(table, sink, problem, "the sink could not be compared");
        }
        if told.differing() > 0 {
            let first = told.drift.first().map(|drift| drift.held_as.as_str());
            tracing::warn!(
                table,
                sink,
                missing,
                different,
                extra,
                mended = told.repaired,
                first,
                "the sink differs from its source"
            );
        } else if told.problem.is_none() && !told.unreadable {
            tracing::debug!(table, sink, rows = told.compared, "equal");
        }
    }
}

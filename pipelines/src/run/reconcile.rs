//! Comparisons that a running pipeline is asked for, or makes by itself: which tables, one after the other, and what came
//! of them.

mod audit;
mod history;
mod job;
mod request;
mod routes;

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_core::{Error, ErrorKind, Result};
use lockstep_reconciler::{Ends as _, Pass, TableReport};
use tokio_util::sync::CancellationToken;

use super::checks::{CheckDesk, Route};
use super::lane_state::LaneState;
use super::source_state::SourceShare;
use super::traces::Comparison;
use super::{lock, now_micros};
use crate::file::Reconciling;
use crate::metrics::ReconcileMetrics;
use crate::registry::SinkComponent;
use audit::Kept;
use history::{History, Unfinished};
pub use job::Reconcile;
use job::{Job, Jobs};
pub use request::{ReconcileRequest, Share};
use routes::routes;

/// Comparisons that may wait for their turn.
const MOST: usize = 10;
/// Between two looks whether the pipeline is open far enough to be compared.
const LOOK: Duration = Duration::from_secs(2);
/// How often it is kept how far a comparison is.
const KEEP: Duration = Duration::from_secs(1);

/// What comparisons need of a running pipeline.
pub(super) struct Parts {
    pub pipeline: Arc<str>,
    pub sources: Vec<Arc<SourceShare>>,
    pub lanes: Vec<Arc<LaneState>>,
    /// By index of the lane.
    pub sinks: Vec<Arc<dyn SinkComponent>>,
    pub desk: Arc<CheckDesk>,
    pub metrics: ReconcileMetrics,
    /// Rows per second that a comparison reads at most.
    pub pace: Option<NonZeroU32>,
    /// The pipeline stops.
    pub stopping: CancellationToken,
}

/// See the module's page. Clones share it.
#[derive(Clone)]
pub(super) struct Reconciler {
    parts: Arc<Parts>,
    repairs: Arc<Path>,
    /// Where it is kept how far those are that have not ended.
    unfinished: Arc<Path>,
    jobs: Arc<Mutex<Jobs>>,
    /// One at a time: comparisons of one table would only take turns.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Reconciler {
    /// With the history that the state directory has, and the comparisons that have not ended.
    pub fn new(parts: Parts, state: &Path) -> Self {
        let history = History::open(state.join("reconciles.json"));
        for one in history.ended.iter().filter(|one| one.request.is_whole()) {
            one.reports
                .iter()
                .for_each(|report| parts.metrics.known(report));
        }
        let unfinished = state.join("reconciling.json");
        let open: VecDeque<Job> = history::unfinished(&unfinished)
            .into_iter()
            .map(Job::from)
            .collect();
        let ended = history.ended.back().map_or(0, |one| one.id);
        let last = open.iter().map(|job| job.id).fold(ended, u64::max);
        Reconciler {
            parts: Arc::new(parts),
            repairs: state.join("repairs.jsonl").into(),
            unfinished: unfinished.into(),
            jobs: Arc::new(Mutex::new(Jobs {
                open,
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

    /// Goes on with what an earlier run has not ended.
    pub fn go_on(&self) {
        let open: Vec<_> = lock(&self.jobs)
            .open
            .iter()
            .map(|job| (job.id, job.request.clone()))
            .collect();
        for (id, request) in open {
            tracing::info!(id, "a comparison goes on where it was interrupted");
            self.spawn(id, request, None);
        }
    }

    /// Begins a comparison once those before it have ended, and returns its number.
    ///
    /// # Errors
    /// Of kind `Invalid` when there is nothing to compare, `Overloaded` when many wait already.
    pub fn begin(&self, request: ReconcileRequest) -> Result<u64> {
        let routes = routes(&self.parts, &request)?;
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
                reports: Vec::new(),
                now: None,
            });
            id
        };
        self.spawn(id, request, Some(routes));
        Ok(id)
    }

    fn spawn(&self, id: u64, request: ReconcileRequest, routes: Option<Vec<Route>>) {
        let this = self.clone();
        tokio::spawn(async move {
            let stopping = this.parts.stopping.clone();
            tokio::select! {
                biased;
                // It goes on after the next start.
                () = stopping.cancelled() => this.keep().await,
                () = this.compare(id, &request, routes) => {
                    // It waits for the disk.
                    let ended = tokio::task::spawn_blocking(move || this.end(id));
                    if let Err(error) = ended.await {
                        tracing::error!(%error, "the end of a comparison was not kept");
                    }
                }
            }
        });
    }

    async fn compare(&self, id: u64, request: &ReconcileRequest, routes: Option<Vec<Route>>) {
        let mut routes = match routes {
            Some(routes) => routes,
            None => self.routes_in_time(request).await,
        };
        // Others each time, and the same ones when it goes on.
        let samples = routes.iter_mut().filter_map(|route| route.sample.as_mut());
        samples.for_each(|sample| sample.seed = id);
        let _turn = self.turn.lock().await;
        for route in &routes {
            let Some(pass) = self.enter(id, request, route) else {
                continue;
            };
            self.keep().await;
            let sinks = route.sinks();
            let trace = Comparison::new(
                &self.parts.pipeline,
                &route.source.name,
                &route.table,
                sinks.clone(),
            );
            match route.has_key {
                true => self.run_pass(&pass, route).await,
                false => pass.cannot_be_made(&sinks),
            }
            let report = pass.report();
            trace.ended(&report);
            self.parts.metrics.compared(&report, request.is_whole());
            log(&report);
            if let Some(job) = lock(&self.jobs).open.iter_mut().find(|job| job.id == id) {
                job.reports.push(report);
                job.now = None;
            }
        }
    }

    /// The routes of one that was interrupted, as soon as sources and sinks are open; none when they lead nowhere any more.
    async fn routes_in_time(&self, request: &ReconcileRequest) -> Vec<Route> {
        loop {
            let all_open = self.all_open();
            match routes(&self.parts, request) {
                Ok(routes) if all_open => return routes,
                Err(error) if all_open => {
                    tracing::warn!(%error, "a comparison that was interrupted is given up");
                    return Vec::new();
                }
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// The pass over a table: the one that is on record, or one from the beginning; `None` when it has been made.
    fn enter(&self, id: u64, request: &ReconcileRequest, route: &Route) -> Option<Pass> {
        let mut jobs = lock(&self.jobs);
        let job = jobs.open.iter_mut().find(|job| job.id == id)?;
        let is_ours = |report: &TableReport| {
            report.source == *route.source.name && report.table == route.table
        };
        if job.reports.iter().any(is_ours) {
            return None;
        }
        let interrupted = job.now.take().filter(|pass| is_ours(&pass.report()));
        let mut pass = interrupted.unwrap_or_else(|| Pass::new(&route.source.name, &route.table));
        pass = pass.paced(self.parts.pace);
        if !request.keys.is_empty() {
            pass = pass.over(request.keys.clone());
        }
        if request.repair {
            pass = pass.mending(Arc::new(Kept {
                path: self.repairs.to_path_buf(),
                by: request.by.clone(),
            }));
        }
        job.now = Some(pass.clone());
        Some(pass)
    }

    /// Runs a pass, and keeps how far it is.
    async fn run_pass(&self, pass: &Pass, route: &Route) {
        let mut due = tokio::time::interval(KEEP);
        let mut run = std::pin::pin!(pass.run(route));
        loop {
            tokio::select! {
                biased;
                () = &mut run => return,
                _ = due.tick() => self.keep().await,
            }
        }
    }

    /// Keeps how far those are that have not ended.
    async fn keep(&self) {
        let this = self.clone();
        let kept = tokio::task::spawn_blocking(move || {
            let jobs = lock(&this.jobs);
            let open: Vec<Unfinished> = jobs.open.iter().map(Job::unfinished).collect();
            history::keep(&this.unfinished, &open);
        });
        if let Err(error) = kept.await {
            tracing::error!(%error, "how far comparisons are was not kept");
        }
    }

    /// The number of one that is open for the same.
    fn open_for(&self, request: &ReconcileRequest) -> Option<u64> {
        let jobs = lock(&self.jobs);
        let job = jobs.open.iter().find(|job| job.request == *request);
        job.map(|job| job.id)
    }

    fn is_open(&self, id: u64) -> bool {
        lock(&self.jobs).open.iter().any(|job| job.id == id)
    }

    fn end(&self, id: u64) {
        let mut jobs = lock(&self.jobs);
        let at = jobs.open.iter().position(|job| job.id == id);
        if let Some(job) = at.and_then(|at| jobs.open.remove(at)) {
            jobs.history.push(job.told(true));
            let open: Vec<Unfinished> = jobs.open.iter().map(Job::unfinished).collect();
            history::keep(&self.unfinished, &open);
        }
    }

    /// The comparisons that have ended lately, the one under way, and those that wait.
    pub fn list(&self) -> Vec<Reconcile> {
        let jobs = lock(&self.jobs);
        let open = jobs.open.iter().map(|job| job.told(false));
        jobs.history.ended.iter().cloned().chain(open).collect()
    }

    /// How long to wait because it was made by an earlier run: what came of it stands. `None` when it was not, or could not be
    /// completed, or was about less than there is now.
    fn stands_for(&self, request: &ReconcileRequest, every: Duration) -> Option<Duration> {
        let routes = routes(&self.parts, request).ok()?;
        let jobs = lock(&self.jobs);
        let mut ended = jobs.history.ended.iter().rev();
        let last = ended.find(|one| one.request == *request)?;
        let is_there = |route: &Route| {
            let source = &route.source.name;
            last.has_completed(source, &route.table, &route.sinks())
        };
        if !routes.iter().all(is_there) {
            return None;
        }
        // A clock that was put back makes nobody wait longer than from one to the next.
        let ago = u64::try_from(now_micros() - last.began_micros()?).unwrap_or(0);
        let left = every.saturating_sub(Duration::from_micros(ago));
        // Of those that are not open yet it may have said nothing.
        let left = if self.all_open() {
            left
        } else {
            left.min(LOOK)
        };
        (!left.is_zero()).then_some(left)
    }

    /// Whether all sources and sinks have been open.
    fn all_open(&self) -> bool {
        let parts = &self.parts;
        parts.sources.iter().all(|source| source.checks().is_some())
            && parts.lanes.iter().all(|lane| lane.context().is_some())
    }

    /// Compares everything again and again until the pipeline stops.
    pub async fn run(self, section: Reconciling) {
        if section.when_asked {
            return;
        }
        let request = ReconcileRequest {
            repair: section.repair,
            by: Some("[reconcile]".to_owned()),
            ..ReconcileRequest::default()
        };
        let work = async {
            let mut due = tokio::time::Instant::now();
            let mut is_first = true;
            loop {
                tokio::time::sleep_until(due).await;
                // One that was interrupted goes on.
                let begun = self.open_for(&request);
                if is_first
                    && begun.is_none()
                    && let Some(left) = self.stands_for(&request, section.every.0)
                {
                    if left > LOOK {
                        let seconds = left.as_secs();
                        tracing::info!(
                            seconds,
                            "all was compared before the start; it is again later"
                        );
                    }
                    due += left;
                    continue;
                }
                // Until sources and sinks have been open there is nothing to compare.
                let begun = begun.map_or_else(|| self.begin(request.clone()), Ok);
                let Ok(id) = begun else {
                    due += LOOK;
                    continue;
                };
                is_first = false;
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
}

/// Tells how a pass has ended.
fn log(report: &TableReport) {
    let table = format!("{}.{}", report.source, report.table);
    if let Some(problem) = &report.problem {
        tracing::warn!(table, problem, "the comparison was not completed");
    }
    for (sink, told) in &report.sinks {
        let (missing, different) = (told.missing, told.different);
        let (stale, extra) = (told.stale, told.extra);
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
                stale,
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

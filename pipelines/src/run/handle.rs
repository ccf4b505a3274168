//! A running pipeline, seen from outside.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_core::memory::Budget;
use lockstep_core::position::Lsn;
use lockstep_core::sink::Trouble;
use lockstep_core::source::{Reload, ReloadRequest, SourcePhase, SourceState};
use lockstep_core::{Error, ErrorKind, Result};
use prometheus::core::Collector;
use prometheus::{Encoder, TextEncoder};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::copying::remaining;
use super::invariants::{InvariantRequest, Invariants, InvariantsView};
use super::lane_state::LaneState;
use super::node::Node;
use super::reconcile::{Reconcile, ReconcileRequest, Reconciler};
use super::replay::{self, Reports};
use super::resolutions::Resolutions;
use super::source_state::SourceShare;
use super::stitch::{Doubts, Witness};
use super::{lock, now_micros};
use crate::file::{Fingerprint, Pipeline};
use crate::letters::{Desk, Head, Letter, Selection};
use crate::metrics::Metrics;
use crate::status::{MemoryStatus, SinkPhase, SinkReport, SourceReport, Status, TransformReport};

/// A source that has not heard from its server for this long, and a sink that has made nothing durable for this long
/// although it has work, are not ready. Servers send a word every 10 s or so; whoever asks sees a stall within 30 s.
const SILENCE: Duration = Duration::from_secs(25);

/// A running pipeline. Dropping it does not stop the pipeline.
#[derive(Debug)]
pub struct Running {
    handle: Handle,
    finished: JoinHandle<Result<()>>,
}

impl Running {
    pub(super) fn new(handle: Handle, finished: JoinHandle<Result<()>>) -> Self {
        Running { handle, finished }
    }

    /// To ask the pipeline how it is, from any task, also after its end.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits for the end: after the shutdown token was cancelled, when every source has ended, or after an error that
    /// only a person can mend.
    ///
    /// # Errors
    /// The error that stopped the pipeline, with its place. Everything that was not durable comes again at the next
    /// start.
    pub async fn wait(self) -> Result<()> {
        self.finished.await.unwrap_or_else(|error| {
            Err(
                Error::new(ErrorKind::Protocol, "the supervisor has ended unexpectedly")
                    .source(error),
            )
        })
    }

    /// See [`Handle::status`].
    #[must_use]
    pub fn status(&self) -> Status {
        self.handle.status()
    }

    /// See [`Handle::ready`].
    ///
    /// # Errors
    /// See [`Handle::ready`].
    pub fn ready(&self) -> Result<(), Vec<String>> {
        self.handle.ready()
    }

    /// See [`Handle::visible`].
    #[must_use]
    pub fn visible(&self, source: &str, lsn: Lsn) -> Option<BTreeMap<String, bool>> {
        self.handle.visible(source, lsn)
    }
}

/// Answers questions about a running pipeline. Cheap to clone; never waits.
#[derive(Clone)]
pub struct Handle(Arc<Inner>);

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Handle").field(&self.0.pipeline).finish()
    }
}

pub(super) struct Inner {
    /// Of the file as it is carried out.
    pub fingerprint: Mutex<Fingerprint>,
    /// The same file without secrets.
    pub shown: Mutex<Value>,
    pub pipeline: Arc<str>,
    pub started: Instant,
    pub budget: Budget,
    pub sources: Vec<Arc<SourceShare>>,
    pub lanes: Vec<Arc<LaneState>>,
    pub nodes: Vec<Arc<Node>>,
    pub metrics: Metrics,
    pub desk: Arc<Desk>,
    /// Why nothing can be confirmed, when nothing can.
    pub keeper: Trouble,
    /// What the resolver has done.
    pub resolutions: Resolutions,
    /// Why it is not known which branches belong together.
    pub stitch: Trouble,
    /// What is known of branches in doubt.
    pub witness: Witness,
    /// Compares sinks with sources.
    pub reconciler: Reconciler,
    /// Looks at what must hold between databases.
    pub invariants: Invariants,
}

impl Handle {
    pub(super) fn new(inner: Inner) -> Self {
        Handle(Arc::new(inner))
    }

    pub(super) fn inner(&self) -> Arc<Inner> {
        Arc::clone(&self.0)
    }

    /// Carries out the sources' sections of another reading of the file; their names, and what has changed of them. Those
    /// sources are opened again: tables that have come are followed and loaded.
    ///
    /// # Errors
    /// Of kind `Setup`, and nothing is done, when something else has changed: that takes a restart.
    pub fn adopt(&self, pipeline: &Pipeline) -> Result<Vec<String>> {
        let mut fingerprint = lock(&self.0.fingerprint);
        let changed = fingerprint.changed(&pipeline.fingerprint);
        let mut sources = Vec::new();
        let mut others = Vec::new();
        for part in &changed {
            let name = part.strip_prefix("sources.");
            let known = |share: &&Arc<SourceShare>| Some(&*share.name) == name;
            let share = self.0.sources.iter().find(known);
            let component = pipeline
                .plan
                .sources
                .iter()
                .position(|source| Some(&**source) == name)
                .map(|index| Arc::clone(&pipeline.sources[index]));
            match share.zip(component) {
                Some(both) => sources.push(both),
                None => others.push(part.as_str()),
            }
        }
        if !others.is_empty() {
            let message = format!("{} changed, which takes a restart", others.join(", "));
            return Err(Error::new(ErrorKind::Setup, message)
                .remedy("restart lockstep; it goes on as before until then"));
        }
        for (share, component) in sources {
            share.replace(component);
        }
        *fingerprint = pipeline.fingerprint.clone();
        *lock(&self.0.shown) = pipeline.shown.clone();
        Ok(changed)
    }

    /// The pipeline file as it is carried out, without secrets.
    #[must_use]
    pub fn file(&self) -> Value {
        lock(&self.0.shown).clone()
    }

    /// Everything about the pipeline, as it is now.
    #[must_use]
    pub fn status(&self) -> Status {
        let inner = &self.0;
        let problems = self.ready().err().unwrap_or_default();
        let kept = inner.desk.counts();
        Status {
            pipeline: inner.pipeline.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: inner.started.elapsed().as_secs_f64(),
            ready: problems.is_empty(),
            problems,
            memory: MemoryStatus {
                used: inner.budget.used(),
                total: inner.budget.total(),
            },
            sources: (0..inner.sources.len())
                .map(|index| {
                    (
                        inner.sources[index].name.to_string(),
                        inner.source_report(index),
                    )
                })
                .collect(),
            transforms: inner
                .nodes
                .iter()
                .map(|node| {
                    let report = TransformReport {
                        duplicates: node.duplicates(),
                        size: node.size(),
                        problem: node.problem(),
                    };
                    (node.name().to_string(), report)
                })
                .collect(),
            sinks: inner
                .lanes
                .iter()
                .map(|lane| (lane.name.to_string(), inner.sink_report(lane, &kept)))
                .collect(),
            dead_letters: Collector::collect(&inner.metrics.dead_letters)
                .iter()
                .flat_map(|family| family.get_metric())
                .map(|metric| metric.get_counter().get_value() as u64)
                .sum(),
        }
    }

    /// Whether every source streams (or copies) and hears from its server, no transform waits for another server, and every
    /// sink is open and makes progress.
    ///
    /// # Errors
    /// What is not as it should be, a sentence each. A silent stall counts: no word from a server for 25 s, or a sink
    /// with work that has made nothing durable for 25 s.
    pub fn ready(&self) -> Result<(), Vec<String>> {
        let sources = self
            .0
            .sources
            .iter()
            .filter_map(|source| source_problem(source));
        let transforms = self.0.nodes.iter().filter_map(|node| {
            let problem = node.problem()?;
            Some(format!("transforms.{}: {problem}", node.name()))
        });
        let sinks = self.0.lanes.iter().filter_map(|lane| lane_problem(lane));
        let keeper = self.0.keeper.get();
        let letters = self.0.desk.problem();
        let problems: Vec<String> = sources
            .chain(transforms)
            .chain(sinks)
            .chain(keeper)
            .chain(self.0.stitch.get())
            .chain(letters)
            .collect();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    /// Begins to compare sinks with their sources, while the pipeline goes on; returns the number of the comparison.
    ///
    /// # Errors
    /// Of kind `Invalid` when there is nothing to compare, `Overloaded` when many wait already.
    pub fn reconcile(&self, request: ReconcileRequest) -> Result<u64> {
        self.0.reconciler.begin(request)
    }

    /// The comparison under way, and the last ones that ended.
    #[must_use]
    pub fn reconciles(&self) -> Vec<Reconcile> {
        self.0.reconciler.list()
    }

    /// Begins to evaluate invariants, and returns the number of this.
    ///
    /// # Errors
    /// Of kind `Invalid` when there is no such invariant, `Overloaded` when many wait already.
    pub fn evaluate(&self, request: InvariantRequest) -> Result<u64> {
        self.0.invariants.begin(request)
    }

    /// What the last evaluations of the invariants have found.
    #[must_use]
    pub fn invariants(&self) -> InvariantsView {
        self.0.invariants.view()
    }

    /// What was read of two-phase commits that are in doubt; `None` where nothing is put together (`stitch`).
    ///
    /// # Errors
    /// Of kind `Unavailable` when there is no answer.
    pub async fn doubts(&self) -> Result<Option<Doubts>> {
        self.0.witness.ask().await
    }

    /// Asks a source to load a table again while it streams; the one source there is when none is named. Returns the
    /// source's name and the number of the request.
    ///
    /// # Errors
    /// Of kind `Invalid` when there is no such source or table; `Unavailable` before the source has been open.
    pub fn reload(&self, source: Option<&str>, request: ReloadRequest) -> Result<(String, u64)> {
        let sources = &self.0.sources;
        let names = || {
            let names: Vec<&str> = sources.iter().map(|source| &*source.name).collect();
            names.join(", ")
        };
        let share = match (source, &sources[..]) {
            (None, [only]) => only,
            (None, _) => {
                let error = Error::new(ErrorKind::Invalid, "which source has the table?");
                return Err(error.remedy(format!("name one of {}", names())));
            }
            (Some(name), _) => {
                let known = sources.iter().find(|source| *source.name == *name);
                known.ok_or_else(|| {
                    Error::new(ErrorKind::Invalid, format!("there is no source {name}"))
                        .remedy(format!("choose one of {}", names()))
                })?
            }
        };
        let reloads = share.reloads().ok_or_else(|| {
            let what = format!(
                "sources.{} is not open, or cannot load tables again",
                share.name
            );
            Error::new(ErrorKind::Unavailable, what).remedy("see /readyz, then ask again")
        })?;
        let place = format!("sources.{}", share.name);
        let id = reloads.request(request).map_err(|error| error.at(place))?;
        Ok((share.name.to_string(), id))
    }

    /// Requests to load tables again, by source: those that wait or are under way, and the last ones that ended.
    #[must_use]
    pub fn reloads(&self) -> BTreeMap<String, Vec<Reload>> {
        let sources = self.0.sources.iter();
        let open = sources.filter_map(|share| Some((share.name.to_string(), share.reloads()?)));
        open.map(|(name, reloads)| (name, reloads.list())).collect()
    }

    /// For every sink that a source reaches, by name: whether all commits of the source up to `lsn` are durable there.
    /// `None` when there is no such source.
    #[must_use]
    pub fn visible(&self, source: &str, lsn: Lsn) -> Option<BTreeMap<String, bool>> {
        let index = self
            .0
            .sources
            .iter()
            .position(|known| &*known.name == source)?;
        let lanes = self
            .0
            .lanes
            .iter()
            .filter(|lane| lane.sources.contains(&index));
        Some(
            lanes
                .map(|lane| {
                    let durable = lane.through(index).is_some_and(|through| through >= lsn);
                    (lane.name.to_string(), durable)
                })
                .collect(),
        )
    }

    /// The dead letters that a selection takes, oldest first.
    ///
    /// # Errors
    /// Kind `Invalid` for numbers that there are not, and when letters go to a queue; kind `Storage`.
    pub async fn dead_letters(&self, selection: Selection) -> Result<Vec<Head>> {
        replay::list(&self.0.desk, selection).await
    }

    /// One dead letter.
    ///
    /// # Errors
    /// As for [`Handle::dead_letters`].
    pub async fn dead_letter(&self, id: u64) -> Result<Letter> {
        replay::show(&self.0.desk, id).await
    }

    /// Removes dead letters without writing them anywhere, and says how many.
    ///
    /// # Errors
    /// As for [`Handle::dead_letters`].
    pub async fn discard(&self, selection: Selection) -> Result<u64> {
        replay::discard(&self.0.desk, selection).await
    }

    /// Writes dead letters to their sinks, between the sinks' other writes, and removes those that are durable. Goes on
    /// when the future is dropped.
    ///
    /// # Errors
    /// As for [`Handle::dead_letters`]; kind `Unavailable` when a sink that is concerned is not open.
    pub async fn replay(&self, selection: Selection) -> Result<Reports> {
        let inner = Arc::clone(&self.0);
        let concerned = replay::list(&inner.desk, selection.clone()).await?;
        for lane in &inner.lanes {
            let place = format!("sinks.{}", lane.name);
            if concerned.iter().any(|head| head.place == place)
                && let Some(problem) = replay::unready(lane)
            {
                return Err(problem);
            }
        }
        replay::replay(&inner.desk, &inner.lanes, &selection).await
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    /// When they cannot be encoded.
    pub fn metrics_text(&self) -> Result<String> {
        self.0.scrape();
        let mut out = Vec::new();
        TextEncoder::new()
            .encode(&self.0.metrics.registry().gather(), &mut out)
            .map_err(|error| {
                Error::new(ErrorKind::Protocol, "cannot encode the metrics").source(error)
            })?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    /// The metrics, to add some of one's own to the registry.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }
}

impl Inner {
    fn source_report(&self, index: usize) -> SourceReport {
        let source = &self.sources[index];
        let state = source.status.get();
        let confirmed = source.confirmed();
        SourceReport {
            identity: source.info().map(|info| info.identity.to_string()),
            lag_bytes: lag(&state, confirmed),
            durable: confirmed.to_string(),
            changes: self.metrics.source_changes[index].get(),
            transactions: self
                .metrics
                .transactions
                .with_label_values(&[&source.name])
                .get(),
            state,
        }
    }

    fn sink_report(&self, lane: &LaneState, kept: &HashMap<String, u64>) -> SinkReport {
        let place = format!("sinks.{}", lane.name);
        let (waiting, since) = lane.inbox.waiting();
        let view = lane.view();
        SinkReport {
            state: view.phase,
            problem: view.problem.clone(),
            durable: view
                .through
                .iter()
                .map(|(source, through)| {
                    (self.sources[*source].name.to_string(), through.to_string())
                })
                .collect(),
            in_flight: waiting + view.in_flight,
            lag_seconds: age(view.oldest.or(since)),
            written: view.written,
            stale: view.stale,
            incomplete: view.incomplete,
            errors: view.errors,
            dead_letters: kept.get(&place).copied().unwrap_or(0),
        }
    }

    /// Sets the metrics that are read off, not counted.
    fn scrape(&self) {
        let metrics = &self.metrics;
        self.resolutions.look();
        for source in &self.sources {
            let state = source.status.get();
            let labels = &[&*source.name];
            set_or_remove(&metrics.source_lag, labels, lag(&state, source.confirmed()));
            set_or_remove(&metrics.slot_retained, labels, state.retained_bytes);
            set_or_remove(&metrics.slot_safe, labels, state.safe_bytes);
            set_or_remove(&metrics.in_progress, labels, Some(state.in_progress));
            let kept = Some(state.in_progress_bytes);
            set_or_remove(&metrics.in_progress_bytes, labels, kept);
            let receives = state.receives_in_progress.map(u64::from);
            set_or_remove(&metrics.receives_in_progress, labels, receives);
            set_or_remove(&metrics.in_doubt, labels, state.in_doubt);
            let since = state.in_doubt_since_ms.map(|since| since / 1000);
            set_or_remove(&metrics.in_doubt_since, labels, since);
            let from = state.in_doubt_from;
            let held = from.map(|from| state.server.max(state.received).saturating_sub(from));
            set_or_remove(&metrics.in_doubt_bytes, labels, held);
            let connected = matches!(state.phase, SourcePhase::Snapshot | SourcePhase::Streaming);
            metrics
                .source_connected
                .with_label_values(labels)
                .set(i64::from(connected));
            let gaps = state.notices.iter().filter(|notice| notice.gap).count();
            let gauge = metrics.source_gaps.with_label_values(labels);
            gauge.set(signed(gaps as u64));
            for progress in &state.snapshot {
                let labels = &[&*source.name, &*progress.table];
                // A table that was never analysed has no estimate.
                let estimate = Some(progress.estimated_rows).filter(|&rows| rows > 0);
                set_or_remove(&metrics.snapshot_estimated, labels, estimate);
            }
            let copies = state.phase == SourcePhase::Snapshot && !state.snapshot.is_empty();
            let rate = copies.then(|| source.copy_rate(&state.snapshot)).flatten();
            let left = rate.and_then(|rate| remaining(&state.snapshot, rate));
            set_or_remove_float(&metrics.snapshot_rate, labels, rate);
            set_or_remove_float(&metrics.snapshot_remaining, labels, left);
        }
        let kept = self.desk.counts();
        // A transform whose last letter is gone must not keep its last value; sinks are set below.
        metrics.dead_letters_kept.reset();
        for (place, letters) in &kept {
            let gauge = metrics.dead_letters_kept.with_label_values(&[place]);
            gauge.set(signed(*letters));
        }
        for lane in &self.lanes {
            let report = self.sink_report(lane, &kept);
            let place = format!("sinks.{}", lane.name);
            metrics
                .dead_letters_kept
                .with_label_values(&[&place])
                .set(signed(report.dead_letters));
            let labels = &[&*lane.name];
            metrics
                .sink_lag
                .with_label_values(labels)
                .set(report.lag_seconds);
            metrics
                .sink_in_flight
                .with_label_values(labels)
                .set(signed(report.in_flight as u64));
            let up = report.state == SinkPhase::Running;
            metrics.sink_up.with_label_values(labels).set(i64::from(up));
        }
        for node in &self.nodes {
            let counter = metrics.duplicates.with_label_values(&[&**node.name()]);
            counter.inc_by(node.duplicates().saturating_sub(counter.get()));
            let (labels, size) = (&[&**node.name()], node.size());
            set_or_remove(&metrics.dedupe_keys, labels, size.map(|size| size.keys));
            set_or_remove(&metrics.dedupe_held, labels, size.map(|size| size.held));
            set_or_remove(
                &metrics.dedupe_bytes,
                labels,
                size.and_then(|size| size.bytes),
            );
        }
        metrics
            .memory_budget
            .set(signed(self.budget.total() as u64));
        metrics.memory_used.set(signed(self.budget.used() as u64));
    }
}

fn set_or_remove(gauges: &prometheus::IntGaugeVec, labels: &[&str], value: Option<u64>) {
    match value {
        Some(value) => gauges.with_label_values(labels).set(signed(value)),
        // There may be nothing to remove; either way there is no value now.
        None => drop(gauges.remove_label_values(labels)),
    }
}

fn set_or_remove_float(gauges: &prometheus::GaugeVec, labels: &[&str], value: Option<f64>) {
    match value {
        Some(value) => gauges.with_label_values(labels).set(value),
        // As above.
        None => drop(gauges.remove_label_values(labels)),
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Bytes of the server's log that are not confirmed, when its end is known.
fn lag(state: &SourceState, confirmed: Lsn) -> Option<u64> {
    (state.server > 0).then(|| {
        state
            .server
            .saturating_sub(confirmed.0.max(state.confirmed))
    })
}

/// Seconds since a moment given in microseconds since the Unix epoch; 0 for none.
fn age(since: Option<i64>) -> f64 {
    since.map_or(0.0, |since| {
        now_micros().saturating_sub(since).max(0) as f64 / 1e6
    })
}

fn source_problem(source: &SourceShare) -> Option<String> {
    let state = source.status.get();
    let place = format!("sources.{}", source.name);
    let problem = state.problem.as_deref();
    match state.phase {
        SourcePhase::Snapshot | SourcePhase::Streaming => {
            let silent = state.heard.map(|heard| heard.elapsed());
            if let Some(problem) = problem {
                Some(format!("{place}: {problem}"))
            } else if let Some(silent) = silent {
                let seconds = silent.as_secs();
                match silent > SILENCE {
                    true => Some(format!("{place}: no word from the server for {seconds} s")),
                    false => gaps(&state).map(|gaps| format!("{place}: {gaps}")),
                }
            } else {
                Some(format!("{place}: no word from the server yet"))
            }
        }
        SourcePhase::Connecting => Some(format!("{place}: {}", problem.unwrap_or("connecting"))),
        SourcePhase::Waiting => Some(format!("{place}: {}", problem.unwrap_or("waiting"))),
        SourcePhase::Stopped => Some(format!("{place}: {}", problem.unwrap_or("stopped"))),
    }
}

/// What does not come of what was asked for.
fn gaps(state: &SourceState) -> Option<String> {
    let gaps = state.notices.iter().filter(|notice| notice.gap);
    let gaps: Vec<String> = gaps.map(ToString::to_string).collect();
    (!gaps.is_empty()).then(|| gaps.join("; "))
}

fn lane_problem(lane: &LaneState) -> Option<String> {
    let view = lane.view();
    let place = format!("sinks.{}", lane.name);
    let problem = view.problem.as_deref();
    match view.phase {
        SinkPhase::Running => {
            if view.in_flight == 0 {
                return None;
            }
            let still = view.moved.elapsed();
            let stalled = || {
                format!(
                    "{} batches on their way, and nothing durable for {} s",
                    view.in_flight,
                    still.as_secs()
                )
            };
            let trouble = lane.trouble.get();
            let problem = trouble.or_else(|| (still > SILENCE).then(stalled))?;
            Some(format!("{place}: {problem}"))
        }
        SinkPhase::Opening => Some(format!("{place}: {}", problem.unwrap_or("opening"))),
        SinkPhase::Retrying => Some(format!("{place}: {}", problem.unwrap_or("opening again"))),
        SinkPhase::Stopped => Some(format!("{place}: {}", problem.unwrap_or("stopped"))),
    }
}

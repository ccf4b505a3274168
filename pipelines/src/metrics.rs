//! The pipeline's metrics, by the names and questions of [`lockstep_core::metrics`].
//!
//! Counters are looked up once per schema version, sink or source; a batch then costs one pass over its change heads
//! and an atomic addition per table and operation in it.

mod lease;
#[cfg(target_os = "linux")]
mod process;
mod proofs;
mod resolver;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lockstep_core::batch::{Batch, Branch, Op, Phase, Prepared};
use lockstep_core::durable::Delivered;
use lockstep_core::metrics::{self as names, Metric};
use lockstep_core::position::Lsn;
use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_transactions::gid;
use lockstep_transactions::order::Unit;
use prometheus::core::Collector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

pub(crate) use self::lease::lease_text;
pub(crate) use self::proofs::{InvariantMetrics, ReconcileMetrics};
pub(crate) use self::resolver::ResolverMetrics;
use crate::plan::Plan;

/// Upper ends of the latency buckets, in seconds: from well below the goal of a few milliseconds up to a backlog.
const LATENCY_BUCKETS: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// Latencies observed per batch, at most: enough for its spread, and no cost per change.
const LATENCY_SAMPLES: usize = 32;

/// Schema versions with their counters at hand.
const MAX_TABLES: usize = 4096;

/// All metrics of one pipeline.
pub struct Metrics {
    registry: Registry,
    source_names: Vec<Arc<str>>,
    sink_names: Vec<Arc<str>>,
    /// Per source; for the status, not registered.
    pub(crate) source_changes: Vec<IntCounter>,
    pub(crate) source_lag: IntGaugeVec,
    pub(crate) slot_retained: IntGaugeVec,
    pub(crate) in_progress: IntGaugeVec,
    pub(crate) in_progress_bytes: IntGaugeVec,
    pub(crate) receives_in_progress: IntGaugeVec,
    pub(crate) in_doubt: IntGaugeVec,
    pub(crate) in_doubt_since: IntGaugeVec,
    pub(crate) in_doubt_bytes: IntGaugeVec,
    two_phase_branches: IntCounterVec,
    two_phase_prepared: HistogramVec,
    two_phase_visible: HistogramVec,
    pub(crate) slot_safe: IntGaugeVec,
    pub(crate) source_connected: IntGaugeVec,
    pub(crate) source_gaps: IntGaugeVec,
    source_bytes: IntCounterVec,
    changes: IntCounterVec,
    pub(crate) transactions: IntCounterVec,
    snapshot_rows: IntCounterVec,
    pub(crate) snapshot_estimated: IntGaugeVec,
    pub(crate) snapshot_rate: GaugeVec,
    pub(crate) snapshot_remaining: GaugeVec,
    pub(crate) sink_lag: GaugeVec,
    sink_records: IntCounterVec,
    sink_bytes: IntCounterVec,
    pub(crate) sink_in_flight: IntGaugeVec,
    sink_setbacks: IntCounterVec,
    sink_fenced: IntCounterVec,
    reconciles: ReconcileMetrics,
    invariants: InvariantMetrics,
    sink_errors: IntCounterVec,
    pub(crate) sink_up: IntGaugeVec,
    latency: HistogramVec,
    pub(crate) duplicates: IntCounterVec,
    pub(crate) dedupe_keys: IntGaugeVec,
    pub(crate) dedupe_held: IntGaugeVec,
    pub(crate) dedupe_bytes: IntGaugeVec,
    transform_errors: IntCounterVec,
    stitch_transactions: IntCounterVec,
    stitch_hold: HistogramVec,
    stitch_decided: HistogramVec,
    stitch_skew: HistogramVec,
    stitch_passed: IntCounterVec,
    stitch_waiting: IntGaugeVec,
    stitch_file: IntGaugeVec,
    resolver: ResolverMetrics,
    pub(crate) dead_letters: IntCounterVec,
    pub(crate) dead_letters_kept: IntGaugeVec,
    pub(crate) memory_budget: IntGauge,
    pub(crate) memory_used: IntGauge,
}

/// Makes and registers collectors.
struct Maker(Registry);

impl Maker {
    fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> Result<C> {
        made.and_then(|collector| {
            self.0
                .register(Box::new(collector.clone()))
                .map(|()| collector)
        })
        .map_err(|error| Error::new(ErrorKind::Protocol, "cannot make a metric").source(error))
    }

    fn counters(&self, metric: Metric) -> Result<IntCounterVec> {
        self.add(IntCounterVec::new(
            Opts::new(metric.name, metric.help),
            metric.labels,
        ))
    }

    fn latencies(&self, metric: Metric) -> Result<HistogramVec> {
        let options =
            HistogramOpts::new(metric.name, metric.help).buckets(LATENCY_BUCKETS.to_vec());
        self.add(HistogramVec::new(options, metric.labels))
    }

    fn float_gauges(&self, metric: Metric) -> Result<GaugeVec> {
        self.add(GaugeVec::new(
            Opts::new(metric.name, metric.help),
            metric.labels,
        ))
    }

    fn gauges(&self, metric: Metric) -> Result<IntGaugeVec> {
        self.add(IntGaugeVec::new(
            Opts::new(metric.name, metric.help),
            metric.labels,
        ))
    }
}

impl Metrics {
    /// The metrics of a pipeline with this graph, in a registry of their own.
    ///
    /// # Errors
    /// When two metrics have the same name.
    pub fn new(plan: &Plan) -> Result<Self> {
        let make = Maker(Registry::new());
        let build = make.gauges(names::BUILD_INFO)?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        #[cfg(target_os = "linux")]
        make.add(Ok(process::Process::new()))?;
        let int_gauge = |metric: Metric| IntGauge::new(metric.name, metric.help);
        Ok(Metrics {
            source_names: plan.sources.clone(),
            sink_names: plan
                .sinks
                .iter()
                .map(|sink| Arc::clone(&sink.name))
                .collect(),
            source_changes: plan
                .sources
                .iter()
                .map(|_| IntCounter::new("changes", "changes"))
                .collect::<prometheus::Result<_>>()
                .map_err(|error| {
                    Error::new(ErrorKind::Protocol, "cannot make a metric").source(error)
                })?,
            source_lag: make.gauges(names::SOURCE_LAG_BYTES)?,
            slot_retained: make.gauges(names::SLOT_RETAINED_BYTES)?,
            in_progress: make.gauges(names::SOURCE_IN_PROGRESS)?,
            in_progress_bytes: make.gauges(names::SOURCE_IN_PROGRESS_BYTES)?,
            receives_in_progress: make.gauges(names::SOURCE_RECEIVES_IN_PROGRESS)?,
            in_doubt: make.gauges(names::SOURCE_IN_DOUBT)?,
            in_doubt_since: make.gauges(names::SOURCE_IN_DOUBT_SINCE)?,
            in_doubt_bytes: make.gauges(names::SOURCE_IN_DOUBT_BYTES)?,
            two_phase_branches: make.counters(names::TWO_PHASE_BRANCHES)?,
            two_phase_prepared: make.latencies(names::TWO_PHASE_PREPARED)?,
            two_phase_visible: make.latencies(names::TWO_PHASE_VISIBLE)?,
            slot_safe: make.gauges(names::SLOT_SAFE_BYTES)?,
            source_connected: make.gauges(names::SOURCE_CONNECTED)?,
            source_gaps: make.gauges(names::SOURCE_GAPS)?,
            source_bytes: make.counters(names::SOURCE_RECEIVED_BYTES)?,
            changes: make.counters(names::CHANGES)?,
            transactions: make.counters(names::TRANSACTIONS)?,
            snapshot_rows: make.counters(names::SNAPSHOT_ROWS)?,
            snapshot_estimated: make.gauges(names::SNAPSHOT_ESTIMATED_ROWS)?,
            snapshot_rate: make.float_gauges(names::SNAPSHOT_ROWS_PER_SECOND)?,
            snapshot_remaining: make.float_gauges(names::SNAPSHOT_REMAINING_SECONDS)?,
            sink_lag: make.float_gauges(names::SINK_LAG_SECONDS)?,
            sink_records: make.counters(names::SINK_RECORDS)?,
            sink_bytes: make.counters(names::SINK_BYTES)?,
            sink_in_flight: make.gauges(names::SINK_IN_FLIGHT)?,
            reconciles: ReconcileMetrics {
                compared: make.counters(names::RECONCILE_COMPARED)?,
                drift: make.counters(names::RECONCILE_DRIFT)?,
                repaired: make.counters(names::RECONCILE_REPAIRED)?,
                differing: make.gauges(names::RECONCILE_DIFFERING)?,
                verified: make.gauges(names::RECONCILE_VERIFIED)?,
            },
            invariants: InvariantMetrics {
                evaluations: make.counters(names::INVARIANT_EVALUATIONS)?,
                violations: make.gauges(names::INVARIANT_VIOLATIONS)?,
                in_doubt: make.gauges(names::INVARIANT_IN_DOUBT)?,
                undecided: make.gauges(names::INVARIANT_UNDECIDED)?,
                verified: make.gauges(names::INVARIANT_VERIFIED)?,
            },
            sink_setbacks: make.counters(names::SINK_SETBACKS)?,
            sink_fenced: make.counters(names::SINK_FENCED)?,
            sink_errors: make.counters(names::SINK_ERRORS)?,
            sink_up: make.gauges(names::SINK_UP)?,
            latency: make.latencies(names::END_TO_END_LATENCY)?,
            duplicates: make.counters(names::DUPLICATES)?,
            dedupe_keys: make.gauges(names::DEDUPE_KEYS)?,
            dedupe_held: make.gauges(names::DEDUPE_HELD_ROWS)?,
            dedupe_bytes: make.gauges(names::DEDUPE_STORE_BYTES)?,
            transform_errors: make.counters(names::TRANSFORM_ERRORS)?,
            stitch_transactions: make.counters(names::STITCH_TRANSACTIONS)?,
            stitch_hold: make.latencies(names::STITCH_HOLD)?,
            stitch_decided: make.latencies(names::STITCH_DECIDED)?,
            stitch_skew: make.latencies(names::STITCH_SKEW)?,
            stitch_passed: make.counters(names::STITCH_PASSED)?,
            stitch_waiting: make.gauges(names::STITCH_WAITING)?,
            stitch_file: make.gauges(names::STITCH_FILE_BYTES)?,
            resolver: ResolverMetrics::new(&make)?,
            dead_letters: make.counters(names::DEAD_LETTERS)?,
            dead_letters_kept: make.gauges(names::DEAD_LETTERS_KEPT)?,
            memory_budget: make.add(int_gauge(names::MEMORY_BUDGET_BYTES))?,
            memory_used: make.add(int_gauge(names::MEMORY_USED_BYTES))?,
            registry: make.0,
        })
    }

    /// The registry, to add metrics of one's own.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The counter of failures of transforms that were tried again, by name and code.
    pub(crate) fn transform_errors(&self) -> IntCounterVec {
        self.transform_errors.clone()
    }

    /// The counter of rows put aside, by place and reason.
    #[must_use]
    pub fn dead_letters(&self) -> IntCounterVec {
        self.dead_letters.clone()
    }

    /// The counters of one source.
    pub(crate) fn source(&self, index: usize) -> SourceMetrics {
        let name = &self.source_names[index];
        SourceMetrics {
            all: self.source_changes[index].clone(),
            bytes: self.source_bytes.with_label_values(&[name]),
            transactions: self.transactions.with_label_values(&[name]),
            changes: self.changes.clone(),
            branches: self.two_phase_branches.clone(),
            prepared: self.two_phase_prepared.clone(),
            snapshot_rows: self.snapshot_rows.clone(),
            name: Arc::clone(name),
            tables: HashMap::new(),
            counts: Vec::new(),
            last_commit: None,
        }
    }

    /// Those of a stitch.
    pub(crate) fn stitch(&self, name: &str) -> StitchMetrics {
        StitchMetrics {
            name: name.to_owned(),
            transactions: self.stitch_transactions.clone(),
            skew: self.stitch_skew.with_label_values(&[name]),
            passed: self.stitch_passed.with_label_values(&[name]),
            hold: self.stitch_hold.with_label_values(&[name]),
            decided: self.stitch_decided.with_label_values(&[name]),
            waiting: self.stitch_waiting.with_label_values(&[name]),
            file: self.stitch_file.with_label_values(&[name]),
        }
    }

    /// Those of branches in doubt.
    pub(crate) fn resolver(&self) -> ResolverMetrics {
        self.resolver.clone()
    }

    /// Those of comparisons.
    pub(crate) fn reconciles(&self) -> ReconcileMetrics {
        self.reconciles.clone()
    }

    /// Those of invariants.
    pub(crate) fn invariants(&self) -> InvariantMetrics {
        self.invariants.clone()
    }

    /// The counters of one sink.
    pub(crate) fn sink(&self, index: usize) -> SinkMetrics {
        let name = &self.sink_names[index];
        SinkMetrics {
            written: self.sink_records.with_label_values(&[name, "written"]),
            stale: self.sink_records.with_label_values(&[name, "stale"]),
            incomplete: self.sink_records.with_label_values(&[name, "incomplete"]),
            bytes: self.sink_bytes.with_label_values(&[name]),
            latency: self.latency.with_label_values(&[name]),
            visible: self.two_phase_visible.clone(),
            setbacks: self.sink_setbacks.with_label_values(&[name]),
            fenced: self.sink_fenced.with_label_values(&[name]),
            errors: self.sink_errors.clone(),
            name: Arc::clone(name),
        }
    }
}

/// The word for whoever has prepared a branch, by the form of the name that it was given.
pub(crate) fn manager(prepared: &Prepared) -> &'static str {
    gid::Branch::parse(&prepared.gid).dialect().as_str()
}

/// The word for who commits several branches and prepares none: they say themselves what they belong to.
const NO_MANAGER: &str = "marker";

/// How a branch has committed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commit {
    /// When, microseconds since the Unix epoch.
    pub micros: i64,
    /// Who had prepared it; `None`: nobody has.
    pub manager: Option<&'static str>,
}

/// Those of transactions of several databases that go on together.
pub(crate) struct StitchMetrics {
    name: String,
    transactions: IntCounterVec,
    skew: Histogram,
    passed: IntCounter,
    hold: Histogram,
    decided: Histogram,
    waiting: IntGauge,
    file: IntGauge,
}

impl StitchMetrics {
    /// One goes on, of these branches.
    pub fn goes_on(&self, unit: &Unit, branches: &[Commit]) {
        let is_early = unit.members.iter().any(|member| member.early);
        let outcome = match (unit.mixed, unit.late) {
            (true, _) => "mixed",
            (false, true) => "late",
            (false, false) if is_early => "early",
            (false, false) => "whole",
        };
        self.count(branches, outcome);
        let times = branches.iter().map(|commit| commit.micros);
        if let (Some(first), Some(last), 2..) = (times.clone().min(), times.max(), branches.len()) {
            self.skew.observe(last.saturating_sub(first) as f64 / 1e6);
        }
    }

    /// One has passed by others that wait.
    pub fn passed(&self) {
        self.passed.inc();
    }

    /// One that went on early was rolled back in part.
    pub fn undone(&self, branch: &Prepared) {
        let labels = &[&self.name, manager(branch), "mixed"];
        self.transactions.with_label_values(labels).inc();
    }

    /// One is too large to go on at once.
    pub fn cut(&self, branches: &[Commit]) {
        self.count(branches, "cut");
    }

    fn count(&self, branches: &[Commit], outcome: &str) {
        let manager = branches.iter().find_map(|commit| commit.manager);
        let labels = &[&self.name, manager.unwrap_or(NO_MANAGER), outcome];
        self.transactions.with_label_values(labels).inc();
    }

    /// A branch has waited so long, and would have waited so long for what is known of its transaction and of those before it.
    pub fn held(&self, waited: Duration, decided: Duration) {
        self.hold.observe(waited.as_secs_f64());
        self.decided.observe(decided.as_secs_f64());
    }

    /// So many transactions wait, with so many bytes in a file.
    pub fn waits(&self, transactions: usize, bytes: u64) {
        self.waiting
            .set(i64::try_from(transactions).unwrap_or(i64::MAX));
        self.file.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

const OPS: [Op; 7] = [
    Op::Read,
    Op::Insert,
    Op::Update,
    Op::Delete,
    Op::Truncate,
    Op::Message,
    Op::Event,
];

fn op_index(op: Op) -> usize {
    match op {
        Op::Read => 0,
        Op::Insert => 1,
        Op::Update => 2,
        Op::Delete => 3,
        Op::Truncate => 4,
        Op::Message => 5,
        Op::Event => 6,
    }
}

/// The counters of one source, for its pump.
pub(crate) struct SourceMetrics {
    name: Arc<str>,
    all: IntCounter,
    bytes: IntCounter,
    transactions: IntCounter,
    changes: IntCounterVec,
    branches: IntCounterVec,
    prepared: HistogramVec,
    snapshot_rows: IntCounterVec,
    /// By address of the schema, whose `Arc` is held.
    tables: HashMap<usize, Table>,
    /// Per schema of the batch at hand; kept for its room.
    counts: Vec<[u64; OPS.len()]>,
    last_commit: Option<Lsn>,
}

struct Table {
    _schema: Arc<TableSchema>,
    label: String,
    /// Made when first needed, so that operations that never come leave no series.
    ops: [Option<IntCounter>; OPS.len()],
}

impl SourceMetrics {
    /// Counts a batch as it came in.
    pub fn received(&mut self, batch: &Batch) {
        self.all.inc_by(batch.changes().len() as u64);
        self.bytes.inc_by(batch.size() as u64);
        if batch.phase == Phase::Stream {
            self.count_transactions(batch);
        }
        self.counts.clear();
        self.counts.resize(batch.schemas().len(), [0; OPS.len()]);
        for change in batch.changes() {
            self.counts[usize::from(change.schema)][op_index(change.op)] += 1;
        }
        for (schema, counts) in batch.schemas().iter().zip(&self.counts) {
            if counts.iter().all(|count| *count == 0) {
                continue;
            }
            if self.tables.len() >= MAX_TABLES {
                self.tables.clear();
            }
            let table = self
                .tables
                .entry(Arc::as_ptr(schema) as usize)
                .or_insert_with(|| Table::new(schema));
            for (index, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                let label = &table.label;
                table.ops[index]
                    .get_or_insert_with(|| {
                        self.changes
                            .with_label_values(&[&*self.name, label, OPS[index].as_str()])
                    })
                    .inc_by(*count);
            }
            let rows = counts[op_index(Op::Read)];
            if rows > 0 {
                self.snapshot_rows
                    .with_label_values(&[&*self.name, &table.label])
                    .inc_by(rows);
            }
        }
    }

    /// What else has become of branches: those that have something to go on with are counted with it.
    pub fn ended(&self, branch: &Branch) {
        match branch {
            Branch::Prepared(_) | Branch::Early(_) => {}
            Branch::RolledBack(prepared) => self.count_branch(manager(prepared), "rolled_back"),
            Branch::Empty(prepared) => self.count_branch(manager(prepared), "committed"),
        }
    }

    fn count_branch(&self, manager: &str, outcome: &str) {
        let labels = &[&*self.name, manager, outcome];
        self.branches.with_label_values(labels).inc();
    }

    /// A transaction may be cut by the end of a batch; its second part is not counted again.
    fn count_transactions(&mut self, batch: &Batch) {
        let transactions = batch.transactions();
        let (Some(first), Some(last)) = (transactions.first(), transactions.last()) else {
            return;
        };
        let continued = self.last_commit == Some(first.commit);
        self.transactions
            .inc_by((transactions.len() - usize::from(continued)) as u64);
        self.last_commit = Some(last.commit);
        for transaction in &transactions[usize::from(continued)..] {
            let Some(prepared) = &transaction.prepared else {
                continue;
            };
            let manager = manager(prepared);
            self.count_branch(manager, "committed");
            let micros = transaction.commit_micros.saturating_sub(prepared.micros);
            self.prepared
                .with_label_values(&[&*self.name, manager])
                .observe(micros.max(0) as f64 / 1e6);
        }
    }
}

impl Table {
    fn new(schema: &Arc<TableSchema>) -> Self {
        let message = schema.origin.name.is_empty();
        Table {
            label: if message {
                "message".to_owned()
            } else {
                schema.origin.to_string()
            },
            _schema: Arc::clone(schema),
            ops: Default::default(),
        }
    }
}

/// The counters of one sink, for its lane.
pub(crate) struct SinkMetrics {
    name: Arc<str>,
    written: IntCounter,
    stale: IntCounter,
    incomplete: IntCounter,
    bytes: IntCounter,
    setbacks: IntCounter,
    fenced: IntCounter,
    errors: IntCounterVec,
    latency: Histogram,
    visible: HistogramVec,
}

impl SinkMetrics {
    /// A batch has become durable.
    ///
    /// Latency runs from the commit in PostgreSQL, by the server's clock, to this moment, by ours. Up to
    /// 32 changes of a batch are looked at, evenly spread over it, and each transaction met is observed once: a batch
    /// of one transaction counts once, a batch of many counts by its spread. Rows of the initial copy, and changes that lay aside, have no
    /// latency.
    pub fn delivered(&self, delivered: &Delivered, batch: &Batch) {
        self.written.inc_by(delivered.written);
        self.stale.inc_by(delivered.stale);
        self.incomplete.inc_by(delivered.incomplete);
        self.bytes.inc_by(delivered.bytes);
        if batch.phase != Phase::Stream {
            return;
        }
        let now = crate::run::now_micros();
        let changes = batch.changes();
        let stride = changes.len().div_ceil(LATENCY_SAMPLES).max(1);
        let mut last = None;
        for change in changes.iter().step_by(stride).chain(changes.last()) {
            if last.replace(change.transaction) != Some(change.transaction) {
                let transaction = batch.transaction(change);
                let micros = now.saturating_sub(transaction.commit_micros);
                let seconds = micros.max(0) as f64 / 1e6;
                self.latency.observe(seconds);
                if let Some(prepared) = &transaction.prepared {
                    let labels = &[&*self.name, manager(prepared)];
                    self.visible.with_label_values(labels).observe(seconds);
                }
            }
        }
    }

    /// The sink has lost something that it had confirmed.
    pub fn set_back(&self) {
        self.setbacks.inc();
    }

    /// The sink has refused this process, because a newer one writes there.
    pub fn fenced(&self) {
        self.fenced.inc();
    }

    /// The sink has failed.
    pub fn failed(&self, code: &str) {
        self.errors.with_label_values(&[&*self.name, code]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_metric_is_registered_and_no_other() {
        let metrics = Metrics::new(&Plan::default()).expect("valid");
        let lease = lease::LeaseMetrics::new().expect("valid");
        let mut registered: Vec<String> = [
            metrics.source_lag.desc(),
            metrics.slot_retained.desc(),
            metrics.in_progress.desc(),
            metrics.in_progress_bytes.desc(),
            metrics.receives_in_progress.desc(),
            metrics.in_doubt.desc(),
            metrics.in_doubt_since.desc(),
            metrics.in_doubt_bytes.desc(),
            metrics.two_phase_branches.desc(),
            metrics.two_phase_prepared.desc(),
            metrics.two_phase_visible.desc(),
            metrics.slot_safe.desc(),
            metrics.source_connected.desc(),
            metrics.source_gaps.desc(),
            metrics.source_bytes.desc(),
            metrics.changes.desc(),
            metrics.transactions.desc(),
            metrics.snapshot_rows.desc(),
            metrics.snapshot_estimated.desc(),
            metrics.snapshot_rate.desc(),
            metrics.snapshot_remaining.desc(),
            metrics.sink_lag.desc(),
            metrics.sink_records.desc(),
            metrics.sink_bytes.desc(),
            metrics.sink_in_flight.desc(),
            metrics.sink_setbacks.desc(),
            metrics.sink_fenced.desc(),
            metrics.reconciles.compared.desc(),
            metrics.reconciles.drift.desc(),
            metrics.reconciles.repaired.desc(),
            metrics.reconciles.differing.desc(),
            metrics.reconciles.verified.desc(),
            metrics.invariants.evaluations.desc(),
            metrics.invariants.violations.desc(),
            metrics.invariants.in_doubt.desc(),
            metrics.invariants.undecided.desc(),
            metrics.invariants.verified.desc(),
            metrics.sink_errors.desc(),
            metrics.sink_up.desc(),
            metrics.latency.desc(),
            metrics.duplicates.desc(),
            metrics.dedupe_keys.desc(),
            metrics.dedupe_held.desc(),
            metrics.dedupe_bytes.desc(),
            metrics.stitch_transactions.desc(),
            metrics.stitch_hold.desc(),
            metrics.stitch_decided.desc(),
            metrics.stitch_skew.desc(),
            metrics.stitch_passed.desc(),
            metrics.stitch_waiting.desc(),
            metrics.stitch_file.desc(),
            metrics.resolver.actions.desc(),
            metrics.resolver.branches.desc(),
            metrics.resolver.looks.desc(),
            metrics.transform_errors.desc(),
            metrics.dead_letters.desc(),
            metrics.dead_letters_kept.desc(),
            lease.held.desc(),
            lease.token.desc(),
            lease.left.desc(),
            lease.attempts.desc(),
            lease.waited.desc(),
            lease.lost.desc(),
            metrics.memory_budget.desc(),
            metrics.memory_used.desc(),
        ]
        .into_iter()
        .flatten()
        .map(|description| description.fq_name.clone())
        .collect();
        registered.push(names::BUILD_INFO.name.to_owned());
        registered.sort();
        let mut documented: Vec<String> = names::ALL
            .iter()
            .map(|metric| metric.name.to_owned())
            .collect();
        documented.sort();
        assert_eq!(registered, documented);
    }
}

//! What a pipeline exports as traces, where the process exports any: see [`lockstep_core::trace`].
//!
//! A trace is a batch on its way: `batch` from the source to the last sink that has made it durable, and below it a `write` for each
//! sink and attempt. What else there is to see (`confirm`, `compare`, `resolve`, `take over`) are traces of their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_core::batch::{Batch, Phase};
use lockstep_core::durable::Delivered;
use lockstep_core::position::Lsn;
use lockstep_core::token::Token;
use lockstep_core::trace::{TARGET, Traced, count};
use lockstep_reconciler::{SinkReport, State, TableReport};
use lockstep_transactions::resolve::Decision;
use tracing::field::{Empty, display};
use tracing::{Span, info_span};

/// A batch that begins its way; none without changes.
pub(super) fn batch(pipeline: &str, batch: &Batch) -> Span {
    if batch.changes().is_empty() {
        return Span::none();
    }
    let span = info_span!(
        target: TARGET, parent: None, "batch",
        pipeline, source = &*batch.source.name, phase = phase(batch.phase), changes = count(batch.changes().len()),
        first = Empty, last = Empty,
    );
    record_positions(&span, batch);
    span
}

/// The way of a batch into a sink, from the call to the receipt. `attempt` counts from 1.
pub(super) fn write(
    within: &Span,
    pipeline: &str,
    sink: &str,
    batch: &Batch,
    attempt: u32,
) -> Traced {
    let span = info_span!(
        target: TARGET, parent: within, "write", otel.kind = "client",
        pipeline, sink, source = &*batch.source.name, phase = phase(batch.phase), changes = count(batch.changes().len()),
        first = Empty, last = Empty, attempt = count(attempt),
        written = Empty, stale = Empty, outcome = Empty, error = Empty, otel.status_code = Empty,
    );
    record_positions(&span, batch);
    Traced::new(span)
}

/// The sink has made a batch durable.
pub(super) fn written(write: Traced, delivered: &Delivered) {
    if !write.span().is_disabled() {
        write.span().record("written", count(delivered.written));
        write.span().record("stale", count(delivered.stale));
    }
    write.ended("durable");
}

/// Rows of a copy have no positions of their own.
fn record_positions(span: &Span, batch: &Batch) {
    if span.is_disabled() || batch.phase != Phase::Stream {
        return;
    }
    if let [first, .., last] | [first @ last] = batch.changes() {
        span.record("first", display(batch.position(first)));
        span.record("last", display(batch.position(last)));
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Snapshot => "snapshot",
        Phase::Stream => "stream",
        Phase::Replay => "replay",
        Phase::Check => "check",
    }
}

/// That a position of a source is confirmed: from where it is known to be durable to where the source knows it too.
pub(super) fn confirm(pipeline: &str, source: &str, through: Lsn) -> Traced {
    Traced::new(info_span!(
        target: TARGET, parent: None, "confirm",
        pipeline, source, through = %through, outcome = Empty, error = Empty, otel.status_code = Empty,
    ))
}

/// A comparison of a table with the sinks that it reaches.
pub(super) struct Comparison {
    table: Traced,
    sinks: BTreeMap<Arc<str>, Traced>,
}

impl Comparison {
    /// It begins.
    pub fn new(pipeline: &str, source: &str, table: &str, sinks: Vec<Arc<str>>) -> Self {
        let of_table = info_span!(
            target: TARGET, parent: None, "compare",
            pipeline, source, table, rows = Empty, undecided = Empty,
            outcome = Empty, error = Empty, otel.status_code = Empty,
        );
        let of_sink = |sink: Arc<str>| {
            let span = info_span!(
                target: TARGET, parent: &of_table, "compare sink", otel.kind = "client",
                pipeline, source, table, sink = &*sink, rows = Empty, missing = Empty, different = Empty,
                stale = Empty, extra = Empty, repaired = Empty,
                outcome = Empty, error = Empty, otel.status_code = Empty,
            );
            (sink, Traced::new(span))
        };
        Comparison {
            sinks: sinks.into_iter().map(of_sink).collect(),
            table: Traced::new(of_table),
        }
    }

    /// It has come to its end, whatever it found.
    pub fn ended(self, report: &TableReport) {
        for (sink, trace) in self.sinks {
            match report.sinks.get(&*sink) {
                Some(found) => ended_with(trace, found),
                None => trace.ended("not compared"),
            }
        }
        let span = self.table.span();
        span.record("rows", count(report.rows));
        span.record("undecided", count(report.undecided));
        let is_failed = report.state == State::Failed;
        if is_failed {
            span.record("otel.status_code", "ERROR");
        }
        self.table.ended(match (is_failed, report.is_partial()) {
            (true, _) => "failed",
            (false, true) => "partial",
            (false, false) => "done",
        });
    }
}

fn ended_with(trace: Traced, found: &SinkReport) {
    let span = trace.span();
    span.record("rows", count(found.compared));
    span.record("missing", count(found.missing));
    span.record("different", count(found.different));
    span.record("stale", count(found.stale));
    span.record("extra", count(found.extra));
    span.record("repaired", count(found.repaired));
    if found.problem.is_some() {
        span.record("otel.status_code", "ERROR");
    }
    trace.ended(match found {
        _ if found.problem.is_some() => "failed",
        _ if found.unreadable => "not compared",
        _ if found.differing() > 0 => "differs",
        _ => "equal",
    });
}

/// A branch that a coordinator has left behind is ended; `action` is what is done to it.
pub(super) fn resolve(pipeline: &str, decision: &Decision, action: &str) -> Traced {
    let doubt = &decision.doubt;
    Traced::new(info_span!(
        target: TARGET, parent: None, "resolve", otel.kind = "client",
        pipeline, source = &*doubt.source, gid = doubt.in_doubt.gid, rule = decision.judged.rule.as_str(), action,
        outcome = Empty, error = Empty, otel.status_code = Empty,
    ))
}

/// The pipeline is taken over by the right of a lease: from its acquisition to where everything runs.
pub(super) fn take_over(pipeline: &str, token: Token) -> Traced {
    Traced::new(info_span!(
        target: TARGET, parent: None, "take over",
        pipeline, token = count(token.0), outcome = Empty, error = Empty, otel.status_code = Empty,
    ))
}

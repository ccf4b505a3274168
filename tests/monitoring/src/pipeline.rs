//! One pipeline in depth.

use lockstep_core::metrics as names;
use lockstep_core::metrics::Metric;

use crate::model::Kind::{Lines, Stat, States};
use crate::model::{Dashboard, Panel, Row, Variable, average, hour, quantile, rate, series};
use crate::overview;
use crate::rules::Rules;

const ALL: &str = r#"job=~"$job", pipeline=~"$pipeline", instance=~"$instance""#;
/// Of standbys as well, which tell of nothing but their lease.
const ANY: &str = r#"job=~"$job", pipeline=~"$pipeline""#;

/// The dashboard.
#[must_use]
pub fn dashboard(rules: &Rules) -> Dashboard {
    let mut variables = overview::variables();
    // One pipeline at a time.
    variables[1].is_many = false;
    let memory = series(names::MEMORY_BUDGET_BYTES, ANY);
    variables.push(Variable {
        name: "instance",
        query: format!("label_values({memory}, instance)"),
        is_many: true,
    });
    Dashboard {
        uid: "lockstep-pipeline",
        title: "lockstep / Pipeline",
        description: "One pipeline from its sources to its sinks, and the process that runs it.",
        variables,
        rows: vec![
            sources(rules),
            log(rules),
            copy(),
            transforms(),
            sinks(rules),
            refused(),
            process(),
        ],
    }
}

/// Series over several processes that took turns, as one.
fn by(label: &str, metric: Metric) -> String {
    format!("max by ({label}) ({})", series(metric, ALL))
}

fn sources(rules: &Rules) -> Row {
    Row {
        title: "Sources",
        panels: vec![
            Panel::new(States, "Streaming", "short", "Whether the source streams or copies (1), or is opened again (0). Good: 1 all the time.")
                .query("{{source}}", by("source", names::SOURCE_CONNECTED))
                .bad_below(1.0),
            Panel::new(Stat, "Tables without changes", "short", "How many tables are asked for whose changes do not come. Good: 0.")
                .query("{{source}}", by("source", names::SOURCE_GAPS))
                .bad_from(1.0)
                .wide(4),
            Panel::new(Lines, "Log that is not confirmed", "bytes", "Bytes of the log that are not durable in every sink. Good: below the line, and it goes up and down. One that only grows is a stall.")
                .query("{{source}}", by("source", names::SOURCE_LAG_BYTES))
                .bad_from(rules.threshold("LockstepSourceLag"))
                .wide(12),
            Panel::new(Lines, "Changes by operation", "cps", "Changes a second. `read` are rows of a copy.")
                .query("{{source}} {{op}}", format!("sum by (source, op) ({})", rate(names::CHANGES, ALL))),
            Panel::new(Lines, "Changes by table", "cps", "The ten busiest tables.")
                .query("{{source}} {{table}}", format!("topk(10, sum by (source, table) ({}))", rate(names::CHANGES, ALL))),
            Panel::new(Lines, "Transactions", "cps", "Transactions a second. Changes by transactions is how large they are.")
                .query("{{source}}", format!("sum by (source) ({})", rate(names::TRANSACTIONS, ALL))),
        ],
    }
}

fn log(rules: &Rules) -> Row {
    Row {
        title: "Log",
        panels: vec![
            Panel::new(Lines, "Log that the slot keeps", "bytes", "What lies on the server's disk because of the slot. Good: below the line. It falls in steps, at checkpoints.")
                .query("{{source}}", by("source", names::SLOT_RETAINED_BYTES))
                .bad_from(rules.threshold("LockstepSlotRetention")),
            Panel::new(Lines, "Part of it that is left", "percentunit", "How much of max_slot_wal_keep_size the slot has not used yet. Good: above the line. Empty where the server sets no limit: set one.")
                .query(
                    "{{source}}",
                    format!(
                        "min by (source) ({safe} / ({safe} + {kept}))",
                        safe = series(names::SLOT_SAFE_BYTES, ALL),
                        kept = series(names::SLOT_RETAINED_BYTES, ALL)
                    ),
                )
                .bad_below(rules.threshold("LockstepSlotNearlyLost"))
                .may_be_empty(),
            Panel::new(Lines, "Bytes of changes", "Bps", "Bytes of changes that come in a second.")
                .query("{{source}}", format!("sum by (source) ({})", rate(names::SOURCE_RECEIVED_BYTES, ALL))),
            Panel::new(Lines, "Transactions in progress", "short", "Transactions that have come in part: large ones, and with two_phase those that are prepared. Good: it falls to 0 now and then.")
                .query("{{source}}", by("source", names::SOURCE_IN_PROGRESS)),
            Panel::new(Lines, "Bytes of them", "bytes", "What is kept of them, mostly on disk under [state].")
                .query("{{source}}", by("source", names::SOURCE_IN_PROGRESS_BYTES)),
            Panel::new(States, "Receives them", "short", "Whether transactions in progress are received (1) or not any more (0); the log says why it stopped. Empty with streaming = \"off\".")
                .query("{{source}}", by("source", names::SOURCE_RECEIVES_IN_PROGRESS))
                .bad_below(1.0)
                .may_be_empty(),
        ],
    }
}

fn copy() -> Row {
    Row {
        title: "Initial copy",
        panels: vec![
            Panel::new(Lines, "Rows that are read", "cps", "Rows of the initial copy, a second. Good: steady until it is done; nothing from then on.")
                .query("{{source}}", format!("sum by (source) ({})", rate(names::SNAPSHOT_ROWS, ALL)))
                .query("{{source}}, as told", by("source", names::SNAPSHOT_ROWS_PER_SECOND)),
            Panel::new(Lines, "Part that is read", "percentunit", "Rows read by rows expected, by table. Only of tables that were analysed and are being copied.")
                .query(
                    "{{source}} {{table}}",
                    format!(
                        "max by (source, table) ({} / {})",
                        series(names::SNAPSHOT_ROWS, ALL),
                        series(names::SNAPSHOT_ESTIMATED_ROWS, ALL)
                    ),
                )
                .may_be_empty(),
            Panel::new(Lines, "Time left", "s", "How long until the copy has been read. Only while one is, of tables that were analysed.")
                .query("{{source}}", by("source", names::SNAPSHOT_REMAINING_SECONDS))
                .may_be_empty(),
        ],
    }
}

fn transforms() -> Row {
    Row {
        title: "Transforms",
        panels: vec![
            Panel::new(Lines, "Repeated changes", "cps", "Changes a second that repeated an idempotency key. Good: few; a jump is a client that sends again. Empty without dedupe, as the next.")
                .query("{{transform}}", format!("sum by (transform) ({})", rate(names::DUPLICATES, ALL))),
            Panel::new(Lines, "Keys that are remembered", "short", "Idempotency keys within the window, and rows that are held back because they repeat one.")
                .query("{{transform}} keys", by("transform", names::DEDUPE_KEYS))
                .query("{{transform}} held rows", by("transform", names::DEDUPE_HELD_ROWS)),
            Panel::new(Lines, "Memory of keys", "bytes", "What they take, on disk or in Redis. Good: level, once the window has passed.")
                .query("{{transform}}", by("transform", names::DEDUPE_STORE_BYTES)),
            Panel::new(Lines, "Transactions that wait in a stitch", "short", "Transactions that have committed, and wait for branches of their own or of others. Good: a few, for a moment. Empty without a stitch, as the next.")
                .query("{{stitch}}", by("stitch", names::STITCH_WAITING)),
            Panel::new(Lines, "Wait of a branch", "s", "How long a branch waits until it goes on with the others, and how long it would if all went on when their branches are known. Good: milliseconds.")
                .query("{{stitch}} p50", quantile(0.5, names::STITCH_HOLD, ALL, "stitch"))
                .query("{{stitch}} p99", quantile(0.99, names::STITCH_HOLD, ALL, "stitch"))
                .query("{{stitch}} decided p99", quantile(0.99, names::STITCH_DECIDED, ALL, "stitch")),
            Panel::new(Lines, "Waits in a file", "bytes", "What waits and does not fit into memory. Good: 0.")
                .query("{{stitch}}", by("stitch", names::STITCH_FILE_BYTES)),
        ],
    }
}

fn sinks(rules: &Rules) -> Row {
    let latency = |of| quantile(of, names::END_TO_END_LATENCY, ALL, "sink");
    Row {
        title: "Sinks",
        panels: vec![
            Panel::new(States, "Open", "short", "Whether the sink is open (1) or waits (0). Good: 1 all the time.")
                .query("{{sink}}", by("sink", names::SINK_UP))
                .bad_below(1.0),
            Panel::new(Lines, "Lag", "s", "The oldest change that the sink has not made durable. Good: below the line, and back to 0.")
                .query("{{sink}}", by("sink", names::SINK_LAG_SECONDS))
                .bad_from(rules.threshold("LockstepSinkLag")),
            Panel::new(Lines, "From commit to durable", "s", "From the commit in PostgreSQL to durable in the sink. Good: milliseconds, and the 99th percentile near the median.")
                .query("{{sink}} p50", latency(0.5))
                .query("{{sink}} p95", latency(0.95))
                .query("{{sink}} p99", latency(0.99)),
            Panel::new(Lines, "Records", "cps", "Records a second: written, stale (the sink held the same or a newer one, which is no loss), incomplete (a large value was missing: load the row again). Good: no incomplete ones, and stale ones only after a restart.")
                .query("{{sink}} {{outcome}}", format!("sum by (sink, outcome) ({})", rate(names::SINK_RECORDS, ALL))),
            Panel::new(Lines, "Bytes", "Bps", "Payload bytes a second.")
                .query("{{sink}}", format!("sum by (sink) ({})", rate(names::SINK_BYTES, ALL))),
            Panel::new(Lines, "Batches that wait", "short", "How many batches wait for the sink. Good: few. Many at one sink, and none at the others: it is what all wait for.")
                .query("{{sink}}", by("sink", names::SINK_IN_FLIGHT)),
        ],
    }
}

fn refused() -> Row {
    Row {
        title: "What did not go well",
        panels: vec![
            Panel::new(Lines, "Errors within an hour", "short", "How often a sink or a transform has failed and was tried again, by code; `lockstep explain CODE` says what one means. Good: none.")
                .query("{{sink}} {{code}}", format!("sum by (sink, code) ({})", hour(names::SINK_ERRORS, ALL)))
                .query("{{transform}} {{code}}", format!("sum by (transform, code) ({})", hour(names::TRANSFORM_ERRORS, ALL)))
                .may_be_empty(),
            Panel::new(Lines, "Refused and set back within an hour", "short", "How often a sink refused this process because a newer one writes there, and how often it had lost what it had confirmed. Good: 0.")
                .query("{{sink}} fenced", format!("sum by (sink) ({})", hour(names::SINK_FENCED, ALL)))
                .query("{{sink}} set back", format!("sum by (sink) ({})", hour(names::SINK_SETBACKS, ALL)))
                .bad_from(1.0),
            Panel::new(Lines, "Rows put aside", "short", "Dead letters that lie there now. Good: 0.")
                .query("{{place}}", by("place", names::DEAD_LETTERS_KEPT))
                .bad_from(1.0),
            Panel::new(Lines, "Rows put aside within an hour", "short", "By reason; docs/dead-letters.md has the remedy of each. Good: none.")
                .query("{{place}} {{reason}}", format!("sum by (place, reason) ({})", hour(names::DEAD_LETTERS, ALL)))
                .may_be_empty(),
        ],
    }
}

fn process() -> Row {
    let process = |name: &str| format!("max by (instance) ({name}{{{ALL}}})");
    Row {
        title: "Process",
        panels: vec![
            Panel::new(Lines, "Memory of batches", "bytes", "What batches hold, of what they may hold. Good: far below. At the budget sources wait, because some sink is slow.")
                .query("{{instance}} used", by("instance", names::MEMORY_USED_BYTES))
                .query("{{instance}} budget", by("instance", names::MEMORY_BUDGET_BYTES)),
            Panel::new(Lines, "Resident memory", "bytes", "Of the process. Good: level.")
                .query("{{instance}}", process("process_resident_memory_bytes")),
            Panel::new(Lines, "CPU", "short", "Processors in use.")
                .query("{{instance}}", format!("sum by (instance) (rate(process_cpu_seconds_total{{{ALL}}}[$__rate_interval]))")),
            Panel::new(Lines, "Lease", "s", "How long the lease would last if it were not renewed any more. Good: between two thirds of its time and all of it. Empty without a lease, as the next.")
                .query("{{instance}}", format!("max by (instance) ({})", series(names::LEASE_LEFT, ANY))),
            Panel::new(Lines, "Number of the lease", "none", "Each step is a takeover. Good: only when you restart something.")
                .query("token", format!("max({})", series(names::LEASE_TOKEN, ANY))),
            Panel::new(Lines, "From PREPARE to durable", "s", "On average: how long a branch was prepared, and how long from its COMMIT PREPARED to durable. Empty where nothing is prepared.")
                .query("{{source}} prepared", average(names::TWO_PHASE_PREPARED, ALL, "source"))
                .query("{{sink}} visible", average(names::TWO_PHASE_VISIBLE, ALL, "sink")),
        ],
    }
}

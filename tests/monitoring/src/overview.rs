//! All pipelines at a glance.

use lockstep_core::metrics as names;

use crate::model::Kind::{Lines, Stat, States, Table};
use crate::model::{Dashboard, Panel, Row, Variable, quantile, rate, series};
use crate::rules::Rules;

const ALL: &str = r#"job=~"$job", pipeline=~"$pipeline""#;

/// Which pipelines may be chosen.
pub(crate) fn variables() -> Vec<Variable> {
    let build = names::BUILD_INFO.name;
    vec![
        Variable {
            name: "job",
            query: format!("label_values({build}, job)"),
            is_many: true,
        },
        Variable {
            name: "pipeline",
            query: format!(r#"label_values({build}{{job=~"$job"}}, pipeline)"#),
            is_many: true,
        },
    ]
}

/// The dashboard.
#[must_use]
pub fn dashboard(rules: &Rules) -> Dashboard {
    Dashboard {
        uid: "lockstep-overview",
        title: "lockstep / Overview",
        description: "All pipelines: do they run, are they behind, is what they copy right?",
        variables: variables(),
        rows: vec![now(rules), each(), flow(), behind(rules), who_runs()],
    }
}

/// A number that should be 0, of series that may not be there.
fn none(title: &'static str, unit: &'static str, description: &str, expr: &str) -> Panel {
    Panel::new(Stat, title, unit, description)
        .query("", format!("{expr} or vector(0)"))
        .bad_from(1.0)
}

fn now(rules: &Rules) -> Row {
    let lag = rules.threshold("LockstepSinkLag");
    let kept = rules.threshold("LockstepSlotRetention");
    let max = |metric| format!("max({})", series(metric, ALL));
    let sum = |metric| format!("sum({})", series(metric, ALL));
    let zeros = |metric| format!("count({} == 0)", series(metric, ALL));
    let runs = format!(
        "count(group by (job, pipeline) ({}))",
        series(names::BUILD_INFO, ALL)
    );
    Row {
        title: "Now",
        panels: vec![
            Panel::new(Stat, "Pipelines that run", "short", "How many pipelines some process runs. Good: as many as you have.")
                .query("", runs),
            none("Sources not streaming", "short", "Good: 0. Behind each other number is an alert LockstepSourceDown.", &zeros(names::SOURCE_CONNECTED)),
            none("Sinks not open", "short", "Good: 0. Behind each other number is an alert LockstepSinkDown.", &zeros(names::SINK_UP)),
            Panel::new(Stat, "Greatest lag of a sink", "s", "How old the oldest change is that some sink has not made durable. Good: well below a second under load, 0 when idle; while it drains a backlog it falls.")
                .query("", max(names::SINK_LAG_SECONDS))
                .bad_from(lag),
            Panel::new(Stat, "Most log kept", "bytes", "How much log a slot keeps on its server's disk. Good: a few segments of 16 MiB more than what is being written.")
                .query("", max(names::SLOT_RETAINED_BYTES))
                .bad_from(kept),
            none("Rows that differ", "short", "How many rows the last comparisons have proven to differ. Good: 0.", &sum(names::RECONCILE_DIFFERING)),
            none("Violating keys", "short", "Keys that violate an invariant. Good: 0. Each is proven.", &sum(names::INVARIANT_VIOLATIONS)),
            none("Rows put aside", "short", "How many dead letters lie there now. Good: 0.", &sum(names::DEAD_LETTERS_KEPT)),
        ],
    }
}

fn each() -> Row {
    let by = |of: String| format!("max by (pipeline) ({of})");
    let sum = |of: String| format!("sum by (pipeline) ({of})");
    Row {
        title: "Each pipeline",
        panels: vec![
            Panel::new(Table, "Pipelines", "short", "One row for each pipeline that runs. Good: the columns behind the second are 0 or small.")
                .query("Changes a second", sum(rate(names::CHANGES, ALL)))
                .query("Sinks' lag, s", by(series(names::SINK_LAG_SECONDS, ALL)))
                .query("Log behind, bytes", by(series(names::SOURCE_LAG_BYTES, ALL)))
                .query("Log kept, bytes", by(series(names::SLOT_RETAINED_BYTES, ALL)))
                .query("Rows that differ", sum(series(names::RECONCILE_DIFFERING, ALL)))
                .query("Rows put aside", sum(series(names::DEAD_LETTERS_KEPT, ALL)))
                .wide(16),
            Panel::new(Table, "Alerts that fire", "short", "Good: none. Each has a page under docs/runbooks, by its name.")
                .query(
                    "Series",
                    format!("count by (alertname, severity, pipeline) (ALERTS{{alertname=~\"Lockstep.*\", alertstate=\"firing\", {ALL}}})"),
                )
                .may_be_empty(),
        ],
    }
}

fn flow() -> Row {
    let by = |of: String| format!("sum by (pipeline) ({of})");
    let latency = |of| quantile(of, names::END_TO_END_LATENCY, ALL, "pipeline");
    Row {
        title: "Flow",
        panels: vec![
            Panel::new(Lines, "Changes that come in", "cps", "Changes a second, of all sources. Good: it looks like your business.")
                .query("{{pipeline}}", by(rate(names::CHANGES, ALL))),
            Panel::new(Lines, "Records that are written", "cps", "Records a second that sinks have made durable or have proven to hold already. Good: it follows what comes in, times the sinks.")
                .query("{{pipeline}}", by(rate(names::SINK_RECORDS, ALL))),
            Panel::new(Lines, "From commit to durable", "s", "From the commit in PostgreSQL to durable in the sink, over all sinks. Good: milliseconds, and the 99th percentile near the median.")
                .query("{{pipeline}} p50", latency(0.5))
                .query("{{pipeline}} p99", latency(0.99)),
        ],
    }
}

fn behind(rules: &Rules) -> Row {
    Row {
        title: "Behind",
        panels: vec![
            Panel::new(Lines, "Lag of sinks", "s", "The oldest change that the sink has not made durable. Good: below the line, and back to 0.")
                .query("{{pipeline}} {{sink}}", format!("max by (pipeline, sink) ({})", series(names::SINK_LAG_SECONDS, ALL)))
                .bad_from(rules.threshold("LockstepSinkLag")),
            Panel::new(Lines, "Log that is not confirmed", "bytes", "Bytes of a source's log that are not durable in every sink. Good: below the line, and it goes up and down.")
                .query("{{pipeline}} {{source}}", format!("max by (pipeline, source) ({})", series(names::SOURCE_LAG_BYTES, ALL)))
                .bad_from(rules.threshold("LockstepSourceLag")),
            Panel::new(Lines, "Log that slots keep", "bytes", "What lies on the servers' disks because of a slot. Good: below the line. It falls in steps, at checkpoints.")
                .query("{{pipeline}} {{source}}", format!("max by (pipeline, source) ({})", series(names::SLOT_RETAINED_BYTES, ALL)))
                .bad_from(rules.threshold("LockstepSlotRetention")),
        ],
    }
}

fn who_runs() -> Row {
    Row {
        title: "Who runs them",
        panels: vec![
            Panel::new(States, "Holders of leases", "short", "Who holds the lease of its pipeline (1), and who stands by (0). Good: one holder at a time. Empty where no pipeline has a lease.")
                .query("{{pipeline}} {{instance}}", format!("max by (pipeline, instance) ({})", series(names::LEASE_HELD, ALL)))
                .idle_below(1.0)
                .wide(16)
                .may_be_empty(),
            Panel::new(Table, "Versions", "short", "Which version each process runs. Good: one.")
                .query("Processes", format!("count by (pipeline, instance, version) ({})", series(names::BUILD_INFO, ALL))),
        ],
    }
}

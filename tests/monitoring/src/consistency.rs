//! Is what arrives the same as what was sent, and do the sources agree?

use lockstep_core::metrics as names;

use crate::model::Kind::{Lines, Stat, States, Table};
use crate::model::{Dashboard, Panel, Row, average, hour, quantile, rate, series};
use crate::overview;
use crate::rules::Rules;

const ALL: &str = r#"job=~"$job", pipeline=~"$pipeline""#;

/// The dashboard.
#[must_use]
pub fn dashboard(rules: &Rules) -> Dashboard {
    Dashboard {
        uid: "lockstep-consistency",
        title: "lockstep / Consistency",
        description: "Are the copies equal to their sources, do the invariants hold, do transactions of several databases end as one, and is there one writer?",
        variables: overview::variables(),
        rows: vec![
            copies(rules),
            invariants(rules),
            in_doubt(rules),
            two_phase(),
            one_writer(),
        ],
    }
}

fn copies(rules: &Rules) -> Row {
    let age = format!(
        "time() - min by (pipeline, source, table, sink) ({})",
        series(names::RECONCILE_VERIFIED, ALL)
    );
    Row {
        title: "Copies",
        panels: vec![
            Panel::new(Stat, "Rows that differ", "short", "How many rows the last comparisons have left that differ. Good: 0.")
                .query("", format!("sum({})", series(names::RECONCILE_DIFFERING, ALL)))
                .bad_from(1.0)
                .wide(4),
            Panel::new(Stat, "Oldest proof", "s", "How long ago the comparison began that last found all rows equal, of the table and sink for which that is longest ago. Good: twice `every` of [reconcile] at most.")
                .query("", format!("max({age})"))
                .bad_from(rules.threshold("LockstepNotVerified"))
                .wide(4),
            Panel::new(Table, "Tables and sinks", "short", "Good: no rows that differ, and a proof that is not old.")
                .query("Rows that differ", format!("sum by (pipeline, source, table, sink) ({})", series(names::RECONCILE_DIFFERING, ALL)))
                .query("Age of the proof, s", age)
                .wide(16),
            Panel::new(Lines, "Rows that are compared", "cps", "Rows a second. Good: it follows `every` of [reconcile].")
                .query("{{sink}}", format!("sum by (sink) ({})", rate(names::RECONCILE_COMPARED, ALL))),
            Panel::new(Lines, "Rows found to differ within an hour", "short", "By sink and kind: missing, different, stale, extra. Good: 0; a stale row has lost a change.")
                .query("{{sink}} {{drift}}", format!("sum by (sink, drift) ({})", hour(names::RECONCILE_DRIFT, ALL)))
                .bad_from(1.0),
            Panel::new(Lines, "Rows mended within an hour", "short", "With `repair = true`, or by `lockstep reconcile --repair`. Good: 0; what is mended by itself has a cause, too.")
                .query("{{sink}}", format!("sum by (sink) ({})", hour(names::RECONCILE_REPAIRED, ALL))),
        ],
    }
}

fn invariants(rules: &Rules) -> Row {
    let by = |metric| format!("sum by (pipeline, invariant) ({})", series(metric, ALL));
    Row {
        title: "Invariants",
        panels: vec![
            Panel::new(Lines, "Keys that violate", "short", "Keys that are proven to violate the invariant. Good: 0. Empty where none is declared, as the rest of the row.")
                .query("{{invariant}}", by(names::INVARIANT_VIOLATIONS))
                .bad_from(1.0),
            Panel::new(Lines, "Keys of which it is not known", "short", "Keys that do not hold while a prepared transaction is open (in doubt), or that were changing when they were looked at. Good: it falls to 0 now and then.")
                .query("{{invariant}} in doubt", by(names::INVARIANT_IN_DOUBT))
                .query("{{invariant}} undecided", by(names::INVARIANT_UNDECIDED)),
            Panel::new(Lines, "Age of the proof", "s", "How long ago the evaluation began that last found the invariant to hold. Good: below the line; about `every`.")
                .query("{{invariant}}", format!("time() - min by (pipeline, invariant) ({})", series(names::INVARIANT_VERIFIED, ALL)))
                .bad_from(rules.threshold("LockstepInvariantNotVerified")),
            Panel::new(Lines, "Evaluations within an hour", "short", "By how they ended. Good: they hold; `undecided` now and then, under load.")
                .query("{{invariant}} {{outcome}}", format!("sum by (invariant, outcome) ({})", hour(names::INVARIANT_EVALUATIONS, ALL)))
                .wide(24),
        ],
    }
}

fn in_doubt(rules: &Rules) -> Row {
    Row {
        title: "In doubt",
        panels: vec![
            Panel::new(Lines, "Transactions in doubt", "short", "Prepared, and neither committed nor rolled back. Good: a few, and different ones. Empty without two_phase, as the rest of the row.")
                .query("{{pipeline}} {{source}}", format!("max by (pipeline, source) ({})", series(names::SOURCE_IN_DOUBT, ALL))),
            Panel::new(Lines, "Age of the oldest", "s", "How long the oldest of them has been prepared. Good: far below the line, or nothing.")
                .query("{{pipeline}} {{source}}", format!("time() - min by (pipeline, source) ({})", series(names::SOURCE_IN_DOUBT_SINCE, ALL)))
                .bad_from(rules.threshold("LockstepInDoubt"))
                .may_be_empty(),
            Panel::new(Lines, "Log that they keep", "bytes", "What the server has written since the first of them began, and cannot let go of. Good: below the line, or nothing.")
                .query("{{pipeline}} {{source}}", format!("max by (pipeline, source) ({})", series(names::SOURCE_IN_DOUBT_BYTES, ALL)))
                .bad_from(rules.threshold("LockstepInDoubtRetention"))
                .may_be_empty(),
            Panel::new(Table, "What is to become of them", "short", "What the last look of the resolver has found, by manager and rule. Good: nothing to commit or roll back.")
                .query("Branches", format!("sum by (pipeline, manager, rule, action) ({})", series(names::RESOLVER_BRANCHES, ALL)))
                .may_be_empty(),
            Panel::new(Lines, "Ended by the resolver within an hour", "short", "By manager, rule and outcome. Good: nothing, or `done`. `otherwise`: somebody else decided the opposite.")
                .query("{{manager}} {{rule}} {{action}} {{outcome}}", format!("sum by (manager, rule, action, outcome) ({})", hour(names::RESOLVER_ACTIONS, ALL)))
                .may_be_empty(),
            Panel::new(Lines, "Looks within an hour", "short", "How often the pipeline has looked at what is in doubt. Good: all complete.")
                .query("{{pipeline}} {{outcome}}", format!("sum by (pipeline, outcome) ({})", hour(names::RESOLVER_LOOKS, ALL))),
        ],
    }
}

fn two_phase() -> Row {
    let branches = rate(names::TWO_PHASE_BRANCHES, ALL);
    let committed = rate(
        names::TWO_PHASE_BRANCHES,
        &format!("{ALL}, outcome=\"committed\""),
    );
    Row {
        title: "Two-phase commits",
        panels: vec![
            Panel::new(Lines, "Branches that ended", "cps", "Branches a second, by who has prepared them and how they ended.")
                .query("{{manager}} {{outcome}}", format!("sum by (manager, outcome) ({branches})")),
            Panel::new(Lines, "Part that was committed", "percentunit", "A manager's success rate. Good: near 1.")
                .query("{{manager}}", format!("sum by (manager) ({committed}) / sum by (manager) ({branches})")),
            Panel::new(Lines, "Time prepared", "s", "From PREPARE to COMMIT PREPARED. Rows are locked for as long. Good: milliseconds.")
                .query("{{manager}} average", average(names::TWO_PHASE_PREPARED, ALL, "manager"))
                .query("{{manager}} p99", quantile(0.99, names::TWO_PHASE_PREPARED, ALL, "manager")),
            Panel::new(Lines, "From COMMIT PREPARED to durable", "s", "Good: milliseconds.")
                .query("{{manager}} average", average(names::TWO_PHASE_VISIBLE, ALL, "manager"))
                .query("{{manager}} p99", quantile(0.99, names::TWO_PHASE_VISIBLE, ALL, "manager")),
            Panel::new(Lines, "Transactions of several databases", "cps", "Transactions a second that went on, by how. Good: whole. `mixed`: committed here, rolled back there, by hand. `early`: before all branches had committed. `late`: prepared when another branch had committed. `cut`: too large to go on at once.")
                .query("{{stitch}} {{manager}} {{outcome}}", format!("sum by (stitch, manager, outcome) ({})", rate(names::STITCH_TRANSACTIONS, ALL))),
            Panel::new(Lines, "From the first commit to the last", "s", "How far the databases themselves are apart. Good: milliseconds.")
                .query("{{stitch}} p50", quantile(0.5, names::STITCH_SKEW, ALL, "stitch"))
                .query("{{stitch}} p99", quantile(0.99, names::STITCH_SKEW, ALL, "stitch")),
            Panel::new(Lines, "Transactions that passed by", "cps", "Transactions a second that went on before others that had waited for longer than `lag_max`. Good: 0.")
                .query("{{stitch}}", format!("sum by (stitch) ({})", rate(names::STITCH_PASSED, ALL))),
        ],
    }
}

fn one_writer() -> Row {
    let acquired = format!("{ALL}, outcome=\"acquired\"");
    let acquired = |by: &str| {
        format!(
            "sum by ({by}) ({})",
            series(names::LEASE_ATTEMPTS, &acquired)
        )
    };
    Row {
        title: "One writer",
        panels: vec![
            Panel::new(States, "Holders of leases", "short", "Who holds the lease of its pipeline (1), and who stands by (0). Good: one holder at a time. Empty without a lease, as the rest of the row.")
                .query("{{pipeline}} {{instance}}", format!("max by (pipeline, instance) ({})", series(names::LEASE_HELD, ALL)))
                .idle_below(1.0),
            Panel::new(Stat, "Acquisitions that succeed", "percentunit", "R = acquired / all attempts, since the processes were started. Standbys are refused as long as they wait.")
                .query("{{pipeline}}", format!("{} / sum by (pipeline) ({})", acquired("pipeline"), series(names::LEASE_ATTEMPTS, ALL)))
                .wide(4),
            Panel::new(Stat, "Average wait", "s", "How long an acquisition took.")
                .query("{{pipeline}}", format!("sum by (pipeline) ({}) / {}", series(names::LEASE_WAIT, ALL), acquired("pipeline")))
                .wide(4),
            Panel::new(Lines, "Lost and fenced within an hour", "short", "Leases that were lost while they were held, and writes that a sink refused because a newer process writes there. Good: 0.")
                .query("{{pipeline}} {{instance}} lost", format!("sum by (pipeline, instance) ({})", hour(names::LEASE_LOST, ALL)))
                .query("{{pipeline}} {{sink}} fenced", format!("sum by (pipeline, sink) ({})", hour(names::SINK_FENCED, ALL)))
                .bad_from(1.0),
        ],
    }
}

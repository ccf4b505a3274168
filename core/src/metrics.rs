//! Every metric's name, and the question it answers. The table of `docs/metrics.md` is made from this list.

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Name, in base units.
    pub name: &'static str,
    /// Label names.
    pub labels: &'static [&'static str],
    /// The question it answers.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $ident:ident = $name:literal [$($label:literal),*] $help:literal;)*) => {
        $($(#[$doc])* #[doc = $help] pub const $ident: Metric = Metric { name: $name, labels: &[$($label),*], help: $help };)*
        /// All of them, in the order of the documentation.
        pub const ALL: &[Metric] = &[$($ident),*];
    };
}

metrics! {
    SOURCE_LAG_BYTES = "lockstep_source_lag_bytes" ["source"] "How many bytes of the server's log are not yet confirmed by every sink?";
    SLOT_RETAINED_BYTES = "lockstep_slot_retained_bytes" ["source"] "How much log does the slot keep on the server's disk?";
    SLOT_SAFE_BYTES = "lockstep_slot_safe_bytes" ["source"] "How much more log may be written before the server gives the slot up?";
    SOURCE_IN_PROGRESS = "lockstep_source_in_progress_transactions" ["source"] "How many transactions have come in part and not ended yet?";
    SOURCE_IN_PROGRESS_BYTES = "lockstep_source_in_progress_bytes" ["source"] "How many bytes of them are kept, mostly on disk?";
    SOURCE_IN_DOUBT = "lockstep_source_in_doubt_transactions" ["source"] "How many transactions are prepared, and neither committed nor rolled back?";
    SOURCE_IN_DOUBT_SINCE = "lockstep_source_in_doubt_oldest_timestamp_seconds" ["source"] "When was the first of those in doubt prepared, if there is one?";
    SOURCE_IN_DOUBT_BYTES = "lockstep_source_in_doubt_retained_bytes" ["source"] "How much log has the server written since, which it cannot let go of?";
    TWO_PHASE_BRANCHES = "lockstep_two_phase_branches_total" ["source", "manager", "outcome"] "How many branches of two-phase commits have ended, and how?";
    TWO_PHASE_PREPARED = "lockstep_two_phase_prepared_seconds" ["source", "manager"] "How long was a branch prepared, until it was committed?";
    SOURCE_RECEIVES_IN_PROGRESS = "lockstep_source_receives_in_progress" ["source"] "Are transactions in progress received (1), or not any more (0)?";
    SOURCE_CONNECTED = "lockstep_source_connected" ["source"] "Is the source streaming (1) or not (0)?";
    SOURCE_GAPS = "lockstep_source_gaps" ["source"] "How many tables are asked for, and their changes do not come?";
    SOURCE_RECEIVED_BYTES = "lockstep_source_received_bytes_total" ["source"] "How many bytes of changes came in?";
    CHANGES = "lockstep_changes_total" ["source", "table", "op"] "How many changes came in, by table and operation?";
    TRANSACTIONS = "lockstep_transactions_total" ["source"] "How many transactions came in?";
    SNAPSHOT_ROWS = "lockstep_snapshot_rows_total" ["source", "table"] "How many rows of the initial copy were read?";
    SNAPSHOT_ESTIMATED_ROWS = "lockstep_snapshot_estimated_rows" ["source", "table"] "How many rows does the initial copy expect?";
    SNAPSHOT_ROWS_PER_SECOND = "lockstep_snapshot_rows_per_second" ["source"] "How many rows of the initial copy are read per second?";
    SNAPSHOT_REMAINING_SECONDS = "lockstep_snapshot_remaining_seconds" ["source"] "How long until the initial copy has been read?";
    SINK_LAG_SECONDS = "lockstep_sink_lag_seconds" ["sink"] "How old is the oldest change that this sink has not made durable?";
    SINK_RECORDS = "lockstep_sink_records_total" ["sink", "outcome"] "How many records did the sink write, and how many were older than what it held?";
    SINK_BYTES = "lockstep_sink_bytes_total" ["sink"] "How many payload bytes did the sink write?";
    SINK_IN_FLIGHT = "lockstep_sink_in_flight_batches" ["sink"] "How many batches wait for this sink?";
    SINK_SETBACKS = "lockstep_sink_setbacks_total" ["sink"] "How often had the sink lost something that it had confirmed?";
    SINK_FENCED = "lockstep_sink_fenced_total" ["sink"] "How often did the sink refuse this process, because a newer one writes there?";
    SINK_ERRORS = "lockstep_sink_errors_total" ["sink", "code"] "How often did the sink fail and start over, by error code?";
    SINK_UP = "lockstep_sink_up" ["sink"] "Is the sink open (1) or waiting (0)?";
    END_TO_END_LATENCY = "lockstep_end_to_end_latency_seconds" ["sink"] "How long from commit in PostgreSQL to durable in the sink?";
    TWO_PHASE_VISIBLE = "lockstep_two_phase_visible_seconds" ["sink", "manager"] "How long from a branch's COMMIT PREPARED to durable in the sink?";
    DUPLICATES = "lockstep_duplicates_total" ["transform"] "How many changes repeated an idempotency key?";
    DEDUPE_KEYS = "lockstep_dedupe_keys" ["transform"] "How many idempotency keys are remembered?";
    DEDUPE_HELD_ROWS = "lockstep_dedupe_held_rows" ["transform"] "How many rows that repeat a key are held back?";
    DEDUPE_STORE_BYTES = "lockstep_dedupe_store_bytes" ["transform"] "How many bytes does the memory of keys take, on disk or in Redis?";
    STITCH_TRANSACTIONS = "lockstep_stitch_transactions_total" ["stitch", "manager", "outcome"] "How many transactions of several databases went on, and were all branches with them?";
    STITCH_HOLD = "lockstep_stitch_hold_seconds" ["stitch"] "How long does a branch wait, from its commit's arrival, until it goes on with the others?";
    STITCH_DECIDED = "lockstep_stitch_decided_seconds" ["stitch"] "How long would a branch wait, from its commit's arrival, if all transactions went on when their branches are known?";
    STITCH_PASSED = "lockstep_stitch_passed_total" ["stitch"] "How many transactions have passed by others that had waited for longer than `lag_max`?";
    STITCH_SKEW = "lockstep_stitch_skew_seconds" ["stitch"] "How long from the first branch's commit to the last one's?";
    STITCH_WAITING = "lockstep_stitch_waiting_transactions" ["stitch"] "How many transactions have committed, and wait for branches of their own or of others?";
    STITCH_FILE_BYTES = "lockstep_stitch_file_bytes" ["stitch"] "How many bytes of what waits are kept in a file?";
    RESOLVER_ACTIONS = "lockstep_resolver_actions_total" ["manager", "rule", "action", "outcome"] "How many branches were to be ended by the resolver, by which rule, and what came of it?";
    RESOLVER_BRANCHES = "lockstep_resolver_branches" ["manager", "rule", "action"] "How many branches are in doubt, and what is to become of them?";
    RESOLVER_LOOKS = "lockstep_resolver_looks_total" ["outcome"] "How often did the pipeline look at what is in doubt, and could it ask everybody?";
    TRANSFORM_ERRORS = "lockstep_transform_errors_total" ["transform", "code"] "How often did the transform fail and try again, by error code?";
    DEAD_LETTERS = "lockstep_dead_letters_total" ["place", "reason"] "How many rows were put aside, and why?";
    DEAD_LETTERS_KEPT = "lockstep_dead_letters" ["place"] "How many rows lie aside now?";
    RECONCILE_COMPARED = "lockstep_reconcile_compared_total" ["source", "table", "sink"] "How many rows were compared with their source?";
    RECONCILE_DRIFT = "lockstep_reconcile_drift_total" ["source", "table", "sink", "drift"] "How many rows were found to differ, and how?";
    RECONCILE_REPAIRED = "lockstep_reconcile_repaired_total" ["source", "table", "sink"] "How many of them were mended?";
    RECONCILE_DIFFERING = "lockstep_reconcile_differing_rows" ["source", "table", "sink"] "How many rows did the last comparison leave that differ?";
    RECONCILE_VERIFIED = "lockstep_reconcile_verified_timestamp_seconds" ["source", "table", "sink"] "When did the last comparison begin that found all rows equal?";
    INVARIANT_EVALUATIONS = "lockstep_invariant_evaluations_total" ["invariant", "outcome"] "How often was the invariant evaluated, and how did that end?";
    INVARIANT_VIOLATIONS = "lockstep_invariant_violations" ["invariant"] "How many keys are proven to violate the invariant?";
    INVARIANT_IN_DOUBT = "lockstep_invariant_in_doubt" ["invariant"] "How many keys do not hold while a prepared transaction is not decided?";
    INVARIANT_UNDECIDED = "lockstep_invariant_undecided" ["invariant"] "How many keys did not hold at the last look, and nothing is proven of?";
    INVARIANT_VERIFIED = "lockstep_invariant_verified_timestamp_seconds" ["invariant"] "When did the last evaluation begin that found the invariant to hold?";
    LEASE_HELD = "lockstep_lease_held" [] "Does this process hold the lease of the pipeline (1), or is it a standby (0)?";
    LEASE_TOKEN = "lockstep_lease_token" [] "Which number has the lease that is held?";
    LEASE_LEFT = "lockstep_lease_left_seconds" [] "How long would the lease last if it were not renewed any more?";
    LEASE_ATTEMPTS = "lockstep_lease_attempts_total" ["outcome"] "How often was the lease asked for, and how did that end?";
    LEASE_WAIT = "lockstep_lease_wait_seconds_total" [] "How long did attempts that ended with the lease take, all together?";
    LEASE_LOST = "lockstep_lease_lost_total" [] "How often was the lease lost while it was held?";
    MEMORY_BUDGET_BYTES = "lockstep_memory_budget_bytes" [] "How many bytes may batches hold?";
    MEMORY_USED_BYTES = "lockstep_memory_used_bytes" [] "How many bytes do batches hold?";
    BUILD_INFO = "lockstep_build_info" ["version"] "Which version runs?";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_prefixed() {
        let mut names: Vec<_> = ALL.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        assert!(names.iter().all(|name| name.starts_with("lockstep_")));
        assert!(ALL.iter().all(|metric| metric.help.ends_with('?')));
    }

    const PAGE: &str = "../docs/metrics.md";
    const BEGIN: &str = "<!-- begin: generated from the list of metrics -->\n";
    const END: &str = "<!-- end -->\n";
    /// Set it, and the test below writes the table instead of comparing it.
    const WRITE: &str = "LOCKSTEP_WRITE_DOCS";

    fn row(metric: &Metric) -> String {
        let labels = match metric.labels.is_empty() {
            true => "–".to_owned(),
            false => metric.labels.join(", "),
        };
        format!("| `{}` | {labels} | {} |\n", metric.name, metric.help)
    }

    #[test]
    fn the_page_has_every_metric_with_its_labels_and_question() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
        let page = std::fs::read_to_string(&path).expect("the page");
        let (before, rest) = page.split_once(BEGIN).expect("the page has a begin");
        let (part, after) = rest.split_once(END).expect("the page has an end");
        let rows: String = ALL.iter().map(row).collect();
        let expected = format!("\n| metric | labels | question |\n|---|---|---|\n{rows}\n");
        if std::env::var_os(WRITE).is_some() {
            let page = format!("{before}{BEGIN}{expected}{END}{after}");
            std::fs::write(&path, page).expect("it can be written");
            return;
        }
        assert!(
            part == expected,
            "docs/metrics.md is not as the list is; {WRITE}=1 writes it"
        );
    }
}

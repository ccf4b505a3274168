//! The suite of sinks on one in memory, and on ones that break a promise each.

use lockstep_conformance::memory::{Broken, MemorySink};
use lockstep_conformance::sink;

mod rows {
    use super::{Broken, MemorySink};

    async fn make() -> Option<MemorySink> {
        Some(MemorySink::of_rows(Broken::Nothing))
    }

    lockstep_conformance::sink_suite!(make);
}

mod events {
    use super::{Broken, MemorySink};

    async fn make() -> Option<MemorySink> {
        Some(MemorySink::of_events(Broken::Nothing))
    }

    lockstep_conformance::sink_suite!(make);
}

/// The check panics on a sink that breaks what it is about.
macro_rules! catches {
    ($($test:ident: $check:ident of $kind:ident that $broken:ident),* $(,)?) => {$(
        #[tokio::test(start_paused = true)]
        async fn $test() {
            let sink = MemorySink::$kind(Broken::$broken);
            let checked = tokio::spawn(async move { sink::$check(&sink).await }).await;
            let error = checked.expect_err("the check has found nothing");
            assert!(error.is_panic());
        }
    )*};
}

catches! {
    progress_ahead: any_crash_goes_on_to_the_right_end of of_rows that ProgressAhead,
    progress_ahead_of_events: any_crash_goes_on_to_the_right_end of of_events that ProgressAhead,
    forgotten_progress: a_reopened_sink_knows_what_it_has of of_rows that ForgetsProgress,
    positions_of_another_log: a_reopened_sink_knows_what_it_has of of_rows that MixesLogs,
    early_receipts: receipts_cover_everything_before_them of of_rows that EarlyReceipts,
    silent_receipts: every_receipt_of_a_dropped_sink_is_answered of of_rows that SilentReceipts,
    made_up_values: an_unchanged_value_is_never_made_up of of_rows that MakesUpValues,
    a_truncate_of_all: a_truncate_empties_its_table_alone of of_rows that TruncatesAll,
    old_keys: rows_come_change_move_and_go of of_rows that KeepsOldKeys,
    mixed_tables: a_batch_of_many_tables_is_told_apart of of_rows that MixesTables,
    older_writes: what_was_deleted_does_not_come_back of of_rows that TakesOlder,
    older_copies: a_copy_is_no_progress_and_overwrites_nothing_newer of of_rows that TakesOlder,
    copies_as_progress: a_copy_is_no_progress_and_overwrites_nothing_newer of of_events that CopyIsProgress,
    skipped_poison: rows_that_cannot_be_written_are_named_and_the_others_are_written of of_rows that SkipsPoison,
    the_wrong_row: rows_that_cannot_be_written_are_named_and_the_others_are_written of of_rows that BlamesAnother,
    forgotten_work: answers_that_get_lost_change_nothing of of_rows that ForgetsProgress,
    work_done_twice: answers_that_get_lost_change_nothing of of_events that Doubles,
    forgotten_gaps: what_went_on_ahead_is_known_when_it_is_opened_again of of_rows that ForgetsAhead,
    forgotten_branches: what_went_on_early_is_known_when_it_is_opened_again of of_rows that ForgetsEarly,
    branches_apart: branches_that_are_written_together_stay_together of of_rows that WritesApart,
    any_token: who_has_an_older_token_writes_nothing of of_rows that TakesAnyToken,
    branches_seen_apart: whoever_looks_sees_branches_together of of_rows that WritesApart,
    doubles: any_crash_goes_on_to_the_right_end of of_events that Doubles,
}

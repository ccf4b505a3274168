//! What every sink promises.

mod checks;
mod crashes;
mod fenced;
mod looks;
mod lost_answers;
mod together;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use lockstep_core::Result;
use lockstep_core::batch::Batch;
use lockstep_core::durable::{Delivered, Durable};
use lockstep_core::position::SourceInfo;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext, Trouble};
use lockstep_core::token::Token;

pub use checks::*;
pub use crashes::{any_crash_goes_on_to_the_right_end, replays_with_other_cuts_change_nothing};
pub use fenced::who_has_an_older_token_writes_nothing;
pub use looks::*;
pub use lost_answers::*;
pub use together::*;

use crate::PATIENCE;
use crate::feed::{self, Feed};
use crate::history::{Row, items};

/// A sink, and a way to look at what it holds. Each check gets one of its own, on an empty other side.
#[async_trait]
pub trait SinkUnderTest: Send + Sync {
    /// Opens the sink. Each time the same one: with what earlier ones left, as after a restart.
    async fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>>;

    /// All that somebody who looks now sees of a table.
    async fn held(&self, table: &Arc<TableSchema>) -> Held;

    /// How data and progress go together.
    fn progress(&self) -> Progress;

    /// Whether it refuses what somebody writes whose token is older than the greatest seen. Others take it by its version.
    fn is_fenced(&self) -> bool {
        false
    }

    /// Whether what is written together is there together: see [`Sink::write_together`].
    fn is_whole(&self) -> bool {
        self.progress() == Progress::Atomic
    }

    /// Where data and progress are one: whether that holds for a TRUNCATE, too. Elsewhere it may have been carried out in part when the
    /// progress is still before it.
    fn empties_at_once(&self) -> bool {
        true
    }

    /// Whether whoever reads as the sink's documentation says sees all that was written together, or nothing of it: what
    /// [`SinkUnderTest::look`] is for.
    fn shows_whole(&self) -> bool {
        false
    }

    /// The rows of several tables at one look; `ids` are all keys that may be there. `None`: the documentation says to look again.
    async fn look(&self, _tables: &[&Arc<TableSchema>], _ids: &[String]) -> Option<Vec<Rows>> {
        None
    }

    /// Whether a row that was there before is missing while it changes, or is being deleted.
    fn hides_changes(&self) -> bool {
        false
    }
}

/// Rows by the values of their keys, joined by `:`.
pub type Rows = BTreeMap<String, Row>;

/// See [`SinkUnderTest::progress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// They are one: a sink that is opened anew holds exactly what is at or below the position it resumes from.
    Atomic,
    /// The position is at most that of the data, and may lag behind what was reported durable: what is written again
    /// changes nothing.
    Behind,
}

/// What a sink holds of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// One row per key: a cache, an index. By the values of the key, joined by `:`.
    Rows(BTreeMap<String, Row>),
    /// Every change, in order: a queue. Tombstones are left out.
    Events(Vec<Event>),
}

/// A change as a queue tells it. A key change is told as two: the old key goes (`d`), the new one comes (`c`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The idempotency id: [`SourceInfo::change_id`].
    pub id: String,
    /// `r`, `c`, `u`, `d` or `t`.
    pub op: char,
    /// The key columns; empty for `t`.
    pub key: Row,
    /// The row, without what an update left unchanged; `None` for `d` and `t`.
    pub row: Option<Row>,
}

/// A row from JSON: numbers as they are written, NULLs left out.
///
/// # Panics
/// When it is no object.
#[must_use]
pub fn row_of(json: &serde_json::Value) -> Row {
    let fields = json.as_object().unwrap_or_else(|| panic!("no row: {json}"));
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let columns = fields.iter();
    columns
        .filter_map(|(name, value)| Some((name.clone(), text(value)?)))
        .collect()
}

/// Makes a test of each check. `$make` is an async function that gives `Option<impl SinkUnderTest>`: `None` where it cannot be
/// had here.
#[macro_export]
macro_rules! sink_suite {
    ($make:path) => {
        $crate::sink_suite!($make;
            a_reopened_sink_knows_what_it_has,
            receipts_cover_everything_before_them,
            every_receipt_of_a_dropped_sink_is_answered,
            rows_come_change_move_and_go,
            keys_are_exchanged_in_one_transaction,
            a_truncate_empties_its_table_alone,
            an_unchanged_value_is_never_made_up,
            a_batch_of_many_tables_is_told_apart,
            a_batch_without_changes_is_taken,
            a_copy_is_no_progress_and_overwrites_nothing_newer,
            what_was_deleted_does_not_come_back,
            two_sources_keep_a_position_each,
            what_went_on_ahead_is_known_when_it_is_opened_again,
            what_went_on_early_is_known_when_it_is_opened_again,
            branches_that_are_written_together_stay_together,
            who_has_an_older_token_writes_nothing,
            whoever_looks_sees_branches_together,
            rows_that_cannot_be_written_are_named_and_the_others_are_written,
            any_crash_goes_on_to_the_right_end,
            answers_that_get_lost_change_nothing,
            replays_with_other_cuts_change_nothing,
        );
    };
    ($make:path; $($check:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $check() {
            if let Some(sink) = $make().await {
                $crate::sink::$check(&sink).await;
            }
        }
    )*};
}

/// The surroundings of a check: a source, tables, and the sink that is open.
pub(crate) struct Bench<'a> {
    pub(crate) under_test: &'a dyn SinkUnderTest,
    pub(crate) source: Arc<SourceInfo>,
    pub(crate) items: Arc<TableSchema>,
    /// Of the same columns.
    pub(crate) others: Arc<TableSchema>,
    state: tempfile::TempDir,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(under_test: &'a dyn SinkUnderTest) -> Self {
        Bench {
            under_test,
            source: feed::source("shop"),
            items: items("shop", "items"),
            others: items("shop", "others"),
            state: tempfile::tempdir().expect("a folder"),
        }
    }

    pub(crate) async fn try_open(&self, sources: &[&Arc<SourceInfo>]) -> Result<Box<dyn Sink>> {
        self.try_open_by(sources, None).await
    }

    /// By the right of a lease.
    pub(crate) async fn try_open_by(
        &self,
        sources: &[&Arc<SourceInfo>],
        token: Option<Token>,
    ) -> Result<Box<dyn Sink>> {
        let sources = sources.iter().map(|&source| Arc::clone(source)).collect();
        let context = SinkContext {
            pipeline: "conformance".into(),
            name: "sink".into(),
            state: self.state.path().to_owned(),
            sources,
            tables: vec![Arc::clone(&self.items), Arc::clone(&self.others)],
            trouble: Trouble::default(),
            token,
        };
        self.under_test.open(context).await
    }

    pub(crate) async fn open(&self) -> Box<dyn Sink> {
        let sink = self.try_open(&[&self.source]).await;
        sink.expect("the sink opens")
    }

    pub(crate) fn feed(&self) -> Feed {
        Feed::new(&self.source)
    }

    /// The rows of a table; `None` of a queue.
    pub(crate) async fn rows(&self, table: &Arc<TableSchema>) -> Option<BTreeMap<String, Row>> {
        match self.under_test.held(table).await {
            Held::Rows(rows) => Some(rows),
            Held::Events(_) => None,
        }
    }

    /// The events of a table; `None` of a state sink.
    pub(crate) async fn events(&self, table: &Arc<TableSchema>) -> Option<Vec<Event>> {
        match self.under_test.held(table).await {
            Held::Rows(_) => None,
            Held::Events(events) => Some(events),
        }
    }

    /// The ids that are held of the items.
    pub(crate) async fn ids(&self) -> BTreeSet<String> {
        match self.under_test.held(&self.items).await {
            Held::Rows(rows) => rows.into_keys().collect(),
            Held::Events(events) => {
                let ids = events.into_iter().map(|event| event.key.get("id").cloned());
                ids.flatten().collect()
            }
        }
    }

    /// The ids that a table holds: sorted in a state sink, in the order of events in a queue.
    pub(crate) async fn ids_of(&self, table: &Arc<TableSchema>) -> Vec<String> {
        match self.under_test.held(table).await {
            Held::Rows(rows) => {
                let mut ids: Vec<String> = rows.into_keys().collect();
                ids.sort_by_key(|id| (id.len(), id.clone()));
                ids
            }
            Held::Events(events) => {
                let ids = events.into_iter().map(|event| event.key.get("id").cloned());
                ids.flatten().collect()
            }
        }
    }

    /// Asserts what a table holds: the rows in a state sink, the events, as `op id status note`, in a queue.
    pub(crate) async fn assert_held(
        &self,
        table: &Arc<TableSchema>,
        rows: &[(&str, &str, &str)],
        events: &[&str],
    ) {
        match self.under_test.held(table).await {
            Held::Rows(held) => {
                let expected = rows.iter().map(|(id, status, note)| {
                    ((*id).to_owned(), crate::history::row(id, status, note))
                });
                assert_eq!(held, expected.collect(), "the rows of {}", table.id);
            }
            Held::Events(held) => {
                let told: Vec<String> = held.iter().map(Event::told).collect();
                assert_eq!(told, events, "the events of {}", table.id);
            }
        }
    }
}

impl Event {
    /// `op id status note`, as far as they are there.
    fn told(&self) -> String {
        let row = self.row.as_ref().unwrap_or(&self.key);
        let values = ["id", "status", "note"].map(|name| row.get(name));
        let values: Vec<&str> = values.into_iter().flatten().map(String::as_str).collect();
        [&[&*self.op.to_string()], &values[..]].concat().join(" ")
    }
}

/// Waits for a receipt.
pub(crate) async fn answer(durable: Durable) -> Result<Delivered> {
    tokio::time::timeout(PATIENCE, durable)
        .await
        .expect("a receipt is answered in time")
}

/// Writes a batch and waits until it is durable.
pub(crate) async fn put(sink: &mut Box<dyn Sink>, batch: Arc<Batch>) -> Result<Delivered> {
    answer(sink.write(batch).await?).await
}

/// As [`put`], of a batch that must be written.
pub(crate) async fn put_ok(sink: &mut Box<dyn Sink>, batch: Arc<Batch>) -> Delivered {
    put(sink, batch).await.expect("the batch is written")
}

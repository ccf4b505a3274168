//! What every source promises.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use lockstep_core::Result;
use lockstep_core::batch::{Batch, Op, Phase};
use lockstep_core::feedback::Feedback;
use lockstep_core::memory::Budget;
use lockstep_core::position::{Lsn, Position};
use lockstep_core::source::{Source, SourceContext, SourceStatus};

use crate::PATIENCE;

/// A source, and a hand on the server behind it. Each check gets one of its own, with an empty log.
#[async_trait]
pub trait SourceUnderTest: Send + Sync {
    /// Opens the source. Each time the same one: on what earlier ones left, as after a restart. Waits where an earlier one is
    /// not gone yet.
    async fn open(&self, context: SourceContext) -> Result<Box<dyn Source>>;

    /// Commits a transaction that inserts a row with each of these keys, which are new, in this order.
    async fn commit(&self, keys: &[u64]);

    /// Up to where the server has been told that all is durable.
    async fn told(&self) -> Lsn;

    /// Whether rows that were there before it was opened first are copied.
    fn copies(&self) -> bool;
}

/// Makes a test of each check. `$make` is an async function that gives `Option<impl SourceUnderTest>`: `None` where it cannot
/// be had here.
#[macro_export]
macro_rules! source_suite {
    ($make:path) => {
        $crate::source_suite!($make;
            positions_rise_and_all_up_to_through_has_come,
            a_large_transaction_comes_in_parts,
            what_is_not_confirmed_comes_again_as_it_was,
            what_is_confirmed_does_not_come_again_and_the_rest_does_once,
            the_server_is_told_nothing_that_is_not_confirmed,
            rows_of_a_copy_come_first_and_once,
            a_closed_source_has_ended,
        );
    };
    ($make:path; $($check:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $check() {
            if let Some(source) = $make().await {
                $crate::source::$check(&source).await;
            }
        }
    )*};
}

/// A row as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Came {
    position: Position,
    phase: Phase,
    key: u64,
}

/// An open source, and what it has sent.
struct Reader {
    source: Box<dyn Source>,
    feedback: Feedback,
    came: Vec<Came>,
    through: Lsn,
    mark: u64,
    /// By key: the first `through` that covers it.
    confirmable: BTreeMap<u64, Lsn>,
}

impl Reader {
    async fn open(under_test: &dyn SourceUnderTest, state: &Path) -> Self {
        let feedback = Feedback::default();
        let context = SourceContext {
            pipeline: "conformance".into(),
            name: "shop".into(),
            state: state.into(),
            feedback: feedback.clone(),
            budget: Budget::new(16 << 20),
            status: SourceStatus::default(),
            token: None,
        };
        Reader {
            source: under_test.open(context).await.expect("the source opens"),
            feedback,
            came: Vec::new(),
            through: Lsn::ZERO,
            mark: 0,
            confirmable: BTreeMap::new(),
        }
    }

    async fn batch(&mut self) -> Option<Batch> {
        let next = tokio::time::timeout(PATIENCE, self.source.next()).await;
        next.expect("a batch in time").expect("the source goes on")
    }

    /// Takes in a batch, and checks what holds for every one.
    fn take(&mut self, batch: &Batch) {
        for change in batch.changes() {
            if matches!(change.op, Op::Message | Op::Truncate) {
                continue;
            }
            let position = batch.position(change);
            let last = self.came.last();
            if batch.phase == Phase::Stream {
                let before = last.filter(|last| last.phase == Phase::Stream);
                assert!(
                    before.is_none_or(|last| last.position < position),
                    "{position} behind {before:?}"
                );
                assert!(
                    position.commit >= self.through,
                    "{position} is beyond {}, which was said to be all",
                    self.through
                );
            } else {
                assert!(
                    last.is_none_or(|last| last.phase == Phase::Snapshot),
                    "a row of the copy behind the stream"
                );
            }
            let schema = batch.schema(change);
            let column = schema.key_columns().next().expect("a key");
            let row = batch.new_row(change).expect("a new row");
            let key = row
                .get(column)
                .text()
                .and_then(|text| std::str::from_utf8(text).ok());
            let key = key.and_then(|key| key.parse().ok()).expect("a number");
            self.came.push(Came {
                position,
                phase: batch.phase,
                key,
            });
        }
        self.mark = batch.mark.unwrap_or(self.mark);
        if let Some(through) = batch.through {
            assert!(through >= self.through, "{through} behind {}", self.through);
            self.through = through;
            // A commit ends behind where its record begins; rows of a copy are at the end of one.
            let covered = |came: &&Came| match came.phase {
                Phase::Snapshot => came.position.commit <= through,
                Phase::Stream | Phase::Replay => came.position.commit < through,
                Phase::Check => false,
            };
            for came in self.came.iter().filter(covered) {
                self.confirmable.entry(came.key).or_insert(through);
            }
        }
    }

    /// Reads on until as many rows as `count` have come, and may be confirmed.
    async fn rows(&mut self, count: usize) {
        while self.came.len() < count || self.confirmable.len() < count {
            let batch = self.batch().await.expect("the source goes on");
            self.take(&batch);
        }
        assert_eq!(self.came.len(), count, "{:?}", self.came.last());
    }

    fn keys(&self) -> Vec<u64> {
        self.came.iter().map(|came| came.key).collect()
    }

    /// All that has come is durable everywhere.
    fn confirm(&self) {
        self.feedback.confirm_mark(self.mark);
        self.feedback.confirm(self.through);
    }
}

/// Commits transactions of these sizes, with keys from `first` on; the number of rows.
async fn commit(under_test: &dyn SourceUnderTest, first: u64, sizes: &[u64]) -> usize {
    let mut next = first;
    for size in sizes {
        let keys: Vec<u64> = (next..next + size).collect();
        under_test.commit(&keys).await;
        next += size;
    }
    (next - first) as usize
}

fn state() -> Arc<tempfile::TempDir> {
    Arc::new(tempfile::tempdir().expect("a folder"))
}

/// Positions rise; what may be confirmed has come; every row comes once, in the order of the commits.
///
/// # Panics
/// When it is not so.
pub async fn positions_rise_and_all_up_to_through_has_come(source: &dyn SourceUnderTest) {
    let state = state();
    let mut reader = Reader::open(source, state.path()).await;
    let mut count = 0;
    for round in 0..5 {
        count += commit(source, round * 1000, &[1, 3, 1, 17, 2]).await;
        reader.rows(count).await;
        reader.confirm();
    }
    let mut ordinals: BTreeMap<Lsn, u64> = BTreeMap::new();
    for came in &reader.came {
        let ordinal = ordinals.entry(came.position.commit).or_default();
        *ordinal += 1;
        assert_eq!(
            came.position.ordinal, *ordinal,
            "changes of a transaction count from 1"
        );
    }
    let keys = reader.keys();
    assert!(keys.is_sorted(), "{keys:?}");
    assert_eq!(ordinals.len(), 25, "one commit per transaction");
    reader.source.close().await.expect("closes");
}

/// A transaction larger than a batch: nothing of it may be confirmed before all of it has come.
///
/// # Panics
/// When it may.
pub async fn a_large_transaction_comes_in_parts(source: &dyn SourceUnderTest) {
    let state = state();
    let mut reader = Reader::open(source, state.path()).await;
    let rows = commit(source, 0, &[40_000]).await;
    while reader.came.len() < rows {
        let batch = reader.batch().await.expect("the source goes on");
        reader.take(&batch);
        let cut = reader.came.last().filter(|_| reader.came.len() < rows);
        // How far the source was before the transaction may be said in the middle of it.
        if let (Some(cut), Some(through)) = (cut, batch.through) {
            assert!(
                through <= cut.position.commit,
                "{} of {rows} rows, and {through} may be confirmed",
                reader.came.len()
            );
        }
    }
    reader.rows(rows).await;
    assert_eq!(reader.keys(), (0..rows as u64).collect::<Vec<_>>());
    reader.source.close().await.expect("closes");
}

/// At least once: a restart sends what was not confirmed again, with the same positions.
///
/// # Panics
/// When it does not.
pub async fn what_is_not_confirmed_comes_again_as_it_was(source: &dyn SourceUnderTest) {
    let state = state();
    // Past a copy, which is a thing of its own.
    let mut reader = Reader::open(source, state.path()).await;
    let first = commit(source, 0, &[2]).await;
    reader.rows(first).await;
    reader.confirm();
    reader.source.close().await.expect("closes");

    let count = commit(source, 100, &[1, 5, 2]).await;
    let mut seen = Vec::new();
    for crash in 0..3 {
        let mut reader = Reader::open(source, state.path()).await;
        reader.rows(count).await;
        match crash {
            0 => seen = reader.came.clone(),
            _ => assert_eq!(reader.came, seen, "crash {crash}"),
        }
        if crash == 1 {
            reader.source.close().await.expect("closes");
        }
    }
}

/// What was confirmed is over; every later commit comes, once.
///
/// # Panics
/// When it does not.
pub async fn what_is_confirmed_does_not_come_again_and_the_rest_does_once(
    source: &dyn SourceUnderTest,
) {
    let state = state();
    let mut reader = Reader::open(source, state.path()).await;
    let sizes = [1, 4, 1, 2, 3, 1];
    let mut count = commit(source, 0, &sizes).await;
    let mut confirmed = 0;
    for round in 1..=3_u64 {
        reader.rows(count - confirmed).await;
        // Up to the end of some transaction in the middle.
        let middle = reader.came[(count - confirmed) / 2].key;
        let at = reader.confirmable[&middle];
        reader.feedback.confirm_mark(reader.mark);
        reader.feedback.confirm(at);
        let covered = reader
            .confirmable
            .values()
            .filter(|through| **through <= at);
        confirmed += covered.count();
        reader.source.close().await.expect("closes");
        count += commit(source, round * 1000, &sizes).await;
        reader = Reader::open(source, state.path()).await;
    }
    reader.rows(count - confirmed).await;
    let keys = reader.keys();
    assert!(keys.is_sorted(), "{keys:?}");
    reader.source.close().await.expect("closes");
}

/// The server keeps its log for what is not durable everywhere: it is told what was confirmed, at the latest by the goodbye,
/// and nothing beyond.
///
/// # Panics
/// When it is told more, or less.
pub async fn the_server_is_told_nothing_that_is_not_confirmed(source: &dyn SourceUnderTest) {
    let state = state();
    let mut reader = Reader::open(source, state.path()).await;
    let first = commit(source, 0, &[1]).await;
    reader.rows(first).await;
    reader.confirm();
    reader.source.close().await.expect("closes");
    let mut reader = Reader::open(source, state.path()).await;
    let begin = source.told().await;
    let mut count = 0;
    for round in 1..=4_u64 {
        count += commit(source, round * 1000, &[1, 2]).await;
        reader.rows(count).await;
        let told = source.told().await;
        let confirmed = reader.feedback.confirmed().max(begin);
        assert!(told <= confirmed, "told {told}, confirmed {confirmed}");
        if round == 2 {
            reader.confirm();
        }
    }
    let confirmed = reader.feedback.confirmed();
    reader.source.close().await.expect("closes");
    let told = source.told().await;
    assert_eq!(told, confirmed, "after the goodbye");
}

/// Rows that were there come in the phase of the copy, before the stream, and not again once all was confirmed.
///
/// # Panics
/// When they do not.
pub async fn rows_of_a_copy_come_first_and_once(source: &dyn SourceUnderTest) {
    if !source.copies() {
        return;
    }
    let state = state();
    let before = commit(source, 0, &[30]).await;
    let mut reader = Reader::open(source, state.path()).await;
    let after = commit(source, 1000, &[2, 1]).await;
    reader.rows(before + after).await;
    let (copied, streamed) = reader.came.split_at(before);
    let mut copied: Vec<u64> = copied.iter().map(|came| came.key).collect();
    copied.sort_unstable();
    assert_eq!(copied, (0..30).collect::<Vec<u64>>());
    assert!(
        streamed.iter().all(|came| came.phase == Phase::Stream),
        "{streamed:?}"
    );
    reader.confirm();
    reader.source.close().await.expect("closes");

    let mut reader = Reader::open(source, state.path()).await;
    let more = commit(source, 2000, &[1]).await;
    reader.rows(more).await;
    assert_eq!(reader.keys(), [2000], "nothing is copied or sent again");
    reader.source.close().await.expect("closes");
}

/// A source that was closed, in the middle of what it has to send, sends no more and has no error.
///
/// # Panics
/// When it goes on.
pub async fn a_closed_source_has_ended(source: &dyn SourceUnderTest) {
    let state = state();
    let mut reader = Reader::open(source, state.path()).await;
    commit(source, 0, &[1, 5000, 1]).await;
    while reader.came.is_empty() {
        let batch = reader.batch().await.expect("the source goes on");
        reader.take(&batch);
    }
    let closed = tokio::time::timeout(PATIENCE, reader.source.close()).await;
    closed.expect("closes in time").expect("closes");
    assert!(reader.batch().await.is_none(), "it has said goodbye");
}

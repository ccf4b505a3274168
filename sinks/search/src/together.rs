//! Batches that wait for a sink, as one.
//!
//! A sink that cannot keep up finds many small batches waiting. Written as one, only the last state of each row costs
//! anything, and a row that is updated again and again without one of its values, which has to be read from the index, is
//! read once and not once per batch.

use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::batch::{Batch, Change, Phase};

/// Batches that may wait for a sink: as many as can be written together, if each has a change or two. They hold their share of
/// the memory budget while they do.
pub(crate) const MOST_WAITING: usize = 4_000;
/// Changes that are written together, about.
const MOST_CHANGES: usize = 4_000;
/// Bytes that are copied to do so. Larger batches gain nothing by it, and would cost memory.
const MOST_BYTES: usize = 512 << 10;

/// Batches that are to be one, in the order of the stream.
pub(crate) struct Together {
    batches: Vec<Arc<Batch>>,
    changes: usize,
    bytes: usize,
}

impl Together {
    pub(crate) fn new(first: Arc<Batch>) -> Self {
        Together {
            changes: first.changes().len(),
            bytes: first.size(),
            batches: vec![first],
        }
    }

    /// Whether a batch that follows may go with them.
    pub(crate) fn takes(&self, next: &Batch) -> bool {
        let first = &self.batches[0];
        let of_stream = |batch: &Batch| batch.phase == Phase::Stream && batch.check.is_none();
        of_stream(first)
            && of_stream(next)
            && first.source == next.source
            && self.changes + next.changes().len() <= MOST_CHANGES
            && self.bytes + next.size() <= MOST_BYTES
    }

    /// Whether a batch is of the same part of the same stream.
    pub(crate) fn is_of(&self, next: &Batch) -> bool {
        let first = &self.batches[0];
        first.source == next.source && first.phase == next.phase && first.check == next.check
    }

    pub(crate) fn push(&mut self, next: Arc<Batch>) {
        self.changes += next.changes().len();
        self.bytes += next.size();
        self.batches.push(next);
    }

    /// All changes as one batch.
    ///
    /// # Errors
    /// See [`Batch::join`].
    pub(crate) fn join(&self) -> Result<Arc<Batch>> {
        if let [only] = self.batches.as_slice() {
            return Ok(Arc::clone(only));
        }
        let picked: Vec<(usize, Change)> = self
            .batches
            .iter()
            .enumerate()
            .flat_map(|(part, batch)| batch.changes().iter().map(move |change| (part, *change)))
            .collect();
        let joined = Batch::join(&self.batches, &picked)?;
        Ok(joined.map_or_else(|| Arc::clone(&self.batches[0]), Arc::new))
    }
}

#[cfg(test)]
mod tests {
    use lockstep_conformance::feed::{Feed, INT4, TEXT, V, source, table};
    use lockstep_core::schema::TableSchema;

    use super::*;

    fn notes() -> Arc<TableSchema> {
        table(
            "shop",
            "notes",
            1,
            &[("id", "int4", INT4), ("note", "text", TEXT)],
        )
    }

    fn written(commit: u64, text: &str) -> Arc<Batch> {
        Feed::new(&source("shop"))
            .begin(commit)
            .insert(&notes(), &["1".into(), V::Text(text)])
            .finish()
    }

    #[test]
    fn changes_of_one_stream_are_one_batch_in_its_order() {
        let mut together = Together::new(written(10, "a"));
        for (commit, text) in [(20, "b"), (30, "c")] {
            let next = written(commit, text);
            assert!(together.takes(&next));
            together.push(next);
        }
        let joined = together.join().expect("one batch");
        let changes = joined.changes().iter();
        let told: Vec<_> = changes
            .map(|change| {
                let row = joined.new_row(change).expect("a row");
                let text = row.get(&joined.schema(change).columns[1]).text();
                (joined.position(change), text.expect("a text").to_vec())
            })
            .collect();
        let expected = [(10, "a"), (20, "b"), (30, "c")].map(|(commit, text)| {
            let batch = written(commit, text);
            (
                batch.position(&batch.changes()[0]),
                text.as_bytes().to_vec(),
            )
        });
        assert_eq!(told, expected);
    }

    #[test]
    fn copies_other_sources_and_what_is_too_much_stay_apart() {
        let copied = Feed::snapshot(&source("shop"), 5)
            .read(&notes(), &["1".into(), "a".into()])
            .finish();
        let others = Feed::new(&source("other"))
            .begin(20)
            .insert(&notes(), &["1".into(), "b".into()])
            .finish();
        let together = Together::new(written(10, "a"));
        assert!(!together.takes(&copied) && !together.takes(&others));
        assert!(!Together::new(Arc::clone(&copied)).takes(&copied));
        assert!(!together.takes(&written(20, &"x".repeat(MOST_BYTES))));
        let mut many = Together::new(written(10, "a"));
        many.changes = MOST_CHANGES;
        assert!(!many.takes(&written(20, "b")));
    }
}

//! What every transform promises.

use std::path::Path;
use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::batch::{Batch, CellRef, Change, Row};
use lockstep_core::position::SourceInfo;
use lockstep_core::schema::TableSchema;
use lockstep_core::transform::{DeadLetters, Transform, TransformContext};
use tokio::runtime::{Builder, Runtime};

use crate::feed::{Feed, V, source};
use crate::history::{Random, items};

/// A transform, which gets the table [`items`] of the source `shop`. The rows have notes `n0` to `n9`, so that some
/// repeat.
pub trait TransformUnderTest: Send + Sync {
    /// Opens the transform. Each time the same one: on the state that earlier ones left in the context's folder, or under its
    /// pipeline's name on a server.
    fn open(&self, context: TransformContext) -> Result<Box<dyn Transform>>;
}

impl<F: Fn(TransformContext) -> Result<Box<dyn Transform>> + Send + Sync> TransformUnderTest for F {
    fn open(&self, context: TransformContext) -> Result<Box<dyn Transform>> {
        self(context)
    }
}

/// Makes a test of each check. `$make` is a function that gives `impl TransformUnderTest`.
#[macro_export]
macro_rules! transform_suite {
    ($make:path) => {
        $crate::transform_suite!($make;
            order_and_position_are_kept,
            how_batches_are_cut_makes_no_difference,
            what_comes_again_comes_out_the_same,
        );
    };
    ($make:path; $($check:ident),* $(,)?) => {$(
        #[test]
        fn $check() {
            $crate::transform::$check(&$make());
        }
    )*};
}

/// Rows that leave the flow are nobody's business here.
struct NoLetters;

impl DeadLetters for NoLetters {
    fn keep(&self, _: &str, _: &str, _: &Batch, _: &Change, _: Option<Row<'_>>) -> Result<()> {
        Ok(())
    }
}

/// Changes.
const CHANGES: u64 = 300;

struct Bench<'a> {
    under_test: &'a dyn TransformUnderTest,
    source: Arc<SourceInfo>,
    items: Arc<TableSchema>,
    transform: Box<dyn Transform>,
    /// Outlives the transform, which may have connections on it.
    runtime: Runtime,
}

impl<'a> Bench<'a> {
    fn open(under_test: &'a dyn TransformUnderTest, state: &Path) -> Self {
        let bench = Bench {
            under_test,
            source: source("shop"),
            items: items("shop", "items"),
            transform: opened(under_test, state),
            runtime: Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime"),
        };
        bench.bound()
    }

    /// After a crash: what is not in the folder is gone.
    fn reopened(self, state: &Path) -> Self {
        drop(self.transform);
        let bench = Bench {
            transform: opened(self.under_test, state),
            ..self
        };
        bench.bound()
    }

    fn bound(mut self) -> Self {
        self.transform
            .bind(&self.items)
            .expect("the table is bound");
        self.transform.complete().expect("all tables are bound");
        let ready = self.runtime.block_on(self.transform.ready());
        ready.expect("it has what it needs");
        self
    }

    /// The changes of one run, in batches of up to `most`.
    fn batches(&self, most: u64) -> Vec<Batch> {
        let mut random = Random(11);
        let (mut batches, mut feed) = (Vec::new(), Feed::new(&self.source));
        let mut ordinal = 0;
        for number in 0..CHANGES {
            let commit = 10 + number / 7;
            ordinal = if number % 7 == 0 { 1 } else { ordinal + 1 };
            feed.continued(commit, ordinal - 1);
            let (id, status) = (number.to_string(), format!("s{number}"));
            let note = format!("n{}", random.below(10));
            let row = [V::Text(&id), V::Text(&status), V::Text(&note)];
            match random.below(4) {
                0 => feed.update(&self.items, &row),
                1 => feed.delete(&self.items, &id),
                _ => feed.insert(&self.items, &row),
            };
            if (number + 1) % most == 0 || number + 1 == CHANGES {
                let batch = match number % 7 == 6 {
                    true => feed.finish(),
                    false => feed.finish_cut(),
                };
                batches.extend(Arc::into_inner(batch));
                feed = Feed::new(&self.source);
            }
        }
        batches
    }

    fn apply(&mut self, batch: Batch) -> Arc<Batch> {
        let applied = self.transform.apply(Arc::new(batch));
        self.runtime.block_on(applied).expect("the batch passes")
    }
}

fn opened(under_test: &dyn TransformUnderTest, state: &Path) -> Box<dyn Transform> {
    // What is kept on a server is as much the folder's own as what is in it.
    let folder = state.file_name().unwrap_or_default();
    let context = TransformContext {
        pipeline: format!("conformance-{}", folder.to_string_lossy()).into(),
        name: "conformance".into(),
        state: state.to_owned(),
        dead_letters: Arc::new(NoLetters),
    };
    under_test.open(context).expect("the transform opens")
}

/// All that is to be seen of the changes of a batch.
fn told(batch: &Batch) -> Vec<String> {
    let row = |change: &Change, row: Option<Row<'_>>| {
        let schema = batch.schema(change);
        let value = |cell| match cell {
            CellRef::Null => "NULL".to_owned(),
            CellRef::Unchanged => "~".to_owned(),
            CellRef::Text(bytes) | CellRef::Binary(bytes) => {
                String::from_utf8_lossy(bytes).into_owned()
            }
        };
        let columns = schema.columns.iter();
        let row = row.map(|row| {
            columns
                .map(|column| format!("{}={}", column.name, value(row.get(column))))
                .collect::<Vec<_>>()
                .join(" ")
        });
        row.unwrap_or_default()
    };
    let told = |change: &Change| {
        format!(
            "{} {:?} {} {} [{}] [{}]",
            batch.position(change),
            change.op,
            change.duplicate,
            batch.schema(change).id,
            row(change, batch.old_row(change)),
            row(change, batch.new_row(change)),
        )
    };
    batch.changes().iter().map(told).collect()
}

/// A transform may leave changes out and write others: it makes none up, keeps their order, and how far a batch reaches.
///
/// # Panics
/// When it does not.
pub fn order_and_position_are_kept(transform: &dyn TransformUnderTest) {
    let state = tempfile::tempdir().expect("a folder");
    let mut bench = Bench::open(transform, state.path());
    let mut some = false;
    for batch in bench.batches(20) {
        let before: Vec<_> = batch
            .changes()
            .iter()
            .map(|change| batch.position(change))
            .collect();
        let (through, source, phase) = (batch.through, Arc::clone(&batch.source), batch.phase);
        let batch = bench.apply(batch);
        assert_eq!((batch.through, batch.phase), (through, phase));
        assert_eq!(batch.source, source);
        let after: Vec<_> = batch
            .changes()
            .iter()
            .map(|change| batch.position(change))
            .collect();
        assert!(after.is_sorted(), "{after:?}");
        let made_up: Vec<_> = after
            .iter()
            .filter(|position| !before.contains(position))
            .collect();
        assert!(made_up.is_empty(), "{made_up:?}");
        some |= !after.is_empty();
    }
    assert!(
        some,
        "nothing passes: this says nothing about the transform"
    );
}

/// What becomes of a change does not depend on the batch that it comes in.
///
/// # Panics
/// When it does.
pub fn how_batches_are_cut_makes_no_difference(transform: &dyn TransformUnderTest) {
    let all = |most| {
        let state = tempfile::tempdir().expect("a folder");
        let mut bench = Bench::open(transform, state.path());
        let batches = bench.batches(most);
        let out = batches
            .into_iter()
            .flat_map(|batch| told(&bench.apply(batch)));
        out.collect::<Vec<_>>()
    };
    let whole = all(CHANGES);
    for most in [1, 3, 64] {
        assert_eq!(all(most), whole, "in batches of {most}");
    }
}

/// After a crash batches come again, from the last confirmed position on or from before it, and come out as they did.
///
/// # Panics
/// When they do not.
pub fn what_comes_again_comes_out_the_same(transform: &dyn TransformUnderTest) {
    let state = tempfile::tempdir().expect("a folder");
    let mut bench = Bench::open(transform, state.path());
    let reference: Vec<_> = bench
        .batches(9)
        .into_iter()
        .map(|batch| told(&bench.apply(batch)))
        .collect();

    let state = tempfile::tempdir().expect("a folder");
    let mut bench = Bench::open(transform, state.path());
    let count = reference.len();
    // Applied up to `until`, of which `persisted` are safe; then it begins again at `from`.
    for (from, persisted, until) in [
        (0, 5, 8),
        (5, 9, 15),
        (7, 20, 25),
        (20, 20, 24),
        (0, count, count),
    ] {
        for (number, batch) in bench.batches(9).into_iter().enumerate() {
            if number < from || number >= until {
                continue;
            }
            assert_eq!(
                told(&bench.apply(batch)),
                reference[number],
                "batch {number} from {from} on"
            );
            if number + 1 == persisted {
                bench.transform.persist().expect("the state is safe");
            }
        }
        bench = bench.reopened(state.path());
    }
}

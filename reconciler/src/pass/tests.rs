//! A table and a sink in memory, with rows that do not hold still.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use lockstep_core::Error;
use lockstep_core::error::ErrorKind;
use lockstep_core::position::Lsn;
use lockstep_core::sink::{Held, HeldVersion, Keys, Listing};
use lockstep_core::source::Checked;
use proptest::prelude::*;

use super::*;
use crate::Answer;
use crate::Verdict;
use crate::audit::{Entry, Stage};
use crate::report::{Difference, Drift};

type Rows = BTreeMap<u32, String>;

#[derive(Clone, Debug, Default)]
struct World {
    source: Rows,
    sink: Rows,
    /// Rows that change while they are read, for so many more times.
    restless: BTreeMap<u32, u32>,
    /// Differences that are gone when they are looked at again.
    fleeting: BTreeSet<u32>,
    /// Checks that fail before one works.
    failures: u32,
    /// Checks that are answered before one never is.
    fuse: Option<u32>,
    chunk: usize,
}

struct Model(Mutex<World>);

/// The version under which the sink has a row, the place behind which the source has changed it, and what follows where they differ.
fn standing(row: u32) -> (HeldVersion, Option<Lsn>, &'static str) {
    let after = Some(Lsn(50));
    match row % 5 {
        0 => (HeldVersion::Unknown, after, "different"),
        1 => (HeldVersion::At(Lsn(50)), after, "stale"),
        2 => (HeldVersion::At(Lsn(51)), after, "different"),
        3 => (HeldVersion::At(Lsn(50)), None, "different"),
        _ => (HeldVersion::EarlierLog, None, "stale"),
    }
}

fn key(row: u32) -> Key {
    vec![format!("{row:05}")]
}

impl World {
    /// Whether nothing is answered any more.
    fn is_cut(&mut self) -> bool {
        match &mut self.fuse {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    /// What a pass should tell.
    fn differing(&self) -> BTreeMap<&'static str, BTreeSet<u32>> {
        let mut differing: BTreeMap<&'static str, BTreeSet<u32>> = BTreeMap::new();
        for row in self.source.keys().chain(self.sink.keys()) {
            let kind = match (self.source.get(row), self.sink.get(row)) {
                (Some(a), Some(b)) if a == b => continue,
                (Some(_), Some(_)) => standing(*row).2,
                (Some(_), None) => "missing",
                _ => "extra",
            };
            differing.entry(kind).or_default().insert(*row);
        }
        differing
    }

    fn verdict(&mut self, ordinal: u64, row: u32) -> Option<Verdict> {
        if self.fleeting.remove(&row) {
            return Some(Verdict {
                ordinal,
                held: Held::Missing { key: "gone".into() },
                aside: false,
            });
        }
        let held_as = row.to_string();
        let held = match (self.source.get(&row), self.sink.get(&row)) {
            (None, None) => return None,
            (Some(expected), Some(actual)) if expected == actual => return None,
            (Some(_), None) => Held::Missing { key: held_as },
            (None, Some(actual)) => Held::Extra {
                key: held_as,
                actual: actual.clone(),
            },
            (Some(expected), Some(actual)) => Held::Different {
                key: held_as,
                expected: expected.clone(),
                actual: actual.clone(),
                version: standing(row).0,
            },
        };
        Some(Verdict {
            ordinal,
            held,
            aside: false,
        })
    }
}

#[async_trait]
impl Ends for Model {
    fn sinks(&self) -> Vec<Arc<str>> {
        vec!["cache".into()]
    }

    async fn send<'a>(&'a self, rows: CheckRows, sinks: &[Arc<str>]) -> Result<Sent<'a>> {
        assert_eq!(sinks, self.sinks());
        if self.0.lock().expect("not poisoned").is_cut() {
            std::future::pending::<()>().await;
        }
        let mut world = self.0.lock().expect("not poisoned");
        let fails = world.failures > 0;
        world.failures = world.failures.saturating_sub(1);
        // Every other one after it was sent.
        let answers_fail = fails && world.failures.is_multiple_of(2);
        if fails && !answers_fail {
            return Err(Error::new(ErrorKind::Unavailable, "for now"));
        }
        let number = |key: &Key| key[0].parse::<u32>().expect("a number");
        let there = |row: &u32| world.source.contains_key(row);
        let tells = matches!(rows, CheckRows::Keys(_));
        let (rows, next): (Vec<u32>, _) = match rows {
            CheckRows::Behind(after) => {
                let after = after.map(|key| number(&key));
                let behind = world
                    .source
                    .keys()
                    .filter(|row| after.is_none_or(|after| **row > after));
                let mut rows: Vec<u32> = behind.copied().take(world.chunk + 1).collect();
                let more = rows.len() > world.chunk;
                rows.truncate(world.chunk);
                let next = rows.last().filter(|_| more).map(|row| key(*row));
                (rows, next)
            }
            CheckRows::Keys(keys) => (keys.iter().map(number).collect(), None),
            CheckRows::Absent(keys) => (
                keys.iter().map(number).filter(|row| !there(row)).collect(),
                None,
            ),
        };
        let mut checked = Checked {
            next,
            ..Checked::default()
        };
        let mut different = Vec::new();
        for row in rows {
            if let Some(times) = world.restless.get_mut(&row)
                && *times > 0
            {
                *times -= 1;
                checked.unsteady.push(key(row));
                continue;
            }
            checked.keys.push(key(row));
            if tells {
                let after = standing(row).1.filter(|_| world.source.contains_key(&row));
                checked.changed_after.push(after);
            }
            let ordinal = checked.keys.len() as u64;
            different.extend(world.verdict(ordinal, row));
        }
        let outcome = Outcome::Compared {
            rows: checked.keys.len() as u64,
            different,
        };
        let answers = (!checked.keys.is_empty()).then(|| Answer {
            sink: "cache".into(),
            outcome,
        });
        let answers = match answers_fail {
            true => Err(Error::new(ErrorKind::Unavailable, "interrupted")),
            false => Ok(answers.into_iter().collect()),
        };
        Ok(Sent {
            checked,
            answers: Box::pin(std::future::ready(answers)),
        })
    }

    async fn repair(&self, keys: Vec<Key>, sink: &Arc<str>) -> Result<Compared> {
        {
            let mut world = self.0.lock().expect("not poisoned");
            for key in &keys {
                let row = key[0].parse::<u32>().expect("a number");
                if world.restless.get(&row).is_some_and(|times| *times > 0) {
                    continue;
                }
                match world.source.get(&row).cloned() {
                    Some(value) => drop(world.sink.insert(row, value)),
                    None => drop(world.sink.remove(&row)),
                }
            }
        }
        self.check(CheckRows::Keys(keys), std::slice::from_ref(sink))
            .await
    }

    async fn list(&self, _: &str) -> Result<Vec<Box<dyn Listing>>> {
        let world = self.0.lock().expect("not poisoned");
        let keys: Vec<u32> = world.sink.keys().copied().collect();
        Ok(vec![Box::new(Pages { keys, from: 0 })])
    }
}

struct Pages {
    keys: Vec<u32>,
    from: usize,
}

#[async_trait]
impl Listing for Pages {
    async fn next(&mut self) -> Result<Option<Keys>> {
        // Some come twice.
        let page: Vec<u32> = self.keys.iter().copied().skip(self.from).take(4).collect();
        self.from += 3;
        Ok((!page.is_empty()).then(|| Keys {
            keys: page.into_iter().map(key).collect(),
            foreign: Vec::new(),
        }))
    }
}

/// What is reported, by kind.
fn told(report: &TableReport) -> BTreeMap<&'static str, BTreeSet<u32>> {
    let mut told: BTreeMap<&'static str, BTreeSet<u32>> = BTreeMap::new();
    for sink in report.sinks.values() {
        for drift in &sink.drift {
            let kind = match drift.difference {
                Difference::Missing => "missing",
                Difference::Different { .. } => "different",
                Difference::Stale { .. } => "stale",
                Difference::Extra { .. } => "extra",
            };
            let row = drift.key[0].parse().expect("a number");
            assert!(told.entry(kind).or_default().insert(row), "{row} twice");
        }
    }
    told
}

#[test]
fn what_was_kept_before_rows_could_be_stale_is_read() {
    let mut report = serde_json::to_value(SinkReport::default()).expect("JSON");
    report.as_object_mut().expect("an object").remove("stale");
    let read: SinkReport = serde_json::from_value(report).expect("a report");
    assert_eq!(read, SinkReport::default());
    let drift = Drift {
        key: vec!["1".into()],
        held_as: "t:1".into(),
        fence: None,
        difference: Difference::Stale {
            columns: vec!["a".into()],
            expected: "{}".into(),
            actual: "{}".into(),
            held: Some("0/1A2B3C8".into()),
            changed_after: None,
        },
        repaired: false,
    };
    let kept = serde_json::to_value(&drift).expect("JSON");
    assert_eq!(
        (&kept["drift"], &kept["held"]),
        (&"stale".into(), &"0/1A2B3C8".into())
    );
    assert_eq!(serde_json::from_value::<Drift>(kept).expect("a row"), drift);
}

fn world() -> impl Strategy<Value = World> {
    let rows = || prop::collection::btree_map(0..40_u32, "[ab]", 0..30);
    let some = || prop::collection::btree_set(0..40_u32, 0..6);
    let restless = prop::collection::btree_map(0..40_u32, 0..3_u32, 0..8);
    (rows(), rows(), restless, some(), 0..3_u32, 1..9_usize).prop_map(
        |(source, sink, restless, fleeting, failures, chunk)| World {
            source,
            sink,
            restless,
            fleeting,
            failures,
            chunk,
            fuse: None,
        },
    )
}

proptest! {
    /// All that differs for good is told, once, by its kind; nothing else is.
    #[test]
    fn a_pass_tells_what_differs_and_nothing_else(world in world()) {
        let runtime = runtime();
        let expected = world.differing();
        let rows = world.source.len() as u64;
        let pass = Pass::new("shop", "public.t");
        runtime.block_on(pass.run(&Model(Mutex::new(world))));
        let report = pass.report();
        prop_assert_eq!(report.state, State::Done);
        prop_assert_eq!((report.rows, report.undecided), (rows, 0));
        prop_assert_eq!(told(&report), expected);
    }
}

/// Keeps word in memory.
#[derive(Default)]
struct Kept(Mutex<Vec<Entry>>);

#[async_trait]
impl Audit for Kept {
    async fn record(&self, entries: Vec<Entry>) -> Result<()> {
        self.0.lock().expect("not poisoned").extend(entries);
        Ok(())
    }

    async fn end(&self) -> Result<u64> {
        Ok(self.0.lock().expect("not poisoned").len() as u64)
    }

    async fn behind(&self, end: u64) -> Result<Vec<Entry>> {
        Ok(self.0.lock().expect("not poisoned")[end as usize..].to_vec())
    }
}

impl Kept {
    fn rows(&self, stage: Stage) -> BTreeSet<u32> {
        let kept = self.0.lock().expect("not poisoned");
        let of_stage = kept.iter().filter(|entry| entry.stage == stage);
        of_stage
            .map(|entry| entry.drift.key[0].parse().expect("a number"))
            .collect()
    }
}

/// Runs a pass that is killed after so many checks, again and again from where it stood, at last to the end.
async fn run_killed(model: &Model, cuts: &[u32], audit: Option<&Arc<Kept>>) -> TableReport {
    let with_audit = |pass: Pass| match audit {
        Some(audit) => pass.mending(Arc::clone(audit) as Arc<dyn Audit>),
        None => pass,
    };
    let mut pass = with_audit(Pass::new("shop", "public.t"));
    for fuse in cuts.iter().copied().map(Some).chain([None]) {
        model.0.lock().expect("not poisoned").fuse = fuse;
        // The time is not real.
        let run = tokio::time::timeout(Duration::from_secs(3_600), pass.run(model));
        if run.await.is_ok() {
            return pass.report();
        }
        let kept = serde_json::to_string(&pass.bookmark()).expect("JSON");
        let kept = serde_json::from_str(&kept).expect("what was kept");
        pass = with_audit(Pass::resumed(kept));
    }
    panic!("nothing cuts the last one");
}

proptest! {
    /// Wherever it is killed: in the end all is told, once, and nothing else.
    #[test]
    fn a_pass_that_is_killed_goes_on(world in world(), cuts in prop::collection::vec(0..12_u32, 0..6)) {
        let runtime = runtime();
        let (expected, rows) = (world.differing(), world.source.len() as u64);
        let report = runtime.block_on(run_killed(&Model(Mutex::new(world)), &cuts, None));
        prop_assert_eq!((report.rows, report.undecided), (rows, 0));
        prop_assert_eq!(told(&report), expected);
    }

    /// Wherever it is killed: in the end all is mended, told once, and on record before and after.
    #[test]
    fn a_repair_that_is_killed_goes_on(world in world(), cuts in prop::collection::vec(0..12_u32, 0..6)) {
        let runtime = runtime();
        let (expected, source) = (world.differing(), world.source.clone());
        let (audit, model) = (Arc::new(Kept::default()), Model(Mutex::new(world)));
        let report = runtime.block_on(run_killed(&model, &cuts, Some(&audit)));
        prop_assert!(!report.has_drift(), "{report:?}");
        prop_assert_eq!(&model.0.lock().expect("not poisoned").sink, &source);
        let all: BTreeSet<u32> = expected.values().flatten().copied().collect();
        prop_assert_eq!(told(&report), expected);
        prop_assert_eq!(audit.rows(Stage::Planned), all.clone());
        prop_assert_eq!(audit.rows(Stage::Mended), all);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime")
}

proptest! {
    /// All that differs is mended, and on record before and after; nothing else is touched.
    #[test]
    fn a_pass_that_mends_leaves_the_sink_as_the_source_is(world in world()) {
        let runtime = runtime();
        let source = world.source.clone();
        let rows = source.keys().chain(world.sink.keys());
        let differing: BTreeSet<u32> = rows
            .filter(|row| source.get(row) != world.sink.get(row))
            .copied()
            .collect();
        let (audit, model) = (Arc::new(Kept::default()), Model(Mutex::new(world)));
        let pass = Pass::new("shop", "public.t").mending(audit.clone());
        runtime.block_on(pass.run(&model));
        let report = pass.report();
        prop_assert!(!report.has_drift(), "{report:?}");
        prop_assert_eq!(&model.0.lock().expect("not poisoned").sink, &source);
        for stage in [Stage::Planned, Stage::Mended] {
            prop_assert_eq!(&audit.rows(stage), &differing);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_that_never_holds_still_is_told_as_undecided() {
    let pass = Pass::new("shop", "public.t");
    let rows: Rows = [(1, "a".to_owned()), (2, "b".to_owned())].into();
    let world = World {
        source: rows.clone(),
        sink: rows,
        restless: [(2, u32::MAX)].into(),
        chunk: 10,
        ..World::default()
    };
    pass.run(&Model(Mutex::new(world))).await;
    let report = pass.report();
    assert_eq!((report.rows, report.undecided), (1, 1));
    assert!(!report.has_drift() && report.is_partial());
}

#[tokio::test(start_paused = true)]
async fn rows_that_are_named_are_compared_and_no_others() {
    let world = World {
        source: (0..40).map(|row| (row, "as it is".to_owned())).collect(),
        sink: (5..45).map(|row| (row, "as it was".to_owned())).collect(),
        chunk: 10,
        ..World::default()
    };
    let model = Model(Mutex::new(world));
    let pass = Pass::new("shop", "public.t").over(vec![key(1), key(7), key(42), key(99)]);
    pass.run(&model).await;
    let report = pass.report();
    let told: Vec<&Key> = report.sinks["cache"]
        .drift
        .iter()
        .map(|drift| &drift.key)
        .collect();
    assert_eq!(told, [&key(1), &key(7), &key(42)], "{report:?}");
    assert_eq!((report.state, report.rows), (State::Done, 4));
}

#[tokio::test(start_paused = true)]
async fn a_pace_is_kept() {
    let rows: Rows = (0..1_000).map(|row| (row, "same".to_owned())).collect();
    for (pace, least, most) in [(None, 0, 100), (NonZeroU32::new(100), 9_000, 11_000)] {
        let world = World {
            source: rows.clone(),
            sink: rows.clone(),
            chunk: 50,
            ..World::default()
        };
        let begun = Instant::now();
        let pass = Pass::new("shop", "public.t").paced(pace);
        pass.run(&Model(Mutex::new(world))).await;
        assert_eq!(pass.report().rows, 1_000);
        let took = begun.elapsed().as_millis();
        assert!((least..most).contains(&took), "{pace:?}: {took} ms");
    }
}

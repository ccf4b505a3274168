//! `dedupe` under crashes and replays, against a model that sees the log once, in order, and forgets nothing (I5).
//!
//! A crash drops the transform at a random point of the log without `persist`, opens its directory anew, and goes on
//! from a random earlier transaction. Every change must come out as it did the first time.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use common::*;
use lockstep_core::batch::{Batch, OldImage, Op};
use lockstep_core::schema::{ReplicaIdentity, TableSchema};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

/// Seconds.
const WINDOW: i64 = 100;

/// What a random step would like to do; it is fitted to the table as it is then.
#[derive(Clone, Debug)]
enum Step {
    Insert(u8, Option<u8>),
    Touch(u8),
    SetKey(u8, Option<u8>),
    Rename(u8, u8),
    Delete(u8),
    Truncate,
    /// The transaction ends, and time goes on; clocks may go back a little.
    Commit(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let id = || 0_u8..6;
    let key = || proptest::option::weighted(0.85, 0_u8..4);
    prop_oneof![
        10 => (id(), key()).prop_map(|(id, key)| Step::Insert(id, key)),
        4 => id().prop_map(Step::Touch),
        4 => (id(), key()).prop_map(|(id, key)| Step::SetKey(id, key)),
        3 => (id(), id()).prop_map(|(from, to)| Step::Rename(from, to)),
        6 => id().prop_map(Step::Delete),
        1 => Just(Step::Truncate),
        9 => (-5_i64..90).prop_map(Step::Commit),
    ]
}

/// One change of the log.
#[derive(Clone, Debug)]
struct Entry {
    op: Op,
    old: Option<(u8, Option<u8>, u32)>,
    new: Option<(u8, Option<u8>, u32)>,
    /// Transaction, and place inside it from 0.
    transaction: usize,
    ordinal: u64,
    seconds: i64,
}

/// The log that the steps make.
fn log(steps: &[Step]) -> Vec<Entry> {
    let mut rows: BTreeMap<u8, (Option<u8>, u32)> = BTreeMap::new();
    let (mut log, mut transaction, mut ordinal, mut seconds, mut counter) =
        (Vec::new(), 0, 0, 1000, 0);
    for step in steps {
        counter += 1;
        let row = |rows: &BTreeMap<u8, (Option<u8>, u32)>, id: u8| {
            rows.get(&id).map(|row| (id, row.0, row.1))
        };
        let (op, old, new) = match step {
            Step::Insert(id, key) if !rows.contains_key(id) => {
                (Op::Insert, None, Some((*id, *key, counter)))
            }
            Step::Touch(id) if rows.contains_key(id) => {
                let old = row(&rows, *id);
                (Op::Update, old, old.map(|old| (old.0, old.1, counter)))
            }
            Step::SetKey(id, key) if rows.contains_key(id) => {
                (Op::Update, row(&rows, *id), Some((*id, *key, counter)))
            }
            Step::Rename(from, to) if rows.contains_key(from) && !rows.contains_key(to) => {
                let old = row(&rows, *from);
                (Op::Update, old, old.map(|old| (*to, old.1, counter)))
            }
            Step::Delete(id) if rows.contains_key(id) => (Op::Delete, row(&rows, *id), None),
            Step::Truncate => {
                rows.clear();
                (Op::Truncate, None, None)
            }
            Step::Commit(pause) => {
                (transaction, ordinal) = if ordinal > 0 {
                    (transaction + 1, 0)
                } else {
                    (transaction, 0)
                };
                seconds += pause;
                continue;
            }
            _ => continue,
        };
        if let Some((id, ..)) = old {
            rows.remove(&id);
        }
        if let Some((id, key, value)) = new {
            rows.insert(id, (key, value));
        }
        log.push(Entry {
            op,
            old,
            new,
            transaction,
            ordinal,
            seconds,
        });
        ordinal += 1;
    }
    log
}

/// The rules of `dedupe`, once through the log.
struct Model {
    full: bool,
    owners: HashMap<u8, (u8, i64)>,
    held: HashMap<u8, u8>,
}

/// Whether a row is seen behind, before and after a change.
type Seen = (bool, bool);

impl Model {
    fn judge(&mut self, entry: &Entry) -> Seen {
        let now = entry.seconds;
        match (entry.op, entry.old, entry.new) {
            (Op::Insert, _, Some((id, key, _))) => {
                self.held.remove(&id);
                let held = key.is_some_and(|key| !self.take(key, now, id, id));
                if let Some(key) = key.filter(|_| held) {
                    self.held.insert(id, key);
                }
                (!held, !held)
            }
            (Op::Update, Some((from, old_key, _)), Some((id, key, _))) => {
                let was = self.held.remove(&from);
                if id != from {
                    self.held.remove(&id);
                }
                let held = match (was, key) {
                    (_, None) => None,
                    (Some(held), Some(key)) if held == key => Some(key),
                    (Some(_), Some(key)) => (!self.take(key, now, from, id)).then_some(key),
                    (None, Some(key)) if self.full && old_key != Some(key) => {
                        (!self.take(key, now, from, id)).then_some(key)
                    }
                    (None, Some(_)) => None,
                };
                if let Some(key) = held {
                    self.held.insert(id, key);
                } else if let Some(owner) = key.and_then(|key| self.owners.get_mut(&key))
                    && owner.0 == from
                    && now - owner.1 <= WINDOW
                {
                    owner.0 = id;
                }
                (was.is_none(), held.is_none())
            }
            (Op::Delete, Some((id, ..)), _) => {
                let held = self.held.remove(&id).is_some();
                (!held, !held)
            }
            _ => (true, true),
        }
    }

    /// Whether the key is the row's afterwards.
    fn take(&mut self, key: u8, now: i64, from: u8, id: u8) -> bool {
        match self.owners.get(&key) {
            Some((owner, since)) if now - since <= WINDOW => *owner == from || *owner == id,
            _ => {
                self.owners.insert(key, (id, now));
                true
            }
        }
    }
}

/// What comes out for a change, given who sees the row.
fn expected(op: Op, seen: Seen) -> Option<Op> {
    match (op, seen) {
        (_, (true, true)) => Some(op),
        (_, (false, false)) => None,
        (_, (false, true)) => Some(Op::Insert),
        (_, (true, false)) => Some(Op::Delete),
    }
}

/// The part of the log from `start` to `end`, as a batch that may begin and end inside transactions.
fn batch(
    table: &Arc<TableSchema>,
    source: &str,
    log: &[Entry],
    start: usize,
    end: usize,
    full: bool,
) -> Batch {
    let mut feed = Feed::of(source);
    let mut current = None;
    for entry in &log[start..end] {
        if current != Some(entry.transaction) {
            current = Some(entry.transaction);
            feed = feed.resume(
                10 * (entry.transaction as u64 + 1),
                entry.seconds,
                entry.ordinal,
            );
        }
        let text = |row: Option<(u8, Option<u8>, u32)>| {
            row.map(|(id, key, value)| {
                let key = key.map_or_else(|| NULL.to_owned(), |key| format!("key-{key}"));
                [id.to_string(), key, value.to_string()]
            })
        };
        let (old, new) = (text(entry.old), text(entry.new));
        let new = new.as_ref().map(|row| row.each_ref().map(String::as_str));
        let renamed = matches!((entry.old, entry.new), (Some(old), Some(new)) if old.0 != new.0);
        let needs_old = full || renamed || entry.op == Op::Delete;
        let old = old.as_ref().filter(|_| needs_old).map(|row| match full {
            true => (OldImage::Full, row.each_ref().map(String::as_str)),
            false => (OldImage::Key, [row[0].as_str(), NULL, NULL]),
        });
        let old = old.as_ref().map(|(image, row)| (*image, row.as_slice()));
        feed = feed.push(entry.op, table, old, new.as_ref().map(|row| row.as_slice()));
    }
    feed.finish()
}

/// Where batches end, where the process dies, and where it goes on.
#[derive(Clone, Debug)]
struct Course {
    /// Changes per batch, in turn.
    sizes: Vec<usize>,
    /// After so many batches a crash, and then a replay from this part (in 256ths) of what was read.
    crashes: Vec<(usize, u8)>,
}

fn course() -> impl Strategy<Value = Course> {
    let sizes = proptest::collection::vec(1_usize..12, 1..6);
    let crashes = proptest::collection::vec((1_usize..8, any::<u8>()), 0..4);
    (sizes, crashes).prop_map(|(sizes, crashes)| Course { sizes, crashes })
}

/// What came out, by change: transaction and ordinal to operations.
type Outcome = HashMap<(u64, u64), Vec<Op>>;

fn outcome(batch: &Batch) -> Outcome {
    let mut outcome = Outcome::new();
    for change in batch.changes() {
        let position = batch.position(change);
        outcome
            .entry((position.commit.0, position.ordinal))
            .or_default()
            .push(change.op);
    }
    outcome
}

/// Runs the log with the crashes of `course`; `check` sees what came out for every change, every time it comes.
fn run(
    place: &Place,
    log: &[Entry],
    course: &Course,
    full: bool,
    json: &Json,
    mut check: impl FnMut(usize, Option<Op>) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let identity = if full {
        ReplicaIdentity::Full
    } else {
        ReplicaIdentity::Default
    };
    let table = table(
        "public.t",
        &["id int8", "idempotency_key text", "v int8"],
        &["id"],
        identity,
    );
    let open = || place.open(json.clone(), &[&table], &Arc::default());
    let mut dedupe = open();
    let (mut start, mut batches, mut crashes) = (0, 0, course.crashes.iter());
    let mut next_crash = crashes.next();
    while start < log.len() {
        let end = (start + course.sizes[batches % course.sizes.len()]).min(log.len());
        let out = dedupe
            .apply_now(batch(&table, "shop", log, start, end, full))
            .unwrap();
        let outcome = outcome(&out);
        for (index, entry) in log.iter().enumerate().take(end).skip(start) {
            let position = (10 * (entry.transaction as u64 + 1), entry.ordinal + 1);
            let ops = outcome.get(&position).map_or(&[][..], Vec::as_slice);
            prop_assert!(ops.len() <= 1);
            check(index, ops.first().copied())?;
        }
        (start, batches) = (end, batches + 1);
        if let Some((after, part)) = next_crash
            && batches >= *after
        {
            drop(dedupe);
            place.next();
            dedupe = open();
            let back = start * usize::from(*part) / 256;
            start = (0..=back)
                .rev()
                .find(|index| log[*index].ordinal == 0)
                .unwrap_or(0);
            batches = 0;
            next_crash = crashes.next();
        }
    }
    Ok(())
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn as_the_model(
    place: &Place,
    full: bool,
    steps: &[Step],
    course: &Course,
) -> Result<(), TestCaseError> {
    let log = log(steps);
    let mut model = Model {
        full,
        owners: HashMap::new(),
        held: HashMap::new(),
    };
    let expected: Vec<Option<Op>> = log
        .iter()
        .map(|entry| expected(entry.op, model.judge(entry)))
        .collect();
    let json = json!({"key": ["idempotency_key"], "window": format!("{WINDOW}s")});
    run(place, &log, course, full, &json, |index, op| {
        prop_assert_eq!(op, expected[index], "change {} of {:#?}", index, log);
        Ok(())
    })?;
    Ok(())
}

fn by_count(
    place: &Place,
    full: bool,
    steps: &[Step],
    course: &Course,
    keys: u64,
) -> Result<(), TestCaseError> {
    let log = log(steps);
    let json =
        json!({"key": ["idempotency_key"], "window": format!("{WINDOW}s"), "max_keys": keys});
    let mut first: Vec<Option<Option<Op>>> = vec![None; log.len()];
    run(place, &log, course, full, &json, |index, op| {
        let known = *first[index].get_or_insert(op);
        prop_assert_eq!(op, known, "change {} of {:#?}", index, log);
        Ok(())
    })?;
    Ok(())
}

/// A turn of a source: which one, so many changes, and perhaps a crash with a replay from this part (in 256ths).
type Turn = (usize, usize, Option<u8>);

/// Two sources share the keys; each is replayed by itself. The first occurrence is the first to arrive.
fn sharing_keys(place: &Place, logs: &[Vec<Step>], turns: &[Turn]) -> Result<(), TestCaseError> {
    let names = ["shop", "inventory"];
    let columns = ["id int8", "idempotency_key text", "v int8"];
    let tables =
        names.map(|name| table_of(name, "public.t", &columns, &["id"], ReplicaIdentity::Full));
    let logs: Vec<Vec<Entry>> = logs.iter().map(|steps| log(steps)).collect();
    let json = json!({"key": ["idempotency_key"], "window": "1d", "scope": "all"});
    let open = || place.open(json.clone(), &[&tables[0], &tables[1]], &Arc::default());
    let mut dedupe = open();
    let mut starts = [0, 0];
    let mut first: HashMap<(usize, usize), Option<Op>> = HashMap::new();
    for &(source, size, crash) in turns {
        let (start, log) = (starts[source], &logs[source]);
        let end = (start + size).min(log.len());
        let out = dedupe
            .apply_now(batch(&tables[source], names[source], log, start, end, true))
            .unwrap();
        let outcome = outcome(&out);
        for (index, entry) in log.iter().enumerate().take(end).skip(start) {
            let position = (10 * (entry.transaction as u64 + 1), entry.ordinal + 1);
            let op = outcome.get(&position).and_then(|ops| ops.first()).copied();
            let known = *first.entry((source, index)).or_insert(op);
            prop_assert_eq!(op, known, "change {} of source {}", index, source);
        }
        starts[source] = end;
        if let Some(part) = crash {
            drop(dedupe);
            place.next();
            dedupe = open();
            for (start, log) in starts.iter_mut().zip(&logs) {
                let back = *start * usize::from(part) / 256;
                let begins =
                    |index: &usize| log.get(*index).is_some_and(|entry| entry.ordinal == 0);
                *start = (0..=back).rev().find(begins).unwrap_or(0);
            }
        }
    }
    Ok(())
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let crash = proptest::option::weighted(0.15, any::<u8>());
    proptest::collection::vec((0_usize..2, 1_usize..8, crash), 1..60)
}

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..most)
}

macro_rules! models {
    ($store:ident, $cases:literal, $place:expr) => {
        mod $store {
            use super::*;

            fn available() -> bool {
                stringify!($store) == "embedded" || lockstep_kit::Component::Redis.is_available()
            }

            #[test]
            fn is_there() {
                if stringify!($store) == "redis" {
                    lockstep_kit::require!(lockstep_kit::Component::Redis);
                }
            }

            proptest! {
                #![proptest_config(cases($cases))]

                #[test]
                fn as_the_model_whatever_happens(
                    full in any::<bool>(), steps in steps(120), course in course(),
                ) {
                    if !available() {
                        return Ok(());
                    }
                    as_the_model(&$place, full, &steps, &course)?;
                }

                #[test]
                fn a_window_by_count_is_stable_under_replay(
                    full in any::<bool>(), steps in steps(120), course in course(), keys in 1_u64..5,
                ) {
                    if !available() {
                        return Ok(());
                    }
                    by_count(&$place, full, &steps, &course, keys)?;
                }

                #[test]
                fn sources_that_share_keys_are_stable_under_replay(
                    logs in proptest::collection::vec(steps(60), 2), turns in turns(),
                ) {
                    if !available() {
                        return Ok(());
                    }
                    sharing_keys(&$place, &logs, &turns)?;
                }
            }
        }
    };
}

models!(embedded, 100, Place::embedded());
// Replicas take turns at each crash.
models!(redis, 40, Place::redis());

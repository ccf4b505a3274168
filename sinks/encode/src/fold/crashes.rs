//! A model of a sink that is not atomic, killed at any write and replayed with batches cut elsewhere.

use std::collections::BTreeMap;

use lockstep_core::batch::Batch;
use lockstep_core::position::Position;
use proptest::prelude::*;

use super::held::{Looked, Place, Seen, locate};
use super::tests::{Cells, State, Step, play, spliced, step, table_index};
use super::{Write, fold};

/// How finely a sink's versions tell writes apart: the first so many changes of a transaction, the rest together.
#[derive(Clone, Copy, Debug)]
struct Grain(u64);

/// Every change.
const FINE: Grain = Grain(u64::MAX);

type Version = (u64, u64);

#[derive(Clone, Debug, Default)]
struct Sink {
    /// Rows, and deletions that are remembered.
    keys: BTreeMap<(usize, String), (Version, Option<Cells>)>,
    /// The latest TRUNCATE of each table.
    floors: BTreeMap<usize, Version>,
}

/// The values of a row were nowhere.
#[derive(Debug)]
struct Lost;

impl Sink {
    fn seen(&self, table: usize, key: &str) -> Seen<Version> {
        match self.keys.get(&(table, key.to_owned())) {
            None => Seen::NOTHING,
            Some((version, cells)) => Seen {
                is_there: cells.is_some(),
                version: Some(*version),
            },
        }
    }

    fn cells(&self, table: usize, key: &str) -> Option<Cells> {
        self.keys.get(&(table, key.to_owned()))?.1.clone()
    }

    /// What a write needs to be whole; `None` when it is to be left out.
    fn base(&self, write: &Write<'_>, grain: Grain) -> Result<Option<Option<Cells>>, Lost> {
        let Write::Upsert {
            key,
            schema,
            missing_from: Some(from),
            missing_before,
            position,
            ..
        } = write
        else {
            return Ok(Some(None));
        };
        let table = table_index(schema);
        let version = grain.version(*position);
        let looked = Looked {
            version,
            before: grain.version(*missing_before),
            moved: from != key,
            truncated: self.floors.get(&table).copied(),
        };
        match locate(&looked, &self.seen(table, from), &self.seen(table, key)) {
            Place::From => Ok(Some(self.cells(table, from))),
            Place::To => Ok(Some(self.cells(table, key))),
            Place::Later => Ok(None),
            Place::Nowhere => Err(Lost),
        }
    }

    fn write(&mut self, batch: &Batch, write: &Write<'_>, base: Option<&Cells>, grain: Grain) {
        let (table, version) = (table_index(write.schema()), grain.version(write.position()));
        let (key, cells) = match write {
            Write::Upsert {
                key, schema, row, ..
            } => (key, Some(spliced(row.row(batch), schema, base))),
            Write::Delete { key, .. } => (key, None),
            Write::Truncate { .. } => {
                let floor = self.floors.entry(table).or_insert(version);
                *floor = version.max(*floor);
                for ((of, _), (at, cells)) in &mut self.keys {
                    if *of == table && *at <= version {
                        (*at, *cells) = (version, None);
                    }
                }
                return;
            }
        };
        let held = self
            .keys
            .entry((table, key.clone()))
            .or_insert((version, None));
        if held.0 <= version {
            *held = (version, cells);
        }
    }
}

impl Grain {
    fn version(self, position: Position) -> Version {
        (position.commit.0, position.ordinal.min(self.0))
    }
}

/// Numbers that look random and come again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % end.max(1)
    }
}

/// Writes the changes from `start` on, in batches cut by the dice, until `writes` are written; returns up to which change
/// everything is acknowledged.
fn run(
    sink: &mut Sink,
    whole: &Batch,
    start: usize,
    mut writes: usize,
    dice: &mut Dice,
    grain: Grain,
) -> Result<usize, Lost> {
    let mut at = start;
    while at < whole.changes().len() {
        let end = (at + 1 + dice.below(8)).min(whole.changes().len());
        let batch = whole.with_changes(whole.changes()[at..end].to_vec());
        for part in fold(&batch).expect("all tables have keys") {
            for mut round in part.rounds() {
                let mut bases = Vec::new();
                for write in &round {
                    bases.push(sink.base(write, grain)?);
                }
                // A round lands in any order.
                while !round.is_empty() {
                    let next = dice.below(round.len());
                    let (write, base) = (round.swap_remove(next), bases.swap_remove(next));
                    if writes == 0 {
                        return Ok(at);
                    }
                    writes -= 1;
                    if let Some(base) = base {
                        sink.write(&batch, write, base.as_ref(), grain);
                    }
                }
            }
        }
        at = end;
    }
    Ok(at)
}

/// Kills and replays; then everything must be as in the database.
fn survive(steps: &[Step], seed: u64, grain: Grain) -> Result<(State, State), Lost> {
    let mut database = State::new();
    let whole = play(steps, &mut database);
    let (mut sink, mut dice) = (Sink::default(), Dice(seed));
    let mut start = 0;
    for _ in 0..4 {
        let writes = dice.below(40);
        let acknowledged = run(&mut sink, &whole, start, writes, &mut dice, grain)?;
        // What is on record follows what is acknowledged.
        start += dice.below(acknowledged - start + 1);
    }
    run(&mut sink, &whole, start, usize::MAX, &mut dice, grain)?;
    let rows = sink.keys.into_iter();
    let rows = rows.filter_map(|(key, (_, cells))| Some((key, cells?)));
    Ok((rows.collect(), database))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn kills_and_replays_end_where_the_database_ends(steps in steps(), seed in any::<u64>()) {
        let (sink, database) = survive(&steps, seed, FINE)
            .map_err(|Lost| TestCaseError::fail("a value is nowhere"))?;
        prop_assert_eq!(sink, database);
    }

    /// Such versions do not tell rows apart that have one key in one transaction.
    #[test]
    fn coarse_versions_do_where_no_key_is_used_twice(steps in steps(), seed in any::<u64>(), grain in 0..6_u64) {
        let (sink, database) = survive(&without_reuse(steps), seed, Grain(grain))
            .map_err(|Lost| TestCaseError::fail("a value is nowhere"))?;
        prop_assert_eq!(sink, database);
    }
}

/// Commits before a step that uses a key which the transaction has used, or a table that it has.
fn without_reuse(steps: Vec<Step>) -> Vec<Step> {
    let mut used = Vec::new();
    let mut out = Vec::new();
    for step in steps {
        let again = match step {
            Step::Insert { table, key }
            | Step::Update { table, key, .. }
            | Step::Delete { table, key } => used.contains(&(table, key)),
            Step::Rekey {
                table, from, to, ..
            } => used.contains(&(table, from)) || used.contains(&(table, to)),
            Step::Truncate { .. } => !used.is_empty(),
            Step::Alter { .. } | Step::Commit => false,
        };
        if again {
            out.push(Step::Commit);
        }
        if again || matches!(step, Step::Commit) {
            used.clear();
        }
        match step {
            Step::Insert { table, key }
            | Step::Update { table, key, .. }
            | Step::Delete { table, key } => used.push((table, key)),
            Step::Rekey {
                table, from, to, ..
            } => used.extend([(table, from), (table, to)]),
            Step::Truncate { .. } | Step::Alter { .. } | Step::Commit => {}
        }
        let alone = matches!(step, Step::Truncate { .. });
        out.push(step);
        if alone {
            out.push(Step::Commit);
        }
    }
    out
}

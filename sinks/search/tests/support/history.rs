//! Random histories of one table, and what they come to.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_core::batch::Batch;
use lockstep_core::position::{Position, SourceInfo};
use lockstep_core::schema::TableSchema;

use crate::support::{Feed, V, position};

/// A change.
#[derive(Clone, Debug)]
pub enum Step {
    Put(String, String, Option<String>),
    Gone(String),
    Rekey(String, String, String),
    Truncate,
}

/// Numbers that are the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Steps that a database could make: updates, deletes and key changes of rows that are there.
pub fn history(random: &mut Random, length: usize) -> Vec<(u64, Step)> {
    let mut there: Vec<String> = Vec::new();
    let mut commit = 100;
    let mut history = Vec::new();
    for number in 0..length {
        if random.below(3) == 0 {
            commit += 100;
        }
        let status = format!("s{number}");
        let pick =
            |random: &mut Random, there: &[String]| random.below(there.len() as u64) as usize;
        let step = match random.below(40) {
            0 => {
                there.clear();
                Step::Truncate
            }
            1..=8 if !there.is_empty() => {
                let at = pick(random, &there);
                Step::Gone(there.swap_remove(at))
            }
            9..=13 if !there.is_empty() => {
                let at = pick(random, &there);
                let old = std::mem::replace(&mut there[at], (1000 + number).to_string());
                Step::Rekey(old, there[at].clone(), status)
            }
            14..=28 if !there.is_empty() => {
                let at = pick(random, &there);
                let note = (random.below(2) == 0).then(|| format!("n{number}"));
                Step::Put(there[at].clone(), status, note)
            }
            _ => {
                let id = random.below(60).to_string();
                if there.contains(&id) {
                    continue;
                }
                there.push(id.clone());
                Step::Put(id, status, Some(format!("n{number}")))
            }
        };
        history.push((commit, step));
    }
    history
}

/// The rows after the history, or after its part up to a position.
pub fn model(history: &[(u64, Step)], until: Option<Position>) -> BTreeMap<String, String> {
    let mut rows: BTreeMap<String, (String, String)> = BTreeMap::new();
    let (mut commit, mut ordinal) = (0, 0);
    for (at, step) in history {
        ordinal = if *at == commit { ordinal + 1 } else { 1 };
        commit = *at;
        if until.is_some_and(|until| position(commit, ordinal) > until) {
            break;
        }
        match step {
            Step::Put(id, status, Some(note)) => {
                rows.insert(id.clone(), (status.clone(), note.clone()));
            }
            Step::Put(id, status, None) => {
                rows.get_mut(id).expect("there").0.clone_from(status);
            }
            Step::Gone(id) => {
                rows.remove(id);
            }
            Step::Rekey(old, new, status) => {
                let (_, note) = rows.remove(old).expect("there");
                rows.insert(new.clone(), (status.clone(), note));
            }
            Step::Truncate => rows.clear(),
        }
    }
    rows.into_iter()
        .map(|(id, (status, note))| (id, format!("{status:?} {note:?}")))
        .collect()
}

/// The history beyond a position, in batches cut at random, also inside of transactions.
pub fn cut(
    history: &[(u64, Step)],
    source: &Arc<SourceInfo>,
    orders: &Arc<TableSchema>,
    random: &mut Random,
    after: Option<Position>,
) -> Vec<Arc<Batch>> {
    let mut batches = Vec::new();
    let mut feed = Feed::new(source);
    let mut filled = 0;
    let (mut commit, mut ordinal) = (0, 0);
    for (at, step) in history {
        let begins = *at != commit;
        ordinal = if begins { 1 } else { ordinal + 1 };
        commit = *at;
        if after.is_some_and(|after| position(commit, ordinal) <= after) {
            continue;
        }
        if begins || filled == 0 {
            feed.continued(commit, ordinal - 1);
        }
        match step {
            Step::Put(id, status, note) => {
                let note = note.as_deref().map_or(V::Unchanged, V::Text);
                feed.update(orders, &[V::Text(id), V::Text(status), note])
            }
            Step::Gone(id) => feed.delete(orders, id),
            Step::Rekey(old, new, status) => {
                feed.rekey(orders, old, &[V::Text(new), V::Text(status), V::Unchanged])
            }
            Step::Truncate => feed.truncate(orders),
        };
        filled += 1;
        if random.below(8) == 0 {
            batches.push(feed.finish());
            feed = Feed::new(source);
            filled = 0;
        }
    }
    batches.push(feed.finish());
    batches
}

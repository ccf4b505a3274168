//! Random histories of one table, and what they come to.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_core::batch::Batch;
use lockstep_core::position::{Position, SourceInfo};
use lockstep_core::schema::TableSchema;

use crate::feed::{Feed, INT8, TEXT, V, position, table};

/// A change.
#[derive(Clone, Debug)]
pub enum Step {
    /// The row of this id gets this status, and this note unless it is left unchanged.
    Put(String, String, Option<String>),
    /// DELETE.
    Gone(String),
    /// From this id to that one, with this status and an unchanged note.
    Rekey(String, String, String),
    /// TRUNCATE.
    Truncate,
}

/// Numbers that are the same for the same seed, which is not 0.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Steps that a database could make: updates, deletes and key changes of rows that are there.
#[must_use]
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

/// The steps with their positions.
pub fn positions(history: &[(u64, Step)]) -> impl Iterator<Item = (Position, &Step)> {
    let (mut commit, mut ordinal) = (0, 0);
    history.iter().map(move |(at, step)| {
        ordinal = if *at == commit { ordinal + 1 } else { 1 };
        commit = *at;
        (position(commit, ordinal), step)
    })
}

/// Column to text; a NULL is not there.
pub type Row = BTreeMap<String, String>;

/// The rows of [`items`] after the history, or after its part up to a position, by id.
#[must_use]
pub fn model(history: &[(u64, Step)], until: Option<Position>) -> BTreeMap<String, Row> {
    let mut rows: BTreeMap<String, (String, String)> = BTreeMap::new();
    for (position, step) in positions(history) {
        if until.is_some_and(|until| position > until) {
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
    let rows = rows.into_iter();
    rows.map(|(id, (status, note))| (id.clone(), row(&id, &status, &note)))
        .collect()
}

/// A row of [`items`].
#[must_use]
pub fn row(id: &str, status: &str, note: &str) -> Row {
    let columns = [("id", id), ("status", status), ("note", note)];
    columns
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// The table of histories: `id int8` the key, `status text`, `note text`.
#[must_use]
pub fn items(source: &str, name: &str) -> Arc<TableSchema> {
    let columns = [
        ("id", "int8", INT8),
        ("status", "text", TEXT),
        ("note", "text", TEXT),
    ];
    table(source, name, 1, &columns)
}

/// The history beyond a position, in batches cut at random, also inside of transactions.
pub fn cut(
    history: &[(u64, Step)],
    source: &Arc<SourceInfo>,
    items: &Arc<TableSchema>,
    random: &mut Random,
    after: Option<Position>,
) -> Vec<Arc<Batch>> {
    let rest =
        positions(history).filter(|(position, _)| after.is_none_or(|after| *position > after));
    let mut rest = rest.peekable();
    let mut batches = Vec::new();
    let mut feed = Feed::new(source);
    let mut open = None;
    while let Some((at, step)) = rest.next() {
        if open != Some(at.commit) {
            feed.continued(at.commit.0 / 8, at.ordinal - 1);
            open = Some(at.commit);
        }
        match step {
            Step::Put(id, status, note) => {
                let note = note.as_deref().map_or(V::Unchanged, V::Text);
                feed.update(items, &[V::Text(id), V::Text(status), note])
            }
            Step::Gone(id) => feed.delete(items, id),
            Step::Rekey(old, new, status) => {
                feed.rekey(items, old, &[V::Text(new), V::Text(status), V::Unchanged])
            }
            Step::Truncate => feed.truncate(items),
        };
        let goes_on = rest
            .peek()
            .is_some_and(|(next, _)| next.commit == at.commit);
        if rest.peek().is_none() || random.below(8) == 0 {
            batches.push(match goes_on {
                true => feed.finish_cut(),
                false => feed.finish(),
            });
            feed = Feed::new(source);
            open = None;
        }
    }
    batches
}

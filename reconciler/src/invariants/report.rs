//! What an evaluation says.

use std::collections::BTreeMap;

use lockstep_core::query::Row;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Invariant, Key, Rule};
use crate::report::State;

/// Rows that are shown of one key and side.
const ROWS: usize = 20;
/// Bytes from which on no further row is shown.
const BYTES: usize = 4_000;
/// Characters that are shown of a value.
const SHOWN: usize = 500;

/// An evaluation of one invariant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvariantReport {
    /// Its name.
    pub invariant: String,
    /// Its rule.
    pub rule: Rule,
    /// The columns of its key.
    pub key: Vec<String>,
    /// How the evaluation stands.
    pub state: State,
    /// When it began, microseconds since the Unix epoch.
    pub began_micros: i64,
    /// When it ended.
    pub ended_micros: Option<i64>,
    /// Rows that the first look has read, by source.
    pub rows: BTreeMap<String, u64>,
    /// Keys that they have.
    pub keys: u64,
    /// Looks that were taken.
    pub looks: u32,
    /// Keys that are proven to violate it.
    pub violated: u64,
    /// Keys that do not hold while a prepared transaction is not decided, which may be why.
    pub in_doubt: u64,
    /// Keys that did not hold at the last look, and nothing is proven of.
    pub undecided: u64,
    /// Keys that do not hold, and need not yet.
    pub pending: u64,
    /// Violations that had been told, and are over.
    pub ended: u64,
    /// Why it could not be evaluated.
    pub problem: Option<String>,
    /// The first of the keys that do not hold, those that are proven before the others.
    pub broken: Vec<Broken>,
}

/// How a key stands that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is proven.
    Violated,
    /// Prepared transactions are not decided that may be why.
    InDoubt,
    /// It is not proven yet: rows change whenever they are read, or transactions go on.
    Undecided,
    /// It may be so for a while yet.
    Pending,
}

/// A key that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broken {
    /// The values of the key.
    pub key: Key,
    /// How it stands.
    pub standing: Standing,
    /// What is wrong, as a sentence without full stop.
    pub why: String,
    /// When it was first seen not to hold, and has not been seen to hold since; microseconds since the Unix epoch.
    pub since_micros: i64,
    /// When its rows were first seen as they are.
    pub unchanged_micros: i64,
    /// Its rows, by source.
    pub rows: BTreeMap<String, Vec<Map<String, Value>>>,
    /// Rows of it that are not shown.
    pub more: u64,
    /// Transactions that were in progress when it was first seen like this, and are still.
    pub waits_for: Vec<Waiting>,
}

/// A transaction that something waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Name of the source whose database it is in.
    pub source: String,
    /// Its number.
    pub xid: u64,
    /// Its name, of one that is prepared.
    pub gid: Option<String>,
    /// When it was prepared, microseconds since the Unix epoch.
    pub prepared_micros: Option<i64>,
}

/// Names of the columns of rows, by side.
pub type Columns = Vec<Vec<String>>;

/// The rows of a key as they are shown, and how many are not.
pub(super) fn shown(
    invariant: &Invariant,
    columns: &Columns,
    sides: &[Vec<Row>],
) -> (BTreeMap<String, Vec<Map<String, Value>>>, u64) {
    let mut more = 0;
    let mut all = BTreeMap::new();
    for ((side, names), rows) in invariant.sides.iter().zip(columns).zip(sides) {
        let object = |row: &Row| -> Map<String, Value> {
            let values = row.iter().map(|value| match value {
                Some(text) => Value::String(cut(text)),
                None => Value::Null,
            });
            names.iter().cloned().zip(values).collect()
        };
        let mut bytes = 0;
        let fits = |row: &&Row| {
            let before = bytes;
            bytes += row.iter().flatten().map(String::len).sum::<usize>();
            before < BYTES
        };
        let some: Vec<_> = rows
            .iter()
            .take(ROWS)
            .take_while(fits)
            .map(object)
            .collect();
        more += (rows.len() - some.len()) as u64;
        all.insert(side.source.to_string(), some);
    }
    (all, more)
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

impl InvariantReport {
    /// Of an evaluation that begins.
    #[must_use]
    pub fn new(invariant: &Invariant, began_micros: i64) -> Self {
        InvariantReport {
            invariant: invariant.name.to_string(),
            rule: invariant.rule,
            key: invariant.key.clone(),
            state: State::Running,
            began_micros,
            ended_micros: None,
            rows: BTreeMap::new(),
            keys: 0,
            looks: 0,
            violated: 0,
            in_doubt: 0,
            undecided: 0,
            pending: 0,
            ended: 0,
            problem: None,
            broken: Vec::new(),
        }
    }

    /// Whether all keys were looked at and none does not hold, but for those that need not yet.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.state == State::Done && self.violated + self.in_doubt + self.undecided == 0
    }
}

//! What may pass by what is held, as it has no row in common with it.
//!
//! Each held transaction is looked at when it comes, and then when one that held it up by a row has gone on: the next with that row is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use lockstep_core::position::{Lsn, Position};

use super::Order;
use super::candidates::Look;
use super::source::Source;

/// So many spans may be ahead of what is held in a source: each record of a sink's progress has them. What would make more waits.
const MOST_SPANS: usize = 256;

/// The rows that a transaction has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Keys {
    /// Perhaps any: it has emptied a table, or changed one whose rows cannot be told apart; or nobody asks.
    #[default]
    Any,
    /// Those with these digests of table and key, each once.
    These(Arc<[u64]>),
}

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Passing {
    /// Whether anything ever passes.
    is_asked_for: bool,
    /// Whether anything passes now.
    is_open: bool,
    sources: HashMap<usize, Held>,
    /// Units to be looked at.
    fresh: BTreeSet<u64>,
}

/// What is held of a source.
#[derive(Debug, Default)]
struct Held {
    transactions: BTreeMap<Position, (u64, Keys)>,
    /// By row: who has changed it, in the order of commits.
    by_row: HashMap<u64, BTreeSet<Position>>,
    /// Those that may have changed any row.
    any: BTreeSet<Position>,
}

impl Passing {
    pub fn is_asked_for(&self) -> bool {
        self.is_asked_for
    }

    pub fn hold(&mut self, source: usize, place: Position, unit: u64, keys: Keys) {
        if !self.is_asked_for {
            return;
        }
        let held = self.sources.entry(source).or_default();
        match &keys {
            Keys::Any => {
                held.any.insert(place);
            }
            Keys::These(rows) => {
                for row in rows.iter() {
                    held.by_row.entry(*row).or_default().insert(place);
                }
            }
        }
        held.transactions.insert(place, (unit, keys));
        self.look_at(unit);
    }

    /// Something of it has changed.
    pub fn look_at(&mut self, unit: u64) {
        if self.is_open {
            self.fresh.insert(unit);
        }
    }

    /// A transaction has gone on: those that it alone held up are looked at.
    pub fn gone(&mut self, source: usize, place: Position) {
        let Some(held) = self.sources.get_mut(&source) else {
            return;
        };
        let Some((_, keys)) = held.transactions.remove(&place) else {
            return;
        };
        let mut woken = Vec::new();
        match keys {
            Keys::Any => {
                held.any.remove(&place);
                woken.extend(held.up_to_next(place));
            }
            Keys::These(rows) => {
                for row in rows.iter() {
                    let Some(holders) = held.by_row.get_mut(row) else {
                        continue;
                    };
                    holders.remove(&place);
                    let next = holders.first().and_then(|next| held.transactions.get(next));
                    woken.extend(next.map(|(unit, _)| *unit));
                    if holders.is_empty() {
                        held.by_row.remove(row);
                    }
                }
            }
        }
        woken.into_iter().for_each(|unit| self.look_at(unit));
    }

    /// Rows that were read behind this place have gone on.
    pub fn rows_gone(&mut self, source: usize, place: Position) {
        let held = self.sources.get(&source);
        let woken: Vec<u64> = held
            .map(|held| held.up_to_next(place))
            .into_iter()
            .flatten()
            .collect();
        woken.into_iter().for_each(|unit| self.look_at(unit));
    }

    pub fn forget(&mut self, source: usize) {
        self.sources.remove(&source);
    }
}

impl Held {
    /// Units behind a place up to the next that may have changed any row.
    fn up_to_next(&self, place: Position) -> impl Iterator<Item = u64> {
        let next = self.any.range(place..).next();
        let end = next.copied();
        let behind = self.transactions.range(place..);
        let behind = behind.take_while(move |(place, _)| end.is_none_or(|end| **place <= end));
        behind.map(|(_, (unit, _))| *unit)
    }

    /// Whether the transaction at a place, which was prepared there, has no row in common with what is held before that.
    fn is_free(&self, place: Position, prepared: Lsn) -> bool {
        let is_before = |other: &Position| other.commit < prepared && *other != place;
        if self.any.first().is_some_and(is_before) {
            return false;
        }
        let Some((_, Keys::These(rows))) = self.transactions.get(&place) else {
            return false;
        };
        let mut rows = rows.iter().filter_map(|row| self.by_row.get(row)?.first());
        !rows.any(is_before)
    }
}

impl Order {
    /// What may pass by what is held will be asked for: takes note of the rows that transactions have changed.
    #[must_use]
    pub fn with_rows(mut self) -> Self {
        self.passing.is_asked_for = true;
        self.sources.iter_mut().for_each(Source::gather_spans);
        self
    }

    /// From now on what has nothing to do with what is held passes by it, or not any more.
    pub fn let_pass(&mut self, passes: bool) {
        if std::mem::replace(&mut self.passing.is_open, passes) == passes {
            return;
        }
        self.passing.fresh.clear();
        if passes {
            self.passing.fresh.extend(self.units.keys());
        }
    }

    /// The next that passes.
    pub(super) fn next_passing(&mut self) -> Option<u64> {
        while let Some(id) = self.passing.fresh.pop_first() {
            if self.may_pass(id) {
                return Some(id);
            }
        }
        None
    }

    fn may_pass(&self, id: u64) -> bool {
        let is_behind = matches!(self.look(id), Look::Behind(_));
        let Some(waiting) = self.units.get(&id).filter(|_| is_behind) else {
            return false;
        };
        waiting.unit.rows.is_none()
            && waiting.prepared.is_empty()
            && waiting.unit.members.iter().all(|member| {
                let source = &self.sources[member.source];
                let held = self.passing.sources.get(&member.source);
                source.spans() < MOST_SPANS
                    && !source.has_rows_before(member.at)
                    && held.is_some_and(|held| held.is_free(member.place, member.prepared))
            })
    }
}

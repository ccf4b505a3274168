//! What of one source has been read, and what of that has gone on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use lockstep_core::position::{Lsn, Position};
use lockstep_core::progress::Progress;

use super::Reach;

/// So many that went on ahead are named one by one. Few in tests: spans are what is hard.
const FEW: usize = if cfg!(test) { 1 } else { 16 };

/// See the module's page.
#[derive(Debug)]
pub(super) struct Source {
    /// What ended up to here went on in an earlier life.
    from: Lsn,
    /// Read up to here.
    read: Lsn,
    /// The last PREPARE that was told.
    prepared: Lsn,
    /// The end of the last transaction, or up to where was read while nothing was held.
    last: Passed,
    /// In the order of the log, by numbers that count up.
    held: BTreeMap<u64, Held>,
    next: u64,
    /// What passes by is gathered into spans.
    gathers: bool,
    /// The last PREPARE before rows that were read, and are written.
    loaded: Lsn,
    /// Those of them that are rows that were read.
    rows: BTreeSet<u64>,
    /// Units of those that are transactions, by their places.
    places: BTreeMap<Position, u64>,
    /// Places where branches were prepared that have not ended, or whose commit has not gone on.
    open: BTreeSet<Lsn>,
    /// Places of what went on although something before it has not, or may not have.
    ahead: BTreeSet<Position>,
    /// The same, of what went on in the steps before the last, as spans between what is held: first places, and last.
    spans: BTreeMap<Position, Position>,
}

#[derive(Debug)]
struct Held {
    unit: u64,
    place: Position,
    /// Everything that ended before it.
    before: Passed,
    /// Where it was prepared, of a branch.
    prepared: Option<Lsn>,
}

/// A place of the log: everything that ended up to there.
#[derive(Clone, Copy, Debug, Default)]
struct Passed {
    end: Lsn,
    /// The last position before it.
    place: Position,
}

impl Source {
    pub fn new(reached: Reach) -> Self {
        Source {
            from: reached.through,
            // What is prepared lies before that, and is told again.
            read: Lsn::ZERO,
            prepared: Lsn::ZERO,
            last: Passed {
                end: reached.through,
                place: reached.upto,
            },
            held: BTreeMap::new(),
            next: 0,
            gathers: false,
            loaded: Lsn::ZERO,
            rows: BTreeSet::new(),
            places: BTreeMap::new(),
            open: BTreeSet::new(),
            ahead: reached.ahead,
            spans: reached.spans.into_iter().collect(),
        }
    }

    /// This much has gone on in an earlier life.
    pub fn went_on(&mut self, held: &Progress) {
        self.last.place = self.last.place.max(held.upto());
        self.ahead.extend(held.ahead());
        self.spans.extend(held.spans().iter().copied());
    }

    /// A PREPARE has been read. False when it has been before: they are read in the order of the log.
    pub fn is_prepared(&mut self, lsn: Lsn) -> bool {
        let is_news = lsn > self.prepared;
        self.prepared = self.prepared.max(lsn);
        if is_news {
            self.open.insert(lsn);
        }
        is_news
    }

    /// A branch that was prepared at `lsn` has ended, and nothing of it goes on any more.
    pub fn ended(&mut self, lsn: Lsn) {
        self.open.remove(&lsn);
    }

    /// Whatever was prepared before this place has ended, and gone on.
    pub fn settled(&self) -> Lsn {
        let through = self.before_all().end;
        self.open.first().map_or(through, |open| through.min(*open))
    }

    /// Whether a transaction that is read is held, or has gone on.
    pub fn is_known(&self, place: Position, end: Lsn) -> bool {
        end <= self.from
            || place <= self.upto()
            || self.places.contains_key(&place)
            || self.ahead.contains(&place)
            || self.lies_in_span(place)
    }

    fn lies_in_span(&self, place: Position) -> bool {
        let before = self.spans.range(..=place).next_back();
        before.is_some_and(|(_, to)| place <= *to)
    }

    /// What passes by from now on is gathered into spans.
    pub fn gather_spans(&mut self) {
        self.gathers = true;
    }

    /// How many spans there are of what has passed.
    pub fn spans(&self) -> usize {
        self.spans.len() + self.ahead.len()
    }

    /// Whether rows that were read before the one with the number `at` are held.
    pub fn has_rows_before(&self, at: u64) -> bool {
        self.rows.range(..at).next().is_some()
    }

    /// What has passed by what is held is as many spans as there are gaps between them, not one each.
    fn gather(&mut self) {
        while let Some(place) = self.ahead.pop_first() {
            // A message outside of transactions is one place; a transaction is all places up to it.
            let mut from = Position {
                ordinal: place.ordinal.min(1),
                ..place
            };
            let mut to = place;
            let between = |a: Position, b: Position| {
                let between = (Bound::Excluded(a), Bound::Excluded(b));
                a < b && self.places.range(between).next().is_some()
            };
            if let Some((&first, &last)) = self.spans.range(..from).next_back()
                && !between(last, from)
            {
                self.spans.remove(&first);
                from = first;
                // It may have ended inside the transaction: of an earlier life it is known how far that had come.
                to = to.max(last);
            }
            if let Some((&first, &last)) = self.spans.range(to..).next()
                && !between(to, first)
            {
                self.spans.remove(&first);
                to = last;
            }
            self.spans.insert(from, to);
        }
    }

    /// A transaction has been read that is known.
    pub fn passed(&mut self, place: Position, end: Lsn) {
        self.note(place, end);
        self.forget_passed();
    }

    /// A transaction has been read. Gives its number.
    pub fn hold(&mut self, place: Position, end: Lsn, unit: u64, prepared: Option<Lsn>) -> u64 {
        let at = self.put(unit, place, prepared);
        self.places.insert(place, unit);
        self.note(place, end);
        at
    }

    /// Rows have been read. Gives their number, the place they stand behind, and one of the log behind all commits before them.
    pub fn put_rows(&mut self, unit: u64) -> (u64, Position, Lsn) {
        let place = self.last.place;
        let at = self.put(unit, place, None);
        self.rows.insert(at);
        (at, place, Lsn(place.commit.0.saturating_add(1)))
    }

    /// Rows are written that were read here.
    pub fn load(&mut self) {
        self.loaded = self.prepared;
    }

    /// The last that was prepared before rows were read that are written.
    pub fn loaded(&self) -> Lsn {
        self.loaded
    }

    fn put(&mut self, unit: u64, place: Position, prepared: Option<Lsn>) -> u64 {
        let before = self.last;
        self.next += 1;
        self.held.insert(
            self.next,
            Held {
                unit,
                place,
                before,
                prepared,
            },
        );
        self.next
    }

    fn note(&mut self, place: Position, end: Lsn) {
        self.last.end = self.last.end.max(end);
        self.last.place = self.last.place.max(place);
        self.read = self.read.max(place.commit);
    }

    pub fn read_to(&mut self, lsn: Lsn) {
        self.read = self.read.max(lsn);
        self.forget_passed();
    }

    pub fn read_up_to(&self) -> Lsn {
        self.read
    }

    pub fn is_read_to(&self, lsn: Lsn) -> bool {
        self.read >= lsn
    }

    /// The unit of the first that is held.
    pub fn first(&self) -> Option<u64> {
        self.held.values().next().map(|held| held.unit)
    }

    /// Units of what is held and committed before `lsn`, and of rows that were read before the one with the number `at`.
    pub fn held_before(&self, lsn: Lsn, at: u64) -> impl Iterator<Item = u64> {
        let before = self.held.range(..at).map(|(_, held)| held);
        let before = before.take_while(move |held| held.place.commit < lsn);
        let rows = self.rows.range(..at);
        let rows = rows.filter_map(|at| self.held.get(at));
        before.chain(rows).map(|held| held.unit)
    }

    /// The last of [`Source::held_before`] but `unit`, transactions first: whoever waits for all of them is woken by few.
    pub fn last_held_before(&self, lsn: Lsn, at: u64, unit: u64) -> Option<u64> {
        let behind = Position {
            commit: lsn,
            ..Position::default()
        };
        let mut transactions = self.places.range(..behind).rev().map(|(_, of)| *of);
        let last = transactions.find(|of| *of != unit);
        last.or_else(|| {
            let rows = self.rows.range(..at).rev();
            let mut rows = rows.filter_map(|at| self.held.get(at));
            rows.find(|held| held.unit != unit).map(|held| held.unit)
        })
    }

    pub fn go_on(&mut self, at: u64) {
        let Some(held) = self.held.remove(&at) else {
            return;
        };
        held.prepared.inspect(|lsn| self.ended(*lsn));
        if !self.rows.remove(&at) {
            self.places.remove(&held.place);
            self.ahead.insert(held.place);
        }
    }

    /// Units of all that is held.
    pub fn held(&self) -> impl Iterator<Item = u64> {
        self.held.values().map(|held| held.unit)
    }

    /// What lies before all that is held needs no mention.
    pub fn forget_passed(&mut self) {
        if self.held.is_empty() {
            self.last.end = self.last.end.max(self.read);
        }
        // What has not been read yet stays: it went on in an earlier life.
        let upto = self.upto();
        while self.ahead.first().is_some_and(|place| *place <= upto) {
            self.ahead.pop_first();
        }
        while let Some((&from, &to)) = self.spans.first_key_value()
            && to <= upto
        {
            self.spans.remove(&from);
        }
        if self.gathers && (self.ahead.len() > FEW || !self.spans.is_empty()) {
            self.gather();
        }
    }

    fn before_all(&self) -> Passed {
        let first = self.held.values().next();
        first.map_or(self.last, |held| held.before)
    }

    fn upto(&self) -> Position {
        self.before_all().place
    }

    pub fn reach(&self) -> Reach {
        let Passed { end, place } = self.before_all();
        Reach {
            through: end,
            upto: place,
            ahead: self.ahead.clone(),
            spans: self.spans.iter().map(|(from, to)| (*from, *to)).collect(),
        }
    }
}

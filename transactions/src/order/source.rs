//! What of one source has been read, and what of that has gone on.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_core::position::Lsn;

use super::Reach;

/// See the module's page.
#[derive(Debug)]
pub(super) struct Source {
    /// What ended up to here went on in an earlier life.
    from: Lsn,
    /// Read up to here.
    read: Lsn,
    /// The end of the last transaction, or up to where was read while nothing was held.
    last: Lsn,
    /// By commit, what has not gone on: its unit, and up to where everything had ended before it.
    held: BTreeMap<Lsn, (u64, Lsn)>,
    /// Commits of what went on although something before it has not, or may not have.
    ahead: BTreeSet<Lsn>,
}

impl Source {
    pub fn new(reached: Reach) -> Self {
        Source {
            from: reached.through,
            read: reached.through,
            last: reached.through,
            held: BTreeMap::new(),
            ahead: reached.ahead,
        }
    }

    /// Whether a transaction that is read went on in an earlier life.
    pub fn has_gone_on(&self, commit: Lsn, end: Lsn) -> bool {
        end <= self.from || self.ahead.contains(&commit)
    }

    /// A transaction has been read that had gone on before.
    pub fn passed(&mut self, commit: Lsn, end: Lsn) {
        self.note(commit, end);
        self.forget_passed();
    }

    /// A transaction has been read.
    pub fn hold(&mut self, commit: Lsn, end: Lsn, unit: u64) {
        self.held.insert(commit, (unit, self.last));
        self.note(commit, end);
    }

    fn note(&mut self, commit: Lsn, end: Lsn) {
        self.last = self.last.max(end);
        self.read = self.read.max(commit);
    }

    pub fn read_to(&mut self, lsn: Lsn) {
        self.read = self.read.max(lsn);
        self.forget_passed();
    }

    pub fn is_read_to(&self, lsn: Lsn) -> bool {
        self.read >= lsn
    }

    /// The unit of the first that is held.
    pub fn first(&self) -> Option<u64> {
        self.held.values().next().map(|(unit, _)| *unit)
    }

    /// Units of what is held and committed before `lsn`.
    pub fn held_before(&self, lsn: Lsn) -> impl Iterator<Item = u64> {
        self.held.range(..lsn).map(|(_, (unit, _))| *unit)
    }

    pub fn go_on(&mut self, commit: Lsn) {
        self.held.remove(&commit);
        self.ahead.insert(commit);
        self.forget_passed();
    }

    /// What lies before all that is held needs no mention.
    fn forget_passed(&mut self) {
        if self.held.is_empty() {
            self.last = self.last.max(self.read);
        }
        // What has not been read yet stays: it went on in an earlier life.
        let through = self.through();
        self.ahead = self.ahead.split_off(&through);
    }

    fn through(&self) -> Lsn {
        let first = self.held.values().next();
        first.map_or(self.last, |(_, before)| *before)
    }

    pub fn reach(&self) -> Reach {
        Reach {
            through: self.through(),
            ahead: self.ahead.clone(),
        }
    }
}

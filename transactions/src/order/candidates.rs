//! Which units with names are looked at when something may go on: those of which something has changed since the last look. Thousands
//! may wait for one that is in doubt, and are not looked at again before it has ended.

use std::collections::{BTreeSet, HashMap};

use lockstep_core::position::Lsn;

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// To be looked at.
    fresh: BTreeSet<u64>,
    /// Those that were found to go behind one that is held, by that one.
    behind: HashMap<u64, Vec<u64>>,
    /// By source: those that wait for it to be read up to a place.
    unread: Vec<BTreeSet<(Lsn, u64)>>,
}

/// What a look at a unit finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It may go on.
    Free,
    /// It goes behind this one, which is held.
    Behind(u64),
    /// All its branches are known when this source is read up to there.
    Unread(usize, Lsn),
    /// All its branches are known, and one has not ended.
    InDoubt,
    /// Something has to be told of it yet.
    Incomplete,
}

impl Candidates {
    pub fn of(sources: usize) -> Self {
        Candidates {
            unread: vec![BTreeSet::new(); sources],
            ..Candidates::default()
        }
    }

    /// Something of it has changed.
    pub fn look_at(&mut self, id: u64) {
        self.fresh.insert(id);
    }

    /// The oldest to be looked at.
    pub fn first(&self) -> Option<u64> {
        self.fresh.first().copied()
    }

    /// It was looked at, and may not go on.
    pub fn put_aside(&mut self, id: u64, found: &Look) {
        self.fresh.remove(&id);
        match *found {
            Look::Behind(other) => self.behind.entry(other).or_default().push(id),
            Look::Unread(source, lsn) => {
                self.unread[source].insert((lsn, id));
            }
            Look::Free | Look::InDoubt | Look::Incomplete => {}
        }
    }

    /// It has gone on, or there is nothing of it any more.
    pub fn gone(&mut self, id: u64) {
        self.fresh.remove(&id);
        self.fresh
            .extend(self.behind.remove(&id).into_iter().flatten());
    }

    /// A source is read up to there.
    pub fn read(&mut self, source: usize, to: Lsn) {
        while let Some(&(lsn, id)) = self.unread[source].first()
            && lsn <= to
        {
            self.unread[source].pop_first();
            self.fresh.insert(id);
        }
    }
}

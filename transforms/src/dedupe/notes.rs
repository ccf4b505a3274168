//! What both stores have in common: the logs that facts are from, and what the batch at hand has read and changed.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use lockstep_core::position::SourceIdentity;

use super::digest::Digest;
use super::history::{Claim, History, Standing};

/// The logs that facts are from, by number, since facts carry the number.
///
/// A source may give a log up for another one: its server was restored to an earlier point, or replaced. What is known
/// from the log that was given up may never have happened in the one that counts, so it counts for nothing: a key whose
/// first occurrence is gone must be free for the one that takes its place. The copy that begins the other log brings all
/// rows that there are, and with them their keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Logs {
    pub(crate) numbers: HashMap<SourceIdentity, u16>,
    /// By name of the source: the log it reads.
    pub(crate) current: HashMap<String, u16>,
    /// Logs that no source reads any more.
    pub(crate) given_up: HashSet<u16>,
}

impl Logs {
    /// The number of a log, when the source is known to read it.
    pub(crate) fn read_by(&self, name: &str, identity: &SourceIdentity) -> Option<u16> {
        let number = *self.numbers.get(identity)?;
        (self.current.get(name) == Some(&number)).then_some(number)
    }

    /// The source reads this log from now on. Returns the log it has given up, unless another source reads it.
    pub(crate) fn switch(&mut self, name: &str, number: u16) -> Option<u16> {
        let before = self.current.insert(name.to_owned(), number);
        self.given_up.remove(&number);
        let before = before.filter(|before| *before != number)?;
        if self.current.values().any(|current| *current == before) {
            return None;
        }
        self.given_up.insert(before);
        Some(before)
    }

    /// Whether what is known from a log counts.
    pub(crate) fn counts(&self, number: u16) -> bool {
        !self.given_up.contains(&number)
    }
}

/// What the batch at hand has read and changed.
#[derive(Default)]
pub(crate) struct Notes {
    pub(crate) claims: Table<Claim>,
    pub(crate) rows: Table<Standing>,
    pub(crate) sequence: u64,
}

impl Notes {
    /// For the next batch; `sequence` keys were claimed before it.
    pub(crate) fn clear(&mut self, sequence: u64) {
        self.claims.clear();
        self.rows.clear();
        self.sequence = sequence;
    }
}

pub(crate) type Table<F> = HashMap<Digest, Entry<F>, BuildHasherDefault<Prefix>>;

/// What is known about a key or a row.
pub(crate) struct Entry<F> {
    pub(crate) history: History<F>,
    pub(crate) changed: bool,
    /// As the store holds it, where it is compared before it is replaced.
    pub(crate) stored: Vec<u8>,
}

impl<F> Default for Entry<F> {
    fn default() -> Self {
        Entry::of(History::default())
    }
}

impl<F> Entry<F> {
    pub(crate) fn of(history: History<F>) -> Self {
        Entry {
            history,
            changed: false,
            stored: Vec::new(),
        }
    }
}

/// A digest is its own hash.
#[derive(Default)]
pub(crate) struct Prefix(u64);

impl Hasher for Prefix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, word: u64) {
        self.0 ^= word;
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_given_up_when_nobody_reads_it() {
        let mut logs = Logs::default();
        assert_eq!(logs.switch("orders", 0), None);
        assert_eq!(logs.switch("orders", 0), None);
        assert_eq!(logs.switch("again", 0), None);
        assert_eq!(logs.switch("orders", 1), None, "`again` reads it");
        assert!(logs.counts(0));
        assert_eq!(logs.switch("again", 2), Some(0));
        assert!(!logs.counts(0) && logs.counts(1) && logs.counts(2));
        assert_eq!(logs.switch("again", 0), Some(2));
        assert!(logs.counts(0), "it is read again");
    }
}

//! Which rows a pass has read, at eight bytes each.

use std::hash::{BuildHasher, Hash, RandomState};

/// Rows that are remembered: 32 MiB of them.
const MOST: usize = 4 << 20;

/// Hashes of keys of which a row was read.
///
/// A key that a sink holds and that is among them needs no look at the source again: its row was there while the pass was
/// under way, and has been compared. What is wrong when a pass begins is never among them. That two keys share a hash of 64
/// bits is as likely as an error of the memory, and other keys share one next time.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    hashes: RandomState,
    keys: Vec<u64>,
    /// How many of `keys` are in order.
    sorted: usize,
}

impl Seen {
    /// Takes a key in, while there is room: one that is not remembered is looked up.
    pub(crate) fn insert(&mut self, key: &impl Hash) {
        if self.keys.len() < MOST {
            self.keys.push(self.hashes.hash_one(key));
        }
    }

    /// Whether it was taken in.
    pub(crate) fn has(&mut self, key: &impl Hash) -> bool {
        if self.sorted < self.keys.len() {
            self.keys.sort_unstable();
            self.sorted = self.keys.len();
        }
        self.keys.binary_search(&self.hashes.hash_one(key)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_in_is_there_and_nothing_else() {
        let mut seen = Seen::default();
        for round in 0..3 {
            for number in 0..1_000_u32 {
                seen.insert(&vec![(round * 1_000 + number).to_string()]);
            }
            for number in 0..4_000 {
                let is_there = number < (round + 1) * 1_000;
                assert_eq!(seen.has(&vec![number.to_string()]), is_there, "{number}");
            }
        }
    }
}

//! Which rows a pass has read, at eight bytes each.

use std::hash::{BuildHasher, Hash, RandomState};

/// Rows that are remembered: 32 MiB of them.
const MOST: usize = 4 << 20;
/// Parts that hashes are kept in: as many as a byte has values.
const PARTS: usize = 256;

/// Hashes of keys of which a row was read.
///
/// A key that a sink holds and that is among them needs no look at the source again: its row was there while the pass was
/// under way, and has been compared. What is wrong when a pass begins is never among them. That two keys share a hash of 64
/// bits is as likely as an error of the memory, and other keys share one next time.
#[derive(Debug)]
pub(crate) struct Seen {
    hashes: RandomState,
    /// By the first byte of the hash: parts grow one by one, and none is copied as a whole.
    parts: Vec<Part>,
    count: usize,
}

#[derive(Clone, Debug, Default)]
struct Part {
    hashes: Vec<u64>,
    /// How many of them are in order.
    sorted: usize,
}

impl Default for Seen {
    fn default() -> Self {
        Seen {
            hashes: RandomState::new(),
            parts: vec![Part::default(); PARTS],
            count: 0,
        }
    }
}

impl Seen {
    /// Takes a key in, while there is room: one that is not remembered is looked up.
    pub(crate) fn insert(&mut self, key: &impl Hash) {
        if self.count < MOST {
            self.count += 1;
            let hash = self.hashes.hash_one(key);
            self.parts[part_of(hash)].hashes.push(hash);
        }
    }

    /// Whether it was taken in.
    pub(crate) fn has(&mut self, key: &impl Hash) -> bool {
        let hash = self.hashes.hash_one(key);
        let part = &mut self.parts[part_of(hash)];
        if part.sorted < part.hashes.len() {
            part.hashes.sort_unstable();
            part.sorted = part.hashes.len();
        }
        part.hashes.binary_search(&hash).is_ok()
    }
}

/// Below [`PARTS`].
fn part_of(hash: u64) -> usize {
    (hash >> 56) as usize
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

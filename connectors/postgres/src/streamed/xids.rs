//! A set of transaction ids.

use std::collections::HashMap;

/// Ids of one chunk, as bits.
const CHUNK: u32 = 4096;

/// Subtransactions that were rolled back. Ids of one transaction lie close together, so a bit each is what they cost: a
/// transaction that rolls ten million savepoints back needs a few megabytes.
#[derive(Clone, Debug, Default)]
pub struct Xids(HashMap<u32, Box<[u64; (CHUNK / 64) as usize]>>);

impl Xids {
    pub fn insert(&mut self, xid: u32) {
        let (chunk, word, bit) = place(xid);
        self.0
            .entry(chunk)
            .or_insert_with(|| Box::new([0; (CHUNK / 64) as usize]))[word] |= bit;
    }

    #[inline]
    pub fn contains(&self, xid: u32) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let (chunk, word, bit) = place(xid);
        self.0
            .get(&chunk)
            .is_some_and(|words| words[word] & bit != 0)
    }
}

/// A part of a set, for those who go through it piece by piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part(u32);

impl Xids {
    /// The parts that hold something, in order.
    pub fn parts(&self) -> Vec<Part> {
        let mut parts: Vec<Part> = self.0.keys().copied().map(Part).collect();
        parts.sort_unstable();
        parts
    }

    /// The ids of a part, at most 4096, in order.
    pub fn of(&self, part: Part) -> impl Iterator<Item = u32> {
        let words = self.0.get(&part.0).map(|words| &words[..]);
        let bits = words
            .into_iter()
            .flatten()
            .flat_map(|word| (0..64).map(move |bit| word & (1 << bit) != 0));
        let within = 0_u32..;
        within
            .zip(bits)
            .filter_map(move |(at, is_in)| is_in.then_some(part.0 * CHUNK + at))
    }
}

fn place(xid: u32) -> (u32, usize, u64) {
    let within = xid % CHUNK;
    (xid / CHUNK, (within / 64) as usize, 1 << (within % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_was_put_in_and_nothing_else() {
        let mut xids = Xids::default();
        assert!(!xids.contains(0));
        for xid in [0, 63, 64, 4095, 4096, u32::MAX] {
            xids.insert(xid);
            assert!(xids.contains(xid));
        }
        for xid in [1, 62, 65, 4094, 4097, u32::MAX - 1] {
            assert!(!xids.contains(xid), "{xid}");
        }
        let all = xids.parts().into_iter().flat_map(|part| xids.of(part));
        let all: Vec<u32> = all.collect();
        assert_eq!(all, [0, 63, 64, 4095, 4096, u32::MAX]);
    }
}

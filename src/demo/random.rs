//! Numbers that look random and are the same for the same seed.

use std::fmt;

/// SplitMix64. Good enough for a shop, and no dependency.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A stream of its own for every combination of parts.
    #[must_use]
    pub fn new(parts: &[u64]) -> Self {
        let mut random = Random(0);
        for &part in parts {
            random.0 ^= part;
            random.0 = random.next_u64();
        }
        random
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 when `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(end)) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// An index below `length`; 0 when `length` is 0.
    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// True in `percent` of 100 calls.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`, which is not empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())]
    }

    /// A number below `end` where small ones are far more frequent, as with best-sellers.
    pub fn popular(&mut self, end: u64) -> u64 {
        let below = self.below(end) + 1;
        self.below(below)
    }

    /// A version 4 UUID.
    pub fn uuid(&mut self) -> Uuid {
        let bits = u128::from(self.next_u64()) << 64 | u128::from(self.next_u64());
        Uuid(bits & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62)
    }

    /// `length` bytes as PostgreSQL writes a `bytea`, `\x…`.
    pub fn bytea(&mut self, length: usize) -> String {
        let mut text = String::from("\\x");
        for _ in 0..length {
            text.push_str(&format!("{:02x}", self.below(256)));
        }
        text
    }
}

/// A UUID, printed in the usual form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Uuid(u128);

impl Uuid {
    /// Reads what `Display` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|&c| c != '-').collect();
        if digits.len() != 32 || text.len() != 36 {
            return None;
        }
        u128::from_str_radix(&digits, 16).ok().map(Uuid)
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Uuid(bits) = *self;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            bits >> 96,
            bits >> 80 & 0xffff,
            bits >> 64 & 0xffff,
            bits >> 48 & 0xffff,
            bits & 0xffff_ffff_ffff
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_shop() {
        let draw = |seed| {
            let mut random = Random::new(&[seed, 1]);
            (0..100).map(|_| random.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().all(|&n| n < 1000));
    }

    #[test]
    fn uuids_are_of_version_4_and_round_trip() {
        let mut random = Random::new(&[1]);
        for _ in 0..100 {
            let uuid = random.uuid();
            let text = uuid.to_string();
            assert_eq!(&text[14..15], "4", "{text}");
            assert!(matches!(&text[19..20], "8" | "9" | "a" | "b"), "{text}");
            assert_eq!(Uuid::parse(&text), Some(uuid));
        }
        assert_eq!(Uuid::parse("nonsense"), None);
    }

    #[test]
    fn popular_prefers_the_front() {
        let mut random = Random::new(&[3]);
        let front = (0..10_000).filter(|_| random.popular(100) < 10).count();
        assert!((2_500..4_500).contains(&front), "{front}");
    }
}

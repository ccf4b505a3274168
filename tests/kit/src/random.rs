//! Random numbers that a failing run can have again.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Sets the seed of [`Random::from_environment`].
pub const SEED_VARIABLE: &str = "LOCKSTEP_TEST_SEED";

/// A small generator (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Seeded by [`SEED_VARIABLE`] or by the clock; says which on standard error.
    ///
    /// # Panics
    /// When the variable is not a number.
    pub fn from_environment() -> Self {
        let seed = match std::env::var(SEED_VARIABLE) {
            Ok(seed) => seed.parse().expect("LOCKSTEP_TEST_SEED is a number"),
            Err(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(1, |since| since.as_nanos() as u64),
        };
        // Lost if nobody listens, which is no reason to fail.
        let _ = writeln!(std::io::stderr(), "{SEED_VARIABLE}={seed}");
        Self::seeded(seed)
    }

    /// Of this seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        // The generator stays at zero for ever.
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Of a seed that this generator gives: another sequence, which does not depend on how far this one is used later.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::seeded(self.below(1 << 32))
    }

    /// One of them.
    ///
    /// # Panics
    /// When there are none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    /// Once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// Brings them into another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }

    /// Less than `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % end
    }

    /// From `least` to `most` milliseconds.
    pub fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn a_seed_gives_the_same_again_and_another_one_does_not() {
        let draw = |seed| {
            let mut random = Random::seeded(seed);
            let mut items: Vec<u32> = (0..20).collect();
            random.shuffle(&mut items);
            let mut fork = random.fork();
            (items, fork.below(1_000_000), random.below(1_000_000))
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let (mut items, ..) = draw(9);
        assert_ne!(items, (0..20).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..20).collect::<Vec<_>>());
    }
}

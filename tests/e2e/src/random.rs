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

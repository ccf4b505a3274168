//! Times, in buckets.

use std::collections::BTreeMap;

/// How many were at most so long, and longer than the bucket before. Bounds are microseconds.
#[derive(Clone, Debug, Default)]
pub struct Histogram(BTreeMap<u64, u64>);

/// Upper ends of the buckets that [`Histogram::add_micros`] makes.
const BOUNDS: [u64; 16] = [
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    5_000_000,
    30_000_000,
    300_000_000,
];

impl Histogram {
    /// One took so long.
    pub fn add_micros(&mut self, micros: i64) {
        let micros = micros.max(0).cast_unsigned();
        let bound = BOUNDS.iter().find(|&&bound| micros <= bound);
        self.add(bound.copied().unwrap_or(u64::MAX), 1);
    }

    /// So many were in the bucket that ends there.
    pub fn add(&mut self, bound: u64, count: u64) {
        *self.0.entry(bound).or_default() += count;
    }

    /// Everything of another one.
    pub fn merge(&mut self, other: &Histogram) {
        for (bound, count) in &other.0 {
            self.add(*bound, *count);
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// In milliseconds, the time that this part of all did not take longer than, by linear interpolation in its bucket; `None` of
    /// nothing.
    pub fn millis(&self, part: f64) -> Option<f64> {
        let rank = part * self.count() as f64;
        let (mut below, mut lower) = (0.0, 0.0);
        for (&bound, &count) in self.0.iter().filter(|(_, count)| **count > 0) {
            // Of what is beyond all bounds, the last one is all that is known.
            let upper = if bound == u64::MAX {
                lower
            } else {
                bound as f64
            };
            let until = below + count as f64;
            if until >= rank {
                let share = (rank - below) / count as f64;
                return Some((lower + (upper - lower) * share) / 1e3);
            }
            (below, lower) = (until, upper);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_lies_within_its_bucket() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.millis(0.5), None);
        (0..100).for_each(|_| histogram.add_micros(800));
        assert_eq!(histogram.millis(0.5), Some(0.5));
        histogram.add_micros(60_000_000_000);
        assert_eq!(histogram.millis(1.0), Some(1.0));
    }
}

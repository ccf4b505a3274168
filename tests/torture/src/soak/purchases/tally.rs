//! What a buyer says of itself, on the last of its lines.

use super::histogram::Histogram;

/// Of all runs of a buyer.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Purchases of which it was told that they are committed.
    pub bought: u64,
    /// Those that it gave up itself.
    pub gave_up: u64,
    /// Those that have failed, as far as it was told.
    pub failed: u64,
    /// How long those took that were bought, from the first statement on.
    pub took: Histogram,
}

impl Tally {
    /// The last one of a log. What was bought behind it, until a kill, is not in it.
    pub fn last_of(log: &str) -> Self {
        // The end of a log may be half a line.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let told = whole.lines().rev().find_map(Tally::parse);
        told.unwrap_or_default()
    }

    fn parse(line: &str) -> Option<Self> {
        let mut tally = Tally::default();
        for word in line.strip_prefix("tally ")?.split(' ') {
            let (name, value) = word.split_once('=')?;
            match name {
                "bought" => tally.bought = value.parse().ok()?,
                "gave_up" => tally.gave_up = value.parse().ok()?,
                "failed" => tally.failed = value.parse().ok()?,
                "took" => {
                    for bucket in value.split(',').filter(|bucket| !bucket.is_empty()) {
                        let (bits, count) = bucket.split_once(':')?;
                        let bound = 1_u64.checked_shl(bits.parse().ok()?);
                        tally
                            .took
                            .add(bound.unwrap_or(u64::MAX), count.parse().ok()?);
                    }
                }
                _ => return None,
            }
        }
        Some(tally)
    }

    /// Everything of another run.
    pub fn merge(&mut self, other: &Tally) {
        self.bought += other.bought;
        self.gave_up += other.gave_up;
        self.failed += other.failed;
        self.took.merge(&other.took);
    }

    /// The share of those that were not given up that have succeeded; `None` of nothing.
    pub fn success(&self) -> Option<f64> {
        let all = self.bought + self.failed;
        (all > 0).then(|| self.bought as f64 / all as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_line_counts() {
        let log = "tally bought=1 gave_up=0 failed=0 took=12:1\nsomething failed\n\
                   tally bought=3 gave_up=2 failed=1 took=12:1,13:2\nmore\ntally bought=4 gave_up=2 fai";
        let mut tally = Tally::last_of(log);
        assert_eq!((tally.bought, tally.gave_up, tally.failed), (3, 2, 1));
        assert_eq!(tally.success(), Some(0.75));
        assert_eq!(tally.took.millis(1.0), Some(8.192));
        tally.merge(&Tally::last_of("tally bought=1 gave_up=0 failed=0 took=\n"));
        assert_eq!((tally.bought, tally.took.count()), (4, 3));
        assert_eq!(Tally::last_of("tally bought=1").bought, 0);
        assert_eq!(Tally::default().success(), None);
    }
}

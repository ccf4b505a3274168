//! Which transactions a snapshot sees.

use lockstep_core::error::Result;
use lockstep_core::query::Snapshot;
use lockstep_pg::error::protocol;

/// What `pg_current_snapshot()` says: `xmin:xmax:running,…` (PostgreSQL documentation, *Transaction ID and Snapshot
/// Information Functions*), in 64 bits, of top-level transactions only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visible {
    xmin: u64,
    xmax: u64,
    running: Vec<u64>,
}

impl Visible {
    /// # Errors
    /// Of kind `Protocol`, when it is not of that form.
    pub fn parse(text: &str) -> Result<Self> {
        let parse = || {
            let mut parts = text.split(':');
            let mut number = || parts.next()?.parse().ok();
            let (xmin, xmax) = (number()?, number()?);
            let running = parts.next()?.split(',').filter(|xid| !xid.is_empty());
            Some(Visible {
                xmin,
                xmax,
                running: running.map(|xid| xid.parse().ok()).collect::<Option<_>>()?,
            })
        };
        parse().ok_or_else(|| protocol(format!("`{text}` is not a snapshot")))
    }

    /// Whether the snapshot sees what a committed transaction wrote.
    pub fn sees(&self, xid: u32) -> bool {
        let Some(xid) = self.near(xid) else {
            // Before the first of all.
            return true;
        };
        xid < self.xmin || (xid < self.xmax && !self.running.contains(&xid))
    }

    /// All 64 bits of the id of a transaction. The stream knows transactions by the lower 32 bits: the one meant is the one
    /// nearest to the snapshot. `None`: there is none so far back.
    pub fn near(&self, xid: u32) -> Option<u64> {
        let behind = (self.xmax as u32).wrapping_sub(xid).cast_signed();
        self.xmax.checked_add_signed(-i64::from(behind))
    }

    /// All 64 bits of the id of the transaction that wrote a row which the snapshot sees; `None` when several may be meant. A row
    /// keeps its `xmin` for as long as nobody writes it, also when it has been frozen (since PostgreSQL 9.4), and nothing that SQL
    /// shows tells then how often the numbers have gone round since. So the nearest one will not do.
    pub fn writer(&self, xmin: u32) -> Option<u64> {
        let first = u64::from(xmin);
        let is_only = first < self.xmax && self.xmax <= first + (1 << 32);
        is_only.then_some(first)
    }
}

impl Visible {
    /// The same for those who know transactions by all 64 bits.
    pub fn into_snapshot(self) -> Snapshot {
        Snapshot {
            xmin: self.xmin,
            xmax: self.xmax,
            running: self.running,
        }
    }

    /// Whether every transaction that this snapshot saw running has ended for a later one.
    pub fn are_done(&self, later: &Visible) -> bool {
        let ended = |xid: &u64| *xid < later.xmin || !later.running.contains(xid);
        self.running.iter().all(ended)
    }

    /// Those of them that have not, for people.
    pub fn running_in(&self, later: &Visible) -> String {
        let still = |xid: &&u64| **xid >= later.xmin && later.running.contains(xid);
        let still: Vec<String> = self
            .running
            .iter()
            .filter(still)
            .map(u64::to_string)
            .collect();
        still.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_transactions_are_seen_and_running_ones_are_not() {
        let snapshot = Visible::parse("10:20:12,15").expect("a snapshot");
        for (xid, seen) in [(9, true), (10, true), (12, false), (13, true), (15, false)] {
            assert_eq!(snapshot.sees(xid), seen, "{xid}");
        }
        assert!(!snapshot.sees(20) && !snapshot.sees(1000));
        assert!(Visible::parse("10:10:").expect("idle").sees(9));
        let later = Visible::parse("15:30:15").expect("a snapshot");
        assert!(!snapshot.are_done(&later));
        assert!(snapshot.are_done(&Visible::parse("16:30:20").expect("a snapshot")));
        for bad in ["", "1", "1:2", "a:b:", "1:2:x"] {
            assert!(Visible::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_of_32_bits_are_those_near_the_snapshot() {
        let epoch = 7_u64 << 32;
        let text = format!("{}:{}:{}", epoch - 5, epoch + 5, epoch + 1);
        let snapshot = Visible::parse(&text).expect("a snapshot");
        assert!(snapshot.sees(u32::MAX - 10));
        assert!(snapshot.sees(0) && !snapshot.sees(1) && snapshot.sees(4) && !snapshot.sees(5));
        assert_eq!(snapshot.near(u32::MAX - 10), Some(epoch - 11));
        assert_eq!(snapshot.near(3), Some(epoch + 3));
        let first = Visible::parse("10:20:").expect("a snapshot");
        assert_eq!((first.near(7), first.near(u32::MAX)), (Some(7), None));
    }

    #[test]
    fn who_wrote_a_row_is_known_while_no_other_can_be_meant() {
        let at = |xmax: u64| Visible::parse(&format!("3:{xmax}:")).expect("a snapshot");
        let round = 1_u64 << 32;
        // In the first round, and at its very end.
        assert_eq!((at(20).writer(19), at(20).writer(20)), (Some(19), None));
        assert_eq!(at(round).writer(u32::MAX), Some(round - 1));
        assert_eq!(at(round).writer(3), Some(3));
        // In the second: 5 may be the first one or, by now, the one of this round. 1000 of this round is still to come.
        assert_eq!(at(round + 6).writer(5), None);
        assert_eq!(at(round + 5).writer(5), Some(5));
        assert_eq!(at(round + 6).writer(1000), Some(1000));
        assert_eq!(at(2 * round + 6).writer(1000), None);
    }
}

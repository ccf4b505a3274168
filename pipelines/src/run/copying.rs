//! How fast an initial copy goes, and how long it will take. No I/O.

use std::collections::VecDeque;
use std::time::Duration;

use lockstep_core::source::TableProgress;
use tokio::time::Instant;

/// The rate is that of the last minute: a copy slows down from small tables to large ones.
const WINDOW: Duration = Duration::from_secs(60);
/// Looks that follow one another faster add nothing; it also bounds how many are kept.
const APART: Duration = Duration::from_secs(1);

/// Looks at the rows copied so far.
#[derive(Debug)]
pub(super) struct Copying {
    looks: VecDeque<(Instant, u64)>,
}

impl Copying {
    /// Nothing has been copied at the start.
    pub fn new(start: Instant) -> Self {
        Copying {
            looks: VecDeque::from([(start, 0)]),
        }
    }

    /// Notes how far the copy is now and gives its rows per second, once there is a second to judge by.
    pub fn rate(&mut self, now: Instant, tables: &[TableProgress]) -> Option<f64> {
        let rows = tables.iter().map(|table| table.rows).sum();
        if self.looks.back().is_none_or(|&(_, before)| rows < before) {
            // The copy has begun anew.
            self.looks.clear();
            self.looks.push_back((now, rows));
            return None;
        }
        // The oldest look that is kept lies at the window's beginning or before it.
        while self
            .looks
            .get(1)
            .is_some_and(|&(at, _)| now.duration_since(at) >= WINDOW)
        {
            self.looks.pop_front();
        }
        let &(since, before) = self.looks.front()?;
        if self
            .looks
            .back()
            .is_some_and(|&(at, _)| now.duration_since(at) >= APART)
        {
            self.looks.push_back((now, rows));
        }
        let passed = now.duration_since(since);
        (passed >= APART).then(|| (rows - before) as f64 / passed.as_secs_f64())
    }
}

/// Seconds until all tables are copied, at a rate in rows per second. `None` when that cannot be told: nothing moves, or a
/// table that is not done has no estimate (it was never analysed) or has outgrown it.
pub(super) fn remaining(tables: &[TableProgress], rate: f64) -> Option<f64> {
    let mut rows = 0;
    for table in tables.iter().filter(|table| !table.done) {
        rows += table
            .estimated_rows
            .checked_sub(table.rows)
            .filter(|&left| left > 0)?;
    }
    (rate > 0.0).then(|| rows as f64 / rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: u64, estimated_rows: u64) -> TableProgress {
        TableProgress {
            table: "public.t".into(),
            rows,
            estimated_rows,
            done: false,
        }
    }

    #[test]
    fn the_rate_is_that_of_the_last_minute() {
        let start = Instant::now();
        let mut copying = Copying::new(start);
        let mut at = |seconds: f64, rows| {
            copying.rate(
                start + Duration::from_secs_f64(seconds),
                &[table(rows, 0), table(0, 0)],
            )
        };
        assert_eq!(at(0.5, 400), None, "too early to tell");
        assert_eq!(at(2.0, 1_000), Some(500.0));
        assert_eq!(at(10.0, 5_000), Some(500.0));
        // Two minutes later the fast beginning is forgotten.
        assert_eq!(at(70.0, 5_600), Some(600.0 / 60.0));
        assert_eq!(at(130.0, 6_200), Some(600.0 / 60.0));
        assert_eq!(at(131.0, 10), None, "a copy that begins anew");
        assert_eq!(at(133.0, 30), Some(10.0));
    }

    #[test]
    fn few_looks_are_kept_however_often_one_looks() {
        let start = Instant::now();
        let mut copying = Copying::new(start);
        for step in 0..100_000 {
            copying.rate(start + Duration::from_millis(2 * step), &[table(step, 0)]);
        }
        assert!(copying.looks.len() <= 63, "{}", copying.looks.len());
    }

    #[test]
    fn time_left_is_told_only_when_it_is_known() {
        assert_eq!(
            remaining(&[table(500, 1_000), table(0, 250)], 50.0),
            Some(15.0)
        );
        let done = TableProgress {
            done: true,
            ..table(7, 0)
        };
        assert_eq!(remaining(&[done, table(500, 1_000)], 50.0), Some(10.0));
        for unknown in [table(500, 0), table(1_000, 1_000), table(1_200, 1_000)] {
            assert_eq!(remaining(&[table(0, 10), unknown], 50.0), None);
        }
        assert_eq!(remaining(&[table(500, 1_000)], 0.0), None, "a standstill");
    }
}

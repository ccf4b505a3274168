//! The table.

use std::fmt;

use crate::contender::{Contender, Entry};
use crate::measure::Sample;
use crate::workload::Workload;

/// The samples of one row of the table.
struct Row {
    workload: Workload,
    entry: Entry,
    samples: Vec<Sample>,
}

/// All samples. Those of one row are in the order of the runs: equal indices are a pair.
#[derive(Default)]
pub struct Results(Vec<Row>);

impl Results {
    pub fn add(&mut self, workload: Workload, entry: Entry, sample: Sample) {
        let same = |row: &&mut Row| row.workload == workload && row.entry == entry;
        match self.0.iter_mut().find(same) {
            Some(row) => row.samples.push(sample),
            None => self.0.push(Row {
                workload,
                entry,
                samples: vec![sample],
            }),
        }
    }

    /// The rows of a workload, in the order of its contenders.
    fn rows(&self, workload: Workload) -> Vec<&Row> {
        let place = |row: &&Row| {
            let contenders = Contender::of(workload);
            let index = contenders
                .iter()
                .position(|&one| one == row.entry.contender);
            (index, row.entry.nap)
        };
        let mut rows: Vec<&Row> = self
            .0
            .iter()
            .filter(|row| row.workload == workload)
            .collect();
        rows.sort_by_key(place);
        rows
    }
}

impl Row {
    fn median(&self, figure: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(figure).collect())
    }

    /// Rows/s as multiples of the yardstick's in the same run.
    fn ratio(&self, yardstick: &Row) -> f64 {
        let pairs = self.samples.iter().zip(&yardstick.samples);
        median(
            pairs
                .map(|(own, other)| own.rate() / other.rate())
                .collect(),
        )
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n| workload | reader | rows/s | range | × yardstick | own CPU µs/row | server CPU µs/row | peak RSS MB | others, cores |"
        )?;
        writeln!(f, "|---|---|--:|---|--:|--:|--:|--:|--:|")?;
        for workload in Workload::ALL {
            let rows = self.rows(workload);
            let yardstick = Contender::yardstick(workload);
            let Some(yardstick) = rows.iter().find(|row| row.entry.contender == yardstick) else {
                continue;
            };
            for row in &rows {
                let rates = || row.samples.iter().map(Sample::rate);
                let (low, high) = (
                    rates().fold(f64::INFINITY, f64::min),
                    rates().fold(0.0, f64::max),
                );
                writeln!(
                    f,
                    "| {} | {} | {:.0} k | {:.0}–{:.0} k | {:.2} | {:.2} | {:.2} | {:.0} | {:.1} |",
                    workload.name(),
                    row.entry,
                    row.median(Sample::rate) / 1e3,
                    low / 1e3,
                    high / 1e3,
                    row.ratio(yardstick),
                    row.median(Sample::own_micros),
                    row.median(Sample::server_micros),
                    row.median(Sample::peak_mb),
                    row.median(|sample| sample.others),
                )?;
            }
        }
        Ok(())
    }
}

/// Of an even number, the mean of the two in the middle.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => 0.0,
        count if count % 2 == 1 => figures[count / 2],
        count => f64::midpoint(figures[count / 2 - 1], figures[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sample(millis: u64) -> Sample {
        Sample {
            rows: 1000,
            wall: Duration::from_millis(millis),
            own: Duration::from_millis(1),
            server: Duration::from_millis(2),
            peak_kib: 1000,
            others: 0.0,
        }
    }

    fn entry(contender: Contender) -> Entry {
        Entry {
            contender,
            nap: None,
        }
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
    }

    #[test]
    fn ratios_are_of_pairs() {
        let mut results = Results::default();
        // The machine slows down from run to run; the pairs say 2, 4 and 2 all the same.
        for (own, other) in [(10, 20), (20, 80), (100, 200)] {
            results.add(Workload::Giant, entry(Contender::Nothing), sample(own));
            results.add(
                Workload::Giant,
                entry(Contender::PgRecvlogical),
                sample(other),
            );
        }
        let printed = results.to_string();
        let line = printed
            .lines()
            .find(|line| line.contains("nothing"))
            .expect("a line");
        assert!(
            line.contains("| 2.00 |") && line.contains("| 1.00 | 2.00 | 1 |"),
            "{line}"
        );
    }
}

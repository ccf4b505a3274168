//! The table at the end, and the page that keeps it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use crate::cell::Outcome;
use crate::check::Counts;
use crate::contestant::Contestant;
use crate::fault::{FAULTS, Fault};
use crate::workload::{WORKLOADS, Workload};

const BEGIN: &str = "<!-- torture: begin, written by `make torture` -->";
const END: &str = "<!-- torture: end -->";

/// Sums over runs.
#[derive(Clone, Debug, Default)]
struct Sum {
    runs: u64,
    faults: u64,
    changes: u64,
    troubles: u64,
    counts: Counts,
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.faults += outcome.faults.len() as u64;
        self.changes += outcome.checked.changes;
        self.troubles += outcome.troubles.len() as u64;
        self.counts.add(&outcome.counts());
    }

    fn is_right(&self) -> bool {
        self.counts.is_zero() && self.troubles == 0
    }

    fn line(&self) -> String {
        let counts = &self.counts;
        format!(
            "{} | {} | {} | {} | {} | {} | {} | {}",
            self.runs,
            self.faults,
            self.changes,
            counts.lost,
            counts.doubled,
            counts.reordered,
            counts.stale,
            self.troubles
        )
    }
}

/// Everything that a set of runs gave.
#[derive(Debug, Default)]
pub struct Report {
    outcomes: Vec<Outcome>,
}

/// What a page says about how it came about.
#[derive(Clone, Debug)]
pub struct Circumstances {
    /// Of the plan.
    pub seed: u64,
    /// How long it took.
    pub took: Duration,
    /// Of the servers.
    pub servers: String,
    /// Of the command under test.
    pub lockstep: String,
    /// Names of the sinks.
    pub sinks: String,
    /// Today, as `2026-07-01`.
    pub day: String,
}

impl Report {
    /// Adds a run.
    pub fn add(&mut self, outcome: Outcome) {
        self.outcomes.push(outcome);
    }

    /// How many runs there are.
    pub fn runs(&self) -> usize {
        self.outcomes.len()
    }

    /// How many faults lockstep has met.
    pub fn faults(&self) -> usize {
        self.of(Contestant::Lockstep)
            .map(|outcome| outcome.faults.len())
            .sum()
    }

    /// How long the runs of the peers took.
    pub fn peers_took(&self) -> Duration {
        let peers = self.outcomes.iter();
        let peers = peers.filter(|outcome| outcome.contestant != Contestant::Lockstep);
        peers.map(|outcome| outcome.took).sum()
    }

    fn of(&self, contestant: Contestant) -> impl Iterator<Item = &Outcome> {
        let all = self.outcomes.iter();
        all.filter(move |outcome| outcome.contestant == contestant)
    }

    /// Runs of lockstep in which something is wrong. What is wrong with a peer is a result.
    pub fn wrong(&self) -> impl Iterator<Item = &Outcome> {
        let all = self.of(Contestant::Lockstep);
        all.filter(|outcome| !outcome.is_right())
    }

    /// Whether nothing is.
    pub fn is_right(&self) -> bool {
        self.wrong().next().is_none()
    }

    fn sum(&self, contestant: Contestant, belongs: impl Fn(&Outcome) -> bool) -> Sum {
        let mut sum = Sum::default();
        for outcome in self.of(contestant).filter(|outcome| belongs(outcome)) {
            sum.add(outcome);
        }
        sum
    }

    fn has(&self, contestant: Contestant) -> bool {
        self.of(contestant).next().is_some()
    }

    /// All tables in Markdown, which is readable as it is.
    pub fn tables(&self) -> String {
        let mut text = match self.has(Contestant::Lockstep) {
            true => self.matrix(Contestant::Lockstep) + "\n",
            false => String::new(),
        };
        text += &self.totals();
        if self.has(Contestant::Debezium) {
            text += &format!(
                "\nDebezium, fault by fault:\n\n{}",
                self.matrix(Contestant::Debezium)
            );
        }
        let with = Contestant::DebeziumWithTransactions;
        if self.has(with) {
            text += &format!(
                "\nDebezium with `provide.transaction.metadata`, fault by fault:\n\n{}",
                self.matrix(with)
            );
        }
        text
    }

    /// A row per workload, a column per fault; those that were not met are left out.
    fn matrix(&self, contestant: Contestant) -> String {
        let mut sums = BTreeMap::new();
        for workload in WORKLOADS {
            for fault in FAULTS {
                let of = |outcome: &Outcome| {
                    outcome.cell.workload == workload && outcome.cell.fault == fault
                };
                sums.insert((workload, fault), self.sum(contestant, of));
            }
        }
        let met = |workload, fault| sums[&(workload, fault)].runs > 0;
        let faults: Vec<Fault> = FAULTS
            .into_iter()
            .filter(|&fault| WORKLOADS.iter().any(|&workload| met(workload, fault)))
            .collect();
        let names: Vec<&str> = faults.iter().map(|fault| fault.name()).collect();
        let mut rows = vec![[&["workload"], &names[..]].concat().join(" | ")];
        rows.push(vec!["---"; names.len() + 1].join(" | "));
        for workload in WORKLOADS {
            if faults.iter().any(|&fault| met(workload, fault)) {
                let cells = faults.iter().map(|&fault| shown(&sums[&(workload, fault)]));
                let cells: Vec<String> = cells.collect();
                rows.push(format!("{} | {}", workload.name(), cells.join(" | ")));
            }
        }
        aligned(&rows)
    }

    /// A row per workload, a set of columns per contestant.
    fn totals(&self) -> String {
        let whole = [Contestant::Lockstep, Contestant::Debezium];
        let whole: Vec<Contestant> = whole.into_iter().filter(|&one| self.has(one)).collect();
        let names = whole.iter().map(|one| {
            let name = one.name();
            format!(
                "{name}: runs | faults | changes | lost | doubled | reordered | stale | troubles"
            )
        });
        let names: Vec<String> = names.collect();
        let line = |belongs: &dyn Fn(&Outcome) -> bool| {
            let sums = whole.iter().map(|&one| self.sum(one, belongs).line());
            sums.collect::<Vec<_>>().join(" | ")
        };
        let mut rows = vec![
            format!("workload | {}", names.join(" | ")),
            "---".to_owned() + &" | ---:".repeat(8 * whole.len()),
        ];
        for workload in WORKLOADS {
            let sums = line(&|outcome| outcome.cell.workload == workload);
            rows.push(format!("{} | {sums}", Workload::name(workload)));
        }
        rows.push(format!("**all** | {}", line(&|_| true)));
        aligned(&rows)
    }

    /// What the page says between its marks.
    pub fn section(&self, about: &Circumstances) -> String {
        let all = self.sum(Contestant::Lockstep, |_| true);
        let drained = self.of(Contestant::Lockstep).map(|one| one.drained);
        let mut drained: Vec<Duration> = drained.collect();
        drained.sort_unstable();
        let at = |part: usize| {
            drained.get((drained.len() * part / 100).min(drained.len().saturating_sub(1)))
        };
        let seconds = |time: Option<&Duration>| time.map_or(0.0, Duration::as_secs_f64);
        if all.runs == 0 {
            return format!(
                "{}: {}; seed {}.\n\n{}{}",
                about.day,
                about.servers,
                about.seed,
                self.tables(),
                self.losses()
            );
        }
        let mut text = format!(
            "{}: {} runs, {} faults, {} committed changes, each checked in {}: lost {}, doubled {}, stale {}, order violations {}. \
             {} on {}; {:.0} minutes with what is beside it; seed {}.\n\n\
             In a cell: the number of faults injected, ✓ when everything arrived once, in order and as it is in PostgreSQL, \
             ✗ and what was wrong when not. *Troubles* are runs in which it ended by itself or gave up for good, did not catch up \
             within five minutes, or did not stop.\n\n{}\n\
             After the last fault everything was in every sink of lockstep within {:.1} s (median), {:.1} s (95 %), {:.1} s (longest).\n",
            about.day,
            all.runs,
            all.faults,
            all.changes,
            about.sinks,
            all.counts.lost,
            all.counts.doubled,
            all.counts.stale,
            all.counts.reordered,
            about.lockstep,
            about.servers,
            about.took.as_secs_f64() / 60.0,
            about.seed,
            self.tables(),
            seconds(at(50)),
            seconds(at(95)),
            seconds(drained.last()),
        );
        if !self.is_right() {
            text += "\nWhat was wrong:\n\n";
            for outcome in self.wrong() {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{}", item(outcome));
            }
        }
        text + &self.losses()
    }

    /// The runs in which a peer lost something.
    fn losses(&self) -> String {
        let peers = self.outcomes.iter().filter(|outcome| {
            outcome.contestant != Contestant::Lockstep
                && (outcome.counts().lost > 0 || outcome.counts().stale > 0)
        });
        let peers: Vec<String> = peers.map(item).collect();
        if peers.is_empty() {
            return String::new();
        }
        format!("\nWhat Debezium lost:\n\n{}\n", peers.join("\n"))
    }
}

/// The beginning of a text that may be a whole status page.
fn brief(text: &str) -> String {
    const MOST: usize = 160;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A run in which something was wrong, in a line of the page.
fn item(outcome: &Outcome) -> String {
    let first = outcome
        .troubles
        .first()
        .and_then(|trouble| trouble.lines().next());
    let examples = outcome
        .checked
        .sinks
        .iter()
        .filter_map(|(sink, findings)| Some(format!("{sink}: {}", findings.examples.first()?)));
    let details: Vec<String> = first.map(brief).into_iter().chain(examples).collect();
    format!(
        "- `--contestants {} --only {} --seed {}`: {}; {}",
        outcome.contestant,
        outcome.cell.name(),
        outcome.seed,
        outcome.counts(),
        details.join("; ")
    )
}

fn shown(sum: &Sum) -> String {
    if sum.runs == 0 {
        return String::new();
    }
    if sum.is_right() {
        return format!("{} ✓", sum.faults);
    }
    let counts = [
        (sum.counts.lost, "lost"),
        (sum.counts.doubled, "doubled"),
        (sum.counts.reordered, "reordered"),
        (sum.counts.stale, "stale"),
        (sum.troubles, "troubles"),
    ];
    let wrong: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    format!("{} ✗ {}", sum.faults, wrong.join(", "))
}

/// Rows of cells separated by ` | ` as a table whose columns stand below each other.
fn aligned(rows: &[String]) -> String {
    let rows: Vec<Vec<&str>> = rows.iter().map(|row| row.split(" | ").collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        for (cell, &width) in std::iter::zip(row, &widths) {
            let _ = write!(text, "| {cell:<width$} ");
        }
        text += "|\n";
    }
    text
}

/// The page with this section between its marks; all else in it stays. A page without marks gets them at its end.
pub fn replaced(page: &str, section: &str) -> String {
    let new = format!("{BEGIN}\n\n{section}\n{END}");
    match (page.find(BEGIN), page.find(END)) {
        (Some(begin), Some(end)) if begin < end => {
            format!("{}{new}{}", &page[..begin], &page[end + END.len()..])
        }
        _ => format!("{page}\n{new}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::{aligned, replaced};

    #[test]
    fn a_section_takes_the_place_of_the_former_one() {
        let page = replaced("# Title\n\nBefore.\n", "first") + "\nAfter.\n";
        let page = replaced(&page, "second");
        assert!(page.starts_with("# Title\n\nBefore.\n"), "{page}");
        assert!(page.ends_with("\nAfter.\n"), "{page}");
        assert!(page.contains("second") && !page.contains("first"), "{page}");
        assert_eq!(page, replaced(&page, "second"));
    }

    #[test]
    fn columns_stand_below_each_other() {
        let rows = ["a | ✓".to_owned(), "longer | 1".to_owned()];
        assert_eq!(aligned(&rows), "| a      | ✓ |\n| longer | 1 |\n");
    }
}

//! What was done, and what was seen of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use super::violations::Violations;
use super::whole::Whole;
use super::{cache, histogram::Histogram, index, shop};

/// Of one soak.
#[derive(Debug, Default)]
pub struct Report {
    /// How long it was bought.
    pub lasted: Duration,
    /// Purchases that are in both databases.
    pub purchases: u64,
    /// Transactions of one database that are in the topic.
    pub visits: u64,
    /// Records of the topic.
    pub records: u64,
    /// Purchases in it.
    pub in_topic: u64,
    /// How often half of a purchase was there where a consumer of it may stand.
    pub half_in_topic: u64,
    /// How often a buyer was broken on the way.
    pub faulted_buyers: u64,
    /// How often one was killed, with the end.
    pub buyer_kills: u64,
    /// How often lockstep was killed.
    pub lockstep_kills: u64,
    /// How often a cluster was stopped or killed, and started again.
    pub restarts: u64,
    /// Branches that were prepared when all buyers had been killed at the end.
    pub left_behind: u64,
    /// How many of them the resolver has ended, by its journal.
    pub resolved: u64,
    /// From the end of what was in doubt until all had arrived.
    pub drained: Duration,
    /// How long branches were held back for the others.
    pub hold: Histogram,
    /// From the first commit of a purchase to its last.
    pub skew: Histogram,
    /// Transactions of several databases, as lockstep counted them.
    pub outcomes: BTreeMap<String, u64>,
    /// Evaluations of invariants.
    pub evaluations: BTreeMap<String, u64>,
    /// The most branches in doubt in one database at a time.
    pub most_in_doubt: u64,
    /// What a reader of Redis has seen.
    pub cache: cache::Seen,
    /// What a reader of the index has seen.
    pub search: index::Seen,
    /// What may not be.
    pub violations: Violations,
}

impl Report {
    /// How often something was broken.
    pub fn faults(&self) -> u64 {
        self.faulted_buyers + self.lockstep_kills + self.restarts
    }

    /// Compares what the databases hold with what has come.
    pub fn compare(
        &mut self,
        kept: &shop::Kept,
        whole: &Whole,
        cached: &cache::Kept,
        violations: &Violations,
    ) {
        let [orders, reservations, visits] = &kept.numbers;
        self.purchases = orders.len() as u64;
        self.visits = visits.len() as u64;
        same(
            "databases",
            "reservations",
            orders,
            reservations,
            violations,
        );
        let tables = ["orders", "reservations", "visits"];
        for (at, table) in tables.into_iter().enumerate() {
            let numbers = &kept.numbers[at];
            same("topic", table, numbers, whole.numbers()[at], violations);
            same("cache", table, numbers, &cached.numbers[at], violations);
        }
        same(
            "index",
            "orders",
            orders,
            &self.search.purchases,
            violations,
        );
        let topic = |article: u64| whole.version(article);
        let cache = |article: u64| of(&cached.versions, article);
        for (&article, &version) in &kept.versions {
            for (place, there) in [("topic", topic(article)), ("cache", cache(article))] {
                if there != version {
                    violations.add(format!(
                        "{place}: article {article} is at its change {there}, not {version}"
                    ));
                }
            }
        }
    }

    /// Whether there was something to be seen, and nothing that may not be.
    pub fn is_clean(&self) -> bool {
        self.violations.count() == 0
            && self.purchases > 0
            && self.search.looks > 0
            && self.cache.looks > 0
    }
}

fn of(versions: &HashMap<u64, u64>, article: u64) -> u64 {
    versions.get(&article).copied().unwrap_or_default()
}

fn same(
    place: &str,
    table: &str,
    expected: &HashSet<u64>,
    there: &HashSet<u64>,
    violations: &Violations,
) {
    for number in expected.difference(there) {
        violations.add(format!("{place}: {number} of {table} is missing"));
    }
    for number in there.difference(expected) {
        violations.add(format!("{place}: {number} of {table} was never committed"));
    }
}

fn millis(histogram: &Histogram) -> String {
    let at = |part| {
        histogram
            .millis(part)
            .map_or_else(|| "–".to_owned(), |millis| format!("{millis:.1}"))
    };
    format!("{} | {}", at(0.5), at(0.99))
}

fn counts(of: &BTreeMap<String, u64>) -> String {
    let each: Vec<String> = of
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(what, count)| format!("{count} {what}"))
        .collect();
    each.join(", ")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.lasted.as_secs_f64().max(1e-3);
        writeln!(
            f,
            "{} purchases in {seconds:.0} s, {:.0}/s, and {} transactions of one database; {} records in the topic",
            self.purchases,
            self.purchases as f64 / seconds,
            self.visits,
            self.records
        )?;
        writeln!(
            f,
            "{} buyers killed, lockstep killed {} times, {} restarts of clusters; at the end {} branches left in doubt (most at a time {}), {} of them ended by the resolver; all arrived after {:.1} s",
            self.buyer_kills,
            self.lockstep_kills,
            self.restarts,
            self.left_behind,
            self.most_in_doubt,
            self.resolved,
            self.drained.as_secs_f64()
        )?;
        writeln!(
            f,
            "lockstep counted {}, what its runs have read again included; invariants: {}",
            counts(&self.outcomes),
            counts(&self.evaluations)
        )?;
        writeln!(f, "\n| ms | median | p99 |\n|---|--:|--:|")?;
        writeln!(f, "| first commit to last | {} |", millis(&self.skew))?;
        writeln!(f, "| held back | {} |", millis(&self.hold))?;
        writeln!(
            f,
            "\n| sink | looks | purchases | half of one |\n|---|--:|--:|--:|\n| topic | {} | {} | {} |",
            self.records, self.in_topic, self.half_in_topic
        )?;
        writeln!(
            f,
            "| cache | {} | {} | {} |",
            self.cache.looks, self.cache.purchases, self.cache.halves
        )?;
        writeln!(
            f,
            "| index | {} | {} | {} |",
            self.search.looks,
            self.search.purchases.len(),
            self.search.halves
        )?;
        writeln!(
            f,
            "\n{} violations\n{}",
            self.violations.count(),
            self.violations
        )
    }
}

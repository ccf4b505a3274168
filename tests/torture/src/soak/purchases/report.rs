//! What was done, and what was seen of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use super::buyers::{Buyer, KINDS, Kind, kind_of};
use super::histogram::Histogram;
use super::measures::{OfManager, Times};
use super::tally::Tally;
use super::violations::Violations;
use super::whole::Whole;
use super::{cache, index, shop};

/// What was bought by one kind of buyer.
#[derive(Debug)]
pub struct OfKind {
    /// How it buys.
    pub kind: Kind,
    /// Purchases that are in both databases; transactions of one of the kind that makes these.
    pub purchases: u64,
    /// What it has told itself.
    pub tally: Tally,
    /// How often it was killed, with the end.
    pub kills: u64,
}

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
    /// By kind, of those that bought here.
    pub kinds: Vec<OfKind>,
    /// Branches by who has named them, as lockstep has read them.
    pub managers: BTreeMap<String, OfManager>,
    /// Branches that were prepared when everybody had ended what he could.
    pub in_doubt: u64,
    /// How long branches were held back for the others.
    pub hold: Times,
    /// How long they would have been, had all gone on as soon as their branches were known.
    pub decided: Times,
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

    /// What each kind has bought, by the databases and by what it has told: the first has all of the second.
    pub fn bought(&mut self, kept: &shop::Kept, buyers: &[Buyer], violations: &Violations) {
        let [orders, _, visits] = &kept.numbers;
        let mut purchases: HashMap<&str, u64> = HashMap::new();
        for kind in orders.iter().filter_map(|number| kind_of(*number)) {
            *purchases.entry(kind.name()).or_default() += 1;
        }
        let of_kind = |buyer: &Buyer| OfKind {
            kind: buyer.kind,
            purchases: match buyer.kind {
                Kind::Local => visits.len() as u64,
                kind => purchases.get(kind.name()).copied().unwrap_or_default(),
            },
            tally: buyer.tally().clone(),
            kills: buyer.kills,
        };
        self.kinds = buyers.iter().map(of_kind).collect();
        for of in &self.kinds {
            if of.tally.bought > of.purchases {
                violations.add(format!(
                    "databases: {} purchases of {}, which was told of {} that they are committed",
                    of.purchases,
                    of.kind.name(),
                    of.tally.bought
                ));
            }
        }
        self.buyer_kills = self.kinds.iter().map(|of| of.kills).sum();
    }

    /// Kinds that could not buy here.
    pub fn left_out(&self) -> impl Iterator<Item = Kind> {
        let bought = |kind: &Kind| self.kinds.iter().any(|of| of.kind == *kind);
        KINDS.into_iter().filter(move |kind| !bought(kind))
    }

    /// Whether there was something to be seen, and nothing that may not be.
    pub fn is_clean(&self) -> bool {
        self.violations.count() == 0
            && self.in_doubt == 0
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

fn times(times: &Times) -> String {
    let mean = times
        .mean
        .map_or_else(|| "–".to_owned(), |mean| format!("{mean:.1}"));
    format!("{mean} | {}", millis(&times.histogram))
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
            "{} buyers killed, lockstep killed {} times, {} restarts of clusters; at the end {} branches left in doubt (most at a time {}), {} of them ended by the resolver, and {} left behind that; all arrived after {:.1} s",
            self.buyer_kills,
            self.lockstep_kills,
            self.restarts,
            self.left_behind,
            self.most_in_doubt,
            self.resolved,
            self.in_doubt,
            self.drained.as_secs_f64()
        )?;
        writeln!(
            f,
            "lockstep counted {}, what its runs have read again included; invariants: {}",
            counts(&self.outcomes),
            counts(&self.evaluations)
        )?;
        self.by_kind(f)?;
        self.by_manager(f)?;
        self.held(f)?;
        self.seen(f)?;
        writeln!(
            f,
            "\n{} violations\n{}",
            self.violations.count(),
            self.violations
        )
    }
}

/// Tables in the form of Markdown.
impl Report {
    fn by_kind(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n| buyer | purchases | told as bought | given up | failed | success, % | median ms | p99 ms | killed |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|"
        )?;
        for OfKind {
            kind,
            purchases,
            tally,
            kills,
        } in &self.kinds
        {
            let success = tally.success();
            writeln!(
                f,
                "| {} | {purchases} | {} | {} | {} | {} | {} | {kills} |",
                kind.name(),
                tally.bought,
                tally.gave_up,
                tally.failed,
                success.map_or_else(
                    || "–".to_owned(),
                    |success| format!("{:.1}", success * 100.0)
                ),
                millis(&tally.took),
            )?;
        }
        let left_out: Vec<&str> = self.left_out().map(Kind::name).collect();
        if !left_out.is_empty() {
            writeln!(
                f,
                "\nleft out: {}: run tests/kit/install managers",
                left_out.join(", ")
            )?;
        }
        Ok(())
    }

    fn by_manager(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n| branches, named by | committed | rolled back | prepared, median ms | p99 ms | then visible, median ms | p99 ms |\n|---|--:|--:|--:|--:|--:|--:|"
        )?;
        for (manager, of) in &self.managers {
            writeln!(
                f,
                "| {manager} | {} | {} | {} | {} |",
                of.committed,
                of.rolled_back,
                millis(&of.prepared.histogram),
                millis(&of.visible.histogram)
            )?;
        }
        Ok(())
    }

    fn held(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n| ms | mean | median | p99 |\n|---|--:|--:|--:|")?;
        writeln!(f, "| first commit to last | – | {} |", millis(&self.skew))?;
        writeln!(f, "| held back | {} |", times(&self.hold))?;
        writeln!(
            f,
            "| … by a release at the decision | {} |",
            times(&self.decided)
        )
    }

    fn seen(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        )
    }
}

//! What a reader of the topic may find: all of a purchase or nothing of it, once, and every article's changes in their order.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::histogram::Histogram;
use super::violations::Violations;

/// A record of the topic.
#[derive(Clone, Debug)]
pub struct Record {
    /// In the partition. The end of a transaction of Kafka takes one, so a gap is where one ends.
    pub offset: i64,
    /// What identifies the change.
    pub id: String,
    /// The headers of a transaction of several databases: what its branches share, and how many there are.
    pub global: Option<(String, u32)>,
    /// When the branch committed, microseconds since 1970.
    pub committed_micros: i64,
    /// What changed.
    pub row: Row,
}

/// A change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// An order was placed.
    Order(u64),
    /// It was reserved.
    Reservation(u64),
    /// An article has changed once more.
    Stock {
        /// Which.
        article: u64,
        /// How often.
        version: u64,
    },
    /// One was looked at.
    Visit(u64),
    /// A row that was there before all began.
    Copied,
    /// A message.
    Message,
}

/// All records so far, in the order of the partition.
#[derive(Debug, Default)]
pub struct Whole {
    orders: HashSet<u64>,
    reservations: HashSet<u64>,
    /// The last reservations, and orders, by number: where they came, and as what.
    lately: HashMap<(bool, u64), (i64, String)>,
    visits: HashSet<u64>,
    /// Purchases of which one half has come.
    halves: HashSet<u64>,
    versions: HashMap<u64, u64>,
    last_offset: Option<i64>,
    unit: Option<Unit>,
    /// Hashes of the names of those that have come.
    names: HashSet<u64>,
    bought: Vec<u64>,
    /// From the first commit of a purchase to its last.
    pub skew: Histogram,
    /// Records.
    pub records: u64,
    /// How often half of a purchase was there where a consumer may stand.
    pub half_seen: u64,
}

/// Records that stand together as one transaction of several databases.
#[derive(Debug)]
struct Unit {
    name: String,
    branches: u32,
    rows: Vec<Row>,
    first_micros: i64,
    last_micros: i64,
    is_torn: bool,
}

impl Whole {
    /// Takes the next record.
    pub fn take(&mut self, record: &Record, violations: &Violations) {
        self.records += 1;
        let is_one_transaction = self
            .last_offset
            .is_none_or(|last| last + 1 == record.offset);
        self.last_offset = Some(record.offset);
        let is_same = match (&self.unit, &record.global) {
            (Some(unit), Some((name, _))) => unit.name == *name,
            _ => false,
        };
        if !is_same {
            self.end_unit(violations);
        }
        if !is_one_transaction {
            // Here a consumer may stand for as long as it likes.
            self.look_for_halves("a transaction of Kafka ends", violations);
        }
        if let Some((name, branches)) = &record.global {
            let unit = self.unit.get_or_insert_with(|| Unit {
                name: name.clone(),
                branches: *branches,
                rows: Vec::new(),
                first_micros: record.committed_micros,
                last_micros: record.committed_micros,
                is_torn: false,
            });
            unit.is_torn |= is_same && !is_one_transaction;
            unit.first_micros = unit.first_micros.min(record.committed_micros);
            unit.last_micros = unit.last_micros.max(record.committed_micros);
            unit.rows.push(record.row);
        }
        self.count(record, violations);
    }

    /// Nothing more comes for now: what has come is looked at.
    pub fn end(&mut self, violations: &Violations) {
        self.end_unit(violations);
        self.look_for_halves("the topic ends", violations);
    }

    /// Purchases that have come as a whole, in the order in which they came, from this one on.
    pub fn bought_from(&self, from: usize) -> &[u64] {
        &self.bought[from.min(self.bought.len())..]
    }

    /// How many those are.
    pub fn purchases(&self) -> usize {
        self.bought.len()
    }

    /// Numbers of orders, of reservations, and of visits.
    pub fn numbers(&self) -> [&HashSet<u64>; 3] {
        [&self.orders, &self.reservations, &self.visits]
    }

    /// How often an article has changed.
    pub fn version(&self, article: u64) -> u64 {
        self.versions.get(&article).copied().unwrap_or_default()
    }

    fn count(&mut self, record: &Record, violations: &Violations) {
        let (offset, row) = (record.offset, record.row);
        let is_new = match row {
            Row::Order(number) => {
                self.half(number);
                self.orders.insert(number)
            }
            Row::Reservation(number) => {
                self.half(number);
                self.reservations.insert(number)
            }
            Row::Visit(number) => self.visits.insert(number),
            Row::Stock { article, version } => {
                let before = self.versions.insert(article, version).unwrap_or_default();
                if version != before + 1 {
                    violations.add(format!(
                        "topic, offset {offset}: article {article} goes from its change {before} to {version}"
                    ));
                }
                true
            }
            Row::Copied | Row::Message => true,
        };
        let of = match row {
            Row::Order(number) => Some((true, number)),
            Row::Reservation(number) => Some((false, number)),
            _ => None,
        };
        if !is_new {
            let before = of.and_then(|of| self.lately.get(&of));
            violations.add(format!(
                "topic, offset {offset}: {row:?} comes again as {} of {:?}, before: {before:?}",
                record.id, record.global
            ));
        }
        if let Some(of) = of {
            if self.lately.len() > 100_000 {
                self.lately.clear();
            }
            self.lately.insert(of, (offset, record.id.clone()));
        }
    }

    fn half(&mut self, number: u64) {
        if !self.halves.remove(&number) {
            self.halves.insert(number);
        } else {
            self.bought.push(number);
        }
    }

    fn look_for_halves(&mut self, place: &str, violations: &Violations) {
        self.half_seen += self.halves.len() as u64;
        for number in &self.halves {
            violations.add(format!("topic: half of purchase {number} where {place}"));
        }
    }

    fn end_unit(&mut self, violations: &Violations) {
        let Some(unit) = self.unit.take() else {
            return;
        };
        let Unit { name, branches, .. } = &unit;
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        if !self.names.insert(hasher.finish()) {
            violations.add(format!("topic: {name} is in two places"));
        }
        if unit.is_torn {
            violations.add(format!("topic: {name} is in several transactions of Kafka"));
        }
        let count = |is: fn(&Row) -> bool| unit.rows.iter().filter(|row| is(row)).count();
        let counts = [
            count(|row| matches!(row, Row::Order(_))),
            count(|row| matches!(row, Row::Reservation(_))),
            count(|row| matches!(row, Row::Stock { .. })),
        ];
        if counts != [1, 1, 1] || *branches != 2 {
            violations.add(format!(
                "topic: {name} of {branches} branches has {counts:?} orders, reservations and changes of stock"
            ));
        }
        self.skew.add_micros(unit.last_micros - unit.first_micros);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A purchase of article 1, as `from` and what follows.
    fn purchase(from: i64, number: u64, version: u64) -> Vec<Record> {
        let rows = [
            Row::Order(number),
            Row::Reservation(number),
            Row::Stock {
                article: 1,
                version,
            },
        ];
        let record = |(at, row)| Record {
            offset: from + at,
            id: String::new(),
            global: Some((format!("buy {number}"), 2)),
            committed_micros: 1_000 * from + at,
            row,
        };
        (0..).zip(rows).map(record).collect()
    }

    fn found(records: &[Record]) -> String {
        let violations = Violations::default();
        let mut whole = Whole::default();
        for record in records {
            whole.take(record, &violations);
        }
        whole.end(&violations);
        violations.to_string()
    }

    #[test]
    fn whole_purchases_in_their_order_are_right() {
        let visit = Record {
            offset: 6,
            id: String::new(),
            global: None,
            committed_micros: 0,
            row: Row::Visit(1),
        };
        // Two in one transaction of Kafka, and one in the next.
        let mut all = purchase(0, 1, 1);
        all.extend(purchase(3, 2, 2));
        all.push(visit);
        all.extend(purchase(8, 3, 3));
        assert_eq!(found(&all), "");
    }

    #[test]
    fn everything_that_is_wrong_is_seen() {
        let both = |second: Vec<Record>| [purchase(0, 1, 1), second].concat();
        let again = [purchase(4, 2, 2), purchase(8, 1, 3)].concat();
        let mut torn = purchase(4, 2, 2);
        torn[1].offset += 1;
        torn[2].offset += 1;
        let mut half = purchase(4, 2, 2);
        half.remove(1);
        let mut alone = purchase(4, 2, 2);
        alone[0].global = None;
        for (second, word) in [
            (purchase(4, 1, 2), "Order(1) comes again"),
            (again, "buy 1 is in two places"),
            (purchase(4, 2, 1), "article 1 goes from its change 1 to 1"),
            (purchase(4, 2, 3), "article 1 goes from its change 1 to 3"),
            (
                torn.clone(),
                "half of purchase 2 where a transaction of Kafka ends",
            ),
            (torn, "buy 2 is in several transactions"),
            (half.clone(), "half of purchase 2 where the topic ends"),
            (half, "[1, 0, 1] orders"),
            (alone, "[0, 1, 1] orders"),
        ] {
            let told = found(&both(second));
            assert!(told.contains(word), "{word}: {told}");
        }
    }
}

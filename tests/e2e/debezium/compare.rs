//! Finds what differs between two lists of records.

use std::collections::BTreeMap;
use std::fmt;

use crate::record::{Fields, Record};

/// One thing that differs.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The topic without its prefix.
    pub topic: String,
    /// Whether it is in the snapshot.
    pub snapshot: bool,
    /// The record's key, and what it says (`c`, `u`, …; nothing for a tombstone).
    pub record: String,
    /// `after.c_name`, `headers`, `source.lsn`, …
    pub path: String,
    /// What Debezium has, `None` where it has nothing.
    pub theirs: Option<String>,
    /// What we have.
    pub ours: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |text: &Option<String>| match text {
            None => "(nothing)".to_owned(),
            Some(text) if text.len() > 300 => {
                format!(
                    "{}… ({} bytes)",
                    text.chars().take(200).collect::<String>(),
                    text.len()
                )
            }
            Some(text) => text.clone(),
        };
        write!(
            f,
            "{} {} {} {}\n    Debezium: {}\n    lockstep: {}",
            self.topic,
            if self.snapshot { "snapshot" } else { "stream" },
            self.record,
            self.path,
            short(&self.theirs),
            short(&self.ours)
        )
    }
}

/// Fields that can never be equal: the clock, and who made the record.
const NEVER_EQUAL: [&str; 4] = ["ts_ms", "ts_us", "ts_ns", "source.version"];

/// Fields of `source` that say when and where each side took its own snapshot.
const OF_THE_SNAPSHOT: [&str; 7] = [
    "source.ts_ms",
    "source.ts_us",
    "source.ts_ns",
    "source.snapshot",
    "source.sequence",
    "source.txId",
    "source.lsn",
];

/// Compares record by record, topic by topic: the snapshot by key, the stream in order.
pub fn differences(theirs: &[Record], ours: &[Record], snapshot: bool) -> Vec<Difference> {
    let (theirs, ours) = (by_topic(theirs, snapshot), by_topic(ours, snapshot));
    let mut found = Vec::new();
    let none = Vec::new();
    for topic in theirs
        .keys()
        .chain(ours.keys().filter(|topic| !theirs.contains_key(*topic)))
    {
        let (theirs, ours) = (
            theirs.get(topic).unwrap_or(&none),
            ours.get(topic).unwrap_or(&none),
        );
        for index in 0..theirs.len().max(ours.len()) {
            let mut comparer = Comparer {
                topic,
                snapshot,
                record: describe(
                    theirs
                        .get(index)
                        .or_else(|| ours.get(index))
                        .expect("index is below one length"),
                ),
                found: &mut found,
            };
            match (theirs.get(index), ours.get(index)) {
                (Some(theirs), Some(ours)) => comparer.record(theirs, ours),
                (theirs, ours) => {
                    let value =
                        |record: Option<&&Record>| record.map(|record| record.value.clone());
                    comparer.differ("record", value(theirs), value(ours));
                }
            }
        }
    }
    found
}

fn by_topic(records: &[Record], snapshot: bool) -> BTreeMap<String, Vec<&Record>> {
    let mut topics: BTreeMap<String, Vec<&Record>> = BTreeMap::new();
    for record in records {
        let topic = record.topic.split_once('.').map_or("", |(_, topic)| topic);
        topics.entry(topic.to_owned()).or_default().push(record);
    }
    if snapshot {
        for records in topics.values_mut() {
            records.sort_by_key(|record| (record.key.clone(), after(record)));
        }
    }
    topics
}

fn after(record: &Record) -> Option<String> {
    Some(Fields::of(&record.value)?.get("after")?.to_owned())
}

fn describe(record: &Record) -> String {
    let op = Fields::of(&record.value).and_then(|value| value.get("op").map(str::to_owned));
    format!("{} {}", record.key, op.unwrap_or_default())
}

struct Comparer<'a> {
    topic: &'a str,
    snapshot: bool,
    record: String,
    found: &'a mut Vec<Difference>,
}

impl Comparer<'_> {
    fn differ(&mut self, path: &str, theirs: Option<String>, ours: Option<String>) {
        self.found.push(Difference {
            topic: self.topic.to_owned(),
            snapshot: self.snapshot,
            record: self.record.clone(),
            path: path.to_owned(),
            theirs,
            ours,
        });
    }

    fn record(&mut self, theirs: &Record, ours: &Record) {
        if theirs.key != ours.key {
            self.differ("key", Some(theirs.key.clone()), Some(ours.key.clone()));
        }
        if theirs.headers != ours.headers {
            let text = |record: &Record| Some(format!("{:?}", record.headers));
            self.differ("headers", text(theirs), text(ours));
        }
        self.value("", Some(&theirs.value), Some(&ours.value));
    }

    fn value(&mut self, path: &str, theirs: Option<&str>, ours: Option<&str>) {
        if theirs == ours
            || (theirs.is_some() && ours.is_some() && NEVER_EQUAL.contains(&path))
            || (self.snapshot && OF_THE_SNAPSHOT.contains(&path))
        {
            return;
        }
        let envelope = ["", "before", "after", "source", "message"].contains(&path);
        match (
            envelope,
            theirs.and_then(Fields::of),
            ours.and_then(Fields::of),
        ) {
            (true, Some(theirs), Some(ours)) => self.fields(path, &theirs, &ours),
            _ => self.differ(path, theirs.map(str::to_owned), ours.map(str::to_owned)),
        }
    }

    fn fields(&mut self, path: &str, theirs: &Fields, ours: &Fields) {
        let inner = |name: &str| {
            if path.is_empty() {
                name.to_owned()
            } else {
                format!("{path}.{name}")
            }
        };
        for (name, value) in &theirs.0 {
            self.value(&inner(name), Some(value.get()), ours.get(name));
        }
        for (name, value) in &ours.0 {
            if theirs.get(name).is_none() {
                self.value(&inner(name), None, Some(value.get()));
            }
        }
        let common = |of: &Fields, other: &Fields| -> Vec<String> {
            of.0.iter()
                .filter(|(name, _)| other.get(name).is_some())
                .map(|(name, _)| name.clone())
                .collect()
        };
        let (theirs, ours) = (common(theirs, ours), common(ours, theirs));
        if theirs != ours {
            self.differ(
                &inner("(order)"),
                Some(theirs.join(",")),
                Some(ours.join(",")),
            );
        }
    }
}

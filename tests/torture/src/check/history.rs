//! The changes of a queue or a file beside those that were committed, key by key.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Findings;
use super::expected::Table;
use super::rows::{difference, text};

/// What stands for an unchanged value that the log does not have.
const UNAVAILABLE: &str = "__debezium_unavailable_value";

/// Where the history in a queue begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Begin {
    /// With one copy of what was there first; every change after it is a record of its own.
    #[default]
    FirstCopy,
    /// With the last of several copies, at a moment that only the queue knows. Each begins with a TRUNCATE, or with a
    /// record that says of itself that it is the first of its table.
    LastCopy,
}

/// A kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Op {
    Copied,
    Created,
    Updated,
    Deleted,
}

impl Op {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "r" => Self::Copied,
            "c" => Self::Created,
            "u" => Self::Updated,
            "d" => Self::Deleted,
            _ => return None,
        })
    }
}

/// One change of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Event {
    pub(super) op: Op,
    /// Of the row that it wrote; 0 of a deletion.
    pub(super) version: i64,
    /// How often the table had been truncated.
    pub(super) truncates: u32,
}

impl Event {
    /// What it is, wherever it stands. That a row was copied says nothing of how it had come about.
    fn identity(&self) -> (bool, i64) {
        (self.op == Op::Deleted, self.version)
    }
}

/// One record.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) partition: i32,
    /// `Null` of a TRUNCATE.
    pub(super) key: Value,
    /// `Null` of a tombstone.
    pub(super) value: Value,
}

/// Whether a deletion is followed by a record without a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tombstones {
    Follow,
    None,
}

/// What stands in a queue about one key.
#[derive(Default)]
struct Found {
    events: Vec<Event>,
    tombstones: usize,
    partitions: BTreeSet<i32>,
}

impl Found {
    /// Whether whoever has read so far holds a row.
    fn is_row(&self) -> bool {
        self.events
            .last()
            .is_some_and(|last| last.op != Op::Deleted)
    }
}

/// Whether a copy of the table begins with it, in a queue that says so.
fn is_first_of_copy(record: &Record) -> bool {
    let position = record.value["source"]["snapshot"].as_str();
    position.is_some_and(|position| position.starts_with("first"))
}

/// Compares the records, which are in the order of each partition, with the expected changes.
pub(super) fn compare(
    place: &str,
    expected: &Table,
    records: &[Record],
    tombstones: Tombstones,
    findings: &mut Findings,
) {
    let mut truncates: BTreeMap<i32, u32> = BTreeMap::new();
    let mut keys: BTreeMap<i64, Found> = BTreeMap::new();
    let mut left_behind: BTreeSet<i64> = BTreeSet::new();
    for record in records {
        let count = truncates.entry(record.partition).or_default();
        let is_truncate = record.value["op"] == "t";
        if expected.begin == Begin::LastCopy && (is_truncate || is_first_of_copy(record)) {
            // What stood before belongs to a copy that was given up.
            let given_up =
                keys.extract_if(.., |_, found| found.partitions.contains(&record.partition));
            let stay = given_up.filter(|(_, found)| !is_truncate && found.is_row());
            left_behind.extend(stay.map(|(id, _)| id));
        }
        if is_truncate {
            *count += 1;
            continue;
        }
        let Some(id) = record.key["id"].as_i64() else {
            findings.stale(format_args!("{place}: no key in {record:?}"));
            continue;
        };
        left_behind.remove(&id);
        let found = keys.entry(id).or_default();
        found.partitions.insert(record.partition);
        if record.value.is_null() {
            found.tombstones += 1;
            continue;
        }
        match event(record, *count) {
            Some(event) => {
                found.events.push(event);
                compare_values(place, expected, record, &event, findings);
            }
            None => findings.stale(format_args!("{place}: not a change: {record:?}")),
        }
    }
    if expected.begin == Begin::FirstCopy {
        compare_truncates(place, expected.truncates, &truncates, findings);
    }
    for id in left_behind {
        let history = expected.history.get(&id).map_or(&[][..], Vec::as_slice);
        if history.last().is_some_and(|last| last.op == Op::Deleted) {
            findings.stale(format_args!(
                "{place} {id} was deleted between two copies, and nobody says so"
            ));
        }
    }
    let none = Found::default();
    let ids: BTreeSet<i64> = keys
        .keys()
        .chain(expected.history.keys())
        .copied()
        .collect();
    for id in ids {
        let history = expected.history.get(&id).map_or(&[][..], Vec::as_slice);
        let found = keys.get(&id).unwrap_or(&none);
        let place = format!("{place} {id}");
        let history = match expected.begin {
            Begin::FirstCopy => history,
            Begin::LastCopy => since_copy(history, &found.events),
        };
        compare_key(&place, expected.begin, history, found, findings);
        if tombstones == Tombstones::Follow {
            compare_tombstones(&place, history, found, findings);
        }
    }
}

fn compare_tombstones(place: &str, history: &[Event], found: &Found, findings: &mut Findings) {
    let deletions = |events: &[Event]| {
        let deleted = events.iter().filter(|event| event.op == Op::Deleted);
        deleted.count()
    };
    let (wanted, seen) = (deletions(history), deletions(&found.events));
    let told = format!(
        "{place}: {seen} deletions and {} tombstones",
        found.tombstones
    );
    // A deletion that came again may have been cut off before its second tombstone.
    if found.tombstones < seen.min(wanted) {
        findings.lost(told);
    } else if found.tombstones > seen {
        findings.doubled(told);
    }
}

fn event(record: &Record, truncates: u32) -> Option<Event> {
    let op = Op::named(record.value["op"].as_str()?)?;
    let version = match op {
        Op::Deleted => 0,
        _ => record.value["after"]["v"].as_i64()?,
    };
    Some(Event {
        op,
        version,
        truncates,
    })
}

fn compare_truncates(
    place: &str,
    expected: u32,
    found: &BTreeMap<i32, u32>,
    findings: &mut Findings,
) {
    for (partition, &count) in found {
        for _ in count..expected {
            findings.lost(format_args!("{place}/{partition}: a TRUNCATE"));
        }
        for _ in expected..count {
            findings.doubled(format_args!("{place}/{partition}: a TRUNCATE"));
        }
    }
}

/// The values of a record beside those that were written under its version.
fn compare_values(
    place: &str,
    expected: &Table,
    record: &Record,
    event: &Event,
    findings: &mut Findings,
) {
    let Some(written) = expected.written.get(&event.version) else {
        // A deletion; or a change that nobody made, which is told elsewhere.
        return;
    };
    let mut after = record.value["after"].clone();
    let marked = match after["big"].as_str() {
        Some(UNAVAILABLE) => written["big"].clone(),
        Some(big) => mark(big).into(),
        None => Value::Null,
    };
    after["big"] = marked;
    if let Some(difference) = difference(written, &after) {
        let id = text(&record.key["id"]).unwrap_or_default();
        findings.stale(format_args!(
            "{place} {id} version {}: {difference}",
            event.version
        ));
    }
}

/// As the audit marks a large value.
fn mark(big: &str) -> String {
    let beginning: String = big.chars().take(16).collect();
    format!("{beginning}:{}", big.chars().count())
}

fn compare_key(
    place: &str,
    begin: Begin,
    history: &[Event],
    found: &Found,
    findings: &mut Findings,
) {
    if found.partitions.len() > 1 {
        findings.reordered(format_args!(
            "{place} is in partitions {:?}",
            found.partitions
        ));
    }
    let counted = |events: &[Event]| {
        let mut counts: BTreeMap<(bool, i64), i64> = BTreeMap::new();
        for event in events {
            *counts.entry(event.identity()).or_default() += 1;
        }
        counts
    };
    let (wanted, seen) = (counted(history), counted(&found.events));
    if wanted == seen {
        let alike = std::iter::zip(history, &found.events).all(|(wanted, seen)| {
            wanted.identity() == seen.identity()
                && (begin == Begin::LastCopy || wanted.truncates == seen.truncates)
        });
        if !alike {
            findings.reordered(format_args!(
                "{place}: {:?} instead of {history:?}",
                found.events
            ));
        }
        return;
    }
    let is_short =
        |(identity, count): (&(bool, i64), &i64)| seen.get(identity).copied().unwrap_or(0) < *count;
    // Of what is there again, the first time must stand where it belongs; what is not there has no place.
    if !wanted.iter().any(is_short) && !is_within(history, &found.events) {
        findings.reordered(format_args!(
            "{place}: {:?} instead of {history:?}",
            found.events
        ));
    }
    for (identity, &count) in &wanted {
        for _ in seen.get(identity).copied().unwrap_or(0)..count {
            findings.lost(format_args!("{place}: {}", shown(*identity)));
        }
    }
    for (identity, &count) in &seen {
        for _ in wanted.get(identity).copied().unwrap_or(0)..count {
            findings.doubled(format_args!("{place}: {}", shown(*identity)));
        }
    }
}

/// Whether all of the history can be read off what was found, leaving out what is there again.
fn is_within(history: &[Event], found: &[Event]) -> bool {
    let mut found = found.iter();
    history
        .iter()
        .all(|wanted| found.any(|seen| seen.identity() == wanted.identity()))
}

fn shown((deletion, version): (bool, i64)) -> String {
    if deletion {
        "a deletion".into()
    } else {
        format!("version {version}")
    }
}

/// The part of a key's history that a copy and the changes after it have to show: from the copied version on, or, if the
/// row was not there when it was copied, from a moment at which it was not there: the one that fits what was found.
fn since_copy<'a>(history: &'a [Event], found: &[Event]) -> &'a [Event] {
    if let Some(copied) = found.iter().rfind(|event| event.op == Op::Copied) {
        let at = history
            .iter()
            .position(|event| event.version == copied.version);
        return &history[at.unwrap_or(0)..];
    }
    let absent = |at: usize| at == 0 || history[at - 1].op == Op::Deleted;
    let fits = (0..=history.len())
        .filter(|&at| absent(at))
        .min_by_key(|&at| (history.len() - at).abs_diff(found.len()));
    &history[fits.unwrap_or(0)..]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::expected::Table;
    use super::super::{Counts, Findings};
    use super::{Begin, Event, Op, Record, Tombstones, compare};

    fn record(op: &str, id: i64, version: i64) -> Record {
        let after = match op {
            "d" => Value::Null,
            _ => json!({"id": id, "v": version, "big": null}),
        };
        Record {
            partition: 0,
            key: json!({"id": id}),
            value: json!({"op": op, "after": after}),
        }
    }

    fn tombstone(id: i64) -> Record {
        Record {
            value: Value::Null,
            ..record("d", id, 0)
        }
    }

    fn truncate() -> Record {
        Record {
            key: Value::Null,
            ..record("t", 0, 0)
        }
    }

    /// A key that is there first, changed, deleted, made again; then a TRUNCATE; then made once more.
    fn expected() -> Table {
        let event = |op, version, truncates| Event {
            op,
            version,
            truncates,
        };
        let mut table = Table::default();
        let history = [
            event(Op::Created, 1, 0),
            event(Op::Updated, 2, 0),
            event(Op::Deleted, 0, 0),
            event(Op::Created, 3, 0),
            event(Op::Created, 4, 1),
        ];
        table.history.insert(7, history.into());
        table.truncates = 1;
        for version in 1..=4 {
            table
                .written
                .insert(version, json!({"id": 7, "v": version, "big": null}));
        }
        table
    }

    fn right() -> Vec<Record> {
        vec![
            record("r", 7, 1),
            record("u", 7, 2),
            record("d", 7, 0),
            tombstone(7),
            record("c", 7, 3),
            truncate(),
            record("c", 7, 4),
        ]
    }

    fn counts(expected: &Table, records: &[Record]) -> Counts {
        let mut findings = Findings::default();
        compare("here", expected, records, Tombstones::Follow, &mut findings);
        findings.counts
    }

    #[test]
    fn what_is_right_is_not_wrong() {
        assert_eq!(counts(&expected(), &right()), Counts::default());
    }

    #[test]
    fn a_change_that_is_missing_is_lost() {
        for at in [0, 1, 2, 3, 4, 5, 6] {
            let mut records = right();
            records.remove(at);
            let counts = counts(&expected(), &records);
            assert!(counts.lost > 0, "{at}: {counts}");
        }
    }

    #[test]
    fn a_change_that_is_there_again_is_doubled() {
        for at in [0, 1, 4, 5, 6] {
            let mut records = right();
            records.insert(at, records[at].clone());
            let counts = counts(&expected(), &records);
            assert!(counts.doubled > 0 && counts.lost == 0, "{at}: {counts}");
        }
    }

    #[test]
    fn what_is_there_again_must_have_been_there_in_order_before() {
        let mut expected = expected();
        expected.truncates = 0;
        for event in expected.history.values_mut().flatten() {
            event.truncates = 0;
        }
        let right = right();
        let right = [&right[..5], &right[6..]].concat();
        let again = [&right[..], &right[1..]].concat();
        let found = counts(&expected, &again);
        assert_eq!((found.lost, found.reordered), (0, 0), "{found}");
        assert!(found.doubled >= 4, "{found}");
        // The last version before the others, and again where it belongs.
        let early = [&right[right.len() - 1..], &right[..right.len() - 1]].concat();
        let early = [&early[..], &early[..1]].concat();
        let mut late = early.clone();
        late.pop();
        late.push(right[0].clone());
        assert_eq!(counts(&expected, &early).reordered, 0);
        assert_eq!(counts(&expected, &late).reordered, 1);
    }

    #[test]
    fn another_order_is_told_also_around_a_truncate() {
        for (one, other) in [(0, 1), (1, 4), (4, 5), (5, 6)] {
            let mut records = right();
            records.swap(one, other);
            let counts = counts(&expected(), &records);
            assert_eq!((counts.reordered, counts.lost), (1, 0), "{one}: {counts}");
        }
        let mut records = right();
        for record in &mut records[..2] {
            record.partition = 1;
        }
        records.insert(
            2,
            Record {
                partition: 1,
                ..truncate()
            },
        );
        assert!(
            counts(&expected(), &records).reordered > 0,
            "two partitions"
        );
    }

    #[test]
    fn another_value_is_stale() {
        let mut records = right();
        records[1].value["after"]["id"] = 8.into();
        assert_eq!(counts(&expected(), &records).stale, 1);
        let mut records = right();
        records[1].value["after"]["big"] = super::UNAVAILABLE.into();
        assert_eq!(counts(&expected(), &records), Counts::default());
        records[1].value["after"]["big"] = "other".into();
        assert_eq!(counts(&expected(), &records).stale, 1);
    }

    #[test]
    fn the_last_of_several_copies_counts() {
        let mut table = expected();
        table.begin = Begin::LastCopy;
        table.truncates = 0;
        // The first copy was given up; the second one saw the row deleted, or in its second version.
        let given_up = [record("r", 7, 1), truncate()];
        let absent = [record("c", 7, 3), record("c", 7, 4)];
        let present = [
            record("r", 7, 2),
            record("d", 7, 0),
            tombstone(7),
            record("c", 7, 3),
            record("c", 7, 4),
        ];
        for rest in [&absent[..], &present[..]] {
            let records = [&given_up[..], rest].concat();
            assert_eq!(counts(&table, &records), Counts::default());
            let short = &records[..records.len() - 1];
            assert_eq!(counts(&table, short).lost, 1);
            let again = [&records[..], &records[records.len() - 1..]].concat();
            assert_eq!(counts(&table, &again).doubled, 1);
        }
    }

    fn first_of_copy(id: i64, version: i64) -> Record {
        let mut record = record("r", id, version);
        record.value["source"] = json!({"snapshot": "first_in_data_collection"});
        record
    }

    #[test]
    fn a_copy_without_a_truncate_begins_with_its_first_record() {
        let mut table = expected();
        table.begin = Begin::LastCopy;
        table.truncates = 0;
        // The row was changed and deleted between the copies: what lies between them is in neither.
        let between = [
            record("r", 7, 1),
            first_of_copy(8, 9),
            record("c", 7, 3),
            record("c", 7, 4),
        ];
        let event = |op, version| Event {
            op,
            version,
            truncates: 0,
        };
        table.history.insert(8, vec![event(Op::Created, 9)]);
        assert_eq!(counts(&table, &between), Counts::default());
        let short = [&between[..2], &between[3..]].concat();
        assert_eq!(counts(&table, &short).lost, 1);
    }

    #[test]
    fn a_row_that_was_deleted_between_copies_has_to_go() {
        let mut table = expected();
        table.begin = Begin::LastCopy;
        table.truncates = 0;
        let event = |op, version| Event {
            op,
            version,
            truncates: 0,
        };
        table.history.clear();
        table
            .history
            .insert(7, vec![event(Op::Created, 1), event(Op::Deleted, 0)]);
        table.history.insert(8, vec![event(Op::Created, 9)]);
        let stays = [record("r", 7, 1), first_of_copy(8, 9)];
        assert_eq!(counts(&table, &stays).stale, 1);
        let goes = [record("r", 7, 1), truncate(), first_of_copy(8, 9)];
        assert_eq!(counts(&table, &goes), Counts::default());
    }
}

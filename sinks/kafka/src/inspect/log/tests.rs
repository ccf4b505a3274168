use super::*;

const ROOM: usize = usize::MAX;

fn owner(table: &str) -> Owner {
    Owner("shop".into(), "public".into(), table.into())
}

/// A topic that is read record by record.
struct Topic {
    log: Log,
    offset: i64,
}

impl Topic {
    fn new(format: Format, tables: &[&str]) -> Self {
        let owners = tables.iter().map(|table| owner(table)).collect();
        Topic {
            log: Log::new(format, Digests::new(), owners),
            offset: 0,
        }
    }

    fn raw(&mut self, partition: i32, key: Option<&str>, value: Option<&str>, has_id: bool) -> At {
        self.offset += 1;
        let at = At {
            partition,
            offset: self.offset,
        };
        let raw = Raw {
            at,
            stamp: self.offset,
            key: key.map(str::as_bytes),
            value: value.map(str::as_bytes),
            has_id,
        };
        self.log.take(&raw, ROOM).expect("room");
        at
    }

    fn event(&mut self, table: &str, op: &str, key: &str, after: &str) -> At {
        let value = format!(
            r#"{{"before":null,"after":{after},"source":{{"name":"shop","schema":"public","table":"{table}"}},"op":"{op}"}}"#
        );
        self.raw(0, Some(key), Some(&value), true)
    }

    /// As the sink writes it: the event and its tombstone.
    fn delete(&mut self, table: &str, key: &str) {
        self.event(table, "d", key, "null");
        self.raw(0, Some(key), None, true);
    }

    fn standing(&self, table: &str, key: &str, row: Option<&str>) -> Standing {
        let owner = self.log.owner(&owner(table));
        self.log.standing(owner, key.as_bytes(), row)
    }
}

const KEY: &str = r#"{"id":1}"#;
const ROW: &str = r#"{"id":1,"note":"x"}"#;
const OTHER: &str = r#"{"id":1,"note":"y"}"#;

#[test]
fn the_latest_record_of_a_key_counts() {
    let mut topic = Topic::new(Format::default(), &["t"]);
    assert_eq!(topic.standing("t", KEY, Some(ROW)), Standing::Missing);
    assert_eq!(topic.standing("t", KEY, None), Standing::Same);
    let at = topic.event("t", "c", KEY, ROW);
    assert_eq!(topic.standing("t", KEY, Some(ROW)), Standing::Same);
    assert_eq!(topic.standing("t", KEY, Some(OTHER)), Standing::Suspect(at));
    assert_eq!(topic.standing("t", KEY, None), Standing::Suspect(at));
    let at = topic.event("t", "u", KEY, OTHER);
    assert_eq!(topic.standing("t", KEY, Some(ROW)), Standing::Suspect(at));
    assert_eq!(topic.standing("t", KEY, Some(OTHER)), Standing::Same);
    topic.event("t", "d", KEY, "null");
    assert_eq!(topic.standing("t", KEY, Some(OTHER)), Standing::Missing);
    topic.event("t", "r", KEY, ROW);
    assert_eq!(topic.standing("t", KEY, Some(ROW)), Standing::Same);
    topic.raw(0, Some(KEY), None, false);
    assert_eq!(topic.standing("t", KEY, Some(ROW)), Standing::Missing);
    assert_eq!(topic.log.index.live(0), 0);
}

#[test]
fn values_that_an_update_left_alone_are_not_compared() {
    let mut topic = Topic::new(Format::default(), &["t"]);
    topic.event(
        "t",
        "u",
        KEY,
        r#"{"id":1,"note":"__debezium_unavailable_value"}"#,
    );
    assert_eq!(topic.standing("t", KEY, Some(ROW)), Standing::Same);
    let wrong = r#"{"id":2,"note":"x"}"#;
    assert!(matches!(
        topic.standing("t", KEY, Some(wrong)),
        Standing::Suspect(_)
    ));
    let mut topic = Topic::new(Format::Flat, &["t"]);
    let value = r#"{"op":"u","row":{"id":1},"unchanged":["note"]}"#;
    topic.raw(0, Some(KEY), Some(value), true);
    assert_eq!(topic.standing("t", KEY, Some(ROW)), Standing::Same);
    topic.raw(0, Some(KEY), Some(r#"{"op":"u","row":{"id":1}}"#), true);
    assert!(matches!(
        topic.standing("t", KEY, Some(ROW)),
        Standing::Suspect(_)
    ));
}

#[test]
fn after_truncate_there_are_the_rows_that_came_behind_it() {
    let mut topic = Topic::new(Format::default(), &["t"]);
    let truncate =
        r#"{"after":null,"source":{"name":"shop","schema":"public","table":"t"},"op":"t"}"#;
    topic.event("t", "c", KEY, ROW);
    let other = r#"{"id":2}"#;
    let value = format!(r#"{{"after":{ROW},"op":"c"}}"#);
    topic.raw(1, Some(other), Some(&value), true);
    topic.raw(0, None, Some(truncate), true);
    assert_eq!(topic.standing("t", KEY, Some(ROW)), Standing::Missing);
    // Its own partition has not told it yet.
    assert_eq!(topic.standing("t", other, Some(ROW)), Standing::Same);
    topic.raw(1, None, Some(truncate), true);
    assert_eq!(topic.standing("t", other, Some(ROW)), Standing::Missing);
    topic.event("t", "r", KEY, ROW);
    assert_eq!(topic.standing("t", KEY, Some(ROW)), Standing::Same);
    assert!(topic.log.strange.is_empty());
}

#[test]
fn what_cannot_be_read_is_told_and_breaks_nothing() {
    let mut topic = Topic::new(Format::default(), &["t"]);
    topic.event("t", "c", KEY, ROW);
    let at = topic.raw(0, Some(KEY), Some("{\"after\":"), false);
    assert_eq!(topic.standing("t", KEY, Some(ROW)), Standing::Suspect(at));
    assert_eq!(topic.standing("t", KEY, None), Standing::Suspect(at));
    let first = topic.raw(2, None, Some("x"), false);
    topic.raw(2, None, None, false);
    let told: Vec<(At, u64)> = topic
        .log
        .strange
        .iter()
        .map(|told| (told.first, told.count))
        .collect();
    assert_eq!(told, [(first, 2)]);
    // A change from before the table had a key is none of these.
    let value = format!(r#"{{"after":{ROW},"op":"c"}}"#);
    topic.raw(2, None, Some(&value), true);
    assert_eq!((topic.log.unkeyed, topic.log.strange.len()), (1, 1));
}

#[test]
fn tables_that_share_a_topic_have_keys_of_their_own() {
    let mut topic = Topic::new(Format::default(), &["a", "b"]);
    topic.event("a", "c", KEY, ROW);
    topic.event("b", "c", KEY, OTHER);
    assert_eq!(topic.standing("a", KEY, Some(ROW)), Standing::Same);
    assert_eq!(topic.standing("b", KEY, Some(OTHER)), Standing::Same);
    // The tombstone belongs to the delete of `a`.
    topic.delete("a", KEY);
    assert_eq!(topic.standing("a", KEY, Some(ROW)), Standing::Missing);
    assert_eq!(topic.standing("b", KEY, Some(OTHER)), Standing::Same);
    topic.event("c", "c", KEY, ROW);
    assert_eq!(topic.standing("a", KEY, None), Standing::Same);
    let counted = ["a", "b", "c"].map(|table| topic.log.index.live(topic.log.owner(&owner(table))));
    assert_eq!(counted, [0, 1, 1]);
    // Nobody's tombstone is everybody's.
    topic.raw(0, Some(KEY), None, false);
    assert_eq!(topic.standing("b", KEY, Some(OTHER)), Standing::Missing);
}

#[test]
fn where_records_expire_none_is_missing() {
    let mut topic = Topic::new(Format::default(), &["t"]);
    topic.event("t", "c", KEY, ROW);
    topic.log.starts = vec![topic.offset + 1];
    // What lies before the beginning is not there.
    assert_eq!(topic.standing("t", KEY, Some(ROW)), Standing::Missing);
    topic.log.expired = true;
    assert_eq!(topic.standing("t", KEY, Some(ROW)), Standing::Same);
    let at = topic.event("t", "u", KEY, OTHER);
    assert_eq!(topic.standing("t", KEY, Some(ROW)), Standing::Suspect(at));
}

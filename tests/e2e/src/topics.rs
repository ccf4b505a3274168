//! Reads topics as a consumer with `isolation.level=read_committed` sees them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// How long the broker may take to answer, and how long nothing may come while a topic is read. What comes is no reason to give
/// up, however much it is and however busy the machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// One record.
#[derive(Clone, Debug)]
pub struct Record {
    /// Of its topic.
    pub partition: i32,
    /// In its partition.
    pub offset: i64,
    /// `Null` when there is none.
    pub key: Value,
    /// `Null` for a tombstone.
    pub value: Value,
    /// The header `lockstep.id`.
    pub id: String,
    /// The headers `lockstep.gtrid` and `lockstep.gtx.count`, when they are there.
    pub global: Option<(String, u32)>,
}

impl Record {
    /// The `op` of the envelope: `r`, `c`, `u`, `d`, `t`; empty for a tombstone.
    pub fn op(&self) -> &str {
        self.value["op"].as_str().unwrap_or_default()
    }
}

/// All committed records of a topic by partition and offset, up to its end. The end of an open transaction is waited
/// for.
///
/// # Panics
/// When the topic does not exist, or nothing comes for a minute and its end is not reached.
pub async fn read(bootstrap: &str, topic: &str) -> Vec<Record> {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || read_blocking(&bootstrap, &topic, record))
        .await
        .expect("the reader")
}

/// As [`read`], for topics of hundreds of thousands of records: of each value only the `op`, and in `after` these columns.
///
/// # Panics
/// As [`read`].
pub async fn read_columns(
    bootstrap: &str,
    topic: &str,
    columns: &'static [&'static str],
) -> Vec<Record> {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    let of = move |message: &BorrowedMessage<'_>| brief_record(message, columns);
    tokio::task::spawn_blocking(move || read_blocking(&bootstrap, &topic, of))
        .await
        .expect("the reader")
}

/// As [`read`], of a topic that others have written to as well: what is no JSON is a text, and the `id` may be empty.
///
/// # Panics
/// As [`read`].
pub async fn read_any(bootstrap: &str, topic: &str) -> Vec<Record> {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || read_blocking(&bootstrap, &topic, any_record))
        .await
        .expect("the reader")
}

/// As [`read`], of keys and values that `decode` makes JSON of. It may block.
///
/// # Panics
/// As [`read`].
pub async fn read_as(
    bootstrap: &str,
    topic: &str,
    decode: impl Fn(&[u8]) -> Value + Send + 'static,
) -> Vec<Record> {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    let of = move |message: &BorrowedMessage<'_>| {
        let decoded = |bytes: Option<&[u8]>| bytes.map(&decode).unwrap_or_default();
        Record {
            key: decoded(message.key()),
            ..record_of(message, decoded(message.payload()))
        }
    };
    tokio::task::spawn_blocking(move || read_blocking(&bootstrap, &topic, of))
        .await
        .expect("the reader")
}

/// One record as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// `None` when there is none.
    pub key: Option<String>,
    /// `None` for a tombstone.
    pub value: Option<String>,
    /// By name.
    pub headers: BTreeMap<String, String>,
}

/// As [`read`], without looking into keys and values, in no order between partitions.
///
/// # Panics
/// As [`read`].
pub async fn read_raw(bootstrap: &str, topic: &str) -> Vec<Raw> {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    let read = move || {
        let mut records = Vec::new();
        visit(&bootstrap, &topic, DEADLINE, |message| {
            let headers = message.headers().into_iter().flat_map(Headers::iter);
            records.push(Raw {
                key: message.key().map(text),
                value: message.payload().map(text),
                headers: headers
                    .map(|header| {
                        (
                            header.key.to_owned(),
                            text(header.value.unwrap_or_default()),
                        )
                    })
                    .collect(),
            });
        });
        records
    };
    tokio::task::spawn_blocking(read).await.expect("the reader")
}

fn consumer(bootstrap: &str, isolation: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "lockstep-e2e")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation)
        .set("fetch.wait.max.ms", "10")
        .create()
        .expect("a consumer")
}

/// How often each number from 1 to `most` is the `id` of a key among the committed records of a topic that may be too large
/// to be held; the first number that is not there exactly once, if there is one.
///
/// # Panics
/// As [`read`], when nothing comes for `patience`.
pub async fn not_once(
    bootstrap: &str,
    topic: &str,
    most: u64,
    patience: Duration,
) -> Option<(u64, u8)> {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    let visit = move || {
        let mut times = Times::new(most);
        visit(&bootstrap, &topic, patience, |message| {
            times.add(message.key().expect("a key"));
        });
        times.not_once()
    };
    tokio::task::spawn_blocking(visit)
        .await
        .expect("the reader")
}

/// How often the numbers from 1 on have come.
pub struct Times(Vec<u8>);

impl Times {
    /// Up to `most`.
    pub fn new(most: u64) -> Self {
        Times(vec![0; most as usize + 1])
    }

    /// Counts the number in a key, `{"id":1}`.
    ///
    /// # Panics
    /// When it is another kind of key, or beyond the end.
    pub fn add(&mut self, key: &[u8]) {
        let number = key
            .strip_prefix(br#"{"id":"#)
            .and_then(|rest| rest.strip_suffix(b"}"))
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok());
        let number = number.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(key)));
        self.0[number] = self.0[number].saturating_add(1);
    }

    /// The first number that has not come exactly once, and how often it has.
    pub fn not_once(&self) -> Option<(u64, u8)> {
        let mut times = (0..).zip(self.0.iter().copied()).skip(1);
        times.find(|(_, times)| *times != 1)
    }
}

fn read_blocking(
    bootstrap: &str,
    topic: &str,
    of: impl Fn(&BorrowedMessage<'_>) -> Record,
) -> Vec<Record> {
    let mut records = Vec::new();
    visit(bootstrap, topic, DEADLINE, |message| {
        records.push(of(message));
    });
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}

/// Shows the committed records up to the end that the topic has when nothing is open before it.
fn visit(
    bootstrap: &str,
    topic: &str,
    patience: Duration,
    mut visitor: impl FnMut(&BorrowedMessage<'_>),
) {
    let committed = consumer(bootstrap, "read_committed");
    let metadata = committed
        .fetch_metadata(Some(topic), DEADLINE)
        .expect("metadata");
    let partitions = metadata.topics()[0].partitions().len() as i32;
    assert!(partitions > 0, "topic {topic} is missing");
    wait_until_decided(bootstrap, topic, partitions, patience, &committed);
    let mut from = TopicPartitionList::new();
    for partition in 0..partitions {
        from.add_partition_offset(topic, partition, Offset::Beginning)
            .expect("an offset");
    }
    committed.assign(&from).expect("an assignment");
    let (mut ended, mut count) = (0, 0_u64);
    let mut progress = Instant::now();
    while ended < partitions {
        assert!(
            progress.elapsed() < patience,
            "the end of {topic} was not reached: nothing for {patience:?} after {count} records"
        );
        match committed.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                count += 1;
                visitor(&message);
            }
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(error)) => panic!("{topic}: {error}"),
            None => continue,
        }
        // Not before: what the visitor takes is not the broker's silence.
        progress = Instant::now();
    }
}

/// Waits until no transaction is open in any partition.
fn wait_until_decided(
    bootstrap: &str,
    topic: &str,
    partitions: i32,
    patience: Duration,
    committed: &BaseConsumer,
) {
    let uncommitted = consumer(bootstrap, "read_uncommitted");
    let end = |consumer: &BaseConsumer, partition| {
        consumer
            .fetch_watermarks(topic, partition, DEADLINE)
            .expect("watermarks")
            .1
    };
    for partition in 0..partitions {
        let (mut progress, mut before) = (Instant::now(), None);
        loop {
            let stable = end(committed, partition);
            if stable >= end(&uncommitted, partition) {
                break;
            }
            // As long as it moves, somebody writes and commits.
            if before.replace(stable) != Some(stable) {
                progress = Instant::now();
            }
            assert!(
                progress.elapsed() < patience,
                "an open transaction has held {topic}/{partition} back at {stable} for {patience:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Writes a record as someone else would: without headers, to the partition of its key.
///
/// # Panics
/// When it is not taken within a minute.
pub async fn produce(bootstrap: &str, topic: &str, key: Option<&str>, value: Option<&str>) {
    let own = |text: Option<&str>| text.map(str::to_owned);
    produce_all(bootstrap, topic, vec![(own(key), own(value))]).await;
}

/// Writes records with these keys and values, in order, as [`produce`] does.
///
/// # Panics
/// When they are not taken within a minute.
pub async fn produce_all(
    bootstrap: &str,
    topic: &str,
    records: Vec<(Option<String>, Option<String>)>,
) {
    let plain = records.into_iter().map(|(key, value)| (key, value, None));
    produce_as(bootstrap, topic, "", plain.collect()).await;
}

/// As [`produce_all`], with the headers that records of `source` have where an id is given: as one puts records back that were saved
/// elsewhere.
///
/// # Panics
/// When they are not taken within a minute.
pub async fn produce_as(
    bootstrap: &str,
    topic: &str,
    source: &str,
    records: Vec<(Option<String>, Option<String>, Option<String>)>,
) {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    let source = source.to_owned();
    let produce = move || {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("partitioner", "murmur2_random")
            .create()
            .expect("a producer");
        let header = |key, value| Header {
            key,
            value: Some(value),
        };
        for (key, value, id) in &records {
            let headers = id.as_ref().map(|id| {
                let id = header("lockstep.id", id.as_str());
                OwnedHeaders::new()
                    .insert(id)
                    .insert(header("lockstep.source", source.as_str()))
            });
            let record: BaseRecord<'_, String, String> = BaseRecord {
                topic: &topic,
                partition: None,
                payload: value.as_ref(),
                key: key.as_ref(),
                timestamp: None,
                headers,
                delivery_opaque: (),
            };
            producer
                .send(record)
                .unwrap_or_else(|(error, _)| panic!("{error}"));
        }
        producer.flush(DEADLINE).expect("delivered");
    };
    tokio::task::spawn_blocking(produce)
        .await
        .expect("the producer");
}

/// All records of a file that the `file` sink wrote. Tombstones are not among them.
///
/// # Panics
/// When it cannot be read, or a line is not one record.
pub fn read_file(path: &Path) -> Vec<Record> {
    let text =
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines = text.lines().enumerate().map(|(offset, line)| {
        let mut record: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        Record {
            partition: 0,
            offset: offset as i64,
            key: record["key"].take(),
            value: record["value"].take(),
            id: record["id"]
                .as_str()
                .unwrap_or_else(|| panic!("no id: {line}"))
                .to_owned(),
            global: None,
        }
    });
    lines.collect()
}

fn record(message: &BorrowedMessage<'_>) -> Record {
    let record = any_record(message);
    for part in [&record.key, &record.value] {
        assert!(!part.is_string(), "no JSON: {part}");
    }
    assert!(
        !record.id.is_empty(),
        "every record has the header lockstep.id"
    );
    record
}

fn any_record(message: &BorrowedMessage<'_>) -> Record {
    record_of(message, json(message.payload()))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(bytes: Option<&[u8]>) -> Value {
    let bytes = bytes.unwrap_or(b"null");
    serde_json::from_slice(bytes).unwrap_or_else(|_| Value::String(text(bytes)))
}

fn brief_record(message: &BorrowedMessage<'_>, columns: &[&str]) -> Record {
    let value = message.payload().map(|value| brief(value, columns));
    let record = record_of(message, value.unwrap_or_default());
    assert!(
        !record.id.is_empty(),
        "every record has the header lockstep.id"
    );
    record
}

/// The parts of an envelope that are asked for; the rest, of kilobytes, is passed over unread.
fn brief(value: &[u8], columns: &[&str]) -> Value {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        op: String,
        #[serde(borrow)]
        after: Option<BTreeMap<Cow<'a, str>, &'a RawValue>>,
    }
    let envelope: Envelope<'_> = serde_json::from_slice(value)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(value)));
    let after = envelope.after.map(|row| -> Value {
        let wanted = row
            .into_iter()
            .filter(|(column, _)| columns.contains(&column.as_ref()));
        let parsed = |value: &RawValue| -> Value {
            serde_json::from_str(value.get()).expect("a JSON value")
        };
        wanted
            .map(|(column, value)| (column.into_owned(), parsed(value)))
            .collect()
    });
    serde_json::json!({ "op": envelope.op, "after": after })
}

fn record_of(message: &BorrowedMessage<'_>, value: Value) -> Record {
    let header = |name: &str| {
        let mut headers = message.headers().into_iter().flat_map(Headers::iter);
        let found = headers.find(|header| header.key == name)?;
        Some(text(found.value.unwrap_or_default()))
    };
    let branches = |text: String| text.parse().unwrap_or_else(|_| panic!("{text} branches"));
    let global = header("lockstep.gtrid").zip(header("lockstep.gtx.count").map(branches));
    Record {
        partition: message.partition(),
        offset: message.offset(),
        key: json(message.key()),
        value,
        id: header("lockstep.id").unwrap_or_default(),
        global,
    }
}

/// Changes of a stream, read from records in the order of their partitions: each id belongs to one change, whose
/// records (the parts of a key change, a delete and its tombstone) are the same each time it is written.
///
/// Answers with the ids of changes that are there more than once. Copied rows (`r`) do not count.
pub fn repeated(records: &[Record]) -> Vec<String> {
    let mut seen: BTreeMap<(&str, String, &str), u32> = BTreeMap::new();
    for record in records
        .iter()
        .filter(|record| !matches!(record.op(), "r" | "t"))
    {
        *seen
            .entry((&record.id, record.key.to_string(), record.op()))
            .or_default() += 1;
    }
    let repeated = seen.into_iter().filter(|(_, times)| *times > 1);
    repeated
        .map(|((id, key, op), times)| format!("{id} {op} {key} is there {times} times"))
        .collect()
}

#[cfg(test)]
mod tests {
    use lockstep_kit::Component::Kafka as NeedsKafka;
    use lockstep_kit::kafka::Kafka;
    use lockstep_kit::{require, unique};
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_asked_for_is_kept() {
        let value = br#"{"before":{"id":1},"after":{"id":2,"big":"xxx","version":null},"op":"u","ts_ms":7}"#;
        let kept = brief(value, &["id", "version"]);
        assert_eq!(
            kept,
            json!({ "op": "u", "after": { "id": 2, "version": null } })
        );
        let kept = brief(br#"{"op":"d","after":null}"#, &["id"]);
        assert_eq!(kept, json!({ "op": "d", "after": null }));
    }

    /// Three times as long as the patience, and never silent for as long as that.
    #[tokio::test]
    async fn a_reader_that_gets_records_is_not_late() {
        const PATIENCE: Duration = Duration::from_secs(2);
        const RECORDS: u32 = 60;
        require!(NeedsKafka);
        let (bootstrap, topic) = (Kafka::shared().await.bootstrap(), unique("slow"));
        let record = |number: u32| (Some(number.to_string()), Some("{}".to_owned()));
        produce_all(bootstrap, &topic, (0..RECORDS).map(record).collect()).await;
        let slow = move || {
            let mut count = 0;
            visit(bootstrap, &topic, PATIENCE, |_| {
                count += 1;
                std::thread::sleep(3 * PATIENCE / RECORDS);
            });
            count
        };
        let count = tokio::task::spawn_blocking(slow).await.expect("read");
        assert_eq!(count, RECORDS);
    }

    #[tokio::test]
    async fn what_is_held_back_by_a_transaction_is_not_waited_for_without_end() {
        require!(NeedsKafka);
        let (bootstrap, topic) = (Kafka::shared().await.bootstrap(), unique("open"));
        produce(bootstrap, &topic, Some("1"), Some("{}")).await;
        let read = move || {
            let producer: BaseProducer = ClientConfig::new()
                .set("bootstrap.servers", bootstrap)
                .set("transactional.id", &topic)
                .create()
                .expect("a producer");
            producer.init_transactions(DEADLINE).expect("an id");
            producer.begin_transaction().expect("begun");
            let record: BaseRecord<'_, str, str> = BaseRecord::to(&topic).key("2").payload("{}");
            producer.send(record).expect("taken");
            producer.flush(DEADLINE).expect("delivered");
            let late = std::panic::catch_unwind(|| {
                visit(bootstrap, &topic, Duration::from_secs(1), |_| {});
            });
            producer.abort_transaction(DEADLINE).expect("aborted");
            visit(bootstrap, &topic, DEADLINE, |_| {});
            late
        };
        let late = tokio::task::spawn_blocking(read).await.expect("no panic");
        let said = late.expect_err("it cannot be read to its end");
        let said = said.downcast_ref::<String>().expect("a text");
        assert!(said.contains("an open transaction"), "{said}");
    }
}

//! Follows the topic as a consumer of committed records.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;

use super::violations::Violations;
use super::whole::{Record, Row, Whole};

/// For an answer of the broker.
const ANSWER: Duration = Duration::from_secs(5);
/// Between two looks whether something has come.
const LOOK: Duration = Duration::from_millis(100);

/// A consumer in a thread of its own, of a topic with one partition.
#[derive(Debug)]
pub struct Topic {
    whole: Arc<Mutex<Whole>>,
    ends: Arc<AtomicBool>,
    reader: JoinHandle<Result<(), String>>,
}

impl Topic {
    /// Begins to read it, as soon as it is there.
    pub fn follow(bootstrap: &str, topic: &str, violations: &Violations) -> Self {
        let whole = Arc::new(Mutex::new(Whole::default()));
        let ends = Arc::new(AtomicBool::new(false));
        let reader = Reader {
            bootstrap: bootstrap.to_owned(),
            topic: topic.to_owned(),
            whole: Arc::clone(&whole),
            ends: Arc::clone(&ends),
            violations: violations.clone(),
        };
        Topic {
            whole,
            ends,
            reader: std::thread::spawn(move || reader.run()),
        }
    }

    /// What has come.
    pub fn whole(&self) -> MutexGuard<'_, Whole> {
        lock(&self.whole)
    }

    /// For others who look.
    pub fn shared(&self) -> Arc<Mutex<Whole>> {
        Arc::clone(&self.whole)
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// When the topic could not be read.
    pub async fn end(self) -> Result<Whole, String> {
        self.ends.store(true, Ordering::Release);
        let Topic { whole, reader, .. } = self;
        let joined = tokio::task::spawn_blocking(move || reader.join()).await;
        let joined = joined.map_err(|error| error.to_string())?;
        joined.map_err(|_| "the reader of the topic has panicked".to_owned())??;
        Ok(std::mem::take(&mut *lock(&whole)))
    }
}

pub(super) fn lock(whole: &Mutex<Whole>) -> MutexGuard<'_, Whole> {
    whole.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Reader {
    bootstrap: String,
    topic: String,
    whole: Arc<Mutex<Whole>>,
    ends: Arc<AtomicBool>,
    violations: Violations,
}

impl Reader {
    fn run(&self) -> Result<(), String> {
        let told = |error: KafkaError| format!("{}: {error}", self.topic);
        let consumer = self.consumer().map_err(told)?;
        while !self.is_there(&consumer) {
            if self.ends.load(Ordering::Acquire) {
                return Err(format!("{}: it was never made", self.topic));
            }
            std::thread::sleep(LOOK);
        }
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(&self.topic, 0, Offset::Beginning)
            .map_err(told)?;
        consumer.assign(&from).map_err(told)?;
        loop {
            // Asked before: an end that is seen behind it has all of it.
            let ends = self.ends.load(Ordering::Acquire);
            match consumer.poll(LOOK) {
                Some(Ok(message)) => {
                    let record = record(&message)?;
                    lock(&self.whole).take(&record, &self.violations);
                }
                Some(Err(KafkaError::PartitionEOF(_))) | None
                    if ends && self.is_read(&consumer)? =>
                {
                    lock(&self.whole).end(&self.violations);
                    return Ok(());
                }
                Some(Err(KafkaError::PartitionEOF(_))) | None => {}
                // The broker may be busy.
                Some(Err(KafkaError::MessageConsumption(_))) => std::thread::sleep(LOOK),
                Some(Err(error)) => return Err(told(error)),
            }
        }
    }

    fn consumer(&self) -> Result<BaseConsumer, KafkaError> {
        ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", "lockstep-soak")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "50")
            .create()
    }

    fn is_there(&self, consumer: &BaseConsumer) -> bool {
        let metadata = consumer.fetch_metadata(Some(&self.topic), ANSWER);
        metadata.is_ok_and(|metadata| {
            let topic = metadata.topics().first();
            topic.is_some_and(|topic| topic.error().is_none() && !topic.partitions().is_empty())
        })
    }

    /// Whether the consumer stands at the end of what is committed.
    fn is_read(&self, consumer: &BaseConsumer) -> Result<bool, String> {
        let told = |error: KafkaError| format!("{}: {error}", self.topic);
        let (_, end) = consumer
            .fetch_watermarks(&self.topic, 0, ANSWER)
            .map_err(told)?;
        let at = consumer.position().map_err(told)?;
        let at = at.find_partition(&self.topic, 0);
        Ok(matches!(at.map(|one| one.offset()), Some(Offset::Offset(at)) if at >= end))
    }
}

fn record(message: &BorrowedMessage<'_>) -> Result<Record, String> {
    let at = message.offset();
    let payload = message
        .payload()
        .ok_or_else(|| format!("offset {at}: a tombstone"))?;
    let value: Value = serde_json::from_slice(payload)
        .map_err(|error| format!("offset {at}: {error}: {}", String::from_utf8_lossy(payload)))?;
    let header = |name: &str| {
        let headers = message.headers()?;
        let found = headers.iter().find(|header| header.key == name)?;
        String::from_utf8(found.value?.to_vec()).ok()
    };
    let branches = header("lockstep.gtx.count").and_then(|count| count.parse().ok());
    let number = |value: &Value, field: &str| value[field].as_u64();
    let micros = number(&value["source"], "ts_us")
        .or_else(|| Some(number(&value["source"], "ts_ms")? * 1_000));
    Ok(Record {
        offset: at,
        id: header("lockstep.id").unwrap_or_default(),
        global: header("lockstep.gtrid").map(|name| (name, branches.unwrap_or_default())),
        committed_micros: micros.unwrap_or_default().cast_signed(),
        row: row(&value).ok_or_else(|| format!("offset {at}: {value}"))?,
    })
}

/// What a record in the form of Debezium says.
fn row(value: &Value) -> Option<Row> {
    match value["op"].as_str()? {
        "r" => return Some(Row::Copied),
        "m" => return Some(Row::Message),
        _ => {}
    }
    let after = &value["after"];
    let number = after["id"].as_u64()?;
    Some(match value["source"]["table"].as_str()? {
        "orders" => Row::Order(number),
        "reservations" => Row::Reservation(number),
        "visits" => Row::Visit(number),
        "stock" => Row::Stock {
            article: number,
            version: after["version"].as_u64()?,
        },
        _ => return None,
    })
}

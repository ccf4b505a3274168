//! Topics, as a consumer of committed records sees them.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;

use super::history::Record;

const DEADLINE: Duration = Duration::from_secs(60);

/// All committed records, in the order of each partition. The end of an open transaction is waited for.
pub(super) async fn read(bootstrap: &str, topic: &str) -> Result<Vec<Record>, String> {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    let read = tokio::task::spawn_blocking(move || read_blocking(&bootstrap, &topic));
    read.await.map_err(|error| error.to_string())?
}

fn consumer(bootstrap: &str, isolation: &str) -> Result<BaseConsumer, String> {
    let consumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "lockstep-torture")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation)
        .set("fetch.wait.max.ms", "10")
        .create();
    consumer.map_err(|error| error.to_string())
}

fn read_blocking(bootstrap: &str, topic: &str) -> Result<Vec<Record>, String> {
    let said = |error: KafkaError| format!("{topic}: {error}");
    let committed = consumer(bootstrap, "read_committed")?;
    let uncommitted = consumer(bootstrap, "read_uncommitted")?;
    let metadata = committed
        .fetch_metadata(Some(topic), DEADLINE)
        .map_err(said)?;
    let partitions = metadata
        .topics()
        .first()
        .map_or(0, |topic| topic.partitions().len()) as i32;
    let deadline = Instant::now() + DEADLINE;
    let end = |consumer: &BaseConsumer, partition| {
        consumer
            .fetch_watermarks(topic, partition, DEADLINE)
            .map(|(_, end)| end)
    };
    let mut from = TopicPartitionList::new();
    for partition in 0..partitions {
        while end(&committed, partition).map_err(said)?
            < end(&uncommitted, partition).map_err(said)?
        {
            if Instant::now() > deadline {
                return Err(format!("{topic}/{partition}: a transaction stays open"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        from.add_partition_offset(topic, partition, Offset::Beginning)
            .map_err(said)?;
    }
    committed.assign(&from).map_err(said)?;
    let mut records = Vec::new();
    let mut ended = 0;
    while ended < partitions {
        if Instant::now() > deadline {
            return Err(format!("{topic}: no end after {} records", records.len()));
        }
        match committed.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => records.push(record(&message)?),
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(error)) => return Err(said(error)),
            None => {}
        }
    }
    Ok(records)
}

fn record(message: &impl Message) -> Result<Record, String> {
    let json = |bytes: Option<&[u8]>| match bytes {
        None => Ok(Value::Null),
        Some(bytes) => serde_json::from_slice(bytes)
            .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(bytes))),
    };
    Ok(Record {
        partition: message.partition(),
        key: json(message.key())?,
        value: json(message.payload())?,
    })
}

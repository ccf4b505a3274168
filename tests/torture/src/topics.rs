//! A run's topics, from outside.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;

use crate::workload::TABLES;

/// For an answer about a topic.
const ANSWER: Duration = Duration::from_secs(5);

fn consumer(bootstrap: &str) -> Result<BaseConsumer, KafkaError> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "lockstep-torture-look")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_uncommitted")
        .set("fetch.wait.max.ms", "10")
        .set("topic.metadata.refresh.interval.ms", "500")
        .create()
}

/// Removes those whose names begin so. What cannot be removed stays: names are never used again.
pub(crate) async fn remove(bootstrap: &str, name: &str) {
    let admin: Result<AdminClient<DefaultClientContext>, _> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create();
    let Ok(admin) = admin else { return };
    let topics = TABLES.iter().chain(&["progress"]);
    let topics: Vec<String> = topics.map(|topic| format!("{name}.{topic}")).collect();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let _ = admin.delete_topics(&topics, &AdminOptions::new()).await;
}

/// The `id` in the key of the last record of a topic with one partition; `None` when there is none yet.
pub(crate) async fn last_id(bootstrap: &str, topic: &str) -> Result<Option<i64>, String> {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    let look = tokio::task::spawn_blocking(move || last_id_blocking(&bootstrap, &topic));
    let looked = look.await.map_err(|error| error.to_string())?;
    looked.map_err(|error| error.to_string())
}

fn last_id_blocking(bootstrap: &str, topic: &str) -> Result<Option<i64>, KafkaError> {
    let consumer = consumer(bootstrap)?;
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER)?;
    let exists = metadata
        .topics()
        .first()
        .is_some_and(|topic| !topic.partitions().is_empty());
    if !exists {
        return Ok(None);
    }
    let (_, end) = consumer.fetch_watermarks(topic, 0, ANSWER)?;
    if end == 0 {
        return Ok(None);
    }
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, 0, Offset::Offset(end - 1))?;
    consumer.assign(&from)?;
    match consumer.poll(ANSWER) {
        Some(Ok(message)) => {
            let key: Option<Value> = message
                .key()
                .and_then(|key| serde_json::from_slice(key).ok());
            Ok(key.and_then(|key| key["id"].as_i64()))
        }
        Some(Err(KafkaError::PartitionEOF(_))) | None => Ok(None),
        Some(Err(error)) => Err(error),
    }
}

/// How many records stand in the topics of the tables, committed or not.
#[derive(Clone)]
pub(crate) struct Growth {
    consumer: Arc<BaseConsumer>,
    topics: Vec<String>,
}

impl Growth {
    /// Of the topics whose names begin so. `None` when nobody can be asked.
    pub(crate) fn new(bootstrap: &str, prefix: &str) -> Option<Self> {
        let topics = TABLES.iter().map(|table| format!("{prefix}.{table}"));
        Some(Self {
            consumer: Arc::new(consumer(bootstrap).ok()?),
            topics: topics.collect(),
        })
    }

    /// The sum over all partitions; 0 while there is no answer.
    pub(crate) async fn records(&self) -> u64 {
        let this = self.clone();
        let sum = tokio::task::spawn_blocking(move || this.sum());
        sum.await.unwrap_or_default()
    }

    fn sum(&self) -> u64 {
        let mut sum = 0;
        for topic in &self.topics {
            let Ok(metadata) = self.consumer.fetch_metadata(Some(topic), ANSWER) else {
                continue;
            };
            let partitions = metadata.topics().first();
            for partition in partitions.map_or(&[][..], |topic| topic.partitions()) {
                let marks = self
                    .consumer
                    .fetch_watermarks(topic, partition.id(), ANSWER);
                sum += marks.map_or(0, |(_, end)| end.max(0).cast_unsigned());
            }
        }
        sum
    }
}

impl std::fmt::Debug for Growth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Growth").field(&self.topics).finish()
    }
}

//! Reading topics, as consumers of committed records see them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_core::ErrorKind;
use rdkafka::Message;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::index::At;
use crate::client;
use crate::config::KafkaConfig;
use crate::error::Failure;
use crate::progress::stopped;
use crate::reports::Quiet;
use crate::topics::{self, METADATA_TIMEOUT};

/// How long someone's open transaction may hold the end of a topic back: a lane stands still meanwhile.
const STABLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence in the middle of a topic.
const QUIET: Duration = Duration::from_secs(30);
/// Records that are read for nothing rather than to begin anew behind them.
const SKIP: i64 = 200;

/// Whether to stop.
pub(super) type Stop<'a> = &'a dyn Fn() -> bool;

/// The clients.
pub(super) struct Broker {
    config: Arc<KafkaConfig>,
    /// Reads long stretches.
    reader: BaseConsumer<Quiet>,
    /// Knows the ends of partitions, open transactions included; reads single records.
    spot: BaseConsumer<Quiet>,
}

/// Where the partitions of a topic begin and end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bounds {
    pub starts: Vec<i64>,
    pub ends: Vec<i64>,
}

impl Broker {
    pub(super) fn new(config: &Arc<KafkaConfig>) -> Result<Self, Failure> {
        let mut spot = client::reader(config, "read_uncommitted");
        // One record is wanted, and little of what follows it.
        spot.set("queued.max.messages.kbytes", "1024")
            .set("fetch.message.max.bytes", "65536")
            .set("fetch.queue.backoff.ms", "1")
            .set("socket.nagle.disable", "true");
        Ok(Broker {
            config: Arc::clone(config),
            reader: reader(config)?,
            spot: made(&spot)?,
        })
    }

    /// Where a topic begins and ends, once what has been committed is to be seen: the answer to a commit comes before
    /// partitions know of it. No partitions when there is no such topic.
    pub(super) fn bounds(&self, topic: &str, stop: Stop<'_>) -> Result<Bounds, Failure> {
        let count = topics::partitions(self.spot.client(), topic)?.unwrap_or(0);
        if count == 0 {
            return Ok(Bounds::default());
        }
        let ends = asked(&self.spot, topic, count, Offset::End, stop)?;
        let deadline = Instant::now() + STABLE_TIMEOUT;
        let mut pause = Duration::from_millis(1);
        loop {
            let stable = asked(&self.reader, topic, count, Offset::End, stop)?;
            if stable.iter().zip(&ends).all(|(stable, end)| stable >= end) {
                break;
            }
            if stop() {
                return Err(stopped());
            }
            if Instant::now() > deadline {
                return Err(Failure::new(
                    ErrorKind::Unavailable,
                    format!(
                        "an open transaction has held the end of `{topic}` back for {STABLE_TIMEOUT:?}"
                    ),
                    "find it with kafka-transactions --find-hanging and abort it",
                ));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
        }
        let starts = asked(&self.spot, topic, count, Offset::Beginning, stop)?;
        Ok(Bounds { starts, ends })
    }

    /// Whether records may go by their age or by the size of the topic. Who may not see the settings must reckon with it.
    pub(super) fn may_expire(&self, topic: &str) -> bool {
        let described = || -> Result<Option<String>, Failure> {
            let admin: AdminClient<DefaultClientContext> = client::admin(&self.config)
                .create()
                .map_err(|error| Failure::from(&client::creation(&error)))?;
            let options = AdminOptions::new().request_timeout(Some(METADATA_TIMEOUT));
            let resources = [ResourceSpecifier::Topic(topic)];
            let described = topics::wait(admin.describe_configs(&resources, &options))?
                .map_err(|error| Failure::of("describing a topic", &error))?;
            let resource = described.into_iter().next().and_then(Result::ok);
            let policy = resource
                .as_ref()
                .and_then(|topic| topic.get("cleanup.policy"));
            Ok(policy.and_then(|policy| policy.value.clone()))
        };
        match described() {
            Ok(Some(policy)) => policy.split(',').any(|word| word.trim() == "delete"),
            Ok(None) => true,
            Err(failure) => {
                tracing::info!(
                    topic,
                    error = failure.message,
                    "its settings cannot be read"
                );
                true
            }
        }
    }

    /// Reads on behind what has been read; see [`read`].
    pub(super) fn read(
        &self,
        topic: &str,
        parts: &mut [Part],
        stop: Stop<'_>,
        each: impl FnMut(&BorrowedMessage<'_>, &[Part]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        read(&self.reader, topic, parts, stop, each)
    }

    /// Reads single records once more; gives those that are still there to `each`. `wanted` is in order.
    pub(super) fn fetch(
        &self,
        topic: &str,
        wanted: &[At],
        stop: Stop<'_>,
        mut each: impl FnMut(At, &BorrowedMessage<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let is_near = |one: &At, next: &At| {
            one.partition == next.partition && next.offset - one.offset <= SKIP
        };
        for run in wanted.chunk_by(is_near) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else {
                continue;
            };
            let mut part = [Part::new(first.partition, first.offset, last.offset + 1)];
            let mut left = run.iter().copied().peekable();
            read(&self.spot, topic, &mut part, stop, |message, _| {
                let offset = message.offset();
                while left.next_if(|at| at.offset < offset).is_some() {}
                match left.next_if(|at| at.offset == offset) {
                    Some(at) => each(at, message),
                    None => Ok(()),
                }
            })?;
        }
        Ok(())
    }
}

/// A partition that is read from an offset up to another one at least.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub partition: i32,
    /// What comes next.
    pub next: i64,
    pub end: i64,
    /// The time of the last record that was read.
    pub stamp: i64,
    pub done: bool,
}

impl Part {
    pub(super) fn new(partition: i32, next: i64, end: i64) -> Self {
        Part {
            partition,
            next,
            end,
            stamp: i64::MIN,
            done: next >= end,
        }
    }
}

/// Reads parts of a topic to their ends, in the order of each partition, and moves them along.
pub(super) fn read(
    consumer: &BaseConsumer<Quiet>,
    topic: &str,
    parts: &mut [Part],
    stop: Stop<'_>,
    mut each: impl FnMut(&BorrowedMessage<'_>, &[Part]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let what = || format!("reading `{topic}`");
    let mut from = TopicPartitionList::new();
    for part in parts.iter().filter(|part| !part.done) {
        from.add_partition_offset(topic, part.partition, Offset::Offset(part.next))
            .map_err(|error| failed(what(), &error))?;
    }
    let mut left = from.count();
    if left == 0 {
        return Ok(());
    }
    // Assigned anew each time: what tells of an end that was reached before goes with the old assignment.
    consumer
        .assign(&from)
        .map_err(|error| failed(what(), &error))?;
    let _assigned = Assigned(consumer);
    let mut heard = Instant::now();
    while left > 0 {
        let polled = consumer.poll(Duration::from_millis(100));
        if polled.is_some() {
            heard = Instant::now();
        }
        match polled {
            Some(Ok(message)) => {
                each(&message, parts)?;
                let (partition, next) = (message.partition(), message.offset() + 1);
                let ours = |part: &&mut Part| part.partition == partition;
                let Some(part) = parts.iter_mut().find(ours) else {
                    continue;
                };
                part.next = part.next.max(next);
                part.stamp = message.timestamp().to_millis().unwrap_or(part.stamp);
                if !part.done && part.next >= part.end {
                    part.done = true;
                    left -= 1;
                }
            }
            // What lies between the last record and the end is no records: the marks of transactions.
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                let ours = |part: &&mut Part| part.partition == partition && !part.done;
                if let Some(part) = parts.iter_mut().find(ours) {
                    part.next = part.next.max(part.end);
                    part.done = true;
                    left -= 1;
                }
            }
            Some(Err(error)) => return Err(failed(what(), &error)),
            None if heard.elapsed() > QUIET => {
                return Err(Failure::new(
                    ErrorKind::Unavailable,
                    format!("no answer while reading `{topic}`"),
                    "check that the brokers run",
                ));
            }
            None => {}
        }
        if stop() {
            return Err(stopped());
        }
    }
    Ok(())
}

/// Ends the reading, however it ended: what nobody takes is not fetched either.
struct Assigned<'a>(&'a BaseConsumer<Quiet>);

impl Drop for Assigned<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.unassign() {
            tracing::debug!(%error, "a consumer goes on reading");
        }
    }
}

/// A consumer of long stretches of committed records.
pub(super) fn reader(config: &KafkaConfig) -> Result<BaseConsumer<Quiet>, Failure> {
    let mut client = client::reader(config, "read_committed");
    // The bound on memory: records are taken about as fast as they come.
    client
        .set("queued.max.messages.kbytes", "8192")
        .set("fetch.max.bytes", "4194304")
        // When its queue was full, it would wait a second before it fetches again.
        .set("fetch.queue.backoff.ms", "1")
        .set("socket.nagle.disable", "true");
    made(&client)
}

/// What writing needs is not what reading does.
fn failed(what: String, error: &KafkaError) -> Failure {
    let failure = Failure::of(what, error);
    match failure.kind {
        ErrorKind::Permission => Failure {
            remedy: Some(
                "allow the user Read and Describe on the topics (kafka-acls --add --topic … --operation Read …)".to_owned(),
            ),
            ..failure
        },
        _ => failure,
    }
}

fn made(client: &rdkafka::ClientConfig) -> Result<BaseConsumer<Quiet>, Failure> {
    client
        .create_with_context(Quiet)
        .map_err(|error| Failure::from(&client::creation(&error)))
}

/// The offset at one end of each partition, as this consumer's isolation has it. A topic that was just made has no leaders at
/// first, and partitions that were just added are not known everywhere.
fn asked(
    consumer: &BaseConsumer<Quiet>,
    topic: &str,
    count: i32,
    which: Offset,
    stop: Stop<'_>,
) -> Result<Vec<i64>, Failure> {
    let deadline = Instant::now() + METADATA_TIMEOUT;
    loop {
        let failure = match ask(consumer, topic, count, which) {
            Ok(offsets) => return Ok(offsets),
            Err(failure) => failure,
        };
        if stop() {
            return Err(stopped());
        }
        // What one client knows of a topic, another learns when it asks.
        let passes = matches!(failure.kind, ErrorKind::Unavailable | ErrorKind::Setup);
        if !passes || Instant::now() > deadline {
            return Err(failure);
        }
        topics::partitions(consumer.client(), topic)?;
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ask(
    consumer: &BaseConsumer<Quiet>,
    topic: &str,
    count: i32,
    which: Offset,
) -> Result<Vec<i64>, Failure> {
    let what = || format!("asking for the ends of `{topic}`");
    let failed = |error: KafkaError| failed(what(), &error);
    let mut list = TopicPartitionList::new();
    for partition in 0..count {
        list.add_partition_offset(topic, partition, which)
            .map_err(failed)?;
    }
    // One request to each broker. The two ends are times that mean offsets.
    let answer = consumer
        .offsets_for_times(list, METADATA_TIMEOUT)
        .map_err(failed)?;
    let mut offsets = vec![-1; count.unsigned_abs() as usize];
    for element in answer.elements() {
        element.error().map_err(failed)?;
        let place = usize::try_from(element.partition()).ok();
        if let (Some(place), Offset::Offset(offset)) = (
            place.and_then(|place| offsets.get_mut(place)),
            element.offset(),
        ) {
            *place = offset;
        }
    }
    if offsets.iter().any(|offset| *offset < 0) {
        return Err(Failure::new(
            ErrorKind::Unavailable,
            format!("{}: a partition has not answered", what()),
            "check that the brokers run",
        ));
    }
    Ok(offsets)
}

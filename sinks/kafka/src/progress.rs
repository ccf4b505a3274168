//! How far each source got, kept in a compacted topic and written in the same transaction as the changes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use lockstep_core::ErrorKind;
use lockstep_core::position::SourceInfo;
use lockstep_core::progress::Progress;
use lockstep_core::refusal::reason;
use lockstep_core::token::Token;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use crate::client;
use crate::config::KafkaConfig;
use crate::error::Failure;
use crate::reports::Quiet;
use crate::topics::METADATA_TIMEOUT;

/// The only partition of the topic: its order is the order of commits.
pub(crate) const PARTITION: i32 = 0;

/// Small segments, or nothing is compacted until there is a gigabyte to read at the next start.
pub(crate) const TOPIC_CONFIG: &[(&str, &str)] = &[
    ("cleanup.policy", "compact"),
    ("segment.bytes", "16777216"),
    ("min.cleanable.dirty.ratio", "0.1"),
];

/// How long another pipeline's open transaction may hold the end of the topic back. Brokers end a dead one after its
/// `transaction.timeout.ms`, at most 15 minutes by default, 1 minute for lockstep's.
const STABLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Progress by record key.
pub(crate) type Positions = HashMap<String, Progress>;

/// The value of a progress record.
#[derive(Debug, Serialize)]
struct Value<'a> {
    pipeline: &'a str,
    sink: &'a str,
    source: &'a str,
    /// As text: the number does not fit a double.
    system: String,
    timeline: u32,
    database: &'a str,
    /// Of the lease that it was written by, as text; none where no lease decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(flatten)]
    progress: &'a Progress,
}

/// What is read of it beside the progress.
#[derive(Default, Deserialize)]
struct Written {
    #[serde(default)]
    token: Option<String>,
}

/// `pipeline/sink/source/system/timeline/database`, with `/` and `%` inside a part as `%2F` and `%25`. The source's
/// name is in it because two sources may read one database through two slots.
pub(crate) fn key(pipeline: &str, sink: &str, source: &SourceInfo) -> String {
    format!(
        "{}{}/{}/{}/{}",
        prefix(pipeline, sink),
        part(&source.name),
        source.identity.system,
        source.identity.branch(),
        part(&source.identity.database)
    )
}

/// What all keys of a sink begin with.
fn prefix(pipeline: &str, sink: &str) -> String {
    format!("{}/{}/", part(pipeline), part(sink))
}

fn part(text: &str) -> String {
    text.replace('%', "%25").replace('/', "%2F")
}

/// The value that says what is in.
pub(crate) fn value(
    pipeline: &str,
    sink: &str,
    source: &SourceInfo,
    token: Option<Token>,
    progress: &Progress,
) -> Vec<u8> {
    let value = Value {
        token: token.map(|token| token.to_string()),
        pipeline,
        sink,
        source: &source.name,
        system: source.identity.system.to_string(),
        timeline: source.identity.timeline,
        database: &source.identity.database,
        progress,
    };
    serde_json::to_vec(&value).expect("texts and numbers are always JSON")
}

fn parse(value: &[u8]) -> Result<Progress, String> {
    serde_json::from_slice(value).map_err(|error| error.to_string())
}

/// The token of the lease that a value was written by.
fn token_of(value: &[u8]) -> Option<Token> {
    let written: Written = serde_json::from_slice(value).unwrap_or_default();
    written.token?.parse().ok().map(Token)
}

/// Reads the whole topic as committed, to the end it has now. Called after `init_transactions`, so that the last
/// transaction of a predecessor is decided. Only keys of this pipeline and sink are kept. `stop` is looked at between
/// reads.
///
/// Where somebody has written with a newer token than `token`, this is an error of kind `Busy`: who asks has been frozen since
/// before, and has just taken the transactional id away from the right one, which takes it back.
pub(crate) fn read(
    config: &KafkaConfig,
    pipeline: &str,
    sink: &str,
    token: Option<Token>,
    stop: &dyn Fn() -> bool,
) -> Result<Positions, Failure> {
    let topic = &config.progress_topic;
    let committed = consumer(config, "read_committed")?;
    wait_until_stable(config, &committed, stop)?;

    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, PARTITION, Offset::Beginning)
        .and_then(|()| committed.assign(&from))
        .map_err(|error| Failure::of(format!("reading `{topic}`"), &error))?;
    let ours = prefix(pipeline, sink);
    let mut positions = Positions::new();
    let mut quiet_since = Instant::now();
    loop {
        match committed.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => {
                quiet_since = Instant::now();
                let Some(key) = message.key() else { continue };
                let key = String::from_utf8_lossy(key).into_owned();
                if !key.starts_with(&ours) {
                    continue;
                }
                match message.payload() {
                    None => drop(positions.remove(&key)),
                    Some(value) => {
                        if let (Some(ours), Some(theirs)) = (token, token_of(value))
                            && theirs > ours
                        {
                            return Err(superseded(topic, theirs));
                        }
                        let progress = parse(value)
                            .map_err(|cause| broken(topic, message.offset(), &key, &cause))?;
                        positions.insert(key, progress);
                    }
                }
            }
            // The end was stable before the first read, so this is the end or later.
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(positions),
            Some(Err(error)) => return Err(Failure::of(format!("reading `{topic}`"), &error)),
            None if stop() => return Err(stopped()),
            None if quiet_since.elapsed() > METADATA_TIMEOUT * 3 => {
                return Err(Failure::new(
                    ErrorKind::Unavailable,
                    format!("no answer while reading `{topic}`"),
                    "check that the brokers run",
                ));
            }
            None => {}
        }
    }
}

/// Waits until no open transaction stands before the present end. The topic is shared: another pipeline's transaction
/// may hold back what a committed read shows, our own last record included, and to miss that would be to write again.
fn wait_until_stable(
    config: &KafkaConfig,
    committed: &BaseConsumer<Quiet>,
    stop: &dyn Fn() -> bool,
) -> Result<(), Failure> {
    let topic = &config.progress_topic;
    let end_of = |consumer: &BaseConsumer<Quiet>| end_of(topic, consumer, stop);
    // As uncommitted, the end is the high watermark; as committed, it is the last stable offset.
    let end = end_of(&consumer(config, "read_uncommitted")?)?;
    let deadline = Instant::now() + STABLE_TIMEOUT;
    let mut pause = Duration::from_millis(2);
    while end_of(committed)? < end {
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
        pause = (pause * 2).min(Duration::from_millis(200));
    }
    Ok(())
}

/// The end of the topic as a consumer of this isolation sees it. A topic that was just made has no leader at first.
fn end_of(
    topic: &str,
    consumer: &BaseConsumer<Quiet>,
    stop: &dyn Fn() -> bool,
) -> Result<i64, Failure> {
    let deadline = Instant::now() + METADATA_TIMEOUT;
    loop {
        let error = match consumer.fetch_watermarks(topic, PARTITION, METADATA_TIMEOUT) {
            Ok((_, end)) => return Ok(end),
            Err(error) => error,
        };
        let failure = Failure::of(format!("asking for the end of `{topic}`"), &error);
        if stop() {
            return Err(stopped());
        }
        if failure.kind != ErrorKind::Unavailable || Instant::now() > deadline {
            return Err(failure);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn consumer(config: &KafkaConfig, isolation: &str) -> Result<BaseConsumer<Quiet>, Failure> {
    client::reader(config, isolation)
        .create_with_context(Quiet)
        .map_err(|error| Failure::from(&client::creation(&error)))
}

fn superseded(topic: &str, token: Token) -> Failure {
    let failure = Failure::new(
        ErrorKind::Busy,
        format!("a newer lease, of number {token}, has written to `{topic}`"),
        "another process runs the pipeline: this one starts anew when it is its turn",
    );
    Failure {
        reason: Some(reason::FENCED),
        ..failure
    }
}

fn broken(topic: &str, offset: i64, key: &str, cause: &str) -> Failure {
    Failure::new(
        ErrorKind::Protocol,
        format!(
            "the record at offset {offset} of `{topic}` under key `{key}` is not progress: {cause}"
        ),
        "let nothing else write to the topic, or set another `progress_topic`; without progress the sink starts from the slot",
    )
}

pub(crate) fn stopped() -> Failure {
    Failure {
        kind: ErrorKind::Stopping,
        message: "the sink was dropped while it was opened".to_owned(),
        remedy: None,
        reason: None,
        refusals: Vec::new(),
        suspects: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::position::{Lsn, Position, SourceIdentity};

    fn source() -> SourceInfo {
        SourceInfo {
            name: "a/b".into(),
            identity: SourceIdentity {
                system: u64::MAX,
                timeline: 3,
                incarnation: 0,
                database: "100%".into(),
            },
        }
    }

    #[test]
    fn keys_are_unambiguous() {
        assert_eq!(
            key("shop", "events", &source()),
            "shop/events/a%2Fb/18446744073709551615/3/100%25"
        );
    }

    #[test]
    fn values_round_trip() {
        let at = |commit, ordinal| Position {
            commit: Lsn(commit),
            ordinal,
        };
        let plain = Progress::from(at(0x16_B374_D848, 7));
        let gaps = Progress::new(at(0x16_B374_D848, 7), [at(0x16_B374_D900, 1)]);
        for progress in [plain, gaps] {
            for token in [None, Some(Token(u64::MAX))] {
                let value = value("p", "s", &source(), token, &progress);
                assert_eq!(parse(&value).as_ref(), Ok(&progress));
                assert_eq!(token_of(&value), token);
            }
        }
        assert!(parse(b"{}").is_err() && parse(b"x").is_err());
    }
}

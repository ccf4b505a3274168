//! librdkafka's configuration: what the user set, what we set, and what only we may set.

use lockstep_core::{Error, ErrorKind, Result};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;

use crate::config::{KafkaConfig, is_secret, wrong};

/// Properties that carry a guarantee, and why they are ours.
const OURS: &[(&str, &str)] = &[
    ("bootstrap.servers", "it is `brokers` of the sink"),
    ("metadata.broker.list", "it is `brokers` of the sink"),
    (
        "enable.idempotence",
        "without it a retried request writes records twice or out of order",
    ),
    (
        "acks",
        "a change counts as durable only when all in-sync replicas have it",
    ),
    (
        "request.required.acks",
        "a change counts as durable only when all in-sync replicas have it",
    ),
    (
        "transactional.id",
        "it is made of the names of pipeline and sink, so that a restart fences its predecessor",
    ),
    (
        "message.send.max.retries",
        "giving up a record early would lose the order of a key",
    ),
    (
        "retries",
        "giving up a record early would lose the order of a key",
    ),
    ("partitioner", "keys go where Java producers put them"),
    (
        "delivery.report.only.error",
        "every record's delivery report is counted",
    ),
    ("isolation.level", "the progress is read as committed"),
    ("enable.partition.eof", "the progress is read to its end"),
    (
        "enable.auto.commit",
        "the progress is kept in its own topic",
    ),
    ("group.id", "no consumer group is used"),
    (
        "allow.auto.create.topics",
        "the sink creates missing topics itself, with `partitions` and `replication`",
    ),
    ("log.queue", "logs are handled by the sink"),
];

/// What is set when the user does not.
const DEFAULTS: &[(&str, &str)] = &[
    ("client.id", "lockstep"),
    // JSON shrinks to a fraction; against a real broker this costs less than the bytes it saves.
    ("compression.type", "lz4"),
    // Records wait this long for company. More does not make a busy producer faster, less makes an idle one quicker.
    ("linger.ms", "1"),
    // The bound on memory beside the batches themselves: a tenth of a second of what one broker takes. Twice as much was
    // no faster.
    ("queue.buffering.max.kbytes", "16384"),
    ("queue.buffering.max.messages", "100000"),
    ("socket.keepalive.enable", "true"),
    // Small requests must not wait for the acknowledgement of the one before.
    ("socket.nagle.disable", "true"),
];

/// How long an outage may last before an idempotent producer reports it and the sink starts over. A transactional one
/// takes `transaction.timeout.ms`, by default the same.
const MESSAGE_TIMEOUT_MS: &str = "60000";

/// Beginnings of the properties that say how to reach a broker: those of a producer that a consumer shares.
const CONNECTION: &[&str] = &[
    "security.",
    "sasl.",
    "ssl.",
    "enable.ssl",
    "enable.sasl",
    "https.",
    "socket.",
    "client.",
    "broker.",
    "reconnect.",
    "metadata.",
    "topic.metadata",
    "connections.",
    "api.version",
    "retry.",
    "debug",
    "log",
    "builtin.",
    "plugin.",
    "receive.",
    "resolve_",
];

/// The producer; transactional when `transactional_id` is given.
pub(crate) fn producer(config: &KafkaConfig, transactional_id: Option<&str>) -> ClientConfig {
    let mut client = base(config, |_| true);
    for (name, value) in DEFAULTS {
        if !is_set(config, name) {
            client.set(*name, *value);
        }
    }
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("partitioner", "murmur2_random");
    match transactional_id {
        Some(id) => {
            // librdkafka fits the timeouts of messages and sockets to `transaction.timeout.ms` by itself.
            client.set("transactional.id", id);
        }
        None if !is_set(config, "message.timeout.ms") => {
            client.set("message.timeout.ms", MESSAGE_TIMEOUT_MS);
        }
        None => {}
    }
    client
}

/// A consumer of the progress topic, without a group.
pub(crate) fn reader(config: &KafkaConfig, isolation: &str) -> ClientConfig {
    let mut client = base(config, is_connection);
    client
        .set("client.id", "lockstep")
        // librdkafka wants one for any consumer; with `assign` alone it is never joined.
        .set("group.id", "lockstep")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "10")
        .set("isolation.level", isolation);
    client
}

/// For the admin API.
pub(crate) fn admin(config: &KafkaConfig) -> ClientConfig {
    base(config, is_connection)
}

fn is_connection(name: &str) -> bool {
    CONNECTION.iter().any(|prefix| name.starts_with(prefix))
}

fn base(config: &KafkaConfig, keep: impl Fn(&str) -> bool) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", config.brokers.trim())
        // A question for a topic's metadata would create it, with the partitions that the broker likes.
        .set("allow.auto.create.topics", "false");
    client.set_log_level(RDKafkaLogLevel::Warning);
    for (name, value) in &config.properties.0 {
        if keep(name) {
            client.set(name, value);
        }
    }
    if config.properties.0.contains_key("debug") {
        client.set_log_level(RDKafkaLogLevel::Debug);
    }
    client
}

/// Whether the user set a property, by this or by its other name.
fn is_set(config: &KafkaConfig, name: &str) -> bool {
    let alias = match name {
        "linger.ms" => "queue.buffering.max.ms",
        "message.timeout.ms" => "delivery.timeout.ms",
        "compression.type" => "compression.codec",
        _ => name,
    };
    config.properties.0.contains_key(name) || config.properties.0.contains_key(alias)
}

/// Checks names and values of the properties, without a broker.
pub(crate) fn check(config: &KafkaConfig) -> Result<()> {
    for name in config.properties.0.keys() {
        if let Some((_, why)) = OURS.iter().find(|(ours, _)| ours == name) {
            return Err(property(name, format!("it cannot be set: {why}")).remedy("remove it"));
        }
    }
    // Each property by itself, so that the error names the one that is wrong.
    for (name, value) in &config.properties.0 {
        let mut one = ClientConfig::new();
        one.set(name, value);
        if let Err(cause) = one.create_native_config() {
            return Err(bad_property(name, &cause));
        }
    }
    Ok(())
}

const WITHOUT_TLS: &str = "use a lockstep that is built with the feature `kafka-ssl`";

fn property(name: &str, cause: impl Into<String>) -> Error {
    wrong(&format!("properties.{name}"), cause)
}

fn bad_property(name: &str, cause: &KafkaError) -> Error {
    let detail = match cause {
        KafkaError::ClientConfig(_, detail, ..) => detail.clone(),
        other => other.to_string(),
    };
    let remedy = match detail.contains("not available at build time") {
        true => WITHOUT_TLS,
        false => "see librdkafka's CONFIGURATION.md for names and values",
    };
    // librdkafka's sentence repeats the value.
    let shown = match is_secret(name) {
        true => "librdkafka does not take the value".to_owned(),
        false => detail,
    };
    property(name, shown).remedy(remedy)
}

/// An error of making a client, without values in it.
pub(crate) fn creation(error: &KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(_, _, name, _) => bad_property(name, error),
        other => {
            let detail = other.to_string();
            let remedy = match detail.to_ascii_lowercase().contains("openssl") {
                true => WITHOUT_TLS,
                false => "mend the named property",
            };
            Error::new(
                ErrorKind::Config,
                format!("the Kafka client cannot be made: {detail}"),
            )
            .at("properties")
            .remedy(remedy)
        }
    }
}

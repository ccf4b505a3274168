//! The section of the pipeline file.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration as StdDuration;

use lockstep_core::config::{ByteSize, Duration};
use lockstep_core::template::Template;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::{DEFAULT_DECIMALS, Decimals, Encoder, Format};
use lockstep_registry::RegistryConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::client;

/// The default of `topic`.
pub const DEFAULT_TOPIC: &str = "{source}.{schema}.{table}";
/// The default of `message_topic`.
pub const DEFAULT_MESSAGE_TOPIC: &str = "{source}.message";
/// The default of `progress_topic`.
pub const DEFAULT_PROGRESS_TOPIC: &str = "lockstep.progress";
/// The default of `exactly_once`.
pub const DEFAULT_EXACTLY_ONCE: bool = true;
/// The default of `commit_interval`.
pub const DEFAULT_COMMIT_INTERVAL: Duration = Duration(StdDuration::from_millis(100));
/// The default of `commit_records`.
pub const DEFAULT_COMMIT_RECORDS: u64 = 100_000;
/// The default of `compare_memory`.
pub const DEFAULT_COMPARE_MEMORY: ByteSize = ByteSize(128 << 20);

/// The default of [`Transactions::max_bytes`]: what librdkafka takes by default, with room for headers.
pub const DEFAULT_TRANSACTION_BYTES: ByteSize = ByteSize(900_000);
/// The least of [`Transactions::max_bytes`]: room for names and one small event.
const LEAST_TRANSACTION_BYTES: ByteSize = ByteSize(1_000);

/// Where transactions of several databases are written as records of their own.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Transactions {
    /// The topic, of this sink alone.
    pub topic: String,

    /// The most bytes of a record's value; a transaction with more goes into several. Below `message.max.bytes`, and the topic's
    /// `max.message.bytes`.
    #[serde(default = "default_transaction_bytes")]
    pub max_bytes: ByteSize,
}

fn default_transaction_bytes() -> ByteSize {
    DEFAULT_TRANSACTION_BYTES
}

/// What keys and values are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// JSON.
    #[default]
    Json,
    /// Avro's binary encoding, behind the id of its schema at a registry, in Confluent's wire format.
    Avro,
}

/// A Kafka sink: change events on topics.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// Addresses to start from, separated by commas: `kafka-1:9092,kafka-2:9092`.
    pub brokers: String,

    /// The topic of a table. Fields: `{source}`, `{schema}`, `{table}`. Characters that topics cannot have become `_`.
    #[serde(default = "default_topic")]
    pub topic: String,

    /// The topic of logical messages (`pg_logical_emit_message`). Field: `{source}`.
    #[serde(default = "default_message_topic")]
    pub message_topic: String,

    /// The envelope of values: `debezium` or `flat`.
    #[serde(default)]
    pub format: Format,

    /// How `debezium` writes `numeric`: `string` (exact text), `precise` (base64 as Debezium's default) or `double`.
    #[serde(default = "default_decimals")]
    pub decimals: Decimals,

    /// What keys and values are in: `json`, or `avro` with the ids of a schema `registry`.
    #[serde(default)]
    pub encoding: Encoding,

    /// The schema registry, for `encoding = "avro"`.
    #[serde(default)]
    pub registry: Option<RegistryConfig>,

    /// Writes in Kafka transactions that carry the progress: consumers with `isolation.level=read_committed` see each
    /// change once, whatever crashes. `false`: an idempotent producer without transactions; changes may come again
    /// after a crash.
    #[serde(default = "default_exactly_once")]
    pub exactly_once: bool,

    /// Writes each transaction of several databases (behind a `stitch`) to a topic as well, as one record with all its events, in the same
    /// Kafka transaction. Needs `exactly_once`. Default: not.
    #[serde(default)]
    pub transactions: Option<Transactions>,

    /// The compacted topic that keeps the progress. Several pipelines may share it.
    #[serde(default = "default_progress_topic")]
    pub progress_topic: String,

    /// Partitions of topics that are created because they are missing. Default: what the brokers are set to.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub partitions: Option<u16>,

    /// Replicas of topics that are created because they are missing. Default: what the brokers are set to.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub replication: Option<u16>,

    /// The longest a transaction stays open while more changes come in; up to ten times as long where commits are slow, so
    /// that they take a tenth of the time at most. When no changes come, it is committed at once.
    #[serde(default = "default_commit_interval")]
    pub commit_interval: Duration,

    /// The most records in one transaction. A change is never cut, so its records may go over by a few.
    #[serde(default = "default_commit_records")]
    #[schemars(range(min = 1))]
    pub commit_records: u64,

    /// The most that is kept of the keys of topics while they are compared with their tables, beside the memory of the
    /// pipeline. A million keys take 60 to 120 MB.
    #[serde(default = "default_compare_memory")]
    pub compare_memory: ByteSize,

    /// Any librdkafka property, such as `"compression.type" = "lz4"` or `"security.protocol" = "SASL_SSL"`. Those that
    /// carry the guarantees are refused.
    #[serde(default)]
    pub properties: Properties,
}

fn default_topic() -> String {
    DEFAULT_TOPIC.to_owned()
}

fn default_message_topic() -> String {
    DEFAULT_MESSAGE_TOPIC.to_owned()
}

fn default_decimals() -> Decimals {
    DEFAULT_DECIMALS
}

fn default_exactly_once() -> bool {
    DEFAULT_EXACTLY_ONCE
}

fn default_progress_topic() -> String {
    DEFAULT_PROGRESS_TOPIC.to_owned()
}

fn default_commit_interval() -> Duration {
    DEFAULT_COMMIT_INTERVAL
}

fn default_commit_records() -> u64 {
    DEFAULT_COMMIT_RECORDS
}

fn default_compare_memory() -> ByteSize {
    DEFAULT_COMPARE_MEMORY
}

/// librdkafka properties by name. Values that may be secrets are never printed.
#[derive(Clone, Default, JsonSchema)]
#[schemars(with = "BTreeMap<String, Value>")]
pub struct Properties(pub(crate) BTreeMap<String, String>);

/// A property's value as a pipeline file may write it.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Value {
    Text(String),
    Flag(bool),
    Integer(i64),
    Number(f64),
}

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = BTreeMap::<String, Value>::deserialize(deserializer)?;
        let text = |value| match value {
            Value::Text(text) => text,
            Value::Flag(flag) => flag.to_string(),
            Value::Integer(number) => number.to_string(),
            Value::Number(number) => number.to_string(),
        };
        Ok(Properties(
            values
                .into_iter()
                .map(|(name, value)| (name, text(value)))
                .collect(),
        ))
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |name: &str, value: &str| match is_secret(name) {
            true => "***".to_owned(),
            false => value.to_owned(),
        };
        f.debug_map()
            .entries(
                self.0
                    .iter()
                    .map(|(name, value)| (name, shown(name, value))),
            )
            .finish()
    }
}

/// Whether a property's value must not be printed.
pub(crate) fn is_secret(name: &str) -> bool {
    let plain = [
        "sasl.mechanism",
        "sasl.mechanisms",
        "ssl.ca.location",
        "ssl.certificate.location",
        "ssl.key.location",
        "ssl.endpoint.identification.algorithm",
    ];
    (name.starts_with("sasl.") || name.starts_with("ssl.") || name.contains("password"))
        && !plain.contains(&name)
}

impl KafkaConfig {
    /// Checks everything that needs no broker.
    pub(crate) fn check(&self) -> Result<()> {
        if self.brokers.trim().is_empty() {
            return Err(wrong("brokers", "it is empty")
                .remedy("write `host:port`, several separated by commas"));
        }
        self.topic_template()?;
        self.message_template()?;
        is_topic("progress_topic", &self.progress_topic)?;
        if let Some(transactions) = &self.transactions {
            self.check_transactions(transactions)?;
        }
        self.check_encoding()?;
        if self.commit_records == 0 {
            return Err(wrong("commit_records", "it is 0").remedy("write 1 or more"));
        }
        for (name, value) in [
            ("partitions", self.partitions),
            ("replication", self.replication),
        ] {
            if value == Some(0) {
                return Err(wrong(name, "it is 0").remedy("write 1 or more, or leave it out"));
            }
        }
        client::check(self)
    }

    fn check_transactions(&self, transactions: &Transactions) -> Result<()> {
        is_topic("transactions.topic", &transactions.topic)?;
        if transactions.topic == self.progress_topic {
            return Err(
                wrong("transactions.topic", "it is the topic of the progress")
                    .remedy("name a topic of its own"),
            );
        }
        if !self.exactly_once {
            let cause = "a transaction is whole only where its records are committed together";
            return Err(wrong("transactions", cause).remedy("set `exactly_once = true`"));
        }
        let ours = self.properties.0.get("message.max.bytes");
        let most = ours.and_then(|ours| ours.parse().ok()).unwrap_or(1_000_000);
        if transactions.max_bytes < LEAST_TRANSACTION_BYTES || transactions.max_bytes.0 >= most {
            let cause = format!(
                "it is to be at least {} bytes, and less than the {most} of `message.max.bytes`",
                LEAST_TRANSACTION_BYTES.0
            );
            return Err(wrong("transactions.max_bytes", cause));
        }
        Ok(())
    }

    fn check_encoding(&self) -> Result<()> {
        self.encoder()?;
        match (self.encoding, &self.registry) {
            (Encoding::Avro, None) => Err(wrong("registry", "Avro needs a registry of schemas")
                .remedy("add `registry = { url = \"https://registry:8081\" }`")),
            (Encoding::Json, Some(_)) => Err(wrong(
                "registry",
                "JSON has no schemas that could be registered",
            )
            .remedy("add `encoding = \"avro\"`, or leave `registry` out")),
            (Encoding::Avro, Some(_)) if self.transactions.is_some() => {
                let cause = "records of transactions are JSON, and have the keys and values of their events in them";
                Err(wrong("transactions", cause).remedy("leave it or `encoding` out"))
            }
            (Encoding::Avro, Some(registry)) => registry.check(),
            (Encoding::Json, None) => Ok(()),
        }
    }

    /// Makes records.
    pub(crate) fn encoder(&self) -> Result<Encoder> {
        let format = self.format.with_decimals(self.decimals);
        match self.encoding {
            Encoding::Json => Ok(Encoder::new(format)),
            Encoding::Avro => Encoder::avro(format).map_err(|error| error.at("encoding")),
        }
    }

    pub(crate) fn topic_template(&self) -> Result<Template> {
        Template::parse(&self.topic, &["source", "schema", "table"])
            .map_err(|cause| wrong("topic", cause))
    }

    pub(crate) fn message_template(&self) -> Result<Template> {
        Template::parse(&self.message_topic, &["source"])
            .map_err(|cause| wrong("message_topic", cause))
    }
}

fn is_topic(field: &str, name: &str) -> Result<()> {
    match crate::topics::sanitize(name) == name && !name.is_empty() {
        true => Ok(()),
        false => Err(wrong(field, format!("`{name}` is not a topic name"))
            .remedy("use letters, digits, `.`, `_` and `-`")),
    }
}

pub(crate) fn wrong(field: &str, cause: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, cause).at(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<KafkaConfig, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn defaults_are_as_documented() {
        let config = parse(r#"{"brokers":"127.0.0.1:9092"}"#).expect("valid");
        assert_eq!(config.topic, "{source}.{schema}.{table}");
        assert!(config.exactly_once);
        assert_eq!(config.progress_topic, "lockstep.progress");
        config.check().expect("defaults are valid");
    }

    #[test]
    fn unknown_formats_list_what_there_is() {
        let error = parse(r#"{"brokers":"b","format":"avro"}"#)
            .expect_err("unknown")
            .to_string();
        assert!(
            error.contains("debezium") && error.contains("flat"),
            "{error}"
        );
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = parse(
            r#"{"brokers":"b","properties":{"sasl.password":"hunter2","sasl.mechanism":"PLAIN","linger.ms":7}}"#,
        )
        .expect("valid");
        let shown = format!("{config:?}");
        assert!(
            !shown.contains("hunter2") && shown.contains("PLAIN") && shown.contains('7'),
            "{shown}"
        );
    }

    #[test]
    #[cfg(not(feature = "kafka-ssl"))]
    fn tls_without_the_feature_is_refused_with_its_name() {
        for (name, value) in [
            ("security.protocol", "sasl_ssl"),
            ("ssl.ca.location", "/ca"),
        ] {
            let json = serde_json::json!({"brokers": "b", "properties": {name: value}});
            let config: KafkaConfig = serde_json::from_value(json).expect("parses");
            let error = config.check().expect_err("there is no TLS");
            assert!(error.to_string().contains("kafka-ssl"), "{error}");
        }
    }

    #[test]
    fn mistakes_name_the_field() {
        for (json, place) in [
            (r#"{"brokers":" "}"#, "brokers"),
            (r#"{"brokers":"b","topic":"{tabel}"}"#, "topic"),
            (
                r#"{"brokers":"b","progress_topic":"a b"}"#,
                "progress_topic",
            ),
            (
                r#"{"brokers":"b","transactions":{"topic":"g t x"}}"#,
                "transactions.topic",
            ),
            (
                r#"{"brokers":"b","transactions":{"topic":"lockstep.progress"}}"#,
                "transactions.topic",
            ),
            (
                r#"{"brokers":"b","transactions":{"topic":"gtx"},"exactly_once":false}"#,
                "transactions",
            ),
            (
                r#"{"brokers":"b","transactions":{"topic":"gtx","max_bytes":"1MB"}}"#,
                "transactions.max_bytes",
            ),
            (r#"{"brokers":"b","encoding":"avro"}"#, "registry"),
            (
                r#"{"brokers":"b","registry":{"url":"http://r"}}"#,
                "registry",
            ),
            (
                r#"{"brokers":"b","encoding":"avro","registry":{"url":"r"}}"#,
                "registry",
            ),
            (
                r#"{"brokers":"b","encoding":"avro","format":"cloudevents","registry":{"url":"http://r"}}"#,
                "encoding",
            ),
            (
                r#"{"brokers":"b","encoding":"avro","transactions":{"topic":"gtx"},"registry":{"url":"http://r"}}"#,
                "transactions",
            ),
            (r#"{"brokers":"b","commit_records":0}"#, "commit_records"),
            (r#"{"brokers":"b","partitions":0}"#, "partitions"),
            (
                r#"{"brokers":"b","properties":{"acks":"1"}}"#,
                "properties.acks",
            ),
            (
                r#"{"brokers":"b","properties":{"no.such":"1"}}"#,
                "properties.no.such",
            ),
            (
                r#"{"brokers":"b","properties":{"linger.ms":"soon"}}"#,
                "properties.linger.ms",
            ),
        ] {
            let error = parse(json).expect("parses").check().expect_err(json);
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(
                error.to_string().contains(&format!(" {place}: ")),
                "{error}"
            );
        }
        let error = parse(r#"{"brokers":"b","properties":{"ssl.key.password":"hunter2","sasl.oauthbearer.method":"hunter2"}}"#)
            .expect("parses")
            .check()
            .expect_err("bad method")
            .to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}

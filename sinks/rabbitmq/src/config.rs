//! The section of the pipeline file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration as StdDuration;

use lapin::uri::{AMQPScheme, AMQPUri};
use lockstep_core::config::{ByteSize, Duration, Secret};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::{DEFAULT_DECIMALS, Decimals, Format};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::link::Endpoint;
use crate::routes::Routes;

/// The default of `exchange`.
pub const DEFAULT_EXCHANGE: &str = "lockstep";
/// The default of `routing_key`.
pub const DEFAULT_ROUTING_KEY: &str = "{source}.{schema}.{table}";
/// The default of `message_routing_key`.
pub const DEFAULT_MESSAGE_ROUTING_KEY: &str = "{source}.message";
/// The default of `in_flight_messages`: the client looks through all of them at each confirm.
pub const DEFAULT_IN_FLIGHT_MESSAGES: u32 = 2_000;
/// The default of `in_flight_bytes`.
pub const DEFAULT_IN_FLIGHT_BYTES: ByteSize = ByteSize(16 << 20);
/// The default of `heartbeat`. A frozen process keeps the others waiting for three of them at most.
pub const DEFAULT_HEARTBEAT: Duration = Duration(StdDuration::from_secs(10));
/// The default of `connect_timeout`.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration(StdDuration::from_secs(10));

/// The most bytes of a name or a routing key.
pub(crate) const MAX_NAME: usize = 255;

/// Change events as messages of RabbitMQ.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RabbitmqConfig {
    /// The broker: `amqp://user:password@host[:port][/vhost]`, `amqps://…` for TLS. Without a vhost it is `/`, which is written `%2F`.
    #[serde(default)]
    pub url: Option<Secret>,

    /// Several nodes of a cluster, instead of `url`: they are tried in turn.
    #[serde(default)]
    pub urls: Option<Vec<Secret>>,

    /// Certificates for `amqps://`. Without it the system's certificate authorities are trusted.
    #[serde(default)]
    pub tls: Option<TlsConfig>,

    /// The exchange of a table. Fields: `{source}`, `{schema}`, `{table}`. Empty: the default exchange, whose routing keys are names of
    /// queues.
    #[serde(default = "default_exchange")]
    pub exchange: String,

    /// The routing key of a record. Fields: `{source}`, `{schema}`, `{table}`; `{op}`, one of `c`, `u`, `d`, `r` and `t`; and `{key}`, the key
    /// values joined by `:`, in which `%` and `:` are written `%25` and `%3A`.
    #[serde(default = "default_routing_key")]
    pub routing_key: String,

    /// The exchange of logical messages (`pg_logical_emit_message`). Field: `{source}`. Default: `exchange`, where that names neither
    /// schema nor table.
    #[serde(default)]
    pub message_exchange: Option<String>,

    /// The routing key of logical messages. Field: `{source}`.
    #[serde(default = "default_message_routing_key")]
    pub message_routing_key: String,

    /// What is made where it is missing. Without it exchanges have to be there, and nothing is bound.
    #[serde(default)]
    pub declare: Option<Declare>,

    /// The envelope of bodies: `debezium` or `flat`.
    #[serde(default)]
    pub format: Format,

    /// How `debezium` writes `numeric`: `string` (exact text), `precise` (base64 as Debezium's default) or `double`.
    #[serde(default = "default_decimals")]
    pub decimals: Decimals,

    /// The most messages that are sent and not confirmed.
    #[serde(default = "default_in_flight_messages")]
    #[schemars(range(min = 1))]
    pub in_flight_messages: u32,

    /// The most bytes of messages that are sent and not confirmed; a larger one goes alone.
    #[serde(default = "default_in_flight_bytes")]
    pub in_flight_bytes: ByteSize,

    /// The kind of the queue that keeps the position: `classic`, or `quorum` for one that outlives a node of a cluster.
    #[serde(default)]
    pub progress_queue: ProgressQueue,

    /// How often each side lets the other know that it is there, in whole seconds. Two that are missing end a connection.
    #[serde(default = "default_heartbeat")]
    pub heartbeat: Duration,

    /// How long a connection may take to come up.
    #[serde(default = "default_connect_timeout")]
    pub connect_timeout: Duration,
}

/// Certificates for `amqps://`, as PEM files.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate authorities to trust instead of the system's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// The client's certificate chain, together with `key`.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// The client's private key, together with `cert`.
    #[serde(default)]
    pub key: Option<PathBuf>,
}

/// What is made where it is missing. What is there already has to be the same.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Declare {
    /// The kind of the exchanges: `topic`, `direct`, `fanout`, `headers` or `x-consistent-hash`. Without it they have to be there.
    #[serde(default)]
    pub exchange: Option<ExchangeKind>,

    /// Queues.
    #[serde(default)]
    pub queues: Vec<Queue>,
}

/// A queue that is made where it is missing.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// Its name. Fields: `{source}`, `{schema}`, `{table}`; with one of the last two there is one for each table.
    pub name: String,

    /// Its kind: `classic`, `quorum` or `stream`.
    #[serde(default, rename = "type")]
    pub kind: QueueKind,

    /// Its bindings to each of the sink's exchanges: patterns for `topic`, a weight for `x-consistent-hash`. Fields as in the name. None to the
    /// default exchange, which knows all queues by their names.
    #[serde(default)]
    pub bind: Vec<String>,

    /// More arguments, such as `"x-max-age" = "7D"` of a stream.
    #[serde(default)]
    pub arguments: BTreeMap<String, Argument>,
}

/// An argument's value as a pipeline file may write it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Argument {
    /// A truth value.
    Flag(bool),
    /// A number.
    Integer(i64),
    /// A text.
    Text(String),
}

/// How an exchange chooses queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExchangeKind {
    /// By patterns of the routing key.
    Topic,
    /// By the routing key.
    Direct,
    /// All of them.
    Fanout,
    /// By headers.
    Headers,
    /// By the hash of the routing key, with the broker's plugin of that name.
    #[serde(rename = "x-consistent-hash")]
    ConsistentHash,
}

/// The kind of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QueueKind {
    /// On one node.
    #[default]
    Classic,
    /// Replicated.
    Quorum,
    /// A log that is read again and again.
    Stream,
}

/// The kind of the queue that keeps the position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProgressQueue {
    /// On one node.
    #[default]
    Classic,
    /// Replicated.
    Quorum,
}

fn default_exchange() -> String {
    DEFAULT_EXCHANGE.to_owned()
}

fn default_routing_key() -> String {
    DEFAULT_ROUTING_KEY.to_owned()
}

fn default_message_routing_key() -> String {
    DEFAULT_MESSAGE_ROUTING_KEY.to_owned()
}

fn default_decimals() -> Decimals {
    DEFAULT_DECIMALS
}

fn default_in_flight_messages() -> u32 {
    DEFAULT_IN_FLIGHT_MESSAGES
}

fn default_in_flight_bytes() -> ByteSize {
    DEFAULT_IN_FLIGHT_BYTES
}

fn default_heartbeat() -> Duration {
    DEFAULT_HEARTBEAT
}

fn default_connect_timeout() -> Duration {
    DEFAULT_CONNECT_TIMEOUT
}

impl RabbitmqConfig {
    /// Checks everything that needs no broker.
    pub(crate) fn check(&self) -> Result<()> {
        let endpoints = self.endpoints()?;
        if let Some(tls) = &self.tls {
            if tls.cert.is_some() != tls.key.is_some() {
                return Err(
                    wrong("tls", "`cert` and `key` belong together").remedy("give both or none")
                );
            }
            if endpoints
                .iter()
                .any(|endpoint| endpoint.uri.scheme == AMQPScheme::AMQP)
            {
                return Err(wrong("tls", "it is given for a URL without TLS")
                    .remedy("write amqps:// in the URL"));
            }
        }
        Routes::new(self)?;
        self.check_queues()?;
        for (field, is_zero) in [
            ("in_flight_messages", self.in_flight_messages == 0),
            ("in_flight_bytes", self.in_flight_bytes.0 == 0),
            ("connect_timeout", self.connect_timeout.0.is_zero()),
        ] {
            if is_zero {
                return Err(wrong(field, "it is 0").remedy("write 1 or more"));
            }
        }
        if self.heartbeat.0.subsec_nanos() != 0 || self.heartbeat_seconds().is_none() {
            return Err(
                wrong("heartbeat", "it is not a number of whole seconds").remedy(
                    "write 1s to 3600s; with none nobody would notice that the other side is gone",
                ),
            );
        }
        Ok(())
    }

    fn check_queues(&self) -> Result<()> {
        let queues = self.declare.iter().flat_map(|declare| &declare.queues);
        for queue in queues {
            if queue.arguments.contains_key("x-queue-type") {
                return Err(wrong("declare.queues", "`x-queue-type` is `type`")
                    .remedy("write `type` instead of the argument"));
            }
            if queue.name.is_empty() {
                return Err(wrong("declare.queues", "a queue has no name").remedy(
                    "give it one: the position is worth nothing in a queue that nobody finds again",
                ));
            }
        }
        Ok(())
    }

    /// In the range that the check allows.
    pub(crate) fn heartbeat_seconds(&self) -> Option<u16> {
        let seconds = u16::try_from(self.heartbeat.0.as_secs()).ok()?;
        (1..=3600).contains(&seconds).then_some(seconds)
    }

    /// The brokers to connect to, of which there is at least one.
    pub(crate) fn endpoints(&self) -> Result<Vec<Endpoint>> {
        let urls = match (&self.url, &self.urls) {
            (Some(url), None) => std::slice::from_ref(url),
            (None, Some(urls)) if !urls.is_empty() => urls.as_slice(),
            (Some(_), Some(_)) => {
                return Err(
                    wrong("url", "`url` and `urls` are both given").remedy("keep one of them")
                );
            }
            (None, _) => {
                return Err(wrong("url", "it is missing")
                    .remedy("write url = \"amqp://user:password@127.0.0.1:5672\""));
            }
        };
        urls.iter().map(|url| self.endpoint(url)).collect()
    }

    fn endpoint(&self, url: &Secret) -> Result<Endpoint> {
        let not_one = |cause: &str| {
            // The parser's messages quote the URL.
            wrong("url", format!("`{}` is not the URL of a broker: {cause}", url.redacted_url()))
                .remedy("write amqp://[user:password@]host[:port][/vhost], amqps://… for TLS; `%2F` is a `/` in a name or password")
        };
        let text = url.reveal();
        let scheme = text.split("://").next().unwrap_or_default();
        if scheme != "amqp" && scheme != "amqps" {
            return Err(not_one("it does not begin with amqp:// or amqps://"));
        }
        let mut uri: AMQPUri = text
            .parse()
            .map_err(|_| not_one("it cannot be taken apart"))?;
        if let Some(address) = literal_v6(text) {
            address.clone_into(&mut uri.authority.host);
        }
        if uri.vhost.len() > MAX_NAME {
            return Err(not_one("the vhost is too long"));
        }
        uri.query.heartbeat = self.heartbeat_seconds();
        Ok(Endpoint {
            uri,
            place: url.redacted_url(),
        })
    }
}

/// The IPv6 address that is the host of a URL: the parser takes one for no host at all.
fn literal_v6(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    Some(host.strip_prefix('[')?.split_once(']')?.0)
}

pub(crate) fn wrong(field: &str, cause: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, cause).at(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<RabbitmqConfig, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn defaults_are_as_documented() {
        let config = parse(r#"{"url":"amqp://h"}"#).expect("valid");
        config.check().expect("valid");
        assert_eq!(config.exchange, DEFAULT_EXCHANGE);
        assert_eq!(config.routing_key, DEFAULT_ROUTING_KEY);
        assert_eq!(config.heartbeat_seconds(), Some(10));
        assert!(config.declare.is_none());
    }

    #[test]
    fn urls_are_taken_apart() {
        for (url, host, port, vhost) in [
            ("amqp://h", "h", 5672, "/"),
            ("amqp://h/", "h", 5672, ""),
            ("amqp://u:p%40@h:1/%2Fshop", "h", 1, "/shop"),
            ("amqps://h/shop", "h", 5671, "shop"),
            ("amqp://u:p@[::1]:7/v", "::1", 7, "v"),
            ("amqp://127.0.0.1:7", "127.0.0.1", 7, "/"),
        ] {
            let config = parse(&format!(r#"{{"url":"{url}"}}"#)).expect("valid");
            let endpoint = config.endpoints().expect(url).remove(0);
            assert_eq!(endpoint.uri.authority.host, host, "{url}");
            assert_eq!(endpoint.uri.authority.port, port, "{url}");
            assert_eq!(endpoint.uri.vhost, vhost, "{url}");
        }
    }

    #[test]
    fn a_declaration_is_read() {
        let config = parse(
            r#"{"url":"amqp://h","declare":{"exchange":"x-consistent-hash","queues":[
                {"name":"a","type":"stream","bind":["1"],"arguments":{"x-max-age":"7D","x-n":1,"x-f":true}},
                {"name":"{table}","bind":["a.#","b.#"]}]}}"#,
        )
        .expect("valid");
        config.check().expect("valid");
        let declare = config.declare.expect("there");
        assert_eq!(declare.exchange, Some(ExchangeKind::ConsistentHash));
        assert_eq!(declare.queues[0].kind, QueueKind::Stream);
        assert_eq!(declare.queues[1].bind.len(), 2);
    }

    #[test]
    fn mistakes_are_config_errors_that_show_no_secret() {
        for bad in [
            r#"{}"#,
            r#"{"url":"http://u:hunter2@h"}"#,
            r#"{"url":"amqp://u:hunter2@h:99999"}"#,
            r#"{"url":"amqp://h","urls":["amqp://h"]}"#,
            r#"{"urls":[]}"#,
            r#"{"url":"amqp://h","tls":{"ca":"/ca.pem"}}"#,
            r#"{"url":"amqps://h","tls":{"cert":"/c.pem"}}"#,
            r#"{"url":"amqp://h","exchange":"{tabel}"}"#,
            r#"{"url":"amqp://h","exchange":"{key}"}"#,
            r#"{"url":"amqp://h","routing_key":"{sauce}"}"#,
            r#"{"url":"amqp://h","message_exchange":"{table}"}"#,
            r#"{"url":"amqp://h","message_routing_key":"{op}"}"#,
            r#"{"url":"amqp://h","in_flight_messages":0}"#,
            r#"{"url":"amqp://h","in_flight_bytes":"0B"}"#,
            r#"{"url":"amqp://h","heartbeat":"0s"}"#,
            r#"{"url":"amqp://h","heartbeat":"1500ms"}"#,
            r#"{"url":"amqp://h","declare":{"queues":[{"name":""}]}}"#,
            r#"{"url":"amqp://h","declare":{"queues":[{"name":"{key}"}]}}"#,
            r#"{"url":"amqp://h","declare":{"queues":[{"name":"a","arguments":{"x-queue-type":"quorum"}}]}}"#,
        ] {
            let error = parse(bad).expect(bad).check().expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::Config, "{bad}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let config = parse(r#"{"url":"amqp://u:hunter2@h"}"#).expect("valid");
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}

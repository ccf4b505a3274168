//! The sink's section of the pipeline file.

use std::time::Duration as StdDuration;

use lockstep_core::config::{ByteSize, Duration, Secret};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_redis::{Server, TlsConfig, default_connect_timeout, default_response_timeout};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::keys;

/// Where a row goes unless `key` says otherwise.
pub const DEFAULT_KEY: &str = "{source}:{table}:{key}";
/// How long a deleted key's version is kept: longer than any replay or backlog is expected to last.
pub const DEFAULT_TOMBSTONE_TTL: Duration = Duration(StdDuration::from_secs(24 * 3600));
/// Keys per script call. A call blocks the server for about a microsecond or two per key.
pub const DEFAULT_BATCH_KEYS: usize = 128;
/// Payload bytes per script call.
pub const DEFAULT_BATCH_BYTES: ByteSize = ByteSize(256 * 1024);
/// The most keys that fit on the stack of the server's Lua, four values each, with room to spare.
const MAX_BATCH_KEYS: usize = 1000;

/// Rows as values of Redis keys, in a single server or a cluster.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisConfig {
    /// The server: `redis://[user:password@]host[:port][/db]`, `rediss://…` for TLS, `unix:///path` for a socket. For a
    /// cluster, any of its nodes.
    #[serde(default)]
    pub url: Option<Secret>,
    /// Several nodes of a cluster to start from, instead of `url`.
    #[serde(default)]
    pub urls: Option<Vec<Secret>>,
    /// Whether the server is a Redis Cluster. Default: false.
    #[serde(default)]
    pub cluster: bool,
    /// Certificates for `rediss://`. Without it the system's certificate authorities are trusted.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// The key of a row. Fields: `{source}`, `{schema}`, `{table}`, and `{key}`, the key values joined by `:`; `{table}`
    /// and one `{key}` must be there. `%`, `:`, `{` and `}` inside a key value are written `%25`, `%3A`, `%7B`, `%7D`.
    /// Default: `{source}:{table}:{key}`.
    #[serde(default = "default_key")]
    pub key: String,
    /// What a key holds: `json`, the row as one JSON text, or `hash`, a field per column that is not NULL. Default: `json`.
    #[serde(default)]
    pub value: ValueFormat,
    /// How long a row stays after its last write. Its version goes with it. Default: for ever.
    #[serde(default)]
    pub ttl: Option<Duration>,
    /// How long the version of a deleted row is kept, so that a write replayed late cannot bring the row back. Make it
    /// longer than the longest outage after which changes are replayed. Default: `24h`.
    #[serde(default = "default_tombstone_ttl")]
    pub tombstone_ttl: Duration,
    /// A channel that is told the key of each row that was written or deleted, in the same step: for caches in front of this one. It reaches
    /// who listens at that moment. Not in a cluster. Default: none.
    #[serde(default)]
    pub notify: Option<String>,
    /// How writes are grouped.
    #[serde(default)]
    pub batch: BatchConfig,
    /// How long a connection may take to come up. Default: `5s`.
    #[serde(default = "default_connect_timeout")]
    pub connect_timeout: Duration,
    /// How long the server may take to answer before it counts as gone. Default: `10s`.
    #[serde(default = "default_response_timeout")]
    pub response_timeout: Duration,
}

/// What a key holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ValueFormat {
    /// The row as one JSON text.
    #[default]
    Json,
    /// A hash with a field per column that is not NULL.
    Hash,
}

/// How writes are grouped into script calls. A call ends at whichever limit comes first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// Keys per script call, 1 to 1000. In a cluster the keys of a call share a hash slot. Default: 128.
    #[serde(default = "default_batch_keys")]
    pub keys: usize,
    /// Payload bytes per script call; a larger row goes alone. Default: `256KiB`.
    #[serde(default = "default_batch_bytes")]
    pub bytes: ByteSize,
}

impl Default for BatchConfig {
    fn default() -> Self {
        BatchConfig {
            keys: DEFAULT_BATCH_KEYS,
            bytes: DEFAULT_BATCH_BYTES,
        }
    }
}

fn default_key() -> String {
    DEFAULT_KEY.to_owned()
}

fn default_tombstone_ttl() -> Duration {
    DEFAULT_TOMBSTONE_TTL
}

fn default_batch_keys() -> usize {
    DEFAULT_BATCH_KEYS
}

fn default_batch_bytes() -> ByteSize {
    DEFAULT_BATCH_BYTES
}

impl RedisConfig {
    /// Checks what can be checked without I/O.
    ///
    /// # Errors
    /// Of kind `Config`, naming the field.
    pub fn validate(&self) -> Result<()> {
        self.server().validate()?;
        keys::parse_template(&self.key)?;
        for (name, duration) in [
            ("tombstone_ttl", Some(self.tombstone_ttl)),
            ("ttl", self.ttl),
        ] {
            if duration.is_some_and(|duration| duration.0.is_zero()) {
                return Err(
                    wrong(format!("`{name}` is zero")).remedy("give it a length, such as 10s")
                );
            }
        }
        if self
            .notify
            .as_deref()
            .is_some_and(|channel| channel.trim().is_empty())
        {
            return Err(wrong("`notify` names no channel").remedy("name one, or leave it out"));
        }
        if self.notify.is_some() && self.cluster {
            return Err(wrong("`notify` is not there in a cluster").remedy(
                "leave it out: clients that track keys (CLIENT TRACKING) are told by the server",
            ));
        }
        if !(1..=MAX_BATCH_KEYS).contains(&self.batch.keys) {
            return Err(wrong(format!("`batch.keys` is {}", self.batch.keys))
                .remedy(format!("choose a number from 1 to {MAX_BATCH_KEYS}")));
        }
        Ok(())
    }

    /// Where the server is.
    pub(crate) fn server(&self) -> Server {
        Server {
            url: self.url.clone(),
            urls: self.urls.clone(),
            cluster: self.cluster,
            tls: self.tls.clone(),
            connect_timeout: self.connect_timeout,
            response_timeout: self.response_timeout,
        }
    }
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RedisConfig, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn defaults_are_as_documented() {
        let config = parse(r#"{"url":"redis://h"}"#).expect("valid");
        config.validate().expect("valid");
        assert_eq!(config.key, DEFAULT_KEY);
        assert_eq!(config.value, ValueFormat::Json);
        assert_eq!(config.tombstone_ttl.to_string(), "1d");
        assert_eq!((config.batch.keys, config.batch.bytes.0), (128, 262_144));
        assert!(config.ttl.is_none() && !config.cluster);
    }

    #[test]
    fn unknown_fields_are_refused() {
        assert!(parse(r#"{"url":"redis://h","tttl":"1s"}"#).is_err());
        assert!(parse(r#"{"url":"redis://h","batch":{"key":1}}"#).is_err());
    }

    #[test]
    fn mistakes_are_config_errors_that_show_no_secret() {
        for bad in [
            r#"{}"#,
            r#"{"url":"http://u:hunter2@h"}"#,
            r#"{"url":"redis://u:hunter2@h:99999"}"#,
            r#"{"url":"redis://h","urls":["redis://h"]}"#,
            r#"{"urls":["redis://a","redis://b"]}"#,
            r#"{"urls":[],"cluster":true}"#,
            r#"{"url":"redis://u:hunter2@h/3","cluster":true}"#,
            r#"{"url":"unix:///tmp/s","cluster":true}"#,
            r#"{"url":"redis://h","key":"{source}:{key}"}"#,
            r#"{"url":"redis://h","key":"{table}"}"#,
            r#"{"url":"redis://h","key":"{table}:{key}:{key}"}"#,
            r#"{"url":"redis://h","key":"{tabel}:{key}"}"#,
            r#"{"url":"redis://h","tombstone_ttl":"0s"}"#,
            r#"{"url":"redis://h","batch":{"keys":0}}"#,
            r#"{"url":"redis://h","notify":" "}"#,
            r#"{"url":"redis://h","notify":"changed","cluster":true}"#,
            r#"{"url":"redis://h","batch":{"keys":1001}}"#,
            r#"{"url":"redis://h","tls":{"ca":"/ca.pem"}}"#,
            r#"{"url":"rediss://h","tls":{"cert":"/c.pem"}}"#,
        ] {
            let error = parse(bad).expect(bad).validate().expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::Config, "{bad}");
            assert!(error.remedy_text().is_some(), "{bad}: {error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn good_urls_pass() {
        for good in [
            r#"{"url":"redis://u:p@h:6380/2"}"#,
            r#"{"url":"rediss://h","tls":{"ca":"/ca.pem"}}"#,
            r#"{"url":"unix:///run/redis.sock"}"#,
            r#"{"url":"redis://h","cluster":true}"#,
            r#"{"urls":["redis://a","redis://b:7000"],"cluster":true}"#,
        ] {
            parse(good).expect(good).validate().expect(good);
        }
    }
}

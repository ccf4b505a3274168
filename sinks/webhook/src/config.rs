//! The section of the pipeline file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration as StdDuration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lockstep_core::config::{ByteSize, Duration, Secret};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::{DEFAULT_DECIMALS, Decimals, Format};
use reqwest::Url;
use reqwest::header::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::Addresses;
use crate::sign::Signer;

/// Default of [`BatchConfig::records`].
pub const DEFAULT_BATCH_RECORDS: usize = 100;
/// Default of [`BatchConfig::bytes`].
pub const DEFAULT_BATCH_BYTES: ByteSize = ByteSize(1 << 20);
/// Default of [`Config::concurrency`]: everything arrives in commit order.
pub const DEFAULT_CONCURRENCY: usize = 1;
/// Default of [`Config::request_timeout`].
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration(StdDuration::from_secs(30));

/// The most requests under way at a time.
const MOST_CONCURRENCY: usize = 64;

/// A webhook sink: each change is an HTTP POST.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where changes are posted to: `https://api.example.com/changes/{table}`. Fields, behind the host: `{source}`, `{schema}`,
    /// `{table}`, percent-encoded. May carry `user:password@`.
    pub url: Secret,

    /// The envelope of values: `debezium` or `flat`.
    #[serde(default)]
    pub format: Format,

    /// How `debezium` writes `numeric`: `string` (exact text), `precise` (base64 as Debezium's default) or `double`.
    #[serde(default = "default_decimals")]
    pub decimals: Decimals,

    /// Posts arrays of records, instead of a request for each.
    #[serde(default)]
    pub batch: Option<BatchConfig>,

    /// Headers of each request besides: `{ "X-Api-Key" = "${KEY}" }`. The values are secrets.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,

    /// User name, instead of one in the URL.
    #[serde(default)]
    pub user: Option<String>,
    /// Password of `user`.
    #[serde(default)]
    pub password: Option<Secret>,
    /// A token, sent as `Authorization: Bearer …`, instead of a user.
    #[serde(default)]
    pub bearer: Option<Secret>,

    /// What requests are signed with, as Standard Webhooks does it: `whsec_` and the base64 of 24 to 64 bytes. With several, each
    /// makes a signature, so that receivers can change from one to the next. Without any, requests are not signed.
    #[serde(default)]
    pub secrets: Vec<Secret>,

    /// A file of PEM certificates that the server's certificate must descend from; the system's are used without it.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// A file with the client's certificate chain, in PEM, where the server asks for one.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    /// A file with the private key of `cert_file`, in PEM.
    #[serde(default)]
    pub key_file: Option<PathBuf>,

    /// How long the receiver may take to answer a request.
    #[serde(default = "default_request_timeout")]
    pub request_timeout: Duration,

    /// Requests under way at the same time, 1 to 64. Order per key is kept; with 1 everything arrives in commit order.
    #[serde(default = "default_concurrency")]
    pub concurrency: usize,

    /// An address that `lockstep check` asks by GET whether the receiver is well. Without it, the check only connects.
    #[serde(default)]
    pub probe: Option<Secret>,
}

/// How records are grouped into requests. A request ends at whichever limit comes first, and when nothing waits.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// Records in a request at most.
    #[serde(default = "default_batch_records")]
    pub records: usize,
    /// Bytes of a request's body at most; a larger record goes alone.
    #[serde(default = "default_batch_bytes")]
    pub bytes: ByteSize,
}

fn default_decimals() -> Decimals {
    DEFAULT_DECIMALS
}

fn default_batch_records() -> usize {
    DEFAULT_BATCH_RECORDS
}

fn default_batch_bytes() -> ByteSize {
    DEFAULT_BATCH_BYTES
}

fn default_request_timeout() -> Duration {
    DEFAULT_REQUEST_TIMEOUT
}

fn default_concurrency() -> usize {
    DEFAULT_CONCURRENCY
}

impl Config {
    /// Checks what can be checked without I/O.
    ///
    /// # Errors
    /// Of kind `Config`, naming the field.
    pub fn validate(&self) -> Result<()> {
        Signer::new(&self.secrets)?;
        self.header_pairs()?;
        self.probe_url()?;
        let addresses = Addresses::new(&self.url)?;
        self.authorization(&addresses)?;
        if self.password.is_some() && self.user.is_none() {
            return Err(wrong("`password` is given without `user`").remedy("add `user`"));
        }
        if self.bearer.is_some() && (self.user.is_some() || addresses.login().is_some()) {
            return Err(wrong("`bearer` and a user are both given").remedy("keep one of them"));
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err(
                wrong("`cert_file` and `key_file` belong together").remedy("give both or none")
            );
        }
        if !(1..=MOST_CONCURRENCY).contains(&self.concurrency) {
            return Err(wrong(format!("`concurrency` is {}", self.concurrency))
                .remedy(format!("choose a number from 1 to {MOST_CONCURRENCY}")));
        }
        if self.request_timeout.0.is_zero() {
            return Err(
                wrong("`request_timeout` is zero").remedy("leave it out to use the default")
            );
        }
        if let Some(batch) = &self.batch
            && (batch.records == 0 || batch.bytes.0 == 0)
        {
            return Err(
                wrong("`batch.records` and `batch.bytes` must be above zero")
                    .remedy("leave `batch` out to post each record by itself"),
            );
        }
        Ok(())
    }

    /// The additional headers.
    pub(crate) fn header_pairs(&self) -> Result<Vec<(HeaderName, HeaderValue)>> {
        let mut pairs = Vec::new();
        for (name, value) in &self.headers {
            let bad = |what: &str| wrong(format!("header `{name}` {what}"));
            let parsed = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| bad("is no name of a header").remedy("use letters, digits and `-`"))?;
            if is_ours(parsed.as_str()) {
                return Err(bad("is set by the sink")
                    .remedy("leave it out; `user`, `password` and `bearer` make `Authorization`"));
            }
            // The value is not repeated.
            let mut value = HeaderValue::from_str(value.reveal()).map_err(|_| {
                bad("has a value that no header can have").remedy("use visible ASCII characters")
            })?;
            value.set_sensitive(true);
            pairs.push((parsed, value));
        }
        Ok(pairs)
    }

    /// The value of `Authorization`, if there is to be one.
    pub(crate) fn authorization(&self, addresses: &Addresses) -> Result<Option<HeaderValue>> {
        let user = self
            .user
            .as_deref()
            .map(|user| (user, self.password.as_ref()));
        let value = match (&self.bearer, user.or_else(|| addresses.login())) {
            (Some(bearer), _) => format!("Bearer {}", bearer.reveal()),
            (None, Some((user, password))) => {
                let password = password.map_or("", Secret::reveal);
                format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
            }
            (None, None) => return Ok(None),
        };
        let mut value = HeaderValue::from_str(&value).map_err(|_| {
            wrong("`bearer` is none that a header can have").remedy("use visible ASCII characters")
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// The parsed `probe`.
    pub(crate) fn probe_url(&self) -> Result<Option<Url>> {
        let Some(probe) = &self.probe else {
            return Ok(None);
        };
        let parsed = Url::parse(probe.reveal()).ok();
        parsed
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .map(Some)
            .ok_or_else(|| {
                wrong("`probe` is no address")
                    .remedy("write it as https://host/health, or leave it out")
            })
    }
}

/// Whether the sink, or HTTP itself, sets a header of this name.
fn is_ours(name: &str) -> bool {
    name.starts_with("x-lockstep-")
        || matches!(
            name,
            "authorization"
                | "connection"
                | "content-length"
                | "content-type"
                | "host"
                | "idempotency-key"
                | "transfer-encoding"
                | "webhook-id"
                | "webhook-signature"
                | "webhook-timestamp"
        )
}

pub(crate) fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config(more: Value) -> Result<Config, serde_json::Error> {
        let mut section = json!({"url": "https://h/{table}"});
        let more = more.as_object().expect("an object").clone();
        section.as_object_mut().expect("an object").extend(more);
        serde_json::from_value(section)
    }

    #[test]
    fn defaults_are_as_documented() {
        let config = config(json!({})).expect("valid");
        config.validate().expect("valid");
        assert_eq!((config.concurrency, config.batch.is_none()), (1, true));
        assert_eq!(config.request_timeout.to_string(), "30s");
        let batch: BatchConfig = serde_json::from_value(json!({})).expect("valid");
        assert_eq!(
            (batch.records, batch.bytes.to_string()),
            (100, "1MiB".to_owned())
        );
    }

    #[test]
    fn what_cannot_work_is_told_by_its_name_and_no_secret_is_repeated() {
        let key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        for (more, named) in [
            (json!({"url": "ftp://hunter2/"}), "`url`"),
            (json!({"url": "https://hunter2-{table}/"}), "`url`"),
            (json!({"url": "https://u:hunter2@h/{tabel}"}), "`{tabel}`"),
            (json!({"url": "https://h/hunter2}"}), "`url`"),
            (json!({"headers": {"a b": "hunter2"}}), "`a b`"),
            (json!({"headers": {"a": "hunter2\n"}}), "`a`"),
            (
                json!({"headers": {"Authorization": "hunter2"}}),
                "`Authorization`",
            ),
            (
                json!({"headers": {"X-Lockstep-Op": "hunter2"}}),
                "`X-Lockstep-Op`",
            ),
            (json!({"password": "hunter2"}), "`password`"),
            (json!({"user": "u", "bearer": "hunter2"}), "`bearer`"),
            (
                json!({"url": "https://u:hunter2@h/", "bearer": "x"}),
                "`bearer`",
            ),
            (json!({"bearer": "hunter2\n"}), "`bearer`"),
            (json!({"secrets": ["hunter2"]}), "`secrets`"),
            (json!({"secrets": [key, "whsec_aHVudGVyMg=="]}), "`secrets`"),
            (json!({"cert_file": "/hunter2"}), "`cert_file`"),
            (json!({"request_timeout": "0s"}), "`request_timeout`"),
            (json!({"concurrency": 0}), "`concurrency`"),
            (json!({"concurrency": 65}), "`concurrency`"),
            (json!({"batch": {"records": 0}}), "`batch.records`"),
            (json!({"probe": "hunter2"}), "`probe`"),
        ] {
            let config = config(more.clone()).expect("a section");
            let error = config.validate().expect_err(named).to_string();
            assert!(error.contains(named), "{more}: {error}");
            assert!(!error.contains("hunter2"), "{more}: {error}");
            assert!(!error.contains("aHVudGVyMg"), "{more}: {error}");
        }
        assert!(config(json!({"bodies": 1})).is_err());
        assert!(config(json!({"batch": {"record": 1}})).is_err());
    }
}

//! The section of the pipeline file.

use lockstep_core::config::{Duration, Secret};
use lockstep_core::template::Template;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::{DEFAULT_DECIMALS, Decimals, Format};
use lockstep_redis::{Server, TlsConfig, default_connect_timeout, default_response_timeout};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::keys;

/// The default of `stream`.
pub const DEFAULT_STREAM: &str = "{source}:{schema}:{table}";
/// The default of `message_stream`.
pub const DEFAULT_MESSAGE_STREAM: &str = "{source}:message";

/// Changes as entries of streams, in a single server.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamConfig {
    /// The server: `redis://[user:password@]host[:port][/db]`, `rediss://…` for TLS, `unix:///path` for a socket.
    pub url: Secret,

    /// Certificates for `rediss://`. Without it the system's certificate authorities are trusted.
    #[serde(default)]
    pub tls: Option<TlsConfig>,

    /// The key of a table's stream. Fields: `{source}`, `{schema}`, `{table}`. Tables may share one.
    #[serde(default = "default_stream")]
    pub stream: String,

    /// The key of the stream of logical messages (`pg_logical_emit_message`). Field: `{source}`.
    #[serde(default = "default_message_stream")]
    pub message_stream: String,

    /// The envelope of values: `debezium`, `flat`, `cloudevents` or `cloudevents-binary`.
    #[serde(default)]
    pub format: Format,

    /// How `debezium` writes `numeric`: `string` (exact text), `precise` (base64 as Debezium's default) or `double`.
    #[serde(default = "default_decimals")]
    pub decimals: Decimals,

    /// About how many entries a stream keeps, the oldest going first (`MAXLEN ~`), whether they have been read or not. Default: all.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub max_length: Option<u64>,

    /// How long a connection may take to come up. Default: `5s`.
    #[serde(default = "default_connect_timeout")]
    pub connect_timeout: Duration,

    /// How long the server may take to answer before it counts as gone. Default: `10s`.
    #[serde(default = "default_response_timeout")]
    pub response_timeout: Duration,
}

fn default_stream() -> String {
    DEFAULT_STREAM.to_owned()
}

fn default_message_stream() -> String {
    DEFAULT_MESSAGE_STREAM.to_owned()
}

fn default_decimals() -> Decimals {
    DEFAULT_DECIMALS
}

/// Where entries go.
pub(super) struct Templates {
    pub(super) table: Template,
    pub(super) message: Template,
}

impl StreamConfig {
    /// Checks what can be checked without I/O.
    ///
    /// # Errors
    /// Of kind `Config`, naming the field.
    pub fn validate(&self) -> Result<()> {
        self.server().validate()?;
        if self.max_length == Some(0) {
            return Err(Error::new(ErrorKind::Config, "`max_length` is 0")
                .remedy("leave it out to keep all entries, or say how many"));
        }
        self.templates().map(drop)
    }

    pub(super) fn templates(&self) -> Result<Templates> {
        let parsed = |field: &str, text: &str, fields: &[&str]| {
            let wrong = |cause: String| {
                Error::new(ErrorKind::Config, format!("`{field}`: {cause}"))
                    .remedy(format!("write it like {DEFAULT_STREAM}"))
            };
            if text.trim().is_empty() {
                return Err(wrong("it names no key".to_owned()));
            }
            if keys::is_beside(text.as_bytes()) {
                return Err(wrong(format!(
                    "`{text}` begins like the keys of lockstep itself"
                )));
            }
            Template::parse(text, fields).map_err(wrong)
        };
        Ok(Templates {
            table: parsed("stream", &self.stream, &["source", "schema", "table"])?,
            message: parsed("message_stream", &self.message_stream, &["source"])?,
        })
    }

    /// Where the server is.
    pub(super) fn server(&self) -> Server {
        Server {
            url: Some(self.url.clone()),
            urls: None,
            cluster: false,
            tls: self.tls.clone(),
            connect_timeout: self.connect_timeout,
            response_timeout: self.response_timeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_name_the_field_and_show_no_secret() {
        for (json, words) in [
            (r#"{"url":"http://u:hunter2@h"}"#, "URL"),
            (r#"{"url":"redis://h","stream":" "}"#, "`stream`"),
            (r#"{"url":"redis://h","stream":"{key}"}"#, "`stream`"),
            (
                r#"{"url":"redis://h","stream":"lockstep:step:{table}"}"#,
                "`stream`",
            ),
            (
                r#"{"url":"redis://h","message_stream":"{table}"}"#,
                "`message_stream`",
            ),
            (r#"{"url":"redis://h","max_length":0}"#, "`max_length`"),
        ] {
            let config: StreamConfig = serde_json::from_str(json).expect(json);
            let error = config.validate().expect_err(json);
            assert_eq!(error.kind(), ErrorKind::Config, "{json}");
            assert!(error.to_string().contains(words), "{json}: {error}");
            assert!(
                error.remedy_text().is_some() && !error.to_string().contains("hunter2"),
                "{error}"
            );
        }
        let whole: StreamConfig = serde_json::from_str(r#"{"url":"redis://h"}"#).expect("valid");
        whole.validate().expect("valid");
        assert_eq!(whole.stream, DEFAULT_STREAM);
        assert!(
            serde_json::from_str::<StreamConfig>(r#"{"url":"redis://h","cluster":true}"#).is_err()
        );
    }
}

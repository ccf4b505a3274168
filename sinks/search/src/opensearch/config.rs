//! The section of the pipeline file.

use std::path::PathBuf;
use std::time::Duration as StdDuration;

use lockstep_core::config::{ByteSize, Duration, Secret};
use lockstep_core::template::Template;
use lockstep_core::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::document::Incomplete;

/// Default of [`Config::index`].
pub const DEFAULT_INDEX: &str = "{source}-{table}";
/// Default of [`Config::progress_index`].
pub const DEFAULT_PROGRESS_INDEX: &str = "lockstep-progress";
/// Default of [`Config::bulk_bytes`].
pub const DEFAULT_BULK_BYTES: ByteSize = ByteSize(5 << 20);
/// Default of [`Config::bulk_documents`].
pub const DEFAULT_BULK_DOCUMENTS: usize = 10_000;
/// Default of [`Config::concurrency`].
pub const DEFAULT_CONCURRENCY: usize = 2;
/// Default of [`Config::request_timeout`].
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration(StdDuration::from_secs(30));
/// Default of [`Config::gc_deletes`].
pub const DEFAULT_GC_DELETES: Duration = Duration(StdDuration::from_secs(3600));
/// Default of [`Config::visible_every`].
pub const DEFAULT_VISIBLE_EVERY: Duration = Duration(StdDuration::from_millis(200));

/// What the index template may name.
const INDEX_FIELDS: &[&str] = &["source", "schema", "table"];

/// A sink of type `opensearch` or `elasticsearch`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the cluster listens: `https://search:9200`. May carry `user:password@`.
    pub url: Option<Secret>,
    /// Several nodes of one cluster, instead of `url`: when one cannot be connected to, the next is asked.
    #[serde(default)]
    pub urls: Vec<Secret>,
    /// User name, instead of one in the URL.
    pub user: Option<String>,
    /// Password of `user`.
    pub password: Option<Secret>,
    /// API key (Elasticsearch), as `id:key` in base64, instead of a user.
    pub api_key: Option<Secret>,
    /// A file of PEM certificates that the server's certificate must descend from; the system's are used without it.
    pub ca_file: Option<PathBuf>,
    /// Name of the index of a table, from `{source}`, `{schema}` and `{table}`. It is lower-cased, and characters that an
    /// index name cannot have become `_`. Two tables with the same index are an error.
    #[serde(default = "default_index")]
    pub index: String,
    /// What an index is created with: `derived` from the table's columns, or `none`, which leaves it to the server.
    #[serde(default)]
    pub mapping: Mapping,
    /// Index settings for the indexes that are created: `{ number_of_shards = 3, number_of_replicas = 1 }`.
    #[serde(default)]
    pub settings: Map<String, Value>,
    /// Field mappings that replace derived ones, by column: `{ note = { type = "text", analyzer = "english" } }`.
    #[serde(default)]
    pub fields: Map<String, Value>,
    /// How long the server remembers the version of a deleted document (`index.gc_deletes`) in the indexes that are
    /// created: for that long a late write of an older version is refused.
    #[serde(default = "default_gc_deletes")]
    pub gc_deletes: Duration,
    /// Bytes after which a bulk request is sent; one is sent sooner when nothing waits.
    #[serde(default = "default_bulk_bytes")]
    pub bulk_bytes: ByteSize,
    /// Documents after which a bulk request is sent.
    #[serde(default = "default_bulk_documents")]
    pub bulk_documents: usize,
    /// Bulk requests under way at the same time, 1 to 16. Order per key is kept.
    #[serde(default = "default_concurrency")]
    pub concurrency: usize,
    /// Whether a write waits for, or forces, its visibility to searches.
    #[serde(default)]
    pub refresh: Refresh,
    /// How long the server may take to answer a request.
    #[serde(default = "default_request_timeout")]
    pub request_timeout: Duration,
    /// What happens when an UPDATE left a TOASTed value unchanged and the index has no document that holds it.
    #[serde(default)]
    pub incomplete: Incomplete,
    /// The index that keeps the position.
    #[serde(default = "default_progress_index")]
    pub progress_index: String,
    /// Whether every document carries the number of its transaction in the field `gtx_epoch`, and a document beside the position
    /// tells readers up to which of them everything is visible: see the README. Default: false.
    #[serde(default)]
    pub gtx_epoch: bool,
    /// With `gtx_epoch`: how often what was written is refreshed, and told to be visible; a batch is durable only then. Default: `200ms`.
    #[serde(default = "default_visible_every")]
    pub visible_every: Duration,
}

/// What an index is created with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mapping {
    /// A field per column, by its type; columns that appear later are added.
    #[default]
    Derived,
    /// Nothing: the server, or an index template of yours, decides.
    None,
}

/// When a write becomes visible to searches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Refresh {
    /// When the index refreshes by itself (`index.refresh_interval`, one second by default). The fastest.
    #[default]
    None,
    /// A batch is durable only when it is visible too.
    WaitFor,
    /// Every bulk request forces a refresh. Slow; for tests and demonstrations.
    Now,
}

fn default_visible_every() -> Duration {
    DEFAULT_VISIBLE_EVERY
}

fn default_index() -> String {
    DEFAULT_INDEX.to_owned()
}
fn default_progress_index() -> String {
    DEFAULT_PROGRESS_INDEX.to_owned()
}
fn default_gc_deletes() -> Duration {
    DEFAULT_GC_DELETES
}
fn default_bulk_bytes() -> ByteSize {
    DEFAULT_BULK_BYTES
}
fn default_bulk_documents() -> usize {
    DEFAULT_BULK_DOCUMENTS
}
fn default_concurrency() -> usize {
    DEFAULT_CONCURRENCY
}
fn default_request_timeout() -> Duration {
    DEFAULT_REQUEST_TIMEOUT
}

impl Config {
    /// Checks what can be checked without I/O.
    ///
    /// # Errors
    /// Of kind `Config`, naming the field.
    pub fn validate(&self) -> Result<()> {
        match (&self.url, self.urls.is_empty()) {
            (Some(_), true) | (None, false) => {}
            (Some(_), false) => {
                return Err(wrong("`url` and `urls` are both given").remedy("keep one of them"));
            }
            (None, true) => {
                return Err(wrong("`url` is missing")
                    .remedy("say where the cluster listens: url = \"http://127.0.0.1:9200\""));
            }
        }
        for url in self.addresses() {
            parse_url(url)?;
        }
        if self.api_key.is_some() && self.user.is_some() {
            return Err(wrong("`api_key` and `user` are both given").remedy("keep one of them"));
        }
        if self.password.is_some() && self.user.is_none() {
            return Err(wrong("`password` is given without `user`").remedy("add `user`"));
        }
        self.index_template()?;
        if self.concurrency == 0 || self.concurrency > 16 {
            return Err(wrong(format!("`concurrency` is {}", self.concurrency))
                .remedy("choose 1 to 16; 1 to 4 serve most clusters best"));
        }
        if self.bulk_bytes.0 == 0 || self.bulk_documents == 0 {
            return Err(
                wrong("`bulk_bytes` and `bulk_documents` must be above zero")
                    .remedy("leave them out to use the defaults"),
            );
        }
        if self.request_timeout.0.is_zero() {
            return Err(
                wrong("`request_timeout` is zero").remedy("leave it out to use the default")
            );
        }
        if self.gtx_epoch && self.refresh != Refresh::None {
            return Err(wrong("`gtx_epoch` and `refresh` are both given").remedy(
                "leave `refresh` out: `visible_every` says how often what was written becomes visible",
            ));
        }
        if self.visible_every.0.is_zero() {
            return Err(wrong("`visible_every` is zero").remedy("leave it out to use the default"));
        }
        if super::index::sanitize(&self.progress_index) != self.progress_index {
            return Err(wrong(format!(
                "`progress_index` cannot be `{}`",
                self.progress_index
            ))
            .remedy("use lower-case letters, digits, `-` and `_`"));
        }
        Ok(())
    }

    /// The URLs, from either field.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &Secret> {
        self.url.iter().chain(&self.urls)
    }

    /// The parsed template of index names.
    pub(super) fn index_template(&self) -> Result<Template> {
        Template::parse(&self.index, INDEX_FIELDS)
            .map_err(|text| wrong("`index` is not a template").source(text))
    }
}

/// Parses a URL; credentials stay in it.
pub(super) fn parse_url(url: &Secret) -> Result<reqwest::Url> {
    let bad = |what: String| {
        wrong(format!("`url` {what}"))
            .remedy("write it as http://host:9200 or https://user:password@host:9200")
    };
    let parsed = reqwest::Url::parse(url.reveal())
        .map_err(|error| bad("is not a URL".to_owned()).source(error))?;
    match parsed.scheme() {
        "http" | "https" if parsed.has_host() => Ok(parsed),
        // Not repeated: without a scheme it is what stands before the first colon.
        _ => Err(bad("begins with neither http:// nor https://".to_owned())),
    }
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

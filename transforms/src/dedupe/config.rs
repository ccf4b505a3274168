//! The section of the pipeline file.

use lockstep_core::config::{Duration, Secret};
use lockstep_core::error::At;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_redis::{Server, TlsConfig, default_connect_timeout, default_response_timeout};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How long a key is remembered.
pub const DEFAULT_WINDOW: Duration = Duration(std::time::Duration::from_secs(24 * 3600));
/// Why a row is put aside.
pub const REASON: &str = "duplicate";

/// `type = "dedupe"`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DedupeConfig {
    /// The columns that together are the idempotency key. Rows of tables without them, and rows in which one of them
    /// is NULL, pass.
    pub key: Vec<String>,
    /// How long a key is remembered, by the commit times of the changes: from its first occurrence on.
    #[serde(default = "default_window")]
    pub window: Duration,
    /// How many keys are remembered at most; the oldest are forgotten first. Default: as many as the window brings.
    pub max_keys: Option<u64>,
    /// What happens to a row that repeats a key, and to its later changes: `drop` leaves them out, `tag` passes them with a mark,
    /// `dead_letter` puts them aside.
    #[serde(default)]
    pub action: Action,
    /// Where keys are compared: within one `table` of one source, or across `all` tables and sources that reach the
    /// transform.
    #[serde(default)]
    pub scope: Scope,
    /// Where keys are remembered: on this machine (`type = "embedded"`, the default), or in a Redis that replicas of the
    /// pipeline share (`type = "redis"`).
    #[serde(default)]
    pub store: StoreConfig,
}

fn default_window() -> Duration {
    DEFAULT_WINDOW
}

/// What happens to a row that repeats a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is left out.
    #[default]
    Drop,
    /// It passes, marked as a duplicate.
    Tag,
    /// It is put aside among the dead letters.
    DeadLetter,
}

/// Where keys are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Within one table of one source: two tables may use the same keys.
    #[default]
    Table,
    /// Across all tables and sources: one keyed effect, wherever it is recorded.
    All,
}

/// Where keys are remembered.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum StoreConfig {
    /// In the pipeline's state directory.
    Embedded {},
    /// In a Redis that replicas of the pipeline share.
    Redis(Box<RedisStore>),
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig::Embedded {}
    }
}

/// A store in Redis: a single server or a cluster, where it lies in one hash slot.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisStore {
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
    /// How long a connection may take to come up. Default: `5s`.
    #[serde(default = "default_connect_timeout")]
    pub connect_timeout: Duration,
    /// How long the server may take to answer before it counts as gone. Default: `10s`.
    #[serde(default = "default_response_timeout")]
    pub response_timeout: Duration,
    /// What becomes of the pipeline when the server has lost keys: `stop`, or `continue`, which lets repeats of them pass.
    #[serde(default)]
    pub on_lost: OnLost,
}

/// What becomes of the pipeline when the server has lost keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnLost {
    /// It stops; nothing is acknowledged.
    #[default]
    Stop,
    /// It goes on with what is left, and says so in the log: repeats of lost keys pass.
    Continue,
}

impl RedisStore {
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

impl DedupeConfig {
    /// Checks what can be checked without I/O.
    ///
    /// # Errors
    /// Of kind `Config`, naming the field.
    pub fn validate(&self) -> Result<()> {
        let wrong = |message: String, remedy: &str| {
            Err(Error::new(ErrorKind::Config, message).remedy(remedy))
        };
        if self.key.is_empty() || self.key.iter().any(String::is_empty) {
            return wrong(
                "`key` names no column".to_owned(),
                "list the columns of the idempotency key, such as `key = [\"idempotency_key\"]`",
            );
        }
        if let Some(twice) = self
            .key
            .iter()
            .enumerate()
            .find(|(index, name)| self.key[..*index].contains(name))
        {
            return wrong(
                format!("`key` names the column `{}` twice", twice.1),
                "name it once",
            );
        }
        if self.window.0.is_zero() {
            return wrong(
                "`window` is 0".to_owned(),
                "write how long keys are remembered, such as 24h",
            );
        }
        if self.max_keys == Some(0) {
            return wrong(
                "`max_keys` is 0: nothing would be remembered".to_owned(),
                "write how many keys are remembered, or leave `max_keys` out",
            );
        }
        match &self.store {
            StoreConfig::Embedded {} => Ok(()),
            StoreConfig::Redis(store) => store.server().validate().at("`store`"),
        }
    }
}

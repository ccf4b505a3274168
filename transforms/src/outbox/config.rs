//! The section of the pipeline file.

use std::collections::BTreeMap;

use lockstep_core::template::Template;
use lockstep_core::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::tables::Tables;

/// The default of `topic`.
pub const DEFAULT_TOPIC: &str = "outbox.event.{aggregatetype}";
/// The default of `id`.
pub const DEFAULT_ID: &str = "id";
/// The default of `key`.
pub const DEFAULT_KEY: &str = "aggregateid";
/// The default of `payload`.
pub const DEFAULT_PAYLOAD: &str = "payload";

/// Headers that are there in any case, and names of what is no header.
const RESERVED: [&str; 3] = ["id", "key", "payload"];

/// `type = "outbox"`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutboxConfig {
    /// The tables that are outboxes, `schema.table` or `source.schema.table` with `*`; other tables pass as they are. Each INSERT is an
    /// event. A DELETE is none: the application may delete a row as soon as it has written it, in the same transaction.
    #[serde(default)]
    pub tables: Tables,
    /// Prefixes of logical messages that are events, without a table: `pg_logical_emit_message(true, 'outbox', '{"aggregatetype": "order",
    /// …}')`. The content is a JSON object that has as fields what a row would have as columns. Other messages pass as they are.
    #[serde(default)]
    pub messages: Vec<String>,
    /// The topic of an event: a template with the fields that the event has. Sinks take it as it is.
    #[serde(default = "default_topic")]
    pub topic: String,
    /// The column with the event's id, which consumers know repeats by. It becomes the header `id`.
    #[serde(default = "default_id")]
    pub id: String,
    /// The column that becomes the key of the record: events of one key keep their order.
    #[serde(default = "default_key")]
    pub key: String,
    /// The column that becomes the value of the record, byte for byte: of a `bytea` the bytes, of other types the text. NULL is a
    /// tombstone.
    #[serde(default = "default_payload")]
    pub payload: String,
    /// More headers, `{ name = "column" }`. NULL is left out.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// What becomes of rows that a copy of the table finds, or a load.
    #[serde(default)]
    pub copied: Copied,
    /// What becomes of an UPDATE, which an outbox should not have.
    #[serde(default)]
    pub updated: Updated,
}

/// Rows that are there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Copied {
    /// They are events, too.
    #[default]
    Emit,
    /// They are left out.
    Skip,
}

/// Rows that are changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Updated {
    /// The change goes to the dead letters.
    #[default]
    Letter,
    /// It is left out.
    Skip,
}

fn default_topic() -> String {
    DEFAULT_TOPIC.to_owned()
}

fn default_id() -> String {
    DEFAULT_ID.to_owned()
}

fn default_key() -> String {
    DEFAULT_KEY.to_owned()
}

fn default_payload() -> String {
    DEFAULT_PAYLOAD.to_owned()
}

impl OutboxConfig {
    pub(super) fn check(&self) -> Result<()> {
        self.tables.validate()?;
        if self.tables.0.is_empty() && self.messages.is_empty() {
            return Err(Error::new(
                ErrorKind::Config,
                "there is neither `tables` nor `messages`",
            )
            .remedy("name the table of events, or the prefix of messages that are events"));
        }
        let taken =
            |name: &&String| RESERVED.contains(&name.as_str()) || name.starts_with("lockstep.");
        if let Some(name) = self.headers.keys().find(taken) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("`headers`: `{name}` is not free"),
            )
            .remedy("name the header otherwise; the event's id is the header `id` in any case"));
        }
        self.template().map(drop)
    }

    pub(super) fn template(&self) -> Result<Template> {
        Template::parse_any(&self.topic).map_err(|problem| {
            Error::new(ErrorKind::Config, format!("`topic`: {problem}"))
                .remedy("write columns in braces, such as `outbox.event.{aggregatetype}`")
        })
    }
}

//! Whole records: key, value and headers of each change.

mod clock;
mod cloud;
mod debezium;
pub(crate) mod encoder;
mod event;
mod flat;
pub mod read;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;

use lockstep_core::batch::Op;
use lockstep_core::check::Finding;
use lockstep_core::schema::{TableId, TableSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::key::KeyJson;
use crate::value::{Mapping, Plan};

pub use encoder::Encoder;

/// The idempotency id of the change, on every record: `system/timeline/db/commit_lsn/ordinal`.
pub const HEADER_ID: &str = "lockstep.id";
/// The name of the source, on every record.
pub const HEADER_SOURCE: &str = "lockstep.source";
/// `true` on records of a change that `dedupe` marked; absent on others.
pub const HEADER_DUPLICATE: &str = "lockstep.duplicate";
/// On records of a transaction of several databases whose branches go on together: what the branches share.
pub const HEADER_GLOBAL: &str = "lockstep.gtrid";
/// Beside [`HEADER_GLOBAL`]: how many branches go on together.
pub const HEADER_BRANCHES: &str = "lockstep.gtx.count";
/// In the `debezium` format, on delete and tombstone of a key change: the new key.
pub const HEADER_NEW_KEY: &str = "__debezium.newkey";
/// In the `debezium` format, on the create of a key change: the old key.
pub const HEADER_OLD_KEY: &str = "__debezium.oldkey";

/// The default of [`Decimals`].
pub const DEFAULT_DECIMALS: Decimals = Decimals::String;

/// How `numeric` and `money` are written in the `debezium` format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Decimals {
    /// As text, nothing lost: `"123.45"`.
    #[default]
    String,
    /// As Debezium's default: base64 of the unscaled integer, `{"scale":2,"value":"MDk="}` without declared scale.
    Precise,
    /// As a double; digits are lost.
    Double,
}

/// Options of the `debezium` format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebeziumOptions {
    /// How `numeric` and `money` are written.
    pub decimals: Decimals,
}

/// The format of a record's value. In a pipeline file: `"debezium"`, `"flat"`, `"cloudevents"` or `"cloudevents-binary"`; options have keys of their own beside it
/// ([`Decimals`], see [`Format::with_decimals`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "FormatName", into = "FormatName")]
#[schemars(with = "FormatName")]
pub enum Format {
    /// Debezium's JSON envelope, field for field.
    Debezium(DebeziumOptions),
    /// One object: the row in the natural mapping with what is known of the change beside it.
    Flat,
    /// A CloudEvent: `flat` as its data.
    CloudEvents(Content),
}

/// How a CloudEvent is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// All of it in the value, as a JSON object.
    Structured,
    /// Its attributes in headers, and the data alone in the value.
    Binary,
}

impl Default for Format {
    fn default() -> Self {
        Format::Debezium(DebeziumOptions::default())
    }
}

impl Format {
    /// The same format with `decimals` where it has such an option.
    #[must_use]
    pub fn with_decimals(self, decimals: Decimals) -> Self {
        match self {
            Format::Debezium(_) => Format::Debezium(DebeziumOptions { decimals }),
            Format::Flat | Format::CloudEvents(_) => self,
        }
    }

    /// The columns of a table that the format has no form for, and so leaves out: in the `debezium` format those of the
    /// types that Debezium does not know. To be told to people before the first row.
    #[must_use]
    pub fn omitted(self, schema: &TableSchema) -> Vec<&str> {
        let mapping = self.mapping();
        schema
            .columns
            .iter()
            .filter(|column| mapping.plan(&column.ty) == Plan::Omit)
            .map(|column| &*column.name)
            .collect()
    }

    /// [`Format::omitted`] as what `lockstep check` prints.
    #[must_use]
    pub fn findings(self, schema: &TableSchema) -> Vec<Finding> {
        let omitted = self.omitted(schema);
        if omitted.is_empty() {
            return Vec::new();
        }
        vec![Finding::warn(
            format!("table {}", schema.origin),
            format!(
                "left out, since the format has no form for their types: {}",
                omitted.join(", ")
            ),
            "format = \"flat\" has a form for every type; or drop the columns with a `project`, so that nobody waits for them",
        )]
    }

    /// The plan for the keys of a table's records.
    #[must_use]
    pub fn key(self, schema: &Arc<TableSchema>) -> KeyJson {
        KeyJson::with(schema, self.mapping())
    }

    pub(crate) fn mapping(self) -> Mapping {
        match self {
            Format::Debezium(options) => Mapping::Debezium(options.decimals),
            Format::Flat | Format::CloudEvents(_) => Mapping::Natural,
        }
    }
}

/// The format of a record's value.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum FormatName {
    /// Debezium's JSON envelope, field for field.
    Debezium,
    /// One object: the row with what is known of the change beside it.
    Flat,
    /// CloudEvents 1.0 in structured mode, with `flat` as data.
    CloudEvents,
    /// CloudEvents 1.0 in binary mode: attributes in headers, `flat` as value.
    #[serde(rename = "cloudevents-binary")]
    CloudEventsBinary,
}

impl From<FormatName> for Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Debezium => Format::default(),
            FormatName::Flat => Format::Flat,
            FormatName::CloudEvents => Format::CloudEvents(Content::Structured),
            FormatName::CloudEventsBinary => Format::CloudEvents(Content::Binary),
        }
    }
}

impl From<Format> for FormatName {
    fn from(format: Format) -> Self {
        match format {
            Format::Debezium(_) => FormatName::Debezium,
            Format::Flat => FormatName::Flat,
            Format::CloudEvents(Content::Structured) => FormatName::CloudEvents,
            Format::CloudEvents(Content::Binary) => FormatName::CloudEventsBinary,
        }
    }
}

/// One record, borrowed from the encoder for the length of a call of `emit`.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The table, to derive topic or file from. Of a logical message: [`TableSchema::message`]; of an event, which says itself where it
    /// goes: [`TableSchema::event`].
    pub schema: &'a Arc<TableSchema>,
    /// The key; `None` for tables without a key and for TRUNCATE.
    pub key: Option<&'a [u8]>,
    /// The value; `None` for a tombstone.
    pub value: Option<&'a [u8]>,
    /// The headers.
    pub headers: Headers<'a>,
    /// What the record says, which for the parts of a key change is not the change's own `op`: `Delete` for the
    /// delete and its tombstone, `Insert` for the create.
    pub op: Op,
}

impl<'a> Record<'a> {
    /// The key as JSON: of an event, which is a text that the application chose, a string.
    #[must_use]
    pub fn json_key(&self) -> Option<Cow<'a, [u8]>> {
        let key = self.key?;
        Some(match self.op {
            Op::Event => Cow::Owned(event::json_of_text(key)),
            _ => Cow::Borrowed(key),
        })
    }

    /// The value as JSON. Of an event, which may be anything: JSON as it is, other text as a string, other bytes as
    /// `{"base64":"…"}`, and nothing as null. `None` for a tombstone, which says nothing that the record before has not said.
    #[must_use]
    pub fn json_value(&self) -> Option<Cow<'a, [u8]>> {
        match (self.value, self.op) {
            (Some(value), Op::Event) => Some(event::json_of(value)),
            (Some(value), _) => Some(Cow::Borrowed(value)),
            (None, Op::Event) => Some(Cow::Borrowed(b"null")),
            (None, _) => None,
        }
    }
}

/// What stands for `{schema}` and `{table}` in names: a logical message is of `pg_logical.message`, an event of `outbox` and where it
/// goes.
#[must_use]
pub fn place(schema: &TableSchema) -> TableId {
    match schema.destination() {
        Some(destination) => TableId::new("outbox", destination),
        None if schema.id.name.is_empty() => TableId::new("pg_logical", "message"),
        None => schema.id.clone(),
    }
}

/// The most headers of our own that a record has.
const MAX_HEADERS: usize = 6;

/// The headers of a record, in order.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a> {
    pairs: [(&'static str, &'a [u8]); MAX_HEADERS],
    len: usize,
    /// An event's own, behind ours.
    more: &'a [(&'a str, &'a [u8])],
}

impl<'a> Headers<'a> {
    fn new(id: &'a [u8], source: &'a [u8], duplicate: bool) -> Self {
        let mut headers = Headers {
            pairs: [("", &[]); MAX_HEADERS],
            len: 0,
            more: &[],
        };
        headers.add(HEADER_ID, id);
        headers.add(HEADER_SOURCE, source);
        if duplicate {
            headers.add(HEADER_DUPLICATE, b"true");
        }
        headers
    }

    /// The value of [`HEADER_ID`].
    fn id(&self) -> &'a [u8] {
        self.pairs[0].1
    }

    fn add(&mut self, name: &'static str, value: &'a [u8]) {
        self.pairs[self.len] = (name, value);
        self.len += 1;
    }

    fn with(mut self, name: &'static str, value: &'a [u8]) -> Self {
        self.add(name, value);
        self
    }

    /// Name and value of each.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + '_ {
        self.pairs[..self.len].iter().chain(self.more).copied()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len + self.more.len()
    }

    /// Never true: the id is always there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

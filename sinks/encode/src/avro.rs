//! Records in Avro's binary encoding, in the wire format of Confluent's schema registry: a zero, the id of the schema (four
//! bytes, big endian), and the value. For keys and values.
//!
//! The envelopes are those of JSON: `debezium` as Debezium has it with Avro, names and types of Kafka Connect among them, and `flat`. A
//! value goes from PostgreSQL's text straight to bytes; how is decided once per schema version.
//!
//! | module | what it knows |
//! |---|---|
//! | `names` | names that Avro allows |
//! | `types` | the Avro type of a column, and how its values are written |
//! | `form` | values to bytes |
//! | `columns` | rows |
//! | `schemas` | the schemas of keys and values, as a registry gets them |
//! | `debezium`, `flat` | the envelopes |
//! | `read` | back to the JSON that the envelope has without Avro |

mod columns;
mod debezium;
mod flat;
mod form;
mod names;
pub mod read;
mod schemas;
#[cfg(test)]
pub(crate) mod tests;
mod types;
mod wire;

use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::batch::Row;
use lockstep_core::position::SourceInfo;
use lockstep_core::schema::TableSchema;

use crate::envelope::Format;
use crate::envelope::encoder::{Context, Event};
use crate::key::check_present;
use columns::Columns;
pub use schemas::{Described, Schemas};
use wire::{header, write_bytes};

/// Where a name had to be made fit: an attribute of the field with what it is in the table.
pub(crate) const ORIGINAL: &str = "lockstep.name";

/// What a registry calls the schemas of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// That of keys; without meaning where there are none.
    pub key: u32,
    /// That of values.
    pub value: u32,
}

/// The keys of a table's records.
#[derive(Debug)]
pub(crate) struct Key {
    header: [u8; wire::HEADER],
    columns: Columns,
}

impl Key {
    /// # Errors
    /// When names clash.
    pub(crate) fn new(format: Format, schema: &Arc<TableSchema>, ids: Ids) -> Result<Self> {
        Ok(Key {
            header: header(ids.key),
            columns: Columns::key(schema, format.mapping())?.0,
        })
    }

    /// Appends the key of `row`; what an update left as it was is to be found in `old`. `Ok(false)` and nothing written when
    /// the table has no key.
    ///
    /// # Errors
    /// Kind `Refused`, naming table and column, when a key value is absent or not what its type can have.
    pub(crate) fn write_or(&self, row: Row<'_>, old: Row<'_>, out: &mut Vec<u8>) -> Result<bool> {
        if self.columns.is_empty() {
            return Ok(false);
        }
        check_present(self.columns.schema(), row, old)?;
        out.extend_from_slice(&self.header);
        self.columns.write(row, Some(old), out)?;
        Ok(true)
    }

    /// Appends the key of a logical message.
    pub(crate) fn write_message(&self, prefix: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.header);
        out.push(wire::PRESENT);
        write_bytes(prefix, out);
    }
}

/// What is fixed of values for one schema version.
#[derive(Debug)]
pub(crate) enum Body {
    Debezium(Box<debezium::Body>),
    Flat(flat::Body),
}

impl Body {
    /// # Errors
    /// When names clash.
    pub(crate) fn new(
        format: Format,
        schema: &Arc<TableSchema>,
        source: &SourceInfo,
        ids: Ids,
    ) -> Result<Self> {
        let header = header(ids.value);
        Ok(match format {
            Format::Debezium(_) => Body::Debezium(Box::new(debezium::Body::new(
                schema,
                format.mapping(),
                source,
                header,
            )?)),
            Format::Flat | Format::CloudEvents(_) => {
                Body::Flat(flat::Body::new(schema, source, header)?)
            }
        })
    }

    pub(crate) fn write(
        &self,
        context: Context<'_>,
        event: Event<'_>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        match self {
            Body::Debezium(body) => body.write(context, event, out),
            Body::Flat(body) => body.write(context, event, out),
        }
    }

    pub(crate) fn write_message(
        &self,
        context: Context<'_>,
        prefix: &[u8],
        content: &[u8],
        out: &mut Vec<u8>,
    ) {
        match self {
            Body::Debezium(body) => body.write_message(context, prefix, content, out),
            Body::Flat(body) => body.write_message(context, prefix, content, out),
        }
    }
}

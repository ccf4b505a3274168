//! Envelopes and formats: from batches to bytes, shared by sinks.
//!
//! Everything is written straight into a `Vec<u8>` through a plan that is built once per schema version ([`plans::Plans`]
//! keeps them): no JSON tree, no allocation per row.
//!
//! - [`row::RowJson`]: a row as JSON in the *natural* mapping, for state sinks.
//! - [`key::key_text`], [`key::KeyJson`]: the key of a row, as text and as JSON.
//! - [`fold::fold`]: the last write per key of a batch, for state sinks.
//! - [`envelope::Encoder`]: whole records (key, value, headers), for queues and files.
//! - [`avro`]: the same records in Avro, with the schemas that a registry gets.

pub mod avro;
mod columns;
pub mod envelope;
mod errors;
pub mod fold;
pub mod key;
pub mod plans;
pub mod row;
#[cfg(test)]
mod testing;
mod value;

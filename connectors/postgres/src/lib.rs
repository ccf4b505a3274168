//! PostgreSQL as a source: its logical replication stream and its tables, as batches.
//!
//! `wire` speaks the protocol, `pgoutput` reads its payloads (pure, no I/O), `catalog` knows types and keys,
//! `publication` and `slot` keep the server's side in order, `snapshot` copies tables, `stream` follows the log, `reload` loads tables again inside it,
//! `assemble` turns messages into batches, `lookout` sees what the stream never says. Everything that is plain SQL goes through `tokio-postgres`.

#[doc(hidden)]
pub mod assemble;
mod catalog;
mod config;
mod copy_out;
mod error;
mod lookout;
pub mod pgoutput;
mod preflight;
mod publication;
mod reload;
mod slot;
mod snapshot;
mod source;
mod sql;
mod state;
mod stream;
mod types;
pub mod wire;

pub use config::{PostgresConfig, SnapshotMode};
pub use source::{PostgresFactory, describe};

//! PostgreSQL as a source: its logical replication stream and its tables, as batches.
//!
//! The room `lockstep-pg` speaks the protocol, `pgoutput` reads its payloads (pure, no I/O), `catalog` knows types and keys,
//! `publication` and `slot` keep the server's side in order, `standing` judges whether the log can be continued,
//! `opening` decides what to do about it, `snapshot` copies tables, `stream` follows the log, `streamed` keeps transactions that are
//! still in progress, `reload` loads tables again
//! inside it, `ledger` records how far all that came, `horizons` knows behind which place of the log a row was written,
//! `fence` knows where the log ends, `query` asks what invariants ask, `assemble` turns messages into batches, `lookout` sees what the stream never says. Everything that is plain SQL goes through `tokio-postgres`.

#[doc(hidden)]
pub mod assemble;
mod catalog;
mod config;
mod copy_out;
mod extent;
mod fence;
mod horizons;
mod ledger;
mod lookout;
mod opening;
pub mod pgoutput;
mod preflight;
mod publication;
mod query;
mod reload;
mod server;
mod slot;
mod snapshot;
mod source;
mod standing;
mod state;
mod stream;
mod streamed;
mod throttle;
mod trail;
mod types;
mod visible;
mod watch;

pub use config::{OnSlotLost, PostgresConfig, SnapshotMode, Streaming};
pub use source::{PostgresFactory, describe};

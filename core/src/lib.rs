//! The words that every room of lockstep shares: positions, schemas, batches, the traits of the stages, errors.
//!
//! No runtime and no drivers live here, and no I/O but that of a [`folder::Folder`] and of a [`sidecar::Sidecar`]. Data flows `Source → Transform → Sink` in [`batch::Batch`]es;
//! durability flows back through [`durable::Durable`] and [`feedback::Feedback`].

pub mod batch;
pub mod check;
pub mod config;
pub mod durable;
pub mod error;
pub mod feedback;
pub mod folder;
pub mod memory;
pub mod metrics;
pub mod position;
pub mod progress;
pub mod query;
pub mod refusal;
pub mod schema;
pub mod sidecar;
pub mod sink;
pub mod source;
pub mod template;
pub mod token;
pub mod trace;
pub mod transform;

pub use error::{Error, ErrorKind, Result};

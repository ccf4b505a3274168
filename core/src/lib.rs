//! The words that every room of lockstep shares: positions, schemas, batches, the traits of the stages, errors.
//!
//! No I/O, no runtime, no drivers live here. Data flows `Source → Transform → Sink` in [`batch::Batch`]es;
//! durability flows back through [`durable::Durable`] and [`feedback::Feedback`].

pub mod batch;
pub mod check;
pub mod config;
pub mod durable;
pub mod error;
pub mod feedback;
pub mod memory;
pub mod metrics;
pub mod position;
pub mod progress;
pub mod query;
pub mod refusal;
pub mod schema;
pub mod sink;
pub mod source;
pub mod template;
pub mod transform;

pub use error::{Error, ErrorKind, Result};

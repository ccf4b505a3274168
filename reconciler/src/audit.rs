//! What is kept of repairs.

use async_trait::async_trait;
use lockstep_core::Result;
use serde::{Deserialize, Serialize};

use crate::report::Drift;

/// Keeps word of repairs.
#[async_trait]
pub trait Audit: Send + Sync {
    /// Keeps these, and returns when they are safe. What is planned is done afterwards.
    ///
    /// # Errors
    /// When they cannot be kept; nothing is mended then.
    async fn record(&self, entries: Vec<Entry>) -> Result<()>;

    /// Where the record ends now.
    ///
    /// # Errors
    /// When it cannot be read.
    async fn end(&self) -> Result<u64>;

    /// What was kept behind such an end: of a process that was killed.
    ///
    /// # Errors
    /// When it cannot be read.
    async fn behind(&self, end: u64) -> Result<Vec<Entry>>;
}

/// Word of one row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Microseconds since the Unix epoch.
    pub at_micros: i64,
    /// Name of the source in the pipeline file.
    pub source: String,
    /// `schema.table`.
    pub table: String,
    /// Name of the sink.
    pub sink: String,
    /// What is about to happen, or has.
    pub stage: Stage,
    /// The row as it should be and as it was.
    #[serde(flatten)]
    pub drift: Drift,
}

/// How far a repair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It is about to be written.
    Planned,
    /// It has been written, and is as it should be.
    Mended,
    /// It was written and differs still, or changed whenever it was read.
    Left,
}

//! What a running pipeline says about itself, for `/api/status` and terminals.

use std::collections::BTreeMap;

use lockstep_core::source::SourceState;
use lockstep_core::transform::StateSize;
use serde::Serialize;

/// The whole pipeline.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its name.
    pub pipeline: String,
    /// Version of lockstep.
    pub version: String,
    /// Seconds since the start.
    pub uptime_seconds: f64,
    /// What [`crate::Handle::ready`] says.
    pub ready: bool,
    /// Why it is not ready.
    pub problems: Vec<String>,
    /// Memory held by batches.
    pub memory: MemoryStatus,
    /// By name.
    pub sources: BTreeMap<String, SourceReport>,
    /// By name.
    pub transforms: BTreeMap<String, TransformReport>,
    /// By name.
    pub sinks: BTreeMap<String, SinkReport>,
    /// Rows put aside since the start.
    pub dead_letters: u64,
}

/// Memory held by batches, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MemoryStatus {
    /// Held now.
    pub used: usize,
    /// May be held.
    pub total: usize,
}

/// One source.
#[derive(Clone, Debug, Serialize)]
pub struct SourceReport {
    /// What it says about itself; positions are numbers.
    #[serde(flatten)]
    pub state: SourceState,
    /// `system/timeline/database`, once it has been open.
    pub identity: Option<String>,
    /// Bytes of the server's log that are not confirmed yet, when the end of the log is known.
    pub lag_bytes: Option<u64>,
    /// Everything up to here is durable in every sink, as `16/B374D848`.
    pub durable: String,
    /// Changes that came in since the start, initial copy included.
    pub changes: u64,
    /// Transactions that came in since the start.
    pub transactions: u64,
}

/// One transform.
#[derive(Clone, Debug, Serialize)]
pub struct TransformReport {
    /// How often rows met an earlier idempotency key since the start.
    pub duplicates: u64,
    /// How much it remembers, where that has a meaning.
    pub size: Option<StateSize>,
    /// What it waits for, when it waits.
    pub problem: Option<String>,
}

/// One sink.
#[derive(Clone, Debug, Serialize)]
pub struct SinkReport {
    /// What it is doing.
    pub state: SinkPhase,
    /// Why it does not run, when it does not.
    pub problem: Option<String>,
    /// By source: everything up to here is durable, as `16/B374D848`.
    pub durable: BTreeMap<String, String>,
    /// Batches that wait for it or are on their way.
    pub in_flight: usize,
    /// Age of the oldest change that is not durable, in seconds; 0 when all is.
    pub lag_seconds: f64,
    /// Records written since the start.
    pub written: u64,
    /// Records that the sink refused because it holds the same or a newer version.
    pub stale: u64,
    /// Of the written ones: rows without a large value that an UPDATE left unchanged and the sink did not hold.
    pub incomplete: u64,
    /// How often it failed and was opened again.
    pub errors: u64,
    /// Rows that it has refused for good and that lie aside now.
    pub dead_letters: u64,
}

/// The phases of a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SinkPhase {
    /// Not open yet.
    Opening,
    /// Writing, or waiting for something to write.
    Running,
    /// Failed, and opened again after a pause.
    Retrying,
    /// Ended.
    Stopped,
}

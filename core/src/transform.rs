//! What happens to batches on their way.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::batch::{Batch, Change, Row};
use crate::check::Finding;
use crate::error::Result;
use crate::schema::TableSchema;

/// One step of a flow. Called with the batches of each source in order; batches of different sources interleave.
///
/// A transform is deterministic in (batch, own state): after a crash the same batches come again and must come out the
/// same.
///
/// Errors whose policy is to retry do not stop the pipeline: the call is made again after a pause, with the same batch,
/// and `/readyz` says why meanwhile. All others stop it.
#[async_trait]
pub trait Transform: Send {
    /// Resolves names against a table's schema. Called at start for every table that reaches the transform, and again
    /// before the first batch that carries a new version of it.
    ///
    /// # Errors
    /// A column that is needed and missing: kind `Config`, with the columns there are.
    fn bind(&mut self, schema: &Arc<TableSchema>) -> Result<()>;

    /// Every table of every source that reaches the transform has been bound. Called once; batches of sources that were
    /// ready earlier may have passed by then.
    ///
    /// # Errors
    /// What can only be said about all tables together, such as columns that none of them has: kind `Config`.
    fn complete(&mut self) -> Result<()> {
        Ok(())
    }

    /// Reaches what the transform needs elsewhere. Called when a source has been opened, before its batches; never by a
    /// check. May be called again, also when everything is there.
    ///
    /// # Errors
    /// By kind, see above.
    async fn ready(&mut self) -> Result<()> {
        Ok(())
    }

    /// How far sinks behind it can be compared with a table: see [`Comparable`].
    fn comparable(&self, _schema: &Arc<TableSchema>) -> Comparable {
        Comparable::Fully
    }

    /// Transforms a batch. Every schema in it has been bound. `through` is kept as it is.
    ///
    /// State that decides what later batches look like is written to the operating system, or acknowledged by the server
    /// that keeps it, before this returns, so that a killed process finds it again.
    ///
    /// A batch with a [`Batch::check`] is about rows that have passed before, and are looked at: what is decided about them is what was,
    /// and nothing of it is remembered.
    ///
    /// The future may be dropped while it waits: nothing of the batch is sent on then, and it comes again, to this process
    /// or to another one.
    ///
    /// # Errors
    /// By kind, see above. Nothing of the batch is sent on or acknowledged.
    async fn apply(&mut self, batch: Arc<Batch>) -> Result<Arc<Batch>>;

    /// Makes the state safe against power loss. Called before positions are confirmed to a source, on a thread that may
    /// wait for the disk.
    ///
    /// # Errors
    /// Stops the pipeline; the position is not confirmed.
    fn persist(&mut self) -> Result<()> {
        Ok(())
    }

    /// The shape `schema` has after this step, to bind what comes behind; `None` when the table does not come out.
    /// A step that decides per row answers with the schema as it would be without the decision.
    fn output(&self, schema: &Arc<TableSchema>) -> Option<Arc<TableSchema>> {
        Some(Arc::clone(schema))
    }

    /// How often rows met an earlier idempotency key since the start; 0 where that has no meaning.
    fn duplicates(&self) -> u64 {
        0
    }

    /// How much it remembers; `None` where that has no meaning, or is not known yet. Never waits.
    fn size(&self) -> Option<StateSize> {
        None
    }
}

/// How much a transform remembers, about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StateSize {
    /// Idempotency keys, with those that are about to be forgotten.
    pub keys: u64,
    /// Rows that are held back, with those that were until lately.
    pub held: u64,
    /// On disk, or in the memory of the server that keeps it. `None` when the server does not tell.
    pub bytes: Option<u64>,
}

/// How far a sink can be compared with a source through a transform, the least first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Comparable {
    /// Not at all: what becomes of a row depends on how it came to be, and not on what it is.
    Not,
    /// Rows that there are: where others would be cannot be told without them.
    Rows,
    /// Rows that there are, and that there are no others.
    #[default]
    Fully,
}

/// Takes rows that leave the flow for a reason. Written before the batch goes on; counted by reason.
pub trait DeadLetters: Send + Sync {
    /// Keeps one row.
    ///
    /// # Errors
    /// Stops the pipeline: a row that can be kept nowhere must not be skipped.
    fn keep(
        &self,
        place: &str,
        reason: &str,
        batch: &Batch,
        change: &Change,
        row: Option<Row<'_>>,
    ) -> Result<()>;
}

/// How transactions of several databases are put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stitching {
    /// Which part of a gid branches share, where that is not the way of a known manager: a regular expression.
    pub gids: Option<String>,
    /// Sources in whose databases nothing is ever prepared: a commit there decides, and says itself what it belongs to.
    pub one_phase: Vec<String>,
    /// Bytes of what waits that are kept in memory; the rest is kept in a file.
    pub memory: usize,
    /// How long a transaction that has committed in one database waits for another one before it goes on with what is prepared there; `None`:
    /// until it has committed there, too.
    pub hold_max: Option<std::time::Duration>,
    /// How long a transaction waits before what has no row in common with those that wait passes by them; `None`: nothing does.
    pub lag_max: Option<std::time::Duration>,
}

/// What a transform is given.
#[derive(Clone)]
pub struct TransformContext {
    /// Name of the pipeline.
    pub pipeline: Arc<str>,
    /// Name in the pipeline file.
    pub name: Arc<str>,
    /// A directory that belongs to this transform and survives restarts.
    pub state: PathBuf,
    /// Where rows go that leave the flow.
    pub dead_letters: Arc<dyn DeadLetters>,
}

/// Builds a transform from its section of the pipeline file.
#[async_trait]
pub trait TransformFactory: Send + Sync + 'static {
    /// `type` in the pipeline file.
    const KIND: &'static str;
    /// The section.
    type Config: DeserializeOwned + JsonSchema + Send + Sync + 'static;

    /// Checks what can be checked without I/O.
    ///
    /// # Errors
    /// Of kind `Config`, naming the field.
    fn validate(config: &Self::Config) -> Result<()>;

    /// Opens its state in the directory it is given. Reaches for nothing else: that is [`Transform::ready`]'s.
    ///
    /// # Errors
    /// Of kind `Storage` when the state cannot be opened.
    fn open(config: &Self::Config, context: TransformContext) -> Result<Box<dyn Transform>>;

    /// How transactions of several databases are put together directly behind the sources that it reads; `None` where it does no
    /// such thing.
    fn stitches(_config: &Self::Config) -> Option<Stitching> {
        None
    }

    /// Whether it remembers changes by their places: one that comes under another place when its transaction commits
    /// ([`crate::batch::Transaction::is_early`]) would be another one to it.
    fn remembers_places() -> bool {
        false
    }

    /// Whether what it must remember is kept on this machine, so that a process on another one cannot go on with it.
    fn keeps_here(_config: &Self::Config) -> bool {
        false
    }

    /// Looks at the servers it needs, and reports. Changes nothing on them. One that cannot be reached is a finding.
    async fn preflight(_config: &Self::Config, _pipeline: &str, _name: &str) -> Vec<Finding> {
        Vec::new()
    }
}

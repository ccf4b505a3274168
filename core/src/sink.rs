//! Where changes go.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::batch::Batch;
use crate::check::Finding;
use crate::durable::Durable;
use crate::error::Result;
use crate::position::{Lsn, SourceInfo};
use crate::progress::Progress;
use crate::schema::TableSchema;
use crate::token::Token;

/// A place that batches are written to.
///
/// **Delivery.** After any error, from `write` or from a [`Durable`], the runtime drops the sink, opens it anew, asks
/// [`Sink::resume`], and writes everything again that was not durable. So a sink needs to be right under one event
/// only: being dropped at any moment and opened again. **Order.** Batches of one source arrive in order; a `Durable`
/// covers its batch and all before it. **Progress.** A sink that keeps its position together with its data gets no
/// change twice (exactly once); one that does not must make a second write of the same change harmless.
#[async_trait]
pub trait Sink: Send {
    /// What of this source the sink can prove it holds: the [`Batch::progress_at`] of the last change that is there. It is not
    /// written again. `None`: cannot tell. Kept by identity, so another system identifier, timeline or database finds none.
    async fn resume(&mut self, source: &SourceInfo) -> Result<Option<Progress>>;

    /// Takes a batch. Pends while there is no room; the write itself goes on behind the returned [`Durable`], on the
    /// sink's own clock, whether or not `flush` is called. Dropping the future leaves the batch taken or not taken;
    /// the runtime then re-opens the sink.
    ///
    /// # Errors
    /// By kind: retried kinds re-open the sink, the others stop the pipeline. A record that the other side will never take
    /// is of kind `Refused` and names its change ([`crate::Error::about`]); one error should name all that are known. The
    /// runtime puts these changes aside and writes the rest to a sink opened anew.
    async fn write(&mut self, batch: Arc<Batch>) -> Result<Durable>;

    /// Takes batches that belong together: the branches of a transaction of several databases. Else as [`Sink::write`], with a
    /// `Durable` for each.
    ///
    /// A sink that can makes them durable, and visible to whoever reads only what is committed, in one step (I6). This
    /// default writes one after the other: a reader in between, or after a crash until the pipeline goes on, finds the first without
    /// the others.
    ///
    /// # Errors
    /// As for [`Sink::write`].
    async fn write_together(&mut self, batches: Vec<Arc<Batch>>) -> Result<Vec<Durable>> {
        let mut durable = Vec::with_capacity(batches.len());
        for batch in batches {
            durable.push(self.write(batch).await?);
        }
        Ok(durable)
    }

    /// Hurries: everything taken becomes durable as soon as possible. Called when the pipeline drains.
    async fn flush(&mut self) -> Result<()>;

    /// Ends in order; everything taken has been made durable or reported.
    async fn close(self: Box<Self>) -> Result<()>;
}

/// What a sink is given.
#[derive(Clone, Debug)]
pub struct SinkContext {
    /// Name of the pipeline.
    pub pipeline: Arc<str>,
    /// Name of the sink in the pipeline file.
    pub name: Arc<str>,
    /// A directory that belongs to this sink and survives restarts.
    pub state: PathBuf,
    /// The sources that reach it.
    pub sources: Vec<Arc<SourceInfo>>,
    /// The tables that reach it, as they are now: to create what they need.
    pub tables: Vec<Arc<TableSchema>>,
    /// Where the sink says what it waits for.
    pub trouble: Trouble,
    /// Where a lease decides who runs the pipeline: goes along with what is written, so that the other side can refuse whoever
    /// has an older one.
    pub token: Option<Token>,
}

/// What a sink that works, and has not failed, waits for: a broker that does not answer, a cluster that asks for patience.
/// Shown by `/readyz` and `/api/status` while batches are under way, long before the sink gives up. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    /// What stands in the way now, as a sentence without a full stop.
    pub fn report(&self, what: impl Into<String>) {
        *self.lock() = Some(what.into());
    }

    /// The other side has answered.
    pub fn clear(&self) {
        *self.lock() = None;
    }

    /// What was reported last, unless it was cleared.
    #[must_use]
    pub fn get(&self) -> Option<String> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Builds a sink from its section of the pipeline file.
#[async_trait]
pub trait SinkFactory: Send + Sync + 'static {
    /// `type` in the pipeline file.
    const KIND: &'static str;
    /// The section.
    type Config: DeserializeOwned + JsonSchema + Send + Sync + 'static;

    /// Checks what can be checked without I/O. Default: the types of the fields say it all.
    ///
    /// # Errors
    /// Of kind `Config`, naming the field.
    fn validate(_config: &Self::Config) -> Result<()> {
        Ok(())
    }

    /// Connects, and fences an earlier holder where the sink can.
    ///
    /// # Errors
    /// By kind, as for [`Sink::write`].
    async fn open(config: &Self::Config, context: SinkContext) -> Result<Box<dyn Sink>>;

    /// Looks at the other side and reports. Changes nothing on it. One that cannot be reached is a finding.
    async fn preflight(config: &Self::Config, pipeline: &str, name: &str) -> Vec<Finding>;

    /// Whether it holds one record per key, the latest, and refuses older versions of it: a cache, an index. A queue holds
    /// every change.
    #[must_use]
    fn keeps_rows() -> bool {
        false
    }

    /// Whether the position that [`Sink::resume`] tells covers all that was confirmed before, so that a lower one shows that
    /// the other side has lost something. Not where positions are written a while after what they cover.
    #[must_use]
    fn resumes_exactly() -> bool {
        true
    }

    /// Whether the position that [`Sink::resume`] tells is kept in one step with the data, so that nothing is there twice.
    #[must_use]
    fn is_exact(_config: &Self::Config) -> bool {
        true
    }

    /// Whether what it writes is kept on this machine, so that a process on another one cannot go on with it.
    #[must_use]
    fn keeps_here() -> bool {
        false
    }

    /// What it would make of a table: whether the table can be written at all, and what of it would be left out. No I/O.
    fn suits(_config: &Self::Config, _table: &TableSchema) -> Vec<Finding> {
        Vec::new()
    }

    /// What the other side would say to tables as they are now, where it has a word in it: whether a registry would take their
    /// schemas. Changes nothing there. One that cannot be reached is a finding of [`SinkFactory::preflight`].
    async fn accepts(_config: &Self::Config, _tables: &[Arc<TableSchema>]) -> Vec<Finding> {
        Vec::new()
    }

    /// Opens the sink for reading back what it holds; `None` when it cannot be read by key.
    ///
    /// # Errors
    /// When the other side cannot be reached.
    async fn inspect(
        _config: &Self::Config,
        _context: SinkContext,
    ) -> Result<Option<Box<dyn Inspect>>> {
        Ok(None)
    }
}

/// Reads a sink back, to compare it with a source.
#[async_trait]
pub trait Inspect: Send {
    /// Gets ready to compare rows of a table, as the sink is written to: what takes long is done here, and what changes meanwhile
    /// is caught up with when rows are compared, while nothing is written.
    ///
    /// # Errors
    /// When rows of the table cannot be compared.
    async fn prepare(&mut self, _table: &Arc<TableSchema>) -> Result<()> {
        Ok(())
    }

    /// Compares the rows of `batch` with what the sink holds under their keys, through the same encoding that writes use:
    /// an [`crate::batch::Op::Read`] must be there and equal, an [`crate::batch::Op::Delete`] must not be there. One answer
    /// per change, in order.
    async fn compare(&mut self, batch: &Batch) -> Result<Vec<Held>>;

    /// Rows of a table that the sink holds, tombstones not counted.
    async fn count(&mut self, table: &TableSchema) -> Result<u64>;

    /// Lists the keys of the rows of a table that the sink holds; `None` where it cannot.
    async fn list(&mut self, _table: &Arc<TableSchema>) -> Result<Option<Box<dyn Listing>>> {
        Ok(None)
    }
}

/// A walk over the keys of a table's rows in a sink.
#[async_trait]
pub trait Listing: Send {
    /// The next page, which may be empty; `None` at the end. Keys that are there from beginning to end come at least once.
    ///
    /// # Errors
    /// When the other side cannot be read; the walk has ended then.
    async fn next(&mut self) -> Result<Option<Keys>>;
}

/// A page of the keys that a sink holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// Of each row the values of its key, in key order, as PostgreSQL writes them.
    pub keys: Vec<Vec<String>>,
    /// Keys in the sink that cannot be the key of a row of the table.
    pub foreign: Vec<String>,
}

/// How a sink's copy of a row stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// Equal.
    Same,
    /// Not there.
    Missing {
        /// The key in the sink.
        key: String,
    },
    /// There, and not equal.
    Different {
        /// The key in the sink.
        key: String,
        /// What should be there.
        expected: String,
        /// What is there.
        actual: String,
        /// The version under which it is there.
        version: HeldVersion,
    },
    /// The sink would refuse the row as it is: there is nothing to compare.
    Refused {
        /// Why.
        message: String,
    },
    /// There, and should not be.
    Extra {
        /// The key in the sink.
        key: String,
        /// What is there.
        actual: String,
    },
}

/// The version under which a sink holds a row: what it compares with when it decides whether a write is too old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeldVersion {
    /// The sink keeps none, it is gone, or lockstep did not write it.
    #[default]
    Unknown,
    /// Of a log that was given up for the one that is read now: older than all that the one of now has.
    EarlierLog,
    /// The row as of this place of the log that is read now: the commit of the transaction that changed it, or the place where
    /// it was read.
    At(Lsn),
}

//! Compares what sinks hold with what their source says should be there, and reports only what is proven.
//!
//! The comparison rides on the stream. A chunk of rows is read under a snapshot and put behind a fence in the log, as rows
//! that are loaded again are ([`lockstep_core::source::Checks`]): at that place of the stream every row in it stands as it was
//! read. It goes through the pipeline's own transforms, and each lane compares it with its sink when all before it is durable
//! and nothing behind it has been written. So a difference is one, whatever is being written meanwhile; there is nothing to
//! wait out. Rows that changed between the snapshot and the fence are left out, and asked for again.
//!
//! [`Pass`] goes over one table; [`report`] is what it says.

pub mod audit;
mod bookmark;
pub mod invariants;
mod pass;
pub mod report;
mod row;
mod seen;

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use lockstep_core::Result;
use lockstep_core::error::Error;
use lockstep_core::sink::{Held, Listing};
use lockstep_core::source::{CheckRows, Checked};

pub use audit::Audit;
pub use bookmark::Bookmark;
pub use pass::Pass;
pub use report::{Difference, Drift, SinkReport, State, TableReport};

/// What a pass reaches: a source and its sinks, through a running pipeline.
#[async_trait]
pub trait Ends: Send + Sync {
    /// The sinks that rows of the table reach, by name.
    fn sinks(&self) -> Vec<Arc<str>>;

    /// Sends rows of the table to be compared with these sinks. Others may be sent before the sinks have answered.
    ///
    /// # Errors
    /// See [`lockstep_core::source::Checks::check`].
    async fn send<'a>(&'a self, rows: CheckRows, sinks: &[Arc<str>]) -> Result<Sent<'a>>;

    /// Sends rows of the table to be compared with these sinks, and waits for all of them.
    ///
    /// # Errors
    /// As for [`Ends::send`], and when the stream was interrupted before all sinks had answered.
    async fn check(&self, rows: CheckRows, sinks: &[Arc<str>]) -> Result<Compared> {
        let Sent { checked, answers } = self.send(rows, sinks).await?;
        let answers = answers.await?;
        Ok(Compared { checked, answers })
    }

    /// Writes rows of the table into one sink as they are, or takes them out of it where there are none, at a place of the stream
    /// where nothing newer of them has passed; then compares them once more.
    ///
    /// # Errors
    /// As for [`Ends::check`].
    async fn repair(&self, keys: Vec<Vec<String>>, sink: &Arc<str>) -> Result<Compared>;

    /// Lists the keys of the rows of the table that a sink holds, by each table that it has for them; none where it cannot.
    ///
    /// # Errors
    /// When the sink cannot be reached.
    async fn list(&self, sink: &str) -> Result<Vec<Box<dyn Listing>>>;
}

/// What was sent to be compared, and what sinks will say.
pub struct Sent<'a> {
    /// What was sent.
    pub checked: Checked,
    /// See [`Compared::answers`]. When it is dropped, nobody waits for them any more.
    pub answers: BoxFuture<'a, Result<Vec<Answer>>>,
}

/// What was sent to be compared, and what each sink said.
#[derive(Debug)]
pub struct Compared {
    /// What was sent.
    pub checked: Checked,
    /// Of each sink; of none when nothing was sent.
    pub answers: Vec<Answer>,
}

/// What a sink said.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its name in the pipeline file.
    pub sink: Arc<str>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a comparison with a sink.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It was compared.
    Compared {
        /// Rows that reached the sink.
        rows: u64,
        /// Those that differ.
        different: Vec<Verdict>,
    },
    /// The sink cannot be read by key.
    Unreadable,
    /// It could not be compared.
    Failed(Error),
}

/// A row that differs.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Which of the rows that were sent, from 1.
    pub ordinal: u64,
    /// How the sink's copy stands.
    pub held: Held,
    /// A dead letter of the row lies aside: it is known to differ.
    pub aside: bool,
}

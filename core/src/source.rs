//! Where changes come from.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::batch::{Batch, Prepared};
use crate::check::Finding;
use crate::error::Result;
use crate::feedback::Feedback;
use crate::folder::Folder;
use crate::memory::Budget;
use crate::position::{Lsn, SourceInfo};
use crate::query::Queries;
use crate::schema::TableSchema;
use crate::token::Token;

/// A stream of batches.
///
/// **Order.** The batches of an initial copy come first, then the stream in commit order. **Delivery.** Everything not
/// confirmed through [`SourceContext::feedback`] comes again after a restart, with the same positions (at least once).
/// A source never confirms to its server what the feedback does not cover (I1). **Liveness.** The link to the server
/// is kept alive by the source itself, whether or not `next` is called.
#[async_trait]
pub trait Source: Send {
    /// Whose log this is.
    fn info(&self) -> Arc<SourceInfo>;

    /// The tables that will be sent, as they are now.
    fn tables(&self) -> Vec<Arc<TableSchema>>;

    /// The next batch; `None` after [`Source::close`] or at the end of a bounded source. Cancel-safe.
    ///
    /// # Errors
    /// By kind: `Unavailable` and `Busy` ask for a re-open, the others stop the pipeline.
    async fn next(&mut self) -> Result<Option<Batch>>;

    /// Sends the last confirmed position to the server and says goodbye.
    async fn close(&mut self) -> Result<()>;

    /// Loads tables again while it streams; `None` where the source cannot.
    fn reloads(&self) -> Option<Arc<dyn Reloads>> {
        None
    }

    /// Reads rows to compare sinks with while it streams; `None` where the source cannot.
    fn checks(&self) -> Option<Arc<dyn Checks>> {
        None
    }

    /// Tells where its log ends; `None` where the source cannot.
    fn fences(&self) -> Option<Arc<dyn Fences>> {
        None
    }
}

/// Tells where the log of a source ends, for those who have to know what had been written by a moment.
#[async_trait]
pub trait Fences: Send + Sync {
    /// A place of the log behind everything that was durable on the server when this was called. The source hurries to come
    /// there: a batch whose [`Batch::through`] has reached it follows within milliseconds of the server's having sent what is before,
    /// unless a transaction lies across it.
    ///
    /// # Errors
    /// When the server cannot be asked. It may be asked again.
    async fn fence(&self) -> Result<Lsn>;

    /// Asks for the changes of a branch that is prepared, if the server lists it still. They come soon, as a transaction that
    /// [is early](crate::batch::Transaction::is_early), and behind them [`crate::batch::Branch::Early`]; nothing comes when the branch has ended
    /// before, nor when the stream is interrupted. When they are asked for again, they may come again. False when they do not come.
    ///
    /// # Errors
    /// When the server cannot be asked. It may be asked again.
    async fn early(&self, _prepared: &Arc<Prepared>) -> Result<bool> {
        Ok(false)
    }
}

/// Reads rows to compare sinks with, while the stream goes on.
///
/// Rows come in the phase [`crate::batch::Phase::Check`], at a place of the stream where each stands as it was read: all that had
/// been committed of it has passed, and nothing that was committed later. Rows for which that cannot be said are left out and told.
#[async_trait]
pub trait Checks: Send + Sync {
    /// Sends rows, and returns when they have been handed on, or there is nothing to hand on. One after the other. When the
    /// future is dropped, they may be sent all the same.
    ///
    /// # Errors
    /// Of kind `Invalid` when there is no such table, `Setup` when it has no key; the server's; `Unavailable` when the stream was
    /// interrupted: the rows may or may not have been sent.
    async fn check(&self, request: CheckRequest) -> Result<Checked>;
}

/// What is to be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckRequest {
    /// What the batch gets for [`crate::batch::Batch::check`].
    pub number: u64,
    /// What becomes of the rows.
    pub purpose: Purpose,
    /// `schema.table`.
    pub table: String,
    /// Which rows of it.
    pub rows: CheckRows,
    /// A condition in SQL that rows must meet; all rows without. Not for keys.
    pub condition: Option<String>,
    /// Only some of the rows; all without. Not for keys.
    pub sample: Option<Sample>,
}

/// Some of the rows of a table, chosen by their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// How many of a million, about.
    pub per_million: u32,
    /// Which of them: the same seed chooses the same.
    pub seed: u64,
}

/// What becomes of rows that are read for a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// They are compared.
    Compare,
    /// They are written where they differ, as rows that are loaded again are: in the phase [`crate::batch::Phase::Snapshot`], at
    /// a place of the stream where nothing newer of them has passed, so that a later change wins.
    Repair,
}

/// Which rows are to be compared. Keys are the values of the key columns, in key order, as PostgreSQL writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckRows {
    /// The next ones in the order of the key, behind this one or from the first.
    Behind(Option<Vec<String>>),
    /// Those with these keys: as they are, or that they are not.
    Keys(Vec<Vec<String>>),
    /// Of these keys those that no row has: that they are not.
    Absent(Vec<Vec<String>>),
}

/// What a check has sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Keys of the rows in the batch, by ordinal from 1. No batch is sent when there are none.
    pub keys: Vec<Vec<String>>,
    /// Of each of `keys`, a place of the log behind which its row was written last; none where that is not known, and where
    /// there is no row. Empty unless [`CheckRows::Keys`] were to be compared.
    pub changed_after: Vec<Option<Lsn>>,
    /// The place of the log where they stand.
    pub fence: Lsn,
    /// Keys of rows that changed while they were read.
    pub unsteady: Vec<Vec<String>>,
    /// The key of the last row that was read, by order of the key, where there were more behind it.
    pub next: Option<Vec<String>>,
}

/// Loads tables again, one after the other, while the stream goes on. Rows come as [`crate::batch::Op::Read`] in the phase
/// `Snapshot`, at a place of the stream where nothing newer of them has passed: a later change wins, a stale row never
/// overwrites a newer one. A request survives a restart of the process, and goes on where it was.
pub trait Reloads: Send + Sync {
    /// Takes a request and returns its number.
    ///
    /// # Errors
    /// Of kind `Invalid` when there is no such table, it has no key, or as much waits already.
    fn request(&self, request: ReloadRequest) -> Result<u64>;

    /// The requests that wait or are under way, and the last ones that ended.
    fn list(&self) -> Vec<Reload>;
}

/// What is to be loaded.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReloadRequest {
    /// `schema.table`.
    pub table: String,
    /// A condition in SQL that rows must meet; all rows without.
    #[serde(rename = "where", default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Whether the table is emptied in every sink first, so that rows go which the source does not have any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncate: bool,
}

/// A request, and how it stands.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Reload {
    /// Its number, counted per source.
    pub id: u64,
    /// What was asked for.
    #[serde(flatten)]
    pub request: ReloadRequest,
    /// How it stands.
    pub state: ReloadState,
    /// Rows handed on so far, this run's and earlier ones'.
    pub rows: u64,
    /// Rows left out since the stream had something newer of them.
    pub superseded: u64,
    /// Why it failed.
    pub problem: Option<String>,
}

/// How a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReloadState {
    /// Others are before it.
    Waiting,
    /// Rows are being read.
    Running,
    /// All rows are durable in every sink.
    Done,
    /// Given up; see the problem.
    Failed,
}

/// What a source is given.
#[derive(Clone, Debug)]
pub struct SourceContext {
    /// Name of the pipeline.
    pub pipeline: Arc<str>,
    /// Name of the source in the pipeline file.
    pub name: Arc<str>,
    /// A directory that belongs to this source and survives restarts.
    pub state: Folder,
    /// Where a lease decides who runs the pipeline: whoever else still reads from the server for it has lost that right.
    pub token: Option<Token>,
    /// Positions confirmed by every sink.
    pub feedback: Feedback,
    /// Memory to hold batches in.
    pub budget: Budget,
    /// Where the source says what it is doing.
    pub status: SourceStatus,
}

/// Builds a source from its section of the pipeline file.
#[async_trait]
pub trait SourceFactory: Send + Sync + 'static {
    /// `type` in the pipeline file.
    const KIND: &'static str;
    /// The section.
    type Config: DeserializeOwned + JsonSchema + Send + Sync + 'static;

    /// Checks what can be checked without I/O.
    ///
    /// # Errors
    /// Of kind `Config`, naming the field.
    fn validate(config: &Self::Config) -> Result<()>;

    /// Connects and finds the resume point; nothing is sent before `next`.
    ///
    /// # Errors
    /// By kind, as for [`Source::next`].
    async fn open(config: &Self::Config, context: SourceContext) -> Result<Box<dyn Source>>;

    /// Looks at the server and reports, also on what the source remembers in `state`, which may not exist. Changes
    /// nothing. A server that cannot be reached is a finding.
    async fn preflight(
        config: &Self::Config,
        pipeline: &str,
        name: &str,
        state: &Path,
    ) -> Vec<Finding>;

    /// The tables that would be sent, as they are now, to check what lies behind the source. Changes nothing on the
    /// server. `None`: only an open source can tell.
    ///
    /// # Errors
    /// When the server cannot be asked, or has not what the section names.
    async fn tables(_config: &Self::Config, _name: &str) -> Result<Option<Vec<Arc<TableSchema>>>> {
        Ok(None)
    }

    /// Asks the database itself, whether or not a source is open on it; `None` where there is no database to ask.
    ///
    /// # Errors
    /// Of kind `Config`, when the section does not say where it is.
    fn queries(_config: &Self::Config) -> Result<Option<Arc<dyn Queries>>> {
        Ok(None)
    }

    /// Whether it tells of transactions when they are prepared ([`crate::batch::Branch`]), and what their coordinator calls them.
    #[must_use]
    fn tells_of_branches(_config: &Self::Config) -> bool {
        false
    }
}

/// What a source is doing, for `/api/status`, `/readyz`, metrics and terminals. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SourceStatus(Arc<std::sync::Mutex<SourceState>>);

/// See [`SourceStatus`].
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct SourceState {
    /// `connecting`, `waiting`, `snapshot`, `streaming`, `stopped`.
    pub phase: SourcePhase,
    /// Why it waits, when it does.
    pub problem: Option<String>,
    /// Highest LSN received.
    pub received: u64,
    /// Confirmed to the server.
    pub confirmed: u64,
    /// Current end of the server's log, when known.
    pub server: u64,
    /// Bytes of log the slot keeps on the server, when known.
    pub retained_bytes: Option<u64>,
    /// Whether transactions in progress are received, where that was asked for: not any more, once it did not work.
    pub receives_in_progress: Option<bool>,
    /// Transactions that have come in part and not ended yet.
    pub in_progress: u64,
    /// Bytes of them, and of those that are prepared, that are kept, mostly on disk.
    pub in_progress_bytes: u64,
    /// Transactions that are prepared, and of which nobody has said yet what becomes of them, where the source decodes these.
    pub in_doubt: Option<u64>,
    /// When the first of them was prepared, milliseconds since the Unix epoch.
    pub in_doubt_since_ms: Option<u64>,
    /// Where in the log that was: nothing behind it is confirmed.
    pub in_doubt_from: Option<u64>,
    /// Bytes of log that may still be written before the server gives the slot up, when there is such a limit.
    pub safe_bytes: Option<u64>,
    /// What somebody should look at soon, although everything works.
    pub warning: Option<String>,
    /// Milliseconds since the Unix epoch of the last word from the server.
    pub heard_ms: u64,
    /// The same by a clock that nobody sets.
    #[serde(skip)]
    pub heard: Option<Instant>,
    /// Progress of the initial copy, by table.
    pub snapshot: Vec<TableProgress>,
    /// What has happened to tables on the server that the stream does not say, or that a person has to decide.
    pub notices: Vec<Notice>,
}

/// See [`SourceState::notices`].
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Notice {
    /// What it is about: `table public.orders`, `publication lockstep`.
    pub subject: String,
    /// What has happened, as a sentence without subject and full stop.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
    /// Changes that were asked for do not come, or will not: the source is not ready while this is so.
    pub gap: bool,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.subject, self.what, self.remedy)
    }
}

impl SourceState {
    /// The server has said something.
    pub fn heard_now(&mut self) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        self.heard_ms = since.map_or(0, |since| since.as_millis() as u64);
        self.heard = Some(Instant::now());
    }
}

/// The phases of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SourcePhase {
    /// Not connected yet.
    #[default]
    Connecting,
    /// Cannot go on at the moment; see the problem.
    Waiting,
    /// Copying tables.
    Snapshot,
    /// Streaming.
    Streaming,
    /// Ended.
    Stopped,
}

/// Progress of the initial copy of one table.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct TableProgress {
    /// `schema.table`.
    pub table: String,
    /// Rows read.
    pub rows: u64,
    /// Rows expected, from the planner's statistics; 0 when there are none.
    pub estimated_rows: u64,
    /// Whether all rows were read.
    pub done: bool,
}

impl SourceStatus {
    /// A copy of the state.
    #[must_use]
    pub fn get(&self) -> SourceState {
        self.0.lock().map(|state| state.clone()).unwrap_or_default()
    }

    /// Changes the state.
    pub fn update(&self, change: impl FnOnce(&mut SourceState)) {
        if let Ok(mut state) = self.0.lock() {
            change(&mut state);
        }
    }

    /// The server has said something.
    pub fn heard(&self) {
        self.update(SourceState::heard_now);
    }
}

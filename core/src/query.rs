//! What a database says of itself: rows of a query under a snapshot, and the transactions that are in progress meanwhile.

use std::time::Duration;

use async_trait::async_trait;

use crate::error::Result;

/// A row as texts, NULL as `None`. Columns of the key come first, in the order of the key.
pub type Row = Vec<Option<String>>;

/// Asks the database of a source. Changes nothing in it, but by [`Queries::finish`].
#[async_trait]
pub trait Queries: Send + Sync {
    /// The columns that a query yields, without running it.
    ///
    /// # Errors
    /// Of kind `Config` when it is not one query without parameters, or two columns have one name; the server's.
    async fn describe(&self, query: &str) -> Result<Vec<QueryColumn>>;

    /// Begins a session. A statement of it that takes longer than `timeout` fails.
    ///
    /// # Errors
    /// When the server cannot be reached, or is not the one that changes are made on.
    async fn open(&self, timeout: Duration) -> Result<Box<dyn QuerySession>>;

    /// The transactions of the database that are prepared, and neither committed nor rolled back, the oldest first.
    ///
    /// # Errors
    /// The server's.
    async fn in_doubt(&self) -> Result<Vec<InDoubt>>;

    /// Commits a transaction that is prepared, or rolls it back. One of the same name and another number is another one, and left
    /// alone. Not cancel-safe: dropped, it may have been done.
    ///
    /// # Errors
    /// The server's; `Permission` says who may. After `Unavailable` it may have been done.
    async fn finish(&self, one: &InDoubt, ending: Ending) -> Result<Finish>;

    /// How a transaction of the server has ended, by its number; of several that had it, the last.
    ///
    /// # Errors
    /// The server's.
    async fn xact_status(&self, xid: u32) -> Result<XactStatus>;
}

/// One transaction that only reads, in the order of these methods. It ends when it is dropped.
#[async_trait]
pub trait QuerySession: Send {
    /// Takes the snapshot that everything below is read under.
    ///
    /// # Errors
    /// The server's.
    async fn freeze(&mut self) -> Result<Snapshot>;

    /// The transactions that are in progress in the database now, whatever the snapshot says; prepared ones are.
    ///
    /// # Errors
    /// The server's.
    async fn in_progress(&mut self) -> Result<Vec<InProgress>>;

    /// Begins to read, and gives the columns of the rows to come.
    ///
    /// # Errors
    /// As for [`Queries::describe`], and of kind `Config` when a column of the key is missing.
    async fn begin(&mut self, question: &Question<'_>) -> Result<Vec<QueryColumn>>;

    /// The next rows, in the order of the bytes of their keys; none at the end.
    ///
    /// # Errors
    /// The server's.
    async fn next(&mut self) -> Result<Vec<Row>>;
}

/// What is to be read.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// A query.
    pub query: &'a str,
    /// The columns of it that rows are ordered by.
    pub key: &'a [String],
    /// Rows of these keys are enough, by column of the key; others may come with them.
    pub only: Option<&'a [Vec<String>]>,
}

/// A column of what a query yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryColumn {
    /// Its name.
    pub name: String,
    /// Its type, for people.
    pub kind: String,
    /// Its values are exact numbers: they can be added, and have one text each.
    pub exact: bool,
}

/// Which transactions a snapshot sees the end of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All before this one have ended.
    pub xmin: u64,
    /// None from this one on had begun.
    pub xmax: u64,
    /// Those between that have not ended.
    pub running: Vec<u64>,
}

impl Snapshot {
    /// Whether the transaction has ended: what it wrote is seen, or gone for good.
    #[must_use]
    pub fn has_ended(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && !self.running.contains(&xid))
    }
}

/// A transaction that is prepared, and neither committed nor rolled back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InDoubt {
    /// What its coordinator calls it.
    pub gid: String,
    /// Its number, in the 32 bits that the server tells.
    pub xid: u32,
    /// When it was prepared, microseconds since the Unix epoch.
    pub prepared_micros: i64,
    /// Who may commit it, or roll it back, besides superusers.
    pub owner: String,
}

/// How a prepared transaction is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// COMMIT PREPARED.
    Commit,
    /// ROLLBACK PREPARED.
    RollBack,
}

/// What came of ending a prepared transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// It has ended so.
    Done,
    /// It was not prepared any more.
    Gone,
}

/// How a transaction has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XactStatus {
    /// It committed.
    Committed,
    /// It was rolled back.
    RolledBack,
    /// It has not ended.
    InProgress,
    /// The server has forgotten, or never knew.
    Unknown,
}

/// A transaction in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InProgress {
    /// Its number.
    pub xid: u64,
    /// Its name, of one that is prepared.
    pub gid: Option<String>,
    /// When it was prepared, microseconds since the Unix epoch.
    pub prepared_micros: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_knows_what_has_ended() {
        let snapshot = Snapshot {
            xmin: 10,
            xmax: 20,
            running: vec![12, 15],
        };
        for (xid, ended) in [(9, true), (11, true), (12, false), (19, true), (20, false)] {
            assert_eq!(snapshot.has_ended(xid), ended, "{xid}");
        }
    }
}

//! What a source remembers between runs, besides the slot itself: whether its tables have been copied, and how far
//! which log has been read.

use std::collections::BTreeMap;
use std::path::Path;

use lockstep_core::batch::Transaction;
use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_core::folder::Folder;
use lockstep_core::position::{Lsn, SourceIdentity};
use serde::{Deserialize, Serialize};

use crate::trail;

/// The state file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Whose log, as the sinks know it.
    pub identity: SourceIdentity,
    /// Slot.
    pub slot: String,
    /// How far the initial copy is.
    pub copy: Copied,
    /// The tables that have been followed: those that come later are loaded. `None` where an older version wrote the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables: Option<Known>,
    /// How far the log has been read; `None` where an older version wrote the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<Reached>,
    /// Whether the last stream received transactions when they were prepared. On record before the stream begins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub two_phase: bool,
}

/// Tables by `schema.table`, with their oids; negative for those that are not followed any more.
pub type Known = BTreeMap<String, i64>;

/// How far a log has been read. A crash leaves the file up to a second old, which is why what the server is told is on record
/// before: a slot that stands further was not moved by us; and why [`trail`] tells what was handed on since.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reached {
    /// The timeline the server was on.
    pub timeline: u32,
    /// Confirmed by every sink.
    pub confirmed: Lsn,
    /// What the server has been told at most, where that is less: something that is prepared holds it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<Lsn>,
    /// Received from the server: any sink may hold it.
    pub received: Lsn,
    /// The last transaction that was received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Witness>,
}

impl Reached {
    /// The least log that a server must share with the one that was read.
    pub fn least(&self) -> Lsn {
        self.confirmed.max(self.received)
    }

    /// What the server has been told at most.
    pub fn told(&self) -> Lsn {
        self.told.unwrap_or(self.confirmed)
    }
}

/// A transaction that any server with the same log sends in the same way, when the slot stands before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// LSN of its commit record.
    pub commit: Lsn,
    /// Its number.
    pub xid: u32,
    /// When it was committed, microseconds since the Unix epoch.
    pub micros: i64,
    /// What it was sent for: another publication may leave it out.
    pub publication: String,
}

impl Witness {
    /// A transaction, and what it was sent for.
    pub fn of(transaction: &Transaction, publication: &str) -> Self {
        Witness {
            commit: transaction.commit,
            xid: transaction.xid,
            micros: transaction.commit_micros,
            publication: publication.to_owned(),
        }
    }
}

/// How far the initial copy is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Copied {
    /// Begun, and not yet durable in every sink: it is done again.
    Running,
    /// Durable in every sink, or never wanted; the stream goes on from the slot.
    Done {
        /// Where the stream began.
        from: Lsn,
    },
    /// Done once, but the log that was to be continued from there turned out to be gone, or another one.
    Lost {
        /// How that was seen.
        cause: String,
    },
}

/// The state file's name.
const NAME: &str = "source.json";

/// The state file of a source.
#[derive(Clone, Debug)]
pub struct StateFile(Folder);

impl StateFile {
    /// The file inside the source's state directory.
    pub fn new(directory: &Folder) -> Self {
        StateFile(directory.clone())
    }

    /// Where it lies: the source's state directory.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// Reads it, with what was handed on since it was written; `None` when there is none.
    ///
    /// # Errors
    /// Of kind `Storage` when it cannot be read or is damaged: starting over silently is not an option.
    pub fn read(&self) -> Result<Option<State>> {
        let read = self.read_alone()?;
        Ok(read.map(|state| trail::follow(self.directory(), state)))
    }

    fn read_alone(&self) -> Result<Option<State>> {
        let read = self.0.read(NAME).map_err(|error| {
            self.error("cannot be read")
                .source(error)
                .remedy("check the directory of `[state]`: space, rights")
        })?;
        let parse = |bytes: Vec<u8>| {
            serde_json::from_slice(&bytes).map_err(|error| {
                self.error("is damaged").source(error).remedy(
                    "remove it to copy the tables again; the slot keeps the changes since then",
                )
            })
        };
        read.map(parse).transpose()
    }

    /// Writes it, whole or not at all, and safe against power loss.
    ///
    /// # Errors
    /// As for [`Folder::replace`].
    pub fn write(&self, state: &State) -> Result<()> {
        self.0.replace(NAME, state)
    }

    fn error(&self, what: &str) -> Error {
        let path = self.0.join(NAME);
        Error::new(
            ErrorKind::Storage,
            format!("the state file {} {what}", path.display()),
        )
    }
}

//! What a source remembers between runs, besides the slot itself: whether its tables have been copied.

use std::io::Write;
use std::path::{Path, PathBuf};

use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_core::position::{Lsn, SourceIdentity};
use serde::{Deserialize, Serialize};

/// The state file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Whose log.
    pub identity: SourceIdentity,
    /// Slot.
    pub slot: String,
    /// How far the initial copy is.
    pub copy: Copied,
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
}

/// The state file of a source.
#[derive(Clone, Debug)]
pub struct StateFile(PathBuf);

impl StateFile {
    /// The file inside the source's state directory.
    pub fn new(directory: &Path) -> Self {
        StateFile(directory.join("source.json"))
    }

    /// Reads it; `None` when there is none.
    ///
    /// # Errors
    /// Of kind `Storage` when it cannot be read or is damaged: starting over silently is not an option.
    pub fn read(&self) -> Result<Option<State>> {
        match std::fs::read(&self.0) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                self.error("is damaged").source(error).remedy(
                    "remove it to copy the tables again; the slot keeps the changes since then",
                )
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error("cannot be read").source(error)),
        }
    }

    /// Writes it, whole or not at all, and safe against power loss.
    ///
    /// # Errors
    /// Of kind `Storage`.
    pub fn write(&self, state: &State) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let directory = self.0.parent().unwrap_or_else(|| Path::new("."));
            std::fs::create_dir_all(directory)?;
            let temporary = self.0.with_extension("json.new");
            let mut file = std::fs::File::create(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(state)?)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.0)?;
            std::fs::File::open(directory)?.sync_all()
        };
        write().map_err(|error| self.error("cannot be written").source(error))
    }

    fn error(&self, what: &str) -> Error {
        Error::new(
            ErrorKind::Storage,
            format!("the state file {} {what}", self.0.display()),
        )
        .remedy("check the directory of `[state]`: space, rights")
    }
}

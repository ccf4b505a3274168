//! What is durable: how long each file is, and how far each source got.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use lockstep_core::Result;
use lockstep_core::position::SourceInfo;
use lockstep_core::progress::Progress;
use lockstep_core::sidecar::{self, Positions};
use serde::{Deserialize, Serialize};

/// What the sidecar holds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// Durable bytes by path.
    pub(crate) files: BTreeMap<PathBuf, u64>,
    sources: Positions,
}

/// The sidecar in a sink's state folder, locked for this process.
pub(crate) struct Sidecar {
    file: sidecar::Sidecar,
    pub(crate) state: State,
    /// With lines that are not synced yet: a record of them would be a record of lines that may go.
    noted: Positions,
}

impl Sidecar {
    /// Locks the folder and reads what is there. `stop` is looked at while another holds the lock.
    pub(crate) fn open(folder: &Path, stop: &dyn Fn() -> bool) -> Result<Self> {
        let (file, state) = sidecar::Sidecar::open(folder, stop)?;
        Ok(Sidecar {
            file,
            state,
            noted: Positions::default(),
        })
    }

    pub(crate) fn progress(&self, source: &SourceInfo) -> Option<&Progress> {
        self.state.sources.of(source)
    }

    /// The lines up to here have been taken; the next [`Sidecar::synced`] counts them.
    pub(crate) fn note(&mut self, source: &SourceInfo, reached: Progress) {
        self.noted.note(source, reached);
    }

    /// All that was taken is synced.
    pub(crate) fn synced(&mut self) {
        self.state.sources.append(&mut self.noted);
    }

    /// Makes the state durable: a crash leaves the old or the new one, never a mixture.
    pub(crate) fn save(&self) -> Result<()> {
        self.file.save(&self.state)
    }
}

/// A new name in a folder survives a crash only when the folder itself is synced.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

//! What is durable: how long each file is, and how far each source got. One small file, replaced as a whole.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lockstep_core::position::SourceInfo;
use lockstep_core::progress::Progress;
use lockstep_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

const NAME: &str = "progress.json";
const LOCK: &str = "lock";
/// How long a predecessor in the same process may take to see that it was dropped.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// What the sidecar holds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// Durable bytes by path.
    pub(crate) files: BTreeMap<PathBuf, u64>,
    /// By [`key`].
    sources: BTreeMap<String, Progress>,
}

/// The sidecar in a sink's state folder, locked for this process.
pub(crate) struct Sidecar {
    folder: PathBuf,
    pub(crate) state: State,
    /// With lines that are not synced yet: a record of them would be a record of lines that may go.
    noted: BTreeMap<String, Progress>,
    /// Held until drop.
    _lock: File,
}

/// The source's name is in it because two sources may read one database through two slots.
fn key(source: &SourceInfo) -> String {
    format!(
        "{}/{}",
        source.name.replace('%', "%25").replace('/', "%2F"),
        source.identity
    )
}

impl Sidecar {
    /// Locks the folder and reads what is there. `stop` is looked at while another holds the lock.
    pub(crate) fn open(folder: &Path, stop: &dyn Fn() -> bool) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|error| storage(folder, "making the folder", error))?;
        let lock = lock(&folder.join(LOCK), stop)?;
        let path = folder.join(NAME);
        let state = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                Error::new(ErrorKind::Storage, format!("{} is damaged", path.display()))
                    .source(error)
                    .remedy("restore it; or delete it together with the files it speaks of, and the changes come again from the slot's position")
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(storage(&path, "reading", error)),
        };
        Ok(Sidecar {
            folder: folder.to_owned(),
            state,
            noted: BTreeMap::new(),
            _lock: lock,
        })
    }

    pub(crate) fn progress(&self, source: &SourceInfo) -> Option<&Progress> {
        self.state.sources.get(&key(source))
    }

    /// The lines up to here have been taken; the next [`Sidecar::synced`] counts them.
    pub(crate) fn note(&mut self, source: &SourceInfo, reached: Progress) {
        self.noted.insert(key(source), reached);
    }

    /// All that was taken is synced.
    pub(crate) fn synced(&mut self) {
        self.state.sources.append(&mut self.noted);
    }

    /// Makes the state durable: a crash leaves the old or the new one, never a mixture.
    pub(crate) fn save(&self) -> Result<()> {
        let path = self.folder.join(NAME);
        let write = || -> io::Result<()> {
            let fresh = self.folder.join(format!("{NAME}.new"));
            let mut file = File::create(&fresh)?;
            file.write_all(&serde_json::to_vec_pretty(&self.state)?)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            sync_folder(&self.folder)
        };
        write().map_err(|error| storage(&path, "writing", error))
    }
}

fn lock(path: &Path, stop: &dyn Fn() -> bool) -> Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path);
    let file = file.map_err(|error| storage(path, "opening", error))?;
    let end = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < end && !stop() => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("{} is locked by another process", path.display()),
                )
                .remedy("stop the other lockstep with the same pipeline and sink, or give one of them another name"));
            }
            Err(TryLockError::Error(error)) => return Err(storage(path, "locking", error)),
        }
    }
}

/// A new name in a folder survives a crash only when the folder itself is synced.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// An I/O error with what was done to which file.
pub(crate) fn storage(path: &Path, doing: &str, error: io::Error) -> Error {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free space on the disk; nothing that was confirmed is lost"
        }
        io::ErrorKind::PermissionDenied => "give the user of lockstep the right to write there",
        io::ErrorKind::ReadOnlyFilesystem => "mount the disk writable, or choose another `path`",
        _ => "see the system's log",
    };
    let kind = ErrorKind::of_storage(&error);
    Error::new(kind, format!("{doing} {}", path.display()))
        .source(error)
        .remedy(remedy)
}

//! What a sink knows beside its data: one small file in its state folder, replaced as a whole, and a lock on the folder.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::folder;
use crate::position::SourceInfo;
use crate::progress::Progress;

const NAME: &str = "progress.json";
const LOCK: &str = "lock";
/// How long a predecessor in the same process may take to see that it was dropped.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// How far each source is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Positions(BTreeMap<String, Progress>);

impl Positions {
    /// How far a source is; `None` when nothing of it is known.
    #[must_use]
    pub fn of(&self, source: &SourceInfo) -> Option<&Progress> {
        self.0.get(&key(source))
    }

    /// The source is this far.
    pub fn note(&mut self, source: &SourceInfo, reached: Progress) {
        self.0.insert(key(source), reached);
    }

    /// Takes over what was noted elsewhere, which is empty then.
    pub fn append(&mut self, noted: &mut Positions) {
        self.0.append(&mut noted.0);
    }
}

/// The source's name is in it because two sources may read one database through two slots.
fn key(source: &SourceInfo) -> String {
    format!(
        "{}/{}",
        source.name.replace('%', "%25").replace('/', "%2F"),
        source.identity
    )
}

/// The file, in a folder that is locked for this process until it is dropped.
#[derive(Debug)]
pub struct Sidecar {
    path: PathBuf,
    _lock: File,
}

impl Sidecar {
    /// Locks the folder, which is made when it is missing, and reads what was saved last. Blocks; `stop` is looked at while
    /// another holds the lock.
    ///
    /// # Errors
    /// `Busy` when another process has the lock; those of the disk.
    pub fn open<S: Default + DeserializeOwned>(
        folder: &Path,
        stop: &dyn Fn() -> bool,
    ) -> Result<(Self, S)> {
        fs::create_dir_all(folder).map_err(|error| storage(folder, "making the folder", error))?;
        let lock = lock(&folder.join(LOCK), stop)?;
        let path = folder.join(NAME);
        let state = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                Error::new(ErrorKind::Storage, format!("{} is damaged", path.display()))
                    .source(error)
                    .remedy("restore it; or delete it together with the files it speaks of, and the changes come again from the slot's position")
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => S::default(),
            Err(error) => return Err(storage(&path, "reading", error)),
        };
        Ok((Sidecar { path, _lock: lock }, state))
    }

    /// Makes the state durable: a crash leaves the old or the new one, never a mixture. Blocks.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn save(&self, state: &impl Serialize) -> Result<()> {
        let write = || folder::put(&self.path, &serde_json::to_vec_pretty(state)?);
        write().map_err(|error| storage(&self.path, "writing", error))
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

/// An I/O error with what was done to which file.
#[must_use]
pub fn storage(path: &Path, doing: &str, error: io::Error) -> Error {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Lsn, Position, SourceIdentity};

    fn source(name: &str) -> SourceInfo {
        SourceInfo {
            name: name.into(),
            identity: SourceIdentity {
                system: 1,
                timeline: 1,
                incarnation: 0,
                database: "shop".into(),
            },
        }
    }

    #[test]
    fn positions_are_there_again_and_each_source_has_its_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state");
        let reached = Progress::from(Position {
            commit: Lsn(7),
            ordinal: 1,
        });
        let (sidecar, mut positions) = Sidecar::open::<Positions>(&path, &|| false).expect("opens");
        positions.note(&source("a/b"), reached.clone());
        sidecar.save(&positions).expect("saved");
        drop(sidecar);
        let (_sidecar, positions) = Sidecar::open::<Positions>(&path, &|| false).expect("opens");
        assert_eq!(positions.of(&source("a/b")), Some(&reached));
        assert_eq!(positions.of(&source("a")), None);
    }

    #[test]
    fn a_folder_that_another_has_locked_is_told_as_such() {
        let folder = tempfile::tempdir().expect("a folder");
        let (_sidecar, _) = Sidecar::open::<Positions>(folder.path(), &|| false).expect("opens");
        let error = Sidecar::open::<Positions>(folder.path(), &|| true).expect_err("locked");
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    }

    #[test]
    fn a_damaged_file_is_no_empty_one() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join(NAME), "{").expect("written");
        let error = Sidecar::open::<Positions>(folder.path(), &|| true).expect_err("damaged");
        assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    }
}

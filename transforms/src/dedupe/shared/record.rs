//! What this machine knows of a store elsewhere: which one it is, and how far it had come when positions were last
//! confirmed. A server that holds less has lost something.

use std::fs::{self, File};
use std::io::{ErrorKind as Io, Write};
use std::path::{Path, PathBuf};

use lockstep_core::{Error, ErrorKind, Result};

const FILE: &str = "store";

/// A state of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Made up when the store was made.
    pub(crate) generation: String,
    /// Writes so far.
    pub(crate) writes: u64,
}

/// The file.
pub(crate) struct Record {
    folder: PathBuf,
    kept: Option<Known>,
}

impl Record {
    /// Reads it, if it is there.
    ///
    /// # Errors
    /// Of kind `Storage`.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let kept = match fs::read_to_string(&path) {
            Ok(text) => {
                let parts = text.trim_end().split_once(' ');
                let known = parts.and_then(|(generation, writes)| {
                    Some(Known {
                        generation: generation.to_owned(),
                        writes: writes.parse().ok()?,
                    })
                });
                Some(known.ok_or_else(|| {
                    Error::new(
                        ErrorKind::Storage,
                        format!("{} cannot be read", path.display()),
                    )
                    .remedy("restore it, or remove it to take the store in Redis as it is")
                })?)
            }
            Err(error) if error.kind() == Io::NotFound => None,
            Err(error) => return Err(failed(&path, error)),
        };
        Ok(Record {
            folder: folder.to_owned(),
            kept,
        })
    }

    /// What it says.
    pub(crate) fn kept(&self) -> Option<&Known> {
        self.kept.as_ref()
    }

    /// Writes it, and waits for the disk, unless it says so already.
    ///
    /// # Errors
    /// Of kind `Storage`.
    pub(crate) fn keep(&mut self, known: &Known) -> Result<()> {
        if self.kept.as_ref() == Some(known) {
            return Ok(());
        }
        let path = self.folder.join(FILE);
        let new = self.folder.join("store.new");
        let write = || {
            fs::create_dir_all(&self.folder)?;
            let mut file = File::create(&new)?;
            writeln!(file, "{} {}", known.generation, known.writes)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|error| failed(&path, error))?;
        self.kept = Some(known.clone());
        Ok(())
    }
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Storage, format!("{} failed", path.display()))
        .source(error)
        .remedy("make sure that the disk has room and is writable, then start again; nothing was acknowledged")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut record = Record::open(folder.path()).expect("none yet");
        assert_eq!(record.kept(), None);
        let known = Known {
            generation: "abc".to_owned(),
            writes: 7,
        };
        record.keep(&known).expect("written");
        let record = Record::open(folder.path()).expect("read");
        assert_eq!(record.kept(), Some(&known));
        fs::write(folder.path().join(FILE), "abc").expect("written");
        assert!(Record::open(folder.path()).is_err());
    }
}

//! Where the pieces of transactions lie until these end: in memory while they are few, in files beyond.
//!
//! The files have no names: they are gone with the process, however it ends, and none of an earlier life can be taken
//! for one of this. Nor are they synced: after a crash the server sends everything again, since a slot stays before the
//! beginning of every transaction whose commit is not confirmed.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lockstep_core::error::{Error, ErrorKind, Result};

/// Bytes in memory, over all transactions, beyond which the largest share goes to its file.
const IN_MEMORY: usize = 4 << 20;
/// Room that is left on the disk: what else is kept there is worth more.
const LEFT_FREE: u64 = 64 << 20;
/// Room on the disk is looked at after so many bytes.
const LOOK_EVERY: u64 = 1 << 20;

/// The spools of a source, and their common bounds.
pub struct Spools {
    directory: PathBuf,
    in_memory: usize,
    left_free: u64,
    /// Bytes in memory now.
    held: usize,
    /// Bytes that may go to files before the disk is looked at again.
    allowed: u64,
}

/// Bytes of one transaction, in the order they came.
#[derive(Debug, Default)]
pub struct Spool {
    file: Option<File>,
    written: u64,
    tail: Vec<u8>,
}

impl Spools {
    /// In a directory that exists.
    pub fn new(directory: &Path) -> Self {
        Self::bounded(directory, IN_MEMORY, LEFT_FREE)
    }

    pub(super) fn bounded(directory: &Path, in_memory: usize, left_free: u64) -> Self {
        Spools {
            directory: directory.to_owned(),
            in_memory,
            left_free,
            held: 0,
            allowed: 0,
        }
    }

    /// Appends to a spool.
    pub fn append(&mut self, spool: &mut Spool, parts: &[&[u8]]) {
        let before = spool.tail.len();
        for part in parts {
            spool.tail.extend_from_slice(part);
        }
        self.held += spool.tail.len() - before;
    }

    /// Whether more is in memory than there should be.
    pub fn is_over(&self) -> bool {
        self.held > self.in_memory
    }

    /// Moves what a spool has in memory to its file.
    ///
    /// # Errors
    /// Of kind `Full`, when the file would leave too little room on the disk, of kind `Storage`, when it cannot be written.
    pub fn spill(&mut self, spool: &mut Spool) -> Result<()> {
        let length = spool.tail.len() as u64;
        self.make_sure_of_room(length)?;
        let file = match &mut spool.file {
            Some(file) => file,
            None => spool.file.insert(
                tempfile::tempfile_in(&self.directory)
                    .map_err(|error| self.failed("cannot be made", error))?,
            ),
        };
        file.write_all(&spool.tail)
            .map_err(|error| self.failed("cannot be written", error))?;
        self.held -= spool.tail.len();
        spool.written += length;
        // Its room goes back: with many transactions open each would keep what it needed once.
        spool.tail = Vec::new();
        Ok(())
    }

    /// Forgets a spool.
    pub fn discard(&mut self, spool: &Spool) {
        self.held -= spool.tail.len();
    }

    fn make_sure_of_room(&mut self, length: u64) -> Result<()> {
        if let Some(left) = self.allowed.checked_sub(length) {
            self.allowed = left;
            return Ok(());
        }
        let room = rustix::fs::statvfs(&self.directory)
            .map_err(|error| self.failed("cannot be made", error.into()))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        if free < self.left_free.saturating_add(length) {
            let what = format!(
                "would leave less than {} MiB free on the disk: {} MiB are free now",
                self.left_free >> 20,
                free >> 20
            );
            return Err(self.error(ErrorKind::Full, &what));
        }
        self.allowed = LOOK_EVERY;
        Ok(())
    }

    fn failed(&self, what: &str, error: std::io::Error) -> Error {
        self.error(ErrorKind::of_storage(&error), what)
            .source(error)
    }

    fn error(&self, kind: ErrorKind, what: &str) -> Error {
        Error::new(
            kind,
            format!(
                "a file for transactions in progress in {} {what}",
                self.directory.display()
            ),
        )
        .remedy("free disk space there, or set streaming = \"off\" to have the server keep them instead")
    }
}

impl Spool {
    /// Bytes in memory.
    pub fn held(&self) -> usize {
        self.tail.len()
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.written + self.tail.len() as u64
    }

    /// Reads it from its beginning as far as it is now, and keeps it.
    ///
    /// # Errors
    /// Of kind `Storage`.
    pub fn look(&self) -> Result<Reader> {
        let file = self.file.as_ref().map(File::try_clone).transpose();
        let file = file.map_err(unreadable)?;
        Ok(Reader {
            file,
            at: 0,
            written: self.written,
            tail: self.tail.clone(),
            tail_at: 0,
        })
    }

    /// Reads it from its beginning.
    pub fn read(self) -> Reader {
        Reader {
            file: self.file,
            at: 0,
            written: self.written,
            tail: self.tail,
            tail_at: 0,
        }
    }
}

/// Reads a spool.
#[derive(Debug)]
pub struct Reader {
    file: Option<File>,
    at: u64,
    written: u64,
    tail: Vec<u8>,
    tail_at: usize,
}

impl Reader {
    /// Whether all of it has been read.
    pub fn is_done(&self) -> bool {
        self.at == self.written && self.tail_at == self.tail.len()
    }

    /// Appends up to `most` bytes to `block`, at least one unless it is done.
    ///
    /// # Errors
    /// Of kind `Storage`.
    pub fn fill(&mut self, block: &mut Vec<u8>, most: usize) -> Result<()> {
        let before = block.len();
        let left = usize::try_from(self.written - self.at).unwrap_or(usize::MAX);
        if let Some(file) = self.file.as_ref().filter(|_| left > 0) {
            let length = left.min(most);
            block.resize(before + length, 0);
            file.read_exact_at(&mut block[before..], self.at)
                .map_err(unreadable)?;
            self.at += length as u64;
            return Ok(());
        }
        let length = (self.tail.len() - self.tail_at).min(most);
        block.extend_from_slice(&self.tail[self.tail_at..self.tail_at + length]);
        self.tail_at += length;
        Ok(())
    }
}

fn unreadable(error: std::io::Error) -> Error {
    Error::new(
        ErrorKind::Storage,
        "a file for transactions in progress cannot be read",
    )
    .source(error)
    .remedy("check the disk of `[state]`; nothing was acknowledged")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut reader: Reader, most: usize) -> Vec<u8> {
        let mut block = Vec::new();
        while !reader.is_done() {
            reader.fill(&mut block, most).expect("readable");
        }
        block
    }

    #[test]
    fn what_went_in_comes_out_from_file_and_memory() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut spools = Spools::bounded(folder.path(), 10, 0);
        let mut spool = Spool::default();
        spools.append(&mut spool, &[b"0123456789", b"ab"]);
        assert!(spools.is_over());
        spools.spill(&mut spool).expect("written");
        assert_eq!(
            (spool.held(), spool.len(), spools.is_over()),
            (0, 12, false)
        );
        spools.append(&mut spool, &[b"cd"]);
        assert_eq!((spool.held(), spools.held), (2, 2));
        let names = std::fs::read_dir(folder.path()).expect("readable").count();
        assert_eq!(names, 0, "files have no names");
        let look = spool.look().expect("a second handle");
        assert_eq!(all(look, 5), b"0123456789abcd");
        spools.discard(&spool);
        assert_eq!(spools.held, 0);
        assert_eq!(all(spool.read(), 5), b"0123456789abcd");
    }

    #[test]
    fn a_disk_that_would_be_full_is_an_error_before_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut spools = Spools::bounded(folder.path(), 1, u64::MAX);
        let mut spool = Spool::default();
        spools.append(&mut spool, &[b"abc"]);
        let error = spools.spill(&mut spool).expect_err("no room");
        assert_eq!(error.kind(), ErrorKind::Full);
        assert!(error.to_string().contains("free disk space"), "{error}");
        assert_eq!(all(spool.read(), 100), b"abc", "nothing is lost of it");
    }
}

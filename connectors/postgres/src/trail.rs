//! How far the log has been handed on, beside the state file, which is up to a second older.
//!
//! Written with each batch before it goes on, and not synced: what a process has written is there after its kill -9, and
//! gone only with the machine. So a server that was restored in the same outage, to a point inside that second, is seen
//! although sinks hold more than the state file knows.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lockstep_core::batch::Transaction;
use lockstep_core::position::{Lsn, SourceIdentity};
use serde::{Deserialize, Serialize};

use crate::state::{Reached, State, Witness};

/// Bytes of the file: one sector, which is written whole or not at all. Only names that take more than a hundred bytes make it
/// longer.
const RECORD: usize = 512;

/// The last thing that was handed on, of which log.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record<'a> {
    identity: Cow<'a, SourceIdentity>,
    slot: Cow<'a, str>,
    timeline: u32,
    received: Lsn,
    last: Witness,
}

/// The file, for writing.
#[derive(Debug)]
pub struct Trail {
    path: PathBuf,
    /// Opened with the first record.
    file: Option<File>,
    /// Bytes of the record: what is written over a longer one has spaces behind it.
    bytes: Vec<u8>,
    width: usize,
    /// It cannot be written, which has been logged.
    failed: bool,
}

fn path(directory: &Path) -> PathBuf {
    directory.join("trail.json")
}

impl Trail {
    /// Of the source with this state directory.
    pub fn new(directory: &Path) -> Self {
        Trail {
            path: path(directory),
            file: None,
            bytes: Vec::new(),
            width: RECORD,
            failed: false,
        }
    }

    /// Notes what is about to be handed on of the log that `state` is of. What cannot be noted holds nobody up: the state
    /// file tells as much a second later.
    pub fn put(&mut self, state: &State, received: Lsn, last: &Transaction, publication: &str) {
        let reached = state.reached.as_ref();
        let record = Record {
            identity: Cow::Borrowed(&state.identity),
            slot: Cow::Borrowed(&state.slot),
            timeline: reached.map_or(state.identity.timeline, |reached| reached.timeline),
            received: received.max(reached.map_or(Lsn::ZERO, |reached| reached.received)),
            last: Witness::of(last, publication),
        };
        match self.write(&record) {
            Ok(()) => self.failed = false,
            Err(error) => {
                let path = self.path.display();
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(%path, %error, "cannot be written; after a kill the last second is not known");
                }
            }
        }
    }

    fn write(&mut self, record: &Record<'_>) -> std::io::Result<()> {
        self.bytes.clear();
        serde_json::to_writer(&mut self.bytes, record)?;
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let options = File::options()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(&self.path);
                let file = self.file.insert(options?);
                let before = usize::try_from(file.metadata()?.len());
                self.width = self.width.max(before.unwrap_or(RECORD));
                file
            }
        };
        self.width = self.width.max(self.bytes.len());
        self.bytes.resize(self.width, b' ');
        file.write_all_at(&self.bytes, 0)
    }
}

/// What is known of the log of `state` with what the file in its directory adds. A file that says nothing of this log, or
/// cannot be read, adds nothing.
pub fn follow(directory: &Path, state: State) -> State {
    let Some(record) = read(&path(directory)) else {
        return state;
    };
    let before = state.reached.clone().unwrap_or_default();
    let is_of_it = *record.identity == state.identity && record.slot == state.slot;
    // One of a timeline before is older than the record of the one after it.
    if !is_of_it || record.timeline < before.timeline {
        return state;
    }
    // Of a transaction that has come in part the state file knows nothing, though it may have heard of a later place.
    let last = before.last.filter(|last| last.commit > record.last.commit);
    let reached = Reached {
        timeline: record.timeline,
        confirmed: before.confirmed,
        told: before.told,
        received: record.received.max(before.received),
        last: Some(last.unwrap_or(record.last)),
    };
    State {
        reached: Some(reached),
        ..state
    }
}

fn read(path: &Path) -> Option<Record<'static>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot be read");
            return None;
        }
    };
    let record = serde_json::from_slice(&bytes);
    record
        .map_err(|error| {
            tracing::warn!(path = %path.display(), %error, "is damaged: the machine may have crashed");
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Copied;

    fn witness(commit: u64) -> Witness {
        Witness::of(&transaction(commit), "p")
    }

    /// What was received up to a place, with the transaction before it.
    fn state(timeline: u32, received: u64) -> State {
        State {
            identity: SourceIdentity {
                system: 7,
                timeline: 1,
                incarnation: 0,
                database: "d".into(),
            },
            slot: "s".into(),
            tables: None,
            copy: Copied::Done { from: Lsn(1) },
            reached: Some(Reached {
                timeline,
                confirmed: Lsn(50),
                told: None,
                received: Lsn(received),
                last: Some(witness(received - 10)),
            }),
            two_phase: false,
        }
    }

    fn transaction(commit: u64) -> Transaction {
        Transaction {
            commit: Lsn(commit),
            commit_micros: 5,
            xid: 9,
            origin: None,
            previous_commit: None,
            prepared: None,
            global: None,
        }
    }

    /// Timeline, received, commit of the last transaction.
    fn known(directory: &Path, state: State) -> (u32, u64, u64) {
        let reached = follow(directory, state).reached.expect("a position");
        let last = reached.last.expect("a witness");
        (reached.timeline, reached.received.0, last.commit.0)
    }

    #[test]
    fn what_was_handed_on_last_is_known() {
        let directory = tempfile::tempdir().expect("a directory");
        let same = |state: State| assert_eq!(follow(directory.path(), state.clone()), state);
        same(state(1, 100));
        let mut trail = Trail::new(directory.path());
        trail.put(&state(1, 100), Lsn(2_000_000), &transaction(1_999_000), "p");
        trail.put(&state(1, 100), Lsn(130), &transaction(120), "p");
        assert_eq!(known(directory.path(), state(1, 100)), (1, 130, 120));
        assert_eq!(known(directory.path(), state(1, 140)), (1, 140, 130));
    }

    #[test]
    fn a_shorter_record_takes_the_place_of_a_longer_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let long = "\u{1}".repeat(100);
        Trail::new(directory.path()).put(&state(1, 100), Lsn(130), &transaction(120), &long);
        Trail::new(directory.path()).put(&state(1, 100), Lsn(150), &transaction(140), "p");
        assert_eq!(known(directory.path(), state(1, 100)), (1, 150, 140));
    }

    #[test]
    fn a_transaction_in_part_is_known_although_a_later_place_was_heard_of() {
        let directory = tempfile::tempdir().expect("a directory");
        Trail::new(directory.path()).put(&state(1, 100), Lsn(100), &transaction(95), "p");
        assert_eq!(known(directory.path(), state(1, 100)), (1, 100, 95));
        assert_eq!(known(directory.path(), state(1, 103)), (1, 103, 95));
    }

    #[test]
    fn what_says_nothing_of_the_log_adds_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        Trail::new(directory.path()).put(&state(1, 100), Lsn(130), &transaction(120), "p");
        let mut other = state(1, 100);
        other.identity.incarnation = 1;
        let slot = State {
            slot: "t".into(),
            ..state(1, 100)
        };
        // Behind a promotion the state file is newer.
        for other in [other, slot, state(2, 110)] {
            assert_eq!(follow(directory.path(), other.clone()), other);
        }
    }

    #[test]
    fn one_behind_a_promotion_brings_its_timeline() {
        let directory = tempfile::tempdir().expect("a directory");
        Trail::new(directory.path()).put(&state(2, 100), Lsn(130), &transaction(120), "p");
        assert_eq!(known(directory.path(), state(1, 110)), (2, 130, 120));
    }

    #[test]
    fn a_damaged_or_unwritable_file_holds_nobody_up() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(path(directory.path()), "{\"identity\":").expect("written");
        assert_eq!(follow(directory.path(), state(1, 100)), state(1, 100));
        std::fs::remove_file(path(directory.path())).expect("removed");
        std::fs::create_dir(path(directory.path())).expect("in its place");
        let mut trail = Trail::new(directory.path());
        trail.put(&state(1, 100), Lsn(130), &transaction(120), "p");
        assert_eq!(follow(directory.path(), state(1, 100)), state(1, 100));
    }
}

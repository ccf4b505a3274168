//! How far the log has been handed on, beside the state file, which is up to a second older.
//!
//! Written with each batch before it goes on, and not synced: what a process has written is there after its kill -9, and
//! gone only with the machine. So a server that was restored in the same outage, to a point inside that second, is seen
//! although sinks hold more than the state file knows. One small write a batch: about a microsecond.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lockstep_core::batch::Transaction;
use lockstep_core::position::{Lsn, SourceIdentity};
use serde::{Deserialize, Serialize};

use crate::state::{Reached, State, Witness};

/// All that is ever written of the file: one sector, which is written whole or not at all.
const RECORD: usize = 512;

/// The last thing that was handed on, of which log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    identity: SourceIdentity,
    slot: String,
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
            failed: false,
        }
    }

    /// Notes what is about to be handed on of the log that `state` is of. What cannot be noted holds nobody up: the state
    /// file tells as much a second later.
    pub fn put(&mut self, state: &State, received: Lsn, last: &Transaction, publication: &str) {
        let reached = state.reached.as_ref();
        let record = Record {
            identity: state.identity.clone(),
            slot: state.slot.clone(),
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

    fn write(&mut self, record: &Record) -> std::io::Result<()> {
        let mut bytes = serde_json::to_vec(record)?;
        bytes.resize(bytes.len().max(RECORD), b' ');
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let options = File::options()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(&self.path);
                self.file.insert(options?)
            }
        };
        file.write_all_at(&bytes, 0)
    }
}

/// What is known of the log of `state` with what the file in its directory adds. A file that says nothing of this log, or
/// cannot be read, adds nothing.
pub fn follow(directory: &Path, state: State) -> State {
    let Some(record) = read(&path(directory)) else {
        return state;
    };
    let before = state.reached.clone().unwrap_or_default();
    let is_of_it = record.identity == state.identity && record.slot == state.slot;
    // One of a timeline before is older than the record of the one after it.
    if !is_of_it || record.timeline < before.timeline || record.received <= before.received {
        return state;
    }
    let reached = Reached {
        timeline: record.timeline,
        confirmed: before.confirmed,
        received: record.received,
        last: Some(record.last),
    };
    State {
        reached: Some(reached),
        ..state
    }
}

fn read(path: &Path) -> Option<Record> {
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
                received: Lsn(received),
                last: None,
            }),
        }
    }

    fn transaction(commit: u64) -> Transaction {
        Transaction {
            commit: Lsn(commit),
            commit_micros: 5,
            xid: 9,
            origin: None,
            previous_commit: None,
        }
    }

    fn received(state: &State) -> Lsn {
        state
            .reached
            .as_ref()
            .map_or(Lsn::ZERO, |reached| reached.received)
    }

    #[test]
    fn what_was_handed_on_last_is_known() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(
            follow(directory.path(), state(1, 100)),
            state(1, 100),
            "no file"
        );
        let mut trail = Trail::new(directory.path());
        trail.put(&state(1, 100), Lsn(2_000_000), &transaction(1_999_000), "p");
        trail.put(&state(1, 100), Lsn(130), &transaction(120), "p");
        let known = follow(directory.path(), state(1, 100));
        let reached = known.reached.expect("a position");
        assert_eq!((reached.confirmed, reached.received), (Lsn(50), Lsn(130)));
        let last = reached.last.expect("a witness");
        assert_eq!(
            (last.commit, last.xid, last.publication.as_str()),
            (Lsn(120), 9, "p")
        );
    }

    #[test]
    fn what_says_nothing_of_the_log_adds_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        Trail::new(directory.path()).put(&state(1, 100), Lsn(130), &transaction(120), "p");
        // The state file is newer, in the same log or behind a promotion.
        for newer in [state(1, 140), state(2, 110)] {
            assert_eq!(follow(directory.path(), newer.clone()), newer);
        }
        let mut other = state(1, 100);
        other.identity.incarnation = 1;
        assert_eq!(follow(directory.path(), other.clone()), other);
        let other = State {
            slot: "t".into(),
            ..state(1, 100)
        };
        assert_eq!(follow(directory.path(), other.clone()), other);
    }

    #[test]
    fn one_behind_a_promotion_brings_its_timeline() {
        let directory = tempfile::tempdir().expect("a directory");
        Trail::new(directory.path()).put(&state(2, 100), Lsn(130), &transaction(120), "p");
        let known = follow(directory.path(), state(1, 110));
        assert_eq!(
            known.reached.as_ref().map(|reached| reached.timeline),
            Some(2)
        );
        assert_eq!(received(&known), Lsn(130));
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

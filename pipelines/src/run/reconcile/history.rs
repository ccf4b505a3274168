//! Comparisons that have ended, and those that have not, kept over restarts.

use std::collections::VecDeque;
use std::io::Write;
use std::path::{Path, PathBuf};

use lockstep_reconciler::{Bookmark, TableReport};
use serde::{Deserialize, Serialize};

use super::{Reconcile, ReconcileRequest};

/// Comparisons that are kept.
const MOST: usize = 20;
/// Rows that are kept of what differed, for each table and sink, once another one has ended.
const ROWS: usize = 100;

/// A comparison that has not ended, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unfinished {
    pub id: u64,
    pub request: ReconcileRequest,
    /// How many tables there are.
    pub tables: usize,
    /// Those that have been looked at.
    pub reports: Vec<TableReport>,
    /// The one that is being looked at.
    pub now: Option<Bookmark>,
}

/// What an earlier run has not ended. A file that cannot be read is left behind: the comparison is made again.
pub(super) fn unfinished(path: &Path) -> Vec<Unfinished> {
    let read = match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(std::io::Error::from),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    read.unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "how far comparisons were cannot be read");
        Vec::new()
    })
}

/// Keeps how far they are.
pub(super) fn keep(path: &Path, unfinished: &[Unfinished]) {
    if let Err(error) = write(path, unfinished) {
        tracing::warn!(path = %path.display(), %error, "how far comparisons are cannot be written");
    }
}

/// See the module's page.
pub(super) struct History {
    path: PathBuf,
    pub(super) ended: VecDeque<Reconcile>,
}

impl History {
    /// What earlier runs have left. One that cannot be read is left behind: nothing rests on it.
    pub(super) fn open(path: PathBuf) -> Self {
        let read = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(std::io::Error::from),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(VecDeque::new()),
            Err(error) => Err(error),
        };
        let ended = read.unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "the history of comparisons cannot be read, and begins anew");
            VecDeque::new()
        });
        History { path, ended }
    }

    /// Another one has ended.
    pub(super) fn push(&mut self, one: Reconcile) {
        let before = self.ended.iter_mut().flat_map(|one| &mut one.reports);
        let sinks = before.flat_map(|report| report.sinks.values_mut());
        for sink in sinks {
            sink.drift.truncate(ROWS);
        }
        if self.ended.len() == MOST {
            self.ended.pop_front();
        }
        self.ended.push_back(one);
        if let Err(error) = write(&self.path, &self.ended) {
            tracing::warn!(path = %self.path.display(), %error, "the history of comparisons cannot be written");
        }
    }
}

/// Writes it, whole or not at all.
fn write(path: &Path, kept: &(impl Serialize + ?Sized)) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&mut file, kept)?;
    file.flush()?;
    file.as_file().sync_data()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::ReconcileRequest;
    use super::*;

    #[test]
    fn what_has_ended_is_there_after_a_restart_and_not_for_ever() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("reconciles.json");
        let mut history = History::open(path.clone());
        for id in 1..=25 {
            history.push(Reconcile {
                id,
                request: ReconcileRequest::default(),
                done: true,
                tables: 0,
                reports: Vec::new(),
            });
        }
        let again = History::open(path.clone());
        assert_eq!(again.ended, history.ended);
        assert_eq!(again.ended.front().map(|one| one.id), Some(6));
        std::fs::write(&path, "{").expect("written");
        assert!(History::open(path).ended.is_empty());
    }
}

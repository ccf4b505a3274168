//! What was done, on disk before it is done.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use lockstep_core::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use super::Decision;

/// A file of JSON objects, one a line. Two are written for each action: that it is about to happen, and what came of it.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    by: String,
}

impl Journal {
    /// The file's name in a pipeline's state directory.
    pub const FILE: &str = "transactions.jsonl";

    /// Opens the journal of a pipeline to add to it; `by` is who acts.
    ///
    /// # Errors
    /// `Storage` or `Full` when it cannot be made.
    pub fn open(state: &Path, by: &str) -> Result<Self> {
        let path = state.join(Self::FILE);
        let open = std::fs::create_dir_all(state)
            .and_then(|()| OpenOptions::new().create(true).append(true).open(&path));
        let file = open.map_err(|error| failed(&path, error))?;
        Ok(Journal {
            path,
            file,
            by: by.to_owned(),
        })
    }

    /// Adds a line, and returns when it is on disk.
    ///
    /// # Errors
    /// `Storage` or `Full`.
    pub(super) fn note(&mut self, decision: &Decision, state: &str, outcome: &str) -> Result<()> {
        let line = format!("{}\n", self.line(decision, state, outcome));
        let written = self.file.write_all(line.as_bytes());
        let written = written.and_then(|()| self.file.sync_data());
        written.map_err(|error| failed(&self.path, error))
    }

    fn line(&self, decision: &Decision, state: &str, outcome: &str) -> Value {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let (doubt, judged) = (&decision.doubt, &decision.judged);
        json!({
            "at_ms": since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
            "by": self.by,
            "source": doubt.source,
            "gid": doubt.in_doubt.gid,
            "xid": doubt.in_doubt.xid,
            "transaction": doubt.branch.global(),
            "manager": doubt.branch.dialect().as_str(),
            "action": judged.verdict.as_str(),
            "rule": judged.rule.as_str(),
            "why": judged.why,
            "state": state,
            "outcome": outcome,
        })
    }
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    let message = format!(
        "cannot write {}; without the journal nothing is done",
        path.display()
    );
    Error::new(ErrorKind::of_storage(&error), message).source(error)
}

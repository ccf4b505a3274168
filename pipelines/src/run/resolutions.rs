//! What was done about branches in doubt, as the journal tells: `lockstep transactions resolve` is a process of its own.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use lockstep_transactions::resolve::{Journal, Outcome};
use prometheus::IntCounterVec;
use serde::Deserialize;

use super::lock;

/// Counts what is in the journal, and goes on where it was when it is asked again.
pub(super) struct Resolutions {
    path: PathBuf,
    counter: IntCounterVec,
    /// Bytes that are counted.
    read: Mutex<u64>,
}

/// A line of the journal, as far as it is counted.
#[derive(Deserialize)]
struct Line {
    manager: String,
    rule: String,
    action: String,
    state: String,
    outcome: String,
}

impl Resolutions {
    /// Of the pipeline with this state directory.
    pub fn new(state: &Path, counter: IntCounterVec) -> Self {
        Resolutions {
            path: state.join(Journal::FILE),
            counter,
            read: Mutex::default(),
        }
    }

    /// Counts what has come.
    pub fn look(&self) {
        let mut read = lock(&self.read);
        // Without a journal nothing was done.
        let Ok(mut file) = File::open(&self.path) else {
            return;
        };
        if file.seek(SeekFrom::Start(*read)).is_err() {
            return;
        }
        let mut lines = BufReader::new(file);
        let mut line = Vec::new();
        // The last line may be on its way.
        while let Ok(bytes) = lines.read_until(b'\n', &mut line)
            && line.ends_with(b"\n")
        {
            *read += bytes as u64;
            self.count(&line);
            line.clear();
        }
    }

    fn count(&self, line: &[u8]) {
        let Ok(line) = serde_json::from_slice::<Line>(line) else {
            return;
        };
        let outcome = match &*line.state {
            // What comes of it is told by another line.
            "begun" => return,
            "failed" => "failed",
            _ => {
                let known = Outcome::ALL.into_iter();
                let mut known = known.filter(|outcome| outcome.as_str() == line.outcome);
                known.next().map_or("unknown", Outcome::label)
            }
        };
        let labels = &[&*line.manager, &*line.rule, &*line.action, outcome];
        self.counter.with_label_values(labels).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use prometheus::Opts;

    use super::*;

    #[test]
    fn each_action_counts_once_when_its_end_is_on_disk() {
        let folder = tempfile::tempdir().expect("a folder");
        let labels = &["manager", "rule", "action", "outcome"];
        let counter = IntCounterVec::new(Opts::new("actions", "actions"), labels).expect("valid");
        let resolutions = Resolutions::new(folder.path(), counter.clone());
        resolutions.look();
        let mut journal = File::create(folder.path().join(Journal::FILE)).expect("a file");
        let line = |state: &str, outcome: &str| {
            format!(
                r#"{{"manager":"plain","rule":"log","action":"commit","state":"{state}","outcome":"{outcome}","gid":"g"}}"#
            )
        };
        let done = Outcome::Done.as_str();
        let (begun, ended) = (line("begun", ""), line("ended", done));
        let (first, rest) = ended.split_at(20);
        write!(journal, "{begun}\n{first}").expect("written");
        let count = |outcome| {
            resolutions.look();
            counter
                .with_label_values(&["plain", "log", "commit", outcome])
                .get()
        };
        assert_eq!(count("done"), 0);
        writeln!(journal, "{rest}").expect("written");
        assert_eq!(count("done"), 1);
        let otherwise = line("ended", Outcome::Otherwise.as_str());
        writeln!(journal, "{begun}\n{otherwise}\n{}", line("failed", "no")).expect("written");
        assert_eq!(
            (count("done"), count("otherwise"), count("failed")),
            (1, 1, 1)
        );
    }
}

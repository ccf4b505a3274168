//! The record of repairs: JSON lines, on disk before anything is mended.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use async_trait::async_trait;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_reconciler::Audit;
use lockstep_reconciler::audit::Entry;
use serde::Serialize;

/// A file of JSON lines, one for each step of a repair.
#[derive(Clone)]
pub(super) struct Kept {
    pub path: PathBuf,
    /// Who asks.
    pub by: Option<String>,
}

/// A line of it, when it is written.
#[derive(Serialize)]
struct Line<'a> {
    by: Option<&'a str>,
    #[serde(flatten)]
    entry: &'a Entry,
}

#[async_trait]
impl Audit for Kept {
    async fn record(&self, entries: Vec<Entry>) -> Result<()> {
        let kept = self.clone();
        blocking(move || kept.write(&entries)).await
    }

    async fn end(&self) -> Result<u64> {
        let kept = self.clone();
        blocking(move || kept.length()).await
    }

    async fn behind(&self, end: u64) -> Result<Vec<Entry>> {
        let kept = self.clone();
        blocking(move || kept.read(end)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            let message = "keeping word of repairs has ended unexpectedly";
            Err(Error::new(ErrorKind::Protocol, message).source(error))
        })
}

impl Kept {
    fn length(&self) -> Result<u64> {
        match std::fs::metadata(&self.path) {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(self.unreadable(error)),
        }
    }

    /// The lines from there on. The last one of a process that was killed may be half of one: it was not safe, and nothing
    /// has followed from it.
    fn read(&self, begin: u64) -> Result<Vec<Entry>> {
        let mut text = Vec::new();
        let read = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(begin))?;
            file.read_to_end(&mut text)
        };
        match { read }() {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.unreadable(error)),
        }
        let lines = text.split(|byte| *byte == b'\n');
        Ok(lines
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect())
    }

    fn unreadable(&self, error: std::io::Error) -> Error {
        let message = format!(
            "the record of repairs {} cannot be read",
            self.path.display()
        );
        Error::new(ErrorKind::of_storage(&error), message).source(error)
    }

    fn write(&self, entries: &[Entry]) -> Result<()> {
        let mut lines = Vec::new();
        for entry in entries {
            let by = self.by.as_deref();
            serde_json::to_writer(&mut lines, &Line { by, entry }).map_err(|error| {
                Error::new(ErrorKind::Protocol, "word of a repair cannot be written").source(error)
            })?;
            lines.push(b'\n');
        }
        let mut append = || {
            let mut file = File::options()
                .read(true)
                .append(true)
                .create(true)
                .open(&self.path)?;
            if !ends_a_line(&mut file)? {
                lines.insert(0, b'\n');
            }
            file.write_all(&lines)?;
            file.sync_data()
        };
        append().map_err(|error| {
            let message = format!(
                "the record of repairs {} cannot be written",
                self.path.display()
            );
            Error::new(ErrorKind::of_storage(&error), message).source(error)
        })
    }
}

/// Whether nothing of a line was left at the end by a process that was killed.
fn ends_a_line(file: &mut File) -> std::io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use lockstep_reconciler::audit::Stage;
    use lockstep_reconciler::{Difference, Drift};

    use super::*;

    fn entry(key: &str) -> Entry {
        Entry {
            at_micros: 1,
            source: "shop".into(),
            table: "public.t".into(),
            sink: "cache".into(),
            stage: Stage::Planned,
            drift: Drift {
                key: vec![key.into()],
                held_as: format!("t:{key}"),
                fence: None,
                difference: Difference::Missing,
                repaired: false,
            },
        }
    }

    #[test]
    fn half_a_line_of_a_killed_process_hides_no_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let kept = Kept {
            path: folder.path().join("repairs.jsonl"),
            by: None,
        };
        assert_eq!(kept.length().expect("readable"), 0);
        assert_eq!(kept.read(0).expect("readable"), []);
        kept.write(&[entry("1")]).expect("written");
        let end = kept.length().expect("readable");
        let mut file = File::options()
            .append(true)
            .open(&kept.path)
            .expect("there");
        file.write_all(b"{\"by\":null,\"at_mic").expect("written");
        kept.write(&[entry("2"), entry("3")]).expect("written");
        assert_eq!(kept.read(end).expect("readable"), [entry("2"), entry("3")]);
        assert_eq!(kept.read(0).expect("readable").len(), 3);
    }
}

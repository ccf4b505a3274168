//! The record of repairs: JSON lines, on disk before anything is mended.

use std::fs::File;
use std::io::Write;
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

/// A line of it.
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
        let written = tokio::task::spawn_blocking(move || kept.write(&entries));
        written.await.unwrap_or_else(|error| {
            let message = "keeping word of repairs has ended unexpectedly";
            Err(Error::new(ErrorKind::Protocol, message).source(error))
        })
    }
}

impl Kept {
    fn write(&self, entries: &[Entry]) -> Result<()> {
        let mut lines = Vec::new();
        for entry in entries {
            let by = self.by.as_deref();
            serde_json::to_writer(&mut lines, &Line { by, entry }).map_err(|error| {
                Error::new(ErrorKind::Protocol, "word of a repair cannot be written").source(error)
            })?;
            lines.push(b'\n');
        }
        let append = || {
            let mut file = File::options().append(true).create(true).open(&self.path)?;
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

//! Ends in memory: a log with a slot to read from, a sink with a script of faults, a transform that remembers.
//!
//! Factories have no instance, so a section names its `script` and the ends are found by that name.

mod sink;
mod source;
mod transform;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_core::{Error, ErrorKind, Result};
use lockstep_pipelines::{Pipeline, Registry, Running};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

pub use sink::{Fault, MemorySink, RowSink, Store};
pub use source::{LogRow, ScriptedSource, Server};
pub use transform::{Witness, WitnessTransform};

/// Bytes that a change takes in a batch here; the budget counts in KiB.
pub const ROW_BYTES: usize = 1024;

/// The section of every end.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which end.
    pub script: String,
}

/// The ends of one sort, by script.
type Ends<T> = Mutex<HashMap<String, Arc<T>>>;

fn find<T>(ends: &Ends<T>, script: &str) -> Arc<T> {
    Arc::clone(
        ends.lock()
            .unwrap()
            .get(script)
            .unwrap_or_else(|| panic!("no end `{script}`")),
    )
}

pub fn registry() -> Registry {
    Registry::new()
        .with_source::<ScriptedSource>()
        .with_transform::<WitnessTransform>()
        .with_sink::<MemorySink>()
        .with_sink::<RowSink>()
}

pub fn error(kind: ErrorKind) -> Error {
    Error::new(kind, "a scripted fault")
}

/// Writes a pipeline file with a state directory of its own and loads it.
pub fn load(directory: &Path, body: &str) -> Pipeline {
    let path = directory.join("pipeline.toml");
    let state = directory.join("state");
    let text = format!(
        "name = \"test\"\nstate = {{ dir = {:?} }}\n{body}",
        state.display().to_string()
    );
    std::fs::write(&path, text).expect("written");
    lockstep_pipelines::file::load_with(&path, &registry(), &BTreeMap::new())
        .unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

/// A running pipeline that stops when told to.
pub struct Run {
    pub running: Running,
    pub shutdown: CancellationToken,
    pub directory: tempfile::TempDir,
}

impl Run {
    pub async fn start(body: &str) -> Run {
        Run::start_in(tempfile::tempdir().expect("directory"), body).await
    }

    /// As [`Run::start`], with the state of an earlier run.
    pub async fn start_in(directory: tempfile::TempDir, body: &str) -> Run {
        let pipeline = load(directory.path(), body);
        let shutdown = CancellationToken::new();
        let running = lockstep_pipelines::start(&pipeline, shutdown.clone())
            .await
            .expect("started");
        Run {
            running,
            shutdown,
            directory,
        }
    }

    /// Stops in order.
    pub async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        self.running.wait().await
    }

    /// Stops in order, and leaves the state.
    pub async fn stop_for_later(self) -> tempfile::TempDir {
        self.shutdown.cancel();
        self.running.wait().await.expect("stops in order");
        self.directory
    }
}

/// Waits, in the runtime's own time, until `condition` holds.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not in time: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

//! The section of the pipeline file.

use std::path::PathBuf;
use std::time::Duration as StdDuration;

use lockstep_core::config::{ByteSize, Duration};
use lockstep_core::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::document::Incomplete;

/// Default of [`Config::memory`].
pub const DEFAULT_MEMORY: ByteSize = ByteSize(32 << 20);
/// Least of [`Config::memory`]: the engine's own floor.
pub const MIN_MEMORY: ByteSize = ByteSize(15_000_000);
/// Most of [`Config::memory`].
const MAX_MEMORY: ByteSize = ByteSize(4 << 30);
/// Default of [`Config::commit_interval`].
pub const DEFAULT_COMMIT_INTERVAL: Duration = Duration(StdDuration::from_millis(500));

/// A sink of type `tantivy`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The folder of the index. It is created when missing. Two sinks cannot share one.
    pub path: PathBuf,
    /// Memory for documents that are not on disk yet, from 15MB. An index with more of it has fewer and larger segments.
    #[serde(default = "default_memory")]
    pub memory: ByteSize,
    /// The longest that a change waits for the commit that makes it durable and visible. While little happens commits
    /// follow at once.
    #[serde(default = "default_commit_interval")]
    pub commit_interval: Duration,
    /// What happens when an UPDATE left a TOASTed value unchanged and the index has no document that holds it.
    #[serde(default)]
    pub incomplete: Incomplete,
}

fn default_memory() -> ByteSize {
    DEFAULT_MEMORY
}
fn default_commit_interval() -> Duration {
    DEFAULT_COMMIT_INTERVAL
}

impl Config {
    /// Checks what can be checked without I/O.
    ///
    /// # Errors
    /// Of kind `Config`, naming the field.
    pub fn validate(&self) -> Result<()> {
        let wrong = |message: String| Err(Error::new(ErrorKind::Config, message));
        if self.path.as_os_str().is_empty() {
            return wrong("`path` is empty".to_owned())
                .map_err(|error| error.remedy("name the folder of the index"));
        }
        if self.memory < MIN_MEMORY || self.memory > MAX_MEMORY {
            return wrong(format!("`memory` is {} bytes", self.memory.0))
                .map_err(|error| error.remedy("choose 15MB to 4GiB"));
        }
        if self.commit_interval.0.is_zero() {
            return wrong("`commit_interval` is zero".to_owned())
                .map_err(|error| error.remedy("leave it out to use the default"));
        }
        Ok(())
    }
}

//! The section of the pipeline file.

use std::time::Duration as StdDuration;

use lockstep_core::config::Duration;
use lockstep_core::template::Template;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::{DEFAULT_DECIMALS, Decimals, Format};
use schemars::JsonSchema;
use serde::Deserialize;

/// The default of `sync_interval`.
pub const DEFAULT_SYNC_INTERVAL: Duration = Duration(StdDuration::from_millis(200));

/// A file sink: change events as JSON lines.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// The file of a table, such as `changes/{source}.{schema}.{table}.jsonl`. Fields: `{source}`, `{schema}`,
    /// `{table}`; characters that would leave the folder become `_`. Folders are made. Lines are appended.
    pub path: String,

    /// The envelope of values: `debezium` or `flat`.
    #[serde(default)]
    pub format: Format,

    /// How `debezium` writes `numeric`: `string` (exact text), `precise` (base64 as Debezium's default) or `double`.
    #[serde(default = "default_decimals")]
    pub decimals: Decimals,

    /// The longest that lines wait for their fsync while more come in. When none come, it is done at once.
    #[serde(default = "default_sync_interval")]
    pub sync_interval: Duration,
}

fn default_decimals() -> Decimals {
    DEFAULT_DECIMALS
}

fn default_sync_interval() -> Duration {
    DEFAULT_SYNC_INTERVAL
}

impl FileConfig {
    pub(crate) fn check(&self) -> Result<()> {
        if self.path.trim().is_empty() || self.path.ends_with('/') {
            return Err(
                Error::new(ErrorKind::Config, format!("`{}` names no file", self.path))
                    .remedy("write a path such as `changes/{source}.{schema}.{table}.jsonl`")
                    .at("path"),
            );
        }
        self.template().map(drop)
    }

    pub(crate) fn template(&self) -> Result<Template> {
        Template::parse(&self.path, &["source", "schema", "table"])
            .map_err(|cause| Error::new(ErrorKind::Config, cause).at("path"))
    }
}

//! `lockstep schema`.

use std::process::ExitCode;

use lockstep_core::{Error, ErrorKind};
use lockstep_pipelines::Registry;

use crate::{Outcome, output};

/// Prints the JSON Schema of the pipeline file.
pub fn schema(registry: &Registry) -> Outcome {
    let schema = lockstep_pipelines::schema::schema(registry);
    let text = serde_json::to_string_pretty(&schema).map_err(|error| {
        Error::new(ErrorKind::Protocol, "the schema cannot be printed").source(error)
    })?;
    output::print(&format!("{text}\n"));
    Ok(ExitCode::SUCCESS)
}

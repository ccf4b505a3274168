//! `lockstep schema`.

mod chart;

use std::process::ExitCode;

use lockstep_core::{Error, ErrorKind};
use lockstep_pipelines::Registry;

use crate::{Outcome, output};

/// Prints the JSON Schema of the pipeline file, as an editor takes it or, for a `chart`, as Helm does.
pub fn schema(registry: &Registry, chart: bool) -> Outcome {
    let schema = lockstep_pipelines::schema::schema(registry);
    let schema = match chart {
        true => chart::written(&schema),
        false => schema,
    };
    let text = serde_json::to_string_pretty(&schema).map_err(|error| {
        Error::new(ErrorKind::Protocol, "the schema cannot be printed").source(error)
    })?;
    output::print(&format!("{text}\n"));
    Ok(ExitCode::SUCCESS)
}

//! `lockstep search PATH QUERY`.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use lockstep_core::{Error, ErrorKind};
use serde_json::{Value, json};

use crate::cli::Format;
use crate::{Outcome, output};

/// Prints the rows that a query finds, best first.
pub fn search(path: &Path, query: &str, limit: usize, format: Format) -> Outcome {
    let hits = lockstep_sink_search::tantivy::search(path, query, limit)?;
    let mut out = String::new();
    for hit in &hits {
        let row: Value = serde_json::from_str(&hit.source_json).map_err(|error| {
            Error::new(ErrorKind::Storage, "a stored row is not JSON").source(error)
        })?;
        // Writing to a String cannot fail.
        let _ = match format {
            Format::Json => {
                writeln!(
                    out,
                    "{}",
                    json!({ "table": hit.table, "id": hit.id, "score": hit.score, "row": row })
                )
            }
            Format::Table => writeln!(
                out,
                "{:>6.2}  {}  {}\n        {row}",
                hit.score, hit.table, hit.id
            ),
        };
    }
    if format == Format::Table {
        let _ = writeln!(out, "{} found", hits.len());
    }
    output::print(&out);
    Ok(ExitCode::SUCCESS)
}

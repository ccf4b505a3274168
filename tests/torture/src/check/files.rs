//! JSON lines.

use std::path::Path;

use serde_json::Value;

use super::history::Record;

pub(super) fn read(path: &Path) -> Result<Vec<Record>, String> {
    let said = |cause: &dyn std::fmt::Display| format!("{}: {cause}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| said(&error))?;
    let lines = text.lines().map(|line| {
        let mut line: Value =
            serde_json::from_str(line).map_err(|error| format!("{}: {line}", said(&error)))?;
        Ok(Record {
            partition: 0,
            key: line["key"].take(),
            value: line["value"].take(),
        })
    });
    lines.collect()
}

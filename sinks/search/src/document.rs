//! The document of a row: the row as JSON, on one line, columns in schema order.

use std::collections::HashMap;
use std::sync::Arc;

use lockstep_core::batch::{CellRef, Row};
use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::row::RowJson;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// What happens when an UPDATE left a TOASTed value unchanged and the index has no document that holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Incomplete {
    /// The row is refused: put aside, or with `on_error = "stop"` the end of the pipeline.
    #[default]
    Error,
    /// The document is written without the field, and a warning is logged.
    Write,
}

/// The fields of a document that the index holds, each as it stands there.
pub(crate) type Fields<'a> = HashMap<String, &'a RawValue>;

/// Writes the documents of one schema version.
pub(crate) struct Documents {
    schema: Arc<TableSchema>,
    json: RowJson,
    /// `"name":` per column.
    names: Vec<Vec<u8>>,
}

impl Documents {
    pub(crate) fn new(schema: &Arc<TableSchema>) -> Self {
        let names = schema.columns.iter().map(|column| {
            let mut name = json_text(&column.name).into_bytes();
            name.push(b':');
            name
        });
        Documents {
            schema: Arc::clone(schema),
            json: RowJson::new(schema),
            names: names.collect(),
        }
    }

    /// Appends the document of a row to `out`.
    ///
    /// # Errors
    /// When a value cannot be written, and when one is unchanged: such rows go through [`Documents::splice`].
    pub(crate) fn write(&self, row: Row<'_>, out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        let mut missing = Vec::new();
        self.json.write(row, out, &mut missing)?;
        one_line(&mut out[start..]);
        match missing.first() {
            None => Ok(()),
            Some(&column) => Err(Error::new(
                ErrorKind::Protocol,
                format!(
                    "column `{}` is unchanged, and nothing says which document has it",
                    self.schema.columns[usize::from(column)].name
                ),
            )
            .at(format!("table {}", self.schema.id))),
        }
    }

    /// Appends the document of a row to `out`; the columns that the update left unchanged come from `held`, byte for
    /// byte. Returns the columns that `held` does not have; they are left out of the document.
    ///
    /// # Errors
    /// When a value cannot be written.
    pub(crate) fn splice(
        &self,
        row: Row<'_>,
        held: &Fields<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Vec<Arc<str>>> {
        let start = out.len();
        let mut absent = Vec::new();
        out.push(b'{');
        for (index, column) in self.schema.columns.iter().enumerate() {
            let cell = row.get(column);
            let kept = match cell {
                CellRef::Unchanged => match held.get(&*column.name) {
                    Some(value) => Some(*value),
                    None => {
                        absent.push(Arc::clone(&column.name));
                        continue;
                    }
                },
                CellRef::Null | CellRef::Text(_) | CellRef::Binary(_) => None,
            };
            if out.len() > start + 1 {
                out.push(b',');
            }
            out.extend_from_slice(&self.names[index]);
            match kept {
                Some(value) => out.extend_from_slice(value.get().as_bytes()),
                None => self.json.write_value(index, cell, out)?,
            }
        }
        out.push(b'}');
        one_line(&mut out[start..]);
        Ok(absent)
    }
}

/// Reads the fields of a document, without looking into their values.
pub(crate) fn fields(source: &str) -> Result<Fields<'_>> {
    serde_json::from_str(source).map_err(|error| {
        Error::new(
            ErrorKind::Protocol,
            "a document that the index holds is not a JSON object",
        )
        .source(error)
    })
}

/// `text` as a JSON string.
pub(crate) fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Whether two documents say the same. Equal bytes do; else spacing and the order of the fields do not count.
pub(crate) fn same(left: &str, right: &str) -> bool {
    let parsed = |text| serde_json::from_str::<serde_json::Value>(text).ok();
    left == right || parsed(left).is_some_and(|left| Some(left) == parsed(right))
}

/// A `json` value keeps the line breaks that it was written with, and one would end the document: bulk requests are
/// lines. Outside strings a break is mere spacing, and inside strings JSON has no raw breaks.
fn one_line(json: &mut [u8]) {
    for byte in json {
        if matches!(*byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}

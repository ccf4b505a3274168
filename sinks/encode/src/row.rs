//! A row as JSON, in the natural mapping.
//!
//! | type | JSON |
//! |---|---|
//! | boolean | `true`, `false` |
//! | `int2`, `int4`, `int8`, `oid` | number |
//! | `float4`, `float8` | number as PostgreSQL prints it; `"NaN"`, `"Infinity"`, `"-Infinity"` |
//! | `numeric` | string, digit for digit |
//! | `money` | string without currency sign and grouping, `"1234.56"` |
//! | `date`, `time`, `timestamp` | ISO 8601 string without zone; years beyond 0 to 9999 signed; `"infinity"` |
//! | `timestamptz` | ISO 8601 string in UTC, `"2024-02-29T11:51:30.123Z"` |
//! | `timetz` | ISO 8601 string with its offset, `"13:51:30+02:00"` |
//! | `interval` | ISO 8601 duration, `"P1Y2M3DT4H5M6.789S"` |
//! | `bytea` | base64 string |
//! | `json`, `jsonb` | nested as it is, on one line |
//! | `hstore` | object |
//! | arrays | array, one level per dimension |
//! | all others (enums, `uuid`, bit strings, ranges, geometric and composite types, …) | string, as PostgreSQL prints it |

use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::batch::{CellRef, Row};
use lockstep_core::schema::TableSchema;

use crate::columns::Columns;
use crate::value::Mapping;

/// Writes rows of one schema version as JSON. Build it once per schema version ([`crate::plans::Plans`]).
#[derive(Debug)]
pub struct RowJson {
    columns: Columns,
}

impl RowJson {
    /// The plan for `schema`.
    #[must_use]
    pub fn new(schema: &Arc<TableSchema>) -> Self {
        RowJson {
            columns: Columns::all(schema, Mapping::Natural),
        }
    }

    /// The schema the plan is for.
    #[must_use]
    pub fn schema(&self) -> &Arc<TableSchema> {
        self.columns.schema()
    }

    /// Appends `{"a":1,…}` to `out`. Columns whose cell is [`CellRef::Unchanged`] are left out and their indices (into
    /// `schema.columns`) pushed to `missing`.
    ///
    /// # Errors
    /// Kind `Refused`, naming table and column, for a value that its type cannot have; kind `Protocol` for one in
    /// binary form. `out` then holds half a row.
    pub fn write(&self, row: Row<'_>, out: &mut Vec<u8>, missing: &mut Vec<u16>) -> Result<()> {
        self.columns.write_present(row, out, missing)
    }

    /// Appends the JSON value of one column (an index into `schema.columns`).
    ///
    /// # Errors
    /// As for [`RowJson::write`]; an unchanged value has no JSON and is an error of kind `Protocol`.
    pub fn write_value(&self, column: usize, cell: CellRef<'_>, out: &mut Vec<u8>) -> Result<()> {
        self.columns.write_value(column, cell, out)
    }

    /// Appends one column as plain text (for hash fields and templates): what JSON has as a string without its quotes
    /// and escapes, anything else as JSON. `Ok(false)` and nothing written for NULL and for an unchanged value.
    ///
    /// # Errors
    /// As for [`RowJson::write`].
    pub fn write_text(&self, column: usize, cell: CellRef<'_>, out: &mut Vec<u8>) -> Result<bool> {
        self.columns.write_text(column, cell, out)
    }
}

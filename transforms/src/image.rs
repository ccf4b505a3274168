//! Rows that begin to be seen behind a transform.

use lockstep_core::batch::{Change, Op, Row};
use lockstep_core::schema::TableSchema;

/// The UPDATE that brings a row in, as an INSERT. A value that the log does not carry (unchanged TOAST without REPLICA
/// IDENTITY FULL) cannot be had here: then it stays an UPDATE, so that sinks know that something is missing, and the log
/// says so.
pub(crate) fn enters(schema: &TableSchema, row: Row<'_>, change: &Change) -> Change {
    let mut entered = change.into_insert();
    let cells = row.cells();
    let gap = |cell: u16| cells[usize::from(cell)].is_unchanged();
    if let Some(column) = schema.columns.iter().find(|column| gap(column.slot)) {
        tracing::warn!(
            table = %schema.id,
            column = %column.name,
            "a row begins to pass without the value of a column that the log does not carry; \
             REPLICA IDENTITY FULL avoids this"
        );
        entered.op = Op::Update;
    }
    entered
}

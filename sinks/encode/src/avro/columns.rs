//! Rows: the columns of one schema version, one after the other.

use std::collections::HashMap;
use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::batch::{CellRef, Row};
use lockstep_core::schema::{Column, TableSchema};
use serde_json::{Value, json};

use super::form::Form;
use super::types::{self, Defined};
use super::wire::{NULL, PRESENT};
use super::{ORIGINAL, names};
use crate::errors::absent;
use crate::value::{Bad, Mapping};

/// A chosen list of a table's columns.
#[derive(Debug)]
pub(super) struct Columns {
    schema: Arc<TableSchema>,
    columns: Vec<Planned>,
}

#[derive(Debug)]
struct Planned {
    /// Into `schema.columns`.
    index: u16,
    form: Form,
    /// Part of the key, which is never NULL; all others are unions of null and what they are.
    is_key: bool,
    /// What stands for a value that the log does not carry; `None` where nothing can.
    unavailable: Option<Box<[u8]>>,
}

impl Columns {
    /// All columns that the mapping has a form for, in table order, and the fields of their record.
    ///
    /// # Errors
    /// When the names of two clash.
    pub(super) fn all(schema: &Arc<TableSchema>, mapping: Mapping) -> Result<(Self, Vec<Value>)> {
        Self::of(schema, mapping, 0..schema.columns.len() as u16)
    }

    /// The key columns in key order.
    ///
    /// # Errors
    /// When the names of two clash.
    pub(super) fn key(schema: &Arc<TableSchema>, mapping: Mapping) -> Result<(Self, Vec<Value>)> {
        Self::of(schema, mapping, schema.key.iter().copied())
    }

    fn of(
        schema: &Arc<TableSchema>,
        mapping: Mapping,
        indices: impl Iterator<Item = u16>,
    ) -> Result<(Self, Vec<Value>)> {
        let (mut columns, mut fields) = (Vec::new(), Vec::new());
        let mut defined = Defined::new();
        let mut named: HashMap<String, &Column> = HashMap::new();
        for index in indices {
            let column = &schema.columns[usize::from(index)];
            let Some(typed) = types::of(mapping, &column.ty, &mut defined) else {
                continue;
            };
            let name = names::fit(&column.name);
            if let Some(other) = named.insert(name.clone(), column) {
                return Err(names::clash(schema, other, column));
            }
            let is_key = schema.key.contains(&index);
            let mut field = match is_key {
                true => json!({"name": name, "type": typed.schema}),
                false => json!({"name": name, "type": ["null", typed.schema], "default": null}),
            };
            if *name != *column.name {
                field[ORIGINAL] = json!(column.name);
            }
            fields.push(field);
            columns.push(Planned {
                index,
                unavailable: typed.form.unavailable().map(Vec::into_boxed_slice),
                form: typed.form,
                is_key,
            });
        }
        let columns = Columns {
            schema: Arc::clone(schema),
            columns,
        };
        Ok((columns, fields))
    }

    pub(super) fn schema(&self) -> &Arc<TableSchema> {
        &self.schema
    }

    pub(super) fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Appends all columns, and what stands for values that the log does not carry; key values that an update left as they were are
    /// those of `old`.
    pub(super) fn write(
        &self,
        row: Row<'_>,
        old: Option<Row<'_>>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        for column in &self.columns {
            if self.write_known(column, row, old, out)? {
                continue;
            }
            let Some(word) = &column.unavailable else {
                return Err(Bad::Unchanged.of(&self.schema, self.column(column)));
            };
            if !column.is_key {
                out.push(PRESENT);
            }
            out.extend_from_slice(word);
        }
        Ok(())
    }

    /// Appends all columns; values that the log does not carry are null, and their indices pushed to `missing`.
    pub(super) fn write_present(
        &self,
        row: Row<'_>,
        old: Option<Row<'_>>,
        out: &mut Vec<u8>,
        missing: &mut Vec<u16>,
    ) -> Result<()> {
        for column in &self.columns {
            if self.write_known(column, row, old, out)? {
                continue;
            }
            if column.is_key {
                return Err(absent(&self.schema, self.column(column)));
            }
            out.push(NULL);
            missing.push(column.index);
        }
        Ok(())
    }

    /// Appends the value of a column; `false` where the log does not carry it.
    #[inline]
    fn write_known(
        &self,
        planned: &Planned,
        row: Row<'_>,
        old: Option<Row<'_>>,
        out: &mut Vec<u8>,
    ) -> Result<bool> {
        let column = self.column(planned);
        let mut cell = row.get(column);
        if cell == CellRef::Unchanged
            && planned.is_key
            && let Some(old) = old
        {
            cell = old.get(column);
        }
        let done = match cell {
            CellRef::Unchanged => return Ok(false),
            CellRef::Null if planned.is_key => return Err(absent(&self.schema, column)),
            CellRef::Null => {
                out.push(NULL);
                return Ok(true);
            }
            CellRef::Text(text) => {
                if !planned.is_key {
                    out.push(PRESENT);
                }
                planned.form.write(text, out)
            }
            CellRef::Binary(bytes) => {
                if !planned.is_key {
                    out.push(PRESENT);
                }
                planned.form.write_binary(bytes, out)
            }
        };
        match done {
            Ok(()) => Ok(true),
            Err(bad) => Err(bad.of(&self.schema, column)),
        }
    }

    fn column(&self, planned: &Planned) -> &Column {
        &self.schema.columns[usize::from(planned.index)]
    }
}

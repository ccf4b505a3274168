//! The columns of one schema version, ready to be written in one mapping.

use std::sync::Arc;

use lockstep_core::batch::{CellRef, Row};
use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, ErrorKind, Result};

use crate::envelope::read::members;
use crate::value::text::write_string;
use crate::value::toast::unavailable;
use crate::value::{Bad, Mapping, Plan};

/// A chosen list of a table's columns.
#[derive(Debug)]
pub(crate) struct Columns {
    schema: Arc<TableSchema>,
    columns: Vec<ColumnPlan>,
}

#[derive(Debug)]
struct ColumnPlan {
    /// Into `schema.columns`.
    index: u16,
    /// `,"name":`
    label: Box<[u8]>,
    plan: Plan,
    /// The JSON of an unchanged value.
    unchanged: Box<[u8]>,
}

impl Columns {
    /// All columns that the mapping has a form for, in table order.
    pub(crate) fn all(schema: &Arc<TableSchema>, mapping: Mapping) -> Self {
        Self::of(schema, mapping, 0..schema.columns.len() as u16)
    }

    /// The key columns in key order.
    pub(crate) fn key(schema: &Arc<TableSchema>, mapping: Mapping) -> Self {
        Self::of(schema, mapping, schema.key.iter().copied())
    }

    fn of(schema: &Arc<TableSchema>, mapping: Mapping, indices: impl Iterator<Item = u16>) -> Self {
        let columns = indices
            .filter_map(|index| {
                let column = &schema.columns[usize::from(index)];
                let plan = mapping.plan(&column.ty);
                (plan != Plan::Omit).then(|| ColumnPlan {
                    index,
                    label: label(&column.name),
                    plan,
                    unchanged: unavailable(&column.ty, mapping).into(),
                })
            })
            .collect();
        Columns {
            schema: Arc::clone(schema),
            columns,
        }
    }

    pub(crate) fn schema(&self) -> &Arc<TableSchema> {
        &self.schema
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Appends all columns as an object, unchanged values by what stands for them.
    pub(crate) fn write(&self, row: Row<'_>, out: &mut Vec<u8>) -> Result<()> {
        self.write_with(row, out, |column, cell, out| {
            column.plan.write_cell(cell, &column.unchanged, out)
        })
    }

    /// Appends all columns as an object; where the cell of `row` is unchanged, that of `other`.
    pub(crate) fn write_or(&self, row: Row<'_>, other: Row<'_>, out: &mut Vec<u8>) -> Result<()> {
        let schema = &self.schema;
        self.write_with(row, out, |column, cell, out| {
            let cell = match cell {
                CellRef::Unchanged => other.get(&schema.columns[usize::from(column.index)]),
                cell => cell,
            };
            column.plan.write_cell(cell, &column.unchanged, out)
        })
    }

    #[inline]
    fn write_with(
        &self,
        row: Row<'_>,
        out: &mut Vec<u8>,
        write: impl Fn(&ColumnPlan, CellRef<'_>, &mut Vec<u8>) -> Result<(), Bad>,
    ) -> Result<()> {
        let start = out.len();
        for column in &self.columns {
            out.extend_from_slice(&column.label);
            let cell = row.get(&self.schema.columns[usize::from(column.index)]);
            write(column, cell, out).map_err(|bad| self.error(bad, column.index))?;
        }
        self.close(start, out);
        Ok(())
    }

    /// Whether values of all columns can be read back.
    pub(crate) fn read_back(&self) -> bool {
        self.columns.iter().all(|column| column.plan.reads_back())
    }

    /// The texts of the values of which [`Columns::write`] makes just this object.
    pub(crate) fn values(&self, object: &[u8]) -> Option<Vec<String>> {
        let members = members(object)?;
        if members.len() != self.columns.len() {
            return None;
        }
        let mut values = Vec::with_capacity(members.len());
        let mut again = Vec::with_capacity(object.len());
        for (column, (_, json)) in self.columns.iter().zip(members) {
            let value = column.plan.read(json)?;
            again.extend_from_slice(&column.label);
            column.plan.write(value.as_bytes(), &mut again).ok()?;
            values.push(value);
        }
        self.close(0, &mut again);
        (again == object).then_some(values)
    }

    /// Appends the columns as an object; unchanged ones are left out and pushed to `missing`.
    pub(crate) fn write_present(
        &self,
        row: Row<'_>,
        out: &mut Vec<u8>,
        missing: &mut Vec<u16>,
    ) -> Result<()> {
        let start = out.len();
        for column in &self.columns {
            let cell = row.get(&self.schema.columns[usize::from(column.index)]);
            if cell == CellRef::Unchanged {
                missing.push(column.index);
                continue;
            }
            out.extend_from_slice(&column.label);
            column
                .plan
                .write_cell(cell, &column.unchanged, out)
                .map_err(|bad| self.error(bad, column.index))?;
        }
        self.close(start, out);
        Ok(())
    }

    /// Turns the comma before the first column into the opening brace.
    fn close(&self, start: usize, out: &mut Vec<u8>) {
        match out.get_mut(start) {
            Some(comma) => *comma = b'{',
            None => out.push(b'{'),
        }
        out.push(b'}');
    }

    /// Appends the value of one column of [`Columns::all`] of a mapping that omits nothing.
    pub(crate) fn write_value(
        &self,
        column: usize,
        cell: CellRef<'_>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let plan = &self.columns[column];
        if cell == CellRef::Unchanged {
            return Err(self.unchanged(plan.index));
        }
        plan.plan
            .write_cell(cell, &[], out)
            .map_err(|bad| self.error(bad, plan.index))
    }

    /// Appends the value of one column as plain text; `false` for NULL and unchanged.
    pub(crate) fn write_text(
        &self,
        column: usize,
        cell: CellRef<'_>,
        out: &mut Vec<u8>,
    ) -> Result<bool> {
        let plan = &self.columns[column];
        let done = match cell {
            CellRef::Null | CellRef::Unchanged => return Ok(false),
            CellRef::Text(value) => plan.plan.write_text(value, out),
            CellRef::Binary(_) => Err(Bad::Binary),
        };
        done.map_err(|bad| self.error(bad, plan.index))?;
        Ok(true)
    }

    #[cold]
    fn error(&self, bad: Bad, index: u16) -> Error {
        bad.of(&self.schema, &self.schema.columns[usize::from(index)])
    }

    #[cold]
    fn unchanged(&self, index: u16) -> Error {
        let column = &self.schema.columns[usize::from(index)];
        Error::new(ErrorKind::Protocol, "an unchanged value was asked for")
            .remedy("report this: the caller must leave unchanged columns to what the sink holds")
            .at(format!(
                "table {}: column {}",
                self.schema.origin, column.name
            ))
    }
}

fn label(name: &str) -> Box<[u8]> {
    let mut label = vec![b','];
    write_string(name.as_bytes(), &mut label).expect("a str is UTF-8");
    label.push(b':');
    label.into()
}

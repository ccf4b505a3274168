//! Rows as the words that scripts take.

use std::borrow::Cow;
use std::sync::Arc;

use lockstep_core::batch::{CellRef, Row};
use lockstep_core::position::Position;
use lockstep_core::schema::{Column, TableSchema};
use lockstep_core::template::Template;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::plans::Plans;
use lockstep_encode::row::RowJson;

use crate::config::ValueFormat;
use crate::flush::{Flush, Words};
use crate::keys::Space;
use crate::scripts::Script;
use crate::splice;
use crate::state::Pair;
use crate::version::Version;

/// What is needed to write rows of one schema version.
pub(crate) struct Table {
    schema: Arc<TableSchema>,
    format: ValueFormat,
    pub(crate) space: Space,
    json: RowJson,
    /// `"name":` of each column.
    names: Vec<Vec<u8>>,
}

/// The tables that have been seen.
pub(crate) struct Tables {
    template: Template,
    format: ValueFormat,
    plans: Plans<Table>,
    spaces: Vec<Space>,
}

/// The values that a row keeps from what the server held.
pub(crate) enum Base {
    /// All values are in the row.
    Whole,
    /// The server puts the row's values into the hash it has.
    Merge,
    /// The JSON that was held, if any.
    Json(Option<Vec<u8>>),
    /// The fields that were held, one for each unchanged column in column order.
    Fields(Vec<Option<Vec<u8>>>),
}

/// A row that has been put into a flush.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Written {
    /// Its payload.
    pub(crate) bytes: usize,
    /// Columns left out, because nobody has their values.
    pub(crate) gaps: usize,
}

impl Tables {
    pub(crate) fn new(template: Template, format: ValueFormat) -> Self {
        Tables {
            template,
            format,
            plans: Plans::new(),
            spaces: Vec::new(),
        }
    }

    /// What keys hold.
    pub(crate) fn format(&self) -> ValueFormat {
        self.format
    }

    /// The plan for a schema version.
    ///
    /// # Errors
    /// Kind `Config` when the rows of this table and of another could get the same keys.
    pub(crate) fn get(&mut self, schema: &Arc<TableSchema>) -> Result<&Table> {
        let (template, spaces, format) = (&self.template, &mut self.spaces, self.format);
        let plan = self.plans.get_or_try(schema, |schema| {
            let space = Space::new(template, schema)?;
            if let Some(other) = spaces.iter().find(|known| known.clashes(&space)) {
                return Err(space.clash(other, template));
            }
            if !spaces.contains(&space) {
                spaces.push(space.clone());
            }
            Table::new(schema, space, format)
        })?;
        Ok(plan)
    }
}

impl Table {
    fn new(schema: &Arc<TableSchema>, space: Space, format: ValueFormat) -> Result<Self> {
        let quoted = |column: &Column| {
            let mut name = serde_json::to_vec(&*column.name).map_err(|cause| {
                Error::new(ErrorKind::Protocol, "a column's name has no JSON").source(cause)
            })?;
            name.push(b':');
            Ok(name)
        };
        Ok(Table {
            names: schema.columns.iter().map(quoted).collect::<Result<_>>()?,
            schema: Arc::clone(schema),
            format,
            space,
            json: RowJson::new(schema),
        })
    }

    /// The key of the row with these key values.
    pub(crate) fn key(&self, key: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        self.space.render(key, &mut out);
        out
    }

    /// Names of the columns that `row` does not carry.
    pub(crate) fn unchanged<'a>(&'a self, row: Row<'a>) -> impl Iterator<Item = &'a str> {
        self.schema
            .columns
            .iter()
            .filter(move |column| row.get(column) == CellRef::Unchanged)
            .map(|column| &*column.name)
    }

    /// Puts a row into `flush`.
    pub(crate) fn upsert(
        &self,
        flush: &mut Flush,
        key: &str,
        row: Row<'_>,
        version: (Version, Position),
        base: &Base,
    ) -> Result<Written> {
        let mut gaps = 0;
        let script = match self.format {
            ValueFormat::Json => Script::Put,
            ValueFormat::Hash => Script::Hash,
        };
        let render = |out: &mut Vec<u8>| self.space.render(key, out);
        let bytes = flush.write(script, version, render, |words| {
            gaps = match self.format {
                ValueFormat::Json => self.json_words(row, base, words)?,
                ValueFormat::Hash => self.hash_words(row, base, words)?,
            };
            Ok(())
        })?;
        Ok(Written { bytes, gaps })
    }

    /// Puts a delete into `flush`.
    pub(crate) fn delete(
        &self,
        flush: &mut Flush,
        key: &str,
        version: (Version, Position),
    ) -> Result<()> {
        let render = |out: &mut Vec<u8>| self.space.render(key, out);
        flush
            .write(Script::Drop, version, render, |_| Ok(()))
            .map(|_| ())
    }

    fn json_words(&self, row: Row<'_>, base: &Base, words: &mut Words<'_>) -> Result<usize> {
        let held = match base {
            Base::Whole => {
                words.add(|out| self.row_json(row, out).map(|()| true))?;
                return Ok(0);
            }
            Base::Json(held) => held.as_deref().and_then(splice::parse),
            Base::Merge | Base::Fields(_) => None,
        };
        let mut gaps = 0;
        words.add(|out| {
            gaps = self.spliced_json(row, held.as_deref().unwrap_or_default(), out)?;
            Ok(true)
        })?;
        Ok(gaps)
    }

    /// The row as JSON; it must carry all its values.
    pub(crate) fn row_json(&self, row: Row<'_>, out: &mut Vec<u8>) -> Result<()> {
        let mut missing = Vec::new();
        self.json.write(row, out, &mut missing)?;
        match missing.first() {
            None => Ok(()),
            Some(&column) => Err(self.unexpectedly_unchanged(usize::from(column))),
        }
    }

    /// The row as JSON in column order, with the texts of unchanged columns taken from `held`: no number passes through
    /// a machine type. Returns how many columns nobody has.
    fn spliced_json(
        &self,
        row: Row<'_>,
        held: &[(Cow<'_, str>, &str)],
        out: &mut Vec<u8>,
    ) -> Result<usize> {
        let mut gaps = 0;
        let mut separator = b'{';
        for (index, column) in self.schema.columns.iter().enumerate() {
            let cell = row.get(column);
            let kept = match cell {
                CellRef::Unchanged => match held.iter().find(|(name, _)| *name == *column.name) {
                    Some((_, text)) => Some(*text),
                    None => {
                        gaps += 1;
                        continue;
                    }
                },
                _ => None,
            };
            out.push(separator);
            separator = b',';
            out.extend_from_slice(&self.names[index]);
            match kept {
                Some(text) => out.extend_from_slice(text.as_bytes()),
                None => self.json.write_value(index, cell, out)?,
            }
        }
        if separator == b'{' {
            out.push(b'{');
        }
        out.push(b'}');
        Ok(gaps)
    }

    /// The words of a hash: how, number of words to set, field, value, …, number of fields to keep, field, …
    fn hash_words(&self, row: Row<'_>, base: &Base, words: &mut Words<'_>) -> Result<usize> {
        let merge = matches!(base, Base::Merge);
        let mut kept = match base {
            Base::Fields(fields) => fields.as_slice(),
            _ => &[],
        }
        .iter();
        words.push(if merge { b"merge" } else { b"replace" });
        let count = words.hold();
        let (mut set, mut gaps, mut unchanged) = (0, 0, Vec::new());
        for (index, column) in self.schema.columns.iter().enumerate() {
            let cell = row.get(column);
            words.push(column.name.as_bytes());
            let has_value = match (cell, base) {
                (CellRef::Unchanged, Base::Whole) => return Err(self.unexpectedly_unchanged(index)),
                (CellRef::Unchanged, Base::Merge) => false,
                (CellRef::Unchanged, _) => match kept.next().and_then(Option::as_ref) {
                    Some(value) => {
                        words.push(value);
                        true
                    }
                    None => {
                        gaps += 1;
                        false
                    }
                },
                (cell, _) => words.add(|out| self.json.write_text(index, cell, out))?,
            };
            if has_value {
                set += 2;
            } else {
                words.pop();
                if cell == CellRef::Unchanged {
                    unchanged.push(index);
                }
            }
        }
        words.fill(count, set);
        let kept = if merge { unchanged.as_slice() } else { &[] };
        let count = words.hold();
        words.fill(count, kept.len());
        for &index in kept {
            words.push(self.schema.columns[index].name.as_bytes());
        }
        Ok(gaps)
    }

    /// Fields and values of a row as a hash, NULLs left out.
    pub(crate) fn row_fields(&self, row: Row<'_>) -> Result<Vec<Pair>> {
        let mut fields = Vec::with_capacity(self.schema.columns.len());
        for (index, column) in self.schema.columns.iter().enumerate() {
            let mut value = Vec::new();
            if self.json.write_text(index, row.get(column), &mut value)? {
                fields.push((column.name.as_bytes().to_vec(), value));
            }
        }
        Ok(fields)
    }

    fn unexpectedly_unchanged(&self, column: usize) -> Error {
        Error::new(
            ErrorKind::Protocol,
            format!(
                "a row of {} came as whole but lacks the value of column {}",
                self.schema.id, self.schema.columns[column].name
            ),
        )
        .remedy("report this with the table's definition")
    }
}

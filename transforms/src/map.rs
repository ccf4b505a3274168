//! `map`: makes new columns of expressions, and replaces values by them.
//!
//! The cells that a row has stay where they are; what is made is put behind them, and the schema points there. All expressions see the
//! row as it came. A row is mapped by itself alone, so that sinks behind it can be compared with the source.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use lockstep_core::batch::{Batch, Cell, Change, OldImage, Rewrite, Row};
use lockstep_core::schema::{Column, ColumnType, TableSchema};
use lockstep_core::transform::{Transform, TransformContext, TransformFactory};
use lockstep_core::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::expr::{Bound, Expression, Failure};
use crate::failing::{Failing, OnFailure, missing};
use crate::filter::predicate::Missing;
use crate::plans::Plans;
use crate::tables::{Applies, Tables};

/// `type = "map"`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MapConfig {
    /// The tables it applies to, `schema.table` or `source.schema.table` with `*`; other tables pass as they are.
    /// Default: every table. Each of them must have every column that the expressions mention.
    #[serde(default)]
    pub tables: Tables,
    /// Columns and the expressions in CEL that make them: `total_eur = "total * rate"`. A column that there is gets a new value, one that
    /// there is not is added. Its type follows from the expression. Not for columns of the key.
    pub set: BTreeMap<String, String>,
    /// What becomes of a row for which an expression cannot be worked out, such as a division by zero.
    #[serde(default)]
    pub on_error: OnFailure,
}

/// Builds `map`.
pub struct Map;

impl TransformFactory for Map {
    const KIND: &'static str = "map";
    type Config = MapConfig;

    fn validate(config: &MapConfig) -> Result<()> {
        Settings::new(config).map(drop)
    }

    fn open(config: &MapConfig, context: TransformContext) -> Result<Box<dyn Transform>> {
        Ok(Box::new(Mapping {
            settings: Settings::new(config)?,
            failing: Failing::new(config.on_error, &context),
            plans: Plans::new(),
        }))
    }
}

struct Mapping {
    settings: Settings,
    failing: Failing,
    plans: Plans<Arc<Plan>>,
}

/// The configuration, parsed.
struct Settings {
    applies: Applies,
    set: Vec<(String, Expression)>,
}

/// What is to be done with a version of a table.
struct Plan {
    input: Arc<TableSchema>,
    output: Arc<TableSchema>,
    /// In the order of the cells that are put behind a row's.
    made: Vec<Made>,
}

/// One column that is made.
struct Made {
    name: String,
    expr: Bound,
}

#[async_trait]
impl Transform for Mapping {
    fn bind(&mut self, schema: &Arc<TableSchema>) -> Result<()> {
        self.settings.applies.note(schema);
        self.plans
            .bind(schema, |schema| self.settings.plan(schema))
            .map(drop)
    }

    fn complete(&mut self) -> Result<()> {
        self.settings.applies.check()
    }

    async fn apply(&mut self, batch: Arc<Batch>) -> Result<Arc<Batch>> {
        let plans = self.plans.of(&batch, |schema| self.settings.plan(schema))?;
        if plans.iter().all(|plan| plan.made.is_empty()) {
            return Ok(batch);
        }
        let mut rewrite = batch.rewrite();
        let mut aside = vec![false; batch.changes().len()];
        let mut cells = (Vec::new(), Vec::new());
        for (index, change) in batch.changes().iter().enumerate() {
            let plan = &plans[usize::from(change.schema)];
            if !plan.made.is_empty() {
                let mapped = plan.map(&batch, change, index, &mut rewrite, &mut cells);
                let mapped =
                    mapped.map_err(|error| error.at(format!("table {}", plan.input.id)))?;
                if let Err((column, problem)) = mapped {
                    let what = format!("`set`: {column}");
                    self.failing.take(&batch, change, &what, &problem)?;
                    aside[index] = true;
                }
            }
        }
        rewrite.retain(|index| !aside[index]);
        let outputs = plans.iter().map(|plan| Arc::clone(&plan.output)).collect();
        Ok(Arc::new(rewrite.finish().with_schemas(outputs)))
    }

    fn output(&self, schema: &Arc<TableSchema>) -> Option<Arc<TableSchema>> {
        let bound = self.plans.get(schema).map(|plan| Arc::clone(&plan.output));
        bound.or_else(|| {
            let plan = self.settings.plan(schema).ok()?;
            Some(Arc::clone(&plan.output))
        })
    }
}

impl Settings {
    fn new(config: &MapConfig) -> Result<Self> {
        config.tables.validate()?;
        if config.set.is_empty() {
            return Err(Error::new(ErrorKind::Config, "`set` is empty")
                .remedy("say what is made, such as `set = { total_eur = \"total * rate\" }`"));
        }
        if config.set.contains_key("") {
            return Err(Error::new(ErrorKind::Config, "`set`: a column has no name")
                .remedy("name the column"));
        }
        let parsed = config.set.iter().map(|(name, text)| {
            let key = format!("`set`: {name}");
            Ok((name.clone(), Expression::parse(&key, text)?))
        });
        Ok(Settings {
            applies: Applies::new(&config.tables),
            set: parsed.collect::<Result<_>>()?,
        })
    }

    fn plan(&self, schema: &Arc<TableSchema>) -> Result<Arc<Plan>> {
        if !self.applies.to(schema) {
            return Ok(Arc::new(Plan {
                input: Arc::clone(schema),
                output: Arc::clone(schema),
                made: Vec::new(),
            }));
        }
        let mut output = TableSchema::clone(schema);
        let mut made = Vec::new();
        for (name, expression) in &self.set {
            let expr = expression.bind(schema)?;
            let slot = output.width;
            output.width = output.width.checked_add(1).ok_or_else(|| {
                Error::new(
                    ErrorKind::Config,
                    "`set`: the row would have too many columns",
                )
                .remedy("make fewer columns")
            })?;
            let column = Column {
                name: name.as_str().into(),
                ty: made_type(name, &expr)?,
                slot,
                not_null: false,
            };
            match schema.column(name) {
                None => output.columns.push(column),
                Some((index, _)) if schema.key.contains(&(index as u16)) => {
                    return Err(of_key(name));
                }
                Some((index, _)) => output.columns[index] = column,
            }
            made.push(Made {
                name: name.clone(),
                expr,
            });
        }
        Ok(Arc::new(Plan {
            input: Arc::clone(schema),
            output: Arc::new(output),
            made,
        }))
    }
}

/// The type of the column that an expression makes; a column that is taken as it is keeps its own.
fn made_type(name: &str, expr: &Bound) -> Result<ColumnType> {
    if let Some(column) = expr.bare() {
        return Ok(column.ty.clone());
    }
    expr.ty.column().ok_or_else(|| {
        Error::new(
            ErrorKind::Config,
            format!("`set`: {name}: a {} is no type of a column", expr.ty),
        )
        .remedy("make a text of it by `string(…)`, or a number by `int(…)`")
    })
}

fn of_key(name: &str) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("`set`: the column `{name}` belongs to the key"),
    )
    .remedy("make another column: sinks find rows by their key, and two rows must not become one")
}

/// The cells of a row that are made; or which column of it cannot be, and why.
type Cells = Result<(), (String, String)>;

impl Plan {
    fn map(
        &self,
        batch: &Batch,
        change: &Change,
        index: usize,
        rewrite: &mut Rewrite,
        (old_cells, new_cells): &mut (Vec<Cell>, Vec<Cell>),
    ) -> Result<Cells> {
        let new = batch.new_row(change);
        new_cells.clear();
        if let Some(row) = new
            && let Err(failed) = self.cells(row, rewrite, new_cells)?
        {
            return Ok(Err(failed));
        }
        old_cells.clear();
        let mut image = change.old_image;
        if image == OldImage::Full
            && let Some(row) = batch.old_row(change)
        {
            // An old row that gives no value is known by its key: what was made of it has gone nowhere.
            if !matches!(self.cells(row, rewrite, old_cells), Ok(Ok(()))) {
                image = OldImage::Key;
            }
        }
        if image != OldImage::Full {
            // NULL is what was not sent.
            old_cells.clear();
            old_cells.resize(self.made.len(), Cell::NULL);
        }
        rewrite.widen(
            index,
            Some((image, &old_cells[..])),
            new.map(|_| &new_cells[..]),
        );
        Ok(Ok(()))
    }

    fn cells(&self, row: Row<'_>, rewrite: &mut Rewrite, cells: &mut Vec<Cell>) -> Result<Cells> {
        for made in &self.made {
            if let Some(column) = made.expr.bare() {
                cells.push(row.cells()[usize::from(column.slot)]);
                continue;
            }
            cells.push(match made.expr.value(row) {
                Ok(value) => {
                    let mut is_null = false;
                    let cell = rewrite.text(|out| is_null = !value.write(out));
                    if is_null { Cell::NULL } else { cell }
                }
                Err(Failure::Failed(problem)) => return Ok(Err((made.name.clone(), problem))),
                // All that it is made of was left alone, and so was what it makes.
                Err(Failure::Missing(Missing::Unchanged(_))) if self.is_unchanged(made, row) => {
                    Cell::UNCHANGED
                }
                Err(Failure::Missing(gap)) => {
                    return Err(missing(
                        &format!("the column `{}`", made.name),
                        &gap,
                        &self.input,
                    ));
                }
            });
        }
        Ok(Ok(()))
    }

    fn is_unchanged(&self, made: &Made, row: Row<'_>) -> bool {
        made.expr.columns.iter().all(|&index| {
            let slot = self.input.columns[index].slot;
            row.cells()[usize::from(slot)].is_unchanged()
        })
    }
}

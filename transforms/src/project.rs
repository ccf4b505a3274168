//! `project`: keeps, drops and renames columns.
//!
//! Works on schemas only: a column names the cell that holds its value, so nothing is done per row.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use lockstep_core::batch::Batch;
use lockstep_core::schema::{Column, TableSchema};
use lockstep_core::transform::{Transform, TransformContext, TransformFactory};
use lockstep_core::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::plans::Plans;
use crate::tables::{Applies, Tables, column};

/// `type = "project"`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectConfig {
    /// The tables it applies to, `schema.table` or `source.schema.table` with `*`; other tables pass as they are.
    /// Default: every table.
    #[serde(default)]
    pub tables: Tables,
    /// The columns to keep, in the order they shall have. Not together with `drop`.
    pub keep: Option<Vec<String>>,
    /// The columns to leave out. Not together with `keep`.
    pub drop: Option<Vec<String>>,
    /// New names of columns, `{ old = "new" }`.
    #[serde(default)]
    pub rename: BTreeMap<String, String>,
}

/// Builds `project`.
pub struct Project;

impl TransformFactory for Project {
    const KIND: &'static str = "project";
    type Config = ProjectConfig;

    fn validate(config: &ProjectConfig) -> Result<()> {
        config.tables.validate()?;
        let problem = match (&config.keep, &config.drop) {
            (Some(_), Some(_)) => Some("`keep` and `drop` exclude each other"),
            (Some(keep), None) if keep.is_empty() => Some("`keep` names no column"),
            (None, Some(drop)) if drop.is_empty() => Some("`drop` names no column"),
            (None, None) if config.rename.is_empty() => {
                Some("there is none of `keep`, `drop` and `rename`")
            }
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(Error::new(ErrorKind::Config, problem).remedy(
                "say which columns to `keep`, or which to `drop`, or how to `rename` them",
            ));
        }
        if let Some((old, _)) = config.rename.iter().find(|(_, new)| new.is_empty()) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("`rename`: the new name of `{old}` is empty"),
            )
            .remedy("write a name"));
        }
        Ok(())
    }

    fn open(config: &ProjectConfig, _: TransformContext) -> Result<Box<dyn Transform>> {
        Self::validate(config)?;
        Ok(Box::new(Projection {
            applies: Applies::new(&config.tables),
            config: config.clone(),
            plans: Plans::new(),
        }))
    }
}

struct Projection {
    config: ProjectConfig,
    applies: Applies,
    plans: Plans<Arc<TableSchema>>,
}

#[async_trait]
impl Transform for Projection {
    fn bind(&mut self, schema: &Arc<TableSchema>) -> Result<()> {
        self.applies.note(schema);
        self.plans
            .bind(schema, |schema| {
                projected(&self.config, &self.applies, schema)
            })
            .map(drop)
    }

    fn complete(&mut self) -> Result<()> {
        self.applies.check()
    }

    async fn apply(&mut self, batch: Arc<Batch>) -> Result<Arc<Batch>> {
        let schemas = self.plans.of(&batch, |schema| {
            projected(&self.config, &self.applies, schema)
        })?;
        let same = |(a, b)| Arc::ptr_eq(a, b);
        if schemas.iter().zip(batch.schemas()).all(same) {
            return Ok(batch);
        }
        Ok(Arc::new(batch.with_schemas(schemas)))
    }

    fn output(&self, schema: &Arc<TableSchema>) -> Option<Arc<TableSchema>> {
        let bound = self.plans.get(schema).map(Arc::clone);
        bound.or_else(|| projected(&self.config, &self.applies, schema).ok())
    }
}

/// The schema as it leaves.
fn projected(
    config: &ProjectConfig,
    applies: &Applies,
    schema: &Arc<TableSchema>,
) -> Result<Arc<TableSchema>> {
    if !applies.to(schema) {
        return Ok(Arc::clone(schema));
    }
    let kept = kept(config, schema)?;
    let key = key_after(schema, &kept)?;
    for old in config.rename.keys() {
        let (index, _) = column(schema, old)?;
        if !kept.contains(&index) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("`rename`: the column `{old}` is not kept"),
            )
            .remedy("keep it, or do not rename it"));
        }
    }
    let columns: Vec<Column> = kept
        .iter()
        .map(|&index| renamed(config, &schema.columns[index]))
        .collect();
    distinct(&columns)?;
    Ok(Arc::new(TableSchema {
        columns,
        key,
        ..TableSchema::clone(schema)
    }))
}

/// Indices of the columns that stay, in output order.
fn kept(config: &ProjectConfig, schema: &TableSchema) -> Result<Vec<usize>> {
    let indices = |names: &[String]| -> Result<Vec<usize>> {
        names
            .iter()
            .map(|name| column(schema, name).map(|(index, _)| index))
            .collect()
    };
    match (&config.keep, &config.drop) {
        (Some(keep), _) => indices(keep),
        (None, Some(drop)) => {
            let dropped = indices(drop)?;
            Ok((0..schema.columns.len())
                .filter(|index| !dropped.contains(index))
                .collect())
        }
        (None, None) => Ok((0..schema.columns.len()).collect()),
    }
}

/// The key in terms of the columns that stay.
fn key_after(schema: &TableSchema, kept: &[usize]) -> Result<Vec<u16>> {
    schema
        .key
        .iter()
        .map(|&index| {
            let at = kept.iter().position(|&kept| kept == usize::from(index));
            at.map(|at| at as u16).ok_or_else(|| {
                let name = &schema.columns[usize::from(index)].name;
                Error::new(
                    ErrorKind::Config,
                    format!("the column `{name}` belongs to the key and would be dropped"),
                )
                .remedy("keep it: sinks find rows by their key")
            })
        })
        .collect()
}

fn renamed(config: &ProjectConfig, column: &Column) -> Column {
    let name = config
        .rename
        .get(&*column.name)
        .map_or_else(|| Arc::clone(&column.name), |new| new.as_str().into());
    Column {
        name,
        ..column.clone()
    }
}

fn distinct(columns: &[Column]) -> Result<()> {
    let mut names = HashSet::new();
    match columns.iter().find(|column| !names.insert(&*column.name)) {
        None => Ok(()),
        Some(twice) => Err(Error::new(
            ErrorKind::Config,
            format!("two columns would be named `{}`", twice.name),
        )
        .remedy("list a column once, and rename to a name that is free")),
    }
}

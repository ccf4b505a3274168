//! `filter`: lets rows pass that satisfy a predicate.
//!
//! What comes out is the set of rows for which the predicate is true, kept in step: a row that an UPDATE moves out of
//! the set leaves as a DELETE, one that it moves in enters as an INSERT, as PostgreSQL's own row filters of
//! publications do. That needs the old row. Without it (REPLICA IDENTITY other than FULL) an UPDATE whose new row does
//! not match leaves as a DELETE, whether or not the row was in the set, and a DELETE always passes: deleting what is
//! not there is harmless.

mod class;
mod decimal;
mod moment;
mod parse;
mod predicate;
mod token;

use std::sync::Arc;

use async_trait::async_trait;
use lockstep_core::batch::{Batch, Change, OldImage, Op, Row};
use lockstep_core::error::At;
use lockstep_core::schema::{ReplicaIdentity, TableSchema};
use lockstep_core::transform::{Comparable, Transform, TransformContext, TransformFactory};
use lockstep_core::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::Deserialize;

use self::parse::Expr;
use self::predicate::{Missing, Predicate, Truth};
use crate::image::enters;
use crate::plans::Plans;
use crate::tables::{Applies, Tables, is_no_table};

/// `type = "filter"`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilterConfig {
    /// The tables it applies to, `schema.table` or `source.schema.table` with `*`; other tables pass as they are.
    /// Default: every table. Each of them must have every column of the predicate.
    #[serde(default)]
    pub tables: Tables,
    /// The rows that pass, in a part of SQL: `=`, `<>`, `!=`, `<`, `<=`, `>`, `>=`, `in (…)`, `like`, `between … and …`,
    /// `is null`, `is not null`, `and`, `or`, `not`, parentheses, `'text'`, numbers, `true`, `false`. A row passes when
    /// the predicate is true; a comparison with NULL is not. Default: every row.
    #[serde(rename = "where")]
    pub predicate: Option<String>,
    /// The operations that come out. Default: all of them.
    pub ops: Option<Vec<Operation>>,
}

/// An operation, as `ops` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// A row of the initial copy.
    Read,
    /// INSERT, and an UPDATE that brings a row in.
    Insert,
    /// UPDATE.
    Update,
    /// DELETE, and an UPDATE that takes a row out.
    Delete,
    /// TRUNCATE.
    Truncate,
    /// A logical message.
    Message,
    /// An event of an `outbox`.
    Event,
}

impl From<Op> for Operation {
    fn from(op: Op) -> Self {
        match op {
            Op::Read => Operation::Read,
            Op::Insert => Operation::Insert,
            Op::Update => Operation::Update,
            Op::Delete => Operation::Delete,
            Op::Truncate => Operation::Truncate,
            Op::Message => Operation::Message,
            Op::Event => Operation::Event,
        }
    }
}

/// Builds `filter`.
pub struct Filter;

impl TransformFactory for Filter {
    const KIND: &'static str = "filter";
    type Config = FilterConfig;

    fn validate(config: &FilterConfig) -> Result<()> {
        Settings::new(config).map(drop)
    }

    fn open(config: &FilterConfig, _: TransformContext) -> Result<Box<dyn Transform>> {
        Ok(Box::new(Filtering {
            settings: Settings::new(config)?,
            plans: Plans::new(),
        }))
    }
}

struct Filtering {
    settings: Settings,
    plans: Plans<Arc<Plan>>,
}

/// The configuration, parsed.
struct Settings {
    applies: Applies,
    expr: Option<Expr>,
    ops: Option<Vec<Operation>>,
}

/// What is to be done with a version of a table.
struct Plan {
    schema: Arc<TableSchema>,
    predicate: Option<Predicate>,
    /// Only key columns decide, so an UPDATE without an old image has not changed the answer.
    on_key: bool,
    ops: Option<Vec<Operation>>,
}

#[async_trait]
impl Transform for Filtering {
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
        if plans.iter().all(|plan| plan.passes_all()) {
            return Ok(batch);
        }
        let mut kept = Vec::with_capacity(batch.changes().len());
        for change in batch.changes() {
            let plan = &plans[usize::from(change.schema)];
            let outcome = plan
                .outcome(&batch, *change)
                .map_err(|error| error.at(format!("table {}", plan.schema.id)))?;
            kept.extend(outcome);
        }
        Ok(Arc::new(batch.with_changes(kept)))
    }

    fn comparable(&self, schema: &Arc<TableSchema>) -> Comparable {
        let plan = self.settings.plan(schema);
        let ops = plan.as_ref().ok().and_then(|plan| plan.ops.as_deref());
        let Some(ops) = ops else {
            return Comparable::Fully;
        };
        let rows = [
            Operation::Read,
            Operation::Insert,
            Operation::Update,
            Operation::Delete,
        ];
        match rows.iter().all(|op| ops.contains(op)) {
            // A row is there or not by what has happened to it.
            false => Comparable::Not,
            true if !ops.contains(&Operation::Truncate) => Comparable::Rows,
            true => Comparable::Fully,
        }
    }
}

impl Settings {
    fn new(config: &FilterConfig) -> Result<Self> {
        config.tables.validate()?;
        if config.predicate.is_none() && config.ops.is_none() {
            return Err(
                Error::new(ErrorKind::Config, "there is neither `where` nor `ops`")
                    .remedy("say which rows pass, such as `where = \"status <> 'cancelled'\"`"),
            );
        }
        if config.ops.as_ref().is_some_and(Vec::is_empty) {
            return Err(
                Error::new(ErrorKind::Config, "`ops` is empty: nothing would pass")
                    .remedy("list the operations that pass, or leave `ops` out"),
            );
        }
        let expr = config.predicate.as_deref().map(parse::parse).transpose();
        let expr = expr.map_err(|error| {
            Error::new(ErrorKind::Config, format!("`where`: {error}"))
                .remedy("correct the predicate; it is written as in SQL")
        })?;
        Ok(Settings {
            applies: Applies::new(&config.tables),
            expr,
            ops: config.ops.clone(),
        })
    }

    fn plan(&self, schema: &Arc<TableSchema>) -> Result<Arc<Plan>> {
        let concerned = self.applies.to(schema);
        let expr = self.expr.as_ref().filter(|_| concerned);
        let predicate = expr.map(|expr| Predicate::bind(expr, schema));
        let predicate = predicate.transpose().at("`where`")?;
        let with_ops = concerned || (is_no_table(schema) && self.applies.to_all());
        Ok(Arc::new(Plan {
            schema: Arc::clone(schema),
            on_key: predicate
                .as_ref()
                .is_some_and(|predicate| predicate.on_key(schema)),
            predicate,
            ops: self.ops.clone().filter(|_| with_ops),
        }))
    }
}

impl Plan {
    fn passes_all(&self) -> bool {
        self.predicate.is_none() && self.ops.is_none()
    }

    /// What becomes of a change.
    fn outcome(&self, batch: &Batch, change: Change) -> Result<Option<Change>> {
        let outcome = match &self.predicate {
            Some(predicate) => self.matched(predicate, batch, change)?,
            None => Some(change),
        };
        Ok(outcome.filter(|change| match &self.ops {
            Some(ops) => ops.contains(&change.op.into()),
            None => true,
        }))
    }

    fn matched(
        &self,
        predicate: &Predicate,
        batch: &Batch,
        change: Change,
    ) -> Result<Option<Change>> {
        let was = |new: Option<bool>| self.was_in(predicate, batch, &change, new);
        match (change.op, batch.new_row(&change)) {
            (Op::Truncate | Op::Message | Op::Event, _) | (_, None) if change.op != Op::Delete => {
                Ok(Some(change))
            }
            (Op::Update, Some(row)) => {
                let is = self.is_in(predicate, row)?;
                match (was(Some(is)), is) {
                    (Some(false), true) => Ok(Some(enters(&self.schema, row, &change))),
                    (_, true) => Ok(Some(change)),
                    (Some(false), false) => Ok(None),
                    (_, false) => Ok(Some(change.into_delete())),
                }
            }
            (_, Some(row)) => Ok(self.is_in(predicate, row)?.then_some(change)),
            (_, None) => Ok((was(None) != Some(false)).then_some(change)),
        }
    }

    /// Whether the new row matches.
    fn is_in(&self, predicate: &Predicate, row: Row<'_>) -> Result<bool> {
        match predicate.test(row) {
            Truth::True => Ok(true),
            Truth::False | Truth::Null => Ok(false),
            Truth::Unsent(Missing::Unchanged(column)) => Err(self.unsent(&column)),
            Truth::Unsent(Missing::Unreadable(column)) => Err(Error::new(
                ErrorKind::Protocol,
                format!("the predicate cannot read the value of the column `{column}`"),
            )
            .remedy("leave the column out of the predicate, and report the value and its type")),
        }
    }

    /// Whether the row matched before, when that is known. `is`: whether it does now.
    fn was_in(
        &self,
        predicate: &Predicate,
        batch: &Batch,
        change: &Change,
        is: Option<bool>,
    ) -> Option<bool> {
        let known = match change.old_image {
            OldImage::Full => true,
            OldImage::Key => self.on_key,
            // Nothing was sent because the key has not changed.
            OldImage::None => {
                return is.filter(|_| self.on_key && self.schema.identity != ReplicaIdentity::Full);
            }
        };
        if !known {
            return None;
        }
        match predicate.test(batch.old_row(change)?) {
            Truth::True => Some(true),
            Truth::False | Truth::Null => Some(false),
            Truth::Unsent(_) => None,
        }
    }

    fn unsent(&self, column: &str) -> Error {
        Error::new(
            ErrorKind::Setup,
            format!("the filter needs the value of the column `{column}`, and the log does not carry it because the UPDATE left it alone"),
        )
        .remedy(format!(
            "run: ALTER TABLE {} REPLICA IDENTITY FULL; or leave the column out of the predicate",
            self.schema.origin
        ))
    }
}

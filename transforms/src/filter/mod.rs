//! `filter`: lets rows pass that satisfy a predicate.
//!
//! What comes out is the set of rows for which the predicate is true, kept in step: a row that an UPDATE moves out of
//! the set leaves as a DELETE, one that it moves in enters as an INSERT, as PostgreSQL's own row filters of
//! publications do. That needs the old row. Without it (REPLICA IDENTITY other than FULL) an UPDATE whose new row does
//! not match leaves as a DELETE, whether or not the row was in the set, and a DELETE always passes: deleting what is
//! not there is harmless.

mod class;
mod condition;
pub(crate) mod decimal;
pub(crate) mod moment;
mod parse;
pub(crate) mod predicate;
mod token;

use std::sync::Arc;

use async_trait::async_trait;
use lockstep_core::batch::{Batch, Change, OldImage, Op, Row};
use lockstep_core::schema::{ReplicaIdentity, TableSchema};
use lockstep_core::transform::{Comparable, Transform, TransformContext, TransformFactory};
use lockstep_core::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::Deserialize;

use self::condition::{Condition, Written};
use self::predicate::Truth;
use crate::failing::{Failing, OnFailure, missing};
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
    /// The rows that pass, as an expression in CEL: `status != 'cancelled' && total > 10`. In place of `where`.
    pub when: Option<String>,
    /// The operations that come out. Default: all of them.
    pub ops: Option<Vec<Operation>>,
    /// What becomes of a row for which `when` cannot be worked out, such as a division by zero.
    #[serde(default)]
    pub on_error: OnFailure,
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

    fn open(config: &FilterConfig, context: TransformContext) -> Result<Box<dyn Transform>> {
        Ok(Box::new(Filtering {
            settings: Settings::new(config)?,
            failing: Failing::new(config.on_error, &context),
            plans: Plans::new(),
        }))
    }
}

struct Filtering {
    settings: Settings,
    failing: Failing,
    plans: Plans<Arc<Plan>>,
}

/// The configuration, parsed.
struct Settings {
    applies: Applies,
    written: Option<Written>,
    ops: Option<Vec<Operation>>,
}

/// What is to be done with a version of a table.
struct Plan {
    schema: Arc<TableSchema>,
    condition: Option<Condition>,
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
                .outcome(&self.failing, &batch, *change)
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
        let written = Written::of(config)?;
        if written.is_none() && config.ops.is_none() {
            return Err(Error::new(
                ErrorKind::Config,
                "there is neither `where` nor `ops`, and no `when`",
            )
            .remedy("say which rows pass, such as `where = \"status <> 'cancelled'\"`"));
        }
        if config.ops.as_ref().is_some_and(Vec::is_empty) {
            return Err(
                Error::new(ErrorKind::Config, "`ops` is empty: nothing would pass")
                    .remedy("list the operations that pass, or leave `ops` out"),
            );
        }
        Ok(Settings {
            applies: Applies::new(&config.tables),
            written,
            ops: config.ops.clone(),
        })
    }

    fn plan(&self, schema: &Arc<TableSchema>) -> Result<Arc<Plan>> {
        let concerned = self.applies.to(schema);
        let written = self.written.as_ref().filter(|_| concerned);
        let condition = written.map(|written| written.bind(schema)).transpose()?;
        let with_ops = concerned || (is_no_table(schema) && self.applies.to_all());
        Ok(Arc::new(Plan {
            schema: Arc::clone(schema),
            on_key: condition
                .as_ref()
                .is_some_and(|condition| condition.on_key(schema)),
            condition,
            ops: self.ops.clone().filter(|_| with_ops),
        }))
    }
}

impl Plan {
    fn passes_all(&self) -> bool {
        self.condition.is_none() && self.ops.is_none()
    }

    /// What becomes of a change.
    fn outcome(&self, failing: &Failing, batch: &Batch, change: Change) -> Result<Option<Change>> {
        let outcome = match &self.condition {
            Some(condition) => self.matched(condition, failing, batch, change)?,
            None => Some(change),
        };
        Ok(outcome.filter(|change| match &self.ops {
            Some(ops) => ops.contains(&change.op.into()),
            None => true,
        }))
    }

    fn matched(
        &self,
        condition: &Condition,
        failing: &Failing,
        batch: &Batch,
        change: Change,
    ) -> Result<Option<Change>> {
        let was = |new: Option<bool>| self.was_in(condition, batch, &change, new);
        let row = match (change.op, batch.new_row(&change)) {
            (Op::Truncate | Op::Message | Op::Event, _) => return Ok(Some(change)),
            (Op::Delete, None) => return Ok((was(None) != Some(false)).then_some(change)),
            (_, None) => return Ok(Some(change)),
            (_, Some(row)) => row,
        };
        let is = match self.is_in(condition, row)? {
            Ok(is) => is,
            Err(problem) => {
                failing.take(batch, &change, "`when`", &problem)?;
                return Ok(None);
            }
        };
        if change.op != Op::Update {
            return Ok(is.then_some(change));
        }
        Ok(match (was(Some(is)), is) {
            (Some(false), true) => Some(enters(&self.schema, row, &change)),
            (_, true) => Some(change),
            (Some(false), false) => None,
            (_, false) => Some(change.into_delete()),
        })
    }

    /// Whether the new row matches, or why that cannot be worked out.
    fn is_in(&self, condition: &Condition, row: Row<'_>) -> Result<Result<bool, String>> {
        match condition.test(row) {
            Truth::True => Ok(Ok(true)),
            Truth::False | Truth::Null => Ok(Ok(false)),
            Truth::Failed(problem) => Ok(Err(problem)),
            Truth::Unsent(gap) => Err(missing("the filter", &gap, &self.schema)),
        }
    }

    /// Whether the row matched before, when that is known. `is`: whether it does now.
    fn was_in(
        &self,
        condition: &Condition,
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
        match condition.test(batch.old_row(change)?) {
            Truth::True => Some(true),
            Truth::False | Truth::Null => Some(false),
            Truth::Unsent(_) | Truth::Failed(_) => None,
        }
    }
}

//! `route`: sets the schema and table that records go to.
//!
//! A name that depends on the table alone is worked out once per schema version. One that depends on columns is
//! rendered per row; a row whose columns move it leaves its old destination by a DELETE and enters the new one by an
//! INSERT, both at the position of the UPDATE.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use lockstep_core::batch::{Batch, Change, OldImage, Op, Row};
use lockstep_core::schema::{Column, ReplicaIdentity, TableId, TableSchema};
use lockstep_core::template::{Part, Template};
use lockstep_core::transform::{Comparable, Transform, TransformContext, TransformFactory};
use lockstep_core::{Error, ErrorKind, Result};
use regex::{Captures, Regex};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::expr::{Bound, Expression};
use crate::failing::{Failing, OnFailure, missing};
use crate::filter::predicate::Truth;
use crate::image::enters;
use crate::plans::Plans;
use crate::tables::{Applies, Tables, column};
use crate::text::{Value, value};

/// What a NULL is in a name.
pub const DEFAULT_NULL: &str = "null";
/// Destinations remembered per table version; more are worked out again.
pub const MAX_ROUTES: usize = 4096;

/// `type = "route"`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// The tables it applies to, `schema.table` or `source.schema.table` with `*`; other tables pass as they are.
    /// Default: every table.
    #[serde(default)]
    pub tables: Tables,
    /// A regular expression that the whole of `schema.table` must match; tables that do not pass as they are. Its
    /// groups are fields of the templates: `{1}`, or `{name}` for `(?<name>…)`.
    #[serde(rename = "match")]
    pub pattern: Option<String>,
    /// The table that records go to: a template with the fields `{schema}`, `{table}`, `{source}`, the groups of
    /// `match`, and the names of columns. A column that is not part of the key asks for REPLICA IDENTITY FULL, because
    /// a DELETE must find its destination too. Default: the table's own name.
    pub table: Option<String>,
    /// The schema that records go to, in the same way. Default: the table's own schema.
    pub schema: Option<String>,
    /// What a NULL in a column becomes in a name.
    #[serde(default = "default_null")]
    pub null: String,
    /// The rows that it applies to, as an expression in CEL: `region == 'eu' && total > 1000`. Others keep the destination that they
    /// have, and so do those for which it is NULL. What holds for columns in templates holds for those in it. Default: every row.
    pub when: Option<String>,
    /// What becomes of a row for which `when` cannot be worked out, such as a division by zero.
    #[serde(default)]
    pub on_error: OnFailure,
}

fn default_null() -> String {
    DEFAULT_NULL.to_owned()
}

/// Builds `route`.
pub struct Route;

impl TransformFactory for Route {
    const KIND: &'static str = "route";
    type Config = RouteConfig;

    fn validate(config: &RouteConfig) -> Result<()> {
        Settings::new(config).map(drop)
    }

    fn open(config: &RouteConfig, context: TransformContext) -> Result<Box<dyn Transform>> {
        Ok(Box::new(Routing {
            settings: Settings::new(config)?,
            failing: Failing::new(config.on_error, &context),
            plans: Plans::new(),
        }))
    }
}

struct Routing {
    settings: Settings,
    failing: Failing,
    plans: Plans<Arc<Plan>>,
}

/// The configuration, parsed.
struct Settings {
    applies: Applies,
    pattern: Option<Regex>,
    schema: Template,
    table: Template,
    null: String,
    when: Option<Expression>,
}

enum Plan {
    /// The table is not concerned.
    Pass,
    /// One destination for the table.
    Fixed(Arc<TableSchema>),
    /// A destination per row.
    PerRow(Box<PerRow>),
}

struct PerRow {
    input: Arc<TableSchema>,
    schema: Vec<Piece>,
    table: Vec<Piece>,
    null: String,
    when: Option<Bound>,
    routes: Mutex<HashMap<TableId, Arc<TableSchema>>>,
}

/// A part of a name.
enum Piece {
    Literal(String),
    Column(Column),
}

#[async_trait]
impl Transform for Routing {
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
        if plans.iter().all(|plan| matches!(**plan, Plan::Pass)) {
            return Ok(batch);
        }
        let mut out = Output::new(&batch, &plans);
        for change in batch.changes() {
            match &*plans[usize::from(change.schema)] {
                Plan::Pass | Plan::Fixed(_) => out.changes.push(*change),
                Plan::PerRow(plan) => plan
                    .route(&self.failing, &batch, change, &mut out)
                    .map_err(|error| error.at(format!("table {}", plan.input.id)))?,
            }
        }
        Ok(Arc::new(batch.with_parts(out.schemas, out.changes)))
    }

    fn comparable(&self, schema: &Arc<TableSchema>) -> Comparable {
        // Where a row that is not there would have gone, only the row could tell.
        match self.settings.plan(schema).as_deref() {
            Ok(Plan::PerRow(_)) => Comparable::Rows,
            _ => Comparable::Fully,
        }
    }

    fn output(&self, schema: &Arc<TableSchema>) -> Option<Arc<TableSchema>> {
        let plan = match self.plans.get(schema) {
            Some(plan) => Arc::clone(plan),
            None => self.settings.plan(schema).ok()?,
        };
        Some(match &*plan {
            Plan::Fixed(output) => Arc::clone(output),
            Plan::Pass | Plan::PerRow(_) => Arc::clone(schema),
        })
    }
}

impl Settings {
    fn new(config: &RouteConfig) -> Result<Self> {
        config.tables.validate()?;
        if config.table.is_none() && config.schema.is_none() {
            return Err(
                Error::new(ErrorKind::Config, "there is neither `table` nor `schema`")
                    .remedy("say where records go, such as `table = \"{table}_{region}\"`"),
            );
        }
        let template = |field: &str, text: Option<&str>, default: &str| {
            Template::parse_any(text.unwrap_or(default)).map_err(|problem| {
                Error::new(ErrorKind::Config, format!("`{field}`: {problem}"))
                    .remedy("write fields in braces, such as `{table}`")
            })
        };
        Ok(Settings {
            applies: Applies::new(&config.tables),
            pattern: config.pattern.as_deref().map(whole).transpose()?,
            schema: template("schema", config.schema.as_deref(), "{schema}")?,
            table: template("table", config.table.as_deref(), "{table}")?,
            null: config.null.clone(),
            when: match &config.when {
                Some(text) => Some(Expression::parse("`when`", text)?),
                None => None,
            },
        })
    }

    fn plan(&self, schema: &Arc<TableSchema>) -> Result<Arc<Plan>> {
        let name = schema.id.to_string();
        let captures = match &self.pattern {
            Some(pattern) => pattern.captures(&name),
            None => None,
        };
        let matches = self.pattern.is_none() || captures.is_some();
        if !matches || !self.applies.to(schema) {
            return Ok(Arc::new(Plan::Pass));
        }
        let plan = PerRow {
            input: Arc::clone(schema),
            schema: pieces(&self.schema, schema, captures.as_ref())?,
            table: pieces(&self.table, schema, captures.as_ref())?,
            null: self.null.clone(),
            when: self
                .when
                .as_ref()
                .map(|when| deciding(when, schema))
                .transpose()?,
            routes: Mutex::new(HashMap::new()),
        };
        let per_row = |piece: &Piece| matches!(piece, Piece::Column(_));
        if plan.when.is_some() || plan.schema.iter().chain(&plan.table).any(per_row) {
            return Ok(Arc::new(Plan::PerRow(Box::new(plan))));
        }
        let id = plan.render(None)?;
        Ok(Arc::new(Plan::Fixed(plan.derive(id))))
    }
}

/// A regular expression for the whole of a name.
fn whole(pattern: &str) -> Result<Regex> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|error| {
        Error::new(
            ErrorKind::Config,
            format!("`match`: `{pattern}` is not a regular expression"),
        )
        .source(error)
        .remedy(r"correct it; a dot is written `\.`, and a literal string of TOML ('…') needs no doubled backslash")
    })
}

/// Resolves a template against a table.
fn pieces(
    template: &Template,
    schema: &TableSchema,
    captures: Option<&Captures<'_>>,
) -> Result<Vec<Piece>> {
    let literal = |text: &str| Ok(Piece::Literal(text.to_owned()));
    let piece = |part: &Part| match part {
        Part::Literal(text) => literal(text),
        Part::Field(name) => match name.as_str() {
            "source" => literal(&schema.source),
            "schema" => literal(&schema.id.schema),
            "table" => literal(&schema.id.name),
            name => match captures.and_then(|captures| group(captures, name)) {
                Some(text) => literal(&text),
                None => routing_column(schema, name).map(Piece::Column),
            },
        },
    };
    template.parts().iter().map(piece).collect()
}

/// The text of a group of `match`; one that took no part in the match is empty.
fn group(captures: &Captures<'_>, name: &str) -> Option<String> {
    let text = |found: Option<regex::Match<'_>>| {
        found.map_or_else(String::new, |found| found.as_str().to_owned())
    };
    if let Ok(number) = name.parse::<usize>() {
        return (number < captures.len()).then(|| text(captures.get(number)));
    }
    captures.name(name).map(|found| found.as_str().to_owned())
}

/// An expression that decides where a row goes.
fn deciding(when: &Expression, schema: &TableSchema) -> Result<Bound> {
    let bound = when.condition(schema)?;
    for &index in &bound.columns {
        routing_column(schema, &schema.columns[index].name)?;
    }
    Ok(bound)
}

/// A column that decides where a row goes: its old value must be known whenever it can change or go.
fn routing_column(schema: &TableSchema, name: &str) -> Result<Column> {
    let (index, column) = column(schema, name)?;
    let in_key = schema.key.contains(&(index as u16));
    match schema.identity {
        ReplicaIdentity::Full | ReplicaIdentity::Nothing => Ok(column.clone()),
        ReplicaIdentity::Default | ReplicaIdentity::Index if in_key => Ok(column.clone()),
        ReplicaIdentity::Default | ReplicaIdentity::Index => Err(Error::new(
            ErrorKind::Setup,
            format!("the column `{name}` decides where rows go, and a DELETE does not carry it"),
        )
        .remedy(format!(
            "route by columns of the key, or run: ALTER TABLE {} REPLICA IDENTITY FULL",
            schema.origin
        ))),
    }
}

/// A batch being routed.
struct Output {
    schemas: Vec<Arc<TableSchema>>,
    changes: Vec<Change>,
    /// Where a destination stands in `schemas`, by address; `schemas` holds it.
    indices: HashMap<usize, u16>,
}

impl Output {
    fn new(batch: &Batch, plans: &[Arc<Plan>]) -> Self {
        let after = |(schema, plan): (&Arc<TableSchema>, &Arc<Plan>)| match &**plan {
            Plan::Fixed(output) => Arc::clone(output),
            Plan::Pass | Plan::PerRow(_) => Arc::clone(schema),
        };
        Output {
            schemas: batch.schemas().iter().zip(plans).map(after).collect(),
            changes: Vec::with_capacity(batch.changes().len()),
            indices: HashMap::new(),
        }
    }

    fn push(&mut self, mut change: Change, to: &Arc<TableSchema>) -> Result<()> {
        let address = Arc::as_ptr(to) as usize;
        change.schema = match self.indices.get(&address) {
            Some(&index) => index,
            None => {
                let index = u16::try_from(self.schemas.len()).map_err(|_| {
                    Error::new(
                        ErrorKind::Setup,
                        "the rows of one batch go to more than 65535 destinations",
                    )
                    .remedy("route by a column with fewer values")
                })?;
                self.schemas.push(Arc::clone(to));
                self.indices.insert(address, index);
                index
            }
        };
        self.changes.push(change);
        Ok(())
    }
}

impl PerRow {
    fn route(
        &self,
        failing: &Failing,
        batch: &Batch,
        change: &Change,
        out: &mut Output,
    ) -> Result<()> {
        let aside = |problem: &str| failing.take(batch, change, "`when`", problem);
        let (old, new) = (batch.old_row(change), batch.new_row(change));
        match (change.op, old, new) {
            (Op::Message | Op::Event, ..) => {
                out.changes.push(*change);
                Ok(())
            }
            (Op::Update, Some(old), Some(new)) if change.old_image != OldImage::None => {
                let to = match self.destination(new)? {
                    Ok(to) => to,
                    Err(problem) => return aside(&problem),
                };
                match self.destination(old)? {
                    Ok(from) if !Arc::ptr_eq(&from, &to) => {
                        out.push(change.into_delete(), &from)?;
                        out.push(enters(&self.input, new, change), &to)
                    }
                    Ok(_) => out.push(*change, &to),
                    // The old row was put aside when it came, and has gone nowhere.
                    Err(_) => out.push(enters(&self.input, new, change), &to),
                }
            }
            (_, _, Some(row)) | (_, Some(row), None) => match self.destination(row)? {
                Ok(to) => out.push(*change, &to),
                Err(problem) => aside(&problem),
            },
            (op, None, None) => Err(Error::new(
                ErrorKind::Setup,
                format!(
                    "a {} carries no row, and rows decide where records go",
                    op.as_str().to_uppercase()
                ),
            )
            .remedy(
                "put a `filter` with `ops = [\"read\", \"insert\", \"update\", \"delete\"]` before the route, and empty the destinations by hand",
            )),
        }
    }

    /// Where a row goes, or why that cannot be worked out.
    fn destination(&self, row: Row<'_>) -> Result<Result<Arc<TableSchema>, String>> {
        match self.when.as_ref().map(|when| when.test(row)) {
            None | Some(Truth::True) => {}
            Some(Truth::False | Truth::Null) => return Ok(Ok(Arc::clone(&self.input))),
            Some(Truth::Failed(problem)) => return Ok(Err(problem)),
            Some(Truth::Unsent(gap)) => return Err(missing("the route", &gap, &self.input)),
        }
        let id = self.render(Some(row))?;
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = routes.get(&id) {
            return Ok(Ok(Arc::clone(known)));
        }
        if routes.len() >= MAX_ROUTES {
            routes.clear();
        }
        let derived = self.derive(id.clone());
        routes.insert(id, Arc::clone(&derived));
        Ok(Ok(derived))
    }

    fn derive(&self, id: TableId) -> Arc<TableSchema> {
        Arc::new(TableSchema {
            id,
            ..TableSchema::clone(&self.input)
        })
    }

    fn render(&self, row: Option<Row<'_>>) -> Result<TableId> {
        let name = |pieces: &[Piece], what: &str| {
            let mut name = String::new();
            for piece in pieces {
                match (piece, row) {
                    (Piece::Literal(text), _) => name.push_str(text),
                    (Piece::Column(column), Some(row)) => self.fill(column, row, &mut name)?,
                    (Piece::Column(_), None) => {}
                }
            }
            if name.is_empty() {
                return Err(Error::new(
                    ErrorKind::Setup,
                    format!("the {what} that a record should go to is empty"),
                )
                .remedy("add text to the template, such as `{table}_{region}`"));
            }
            Ok(name)
        };
        Ok(TableId::new(
            &name(&self.schema, "schema")?,
            &name(&self.table, "table")?,
        ))
    }

    fn fill(&self, column: &Column, row: Row<'_>, out: &mut String) -> Result<()> {
        let unusable = |problem: &str, remedy: String| {
            Err(Error::new(
                ErrorKind::Setup,
                format!(
                    "the column `{}` decides where rows go, and {problem}",
                    column.name
                ),
            )
            .remedy(remedy))
        };
        match value(&column.ty, row.get(column)) {
            Value::Null => out.push_str(&self.null),
            Value::Text(text) => match std::str::from_utf8(&text) {
                Ok(text) => out.push_str(text),
                Err(_) => {
                    return unusable(
                        "its value is not UTF-8",
                        "route by another column".to_owned(),
                    );
                }
            },
            Value::Unchanged => {
                return unusable(
                    "its value was not sent",
                    format!(
                        "run: ALTER TABLE {} REPLICA IDENTITY FULL",
                        self.input.origin
                    ),
                );
            }
            Value::Opaque(_) => {
                return unusable(
                    "its value comes in binary form",
                    "route by another column".to_owned(),
                );
            }
        }
        Ok(())
    }
}

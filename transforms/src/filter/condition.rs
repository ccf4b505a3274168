//! What decides about a row, in either of two languages.

use std::sync::Arc;

use lockstep_core::batch::Row;
use lockstep_core::error::At;
use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, ErrorKind, Result};

use super::FilterConfig;
use super::parse::{self, Expr};
use super::predicate::{Predicate, Truth};
use crate::expr::{Bound, Expression};

/// As it is written, before a table is known.
pub(super) enum Written {
    Sql(Expr),
    Cel(Expression),
}

/// Bound to a version of a table.
#[derive(Debug)]
pub(super) enum Condition {
    Sql(Predicate),
    Cel(Bound),
}

impl Written {
    /// What the section says; `None` where every row passes.
    pub(super) fn of(config: &FilterConfig) -> Result<Option<Self>> {
        match (&config.predicate, &config.when) {
            (Some(_), Some(_)) => Err(Error::new(
                ErrorKind::Config,
                "there is `where` as well as `when`",
            )
            .remedy("keep one: `where` is written in SQL, `when` in CEL")),
            (Some(sql), None) => parse::parse(sql)
                .map(|expr| Some(Written::Sql(expr)))
                .map_err(|error| {
                    Error::new(ErrorKind::Config, format!("`where`: {error}"))
                        .remedy("correct the predicate; it is written as in SQL")
                }),
            (None, Some(cel)) => Ok(Some(Written::Cel(Expression::parse("`when`", cel)?))),
            (None, None) => Ok(None),
        }
    }

    pub(super) fn bind(&self, schema: &Arc<TableSchema>) -> Result<Condition> {
        match self {
            Written::Sql(expr) => Predicate::bind(expr, schema)
                .map(Condition::Sql)
                .at("`where`"),
            Written::Cel(expr) => expr.condition(schema).map(Condition::Cel),
        }
    }
}

impl Condition {
    pub(super) fn test(&self, row: Row<'_>) -> Truth {
        match self {
            Condition::Sql(predicate) => predicate.test(row),
            Condition::Cel(bound) => bound.test(row),
        }
    }

    /// Whether only columns of the key decide.
    pub(super) fn on_key(&self, schema: &TableSchema) -> bool {
        match self {
            Condition::Sql(predicate) => predicate.on_key(schema),
            Condition::Cel(bound) => bound.on_key(schema),
        }
    }
}

//! Expressions over a row, in CEL, the Common Expression Language.
//!
//! The language is parsed by the `cel` crate. What it means is worked out here, once for each version of a table: names become slots,
//! every part gets a type, and what does not fit is refused before the first row. A row is then evaluated without a look-up by
//! name, and only the columns that are mentioned are decoded. Why not by the crate's interpreter: ADR 34.
//!
//! Nothing here depends on the time, on a random number or on another row: the reconciler sends rows of the source through the same
//! expressions.

mod check;
mod convert;
mod decode;
mod fit;
mod functions;
mod node;
mod number;
mod time;
mod types;
mod value;

use cel::IdedExpr;
use cel::common::ast::SourceInfo;
use cel::parser::Parser;
use lockstep_core::batch::Row;
use lockstep_core::schema::{Column, TableSchema};
use lockstep_core::{Error, ErrorKind, Result};

use self::check::Checker;
pub(crate) use self::node::Failure;
use self::node::Node;
pub(crate) use self::types::Type;
pub(crate) use self::value::Value;
use crate::filter::predicate::Truth;

/// The deepest nesting that is read.
const MAX_DEPTH: u16 = 96;

/// An expression that has been read and not been bound to a table.
pub(crate) struct Expression {
    /// Where it stands in the section.
    key: String,
    root: IdedExpr,
    places: SourceInfo,
}

/// An expression bound to one version of a table.
#[derive(Debug)]
pub(crate) struct Bound {
    root: Node,
    /// What it gives, where that is not NULL.
    pub(crate) ty: Type,
    /// Indices into the schema's columns of those that it mentions.
    pub(crate) columns: Vec<usize>,
}

impl Expression {
    /// Reads an expression. `key`: where it stands in the section, for messages.
    ///
    /// # Errors
    /// Of kind `Config`, with the character at which it cannot be understood.
    pub(crate) fn parse(key: &str, text: &str) -> Result<Self> {
        let parser = Parser::new()
            .max_recursion_depth(MAX_DEPTH)
            .enable_ident_escape_syntax(true);
        let (root, places) = parser.parse_with_source_info(text).map_err(|errors| {
            let (at, problem) = match errors.errors.first() {
                Some(first) => (character(text, first.pos), first.msg.as_str()),
                None => (1, "it cannot be understood"),
            };
            let problem = problem.strip_prefix("Syntax error: ").unwrap_or(problem);
            Error::new(ErrorKind::Config, format!("{key}: character {at}: {problem}"))
                .remedy("correct the expression; it is written in CEL, such as `status == 'paid' && total > 10`")
        })?;
        Ok(Expression {
            key: key.to_owned(),
            root,
            places,
        })
    }

    /// Binds it to a table.
    ///
    /// # Errors
    /// Of kind `Config`: a column that is not there, or parts whose types do not go together, with the character.
    pub(crate) fn bind(&self, schema: &TableSchema) -> Result<Bound> {
        let mut checker = Checker::new(schema, &self.key, &self.places);
        let (root, ty) = checker.node(&self.root)?;
        let mut columns = checker.columns;
        columns.sort_unstable();
        columns.dedup();
        Ok(Bound { root, ty, columns })
    }

    /// Binds one that must be a condition.
    ///
    /// # Errors
    /// As [`Expression::bind`]; and when it is none.
    pub(crate) fn condition(&self, schema: &TableSchema) -> Result<Bound> {
        let bound = self.bind(schema)?;
        match bound.ty {
            Type::Bool => Ok(bound),
            ty => Err(Error::new(
                ErrorKind::Config,
                format!("{}: the expression is a {ty} and no condition", self.key),
            )
            .remedy("compare it with something")),
        }
    }
}

impl Bound {
    /// What it gives for a row.
    pub(crate) fn value<'a>(&'a self, row: Row<'a>) -> Result<Value<'a>, Failure> {
        self.root.value(row)
    }

    /// What a condition says about a row.
    pub(crate) fn test(&self, row: Row<'_>) -> Truth {
        match self.root.value(row) {
            Ok(Value::Bool(true)) => Truth::True,
            Ok(Value::Bool(false)) => Truth::False,
            Ok(_) => Truth::Null,
            Err(Failure::Missing(missing)) => Truth::Unsent(missing),
            Err(Failure::Failed(problem)) => Truth::Failed(problem),
        }
    }

    /// Whether only columns of the key decide.
    pub(crate) fn on_key(&self, schema: &TableSchema) -> bool {
        let in_key = |&index: &usize| schema.key.contains(&(index as u16));
        self.columns.iter().all(in_key)
    }

    /// The column that it is, and nothing else.
    pub(crate) fn bare(&self) -> Option<&Column> {
        match &self.root {
            Node::Column(column, _) => Some(column),
            _ => None,
        }
    }
}

/// The character, from 1, of a line and a column.
fn character(text: &str, (line, column): (isize, isize)) -> usize {
    let before = usize::try_from(line - 1).unwrap_or_default();
    let lines = text.split_inclusive('\n').take(before);
    let lines: usize = lines.map(|line| line.chars().count()).sum();
    lines + usize::try_from(column).unwrap_or_default().max(1)
}

//! A predicate bound to one version of a table: columns by slot, literals in the form their column compares in.

use std::cmp::Ordering;

use lockstep_core::batch::Row;
use lockstep_core::schema::{Column, TableSchema};
use lockstep_core::{Error, ErrorKind, Result};
use regex::bytes::Regex;

use super::class::{Class, Constant, LikeError, like};
use super::parse::{Comparison, Expr, Literal, LiteralKind, Name, Operand};
use crate::tables;
use crate::text::{Value, value};

/// A bound predicate.
#[derive(Clone, Debug)]
pub(crate) struct Predicate {
    root: Node,
    /// Indices into the schema's columns.
    columns: Vec<usize>,
}

/// What a predicate says about a row, in SQL's three values and one more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Truth {
    True,
    False,
    /// SQL's unknown: a NULL was compared.
    Null,
    /// It depends on a value that the log does not carry; the name of its column.
    Unsent(Missing),
    /// It cannot be worked out; why. Only expressions say so.
    Failed(String),
}

/// Why a value cannot be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Unchanged TOAST in this column.
    Unchanged(String),
    /// A text that is no value of this column's type, or a binary form that is not read here.
    Unreadable(String),
}

#[derive(Clone, Debug)]
enum Node {
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
    Compare(Test, Comparison, Constant),
    Columns(Test, Comparison, Column),
    In(Test, Vec<Constant>),
    IsNull(Column),
    Like(Column, Regex),
}

/// A column and how its values compare.
#[derive(Clone, Debug)]
struct Test {
    column: Column,
    class: Class,
}

impl Predicate {
    /// Binds a predicate to a table.
    ///
    /// # Errors
    /// Of kind `Config`: a column that is not there, or a value that does not fit its column's type, with the
    /// character of the predicate.
    pub(crate) fn bind(expr: &Expr, schema: &TableSchema) -> Result<Self> {
        let mut binder = Binder {
            schema,
            columns: Vec::new(),
        };
        let root = binder.node(expr)?;
        Ok(Predicate {
            root,
            columns: binder.columns,
        })
    }

    /// Whether only columns of the key decide.
    pub(crate) fn on_key(&self, schema: &TableSchema) -> bool {
        self.columns
            .iter()
            .all(|&index| schema.key.contains(&(index as u16)))
    }

    /// What it says about a row.
    pub(crate) fn test(&self, row: Row<'_>) -> Truth {
        self.root.test(row)
    }
}

struct Binder<'a> {
    schema: &'a TableSchema,
    columns: Vec<usize>,
}

impl Binder<'_> {
    fn node(&mut self, expr: &Expr) -> Result<Node> {
        let mut nodes = |terms: &[Expr]| -> Result<Vec<Node>> {
            terms.iter().map(|term| self.node(term)).collect()
        };
        match expr {
            Expr::And(terms) => Ok(Node::And(nodes(terms)?)),
            Expr::Or(terms) => Ok(Node::Or(nodes(terms)?)),
            Expr::Not(inner) => Ok(Node::Not(Box::new(self.node(inner)?))),
            Expr::IsNull(name) => Ok(Node::IsNull(self.column(name)?)),
            Expr::Flag(name) => self.flag(name),
            Expr::Compare(left, comparison, right) => self.compare(left, *comparison, right),
            Expr::In(name, list) => {
                let test = self.test(name)?;
                let constants = list.iter().map(|literal| self.constant(&test, literal));
                let constants = constants.collect::<Result<_>>()?;
                Ok(Node::In(test, constants))
            }
            Expr::Like(name, pattern) => self.like(name, pattern),
        }
    }

    fn column(&mut self, name: &Name) -> Result<Column> {
        let (index, column) = tables::column(self.schema, &name.text)
            .map_err(|error| error.at(format!("character {}", name.at)))?;
        self.columns.push(index);
        Ok(column.clone())
    }

    fn test(&mut self, name: &Name) -> Result<Test> {
        let column = self.column(name)?;
        match Class::of(&column.ty) {
            Some(class) => Ok(Test { column, class }),
            None => Err(self.wrong(
                name.at,
                format!(
                    "the column `{}` of type {} cannot be compared here",
                    name.text, column.ty.name
                ),
                "test it with `is null` only, or compare another column",
            )),
        }
    }

    fn flag(&mut self, name: &Name) -> Result<Node> {
        let test = self.test(name)?;
        if test.class != Class::Bool {
            return Err(self.wrong(
                name.at,
                format!(
                    "the column `{}` of type {} is no condition by itself",
                    name.text, test.column.ty.name
                ),
                "compare it with a value",
            ));
        }
        Ok(Node::Compare(test, Comparison::Equal, Constant::Bool(true)))
    }

    fn compare(&mut self, left: &Operand, comparison: Comparison, right: &Operand) -> Result<Node> {
        match (left, right) {
            (Operand::Column(name), Operand::Literal(literal)) => {
                self.compare_constant(name, comparison, literal)
            }
            (Operand::Literal(literal), Operand::Column(name)) => {
                self.compare_constant(name, comparison.mirrored(), literal)
            }
            (Operand::Column(left), Operand::Column(right)) => {
                let (a, b) = (self.test(left)?, self.test(right)?);
                if a.class != b.class {
                    return Err(self.wrong(
                        right.at,
                        format!(
                            "`{}` of type {} and `{}` of type {} cannot be compared",
                            left.text, a.column.ty.name, right.text, b.column.ty.name
                        ),
                        "compare columns of like types",
                    ));
                }
                self.ordered(&a, comparison, left)?;
                Ok(Node::Columns(a, comparison, b.column))
            }
            (Operand::Literal(literal), Operand::Literal(_)) => Err(self.wrong(
                literal.at,
                "neither side of the comparison is a column".to_owned(),
                "name a column on one side",
            )),
        }
    }

    fn compare_constant(
        &mut self,
        name: &Name,
        comparison: Comparison,
        literal: &Literal,
    ) -> Result<Node> {
        let test = self.test(name)?;
        self.ordered(&test, comparison, name)?;
        let constant = self.constant(&test, literal)?;
        Ok(Node::Compare(test, comparison, constant))
    }

    /// Whether `<` and `>` mean something for the type.
    fn ordered(&self, test: &Test, comparison: Comparison, name: &Name) -> Result<()> {
        let equality = matches!(comparison, Comparison::Equal | Comparison::NotEqual);
        if equality || test.class.is_ordered() {
            return Ok(());
        }
        Err(self.wrong(
            name.at,
            format!(
                "the order of type {} is not known here (column `{}`)",
                test.column.ty.name, name.text
            ),
            "use = or <> or `in`",
        ))
    }

    fn constant(&self, test: &Test, literal: &Literal) -> Result<Constant> {
        test.class.constant(literal).map_err(|expected| {
            self.wrong(
                literal.at,
                format!(
                    "`{}` is no value for the column `{}` of type {}",
                    literal.text, test.column.name, test.column.ty.name
                ),
                &format!("write {expected}"),
            )
        })
    }

    fn like(&mut self, name: &Name, pattern: &Literal) -> Result<Node> {
        let test = self.test(name)?;
        if !matches!(test.class, Class::Text { .. }) || pattern.kind != LiteralKind::Text {
            return Err(self.wrong(
                name.at,
                format!(
                    "`like` compares a text column with a quoted text; `{}` is of type {}",
                    name.text, test.column.ty.name
                ),
                "use = or `in`",
            ));
        }
        match like(&pattern.text, test.class) {
            Ok(regex) => Ok(Node::Like(test.column, regex)),
            Err(LikeError::Escape) => Err(self.wrong(
                pattern.at,
                "the pattern ends in a backslash with nothing to escape".to_owned(),
                r"write \\ for a backslash",
            )),
            Err(LikeError::TooLarge(error)) => Err(self
                .wrong(
                    pattern.at,
                    "the pattern is too large".to_owned(),
                    "shorten it",
                )
                .source(error)),
        }
    }

    fn wrong(&self, at: usize, problem: String, remedy: &str) -> Error {
        Error::new(ErrorKind::Config, problem)
            .remedy(remedy)
            .at(format!("character {at}"))
    }
}

impl Node {
    fn test(&self, row: Row<'_>) -> Truth {
        match self {
            Node::And(nodes) => all(nodes, row, Truth::False, Truth::True),
            Node::Or(nodes) => all(nodes, row, Truth::True, Truth::False),
            Node::Not(node) => match node.test(row) {
                Truth::True => Truth::False,
                Truth::False => Truth::True,
                other => other,
            },
            Node::IsNull(column) => match value(&column.ty, row.get(column)) {
                Value::Null => Truth::True,
                // A value that TOAST keeps elsewhere is no NULL.
                Value::Unchanged | Value::Text(_) | Value::Opaque(_) => Truth::False,
            },
            Node::Compare(test, comparison, constant) => test.with(row, |text| {
                Some(comparison.holds(test.class.order(text, constant)?))
            }),
            Node::In(test, constants) => test.with(row, |text| {
                let mut found = false;
                for constant in constants {
                    found |= test.class.order(text, constant)? == Ordering::Equal;
                }
                Some(found)
            }),
            Node::Columns(left, comparison, right) => columns(left, *comparison, right, row),
            Node::Like(column, regex) => {
                let test = |text: &[u8]| Some(regex.is_match(text));
                look(column, row, test)
            }
        }
    }
}

impl Test {
    fn with(&self, row: Row<'_>, test: impl FnOnce(&[u8]) -> Option<bool>) -> Truth {
        look(&self.column, row, test)
    }
}

fn columns(left: &Test, comparison: Comparison, right: &Column, row: Row<'_>) -> Truth {
    let mut other = Truth::Null;
    let first = look(&left.column, row, |a| {
        other = look(right, row, |b| {
            Some(comparison.holds(left.class.order_texts(a, b)?))
        });
        Some(true)
    });
    if first == Truth::True { other } else { first }
}

/// Tests a column's text; a test that has no answer cannot read it.
fn look(column: &Column, row: Row<'_>, test: impl FnOnce(&[u8]) -> Option<bool>) -> Truth {
    let unreadable = || Truth::Unsent(Missing::Unreadable(column.name.to_string()));
    match value(&column.ty, row.get(column)) {
        Value::Null => Truth::Null,
        Value::Unchanged => Truth::Unsent(Missing::Unchanged(column.name.to_string())),
        Value::Opaque(_) => unreadable(),
        Value::Text(text) => match test(&text) {
            Some(true) => Truth::True,
            Some(false) => Truth::False,
            None => unreadable(),
        },
    }
}

/// `and` and `or` alike: `decides` ends the matter, otherwise an unsent value leaves it open, then a NULL, and only
/// then `otherwise` holds.
fn all(nodes: &[Node], row: Row<'_>, decides: Truth, otherwise: Truth) -> Truth {
    let mut result = otherwise;
    for node in nodes {
        let truth = node.test(row);
        if truth == decides {
            return decides;
        }
        result = match (result, truth) {
            (unsent @ Truth::Unsent(_), _) | (_, unsent @ Truth::Unsent(_)) => unsent,
            (Truth::Null, _) | (_, Truth::Null) => Truth::Null,
            (result, _) => result,
        };
    }
    result
}

impl Comparison {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Comparison::Equal => order.is_eq(),
            Comparison::NotEqual => order.is_ne(),
            Comparison::Less => order.is_lt(),
            Comparison::LessEqual => order.is_le(),
            Comparison::Greater => order.is_gt(),
            Comparison::GreaterEqual => order.is_ge(),
        }
    }
}

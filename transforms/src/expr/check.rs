//! Gives every part of an expression its type against a table, and refuses what does not fit.

use std::cmp::Ordering;
use std::fmt::Display;

use cel::IdedExpr;
use cel::common::ast::{CallExpr, Expr, LiteralValue, SelectExpr, SourceInfo, operators as op};
use lockstep_core::schema::{Column, TableSchema};
use lockstep_core::{Error, ErrorKind, Result};
use regex::Regex;
use serde_json::Value as Json;

use super::fit::{fit, goes_with};
use super::functions::{Body, EITHER_WAY, FUNCTIONS, arithmetic, function, negation};
use super::node::{Node, One, Two};
use super::types::Type;
use super::value::Value;
use crate::tables::{self, nearest};

/// The whole row, for columns whose names are no names of the language: `row["Order No"]`.
const ROW: &str = "row";

/// See the module's page.
pub(super) struct Checker<'a> {
    schema: &'a TableSchema,
    key: &'a str,
    places: &'a SourceInfo,
    /// Indices of the columns met so far.
    pub(super) columns: Vec<usize>,
}

type Typed = (Node, Type);

impl<'a> Checker<'a> {
    pub(super) fn new(schema: &'a TableSchema, key: &'a str, places: &'a SourceInfo) -> Self {
        Checker {
            schema,
            key,
            places,
            columns: Vec::new(),
        }
    }

    pub(super) fn node(&mut self, expr: &IdedExpr) -> Result<Typed> {
        match &expr.expr {
            Expr::Literal(literal) => self.literal(expr, literal),
            Expr::Ident(name) => self.column(expr, name),
            Expr::Select(select) => self.select(expr, select),
            Expr::Call(call) => self.call(expr, call),
            Expr::List(list) => {
                let elements = self.nodes(&list.elements)?;
                let mut element = Type::Null;
                let mut nodes = Vec::new();
                for (node, ty) in elements {
                    let (fitted, ty) = fit(node, ty, &element);
                    element = self.joined(expr, &element, &ty)?;
                    nodes.push(fitted);
                }
                Ok((Node::List(nodes), Type::List(Box::new(element))))
            }
            Expr::Comprehension(_) => Err(self.wrong(
                expr,
                "`exists`, `all`, `map` and `filter` over a list are not known here",
                "use `x in list` or `size(list)`",
            )),
            Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => Err(self.wrong(
                expr,
                "maps and messages are not known here",
                "write values, lists and columns only",
            )),
        }
    }

    fn nodes(&mut self, exprs: &[IdedExpr]) -> Result<Vec<Typed>> {
        exprs.iter().map(|expr| self.node(expr)).collect()
    }

    fn literal(&self, expr: &IdedExpr, literal: &LiteralValue) -> Result<Typed> {
        let (value, ty) = match literal {
            LiteralValue::Null => (Value::Null, Type::Null),
            LiteralValue::Boolean(value) => (Value::Bool(*value.inner()), Type::Bool),
            LiteralValue::Int(value) => (Value::Int(*value.inner()), Type::Int),
            LiteralValue::Double(value) => (Value::Double(*value.inner()), Type::Double),
            LiteralValue::String(text) => (Value::text(text.inner()), Type::Text),
            LiteralValue::UInt(value) => {
                return Err(self.wrong(
                    expr,
                    format!(
                        "`{}u` is an unsigned number, which no column is",
                        value.inner()
                    ),
                    "write it without `u`",
                ));
            }
            LiteralValue::Bytes(_) => {
                return Err(self.wrong(
                    expr,
                    "bytes are not known here",
                    "compare the text of a bytea, `string(column) == '\\\\x00ff'`",
                ));
            }
        };
        Ok((Node::Constant(value), ty))
    }

    fn column(&mut self, expr: &IdedExpr, name: &str) -> Result<Typed> {
        let found: Result<(usize, &Column)> = tables::column(self.schema, name);
        let (index, column) = found.map_err(|error| {
            let remedy = error.remedy_text().unwrap_or_default();
            self.wrong(expr, error.message(), remedy)
        })?;
        self.columns.push(index);
        let ty = Type::of(&column.ty);
        Ok((Node::Column(column.clone(), ty.clone()), ty))
    }

    /// Whether it is the row itself.
    fn is_row(&self, expr: &IdedExpr) -> bool {
        matches!(&expr.expr, Expr::Ident(name) if name == ROW) && self.schema.column(ROW).is_none()
    }

    fn select(&mut self, expr: &IdedExpr, select: &SelectExpr) -> Result<Typed> {
        let field = select.field.as_str();
        if self.is_row(&select.operand) {
            if select.test {
                return Err(self.wrong(
                    expr,
                    format!("a row has every column; `has(row.{field})` says nothing"),
                    &format!("write `{field} != null`"),
                ));
            }
            return self.column(expr, field);
        }
        let (inner, ty) = self.node(&select.operand)?;
        if ty != Type::Json {
            return Err(self.wrong(
                expr,
                format!("a {ty} has no field `{field}`"),
                "only json has fields",
            ));
        }
        Ok(match select.test {
            true => (Node::Has(Box::new(inner), field.to_owned()), Type::Bool),
            false => (Node::Field(Box::new(inner), Json::from(field)), Type::Json),
        })
    }

    fn call(&mut self, expr: &IdedExpr, call: &CallExpr) -> Result<Typed> {
        let name = call.func_name.as_str();
        match (name, call.args.as_slice()) {
            (op::INDEX, [list, index]) => self.index(expr, list, index),
            (op::IN, [one, list]) => self.among(expr, one, list),
            (op::CONDITIONAL, [condition, yes, no]) => self.conditional(expr, condition, yes, no),
            (op::LOGICAL_AND, [a, b]) => Ok((Node::And(self.conditions(a, b)?), Type::Bool)),
            (op::LOGICAL_OR, [a, b]) => Ok((Node::Or(self.conditions(a, b)?), Type::Bool)),
            (op::LOGICAL_NOT, [inner]) => {
                Ok((Node::Not(Box::new(self.condition(inner)?)), Type::Bool))
            }
            (op::NEGATE, [inner]) => {
                let (node, ty) = self.node(inner)?;
                match negation(&ty) {
                    Some(make) => Ok((self.one(expr, make, node)?, ty)),
                    None => {
                        Err(self.wrong(expr, format!("`-` before a {ty}"), "it goes with numbers"))
                    }
                }
            }
            (op::EQUALS, [a, b]) => Ok((self.equal(expr, a, b)?, Type::Bool)),
            (op::NOT_EQUALS, [a, b]) => {
                Ok((Node::Not(Box::new(self.equal(expr, a, b)?)), Type::Bool))
            }
            (op::LESS, [a, b]) => self.ordered(expr, Ordering::is_lt, a, b),
            (op::LESS_EQUALS, [a, b]) => self.ordered(expr, Ordering::is_le, a, b),
            (op::GREATER, [a, b]) => self.ordered(expr, Ordering::is_gt, a, b),
            (op::GREATER_EQUALS, [a, b]) => self.ordered(expr, Ordering::is_ge, a, b),
            (op::ADD, [a, b]) => self.arithmetic(expr, '+', a, b),
            (op::SUBSTRACT, [a, b]) => self.arithmetic(expr, '-', a, b),
            (op::MULTIPLY, [a, b]) => self.arithmetic(expr, '*', a, b),
            (op::DIVIDE, [a, b]) => self.arithmetic(expr, '/', a, b),
            (op::MODULO, [a, b]) => self.arithmetic(expr, '%', a, b),
            _ => self.function(expr, call),
        }
    }

    /// A part that must be a condition.
    fn condition(&mut self, expr: &IdedExpr) -> Result<Node> {
        match self.node(expr)? {
            (node, Type::Bool) => Ok(node),
            (_, ty) => Err(self.wrong(
                expr,
                format!("a {ty} is no condition"),
                "compare it with something",
            )),
        }
    }

    fn conditions(&mut self, a: &IdedExpr, b: &IdedExpr) -> Result<Box<[Node; 2]>> {
        Ok(Box::new([self.condition(a)?, self.condition(b)?]))
    }

    fn conditional(
        &mut self,
        expr: &IdedExpr,
        condition: &IdedExpr,
        yes: &IdedExpr,
        no: &IdedExpr,
    ) -> Result<Typed> {
        let condition = self.condition(condition)?;
        let ((yes, yes_type), (no, no_type)) = self.pair(yes, no)?;
        let ty = self.joined(expr, &yes_type, &no_type)?;
        Ok((Node::If(Box::new([condition, yes, no])), ty))
    }

    /// The type of what is of one of two types.
    fn joined(&self, expr: &IdedExpr, a: &Type, b: &Type) -> Result<Type> {
        match (a, b) {
            (a, b) if a == b => Ok(a.clone()),
            (Type::Null, other) | (other, Type::Null) => Ok(other.clone()),
            (a, b) if a.is_text() && b.is_text() => Ok(Type::Text),
            _ => Err(self.wrong(
                expr,
                format!("one value is a {a}, the other a {b}"),
                "make them one type, by `int(…)`, `double(…)`, `decimal(…)` or `string(…)`",
            )),
        }
    }

    /// Two parts, of which a literal takes the type of the other where it can.
    fn pair(&mut self, a: &IdedExpr, b: &IdedExpr) -> Result<(Typed, Typed)> {
        let (a, b) = (self.node(a)?, self.node(b)?);
        let fitted = fit(a.0, a.1, &b.1);
        let b = fit(b.0, b.1, &fitted.1);
        Ok((fitted, b))
    }

    fn equal(&mut self, expr: &IdedExpr, a: &IdedExpr, b: &IdedExpr) -> Result<Node> {
        let ((a, a_type), (b, b_type)) = self.pair(a, b)?;
        Ok(match (a, b) {
            (Node::Column(column, _), Node::Constant(Value::Null))
            | (Node::Constant(Value::Null), Node::Column(column, _)) => Node::IsNull(column),
            (a, b) => {
                self.comparable(expr, &a_type, &b_type, false)?;
                Node::Same(Box::new([a, b]))
            }
        })
    }

    fn ordered(
        &mut self,
        expr: &IdedExpr,
        holds: fn(Ordering) -> bool,
        a: &IdedExpr,
        b: &IdedExpr,
    ) -> Result<Typed> {
        let ((a, a_type), (b, b_type)) = self.pair(a, b)?;
        self.comparable(expr, &a_type, &b_type, true)?;
        Ok((Node::Order(holds, Box::new([a, b])), Type::Bool))
    }

    /// Refuses what cannot be compared.
    fn comparable(&self, expr: &IdedExpr, a: &Type, b: &Type, ordered: bool) -> Result<()> {
        if goes_with(a, b, ordered) {
            return Ok(());
        }
        let remedy = match (a, b) {
            (Type::Null, _) | (_, Type::Null) => "test for null by `== null`",
            (Type::Moment, other) | (other, Type::Moment) if other.is_text() => {
                "make a timestamp of the text: `timestamp('2026-11-23T04:05:06Z')`"
            }
            (Type::Json, _) | (_, Type::Json) => {
                "say what the json is, by `int(…)`, `double(…)`, `string(…)` or `bool(…)`"
            }
            (Type::Other, _) | (_, Type::Other) => {
                "compare its text, `string(column)`, or test it by `== null`"
            }
            (Type::Word, _) | (_, Type::Word) if ordered => {
                "the order of an enum is not known here; use `==`, `!=` or `in`, or compare `string(column)`"
            }
            (a, b) if a.is_number() || b.is_number() => {
                "make a number of the other side, by `int(…)`, `double(…)` or `decimal(…)`"
            }
            _ => "compare like with like",
        };
        let how = if ordered { "ordered" } else { "compared" };
        Err(self.wrong(expr, format!("a {a} and a {b} cannot be {how}"), remedy))
    }

    fn among(&mut self, expr: &IdedExpr, one: &IdedExpr, list: &IdedExpr) -> Result<Typed> {
        let (one, one_type) = self.node(one)?;
        if let Expr::List(list) = &list.expr {
            let mut others = Vec::new();
            for other in &list.elements {
                let (node, ty) = self.node(other)?;
                self.comparable(other, &one_type, &ty, false)?;
                others.push(fit(node, ty, &one_type).0);
            }
            return Ok((Node::Among(Box::new(one), others), Type::Bool));
        }
        match self.node(list)? {
            (list, Type::List(element)) => {
                self.comparable(expr, &one_type, &element, false)?;
                Ok((Node::In(Box::new([one, list])), Type::Bool))
            }
            (_, ty) => Err(self.wrong(
                list,
                format!("a {ty} is no list"),
                "write the values in brackets, `status in ['paid', 'sent']`",
            )),
        }
    }

    fn index(&mut self, expr: &IdedExpr, list: &IdedExpr, index: &IdedExpr) -> Result<Typed> {
        if self.is_row(list) {
            return match &index.expr {
                Expr::Literal(LiteralValue::String(name)) => self.column(index, name.inner()),
                _ => Err(self.wrong(index, "a column is named in quotes", "write `row['name']`")),
            };
        }
        let (list, list_type) = self.node(list)?;
        let (index, index_type) = self.node(index)?;
        match (list_type, index) {
            (Type::List(element), index) if index_type == Type::Int => {
                Ok((Node::Element(Box::new([list, index])), *element))
            }
            (Type::Json, Node::Constant(Value::Text(key))) => {
                let key = Json::from(key.into_owned());
                Ok((Node::Field(Box::new(list), key), Type::Json))
            }
            (Type::Json, Node::Constant(Value::Int(at))) => {
                Ok((Node::Field(Box::new(list), Json::from(at)), Type::Json))
            }
            (ty, _) => Err(self.wrong(
                expr,
                format!("a {ty} cannot be asked for an element by a {index_type}"),
                "lists have elements by number, json has fields by a name in quotes",
            )),
        }
    }

    fn arithmetic(
        &mut self,
        expr: &IdedExpr,
        operator: char,
        a: &IdedExpr,
        b: &IdedExpr,
    ) -> Result<Typed> {
        let ((a, a_type), (b, b_type)) = self.pair(a, b)?;
        if let Some((ty, make)) = arithmetic(operator, &a_type, &b_type) {
            return Ok((self.two(expr, make, a, b)?, ty));
        }
        let remedy = match (operator, &a_type, &b_type) {
            ('/' | '%', Type::Decimal, _) | ('/' | '%', _, Type::Decimal) => {
                "a decimal has no end to divide to; write `double(a) / double(b)`"
            }
            ('+', a, b) if a.is_text() || b.is_text() => {
                "make a text of the other side, by `string(…)`"
            }
            (_, a, b) if a.is_number() && b.is_number() => {
                "make them one type, by `int(…)`, `double(…)` or `decimal(…)`"
            }
            _ => {
                "it goes with numbers of one type, with texts (`+`), and with timestamps and durations (`+`, `-`)"
            }
        };
        Err(self.wrong(
            expr,
            format!("`{operator}` of a {a_type} and a {b_type}"),
            remedy,
        ))
    }

    fn function(&mut self, expr: &IdedExpr, call: &CallExpr) -> Result<Typed> {
        let name = call.func_name.as_str();
        let Some((_, usage)) = FUNCTIONS.iter().find(|(known, _)| *known == name) else {
            let near = nearest(name, FUNCTIONS.iter().map(|(known, _)| *known));
            let remedy = near.map_or_else(
                || "see the list of functions in docs/expressions.md".to_owned(),
                |near| format!("write `{near}`, if that is meant"),
            );
            return Err(self.wrong(expr, format!("there is no function `{name}`"), &remedy));
        };
        let is_member = usage.starts_with("x.");
        let fits = EITHER_WAY.contains(&name) || is_member == call.target.is_some();
        let usage = format!("write {usage}");
        if !fits {
            return Err(self.wrong(expr, format!("`{name}` is not called like this"), &usage));
        }
        let mut given = Vec::new();
        if let Some(target) = &call.target {
            given.push(self.node(target)?);
        }
        given.extend(self.nodes(&call.args)?);
        let (mut nodes, types): (Vec<Node>, Vec<Type>) = given.into_iter().unzip();
        if name == "matches" {
            return self.matches(expr, nodes, &types, &usage);
        }
        let Some((ty, body)) = function(name, &types) else {
            let types: Vec<String> = types.iter().map(Type::to_string).collect();
            let given = match types.as_slice() {
                [] => "nothing".to_owned(),
                types => types.join(", "),
            };
            return Err(self.wrong(
                expr,
                format!("`{name}` is given {given}, and does not take that"),
                &usage,
            ));
        };
        let node = match (body, nodes.pop(), nodes.pop(), nodes.pop()) {
            (Body::One(make), Some(a), None, _) => self.one(expr, make, a)?,
            (Body::Two(make), Some(b), Some(a), None) => self.two(expr, make, a, b)?,
            (Body::Three(make), Some(c), Some(b), Some(a)) => {
                Node::Three(make, Box::new([a, b, c]))
            }
            _ => return Err(self.wrong(expr, format!("`{name}` is given too much"), &usage)),
        };
        Ok((node, ty))
    }

    fn matches(
        &self,
        expr: &IdedExpr,
        mut nodes: Vec<Node>,
        types: &[Type],
        usage: &str,
    ) -> Result<Typed> {
        let (pattern, text) = (nodes.pop(), nodes.pop());
        match (types, text, pattern) {
            ([a, Type::Text], Some(text), Some(Node::Constant(Value::Text(pattern))))
                if a.is_text() =>
            {
                let regex = Regex::new(&pattern).map_err(|error| {
                    self.wrong(
                        expr,
                        format!("`{pattern}` is no regular expression"),
                        "correct the pattern",
                    )
                    .source(error)
                })?;
                Ok((Node::Matches(Box::new(text), regex), Type::Bool))
            }
            _ => Err(self.wrong(
                expr,
                "`matches` takes a text and a pattern in quotes",
                usage,
            )),
        }
    }

    /// A function of constants is worked out now, so that what is wrong with them is said now.
    fn one(&self, expr: &IdedExpr, make: One, inner: Node) -> Result<Node> {
        match inner {
            Node::Constant(Value::Null) => Ok(Node::Constant(Value::Null)),
            Node::Constant(value) => self.constant(expr, make(value)),
            inner => Ok(Node::One(make, Box::new(inner))),
        }
    }

    fn two(&self, expr: &IdedExpr, make: Two, a: Node, b: Node) -> Result<Node> {
        match (a, b) {
            (Node::Constant(a), Node::Constant(b)) if a != Value::Null && b != Value::Null => {
                self.constant(expr, make(a, b))
            }
            (a, b) => Ok(Node::Two(make, Box::new([a, b]))),
        }
    }

    fn constant(&self, expr: &IdedExpr, made: Result<Value<'static>, String>) -> Result<Node> {
        made.map(Node::Constant)
            .map_err(|problem| self.wrong(expr, problem, "correct the value"))
    }

    fn wrong(&self, expr: &IdedExpr, problem: impl Display, remedy: &str) -> Error {
        let start = self.places.offset_for(expr.id);
        let start = start.map_or(0, |(start, _)| start as usize);
        // The parser counts bytes.
        let before = self.places.source.get(..start);
        let at = before.map_or(start, |before| before.chars().count()) + 1;
        let message = format!("{}: character {at}: {problem}", self.key);
        Error::new(ErrorKind::Config, message).remedy(remedy)
    }
}

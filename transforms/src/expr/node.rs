//! A bound expression, and what it gives for a row.

use std::cmp::Ordering;

use lockstep_core::batch::{CellRef, Row};
use lockstep_core::schema::Column;
use regex::Regex;
use serde_json::Value as Json;

use super::decode;
use super::types::Type;
use super::value::{Value, order, same};
use crate::filter::predicate::Missing;

/// Why a row gives no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A value that the log does not carry, or that cannot be read, would decide.
    Missing(Missing),
    /// It cannot be worked out: a division by zero, a text that is no number.
    Failed(String),
}

pub(super) type Given<'a> = Result<Value<'a>, Failure>;
/// What is made of one value that is not NULL.
pub(super) type One = for<'a> fn(Value<'a>) -> Result<Value<'a>, String>;
/// What is made of two that are not NULL.
pub(super) type Two = for<'a> fn(Value<'a>, Value<'a>) -> Result<Value<'a>, String>;
/// What is made of three that are not NULL.
pub(super) type Three = for<'a> fn(Value<'a>, Value<'a>, Value<'a>) -> Result<Value<'a>, String>;

/// A part of an expression.
#[derive(Debug)]
pub(super) enum Node {
    Column(Column, Type),
    Constant(Value<'static>),
    And(Box<[Node; 2]>),
    Or(Box<[Node; 2]>),
    Not(Box<Node>),
    /// A column is NULL. One that TOAST keeps elsewhere is not.
    IsNull(Column),
    Same(Box<[Node; 2]>),
    /// Holds for some orders of the two.
    Order(fn(Ordering) -> bool, Box<[Node; 2]>),
    /// The first is among the others.
    Among(Box<Node>, Vec<Node>),
    /// The first is in the list that the second gives.
    In(Box<[Node; 2]>),
    /// The second where the first is true, the third where it is not.
    If(Box<[Node; 3]>),
    List(Vec<Node>),
    /// An element of a list, from 0.
    Element(Box<[Node; 2]>),
    /// A field of a JSON object, or an element of an array.
    Field(Box<Node>, Json),
    /// Whether a JSON object has a field.
    Has(Box<Node>, String),
    Matches(Box<Node>, Regex),
    One(One, Box<Node>),
    Two(Two, Box<[Node; 2]>),
    Three(Three, Box<[Node; 3]>),
}

impl Node {
    pub(super) fn value<'a>(&'a self, row: Row<'a>) -> Given<'a> {
        match self {
            Node::Column(column, ty) => decode::column(column, ty, row),
            Node::Constant(value) => Ok(value.borrowed()),
            Node::And(sides) => both(sides, row, false),
            Node::Or(sides) => both(sides, row, true),
            Node::Not(inner) => Ok(match inner.value(row)? {
                Value::Bool(value) => Value::Bool(!value),
                _ => Value::Null,
            }),
            Node::IsNull(column) => Ok(Value::Bool(row.get(column) == CellRef::Null)),
            Node::Same(sides) => {
                let [a, b] = &**sides;
                Ok(Value::Bool(same(&a.value(row)?, &b.value(row)?)))
            }
            Node::Order(holds, sides) => {
                let [a, b] = &**sides;
                let order = order(&a.value(row)?, &b.value(row)?);
                Ok(order.map_or(Value::Null, |order| Value::Bool(holds(order))))
            }
            Node::Among(one, others) => among(one, others, row),
            Node::In(sides) => {
                let [one, list] = &**sides;
                Ok(match (one.value(row)?, list.value(row)?) {
                    (one, Value::List(list)) => {
                        Value::Bool(list.iter().any(|other| same(&one, other)))
                    }
                    _ => Value::Null,
                })
            }
            Node::If(parts) => {
                let [condition, yes, no] = &**parts;
                match condition.value(row)? {
                    Value::Bool(true) => yes.value(row),
                    _ => no.value(row),
                }
            }
            Node::List(nodes) => {
                let values = nodes.iter().map(|node| node.value(row));
                Ok(Value::List(values.collect::<Result<_, _>>()?))
            }
            Node::Element(sides) => {
                let [list, index] = &**sides;
                element(list.value(row)?, &index.value(row)?)
            }
            Node::Field(inner, key) => Ok(match inner.value(row)? {
                Value::Json(json) => field(json, key),
                _ => Value::Null,
            }),
            Node::Has(inner, key) => Ok(match inner.value(row)? {
                Value::Json(json) => Value::Bool(json.get(key).is_some()),
                _ => Value::Null,
            }),
            Node::Matches(inner, regex) => Ok(match inner.value(row)? {
                Value::Text(text) => Value::Bool(regex.is_match(&text)),
                _ => Value::Null,
            }),
            Node::One(make, inner) => match inner.value(row)? {
                Value::Null => Ok(Value::Null),
                value => make(value).map_err(Failure::Failed),
            },
            Node::Two(make, sides) => {
                let [a, b] = &**sides;
                match (a.value(row)?, b.value(row)?) {
                    (Value::Null, _) | (_, Value::Null) => Ok(Value::Null),
                    (a, b) => make(a, b).map_err(Failure::Failed),
                }
            }
            Node::Three(make, parts) => {
                let [a, b, c] = &**parts;
                match (a.value(row)?, b.value(row)?, c.value(row)?) {
                    (Value::Null, ..) | (_, Value::Null, _) | (.., Value::Null) => Ok(Value::Null),
                    (a, b, c) => make(a, b, c).map_err(Failure::Failed),
                }
            }
        }
    }
}

/// `&&` and `||`: what `decides` on either side ends the matter, whatever becomes of the other side. Otherwise what is missing or
/// cannot be worked out leaves it open, and then a NULL.
fn both<'a>(sides: &'a [Node; 2], row: Row<'a>, decides: bool) -> Given<'a> {
    let first = sides[0].value(row);
    if first == Ok(Value::Bool(decides)) {
        return first;
    }
    let second = sides[1].value(row);
    if second == Ok(Value::Bool(decides)) {
        return second;
    }
    match (first?, second?) {
        (Value::Bool(_), second) => Ok(second),
        (first, _) => Ok(first),
    }
}

fn among<'a>(one: &'a Node, others: &'a [Node], row: Row<'a>) -> Given<'a> {
    let one = one.value(row)?;
    let mut open = None;
    for other in others {
        match other.value(row) {
            Ok(other) if same(&one, &other) => return Ok(Value::Bool(true)),
            Ok(_) => {}
            Err(failure) => open = Some(failure),
        }
    }
    open.map_or(Ok(Value::Bool(false)), Err)
}

fn element<'a>(list: Value<'a>, index: &Value<'_>) -> Given<'a> {
    let (Value::List(mut list), Value::Int(index)) = (list, index) else {
        return Ok(Value::Null);
    };
    match usize::try_from(*index) {
        Ok(at) if at < list.len() => Ok(list.swap_remove(at)),
        _ => Err(Failure::Failed(format!(
            "there is no element {index} in a list of {}",
            list.len()
        ))),
    }
}

/// What is not there is NULL, as with PostgreSQL's `->`.
fn field(mut json: Json, key: &Json) -> Value<'static> {
    let found = match key {
        Json::String(key) => json.get_mut(key.as_str()),
        Json::Number(index) => index
            .as_u64()
            .and_then(|index| json.get_mut(usize::try_from(index).ok()?)),
        _ => None,
    };
    match found.map(Json::take) {
        None | Some(Json::Null) => Value::Null,
        Some(found) => Value::Json(found),
    }
}

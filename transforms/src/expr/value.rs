//! Values of the language: how they compare, and how they are written.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value as Json;

use super::{number, time};
use crate::filter::moment::Moment;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    /// A number by its decimal text.
    Decimal(Cow<'a, str>),
    Text(Cow<'a, str>),
    Moment(Moment),
    /// Microseconds.
    Duration(i64),
    Json(Json),
    List(Vec<Value<'a>>),
}

impl<'a> Value<'a> {
    /// The same value, which lives as long as this one.
    pub(super) fn borrowed(&'a self) -> Value<'a> {
        match self {
            Value::Decimal(text) => Value::Decimal(Cow::Borrowed(text)),
            Value::Text(text) => Value::Text(Cow::Borrowed(text)),
            other => other.clone(),
        }
    }

    /// A text that this makes.
    pub(super) fn text(text: impl Into<String>) -> Self {
        Value::Text(Cow::Owned(text.into()))
    }

    /// Appends it as PostgreSQL would write it; false for NULL, which has no text.
    pub(crate) fn write(&self, out: &mut Vec<u8>) -> bool {
        match self {
            Value::Null => return false,
            Value::Bool(value) => out.push(if *value { b't' } else { b'f' }),
            Value::Decimal(text) | Value::Text(text) => out.extend_from_slice(text.as_bytes()),
            Value::Json(json) => out.extend_from_slice(json.to_string().as_bytes()),
            other => out.extend_from_slice(other.to_text().as_bytes()),
        }
        true
    }

    /// What `string(…)` makes of it. Of NULL nothing is made.
    pub(super) fn to_text(&self) -> String {
        match self {
            Value::Null => String::new(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Double(value) => number::double_text(*value),
            Value::Decimal(text) | Value::Text(text) => text.clone().into_owned(),
            Value::Moment(moment) => time::moment_text(*moment),
            Value::Duration(micros) => time::duration_text(*micros),
            Value::Json(Json::String(text)) => text.clone(),
            Value::Json(json) => json.to_string(),
            Value::List(elements) => {
                let texts: Vec<String> = elements.iter().map(Value::to_text).collect();
                texts.join(",")
            }
        }
    }
}

/// Whether two values are the same. As in CEL this is never NULL: NULL is the same as NULL, and as nothing else.
pub(super) fn same(a: &Value<'_>, b: &Value<'_>) -> bool {
    match (a, b) {
        (Value::Null, Value::Null) => true,
        (Value::Null, _) | (_, Value::Null) => false,
        (Value::Text(a), Value::Text(b)) => a == b,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::List(a), Value::List(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Json(json), Value::Json(other)) => json == other,
        (Value::Json(json), other) | (other, Value::Json(json)) => match (json, other) {
            (Json::String(a), Value::Text(b)) => *a == **b,
            (Json::Bool(a), Value::Bool(b)) => a == b,
            (Json::Number(number), other) => {
                order(&Value::text_number(number), other).is_some_and(Ordering::is_eq)
            }
            _ => false,
        },
        (a, b) => order(a, b).is_some_and(Ordering::is_eq),
    }
}

/// The order of two values; `None` where one is NULL, or they have none.
pub(super) fn order(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
        (Value::Moment(a), Value::Moment(b)) => Some(a.cmp(b)),
        (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
        _ => number::order(a, b),
    }
}

impl Value<'_> {
    fn text_number(number: &serde_json::Number) -> Value<'static> {
        Value::Decimal(Cow::Owned(number.to_string()))
    }
}

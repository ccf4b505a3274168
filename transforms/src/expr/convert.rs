//! One type of another, and what is said where that cannot be.

use std::borrow::Cow;

use serde_json::Value as Json;

use super::number::Fixed;
use super::time;
use super::value::Value;

/// Types are settled before the first row; this is said where a value is of none of them all the same.
pub(super) fn unfit() -> String {
    "a value is of another type than its column".to_owned()
}

pub(super) fn too_large() -> String {
    "the number is too large".to_owned()
}

pub(super) fn no(what: &str, value: &Value<'_>) -> String {
    const SHOWN: usize = 40;
    let text: String = value.to_text().chars().take(SHOWN).collect();
    format!("`{text}` is no {what}")
}

pub(super) fn decimal(value: Fixed) -> Value<'static> {
    Value::Decimal(Cow::Owned(value.text()))
}

pub(super) fn fixed(value: &Value<'_>) -> Result<Fixed, String> {
    let fixed = match value {
        Value::Int(value) => Fixed::parse(&value.to_string()),
        Value::Double(value) => Fixed::parse(&value.to_string()),
        Value::Decimal(text) | Value::Text(text) => Fixed::parse(text.trim()),
        Value::Json(Json::Number(number)) => Fixed::parse(&number.to_string()),
        Value::Json(Json::String(text)) => Fixed::parse(text),
        _ => None,
    };
    fixed.ok_or_else(|| no("number that decimals can be reckoned with", value))
}

pub(super) fn to_bool(value: Value<'_>) -> Result<Value<'_>, String> {
    match &value {
        Value::Bool(value) | Value::Json(Json::Bool(value)) => Ok(Value::Bool(*value)),
        Value::Text(text) => match &**text {
            "true" | "t" | "1" => Ok(Value::Bool(true)),
            "false" | "f" | "0" => Ok(Value::Bool(false)),
            _ => Err(no("bool", &value)),
        },
        _ => Err(no("bool", &value)),
    }
}

pub(super) fn to_int(value: Value<'_>) -> Result<Value<'_>, String> {
    let int = match &value {
        Value::Int(value) => Some(*value),
        Value::Double(value) => {
            let least = i64::MIN as f64;
            let fits = *value >= least && *value < -least;
            fits.then_some(*value as i64)
        }
        Value::Decimal(_) => fixed(&value)?.whole(),
        Value::Text(text) => text.trim().parse().ok(),
        Value::Moment(moment) => i64::try_from(moment.div_euclid(1_000_000)).ok(),
        Value::Json(Json::Number(number)) => number.as_i64(),
        Value::Json(Json::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    int.map(Value::Int).ok_or_else(|| no("int", &value))
}

pub(super) fn to_double(value: Value<'_>) -> Result<Value<'_>, String> {
    let double = match &value {
        Value::Int(value) => Some(*value as f64),
        Value::Double(value) => Some(*value),
        Value::Decimal(text) | Value::Text(text) => text.trim().parse().ok(),
        Value::Json(Json::Number(number)) => number.as_f64(),
        Value::Json(Json::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    double
        .map(Value::Double)
        .ok_or_else(|| no("double", &value))
}

pub(super) fn to_decimal(value: Value<'_>) -> Result<Value<'_>, String> {
    match value {
        Value::Decimal(_) => Ok(value),
        value => fixed(&value).map(decimal),
    }
}

pub(super) fn to_moment(value: Value<'_>) -> Result<Value<'_>, String> {
    let moment = match &value {
        Value::Moment(moment) => Some(*moment),
        Value::Int(seconds) => Some(i128::from(*seconds) * 1_000_000),
        Value::Text(text) => time::moment(text.trim()),
        _ => None,
    };
    moment
        .map(Value::Moment)
        .ok_or_else(|| no("timestamp", &value))
}

pub(super) fn to_duration(value: Value<'_>) -> Result<Value<'_>, String> {
    let duration = match &value {
        Value::Duration(micros) => Some(*micros),
        Value::Text(text) => time::duration(text.trim()),
        _ => None,
    };
    duration
        .map(Value::Duration)
        .ok_or_else(|| no("duration", &value))
}

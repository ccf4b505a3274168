//! The functions and operators of the language, by the types of what they are given.

use serde_json::Value as Json;

use super::convert::{
    decimal, fixed, no, to_bool, to_decimal, to_double, to_duration, to_int, to_moment, too_large,
    unfit,
};
use super::node::{One, Three, Two};
use super::number::Fixed;
use super::time::{self, Parts};
use super::types::Type;
use super::value::Value;

/// What a function does.
#[derive(Clone, Copy)]
pub(super) enum Body {
    One(One),
    Two(Two),
    Three(Three),
}

/// Every function, and how it is called on what: `f(x)` or `x.f()`.
pub(super) const FUNCTIONS: &[(&str, &str)] = &[
    ("bool", "bool(x) of a bool, a string or json"),
    ("contains", "x.contains(y) of strings"),
    ("decimal", "decimal(x) of a number, a string or json"),
    ("double", "double(x) of a number, a string or json"),
    ("duration", "duration(x) of a string such as '1h30m'"),
    ("endsWith", "x.endsWith(y) of strings"),
    ("getDate", "x.getDate() of a timestamp"),
    ("getDayOfMonth", "x.getDayOfMonth() of a timestamp"),
    ("getDayOfWeek", "x.getDayOfWeek() of a timestamp"),
    ("getDayOfYear", "x.getDayOfYear() of a timestamp"),
    ("getFullYear", "x.getFullYear() of a timestamp"),
    ("getHours", "x.getHours() of a timestamp or a duration"),
    ("getMilliseconds", "x.getMilliseconds() of a timestamp"),
    ("getMinutes", "x.getMinutes() of a timestamp or a duration"),
    ("getMonth", "x.getMonth() of a timestamp"),
    ("getSeconds", "x.getSeconds() of a timestamp or a duration"),
    ("int", "int(x) of a number, a string, a timestamp or json"),
    ("lowerAscii", "x.lowerAscii() of a string"),
    (
        "matches",
        "x.matches('…') of a string and a regular expression in quotes",
    ),
    ("replace", "x.replace(y, z) of strings"),
    ("size", "size(x) of a string, a list or json"),
    ("startsWith", "x.startsWith(y) of strings"),
    ("string", "string(x) of anything"),
    (
        "substring",
        "x.substring(from) or x.substring(from, to) of a string and characters from 0",
    ),
    (
        "timestamp",
        "timestamp(x) of a string such as '2026-11-23T04:05:06Z', or of seconds since 1970",
    ),
    ("trim", "x.trim() of a string"),
    ("upperAscii", "x.upperAscii() of a string"),
];

/// Functions that are called either way.
pub(super) const EITHER_WAY: [&str; 2] = ["matches", "size"];

/// The function `name` for arguments of these types, with the receiver first; `None` where it takes no such.
pub(super) fn function(name: &str, types: &[Type]) -> Option<(Type, Body)> {
    use Type as T;
    let types: Vec<Type> = types.iter().cloned().map(plain).collect();
    Some(match (name, types.as_slice()) {
        ("bool", [T::Bool | T::Text | T::Json]) => (T::Bool, Body::One(to_bool)),
        ("int", [T::Int | T::Double | T::Decimal | T::Text | T::Moment | T::Json]) => {
            (T::Int, Body::One(to_int))
        }
        ("double", [T::Int | T::Double | T::Decimal | T::Text | T::Json]) => {
            (T::Double, Body::One(to_double))
        }
        ("decimal", [T::Int | T::Double | T::Decimal | T::Text | T::Json]) => {
            (T::Decimal, Body::One(to_decimal))
        }
        ("string", [_]) => (T::Text, Body::One(|value| Ok(Value::text(value.to_text())))),
        ("timestamp", [T::Text | T::Int | T::Moment]) => (T::Moment, Body::One(to_moment)),
        ("duration", [T::Text | T::Duration]) => (T::Duration, Body::One(to_duration)),
        ("size", [T::Text | T::List(_) | T::Json]) => (T::Int, Body::One(size)),
        ("contains", [T::Text, T::Text]) => {
            (T::Bool, Body::Two(|a, b| texts(a, b, |a, b| a.contains(b))))
        }
        ("startsWith", [T::Text, T::Text]) => (
            T::Bool,
            Body::Two(|a, b| texts(a, b, |a, b| a.starts_with(b))),
        ),
        ("endsWith", [T::Text, T::Text]) => (
            T::Bool,
            Body::Two(|a, b| texts(a, b, |a, b| a.ends_with(b))),
        ),
        ("lowerAscii", [T::Text]) => (
            T::Text,
            Body::One(|text| map(text, |text| text.to_ascii_lowercase())),
        ),
        ("upperAscii", [T::Text]) => (
            T::Text,
            Body::One(|text| map(text, |text| text.to_ascii_uppercase())),
        ),
        ("trim", [T::Text]) => (
            T::Text,
            Body::One(|text| map(text, |text| text.trim().to_owned())),
        ),
        ("replace", [T::Text, T::Text, T::Text]) => (T::Text, Body::Three(replace)),
        ("substring", [T::Text, T::Int]) => (
            T::Text,
            Body::Two(|text, from| substring(&text, &from, None)),
        ),
        ("substring", [T::Text, T::Int, T::Int]) => (
            T::Text,
            Body::Three(|text, from, to| substring(&text, &from, Some(&to))),
        ),
        (name, [T::Moment]) => (T::Int, Body::One(part(name)?)),
        ("getHours", [T::Duration]) => (T::Int, Body::One(|value| units(&value, 3_600_000_000))),
        ("getMinutes", [T::Duration]) => (T::Int, Body::One(|value| units(&value, 60_000_000))),
        ("getSeconds", [T::Duration]) => (T::Int, Body::One(|value| units(&value, 1_000_000))),
        _ => return None,
    })
}

/// An enum is a text to functions.
fn plain(ty: Type) -> Type {
    match ty {
        Type::Word => Type::Text,
        other => other,
    }
}

/// The operator `+`, `-`, `*`, `/` or `%` for two types.
pub(super) fn arithmetic(operator: char, a: &Type, b: &Type) -> Option<(Type, Two)> {
    use Type as T;
    Some(match (operator, a, b) {
        ('+', T::Text | T::Word, T::Text | T::Word) => {
            (T::Text, |a, b| Ok(Value::text(a.to_text() + &b.to_text())))
        }
        ('+', T::Int, T::Int) => (T::Int, |a, b| ints(a, b, i64::checked_add)),
        ('-', T::Int, T::Int) => (T::Int, |a, b| ints(a, b, i64::checked_sub)),
        ('*', T::Int, T::Int) => (T::Int, |a, b| ints(a, b, i64::checked_mul)),
        ('/', T::Int, T::Int) => (T::Int, |a, b| divided(a, b, i64::checked_div)),
        ('%', T::Int, T::Int) => (T::Int, |a, b| divided(a, b, i64::checked_rem)),
        ('+', T::Double, T::Double) => (T::Double, |a, b| doubles(a, b, |a, b| a + b)),
        ('-', T::Double, T::Double) => (T::Double, |a, b| doubles(a, b, |a, b| a - b)),
        ('*', T::Double, T::Double) => (T::Double, |a, b| doubles(a, b, |a, b| a * b)),
        ('/', T::Double, T::Double) => (T::Double, |a, b| doubles(a, b, |a, b| a / b)),
        ('+', T::Decimal, T::Int | T::Decimal) | ('+', T::Int, T::Decimal) => {
            (T::Decimal, |a, b| decimals(&a, &b, Fixed::add))
        }
        ('-', T::Decimal, T::Int | T::Decimal) | ('-', T::Int, T::Decimal) => {
            (T::Decimal, |a, b| {
                decimals(&a, &b, |a, b| a.add(b.negated()))
            })
        }
        ('*', T::Decimal, T::Int | T::Decimal) | ('*', T::Int, T::Decimal) => {
            (T::Decimal, |a, b| decimals(&a, &b, Fixed::times))
        }
        ('+', T::Moment, T::Duration) => (T::Moment, |a, b| later(&a, &b, 1)),
        ('+', T::Duration, T::Moment) => (T::Moment, |a, b| later(&b, &a, 1)),
        ('-', T::Moment, T::Duration) => (T::Moment, |a, b| later(&a, &b, -1)),
        ('-', T::Moment, T::Moment) => (T::Duration, between),
        ('+', T::Duration, T::Duration) => {
            (T::Duration, |a, b| durations(&a, &b, i64::checked_add))
        }
        ('-', T::Duration, T::Duration) => {
            (T::Duration, |a, b| durations(&a, &b, i64::checked_sub))
        }
        _ => return None,
    })
}

/// The sign `-` before a value.
pub(super) fn negation(ty: &Type) -> Option<One> {
    Some(match ty {
        Type::Int => |value| match value {
            Value::Int(value) => value.checked_neg().map(Value::Int).ok_or_else(too_large),
            _ => Err(unfit()),
        },
        Type::Double => |value| match value {
            Value::Double(value) => Ok(Value::Double(-value)),
            _ => Err(unfit()),
        },
        Type::Decimal => |value| Ok(decimal(fixed(&value)?.negated())),
        Type::Duration => |value| match value {
            Value::Duration(value) => value
                .checked_neg()
                .map(Value::Duration)
                .ok_or_else(too_large),
            _ => Err(unfit()),
        },
        _ => return None,
    })
}

fn size(value: Value<'_>) -> Result<Value<'_>, String> {
    let size = match &value {
        Value::Text(text) => text.chars().count(),
        Value::List(list) => list.len(),
        Value::Json(Json::Array(list)) => list.len(),
        Value::Json(Json::Object(fields)) => fields.len(),
        Value::Json(Json::String(text)) => text.chars().count(),
        _ => return Err(no("list or object", &value)),
    };
    Ok(Value::Int(size as i64))
}

fn texts<'a>(
    a: Value<'a>,
    b: Value<'a>,
    test: fn(&str, &str) -> bool,
) -> Result<Value<'a>, String> {
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => Ok(Value::Bool(test(&a, &b))),
        _ => Err(unfit()),
    }
}

fn map<'a>(text: Value<'a>, make: fn(&str) -> String) -> Result<Value<'a>, String> {
    match text {
        Value::Text(text) => Ok(Value::text(make(&text))),
        _ => Err(unfit()),
    }
}

fn replace<'a>(text: Value<'a>, from: Value<'a>, to: Value<'a>) -> Result<Value<'a>, String> {
    match (text, from, to) {
        (Value::Text(text), Value::Text(from), Value::Text(to)) => {
            Ok(Value::text(text.replace(&*from, &to)))
        }
        _ => Err(unfit()),
    }
}

fn substring<'a>(
    text: &Value<'a>,
    from: &Value<'a>,
    to: Option<&Value<'a>>,
) -> Result<Value<'a>, String> {
    let (Value::Text(text), Value::Int(from)) = (text, from) else {
        return Err(unfit());
    };
    let length = text.chars().count();
    let to = match to {
        None => length as i64,
        Some(Value::Int(to)) => *to,
        Some(_) => return Err(unfit()),
    };
    match (usize::try_from(*from), usize::try_from(to)) {
        (Ok(first), Ok(end)) if first <= end && end <= length => {
            let part: String = text.chars().skip(first).take(end - first).collect();
            Ok(Value::text(part))
        }
        _ => Err(format!(
            "there are no characters {from} to {to} in a text of {length}"
        )),
    }
}

fn ints<'a>(
    a: Value<'a>,
    b: Value<'a>,
    make: fn(i64, i64) -> Option<i64>,
) -> Result<Value<'a>, String> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => make(a, b).map(Value::Int).ok_or_else(too_large),
        _ => Err(unfit()),
    }
}

fn divided<'a>(
    a: Value<'a>,
    b: Value<'a>,
    make: fn(i64, i64) -> Option<i64>,
) -> Result<Value<'a>, String> {
    match b {
        Value::Int(0) => Err("it divides by zero".to_owned()),
        b => ints(a, b, make),
    }
}

fn doubles<'a>(a: Value<'a>, b: Value<'a>, make: fn(f64, f64) -> f64) -> Result<Value<'a>, String> {
    match (a, b) {
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(make(a, b))),
        _ => Err(unfit()),
    }
}

fn decimals<'a>(
    a: &Value<'a>,
    b: &Value<'a>,
    make: fn(Fixed, Fixed) -> Option<Fixed>,
) -> Result<Value<'a>, String> {
    make(fixed(a)?, fixed(b)?)
        .map(decimal)
        .ok_or_else(too_large)
}

fn durations<'a>(
    a: &Value<'a>,
    b: &Value<'a>,
    make: fn(i64, i64) -> Option<i64>,
) -> Result<Value<'a>, String> {
    match (a, b) {
        (Value::Duration(a), Value::Duration(b)) => {
            make(*a, *b).map(Value::Duration).ok_or_else(too_large)
        }
        _ => Err(unfit()),
    }
}

fn later<'a>(moment: &Value<'a>, by: &Value<'a>, sign: i128) -> Result<Value<'a>, String> {
    match (moment, by) {
        (Value::Moment(moment), Value::Duration(by)) if time::parts(*moment).is_some() => {
            Ok(Value::Moment(moment + sign * i128::from(*by)))
        }
        // Infinity stays where it is.
        (Value::Moment(moment), Value::Duration(_)) => Ok(Value::Moment(*moment)),
        _ => Err(unfit()),
    }
}

fn between<'a>(a: Value<'a>, b: Value<'a>) -> Result<Value<'a>, String> {
    let micros = match (&a, &b) {
        (Value::Moment(a), Value::Moment(b)) => a.checked_sub(*b),
        _ => return Err(unfit()),
    };
    let micros = micros.and_then(|micros| i64::try_from(micros).ok());
    micros.map(Value::Duration).ok_or_else(too_large)
}

fn units<'a>(value: &Value<'a>, unit: i64) -> Result<Value<'a>, String> {
    match value {
        Value::Duration(micros) => Ok(Value::Int(micros / unit)),
        _ => Err(unfit()),
    }
}

/// A function that takes a part of a timestamp.
fn part(name: &str) -> Option<One> {
    fn of<'a>(value: Value<'a>, part: fn(&Parts) -> i64) -> Result<Value<'a>, String> {
        match &value {
            Value::Moment(moment) => match time::parts(*moment) {
                Some(parts) => Ok(Value::Int(part(&parts))),
                None => Err(no("day of a calendar", &value)),
            },
            _ => Err(unfit()),
        }
    }
    Some(match name {
        "getFullYear" => |value| of(value, |parts| parts.year),
        "getMonth" => |value| of(value, |parts| parts.month - 1),
        "getDate" => |value| of(value, |parts| parts.day),
        "getDayOfMonth" => |value| of(value, |parts| parts.day - 1),
        "getDayOfWeek" => |value| of(value, Parts::day_of_week),
        "getDayOfYear" => |value| of(value, Parts::day_of_year),
        "getHours" => |value| of(value, |parts| parts.micros / 3_600_000_000),
        "getMinutes" => |value| of(value, |parts| parts.micros / 60_000_000 % 60),
        "getSeconds" => |value| of(value, |parts| parts.micros / 1_000_000 % 60),
        "getMilliseconds" => |value| of(value, |parts| parts.micros / 1_000 % 1_000),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_function() {
        let page = include_str!("../../../docs/expressions.md");
        for (name, _) in FUNCTIONS {
            assert!(page.contains(&format!("{name}(")), "{name}");
        }
    }
}

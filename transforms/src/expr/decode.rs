//! Cells as values of the language.

use std::borrow::Cow;

use lockstep_core::batch::Row;
use lockstep_core::schema::{Column, ColumnType, TypeKind};

use super::node::Failure;
use super::types::Type;
use super::value::Value;
use crate::filter::moment::{self, Shape};
use crate::filter::predicate::Missing;
use crate::text::{self, oid};

/// The value of a column; what cannot be read as its type is missing.
pub(super) fn column<'a>(column: &Column, ty: &Type, row: Row<'a>) -> Result<Value<'a>, Failure> {
    let unreadable = || Failure::Missing(Missing::Unreadable(column.name.to_string()));
    match text::value(&column.ty, row.get(column)) {
        text::Value::Null => Ok(Value::Null),
        text::Value::Unchanged => Err(Failure::Missing(Missing::Unchanged(
            column.name.to_string(),
        ))),
        text::Value::Opaque(_) => Err(unreadable()),
        text::Value::Text(text) => {
            let text = match text {
                Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
                Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
            };
            text.and_then(|text| of_text(text, ty, &column.ty))
                .ok_or_else(unreadable)
        }
    }
}

fn of_text<'a>(text: Cow<'a, str>, ty: &Type, column: &ColumnType) -> Option<Value<'a>> {
    Some(match ty {
        Type::Null => return None,
        Type::Bool => Value::Bool(match &*text {
            "t" | "true" => true,
            "f" | "false" => false,
            _ => return None,
        }),
        Type::Int => Value::Int(text.parse().ok()?),
        Type::Double => Value::Double(text.parse().ok()?),
        Type::Decimal => Value::Decimal(text),
        Type::Text if column.kind == TypeKind::Base && column.oid == oid::BPCHAR => {
            Value::Text(unpadded(text))
        }
        Type::Text | Type::Word | Type::Other => Value::Text(text),
        Type::Moment => {
            let shape = match column.oid {
                oid::DATE => Shape::Date,
                oid::TIMESTAMP => Shape::Timestamp,
                _ => Shape::TimestampTz,
            };
            Value::Moment(moment::parse(text.as_bytes(), shape)?)
        }
        Type::Duration => return None,
        Type::Json => Value::Json(serde_json::from_str(&text).ok()?),
        Type::List(element) => {
            let TypeKind::Array(column) = &column.kind else {
                return None;
            };
            let value = |text: Option<String>| match text {
                None => Some(Value::Null),
                Some(text) => of_text(Cow::Owned(text), element, column),
            };
            Value::List(
                elements(&text)?
                    .into_iter()
                    .map(value)
                    .collect::<Option<_>>()?,
            )
        }
    })
}

/// `char(n)` without its trailing blanks, which do not count.
fn unpadded(text: Cow<'_, str>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.trim_end_matches(' ')),
        Cow::Owned(text) => Cow::Owned(text.trim_end_matches(' ').to_owned()),
    }
}

/// The elements of an array of one dimension as PostgreSQL writes it: `{a,"b c",NULL}`. `None` where it has more dimensions.
fn elements(text: &str) -> Option<Vec<Option<String>>> {
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    let mut elements = Vec::new();
    let mut chars = inner.chars().peekable();
    if chars.peek().is_none() {
        return Some(elements);
    }
    loop {
        let mut element = String::new();
        let quoted = chars.next_if_eq(&'"').is_some();
        loop {
            match chars.next() {
                Some('\\') => element.push(chars.next()?),
                Some('"') if quoted => break,
                Some('{') if !quoted => return None,
                Some(c) => element.push(c),
                None => return None,
            }
            if !quoted && matches!(chars.peek(), None | Some(',')) {
                break;
            }
        }
        elements.push((quoted || element != "NULL").then_some(element));
        match chars.next() {
            None => return Some(elements),
            Some(',') => {}
            Some(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_of_one_dimension_are_read() {
        let read = |text| elements(text).expect("an array");
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read("{}"), []);
        assert_eq!(read("{1,2}"), [some("1"), some("2")]);
        assert_eq!(
            read(r#"{a,"b c","say \"NULL\"",NULL,"NULL","",a\,b}"#),
            [
                some("a"),
                some("b c"),
                some("say \"NULL\""),
                None,
                some("NULL"),
                some(""),
                some("a,b"),
            ]
        );
        for bad in ["", "{", "{a", "{{1},{2}}", "{\"a}", "[0:1]={1,2}"] {
            assert_eq!(elements(bad), None, "{bad}");
        }
    }
}

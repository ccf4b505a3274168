//! Reads a section into a typed value and reports everything that does not fit, not only the first.
//!
//! serde stops at the first mistake. So each mistake is mended in a copy (the wrong key or value is taken out) and the
//! section is read again until nothing new turns up.

use serde_json::Value;

use super::environment::guess;
use super::mistake::nearest;
use super::path::{KeyPath, PathPart};
use super::report::Report;
use crate::registry::SectionError;

/// More mistakes than this in one section help nobody.
const MOST: usize = 100;

/// Reads `value`, which stands at `base`. `None` when there are mistakes; they are in the report.
pub(super) fn read<T>(
    mut value: Value,
    base: &KeyPath,
    report: &mut Report,
    parse: impl Fn(&Value) -> Result<T, SectionError>,
) -> Option<T> {
    let before = report.len();
    let mut taken: Vec<KeyPath> = Vec::new();
    for _ in 0..MOST {
        let (path, message) = match parse(&value) {
            Ok(read) => return (report.len() == before).then_some(read),
            Err(SectionError::Shape { path, message }) => (path, message),
            Err(SectionError::Refused(error)) => {
                // What is missing because it was mended away would be reported a second time.
                if report.len() == before {
                    let path = refused_key(&value, base, error.message());
                    let hint = error.remedy_text().map(str::to_owned);
                    report.mistake(path, error.message()).hint = hint;
                }
                return None;
            }
        };
        if !mend(&mut value, base, &path, &message, &mut taken, report) {
            return None;
        }
    }
    None
}

/// Reports one mistake and takes it out of `value`. False when that cannot be done.
fn mend(
    value: &mut Value,
    base: &KeyPath,
    path: &KeyPath,
    message: &str,
    taken: &mut Vec<KeyPath>,
    report: &mut Report,
) -> bool {
    let full = base.join(path);
    if let Some(key) = quoted_after(message, "missing field ") {
        let missing = path.key(key);
        let meant = taken.contains(&missing);
        if !meant {
            report.mistake(full.key(key), "this key is required and missing");
        }
        return false;
    }
    if message.starts_with("invalid type") && read_again(value, path, &full, report) {
        return true;
    }
    let names = listed_after_expected(message);
    let mut unknown_key = false;
    if let Some(key) = quoted_after(message, "unknown field ") {
        unknown_key = true;
        // The path ends in the key itself, or in its table when serde could not tell.
        let full = if full.last_key() == Some(key) {
            full
        } else {
            full.key(key)
        };
        let near = nearest(key, names.iter().copied());
        taken.extend(
            near.as_ref()
                .and_then(|near| Some(path.parent()?.key(near))),
        );
        let mistake = report.mistake(full, "unknown key");
        mistake.nearest = near;
        mistake.hint = choices("keys", &names);
    } else if let Some(variant) = quoted_after(message, "unknown variant ") {
        let near = nearest(variant, names.iter().copied());
        let mistake = report.mistake(full, &format!("`{variant}` is not known here"));
        mistake.nearest = near;
        mistake.hint = choices("values", &names);
    } else {
        report.mistake(full, &plain(message));
    }
    let target = match quoted_after(message, "unknown field ") {
        Some(key) if unknown_key && path.last_key() != Some(key) => path.key(key),
        _ => without_indices(path),
    };
    taken.push(target.clone());
    take_out(value, &target)
}

fn choices(what: &str, names: &[&str]) -> Option<String> {
    match names {
        [] => None,
        names => Some(format!("the {what} here are {}", names.join(", "))),
    }
}

/// A text from the environment that should have been a number, or the other way round, is read once more as the other.
fn read_again(value: &mut Value, path: &KeyPath, full: &KeyPath, report: &mut Report) -> bool {
    let (Some(outside), Some(at)) = (report.outside.get_mut(full), get_mut(value, path)) else {
        return false;
    };
    if std::mem::replace(&mut outside.tried, true) {
        return false;
    }
    let other = match at {
        Value::String(text) => guess(text),
        _ => Value::String(outside.text.clone()),
    };
    let changed = *at != other;
    *at = other;
    changed
}

/// The key that a factory's own check speaks of, when it names one in backticks; else the section.
fn refused_key(value: &Value, base: &KeyPath, message: &str) -> KeyPath {
    message
        .split('`')
        .skip(1)
        .step_by(2)
        .find(|word| value.get(word).is_some())
        .map_or_else(|| base.clone(), |key| base.key(key))
}

/// serde's words for a wrong type, turned round and without the value, which may be a secret.
fn plain(message: &str) -> String {
    let Some((found, expected)) = message
        .strip_prefix("invalid type: ")
        .and_then(|rest| rest.rsplit_once(", expected "))
    else {
        return message.to_owned();
    };
    // `integer `5``, `string "x"`: the kind is what comes before the value.
    let kind = found.split([' ', '`', '"']).next().unwrap_or(found);
    let kind = match kind {
        "map" => "a table",
        "sequence" => "a list",
        "string" => "a text",
        "integer" => "a whole number",
        "floating" => "a number",
        "boolean" => "a truth value",
        "null" | "unit" => "nothing",
        other => other,
    };
    format!("expected {expected}, found {kind}")
}

/// The name in backticks after `start`.
fn quoted_after<'a>(message: &'a str, start: &str) -> Option<&'a str> {
    message
        .strip_prefix(start)?
        .strip_prefix('`')?
        .split('`')
        .next()
}

/// The names in backticks after the word `expected`.
fn listed_after_expected(message: &str) -> Vec<&str> {
    message
        .split_once(", expected ")
        .map(|(_, list)| list.split('`').skip(1).step_by(2).collect())
        .unwrap_or_default()
}

fn get_mut<'a>(value: &'a mut Value, path: &KeyPath) -> Option<&'a mut Value> {
    path.0.iter().try_fold(value, |at, part| match part {
        PathPart::Key(key) => at.get_mut(key.as_str()),
        PathPart::Index(index) => at.get_mut(*index),
    })
}

/// The list that a wrong element stands in: taking the element out would shift the places of those behind it.
fn without_indices(path: &KeyPath) -> KeyPath {
    let indices = path
        .0
        .iter()
        .rev()
        .take_while(|part| matches!(part, PathPart::Index(_)));
    KeyPath(path.0[..path.0.len() - indices.count()].to_vec())
}

fn take_out(value: &mut Value, path: &KeyPath) -> bool {
    let (Some(PathPart::Key(key)), Some(parent)) = (path.0.last(), path.parent()) else {
        return false;
    };
    match get_mut(value, &parent) {
        Some(Value::Object(table)) => table.shift_remove(key).is_some(),
        _ => false,
    }
}

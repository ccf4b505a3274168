//! What the environment adds to a pipeline file: `LOCKSTEP__A__B` overrides, `${NAME}` and `${file:/path}`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::path::KeyPath;
use super::report::{Outside, Report};

/// Environment variables by name.
pub type Variables = BTreeMap<String, String>;

const PREFIX: &str = "LOCKSTEP__";
const SEPARATOR: &str = "__";

/// The variables of this process; names and values that are not Unicode are left out.
#[must_use]
pub fn process_variables() -> Variables {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Puts the values of `LOCKSTEP__A__B` variables into the file's tree. Names match keys in any case; a number or a
/// truth value is taken as such, and a list that is there is replaced by the parts between commas.
pub(super) fn apply_overrides(root: &mut Value, variables: &Variables, report: &mut Report) {
    for (name, text) in variables {
        let Some(rest) = name
            .get(..PREFIX.len())
            .filter(|start| start.eq_ignore_ascii_case(PREFIX))
            .map(|start| &name[start.len()..])
        else {
            continue;
        };
        let parts: Vec<&str> = rest.split(SEPARATOR).collect();
        if parts.iter().any(|part| part.is_empty()) {
            let message = "the name has an empty part; write LOCKSTEP__SECTION__KEY";
            report.variable(name, KeyPath::root(), message);
            continue;
        }
        override_value(root, name, &parts, text, report);
    }
}

fn override_value(root: &mut Value, name: &str, parts: &[&str], text: &str, report: &mut Report) {
    let mut path = KeyPath::root();
    let mut at = root;
    for (index, part) in parts.iter().enumerate() {
        let Value::Object(table) = at else {
            let message = format!("`{path}` is a value, not a table");
            report.variable(name, path, &message);
            return;
        };
        let key = existing_key(table, part).unwrap_or_else(|| part.to_lowercase());
        path = path.key(&key);
        let last = index + 1 == parts.len();
        at = table.entry(key).or_insert_with(|| {
            if last {
                Value::Null
            } else {
                Value::Object(Map::new())
            }
        });
    }
    if at.is_object() {
        let message = format!("`{path}` is a table; name a key in it");
        report.variable(name, path, &message);
        return;
    }
    *at = if at.is_array() {
        let elements = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        elements
            .map(|part| Value::String(part.to_owned()))
            .collect()
    } else {
        guess(text)
    };
    let outside = Outside {
        variable: Some(name.to_owned()),
        text: text.to_owned(),
        tried: false,
    };
    report.outside.insert(path, outside);
}

fn existing_key(table: &Map<String, Value>, part: &str) -> Option<String> {
    let same = |key: &&String| {
        key.eq_ignore_ascii_case(part) || key.replace('-', "_").eq_ignore_ascii_case(part)
    };
    table.keys().find(same).cloned()
}

/// A number or a truth value where the text looks so, else the text. `007` and `1e3` stay text.
pub(super) fn guess(text: &str) -> Value {
    match text {
        "true" => return Value::Bool(true),
        "false" => return Value::Bool(false),
        _ => {}
    }
    if let Ok(number) = text.parse::<i64>()
        && number.to_string() == text
    {
        return number.into();
    }
    let decimal = text.contains('.')
        && text
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, '.' | '-'));
    match text.parse::<f64>() {
        Ok(number) if decimal => number.into(),
        _ => Value::String(text.to_owned()),
    }
}

/// Replaces `${NAME}` and `${file:/path}` in every text of the tree; `$${` stands for `${`.
pub(super) fn substitute(
    value: &mut Value,
    path: &KeyPath,
    variables: &Variables,
    report: &mut Report,
) {
    match value {
        Value::String(text) if text.contains("${") => match replace(text, variables) {
            Ok(replaced) => {
                let variable = report
                    .outside
                    .get(path)
                    .and_then(|outside| outside.variable.clone());
                let outside = Outside {
                    variable,
                    text: replaced.clone(),
                    tried: false,
                };
                if text.replace("$${", "").contains("${") {
                    report.outside.insert(path.clone(), outside);
                }
                *text = replaced;
            }
            Err(message) => {
                report.mistake(path.clone(), &message);
            }
        },
        Value::Array(elements) => {
            for (index, element) in elements.iter_mut().enumerate() {
                substitute(element, &path.index(index), variables, report);
            }
        }
        Value::Object(table) => {
            for (key, inner) in table.iter_mut() {
                substitute(inner, &path.key(key), variables, report);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A text with `${NAME}` and `${file:/path}` replaced, and `$${` by `${`, as any text of a pipeline file.
///
/// # Errors
/// What is not there, or cannot be read.
pub fn replace(text: &str, variables: &Variables) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at - 1]);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let after = &rest[at + 2..];
        let Some(end) = after.find('}') else {
            return Err(
                "a `${` has no `}` after it; write `$${` for the characters themselves".to_owned(),
            );
        };
        out.push_str(&lookup(&after[..end], variables)?);
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn lookup(name: &str, variables: &Variables) -> Result<String, String> {
    if let Some(file) = name.strip_prefix("file:") {
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("cannot read the file `{file}`: {error}"))?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        return Ok(text.strip_suffix('\r').unwrap_or(text).to_owned());
    }
    variables
        .get(name)
        .cloned()
        .ok_or_else(|| format!("the environment variable `{name}` is not set"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_numbers_and_truth_values() {
        assert_eq!(guess("5"), Value::from(5));
        assert_eq!(guess("-5"), Value::from(-5));
        assert_eq!(guess("0.5"), Value::from(0.5));
        assert_eq!(guess("true"), Value::Bool(true));
        for text in ["007", "1e3", "10.0.0.1", "5s", "", "inf"] {
            assert_eq!(guess(text), Value::from(text), "{text}");
        }
    }

    #[test]
    fn replaces_variables_and_files() {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), "s3cret\n").expect("write");
        let variables = Variables::from([("A".to_owned(), "x".to_owned())]);
        let text = format!("u:${{file:{}}}@${{A}}/$${{A}}/$", file.path().display());
        assert_eq!(
            replace(&text, &variables).expect("all there"),
            "u:s3cret@x/${A}/$"
        );
        assert_eq!(
            replace("${B}", &variables).expect_err("missing"),
            "the environment variable `B` is not set"
        );
        assert!(replace("${A", &variables).is_err());
        assert!(replace("${file:/no/such/file}", &variables).is_err());
    }
}

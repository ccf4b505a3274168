//! A key of a pipeline file, as a row of a table.

use lockstep_core::config::{ByteSize, Duration};
use serde_json::{Map, Value};

/// A row.
pub(super) struct Key {
    /// Where it is in its section: `key`, `batch.keys`, `invariants[].name`.
    pub name: String,
    /// What may stand there.
    pub value: String,
    /// What stands there when nothing is said.
    pub default: String,
    /// What it is for.
    pub meaning: String,
}

/// Text without a default, where there is none.
const NONE: &str = "–";

/// The keys of a schema of an object, those of objects inside it behind their own.
pub(super) fn keys(schema: &Value, root: &Value) -> Vec<Key> {
    let mut out = Vec::new();
    collect(schema, root, "", &mut out);
    out
}

fn collect(schema: &Value, root: &Value, prefix: &str, out: &mut Vec<Key>) {
    let none = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    for (name, key) in properties {
        if key.get("const").is_some() {
            continue;
        }
        let required = schema["required"]
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one == name));
        let name = format!("{prefix}{name}");
        let inner = inner(key, root);
        out.push(row(&name, key, inner, root, required));
        match inner["type"].as_str() {
            Some("array") => collect(
                self::inner(&inner["items"], root),
                root,
                &format!("{name}[]."),
                out,
            ),
            _ => collect(inner, root, &format!("{name}."), out),
        }
        let kinds: Vec<&Value> = tagged(inner).collect();
        if !kinds.is_empty() {
            out.push(kind(&name, &kinds));
        }
        for case in kinds {
            collect(case, root, &format!("{name}."), out);
        }
    }
}

/// The row that says which of several objects it is.
fn kind(name: &str, kinds: &[&Value]) -> Key {
    let word = |kind: &Value| {
        let word = kind["properties"]["type"]["const"].as_str();
        word.unwrap_or_default().to_owned()
    };
    let values: Vec<String> = kinds
        .iter()
        .map(|kind| format!("`{}`", word(kind)))
        .collect();
    let about = |kind: &Value| one_line(kind["description"].as_str().unwrap_or_default());
    let meanings: Vec<String> = kinds
        .iter()
        .map(|kind| format!("`{}`: {}", word(kind), about(kind)))
        .collect();
    Key {
        name: format!("{name}.type"),
        value: values.join(", "),
        default: NONE.to_owned(),
        meaning: meanings.join(" "),
    }
}

/// The keys of a section, whose schema may be a reference, or nothing.
pub(super) fn of_section<'a>(section: &'a Value, root: &'a Value) -> &'a Value {
    inner(section, root)
}

/// What a reference leads to, and what is there unless nothing is.
fn inner<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.trim_start_matches("#/$defs/");
        return inner(&root["$defs"][name], root);
    }
    let some = schema["anyOf"]
        .as_array()
        .filter(|any| any.iter().any(is_null));
    match some.and_then(|any| any.iter().find(|one| !is_null(one))) {
        Some(one) => inner(one, root),
        None => schema,
    }
}

fn is_null(schema: &Value) -> bool {
    schema["type"] == "null"
}

/// Objects of which `type` says which one it is.
fn tagged(schema: &Value) -> impl Iterator<Item = &Value> {
    let cases = schema["oneOf"].as_array().into_iter().flatten();
    cases.filter(|case| case["properties"]["type"]["const"].is_string())
}

fn row(name: &str, key: &Value, inner: &Value, root: &Value, required: bool) -> Key {
    let about = [key, inner]
        .iter()
        .find_map(|of| of["description"].as_str());
    let (mut meaning, said) = split(&one_line(about.unwrap_or_default()));
    let word = |schema: &Value| schema["const"].as_str().unwrap_or_default().to_owned();
    // Not again what it has said already.
    let told = words(inner).all(|one| meaning.contains(&format!("`{}`", word(one))));
    for one in words(inner).filter(|_| !told) {
        if let Some(about) = one["description"].as_str() {
            meaning += &format!(" `{}`: {}", word(one), one_line(about));
        }
    }
    Key {
        name: name.to_owned(),
        value: value(key, inner, root),
        default: default(name, key, said.as_deref(), required),
        meaning,
    }
}

fn words(schema: &Value) -> impl Iterator<Item = &Value> {
    let cases = schema["oneOf"].as_array().into_iter().flatten();
    cases.filter(|case| case["const"].is_string())
}

/// What may stand there, in a few words.
fn value(key: &Value, inner: &Value, root: &Value) -> String {
    let named = |schema: &Value| {
        let any = schema["anyOf"].as_array().into_iter().flatten();
        let reference = schema["$ref"]
            .as_str()
            .or_else(|| any.filter_map(|one| one["$ref"].as_str()).next());
        reference.and_then(|name| name.rsplit('/').next().map(str::to_owned))
    };
    match named(key).as_deref() {
        Some("Secret") => return "text, kept secret".to_owned(),
        Some("Duration") => return "duration".to_owned(),
        Some("ByteSize") => return "size".to_owned(),
        _ => {}
    }
    let several: Vec<String> = words(inner)
        .filter_map(|word| Some(format!("`{}`", word["const"].as_str()?)))
        .collect();
    if !several.is_empty() {
        return several.join(", ");
    }
    if let Some(words) = inner["enum"].as_array() {
        let words: Vec<String> = words
            .iter()
            .filter_map(Value::as_str)
            .map(|word| format!("`{word}`"))
            .collect();
        return words.join(", ");
    }
    let kind = match &inner["type"] {
        Value::String(kind) => kind.as_str(),
        Value::Array(kinds) => kinds
            .iter()
            .filter_map(Value::as_str)
            .find(|kind| *kind != "null")
            .unwrap_or_default(),
        _ if inner["anyOf"].is_array() => "text, number, `true` or `false`",
        _ => "section",
    };
    match kind {
        "string" => "text".to_owned(),
        "boolean" => "`true`, `false`".to_owned(),
        "integer" => "whole number".to_owned(),
        "number" => "number".to_owned(),
        "array" => {
            let items = &inner["items"];
            format!("list of {}", value(items, self::inner(items, root), root))
        }
        "object" if inner["properties"].is_object() => "section".to_owned(),
        "object" => match inner["additionalProperties"].is_object() {
            true => {
                let each = &inner["additionalProperties"];
                format!("table of {}", value(each, self::inner(each, root), root))
            }
            false => "table".to_owned(),
        },
        other => other.to_owned(),
    }
}

/// The default of a key: as the schema has it, and otherwise as its description says.
///
/// # Panics
/// When both are there and say different things.
fn default(name: &str, key: &Value, said: Option<&str>, required: bool) -> String {
    if required {
        return "needed".to_owned();
    }
    let known = match &key["default"] {
        Value::Null => None,
        Value::Array(none) if none.is_empty() => None,
        Value::Object(_) => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    match (known, said) {
        (Some(known), Some(said)) => {
            assert!(
                says(said, &known),
                "{name}: the default is `{known}`, its description says {said}"
            );
            // It may say why.
            match said.contains(' ') {
                true => said.to_owned(),
                false => format!("`{}`", said.trim_matches('`')),
            }
        }
        (Some(known), None) => format!("`{known}`"),
        (None, Some(said)) => said.to_owned(),
        (None, None) => NONE.to_owned(),
    }
}

/// Whether a description's words for a default, `60s` or `127.0.0.1:9187`: this machine only, are what it is.
fn says(said: &str, known: &str) -> bool {
    let word = said.split('`').nth(1).unwrap_or(said);
    let same_time = Duration::parse(word).is_ok_and(|time| Duration::parse(known) == Ok(time));
    let same_size = ByteSize::parse(word).is_ok_and(|size| ByteSize::parse(known) == Ok(size));
    word == known || same_time || same_size
}

/// A description without the sentence that says its default, and what that one says.
fn split(text: &str) -> (String, Option<String>) {
    let begins = ["Default: ", "Default "].iter().find_map(|word| {
        let at = match text.starts_with(word) {
            true => Some(0),
            false => text.find(&format!(" {word}")).map(|at| at + 1),
        };
        at.map(|at| (at, at + word.len()))
    });
    let Some((from, said)) = begins else {
        return (text.to_owned(), None);
    };
    let end = text[said..]
        .find(". ")
        .map(|at| said + at + 1)
        .unwrap_or(text.len());
    let rest = format!("{}{}", &text[..from], text[end..].trim_start());
    (
        rest.trim_end().to_owned(),
        Some(text[said..end].trim_end_matches('.').to_owned()),
    )
}

/// As a cell of a table has it.
pub(super) fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<&str>>().join(" ");
    text.replace('|', "\\|")
}

//! The schema of a pipeline file that is written into the values of a Helm chart.
//!
//! Such a file still has its `${NAME}` and `${file:/path}`, also where a number or one of a few words will stand; and Helm 3 up to 3.17 knows no draft
//! newer than 7, in which a `$ref` stands alone.

use serde_json::{Map, Value, json};

/// The same in draft 7, with placeholders. What a node is (`type`) and what the pipeline is called must be said in words.
#[must_use]
pub fn written(schema: &Value) -> Value {
    let mut written = of(schema);
    written["$schema"] = "http://json-schema.org/draft-07/schema#".into();
    // A chart makes objects of the cluster by it.
    if let Some(name) = schema.pointer("/properties/name") {
        written["properties"]["name"] = name.clone();
    }
    if let Some(definitions) = written.as_object_mut().and_then(|of| of.remove("$defs")) {
        written["definitions"] = definitions;
    }
    written
}

/// A schema, or what holds some.
fn of(schema: &Value) -> Value {
    match schema {
        Value::Array(schemas) => schemas.iter().map(of).collect(),
        Value::Object(schema) => placeholder_too(refers(schema), schema),
        other => other.clone(),
    }
}

/// With what is inside; a reference with others beside it becomes one of several that must all hold.
fn refers(schema: &Map<String, Value>) -> Map<String, Value> {
    let mut out = Map::new();
    for (key, value) in schema {
        match (key.as_str(), value) {
            ("$ref", Value::String(to)) => {
                let to = json!({ "$ref": to.replace("#/$defs/", "#/definitions/") });
                match schema.len() {
                    1 => out.extend(to.as_object().cloned().unwrap_or_default()),
                    _ => drop(out.insert("allOf".to_owned(), json!([to]))),
                }
            }
            // A condition has to stay what it is, and so do words that are given as they are.
            ("if" | "not" | "default" | "examples" | "required" | "enum" | "const", _) => {
                out.insert(key.clone(), value.clone());
            }
            ("properties" | "$defs", Value::Object(schemas)) => {
                let schemas = schemas.iter().map(|(name, inner)| {
                    // What decides which keys there are.
                    let decides = inner.get("const").is_some() || inner.get("enum").is_some();
                    let inner = match name.as_str() {
                        "type" if decides => inner.clone(),
                        _ => of(inner),
                    };
                    (name.clone(), inner)
                });
                out.insert(key.clone(), Value::Object(schemas.collect()));
            }
            _ => drop(out.insert(key.clone(), of(value))),
        }
    }
    out
}

/// Lets a placeholder be where a value is asked for that a text would not be.
fn placeholder_too(mut out: Map<String, Value>, schema: &Map<String, Value>) -> Value {
    let placeholder = json!({ "type": "string", "pattern": "\\$\\{" });
    let is_word = |one: &Value| one["const"].is_string();
    if let Some(Value::Array(words)) = out.get_mut("oneOf")
        && words.iter().all(is_word)
    {
        words.push(placeholder);
        return Value::Object(out);
    }
    let types: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let scalar = |kind: &&str| matches!(*kind, "integer" | "number" | "boolean");
    let text = types.contains(&"string");
    let narrow = ["pattern", "enum", "format"]
        .iter()
        .any(|key| schema.contains_key(*key));
    let takes_it_already = text && !narrow;
    let wants_it = types.iter().any(scalar) || text && narrow;
    if takes_it_already || !wants_it || schema.contains_key("const") {
        return Value::Object(out);
    }
    let described = ["description", "default", "examples"];
    let described: Map<_, _> = described
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), out.remove(key)?)))
        .collect();
    let mut either = described;
    either.insert("anyOf".to_owned(), json!([out, placeholder]));
    Value::Object(either)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_may_be_where_a_number_or_a_word_is_asked_for() {
        let schema = json!({
            "properties": {
                "port": { "type": "integer", "minimum": 0, "description": "A port." },
                "url": { "type": "string" },
                "size": { "type": ["string", "integer"] },
                "ttl": { "type": "string", "pattern": "^[0-9]+s$" },
                "mode": { "oneOf": [{ "const": "a" }, { "const": "b" }] },
                "name": { "type": "string", "pattern": "^[a-z]+$" },
                "type": { "enum": ["kafka"] },
            },
        });
        let written = written(&schema);
        let placeholder = json!({ "type": "string", "pattern": "\\$\\{" });
        let properties = &written["properties"];
        assert_eq!(
            properties["port"],
            json!({ "description": "A port.", "anyOf": [{ "type": "integer", "minimum": 0 }, placeholder] })
        );
        assert_eq!(properties["ttl"]["anyOf"][1], placeholder);
        assert_eq!(properties["mode"]["oneOf"][2], placeholder);
        for same in ["url", "size", "name", "type"] {
            assert_eq!(properties[same], schema["properties"][same], "{same}");
        }
    }

    #[test]
    fn references_stand_alone_and_lead_where_draft_7_has_them() {
        let schema = json!({
            "properties": {
                "alone": { "$ref": "#/$defs/Size" },
                "told": { "$ref": "#/$defs/Size", "description": "How large." },
                "type": { "$ref": "#/$defs/Size" },
            },
            "$defs": { "Size": { "type": "object", "properties": { "n": { "type": "boolean" } } } },
        });
        let written = written(&schema);
        let to = json!({ "$ref": "#/definitions/Size" });
        assert_eq!(written["properties"]["alone"], to);
        assert_eq!(written["properties"]["told"]["allOf"], json!([to]));
        assert_eq!(
            written["definitions"]["Size"]["properties"]["n"]["anyOf"][0]["type"],
            "boolean"
        );
        assert!(written.get("$defs").is_none());
        assert!(!written.to_string().contains("$defs"));
    }

    #[test]
    fn conditions_stay_what_they_are() {
        // A placeholder would meet it.
        let is_many = json!({ "properties": { "n": { "type": "integer", "minimum": 2 } } });
        let then = json!({ "properties": { "n": { "type": "integer" } } });
        let schema = json!({ "allOf": [{ "if": is_many, "then": then }] });
        let written = written(&schema);
        assert_eq!(written["allOf"][0]["if"], is_many);
        assert!(written["allOf"][0]["then"]["properties"]["n"]["anyOf"].is_array());
    }
}

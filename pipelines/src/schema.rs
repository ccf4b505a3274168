//! The JSON Schema of the pipeline file, from the same structs that read it.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::file::Settings;
use crate::registry::{Kinds, Registry};

/// The JSON Schema (2020-12) of a pipeline file with the kinds of `registry`.
#[must_use]
pub fn schema(registry: &Registry) -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let sections = [
        (
            "sources",
            section(registry.sources(), false, &mut generator),
        ),
        (
            "transforms",
            section(registry.transforms(), true, &mut generator),
        ),
        ("sinks", section(registry.sinks(), true, &mut generator)),
    ];
    let mut root = Settings::json_schema(&mut generator).to_value();
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    root["title"] = "lockstep pipeline".into();
    for (name, section) in sections {
        root["properties"][name]["additionalProperties"] = section;
        root["properties"][name]["propertyNames"] = json!({ "pattern": "^[a-z0-9_-]+$" });
    }
    let definitions = generator.take_definitions(true);
    if !definitions.is_empty() {
        root["$defs"] = Value::Object(definitions);
    }
    root
}

/// A node of one stage: what it may hold is decided by its `type`.
fn section<C: ?Sized>(kinds: &Kinds<C>, inputs: bool, generator: &mut SchemaGenerator) -> Value {
    let names: Vec<&str> = kinds.keys().copied().collect();
    let cases: Vec<Value> = kinds
        .iter()
        .map(|(name, kind)| {
            let is_kind =
                json!({ "properties": { "type": { "const": name } }, "required": ["type"] });
            let schema = with_common_keys(kind.schema(generator), name, inputs);
            json!({ "if": is_kind, "then": schema })
        })
        .collect();
    json!({
        "type": "object",
        "properties": { "type": { "enum": names } },
        "required": ["type"],
        "allOf": cases,
    })
}

/// Adds `type` and `inputs` to the schema of a kind's own keys, which would refuse them.
fn with_common_keys(schema: Schema, kind: &str, inputs: bool) -> Value {
    let mut schema = match schema.to_value() {
        Value::Object(schema) => schema,
        other => return other,
    };
    let properties = schema
        .entry("properties")
        .or_insert_with(|| Value::Object(Map::new()));
    properties["type"] = json!({ "const": kind });
    if inputs {
        properties["inputs"] = json!({
            "description": "What it reads: `node`, `node:schema.table` or `node:source.schema.table`, `*` for any name.",
            "type": "array",
            "items": { "type": "string" },
            "minItems": 1,
        });
        let required = schema.entry("required").or_insert_with(|| json!([]));
        if let Value::Array(required) = required {
            required.push("inputs".into());
        }
    }
    Value::Object(schema)
}

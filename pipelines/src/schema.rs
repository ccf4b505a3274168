//! The JSON Schema of the pipeline file, from the same structs that read it.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::file::{EmbeddedLetters, Settings, SinkPolicy};
use crate::registry::{Kinds, Registry};

/// The JSON Schema (2020-12) of a pipeline file with the kinds of `registry`.
#[must_use]
pub fn schema(registry: &Registry) -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let sections = [
        (
            "sources",
            section(registry.sources(), (false, false), &mut generator),
        ),
        (
            "transforms",
            section(registry.transforms(), (true, false), &mut generator),
        ),
        (
            "sinks",
            section(registry.sinks(), (true, true), &mut generator),
        ),
    ];
    let mut root = Settings::json_schema(&mut generator).to_value();
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    root["title"] = "lockstep pipeline".into();
    for (name, section) in sections {
        root["properties"][name]["additionalProperties"] = section;
        root["properties"][name]["propertyNames"] = json!({ "pattern": "^[a-z0-9_-]+$" });
    }
    root["properties"]["dead_letters"] = dead_letters(registry, &mut generator);
    let definitions = generator.take_definitions(true);
    if !definitions.is_empty() {
        root["$defs"] = Value::Object(definitions);
    }
    root
}

/// The section `[dead_letters]`: the embedded store, unless it names a kind of sink.
fn dead_letters(registry: &Registry, generator: &mut SchemaGenerator) -> Value {
    let mut value = section(registry.sinks(), (false, false), generator);
    let embedded = with_type(EmbeddedLetters::json_schema(generator), "embedded");
    let other = json!({ "properties": { "type": { "not": { "const": "embedded" } } }, "required": ["type"] });
    if let Value::Object(value) = &mut value {
        value.remove("required");
    }
    if let Some(Value::Array(names)) = value.pointer_mut("/properties/type/enum") {
        names.insert(0, "embedded".into());
    }
    if let Some(Value::Array(cases)) = value.get_mut("allOf") {
        cases.push(json!({ "if": other, "else": embedded }));
    }
    value["description"] =
        "Where rows go that a sink refuses for good, and rows that transforms put aside.".into();
    value
}

/// A node of one stage: what it may hold is decided by its `type`.
fn section<C: ?Sized>(
    kinds: &Kinds<C>,
    (inputs, policy): (bool, bool),
    generator: &mut SchemaGenerator,
) -> Value {
    let names: Vec<&str> = kinds.keys().copied().collect();
    let cases: Vec<Value> = kinds
        .iter()
        .map(|(name, kind)| {
            let is_kind =
                json!({ "properties": { "type": { "const": name } }, "required": ["type"] });
            let mut schema = with_type(kind.schema(generator), name);
            if inputs {
                add_inputs(&mut schema);
            }
            if policy {
                add_policy(&mut schema, generator);
            }
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

/// Adds `type` to the schema of a kind's own keys, which would refuse it.
fn with_type(schema: Schema, kind: &str) -> Value {
    let mut schema = match schema.to_value() {
        Value::Object(schema) => schema,
        other => return other,
    };
    let properties = schema
        .entry("properties")
        .or_insert_with(|| Value::Object(Map::new()));
    properties["type"] = json!({ "const": kind });
    Value::Object(schema)
}

fn add_inputs(schema: &mut Value) {
    schema["properties"]["inputs"] = json!({
        "description": "What it reads: `node`, `node:schema.table` or `node:source.schema.table`, `*` for any name.",
        "type": "array",
        "items": { "type": "string" },
        "minItems": 1,
    });
    if schema.get("required").is_none() {
        schema["required"] = json!([]);
    }
    if let Some(Value::Array(required)) = schema.get_mut("required") {
        required.push("inputs".into());
    }
}

/// The keys that every sink has.
fn add_policy(schema: &mut Value, generator: &mut SchemaGenerator) {
    let policy = SinkPolicy::json_schema(generator).to_value();
    for key in ["on_error", "later"] {
        schema["properties"][key] = policy["properties"][key].clone();
    }
}

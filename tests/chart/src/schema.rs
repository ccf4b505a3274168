//! The schema of the chart's values: what is said here about the chart's own, around what the command says about a pipeline file.

use serde_json::{Map, Value, json};

/// The chart's own values: `release`, those of the release, and `pipeline`, those that each pipeline may set again.
const OWN: &str = include_str!("values.schema.json");

/// `values.schema.json`, of what `lockstep schema --chart` prints.
///
/// # Panics
/// When one of both is no schema as it is expected.
#[must_use]
pub fn of_values(file: &str) -> String {
    let mut own: Value = serde_json::from_str(OWN).expect("JSON");
    let mut file: Value = serde_json::from_str(file).expect("JSON");
    let schema = file["$schema"].clone();
    let mut take = |key: &str| {
        let taken = file.as_object_mut().and_then(|file| file.remove(key));
        taken.unwrap_or_default()
    };
    let mut definitions = object(take("definitions"));
    for key in ["$schema", "title", "description"] {
        take(key);
    }
    // The chart knows the name: it is the key, unless the file has one.
    assert_eq!(take("required"), json!(["name"]));
    definitions.insert("PipelineFile".to_owned(), file);
    let of_each = object(own["pipeline"].take());
    let mut pipeline = Map::new();
    let about = "The pipeline file: keys, or its text in YAML or JSON. The chart writes `admin` and `state.dir`.";
    // A condition, so that a mistake is told once and not as one of two that did not fit.
    let given = json!({
        "description": about,
        "type": ["object", "string"],
        "if": { "type": "object" },
        "then": { "$ref": "#/definitions/PipelineFile" },
    });
    pipeline.insert("file".to_owned(), given);
    pipeline.extend(of_each.clone());
    let mut release = object(own["release"].take());
    let pipelines = json!({
        "description": "The pipelines of this release, by name.",
        "type": "object",
        "propertyNames": { "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$" },
        "additionalProperties": { "type": "object", "additionalProperties": false, "properties": pipeline },
    });
    release.insert("pipelines".to_owned(), pipelines);
    release.extend(of_each);
    let whole = json!({
        "$schema": schema,
        "title": "Values of the lockstep chart",
        "type": "object",
        "additionalProperties": false,
        "properties": release,
        "definitions": definitions,
    });
    let text = serde_json::to_string_pretty(&whole).expect("JSON");
    text + "\n"
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        other => panic!("not an object: {other}"),
    }
}

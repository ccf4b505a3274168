//! The JSON Schema of the file comes from the structs that read it.

use lockstep_pipelines::schema::schema;
use serde_json::json;

use crate::ends;

#[test]
fn sections_are_described_by_their_type() {
    let schema = schema(&ends::registry());
    assert_eq!(schema["additionalProperties"], json!(false));
    assert_eq!(schema["required"], json!(["name"]));
    assert!(
        schema["properties"]["memory"]["description"]
            .as_str()
            .is_some_and(|text| text.contains("32MiB"))
    );
    let sink = &schema["properties"]["sinks"]["additionalProperties"];
    assert_eq!(
        sink["properties"]["type"]["enum"],
        json!(["memory", "rows"])
    );
    let case = &sink["allOf"][0];
    assert_eq!(case["if"]["properties"]["type"]["const"], "memory");
    assert_eq!(case["then"]["additionalProperties"], json!(false));
    let properties = case["then"]["properties"].as_object().expect("an object");
    assert_eq!(
        properties.keys().collect::<Vec<_>>(),
        ["script", "type", "inputs", "on_error", "later"]
    );
    let source = &schema["properties"]["sources"]["additionalProperties"]["allOf"][0]["then"];
    assert!(source["properties"].get("inputs").is_none());
    // Every reference leads somewhere.
    let text = schema.to_string();
    for reference in text.split("\"$ref\":\"#/").skip(1) {
        let pointer = format!("/{}", reference.split('"').next().expect("a text"));
        assert!(schema.pointer(&pointer).is_some(), "{pointer}");
    }
}

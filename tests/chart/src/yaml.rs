//! YAML as JSON.

use serde_json::{Map, Value};
use yaml_rust2::{Yaml, YamlLoader};

/// The documents of a stream; those that are empty are left out.
///
/// # Panics
/// When it is no YAML.
#[must_use]
pub fn documents(text: &str) -> Vec<Value> {
    let documents =
        YamlLoader::load_from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let documents = documents.iter().map(value);
    documents.filter(|document| !document.is_null()).collect()
}

/// The only document.
///
/// # Panics
/// When it is no YAML, or not one document.
#[must_use]
pub fn document(text: &str) -> Value {
    let mut all = documents(text);
    assert_eq!(all.len(), 1, "{text}");
    all.remove(0)
}

fn value(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Real(text) => text
            .parse::<f64>()
            .map_or_else(|_| text.clone().into(), Into::into),
        Yaml::Integer(number) => (*number).into(),
        Yaml::String(text) => text.clone().into(),
        Yaml::Boolean(truth) => (*truth).into(),
        Yaml::Array(elements) => elements.iter().map(value).collect(),
        Yaml::Hash(table) => {
            let entry = |(key, inner): (&Yaml, &Yaml)| {
                let key = match value(key) {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                (key, value(inner))
            };
            Value::Object(table.iter().map(entry).collect::<Map<_, _>>())
        }
        Yaml::Alias(_) | Yaml::Null | Yaml::BadValue => Value::Null,
    }
}

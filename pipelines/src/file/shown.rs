//! A pipeline file as it may be shown to whoever operates it: without secrets.
//!
//! What is secret is known from the same structs that read the file: a key that is a [`Secret`] in any section is one in all. Kinds that
//! take free properties, as Kafka's clients do, name their secrets as the field does ([`looks_secret`]).

use std::collections::BTreeSet;

use lockstep_core::config::Secret;
use serde_json::Value;

use crate::registry::Registry;
use crate::schema::schema;

/// Instead of a secret.
const HIDDEN: &str = "***";

/// Parts of names of free properties whose values are secrets: `sasl.password`, `ssl.key.pem`, `sasl.oauthbearer.client.secret`.
const TELLING: [&str; 9] = [
    "password",
    "secret",
    "token",
    "credential",
    "passphrase",
    "api_key",
    "api.key",
    "key.pem",
    "jaas",
];

/// The tree of a file, its variables not replaced, with stars instead of what is secret. `${NAME}` is shown as it stands: it says where
/// a secret is, not what it is.
pub(super) fn shown(root: &Value, registry: &Registry) -> Value {
    let secrets = Secrets::of(&schema(registry));
    let mut shown = root.clone();
    hide_in(&mut shown, &secrets);
    shown
}

/// What is secret by the schema of pipeline files.
#[derive(Default)]
struct Secrets {
    /// Keys that are secrets, or lists of them.
    keys: BTreeSet<String>,
    /// Keys whose values are tables of secrets under free names.
    tables: BTreeSet<String>,
}

impl Secrets {
    fn of(schema: &Value) -> Self {
        let mut secrets = Secrets::default();
        secrets.collect(schema);
        secrets
    }

    fn collect(&mut self, schema: &Value) {
        match schema {
            Value::Object(object) => {
                if let Some(Value::Object(properties)) = object.get("properties") {
                    for (key, schema) in properties {
                        if is_secret(schema) {
                            self.keys.insert(key.clone());
                        }
                        if refers(&schema["additionalProperties"]) {
                            self.tables.insert(key.clone());
                        }
                    }
                }
                object.values().for_each(|inner| self.collect(inner));
            }
            Value::Array(elements) => elements.iter().for_each(|inner| self.collect(inner)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}

/// A secret, perhaps, or a list of them.
fn is_secret(schema: &Value) -> bool {
    let any_of = schema["anyOf"].as_array();
    refers(schema)
        || refers(&schema["items"])
        || any_of.is_some_and(|cases| cases.iter().any(is_secret))
}

fn refers(schema: &Value) -> bool {
    schema["$ref"] == "#/$defs/Secret"
}

/// Whether a property of this name is one by what the field calls such things.
fn looks_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    TELLING.iter().any(|part| key.contains(part))
}

fn hide_in(value: &mut Value, secrets: &Secrets) {
    match value {
        Value::Object(table) => {
            for (key, inner) in table {
                match inner {
                    Value::Object(inner) if secrets.tables.contains(key) => {
                        inner.values_mut().for_each(hide);
                    }
                    Value::Object(_) => hide_in(inner, secrets),
                    _ if secrets.keys.contains(key) || looks_secret(key) => hide(inner),
                    _ => hide_in(inner, secrets),
                }
            }
        }
        Value::Array(elements) => elements
            .iter_mut()
            .for_each(|inner| hide_in(inner, secrets)),
        // Brokers and the like may be URLs, too.
        Value::String(text) if text.contains("://") => hide(value),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Of a URL stays what says where it leads, and of a variable its name.
fn hide(value: &mut Value) {
    match value {
        Value::Array(elements) => elements.iter_mut().for_each(hide),
        Value::String(text) if is_variable(text) => {}
        Value::String(text) => *text = Secret::new(text.as_str()).redacted_url(),
        Value::Null => {}
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => *value = HIDDEN.into(),
    }
}

/// Nothing but a variable, which is replaced later.
fn is_variable(text: &str) -> bool {
    let name = text
        .strip_prefix("${")
        .and_then(|rest| rest.strip_suffix('}'));
    name.is_some_and(|name| !name.contains(['$', '{', '}']))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_names_of_secrets_are_left() {
        let schema = json!({
            "properties": {
                "sinks": { "additionalProperties": { "allOf": [{ "then": { "properties": {
                    "pin": { "$ref": "#/$defs/Secret" },
                    "maybe": { "anyOf": [{ "$ref": "#/$defs/Secret" }, { "type": "null" }] },
                    "urls": { "anyOf": [{ "type": "array", "items": { "$ref": "#/$defs/Secret" } }, { "type": "null" }] },
                    "headers": { "type": "object", "additionalProperties": { "$ref": "#/$defs/Secret" } },
                    "topic": { "type": "string" },
                } } }] } },
            }
        });
        let secrets = Secrets::of(&schema);
        let keys = ["maybe", "pin", "urls"].map(str::to_owned).into();
        assert_eq!(
            (secrets.keys, secrets.tables),
            (keys, ["headers".to_owned()].into())
        );
        let secrets = Secrets::of(&schema);
        let mut file = json!({
            "name": "shop",
            "sinks": { "one": {
                "pin": "1234",
                "maybe": "${PIN}",
                "urls": ["redis://u:p@one:1?x=y", "${file:/run/two}"],
                "headers": { "X-Of-Ours": "h", "X-Variable": "${H}", "X-Number": 5 },
                "topic": "t",
                "brokers": ["http://u:p@host/path"],
                "properties": { "sasl.password": "p", "ssl.key.pem": "k", "api.key": 5, "linger.ms": 5 },
            } },
        });
        hide_in(&mut file, &secrets);
        assert_eq!(
            file,
            json!({
                "name": "shop",
                "sinks": { "one": {
                    "pin": "***",
                    "maybe": "${PIN}",
                    "urls": ["redis://one:1", "${file:/run/two}"],
                    "headers": { "X-Of-Ours": "***", "X-Variable": "${H}", "X-Number": "***" },
                    "topic": "t",
                    "brokers": ["http://host/path"],
                    "properties": { "sasl.password": "***", "ssl.key.pem": "***", "api.key": "***", "linger.ms": 5 },
                } },
            })
        );
    }

    #[test]
    fn a_variable_inside_a_text_is_no_variable() {
        assert!(is_variable("${NAME}") && is_variable("${file:/run/secret}"));
        for text in ["a${NAME}", "${A}${B}", "${", "plain", ""] {
            assert!(!is_variable(text), "{text}");
        }
    }
}

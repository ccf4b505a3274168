//! Which parts of a pipeline file differ from those of another, without keeping what is in them: secrets are.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use serde_json::Value;

/// The sections whose entries are told apart.
const SECTIONS: [&str; 3] = ["sources", "transforms", "sinks"];

/// What changes nothing of how it runs.
const TESTS: &str = "tests";

/// A digest of each part: `memory`, `sinks.events`. Equal parts have equal digests in one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<String, u64>);

impl Fingerprint {
    /// Of a file as a tree, its variables replaced.
    pub(super) fn of(root: &Value) -> Self {
        let mut parts = BTreeMap::new();
        for (key, value) in root.as_object().into_iter().flatten() {
            match value {
                Value::Object(nodes) if SECTIONS.contains(&key.as_str()) => {
                    for (name, section) in nodes {
                        parts.insert(format!("{key}.{name}"), digest(section));
                    }
                }
                _ if key == TESTS => {}
                _ => {
                    parts.insert(key.clone(), digest(value));
                }
            }
        }
        Fingerprint(parts)
    }

    /// The parts that only one of the two has, or that differ.
    pub(crate) fn changed(&self, other: &Fingerprint) -> Vec<String> {
        let names = self.0.keys().chain(other.0.keys());
        let mut changed: Vec<String> = names
            .filter(|name| self.0.get(*name) != other.0.get(*name))
            .cloned()
            .collect();
        changed.sort_unstable();
        changed.dedup();
        changed
    }
}

/// The same for the same keys in another order, in which they may well be read.
fn digest(value: &Value) -> u64 {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    match value {
        Value::Object(entries) => {
            let mut entries: Vec<(&String, u64)> = entries
                .iter()
                .map(|(key, value)| (key, digest(value)))
                .collect();
            entries.sort_unstable();
            hasher.hash_one(("object", entries))
        }
        Value::Array(elements) => {
            let elements: Vec<u64> = elements.iter().map(digest).collect();
            hasher.hash_one(("array", elements))
        }
        plain => hasher.hash_one(("plain", plain.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_that_differ_are_named() {
        let of = |value: Value| Fingerprint::of(&value);
        let before = of(json!({ "name": "a", "sinks": { "s": { "url": "1" }, "t": {} } }));
        let mixed = |text: &str| of(serde_json::from_str(text).expect("JSON"));
        let (one, other) = (
            r#"{"sinks":{"s":{"a":1,"b":[{"c":2,"d":3}]}}}"#,
            r#"{"sinks":{"s":{"b":[{"d":3,"c":2}],"a":1}}}"#,
        );
        assert!(
            mixed(one).changed(&mixed(other)).is_empty(),
            "another order"
        );
        let after =
            of(json!({ "name": "a", "memory": "1GB", "sinks": { "s": { "url": "2" }, "u": {} } }));
        let changed = before.changed(&after);
        assert_eq!(changed, ["memory", "sinks.s", "sinks.t", "sinks.u"]);
        assert!(before.changed(&before.clone()).is_empty());
    }
}

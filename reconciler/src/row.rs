//! Which columns of two rows differ.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// The columns in which two JSON objects differ; none when either is no object.
pub(crate) fn differing(expected: &str, actual: &str) -> Vec<String> {
    let object = |text: &str| serde_json::from_str::<Map<String, Value>>(text).ok();
    let (Some(expected), Some(actual)) = (object(expected), object(actual)) else {
        return Vec::new();
    };
    let names: BTreeSet<&String> = expected.keys().chain(actual.keys()).collect();
    names
        .into_iter()
        .filter(|name| expected.get(*name) != actual.get(*name))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_differ_lack_or_exceed() {
        let found = differing(r#"{"id":1,"a":"x","b":null}"#, r#"{"id":1,"a":"y","c":0}"#);
        assert_eq!(found, ["a", "b", "c"]);
        assert!(differing("1", "2").is_empty());
    }
}

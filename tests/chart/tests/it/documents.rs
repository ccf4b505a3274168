//! What is made of something else, and must be of one piece with it: the schema of the values, the README's table, versions.

use std::process::Command;

use lockstep_chart::{chart, keeps, program, schema, values, yaml};
use serde_json::Value;

fn read(name: &str) -> String {
    let path = chart().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_schema_of_the_values_is_that_of_the_config_structs() {
    let printed = Command::new(program()).args(["schema", "--chart"]).output();
    let printed = printed.expect("lockstep can be started");
    assert!(printed.status.success(), "{printed:?}");
    let text = String::from_utf8(printed.stdout).expect("text");
    keeps(
        &chart().join("values.schema.json"),
        &schema::of_values(&text),
    );
}

/// Each value is in the schema, in the place where it may be set, and something is said about it.
#[test]
fn every_value_is_described_and_has_a_schema() {
    let keys = values::keys(&read("values.yaml"));
    let schema: Value = serde_json::from_str(&read("values.schema.json")).expect("JSON");
    let described = |path: &[String]| {
        keys.iter()
            .any(|key| key.path == path && key.about.is_some())
    };
    for key in &keys {
        let inner = |other: &&values::Key| {
            other.path.len() > key.path.len() && other.path.starts_with(&key.path)
        };
        let is_leaf = !keys.iter().any(|other| inner(&other));
        let said = (1..=key.path.len()).any(|depth| described(&key.path[..depth]));
        assert!(
            said || !is_leaf,
            "nothing is said about {}",
            key.path.join(".")
        );
        let of_pipeline = &schema["properties"]["pipelines"]["additionalProperties"];
        for (at, wanted) in [(&schema, true), (of_pipeline, key.of_each_pipeline)] {
            let mut at = at;
            // Below what Kubernetes itself defines the schema says nothing.
            let mut open = false;
            for part in &key.path {
                open |= !at["properties"].is_object() && at["type"] == "object";
                at = &at["properties"][part];
            }
            assert_eq!(
                open || at.is_object(),
                wanted,
                "{} in the schema",
                key.path.join(".")
            );
        }
    }
    // And the other way round.
    let own = schema["properties"].as_object().expect("an object");
    for name in own.keys().filter(|name| *name != "global") {
        assert!(
            keys.iter().any(|key| key.path == [name.as_str()]),
            "{name} is not in values.yaml"
        );
    }
}

#[test]
fn the_readme_has_every_value() {
    let (begin, end) = (
        "<!-- values: made of values.yaml -->\n",
        "<!-- end of values -->",
    );
    let readme = read("README.md");
    let (before, rest) = readme.split_once(begin).expect("the mark");
    let (_, after) = rest.split_once(end).expect("the mark of the end");
    let tables = values::tables(&values::keys(&read("values.yaml")));
    keeps(
        &chart().join("README.md"),
        &format!("{before}{begin}{tables}{end}{after}"),
    );
}

#[test]
fn the_chart_installs_this_version() {
    let about = yaml::document(&read("Chart.yaml"));
    assert_eq!(about["appVersion"], env!("CARGO_PKG_VERSION"));
}

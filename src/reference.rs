//! `docs/reference.md`: every key of a pipeline file, from the schema of the structs that read it.

mod key;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use key::{Key, keys};

const PAGE: &str = "docs/reference.md";
const BEGIN: &str = "<!-- begin: generated from the structs that read a pipeline file -->\n";
const END: &str = "<!-- end -->\n";
/// Set it, and the test below writes the page's tables instead of comparing them.
const WRITE: &str = "LOCKSTEP_WRITE_DOCS";

/// Sections of the file that hold nodes, with what a heading calls one of them.
const STAGES: [(&str, &str, &str); 3] = [
    ("sources", "source", "Sources"),
    ("transforms", "transform", "Transforms"),
    ("sinks", "sink", "Sinks"),
];

fn generated() -> String {
    let schema = lockstep_pipelines::schema::schema(&crate::builtin());
    let mut out = "\n## The file itself\n\n".to_owned();
    out += &table(&keys(&top(&schema), &schema));
    for section in ["admin", "state", "reconcile", "transactions"] {
        out += &section_of(section, &schema);
    }
    out += &leases(&schema);
    out += &letters(&schema);
    for (section, one, heading) in STAGES {
        let _ = write!(out, "## {heading}\n\n");
        let at = format!("/properties/{section}/additionalProperties/allOf");
        out += &kinds(schema.pointer(&at), section, one, &schema);
    }
    out
}

/// The keys of the file that are no sections.
fn top(schema: &Value) -> Value {
    let mut top = schema.clone();
    if let Some(keys) = top["properties"].as_object_mut() {
        keys.retain(|name, _| matches!(name.as_str(), "name" | "memory" | "shutdown_timeout"));
    }
    top
}

fn section_of(name: &str, schema: &Value) -> String {
    let section = &schema["properties"][name];
    let about = section["description"].as_str().unwrap_or_default();
    let inner = key::of_section(section, schema);
    format!(
        "### {name}\n\n`[{name}]`. {}\n\n{}",
        key::one_line(about),
        table(&keys(inner, schema))
    )
}

fn leases(schema: &Value) -> String {
    let section = schema["properties"]["lease"]["description"]
        .as_str()
        .unwrap_or_default();
    let mut out = format!("### lease\n\n`[lease]`. {}\n\n", key::one_line(section));
    let kinds = schema["$defs"]["LeaseConfig"]["oneOf"]
        .as_array()
        .expect("kinds of leases");
    for kind in kinds {
        let name = kind["properties"]["type"]["const"]
            .as_str()
            .expect("a type");
        let what = about(kind, name);
        let _ = write!(out, "#### lease {name}\n\n{what}\n\n");
        out += &table(&keys(kind, schema));
    }
    out
}

/// Where dead letters go: beside the embedded store, the keys are those of a sink.
fn letters(schema: &Value) -> String {
    let section = &schema["properties"]["dead_letters"];
    let about = section["description"].as_str().unwrap_or_default();
    let kinds = section["properties"]["type"]["enum"]
        .as_array()
        .expect("kinds");
    let others = kinds
        .iter()
        .filter_map(Value::as_str)
        .filter(|kind| *kind != "embedded");
    let others: Vec<String> = others
        .map(|kind| format!("[`{kind}`](#sink-{kind})"))
        .collect();
    let embedded = section["allOf"]
        .as_array()
        .and_then(|cases| cases.iter().find_map(|case| case.get("else")));
    format!(
        "### dead_letters\n\n`[dead_letters]`. {} With `type` {} it has the keys of such a sink, without `inputs`, `on_error` and `later`; with \
         `type = \"embedded\"`, the default:\n\n{}",
        key::one_line(about),
        others.join(", "),
        table(&keys(embedded.expect("the embedded store"), schema)),
    )
}

/// A heading and a table for each kind of node.
fn kinds(cases: Option<&Value>, section: &str, one: &str, schema: &Value) -> String {
    let mut out = String::new();
    // What has the same keys has one table.
    let mut written: BTreeMap<String, String> = BTreeMap::new();
    for case in cases.and_then(Value::as_array).expect("kinds") {
        let name = case["if"]["properties"]["type"]["const"]
            .as_str()
            .expect("a type");
        let kind = &case["then"];
        let about = about(kind, name);
        let _ = write!(out, "### {one} {name}\n\n`[{section}.NAME]`, {about}\n\n");
        let table = table(&keys(kind, schema));
        match written.get(&table) {
            Some(same) => {
                let _ = write!(out, "The keys are those of [`{same}`](#{one}-{same}).\n\n");
            }
            None => {
                out += &table;
                written.insert(table, name.to_owned());
            }
        }
    }
    out
}

/// What a kind is, unless that says its name and no more.
fn about(kind: &Value, name: &str) -> String {
    let about = kind["description"].as_str().unwrap_or_default();
    match about.starts_with("`type =") || about.starts_with("A sink of type") || about.is_empty() {
        true => format!("`type = \"{name}\"`."),
        false => format!("`type = \"{name}\"`. {}", key::one_line(about)),
    }
}

fn table(keys: &[Key]) -> String {
    let mut out = "| key | value | default | meaning |\n|---|---|---|---|\n".to_owned();
    for key in keys {
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} |",
            key.name, key.value, key.default, key.meaning
        );
    }
    out.push('\n');
    out
}

#[test]
fn the_page_has_every_key_of_a_pipeline_file_as_it_is() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = std::fs::read_to_string(&path).expect("the page");
    let (before, rest) = page.split_once(BEGIN).expect("the page has a begin");
    let (part, after) = rest.split_once(END).expect("the page has an end");
    let expected = generated();
    if std::env::var_os(WRITE).is_some() {
        let page = format!("{before}{BEGIN}{expected}{END}{after}");
        std::fs::write(&path, page).expect("it can be written");
        return;
    }
    let mut lines = part.lines().zip(expected.lines());
    let first = lines.find(|(is, should)| is != should);
    assert!(
        part == expected,
        "{PAGE} is not as the structs are; {WRITE}=1 writes it. First: {first:?}"
    );
}

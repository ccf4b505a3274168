//! Every block of code is run, read by what reads it, or listed.

use std::fs;

use lockstep_docs::page::Block;
use lockstep_docs::{pages, pipeline, shape, shell};
use lockstep_kit::Component::Prometheus as NeedsPrometheus;
use lockstep_kit::prometheus::promtool;
use lockstep_kit::require;
use yaml_rust2::YamlLoader;

use crate::exempt;

fn all() -> Vec<Block> {
    pages().into_iter().flat_map(|page| page.blocks).collect()
}

fn nothing_wrong(mistakes: &[String]) {
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n\n"));
}

/// Whether a language is read or run by one of these tests.
fn is_known(block: &Block) -> bool {
    shell::is_run(block) || matches!(&*block.language, "toml" | "yaml" | "json" | "promql")
}

/// A picture of characters, or what a command answers, and no command that nobody runs.
fn is_picture(block: &Block) -> bool {
    let commands = [
        "lockstep ",
        "curl ",
        "docker ",
        "kubectl ",
        "helm ",
        "make ",
        "cargo ",
        "psql ",
    ];
    // A form of words with what may be left out is none.
    let form = ["[--", "|", "…"]
        .iter()
        .any(|sign| block.text.contains(sign));
    let is_command = |line: &str| commands.iter().any(|command| line.starts_with(command));
    matches!(&*block.language, "" | "text") && (form || !block.text.lines().any(is_command))
}

#[test]
fn every_block_is_read_or_run_or_listed() {
    let blocks = all();
    let open = blocks
        .iter()
        .filter(|block| !is_known(block) && !is_picture(block) && !exempt::is(block));
    let open: Vec<String> = open
        .map(|block| format!("{block}: nothing runs or reads it; give it a language that is, or list it in tests/docs/tests/it/exempt.rs with the reason"))
        .collect();
    nothing_wrong(&open);
}

#[test]
fn what_is_listed_is_there() {
    nothing_wrong(&exempt::in_vain(&pages()));
}

#[test]
fn pipeline_files_and_parts_of_them_are_right() {
    let blocks = all();
    let toml = blocks
        .iter()
        .filter(|block| block.language == "toml" && !exempt::is(block));
    let mistakes =
        toml.filter_map(|block| Some(format!("{block}: {}", pipeline::check(&block.text).err()?)));
    nothing_wrong(&mistakes.collect::<Vec<_>>());
}

#[test]
fn json_is_json() {
    let mut mistakes = Vec::new();
    for block in all()
        .iter()
        .filter(|block| block.language == "json" && !exempt::is(block))
    {
        let text = shape::json(&block.text);
        let values = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
        mistakes.extend(values.filter_map(|value| Some(format!("{block}: {}", value.err()?))));
    }
    nothing_wrong(&mistakes);
}

#[tokio::test]
async fn yaml_is_yaml_and_what_it_is_called() {
    require!(NeedsPrometheus);
    let mut mistakes = Vec::new();
    for block in all()
        .iter()
        .filter(|block| block.language == "yaml" && !exempt::is(block))
    {
        let file = match YamlLoader::load_from_str(&block.text) {
            Ok(documents) => documents,
            Err(error) => {
                mistakes.push(format!("{block}: {error}"));
                continue;
            }
        };
        if block.text.starts_with("# prometheus.yml") {
            let folder = tempfile::tempdir().expect("a folder");
            fs::write(folder.path().join("prometheus.yml"), &block.text).expect("written");
            let checked = promtool(
                folder.path(),
                &["check", "config", "--syntax-only", "prometheus.yml"],
            )
            .await;
            mistakes.extend(checked.err().map(|error| format!("{block}: {error}")));
        }
        if file.iter().any(|file| !file["sources"].is_badvalue()) {
            let checked = pipeline::offline(&block.text, "yaml");
            mistakes.extend(checked.err().map(|error| format!("{block}: {error}")));
        }
    }
    nothing_wrong(&mistakes);
}

#[tokio::test]
async fn queries_are_understood_by_prometheus() {
    require!(NeedsPrometheus);
    let blocks = all();
    let queries: Vec<&Block> = blocks
        .iter()
        .filter(|block| block.language == "promql" && !exempt::is(block))
        .collect();
    let mut rules = "groups:\n- name: docs\n  rules:\n".to_owned();
    for (number, block) in queries.iter().enumerate() {
        let query = serde_json::to_string(block.text.trim()).expect("a text");
        rules += &format!(
            "  - record: docs:query{number}\n    expr: {query}\n    labels: {{ place: \"{block}\" }}\n"
        );
    }
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("rules.yaml"), rules).expect("written");
    let checked = promtool(folder.path(), &["check", "rules", "rules.yaml"]).await;
    assert!(
        checked.is_ok(),
        "{queries:?}: {}",
        checked
            .err()
            .map_or_else(String::new, |error| error.to_string())
    );
}

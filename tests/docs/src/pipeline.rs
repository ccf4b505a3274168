//! Pipeline files of pages, and parts of such files, made whole so that `lockstep check` can read them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use toml_edit::{Document, Item, Table, TableLike};

use crate::program;

/// Long enough for every secret that has to have a length, and of the form that webhooks are signed with.
const SECRET: &str = "whsec_YS1zZWNyZXQtdGhhdC1pcy1sb25nLWVub3VnaA==";
/// What a variable has whose name says that it is an address.
const ADDRESS: &str = "postgres://lockstep@127.0.0.1:5432/shop";
/// Sections of a file.
const SECTIONS: [&str; 3] = ["sources", "transforms", "sinks"];

/// Whether a text in TOML is a pipeline file or a part of one, and if not, why.
///
/// # Errors
/// What is wrong with it, as TOML or as `lockstep check --offline` has it.
pub fn check(text: &str) -> Result<(), String> {
    let tried: Vec<Result<(), String>> = whole(text)?
        .iter()
        .map(|file| offline(file, "toml"))
        .collect();
    match tried.iter().any(Result::is_ok) {
        true => Ok(()),
        false => tried.into_iter().next().unwrap_or(Ok(())),
    }
}

/// The texts that may be meant, each a whole file.
fn whole(text: &str) -> Result<Vec<String>, String> {
    let document: Document<&str> = Document::parse(text).map_err(|error| error.to_string())?;
    let file = document.as_table();
    if !file.contains_key("type") {
        return Ok(vec![completed(text, file)]);
    }
    // The keys of one section, without its head. What has to be said with any lease is said.
    let heads = [
        "[state]\nshared = true\n[lease]",
        "[sinks.one]",
        "[transforms.one]",
        "[sources.one]",
        "[dead_letters]",
    ];
    let read = |head: &str| match head {
        "[sinks.one]" | "[transforms.one]" if !file.contains_key("inputs") => {
            "inputs = [\"shop\"]\n"
        }
        _ => "",
    };
    heads
        .iter()
        .map(|head| {
            let text = format!("{head}\n{}{text}", read(head));
            let document: Document<&str> =
                Document::parse(&*text).map_err(|error| error.to_string())?;
            Ok(completed(&text, document.as_table()))
        })
        .collect()
}

/// With a name, with sources for what is read and not there, and with a sink for what nobody reads.
fn completed(text: &str, file: &Table) -> String {
    let mut out = String::new();
    if !file.contains_key("name") {
        out += "name = \"shop\"\n\n";
    }
    out += text;
    let there: BTreeSet<&str> = SECTIONS
        .iter()
        .flat_map(|section| names(file, section))
        .collect();
    let read: BTreeSet<String> = ["transforms", "sinks"]
        .iter()
        .flat_map(|section| inputs(file, section))
        .collect();
    let mut sources: BTreeSet<String> = read
        .iter()
        .chain(&named(file))
        .filter(|name| !there.contains(&***name))
        .cloned()
        .collect();
    if sources.is_empty() && names(file, "sources").is_empty() {
        sources.insert("shop".to_owned());
    }
    let stitched = text.contains("\"stitch\"");
    for name in &sources {
        out += &format!(
            "\n[sources.{name}]\ntype = \"postgres\"\nurl = \"{ADDRESS}\"\ntables = [\"public.*\"]\ntwo_phase = {stitched}\n"
        );
    }
    let sinks = names(file, "sinks");
    let all = there
        .iter()
        .copied()
        .chain(sources.iter().map(String::as_str));
    let unread: Vec<String> = all
        .filter(|name| !sinks.contains(name) && !read.contains(*name))
        .map(|name| format!("{name:?}"))
        .collect();
    if !unread.is_empty() {
        let unread = unread.join(", ");
        out += &format!(
            "\n[sinks.rest]\ntype = \"redis\"\ninputs = [{unread}]\nurl = \"redis://127.0.0.1:6379\"\n"
        );
    }
    out
}

fn section<'a>(file: &'a Table, name: &str) -> Option<&'a dyn TableLike> {
    file.get(name).and_then(Item::as_table_like)
}

fn names<'a>(file: &'a Table, name: &str) -> BTreeSet<&'a str> {
    let section = section(file, name);
    section
        .into_iter()
        .flat_map(|section| section.iter().map(|(name, _)| name))
        .collect()
}

/// The nodes that a section's nodes read.
fn inputs(file: &Table, name: &str) -> Vec<String> {
    let nodes = section(file, name)
        .into_iter()
        .flat_map(|section| section.iter());
    let inputs = nodes.filter_map(|(_, node)| node.get("inputs")?.as_array());
    let inputs = inputs.flat_map(|inputs| inputs.iter().filter_map(|input| input.as_str()));
    inputs
        .map(|input| input.split(':').next().unwrap_or(input).to_owned())
        .collect()
}

/// Sources that are named elsewhere: by invariants, and by what is said of transactions.
fn named(file: &Table) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let log = section(file, "transactions").and_then(|section| section.get("log")?.as_str());
    out.extend(log.map(str::to_owned));
    let invariants = section(file, "reconcile")
        .and_then(|section| section.get("invariants")?.as_array_of_tables());
    for invariant in invariants.into_iter().flatten() {
        let queries = invariant.get("queries").and_then(Item::as_table_like);
        out.extend(
            queries
                .into_iter()
                .flat_map(|queries| queries.iter().map(|(name, _)| name.to_owned())),
        );
    }
    out
}

/// Whether `lockstep check --offline` takes a file.
///
/// # Errors
/// What it says.
///
/// # Panics
/// When it cannot be run.
pub fn offline(text: &str, end: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join(format!("page.{end}"));
    let (text, variables) = with_variables(text);
    std::fs::write(&file, &text).expect("written");
    let output = Command::new(program())
        .args([Path::new("check"), Path::new("--offline"), &file])
        .envs(variables)
        .current_dir(folder.path())
        .output()
        .expect("it runs");
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{}{}\n---\n{text}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// The variables that a text names, each with a value; secrets in files become such variables.
fn with_variables(text: &str) -> (String, Vec<(String, String)>) {
    let mut out = String::new();
    let mut variables = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}').unwrap_or((after, ""));
        let name = match name.starts_with("file:") {
            true => "SECRET_IN_A_FILE",
            false => name,
        };
        out += &format!("{before}${{{name}}}");
        let value = if name.contains("URL") {
            ADDRESS
        } else {
            SECRET
        };
        variables.push((name.to_owned(), value.to_owned()));
        rest = after;
    }
    (out + rest, variables)
}

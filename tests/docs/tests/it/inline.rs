//! Commands and statements inside sentences, as runbooks have them: commands are of the command line as it is, statements are understood by a
//! database that has what they are about.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;

use lockstep_docs::page::{Page, Span};
use lockstep_docs::{pages, program};
use lockstep_kit::Component::Postgres as NeedsPostgres;
use lockstep_kit::postgres::{Postgres, PostgresOptions};
use lockstep_kit::require_own;

/// Tables and publication that statements are about.
const THERE: &str = "
    CREATE PUBLICATION lockstep;
    CREATE SCHEMA lockstep;
    CREATE TABLE lockstep.lease (name text);
";

fn spans() -> Vec<(String, Span)> {
    let of = |page: Page| {
        let place = move |span: &Span| format!("{}:{}", page.name, span.line);
        page.spans.into_iter().map(move |span| (place(&span), span))
    };
    pages().into_iter().flat_map(of).collect()
}

/// What `lockstep help` says of a subcommand, unless there is none.
fn help(words: &[&str]) -> Option<String> {
    let output = Command::new(program())
        .arg("help")
        .args(words)
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(said)
}

/// What is wrong with the words behind `lockstep`.
fn mistake(line: &str, known: &mut BTreeMap<String, Option<String>>) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_word = |word: &&&str| {
        let mut letters = word.chars();
        letters.all(|one| one.is_ascii_lowercase() || one == '-') && !word.starts_with('-')
    };
    let mut ask = |words: &[&str]| {
        let answer = known.entry(words.join(" "));
        answer.or_insert_with(|| help(words)).clone()
    };
    // `dead-letters list|show` are two.
    let (first, second) = (words.first()?, words.get(1).copied().unwrap_or_default());
    if !is_word(&first) {
        return None;
    }
    let Some(about) = ask(&[first]) else {
        return Some(format!("there is no `lockstep {first}`"));
    };
    let mut help = about.clone();
    if about.contains("<COMMAND>") {
        for second in second.split('|').filter(|word| !word.is_empty()) {
            match ask(&[first, second]) {
                Some(about) => help += &about,
                None => return Some(format!("there is no `lockstep {first} {second}`")),
            }
        }
    }
    let mut options = words.iter().filter_map(|word| {
        let name = word.trim_start_matches('[').trim_end_matches(']');
        name.starts_with("--")
            .then(|| name.split('=').next().unwrap_or(name))
    });
    let there = |option: &str| {
        let mut words = help.split(|one: char| !(one.is_ascii_alphanumeric() || one == '-'));
        words.any(|word| word == option)
    };
    let unknown = options.find(|option| !there(option))?;
    Some(format!("`lockstep {first}` has no {unknown}"))
}

#[test]
fn commands_are_those_of_the_command_line() {
    let mut known = BTreeMap::new();
    let mut mistakes = Vec::new();
    let mut seen = 0;
    for (place, span) in spans() {
        let Some(line) = span.text.strip_prefix("lockstep ") else {
            continue;
        };
        seen += 1;
        let line = line.split(" \\|").next().unwrap_or(line);
        mistakes.extend(mistake(line, &mut known).map(|why| format!("{place}: {why}")));
    }
    assert!(seen > 20, "{seen}");
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

/// A question is planned and not asked, anything else is done and taken back; `ALTER SYSTEM` cannot be.
fn tried(statement: &str) -> String {
    match statement {
        _ if statement.starts_with("ALTER SYSTEM ") => format!("{statement};\n"),
        _ if statement.starts_with("SELECT ") => format!("EXPLAIN {statement};\n"),
        _ => format!("BEGIN; {statement}; ROLLBACK;\n"),
    }
}

#[tokio::test]
async fn statements_are_understood_by_a_database() {
    require_own!(NeedsPostgres(15));
    let mut statements = Vec::new();
    for (place, span) in spans() {
        // Without it, it is a word or two of SQL.
        let Some(all) = span.text.trim().strip_suffix(';') else {
            continue;
        };
        for statement in all.split("; ") {
            statements.push((place.clone(), statement.replace("PID", "1")));
        }
    }
    assert!(statements.len() > 10, "{statements:?}");
    let server = Postgres::start(PostgresOptions::new(15)).await;
    server.execute(lockstep_docs::world::SHOP).await;
    server.execute(THERE).await;
    let mut script = "\\set ON_ERROR_STOP on\n".to_owned();
    for (place, statement) in &statements {
        let _ = write!(script, "\\echo {place}\n{}", tried(statement));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("statements.sql");
    std::fs::write(&file, script).expect("written");
    let output = Command::new(server.bin_dir().join("psql"))
        .args(["-X", "-q", "-f"])
        .arg(&file)
        .arg(server.url())
        .output()
        .expect("psql");
    let places = String::from_utf8_lossy(&output.stdout);
    let last = places.lines().rfind(|line| line.contains(".md:"));
    assert!(
        output.status.success(),
        "{}: {}",
        last.unwrap_or_default(),
        String::from_utf8_lossy(&output.stderr)
    );
}

//! `lockstep test FILE`: sends the examples of a pipeline file through its transforms, and compares.

use std::path::Path;
use std::process::ExitCode;

use lockstep_core::{Error, ErrorKind};
use lockstep_pipelines::Registry;
use lockstep_pipelines::examples::{Line, Tested, test};
use serde_json::{Value, json};

use crate::cli::{Format, load};
use crate::figures::{Paint, of};
use crate::{Outcome, output};

/// Runs the tests of a file, or those with a word in their names.
pub async fn run(file: &Path, registry: &Registry, only: Option<&str>, format: Format) -> Outcome {
    let mut pipeline = load(file, registry)?;
    if pipeline.tests.is_empty() {
        return Err(Error::new(
            ErrorKind::Config,
            format!("{} has no tests", file.display()),
        )
        .remedy("write one as `[[tests]]`; docs/expressions.md shows how"));
    }
    if let Some(word) = only {
        keep(&mut pipeline.tests, word)?;
    }
    let tested = test(&pipeline).await?;
    match format {
        Format::Json => output::print(&format!("{}\n", as_json(&tested))),
        Format::Table => output::print(&table(&tested, output::paint())),
    }
    Ok(match tested.iter().all(Tested::is_ok) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Leaves those with a word in their names, each with the tables that it has from those before.
fn keep(tests: &mut Vec<lockstep_pipelines::examples::Test>, word: &str) -> Result<(), Error> {
    let mut tables = Vec::new();
    for test in tests.iter_mut() {
        match test.tables.is_empty() {
            true => test.tables.clone_from(&tables),
            false => tables.clone_from(&test.tables),
        }
    }
    tests.retain(|test| test.name.contains(word));
    match tests.is_empty() {
        false => Ok(()),
        true => Err(Error::new(
            ErrorKind::Invalid,
            format!("no test has `{word}` in its name"),
        )
        .remedy("write a part of a test's name")),
    }
}

fn counts(tested: &[Tested]) -> (u64, u64) {
    let ok = tested.iter().filter(|one| one.is_ok()).count() as u64;
    (ok, tested.len() as u64 - ok)
}

/// For programs.
fn as_json(tested: &[Tested]) -> Value {
    let (ok, failed) = counts(tested);
    let tests = tested.iter().map(|one| {
        let nodes = one
            .seen
            .iter()
            .map(|seen| json!({ "node": seen.node, "changes": seen.lines }));
        json!({
            "name": one.name,
            "ok": one.is_ok(),
            "nodes": nodes.collect::<Vec<_>>(),
            "error": one.error.as_ref().map(output::error_json),
        })
    });
    json!({ "ok": failed == 0, "counts": { "ok": ok, "failed": failed }, "tests": tests.collect::<Vec<_>>() })
}

/// For people: a line for each test, below those that failed what differs, and a line that sums it up.
fn table(tested: &[Tested], paint: Paint) -> String {
    let mut out = String::new();
    for one in tested {
        let mark = match one.is_ok() {
            true => paint.good("ok    "),
            false => paint.bad("FAILED"),
        };
        out += &format!("{mark}  {}\n", one.name);
        if let Some(error) = &one.error {
            out += &format!("        {error}\n");
        }
        for seen in &one.seen {
            if seen.lines.iter().all(|line| matches!(line, Line::Same(_))) {
                continue;
            }
            out += &format!("        {}\n", paint.bold(&seen.node));
            for line in &seen.lines {
                out += &match line {
                    Line::Same(change) => format!("            {}\n", paint.dim(change)),
                    Line::Missing(change) => paint.bad(&format!("          - {change}")) + "\n",
                    Line::Surplus(change) => paint.good(&format!("          + {change}")) + "\n",
                };
            }
        }
    }
    let (ok, failed) = counts(tested);
    let sum = format!("{} ok", of(ok, "test", "tests"));
    out += &match failed {
        0 => format!("{}\n", paint.good(&sum)),
        failed => format!(
            "{}\n",
            paint.bad(&format!(
                "{} failed (- expected, + came), {sum}",
                of(failed, "test", "tests")
            ))
        ),
    };
    out
}

#[cfg(test)]
mod tests {
    use lockstep_pipelines::examples::Seen;

    use super::*;

    #[test]
    fn what_differs_stands_below_the_test() {
        let tested = [
            Tested {
                name: "good".to_owned(),
                seen: Vec::new(),
                error: None,
            },
            Tested {
                name: "bad".to_owned(),
                seen: vec![Seen {
                    node: "cache".to_owned(),
                    lines: vec![
                        Line::Same("insert public.orders id=1".to_owned()),
                        Line::Missing("insert public.orders id=2".to_owned()),
                        Line::Surplus("insert public.orders id=3".to_owned()),
                    ],
                }],
                error: None,
            },
        ];
        let expected = "\
ok      good
FAILED  bad
        cache
            insert public.orders id=1
          - insert public.orders id=2
          + insert public.orders id=3
1 test failed (- expected, + came), 1 test ok
";
        assert_eq!(table(&tested, Paint::default()), expected);
        let value = as_json(&tested);
        assert_eq!(value["ok"], false);
        assert_eq!(value["counts"], json!({ "ok": 1, "failed": 1 }));
        let change = &value["tests"][1]["nodes"][0]["changes"][1];
        assert_eq!(
            *change,
            json!({ "is": "missing", "change": "insert public.orders id=2" })
        );
    }
}

//! `lockstep check FILE`: what is right, what is not, and how to repair it.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use lockstep_core::check::{Finding, Verdict};
use lockstep_pipelines::Registry;
use serde_json::json;

use crate::cli::{Format, load};
use crate::figures::{Paint, of};
use crate::{Outcome, output};

/// Checks the file, and unless `offline` every server it names.
pub async fn check(file: &Path, registry: &Registry, offline: bool, format: Format) -> Outcome {
    let pipeline = load(file, registry)?;
    let mut places = vec![(
        file.display().to_string(),
        vec![Finding::pass(
            "pipeline file",
            format!(
                "{}: {}, {}, {}",
                pipeline.name,
                of(pipeline.sources.len() as u64, "source", "sources"),
                of(pipeline.transforms.len() as u64, "transform", "transforms"),
                of(pipeline.sinks.len() as u64, "sink", "sinks"),
            ),
        )],
    )];
    if !offline {
        places.extend(lockstep_pipelines::preflight::preflight(&pipeline).await);
    }
    let failures = places
        .iter()
        .flat_map(|(_, findings)| findings)
        .filter(|f| f.verdict == Verdict::Fail)
        .count();
    match format {
        Format::Json => {
            let list: Vec<_> = places
                .iter()
                .map(|(place, findings)| json!({ "place": place, "findings": findings }))
                .collect();
            output::print(&format!(
                "{}\n",
                json!({ "ok": failures == 0, "places": list })
            ));
        }
        Format::Table => output::print(&table(
            &places,
            failures,
            Paint {
                color: output::colours(),
            },
        )),
    }
    Ok(if failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn table(places: &[(String, Vec<Finding>)], failures: usize, paint: Paint) -> String {
    let mut out = String::new();
    let width = places
        .iter()
        .flat_map(|(_, f)| f)
        .map(|f| f.subject.chars().count())
        .max()
        .unwrap_or(0);
    // Writing to a String cannot fail.
    for (place, findings) in places {
        let _ = writeln!(out, "{}", paint.bold(place));
        for finding in findings {
            let mark = match finding.verdict {
                Verdict::Pass => paint.good("✓"),
                Verdict::Warn => "!".to_owned(),
                Verdict::Fail => paint.bad("✗"),
            };
            let _ = writeln!(
                out,
                "  {mark} {:width$}  {}",
                finding.subject, finding.detail
            );
            if let Some(remedy) = &finding.remedy {
                let _ = writeln!(out, "    {:width$}  → {remedy}", "");
            }
        }
    }
    let _ = match failures {
        0 => writeln!(out, "{}", paint.good("ready to run")),
        1 => writeln!(out, "{}", paint.bad("1 thing to repair")),
        more => writeln!(out, "{}", paint.bad(&format!("{more} things to repair"))),
    };
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_the_remedy_below_what_failed() {
        let findings = vec![
            Finding::pass("version", "PostgreSQL 15"),
            Finding::fail("wal_level", "replica", "SET it"),
        ];
        let text = table(
            &[("sources.orders".into(), findings)],
            1,
            Paint { color: false },
        );
        let expected = "sources.orders\n  ✓ version    PostgreSQL 15\n  ✗ wal_level  replica\n               → SET it\n\
                        1 thing to repair\n";
        assert_eq!(text, expected);
    }
}

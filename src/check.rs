//! `lockstep check FILE`: what is right, what is not, and how to repair it.

use std::path::Path;
use std::process::ExitCode;

use lockstep_core::check::{Finding, Verdict};
use lockstep_pipelines::{Pipeline, Registry};
use serde_json::{Value, json};

use crate::cli::{Format, load};
use crate::figures::{Paint, of, wrap};
use crate::{Outcome, output, terminal};

/// Details in a narrower column than this stand below their subject.
const NARROW: usize = 32;

/// Checks the file, and unless `offline` every server it names.
pub async fn check(file: &Path, registry: &Registry, offline: bool, format: Format) -> Outcome {
    let pipeline = load(file, registry)?;
    let checked = match offline {
        true => Checked::file(file, &pipeline),
        false => Checked::all(file, &pipeline).await,
    };
    match format {
        Format::Json => output::print(&format!("{}\n", checked.json())),
        Format::Table => output::print(&checked.table(output::paint())),
    }
    Ok(match checked.count(Verdict::Fail) {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// What was found, by place.
#[derive(Debug)]
pub struct Checked {
    places: Vec<(String, Vec<Finding>)>,
}

impl Checked {
    /// A file that could be read.
    fn file(file: &Path, pipeline: &Pipeline) -> Self {
        let parts = [
            of(pipeline.sources.len() as u64, "source", "sources"),
            of(pipeline.transforms.len() as u64, "transform", "transforms"),
            of(pipeline.sinks.len() as u64, "sink", "sinks"),
        ];
        let detail = format!("{}: {}", pipeline.name, parts.join(", "));
        let finding = Finding::pass("pipeline file", detail);
        Checked {
            places: vec![(file.display().to_string(), vec![finding])],
        }
    }

    /// The file, and every server it names.
    pub async fn all(file: &Path, pipeline: &Pipeline) -> Self {
        let mut checked = Self::file(file, pipeline);
        let servers = lockstep_pipelines::preflight::preflight(pipeline).await;
        checked.places.extend(servers);
        checked
    }

    fn count(&self, verdict: Verdict) -> usize {
        let findings = self.places.iter().flat_map(|(_, findings)| findings);
        findings
            .filter(|finding| finding.verdict == verdict)
            .count()
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let places = self.places.iter();
        let places: Vec<Value> = places
            .map(|(place, findings)| json!({ "place": place, "findings": findings }))
            .collect();
        let counts = json!({
            "pass": self.count(Verdict::Pass),
            "warn": self.count(Verdict::Warn),
            "fail": self.count(Verdict::Fail),
        });
        json!({ "ok": self.count(Verdict::Fail) == 0, "counts": counts, "places": places })
    }

    /// For people: everything, and a line that sums it up.
    fn table(&self, paint: Paint) -> String {
        let look = Look::of_terminal(paint);
        look.places(&self.places) + &look.summary(self)
    }

    /// For people: what asks for something, and a line that sums everything up.
    pub fn attention(&self, paint: Paint) -> String {
        let look = Look::of_terminal(paint);
        let asking = self.places.iter().filter_map(|(place, findings)| {
            let asking = findings.iter().filter(|one| one.verdict != Verdict::Pass);
            let asking: Vec<Finding> = asking.cloned().collect();
            (!asking.is_empty()).then(|| (place.clone(), asking))
        });
        let asking: Vec<(String, Vec<Finding>)> = asking.collect();
        look.places(&asking) + &look.summary(self)
    }
}

/// How it is shown.
#[derive(Clone, Copy, Debug)]
struct Look {
    paint: Paint,
    /// Letters beyond ASCII are understood.
    unicode: bool,
    /// Columns; `None` where lines may be as long as they are.
    width: Option<usize>,
}

impl Look {
    fn of_terminal(paint: Paint) -> Self {
        Look {
            paint,
            unicode: terminal::is_unicode(),
            width: terminal::size().map(|(columns, _)| columns),
        }
    }

    /// A sign and a word: neither colours nor letters have to be seen.
    fn mark(self, verdict: Verdict) -> String {
        let sign = |unicode, ascii| if self.unicode { unicode } else { ascii };
        match verdict {
            Verdict::Pass => self.paint.good(&format!("{} ok  ", sign("✓", "+"))),
            Verdict::Warn => self.paint.attention("! look"),
            Verdict::Fail => self.paint.bad(&format!("{} fail", sign("✗", "x"))),
        }
    }

    fn arrow(self) -> &'static str {
        if self.unicode { "→" } else { "->" }
    }

    fn places(self, places: &[(String, Vec<Finding>)]) -> String {
        let subjects = places.iter().flat_map(|(_, findings)| findings);
        let width = subjects
            .map(|finding| finding.subject.chars().count())
            .max();
        let width = width.unwrap_or(0);
        let mut out = String::new();
        for (place, findings) in places {
            out += &format!("{}\n", self.paint.bold(place));
            for finding in findings {
                out += &self.finding(finding, width);
            }
        }
        out
    }

    /// The mark, the subject, the detail behind it, and the remedy below.
    fn finding(self, finding: &Finding, subjects: usize) -> String {
        // Two columns of margin, the mark with its word, and two between each.
        let behind = 2 + "✓ ok  ".chars().count() + 2 + subjects + 2;
        let below = self.width.is_some_and(|width| width < behind + NARROW);
        let indent = if below { 10 } else { behind };
        let width = self
            .width
            .map_or(usize::MAX, |width| width.saturating_sub(indent));
        let margin = " ".repeat(indent);
        let mut details = wrap(&finding.detail, width).into_iter();
        let mut out = format!("  {}  ", self.mark(finding.verdict));
        match below {
            true => out += &finding.subject,
            false => {
                let first = details.next().unwrap_or_default();
                out += &format!("{:subjects$}  {first}", finding.subject);
            }
        }
        let mut out = format!("{}\n", out.trim_end());
        for line in details {
            out += &format!("{margin}{line}\n");
        }
        if let Some(remedy) = &finding.remedy {
            let arrow = self.arrow();
            let hang = arrow.chars().count() + 1;
            for (at, line) in wrap(remedy, width.saturating_sub(hang)).iter().enumerate() {
                let lead = match at {
                    0 => format!("{arrow} "),
                    _ => " ".repeat(hang),
                };
                out += &format!("{margin}{lead}{line}\n");
            }
        }
        out
    }

    /// One line: how it stands, and how many of each.
    fn summary(self, checked: &Checked) -> String {
        let [pass, warn, fail] = [Verdict::Pass, Verdict::Warn, Verdict::Fail]
            .map(|verdict| checked.count(verdict) as u64);
        let mut parts = vec![format!("{pass} right")];
        if warn > 0 {
            parts.insert(0, of(warn, "deserves a look", "deserve a look"));
        }
        let (mark, stands) = match fail {
            0 => ("✓", "ready to run".to_owned()),
            _ => ("✗", of(fail, "thing to repair", "things to repair")),
        };
        let ascii = if fail == 0 { "+" } else { "x" };
        let mark = if self.unicode { mark } else { ascii };
        let line = format!("{mark} {stands}");
        let line = match fail {
            0 => self.paint.good(&line),
            _ => self.paint.bad(&line),
        };
        format!("{line}; {}\n", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked() -> Checked {
        Checked {
            places: vec![
                (
                    "shop.toml".into(),
                    vec![Finding::pass("pipeline file", "shop")],
                ),
                (
                    "sources.orders".into(),
                    vec![
                        Finding::pass("version", "PostgreSQL 15"),
                        Finding::warn("keep", "unlimited: it can fill the disk", "SET it to 50GB"),
                        Finding::fail(
                            "wal_level",
                            "replica",
                            "ALTER SYSTEM SET wal_level = 'logical', then restart the server",
                        ),
                    ],
                ),
            ],
        }
    }

    fn shown(look: Look) -> String {
        let checked = checked();
        look.places(&checked.places) + &look.summary(&checked)
    }

    const PLAIN: Look = Look {
        paint: Paint { color: false },
        unicode: true,
        width: None,
    };

    #[test]
    fn findings_stand_below_their_place_and_remedies_below_them() {
        let expected = "\
shop.toml
  ✓ ok    pipeline file  shop
sources.orders
  ✓ ok    version        PostgreSQL 15
  ! look  keep           unlimited: it can fill the disk
                         → SET it to 50GB
  ✗ fail  wal_level      replica
                         → ALTER SYSTEM SET wal_level = 'logical', then restart the server
✗ 1 thing to repair; 1 deserves a look, 2 right
";
        assert_eq!(shown(PLAIN), expected);
        let mut checked = checked();
        checked.places[1].1.pop();
        assert_eq!(
            PLAIN.summary(&checked),
            "✓ ready to run; 1 deserves a look, 2 right\n"
        );
    }

    #[test]
    fn lines_are_as_wide_as_the_terminal_at_most() {
        for width in [200, 80, 60, 50, 30] {
            let look = Look {
                width: Some(width),
                ..PLAIN
            };
            let text = shown(look);
            let summary = text.lines().count() - 1;
            for line in text.lines().take(summary) {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
            let words: Vec<&str> = text.split_whitespace().collect();
            let all = shown(PLAIN);
            assert_eq!(
                words,
                all.split_whitespace().collect::<Vec<&str>>(),
                "{width}"
            );
        }
        let narrow = Look {
            width: Some(50),
            ..PLAIN
        };
        assert!(
            shown(narrow).contains("  ✗ fail  wal_level\n          replica\n          → ALTER")
        );
    }

    #[test]
    fn it_can_be_read_without_letters_beyond_ascii_and_without_colours() {
        let ascii = shown(Look {
            unicode: false,
            ..PLAIN
        });
        assert!(ascii.is_ascii(), "{ascii}");
        for words in [
            "+ ok    version",
            "! look  keep",
            "x fail  wal_level",
            "-> SET it",
            "x 1 thing to repair",
        ] {
            assert!(ascii.contains(words), "{words} in\n{ascii}");
        }
        let painted = shown(Look {
            paint: Paint { color: true },
            ..PLAIN
        });
        assert!(painted.contains("\x1b[1;31m✗ fail\x1b[0m"), "{painted}");
    }

    #[test]
    fn what_asks_for_nothing_is_left_out_where_only_that_is_wanted() {
        let text = checked().attention(Paint::default());
        assert!(
            !text.contains("version") && !text.contains("shop.toml"),
            "{text}"
        );
        assert!(
            text.contains("wal_level") && text.contains("1 thing to repair"),
            "{text}"
        );
    }

    #[test]
    fn programs_get_counts_and_findings() {
        let value = checked().json();
        assert_eq!(value["ok"], false);
        assert_eq!(value["counts"], json!({ "pass": 2, "warn": 1, "fail": 1 }));
        assert_eq!(value["places"][1]["findings"][2]["verdict"], "fail");
    }
}

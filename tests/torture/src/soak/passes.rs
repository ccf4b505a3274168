//! What comparisons have told.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::Value;

/// Of all comparisons that have ended.
#[derive(Debug, Default)]
pub struct Passes {
    /// The latest that has been counted.
    last: Option<u64>,
    /// How many.
    pub ended: u64,
    /// Rows that nothing could be said of.
    pub undecided: u64,
    /// Why comparisons were not completed.
    pub problems: Vec<String>,
    sinks: BTreeMap<String, Told>,
}

/// Of one sink.
#[derive(Debug, Default)]
struct Told {
    compared: u64,
    differing: u64,
    examples: Vec<String>,
    most_lag: Duration,
}

/// Differences that are shown of each sink.
const SHOWN: usize = 5;

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_default()
}

impl Passes {
    /// Of those only that have not begun yet, by an answer to `GET /api/reconcile`: what is under way began while the first copy was.
    pub fn behind(answer: &Value) -> Self {
        let runs = answer.as_array().map(Vec::as_slice).unwrap_or_default();
        Self {
            last: runs.iter().map(|run| number(run, "id")).max(),
            ..Self::default()
        }
    }

    /// Takes in `GET /api/reconcile`.
    pub fn take(&mut self, answer: &Value) {
        let runs = answer.as_array().map(Vec::as_slice).unwrap_or_default();
        let mut done: Vec<&Value> = runs.iter().filter(|run| run["done"] == true).collect();
        done.sort_by_key(|run| number(run, "id"));
        for run in done {
            let id = number(run, "id");
            if self.last.is_some_and(|last| id <= last) {
                continue;
            }
            self.last = Some(id);
            self.ended += 1;
            for report in run["reports"].as_array().into_iter().flatten() {
                self.report(report);
            }
        }
    }

    fn report(&mut self, report: &Value) {
        self.undecided += number(report, "undecided");
        if report["state"] != "done" {
            self.problems
                .push(format!("{}: {}", report["state"], report["problem"]));
        }
        for (name, sink) in report["sinks"].as_object().into_iter().flatten() {
            let told = self.sinks.entry(name.clone()).or_default();
            told.compared += number(sink, "compared");
            // Whatever it is told as: with a letter aside, or mended since.
            let kinds = ["missing", "different", "stale", "extra", "aside"];
            told.differing += kinds.iter().map(|kind| number(sink, kind)).sum::<u64>();
            for drift in sink["drift"].as_array().into_iter().flatten() {
                if told.examples.len() < SHOWN {
                    told.examples.push(drift.to_string());
                }
            }
            if sink["problem"].is_string() || sink["unreadable"] == true || sink["listed"] != true {
                let what = format!("{name}: {} (listed: {})", sink["problem"], sink["listed"]);
                self.problems.push(what);
            }
        }
    }

    /// Takes in the lags of `GET /api/status`.
    pub fn lags(&mut self, status: &Value) {
        for (name, sink) in status["sinks"].as_object().into_iter().flatten() {
            let told = self.sinks.entry(name.clone()).or_default();
            let seconds = sink["lag_seconds"].as_f64().unwrap_or_default();
            told.most_lag = told.most_lag.max(Duration::from_secs_f64(seconds.max(0.0)));
        }
    }

    /// Rows that were compared.
    pub fn compared(&self) -> u64 {
        self.sinks.values().map(|told| told.compared).sum()
    }

    /// Rows that were told to differ.
    pub fn differing(&self) -> u64 {
        self.sinks.values().map(|told| told.differing).sum()
    }

    /// Whether some were completed, and none told anything.
    pub fn are_clean(&self) -> bool {
        self.ended > 0 && self.differing() == 0 && self.problems.is_empty()
    }
}

impl fmt::Display for Passes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| sink | compared | told to differ | most lag, s |")?;
        writeln!(f, "|---|--:|--:|--:|")?;
        for (name, told) in &self.sinks {
            let lag = told.most_lag.as_secs_f64();
            writeln!(
                f,
                "| {name} | {} | {} | {lag:.2} |",
                told.compared, told.differing
            )?;
        }
        for (name, told) in &self.sinks {
            for example in &told.examples {
                writeln!(f, "{name}: {example}")?;
            }
        }
        for problem in self.problems.iter().take(SHOWN) {
            writeln!(f, "problem: {problem}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(id: u64, different: u64, listed: bool) -> Value {
        let sink = json!({"compared": 10, "missing": 0, "different": different, "extra": 0, "aside": 0,
            "problem": null, "unreadable": false, "listed": listed, "drift": []});
        json!({"id": id, "done": true, "reports": [{"state": "done", "undecided": 1, "sinks": {"cache": sink}}]})
    }

    #[test]
    fn each_comparison_counts_once() {
        let mut passes = Passes::default();
        assert!(!passes.are_clean(), "none has ended");
        passes.take(&json!([run(2, 0, true), run(1, 0, true), {"id": 3, "done": false}]));
        passes.take(&json!([run(2, 0, true)]));
        assert_eq!(
            (passes.ended, passes.compared(), passes.undecided),
            (2, 20, 2)
        );
        assert!(passes.are_clean());
        passes.take(&json!([run(3, 1, true)]));
        assert_eq!(passes.differing(), 1);
        assert!(!passes.are_clean());
    }

    #[test]
    fn what_began_before_does_not_count() {
        let mut passes = Passes::behind(&json!([run(1, 0, true), {"id": 2, "done": false}]));
        passes.take(&json!([run(1, 0, true), run(2, 1, false)]));
        assert_eq!((passes.ended, passes.differing()), (0, 0));
        passes.take(&json!([run(3, 0, true)]));
        assert!(passes.are_clean());
    }

    #[test]
    fn what_was_not_done_is_a_problem() {
        let mut passes = Passes::default();
        passes.take(&json!([run(1, 0, false)]));
        assert!(!passes.are_clean() && passes.problems.len() == 1);
    }
}

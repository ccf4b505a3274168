//! `lockstep reconcile`: compares what sinks hold with their sources, through a running pipeline.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::ProgressBar;
use lockstep_core::{Error, ErrorKind};
use lockstep_pipelines::ReconcileRequest;
use serde_json::{Value, json};

use crate::cli::Format;
use crate::client::Client;
use crate::figures::count;
use crate::invariants::{self, Verdict};
use crate::{Outcome, output};

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(300);
/// Rows that are shown of those that differ.
const SHOWN: usize = 20;
/// Exit code when something differs.
const DRIFT: u8 = 3;

/// Who asks, for the record of repairs.
#[must_use]
pub fn asker() -> String {
    std::env::var("USER").unwrap_or_else(|_| "the command line".to_owned())
}

/// A key that was given on the command line: a JSON array of texts, or the text of one value.
#[must_use]
pub fn key(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|_| vec![text.to_owned()])
}

/// What is asked for.
#[derive(Debug, Default)]
pub struct Wanted {
    /// What is to be compared.
    pub request: ReconcileRequest,
    /// Only this invariant, and no comparison.
    pub invariant: Option<String>,
    /// Only the invariants.
    pub invariants_only: bool,
}

/// Asks a running pipeline, and waits for the end. Exit code 0 when all is equal and holds, 3 when something does not, 1 when
/// it cannot be told.
///
/// # Errors
/// When the pipeline cannot be asked, or is restarted meanwhile.
pub async fn reconcile(endpoint: &Client<'_>, wanted: &Wanted, format: Format) -> Outcome {
    let request = &wanted.request;
    // Who asks for a part of the tables asks for that.
    let is_part = [&request.table, &request.sink, &request.source];
    let invariants = match is_part.iter().any(|part| part.is_some()) {
        true => None,
        false => invariants::evaluate(endpoint, wanted.invariant.as_deref()).await?,
    };
    if wanted.invariants_only || wanted.invariant.is_some() {
        return only_invariants(invariants.ok_or_else(invariants::none)?, format);
    }
    let body = serde_json::to_value(request).map_err(unprintable)?;
    let taken = endpoint.post("/api/reconcile", &body).await?;
    let one = follow(endpoint, &taken["id"]).await?;
    tell(one, invariants, format)
}

/// Waits for the end of a comparison.
async fn follow(endpoint: &Client<'_>, id: &Value) -> Result<Value, Error> {
    // On a terminal only.
    let bar = ProgressBar::new_spinner();
    loop {
        let all = endpoint.get("/api/reconcile").await?;
        let found = all
            .as_array()
            .into_iter()
            .flatten()
            .find(|one| one["id"] == *id);
        let Some(one) = found else {
            let what = format!("comparison {id} is not known any more");
            return Err(Error::new(ErrorKind::Unavailable, what)
                .remedy("see the log of the pipeline, which was restarted perhaps"));
        };
        if one["done"] == true {
            bar.finish_and_clear();
            return Ok(one.clone());
        }
        bar.set_message(progress(one));
        bar.tick();
        tokio::time::sleep(LOOK).await;
    }
}

fn tell(mut one: Value, invariants: Option<Value>, format: Format) -> Outcome {
    let told = code(judge(&one), invariants.as_ref());
    match (format, invariants) {
        (Format::Json, invariants) => {
            if let Some(invariants) = invariants {
                one["invariants"] = invariants;
            }
            print_json(&one)?;
        }
        (Format::Table, invariants) => {
            output::print(&table(&one));
            if let Some(invariants) = invariants {
                output::print(&format!(
                    "\n{}",
                    invariants::table(&invariants, now_micros())
                ));
            }
        }
    }
    Ok(told)
}

fn unprintable(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::Protocol, "the report cannot be printed").source(error)
}

/// Tells what is known of invariants, and nothing else.
///
/// # Errors
/// When the report cannot be printed.
fn only_invariants(one: Value, format: Format) -> Outcome {
    let told = code(Verdict::default(), Some(&one));
    match format {
        Format::Json => print_json(&json!({ "invariants": one }))?,
        Format::Table => output::print(&invariants::table(&one, now_micros())),
    }
    Ok(told)
}

fn print_json(one: &Value) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(one).map_err(unprintable)?;
    output::print(&format!("{text}\n"));
    Ok(())
}

/// Microseconds since the Unix epoch.
fn now_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    })
}

fn reports(one: &Value) -> impl Iterator<Item = &Value> {
    one["reports"].as_array().into_iter().flatten()
}

fn sinks(report: &Value) -> impl Iterator<Item = (&String, &Value)> {
    report["sinks"].as_object().into_iter().flatten()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn progress(one: &Value) -> String {
    let now = reports(one).last();
    let at = reports(one).count();
    now.map_or_else(String::new, |report| {
        format!(
            "{}.{} ({at} of {}): {} rows",
            text(&report["source"]),
            text(&report["table"]),
            one["tables"],
            count(number(&report["rows"]))
        )
    })
}

fn differing(sink: &Value) -> u64 {
    let kinds = ["missing", "different", "stale", "extra"];
    kinds.iter().map(|kind| number(&sink[*kind])).sum()
}

/// What differs still.
fn left(sink: &Value) -> u64 {
    differing(sink).saturating_sub(number(&sink["repaired"]))
}

fn code(compared: Verdict, invariants: Option<&Value>) -> ExitCode {
    let invariants = invariants.map(invariants::judge).unwrap_or_default();
    let violated = compared.violated || invariants.violated;
    match (violated, compared.partial || invariants.partial) {
        (true, _) => ExitCode::from(DRIFT),
        (false, true) => ExitCode::FAILURE,
        (false, false) => ExitCode::SUCCESS,
    }
}

fn judge(one: &Value) -> Verdict {
    let drift = reports(one).flat_map(sinks).any(|(_, sink)| left(sink) > 0);
    let is_partial = |report: &Value| {
        report["state"] != "done"
            || number(&report["undecided"]) > 0
            || sinks(report).any(|(_, sink)| sink["problem"].is_string())
    };
    let partial =
        reports(one).any(is_partial) || reports(one).count() as u64 != number(&one["tables"]);
    Verdict {
        violated: drift,
        partial,
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn table(one: &Value) -> String {
    let mut out = format!(
        "{:<28} {:<12} {:>12} {:>9} {:>9} {:>9} {:>9}  result\n",
        "table", "sink", "rows", "missing", "different", "stale", "extra"
    );
    let mut drift = String::new();
    for report in reports(one) {
        let name = format!("{}.{}", text(&report["source"]), text(&report["table"]));
        for (sink, told) in sinks(report) {
            let result = match (told["problem"].as_str(), told["unreadable"] == true) {
                (Some(problem), _) => problem.to_owned(),
                (None, true) => "not compared: it cannot be read by key".to_owned(),
                _ if left(told) > 0 => "differs".to_owned(),
                _ if differing(told) > 0 => "mended".to_owned(),
                _ if told["listed"] != true => {
                    "equal; what should not be there was not looked for".to_owned()
                }
                _ => "equal".to_owned(),
            };
            let aside = match number(&told["aside"]) {
                0 => String::new(),
                rows => format!("; {} have dead letters", count(rows)),
            };
            out += &format!(
                "{name:<28} {sink:<12} {:>12} {:>9} {:>9} {:>9} {:>9}  {result}{aside}\n",
                count(number(&told["compared"])),
                count(number(&told["missing"])),
                count(number(&told["different"])),
                count(number(&told["stale"])),
                count(number(&told["extra"])),
            );
            let rows = told["drift"].as_array().into_iter().flatten();
            for row in rows.take(SHOWN) {
                let mended = if row["repaired"] == true {
                    ": mended"
                } else {
                    ""
                };
                drift += &format!("{name} {sink} {}{mended}\n", row_line(row));
            }
            let left = differing(told).saturating_sub(SHOWN as u64);
            if left > 0 {
                drift += &format!("{name} {sink} … and {} more\n", count(left));
            }
        }
        if let Some(problem) = report["problem"].as_str() {
            out += &format!("{name:<28} {problem}\n");
        }
        let undecided = number(&report["undecided"]);
        if undecided > 0 {
            let rows = count(undecided);
            out +=
                &format!("{name:<28} {rows} rows changed whenever they were read: run it again\n");
        }
    }
    if drift.is_empty() {
        out
    } else {
        format!("{out}\n{drift}")
    }
}

fn row_line(row: &Value) -> String {
    let held_as = text(&row["held_as"]);
    let columns = || {
        let columns = row["columns"].as_array().into_iter().flatten();
        columns.map(text).collect::<Vec<&str>>().join(", ")
    };
    match text(&row["drift"]) {
        "different" => format!("{held_as} differs in {}", columns()),
        "stale" => {
            let held = row["held"].as_str().unwrap_or("an earlier log");
            let after = row["changed_after"].as_str();
            let after = after.map_or_else(String::new, |after| format!(", changed after {after}"));
            format!("{held_as} is stale in {}: of {held}{after}", columns())
        }
        "extra" => format!("{held_as} should not be there"),
        _ => format!("{held_as} is missing"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_is_a_value_or_several() {
        assert_eq!(key("17"), ["17"]);
        assert_eq!(key("a, b"), ["a, b"]);
        assert_eq!(key(r#"["a, b", "17"]"#), ["a, b", "17"]);
        assert_eq!(key("[1,2]"), ["[1,2]"], "an array of the database");
    }

    #[test]
    fn a_stale_row_is_told_with_what_proves_it() {
        let mut row = json!({
            "held_as": "t:1", "drift": "stale", "columns": ["a", "b"], "held": "0/1A2B3C8", "changed_after": "0/1B00000",
        });
        let told = "t:1 is stale in a, b: of 0/1A2B3C8, changed after 0/1B00000";
        assert_eq!(row_line(&row), told);
        for key in ["held", "changed_after"] {
            row.as_object_mut().expect("an object").remove(key);
        }
        assert_eq!(row_line(&row), "t:1 is stale in a, b: of an earlier log");
    }

    #[test]
    fn a_report_is_told_by_table_sink_and_row() {
        let sink = |missing: u64, problem: Value| {
            json!({
                "compared": 10, "missing": missing, "different": 0, "extra": 0, "aside": 0,
                "unreadable": false, "listed": true, "problem": problem,
                "drift": vec![json!({"key": ["1"], "held_as": "t:1", "drift": "missing"}); missing as usize],
            })
        };
        let report = |sink: Value, undecided: u64| {
            json!({"tables": 1, "reports": [{
                "source": "shop", "table": "public.t", "state": "done", "undecided": undecided, "problem": null,
                "sinks": {"cache": sink},
            }]})
        };
        let code = |one: &Value| format!("{:?}", code(judge(one), None));
        let is = |one: &Value, expected: ExitCode| assert_eq!(code(one), format!("{expected:?}"));
        is(&report(sink(0, Value::Null), 0), ExitCode::SUCCESS);
        is(&report(sink(0, Value::Null), 1), ExitCode::FAILURE);
        is(&report(sink(0, json!("away")), 0), ExitCode::FAILURE);
        is(&json!({"tables": 2, "reports": []}), ExitCode::FAILURE);
        let drift = report(sink(22, Value::Null), 0);
        is(&drift, ExitCode::from(DRIFT));
        let mut stale = report(sink(0, Value::Null), 0);
        stale["reports"][0]["sinks"]["cache"]["stale"] = json!(1);
        is(&stale, ExitCode::from(DRIFT));
        let told = table(&drift);
        assert!(
            told.contains("t:1 is missing") && told.contains("… and 2 more"),
            "{told}"
        );
    }
}

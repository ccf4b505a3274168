//! `lockstep reconcile`: compares what sinks hold with their sources, through a running pipeline.

use std::process::ExitCode;
use std::time::Duration;

use indicatif::ProgressBar;
use lockstep_core::{Error, ErrorKind};
use lockstep_pipelines::{Pipeline, ReconcileRequest};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::cli::Format;
use crate::client::Client;
use crate::figures::count;
use crate::run::stop_on_signals;
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

/// Compares through a running pipeline, and waits for the end. Exit code 0 when all is equal, 3 when something differs, 1
/// when it cannot be told.
///
/// # Errors
/// When the pipeline cannot be asked, or is restarted meanwhile.
pub async fn reconcile(
    endpoint: &Client<'_>,
    wanted: &ReconcileRequest,
    format: Format,
) -> Outcome {
    let body = serde_json::to_value(wanted).map_err(unprintable)?;
    let taken = endpoint.post("/api/reconcile", &body).await?;
    let id = taken["id"].as_u64().unwrap_or_default();
    let one = follow(id, async || endpoint.get("/api/reconcile").await).await?;
    tell(&one, format)
}

/// Runs the pipeline in this process, compares, and drains it.
///
/// # Errors
/// The pipeline's; `Busy` when another process runs it.
pub async fn once(mut pipeline: Pipeline, wanted: ReconcileRequest, format: Format) -> Outcome {
    // This one only.
    pipeline.reconcile = None;
    let shutdown = CancellationToken::new();
    stop_on_signals(shutdown.clone())?;
    let running = lockstep_pipelines::start(&pipeline, shutdown.clone()).await?;
    let handle = running.handle();
    let compared = async {
        let id = loop {
            match handle.reconcile(wanted.clone()) {
                Ok(id) => break id,
                Err(error) if handle.ready().is_ok() => return Err(error),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        };
        let all = async || serde_json::to_value(handle.reconciles()).map_err(unprintable);
        follow(id, all).await
    };
    let one = {
        let mut ended = std::pin::pin!(running.wait());
        let one = tokio::select! {
            one = compared => one,
            ended = &mut ended => {
                ended?;
                let message = "the pipeline ended before all was compared";
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
        };
        shutdown.cancel();
        ended.await?;
        one?
    };
    tell(&one, format)
}

/// Waits for the end of a comparison, of which `all` gives the state.
async fn follow(
    id: u64,
    mut all: impl AsyncFnMut() -> Result<Value, Error>,
) -> Result<Value, Error> {
    // On a terminal only.
    let bar = ProgressBar::new_spinner();
    loop {
        let all = all().await?;
        let found = all
            .as_array()
            .into_iter()
            .flatten()
            .find(|one| one["id"] == id);
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

fn unprintable(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::Protocol, "the report cannot be printed").source(error)
}

fn tell(one: &Value, format: Format) -> Outcome {
    match format {
        Format::Json => {
            let text = serde_json::to_string_pretty(one).map_err(unprintable)?;
            output::print(&format!("{text}\n"));
        }
        Format::Table => output::print(&table(one)),
    }
    Ok(judge(one))
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
    number(&sink["missing"]) + number(&sink["different"]) + number(&sink["extra"])
}

/// What differs still.
fn left(sink: &Value) -> u64 {
    differing(sink).saturating_sub(number(&sink["repaired"]))
}

fn judge(one: &Value) -> ExitCode {
    let drift = reports(one).flat_map(sinks).any(|(_, sink)| left(sink) > 0);
    let is_partial = |report: &Value| {
        report["state"] != "done"
            || number(&report["undecided"]) > 0
            || sinks(report).any(|(_, sink)| sink["problem"].is_string())
    };
    let partial =
        reports(one).any(is_partial) || reports(one).count() as u64 != number(&one["tables"]);
    match (drift, partial) {
        (true, _) => ExitCode::from(DRIFT),
        (false, true) => ExitCode::FAILURE,
        (false, false) => ExitCode::SUCCESS,
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn table(one: &Value) -> String {
    let mut out = format!(
        "{:<28} {:<12} {:>12} {:>9} {:>9} {:>9}  result\n",
        "table", "sink", "rows", "missing", "different", "extra"
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
                "{name:<28} {sink:<12} {:>12} {:>9} {:>9} {:>9}  {result}{aside}\n",
                count(number(&told["compared"])),
                count(number(&told["missing"])),
                count(number(&told["different"])),
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
    match text(&row["drift"]) {
        "different" => {
            let columns = row["columns"].as_array().into_iter().flatten();
            let columns: Vec<&str> = columns.map(text).collect();
            format!("{held_as} differs in {}", columns.join(", "))
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
        let code = |one: &Value| format!("{:?}", judge(one));
        let is = |one: &Value, expected: ExitCode| assert_eq!(code(one), format!("{expected:?}"));
        is(&report(sink(0, Value::Null), 0), ExitCode::SUCCESS);
        is(&report(sink(0, Value::Null), 1), ExitCode::FAILURE);
        is(&report(sink(0, json!("away")), 0), ExitCode::FAILURE);
        is(&json!({"tables": 2, "reports": []}), ExitCode::FAILURE);
        let drift = report(sink(22, Value::Null), 0);
        is(&drift, ExitCode::from(DRIFT));
        let told = table(&drift);
        assert!(
            told.contains("t:1 is missing") && told.contains("… and 2 more"),
            "{told}"
        );
    }
}

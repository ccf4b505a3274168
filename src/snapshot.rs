//! `lockstep snapshot`: loads a table again through a running pipeline.

use std::process::ExitCode;
use std::time::Duration;

use indicatif::ProgressBar;
use lockstep_core::config::Secret;
use lockstep_core::source::ReloadRequest;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_pipelines::Pipeline;
use serde_json::{Value, json};

use crate::cli::Format;
use crate::client::Client;
use crate::figures::count;
use crate::{Outcome, output};

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(500);

/// Asks for it, and waits until all rows are durable in every sink if `wait`. Exit code 1 when it was given up.
pub async fn snapshot(
    endpoint: &Client<'_>,
    source: Option<String>,
    request: ReloadRequest,
    wait: bool,
    format: Format,
) -> Outcome {
    let table = request.table.clone();
    let mut body = json!({ "table": request.table, "source": source });
    if let Some(condition) = request.condition {
        body["where"] = condition.into();
    }
    if request.truncate {
        body["truncate"] = true.into();
    }
    let taken = endpoint.post("/api/snapshot", &body).await?;
    let (source, id) = (taken["source"].as_str().unwrap_or_default(), &taken["id"]);
    if !wait {
        match format {
            Format::Json => {
                output::print_json(&told(source, &table, id, &json!({ "state": "taken" })))
            }
            Format::Table => output::print(&format!(
                "{source}: {table} is loaded again, request {id}\n"
            )),
        }
        return Ok(ExitCode::SUCCESS);
    }
    // On a terminal only.
    let bar = ProgressBar::new_spinner();
    loop {
        let all = endpoint.get("/api/snapshot").await?;
        let requests = all[source].as_array().into_iter().flatten();
        let Some(one) = requests.into_iter().find(|one| one["id"] == *id) else {
            let what = format!("request {id} of sources.{source} is not known any more");
            return Err(Error::new(ErrorKind::Unavailable, what)
                .remedy("see the log of the pipeline, which was restarted perhaps"));
        };
        match one["state"].as_str() {
            Some("done") => {
                bar.finish_and_clear();
                match format {
                    Format::Json => output::print_json(&told(source, &table, id, one)),
                    Format::Table => output::print(&done(&table, one)),
                }
                return Ok(ExitCode::SUCCESS);
            }
            Some("failed") => {
                bar.finish_and_clear();
                let problem = one["problem"].as_str().unwrap_or("it was given up");
                return Err(Error::new(ErrorKind::Invalid, problem));
            }
            _ => {
                bar.set_message(format!("{table}: {} rows", number(&one["rows"])));
                bar.tick();
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Where the running pipeline is asked: its URL and token.
///
/// # Errors
/// Of kind `Config`, when it has no admin endpoint.
pub fn endpoint(pipeline: &Pipeline, url: Option<String>) -> Result<(String, Option<&Secret>)> {
    let admin = pipeline.admin.as_ref().ok_or_else(|| {
        Error::new(ErrorKind::Config, "the pipeline has no admin endpoint to ask")
            .remedy("give it an [admin] section and start it again; or write a signal: SELECT pg_logical_emit_message(true, 'lockstep.signal', '{\"type\": \"snapshot\", \"table\": \"schema.table\"}')")
    })?;
    let url = url.unwrap_or_else(|| format!("http://{}", admin.listen));
    Ok((url, admin.token.as_ref()))
}

/// For programs: which load it is, and how far it has come.
fn told(source: &str, table: &str, id: &Value, one: &Value) -> Value {
    json!({
        "source": source,
        "table": table,
        "id": id,
        "state": one["state"],
        "rows": one["rows"],
        "superseded": one["superseded"],
    })
}

fn done(table: &str, one: &Value) -> String {
    let left_out = match one["superseded"].as_u64() {
        None | Some(0) => String::new(),
        Some(rows) => format!(
            "; {} had changed meanwhile and came by the stream",
            count(rows)
        ),
    };
    format!(
        "{table}: {} rows are durable in every sink{left_out}\n",
        number(&one["rows"])
    )
}

fn number(value: &Value) -> String {
    count(value.as_u64().unwrap_or(0))
}

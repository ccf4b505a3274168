//! `lockstep status`: a running pipeline's own words, as a table.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use lockstep_core::{Error, ErrorKind};
use serde_json::Value;

use crate::cli::Format;
use crate::figures::{Paint, Table, bytes, count, duration};
use crate::{Outcome, output};

/// How long the endpoint may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks and prints. Exit code 0 when the pipeline is ready, 1 when it is not.
pub async fn status(url: &str, token: Option<&str>, format: Format) -> Outcome {
    let status = ask(url, token).await?;
    match format {
        Format::Json => output::print(&format!("{status:#}\n")),
        Format::Table => output::print(&table(
            &status,
            Paint {
                color: output::colours(),
            },
        )),
    }
    let ready = status["ready"].as_bool().unwrap_or(false);
    Ok(if ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn ask(url: &str, token: Option<&str>) -> Result<Value, Error> {
    let failed = |error: reqwest::Error| {
        Error::new(ErrorKind::Unavailable, format!("cannot ask {url}"))
            .source(error)
            .remedy("is the pipeline running, with an [admin] section? name its address with --url")
    };
    let client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .build()
        .map_err(failed)?;
    let mut request = client.get(format!("{}/api/status", url.trim_end_matches('/')));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let response = request.send().await.map_err(failed)?;
    match response.status().as_u16() {
        200 => response.json().await.map_err(failed),
        401 => Err(
            Error::new(ErrorKind::Authentication, format!("{url} asks for a token"))
                .remedy("give it with --token or LOCKSTEP_ADMIN_TOKEN"),
        ),
        code => Err(
            Error::new(ErrorKind::Unavailable, format!("{url} answered {code}"))
                .remedy("is it lockstep that listens there?"),
        ),
    }
}

fn table(status: &Value, paint: Paint) -> String {
    let mut out = String::new();
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let number = |value: &Value| value.as_u64().map_or_else(|| "-".to_owned(), count);
    let size = |value: &Value| value.as_u64().map_or_else(|| "-".to_owned(), bytes);
    let ready = status["ready"].as_bool().unwrap_or(false);
    let uptime = Duration::try_from_secs_f64(status["uptime_seconds"].as_f64().unwrap_or(0.0))
        .unwrap_or_default();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{} {}, up {}, {}",
        paint.bold(&text(&status["pipeline"])),
        text(&status["version"]),
        duration(uptime),
        if ready {
            paint.good("ready")
        } else {
            paint.bad("not ready")
        }
    );
    for problem in status["problems"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "  {}", paint.bad(&text(problem)));
    }
    for (name, source) in status["sources"].as_object().into_iter().flatten() {
        if let Some(warning) = source["warning"].as_str() {
            let _ = writeln!(out, "  ! sources.{name}: {warning}");
        }
    }
    let mut sources = Table::new(
        2,
        &["source", "phase", "durable", "lag", "slot keeps", "changes"],
    );
    for (name, source) in status["sources"].as_object().into_iter().flatten() {
        sources.row(vec![
            name.clone(),
            text(&source["phase"]),
            text(&source["durable"]),
            size(&source["lag_bytes"]),
            size(&source["retained_bytes"]),
            number(&source["changes"]),
        ]);
    }
    let mut sinks = Table::new(
        2,
        &[
            "sink",
            "state",
            "lag",
            "in flight",
            "written",
            "stale",
            "restarts",
        ],
    );
    for (name, sink) in status["sinks"].as_object().into_iter().flatten() {
        let lag = Duration::try_from_secs_f64(sink["lag_seconds"].as_f64().unwrap_or(0.0))
            .unwrap_or_default();
        sinks.row(vec![
            name.clone(),
            text(&sink["state"]),
            if lag.is_zero() {
                "none".to_owned()
            } else {
                duration(lag)
            },
            number(&sink["in_flight"]),
            number(&sink["written"]),
            number(&sink["stale"]),
            number(&sink["errors"]),
        ]);
    }
    let _ = write!(out, "\n{}\n{}", sources.render(paint), sinks.render(paint));
    out
}

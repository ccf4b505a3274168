//! `lockstep status`: a running pipeline's own words, as a table.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::cli::Format;
use crate::client::Client;
use crate::figures::{Paint, Table, bytes, count, duration};
use crate::{Outcome, output};

/// Asks and prints. Exit code 0 when the pipeline is ready, 1 when it is not.
pub async fn status(url: &str, token: Option<&str>, format: Format) -> Outcome {
    let status = Client { url, token }.get("/api/status").await?;
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
        // Those with a gap are among the problems.
        let notices = source["notices"].as_array().into_iter().flatten();
        for notice in notices.filter(|notice| notice["gap"] == false) {
            let parts = ["subject", "what", "remedy"].map(|part| text(&notice[part]));
            let _ = writeln!(
                out,
                "  ! sources.{name}: {} {}: {}",
                parts[0], parts[1], parts[2]
            );
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
            "put aside",
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
            number(&sink["dead_letters"]),
        ]);
    }
    let _ = write!(out, "\n{}\n{}", sources.render(paint), sinks.render(paint));
    out
}

//! What a pipeline says of itself, for people.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use super::watch::Rates;
use crate::figures::{Paint, Table, bytes, count, duration, rate};

/// The whole of it; with rates where two looks have told them.
pub fn table(status: &Value, rates: Option<&Rates>, paint: Paint) -> String {
    let mut out = heading(status, paint);
    if status["sources"].is_object() {
        let (sources, sinks) = (sources(status, rates), sinks(status, rates));
        let tables = [sources.render(paint), sinks.render(paint)];
        let _ = write!(out, "\n{}", tables.join("\n"));
    }
    out
}

/// Which pipeline it is, whether it is ready, and what keeps it from that or deserves a look.
fn heading(status: &Value, paint: Paint) -> String {
    let mut out = String::new();
    let lease = lease(&status["lease"]);
    // Writing to a String cannot fail.
    if let Some(error) = status["error"].as_str() {
        let name = paint.bold(&text(&status["pipeline"]));
        let _ = writeln!(out, "{name} {}", lease.unwrap_or_else(|| error.to_owned()));
        return out;
    }
    let uptime = seconds(&status["uptime_seconds"]).unwrap_or_default();
    let _ = writeln!(
        out,
        "{} {}, up {}, {}{}",
        paint.bold(&text(&status["pipeline"])),
        text(&status["version"]),
        duration(uptime),
        match status["ready"] == true {
            true => paint.good("ready"),
            false => paint.bad("not ready"),
        },
        lease.map_or_else(String::new, |lease| format!("; {lease}"))
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
        for copy in copying(source) {
            let _ = writeln!(out, "  sources.{name}: {copy}");
        }
    }
    out
}

/// How the process stands to the lease, where there is one.
fn lease(lease: &Value) -> Option<String> {
    let process = text(&lease["process"]);
    let told = match lease["role"].as_str()? {
        "holder" => format!("{process} holds the lease, token {}", lease["token"]),
        "standby" => format!("{process} is a standby, and waits for the lease"),
        _ => format!("{process} has lost the lease"),
    };
    Some(told)
}

/// How far the copies are that are still made.
fn copying(source: &Value) -> Vec<String> {
    if source["phase"] != "snapshot" {
        return Vec::new();
    }
    let tables = source["snapshot"].as_array().into_iter().flatten();
    let open = tables.filter(|table| table["done"] != true);
    open.map(|table| {
        let (rows, of) = (
            table["rows"].as_u64().unwrap_or(0),
            table["estimated_rows"].as_u64().unwrap_or(0),
        );
        let of = match of > rows {
            true => format!(" of about {}", count(of)),
            false => String::new(),
        };
        format!(
            "copying {}: {}{of} rows",
            text(&table["table"]),
            count(rows)
        )
    })
    .collect()
}

fn sources(status: &Value, rates: Option<&Rates>) -> Table {
    let mut table = Table::new(
        2,
        &[
            "source",
            "phase",
            "durable",
            "lag",
            "slot keeps",
            "changes",
            "per second",
        ],
    );
    for (name, source) in status["sources"].as_object().into_iter().flatten() {
        table.row(vec![
            name.clone(),
            text(&source["phase"]),
            text(&source["durable"]),
            size(&source["lag_bytes"]),
            size(&source["retained_bytes"]),
            number(&source["changes"]),
            speed(rates.and_then(|rates| rates.source(name))),
        ]);
    }
    table.without_last(rates.is_none())
}

fn sinks(status: &Value, rates: Option<&Rates>) -> Table {
    let mut table = Table::new(
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
            "per second",
        ],
    );
    for (name, sink) in status["sinks"].as_object().into_iter().flatten() {
        let lag = seconds(&sink["lag_seconds"]).filter(|lag| !lag.is_zero());
        let cells = vec![
            name.clone(),
            text(&sink["state"]),
            lag.map_or_else(|| "none".to_owned(), duration),
            number(&sink["in_flight"]),
            number(&sink["written"]),
            number(&sink["stale"]),
            number(&sink["errors"]),
            number(&sink["dead_letters"]),
            speed(rates.and_then(|rates| rates.sink(name))),
        ];
        match sink["problem"].is_string() {
            true => table.bad_row(cells),
            false => table.row(cells),
        }
    }
    table.without_last(rates.is_none())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

fn number(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), count)
}

fn size(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), bytes)
}

fn speed(per_second: Option<f64>) -> String {
    per_second.map_or_else(|| "-".to_owned(), rate)
}

fn seconds(value: &Value) -> Option<Duration> {
    Duration::try_from_secs_f64(value.as_f64()?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Value {
        json!({
            "pipeline": "shop", "version": "0.1.0", "uptime_seconds": 65.0, "ready": true, "problems": [],
            "sources": { "orders": {
                "phase": "streaming", "durable": "0/1A2B3C8", "lag_bytes": 1_500, "retained_bytes": 12_345_678,
                "changes": 1_234_567, "notices": [], "warning": null,
            } },
            "sinks": { "cache": {
                "state": "running", "lag_seconds": 0.0, "in_flight": 2, "written": 1_000, "stale": 0, "errors": 0,
                "dead_letters": 3, "problem": null,
            } },
        })
    }

    #[test]
    fn it_reads_well() {
        let expected = "\
shop 0.1.0, up 1 min 05 s, ready

  source  phase        durable     lag  slot keeps    changes
  orders  streaming  0/1A2B3C8  1.5 kB     12.3 MB  1,234,567

  sink   state     lag  in flight  written  stale  restarts  put aside
  cache  running  none          2    1,000      0         0          3
";
        let text = table(&status(), None, Paint::default());
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn the_lease_and_copies_are_told() {
        let mut status = status();
        status["lease"] =
            json!({ "role": "holder", "process": "a pid 7", "token": 3, "left_seconds": 8.0 });
        status["sources"]["orders"]["phase"] = "snapshot".into();
        status["sources"]["orders"]["snapshot"] = json!([
            { "table": "public.a", "rows": 12_000, "estimated_rows": 20_000, "done": false },
            { "table": "public.b", "rows": 9, "estimated_rows": 9, "done": true },
        ]);
        let text = table(&status, None, Paint::default());
        assert!(
            text.contains("ready; a pid 7 holds the lease, token 3\n"),
            "{text}"
        );
        assert!(
            text.contains("  sources.orders: copying public.a: 12,000 of about 20,000 rows\n"),
            "{text}"
        );
        assert!(!text.contains("public.b"), "{text}");
        let standby = json!({
            "error": "LS003 …", "pipeline": "shop", "lease": { "role": "standby", "process": "b pid 8", "token": null },
        });
        let text = table(&standby, None, Paint::default());
        assert_eq!(text, "shop b pid 8 is a standby, and waits for the lease\n");
    }
}

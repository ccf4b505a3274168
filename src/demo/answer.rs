//! What the demo says at its end, for programs. Times are in seconds, sizes in bytes.

use std::time::Duration;

use serde_json::{Value, json};

use super::load::Event;
use super::summary::{Latency, Summary, Verdict};

/// The whole summary.
pub fn json(summary: &Summary) -> Value {
    let events = Event::ALL.iter().map(|&event| {
        let name = event.label(2).replace(' ', "_");
        (name, Value::from(summary.shop.event(event)))
    });
    let tables = summary.tables.iter().map(|table| {
        json!({
            "source": table.source,
            "table": table.table,
            "copied": table.reads,
            "inserts": table.inserts,
            "updates": table.updates,
            "deletes": table.deletes,
        })
    });
    let sinks = summary.sinks.iter().map(|sink| {
        json!({
            "sink": sink.name,
            "type": sink.kind,
            "records": sink.records,
            "stale": sink.stale,
            "bytes": sink.bytes,
            "latency": latency(sink.latency.as_ref()),
            "restarts": sink.restarts,
        })
    });
    let compared = summary.compared.iter().map(|one| {
        json!({
            "sink": one.sink,
            "source": one.source,
            "table": one.table,
            "rows": one.rows,
            "same": one.same,
            "missing": one.missing,
            "different": one.different,
            "extra": one.extra,
            "examples": one.examples,
        })
    });
    json!({
        "verdict": match summary.verdict() {
            Verdict::Equal => "equal",
            Verdict::Differs => "differs",
            Verdict::Unknown => "unknown",
        },
        "problem": summary.not_compared,
        "seconds": summary.elapsed.as_secs_f64(),
        "shop": events.collect::<serde_json::Map<String, Value>>(),
        "two_phase": {
            "committed": summary.both.committed,
            "deciding_seconds": summary.both.deciding.as_ref().map(Duration::as_secs_f64),
            "stitched": summary.both.stitched,
            "apart": summary.both.apart,
            "held_back": latency(summary.both.hold.as_ref()),
        },
        "changes": tables.collect::<Vec<_>>(),
        "sinks": sinks.collect::<Vec<_>>(),
        "most_changes_per_second": summary.top_rate,
        "memory_bytes": summary.memory,
        "cpu_seconds": summary.cpu.as_ref().map(Duration::as_secs_f64),
        "duplicates": summary.duplicates,
        "compared": compared.collect::<Vec<_>>(),
    })
}

fn latency(latency: Option<&Latency>) -> Value {
    latency.map_or(Value::Null, |latency| {
        json!({ "p50_seconds": latency.p50.as_secs_f64(), "p99_seconds": latency.p99.as_secs_f64() })
    })
}

#[cfg(test)]
mod tests {
    use super::super::compare::Compared;
    use super::*;

    #[test]
    fn programs_get_the_verdict_and_what_it_is_of() {
        let compared = Compared {
            sink: "cache".into(),
            source: "orders".into(),
            table: "orders".into(),
            rows: 10,
            same: 9,
            missing: 1,
            ..Compared::default()
        };
        let told = json(&Summary {
            elapsed: Duration::from_millis(1_500),
            compared: vec![compared],
            ..Summary::default()
        });
        assert_eq!(told["verdict"], "differs");
        assert_eq!(told["seconds"], 1.5);
        assert_eq!(told["compared"][0]["missing"], 1);
        assert!(told["two_phase"]["held_back"].is_null());
        assert_eq!(json(&Summary::default())["verdict"], "unknown");
    }
}

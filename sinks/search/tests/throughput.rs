//! How many rows a second the sinks take: `cargo test --release --features tantivy --test throughput -- --ignored
//! --nocapture --test-threads 1`.
#![allow(clippy::print_stdout, reason = "the figures are for a person")]

mod support;

use std::sync::Arc;
use std::time::Instant;

use lockstep_core::batch::Batch;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::Sink;
use serde_json::json;
use support::*;

const ROWS: usize = 100_000;
const BATCH: usize = 1_000;

fn payments() -> Arc<TableSchema> {
    table(
        "shop",
        "payments",
        1,
        &[
            ("id", "int8", INT8),
            ("order_id", "int8", INT8),
            ("status", "text", TEXT),
            ("method", "text", TEXT),
            ("amount", "numeric", NUMERIC),
            ("currency", "text", TEXT),
            ("captured", "bool", BOOL),
            ("created_at", "timestamptz", TIMESTAMPTZ),
            ("details", "jsonb", JSONB),
        ],
    )
}

/// Inserts, or updates of the same rows.
fn batches(start: u64, status: &str) -> Vec<Arc<Batch>> {
    let (source, payments) = (source("shop"), payments());
    let mut batches = Vec::new();
    for part in 0..ROWS / BATCH {
        let mut feed = Feed::new(&source);
        feed.begin(start + part as u64 * 100);
        for row in 0..BATCH {
            let id = (part * BATCH + row).to_string();
            let order = (part * BATCH + row / 2).to_string();
            let row: [V<'_>; 9] = [
                V::Text(&id),
                V::Text(&order),
                V::Text(status),
                "card".into(),
                "129.90".into(),
                "EUR".into(),
                "t".into(),
                "2024-05-06 07:08:09.123456+00".into(),
                r#"{"network": "visa", "attempt": 1, "risk": 0.12}"#.into(),
            ];
            feed.update(&payments, &row);
        }
        batches.push(feed.finish());
    }
    batches
}

async fn measure(name: &str, mut sink: Box<dyn Sink>) {
    for (what, batches) in [
        ("new rows", batches(1_000, "captured")),
        ("changed rows", batches(1_000_000, "refunded")),
    ] {
        let began = (Instant::now(), cpu());
        let mut waiting = std::collections::VecDeque::new();
        for batch in batches {
            waiting.push_back(sink.write(batch).await.expect("taken"));
            if waiting.len() > 32
                && let Some(durable) = waiting.pop_front()
            {
                durable.await.expect("durable");
            }
        }
        for durable in waiting {
            durable.await.expect("durable");
        }
        let (wall, cpu) = (began.0.elapsed().as_secs_f64(), cpu() - began.1);
        println!(
            "{name}, {what}: {:.0} rows/s, {:.1} CPU-µs per row in this process",
            ROWS as f64 / wall,
            cpu * 1e6 / ROWS as f64
        );
    }
    let began = Instant::now();
    let one = batches(3_000_000, "late").swap_remove(0);
    let one = Arc::new(one.with_changes(one.changes()[..1].to_vec()));
    put_ok(&mut sink, one).await;
    println!("{name}: one row is durable after {:?}", began.elapsed());
    sink.close().await.expect("closed");
}

/// CPU seconds of this process, in user and kernel mode.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let after_name = stat.rsplit(')').next().expect("fields");
    let fields: Vec<_> = after_name.split_whitespace().collect();
    let ticks: f64 = fields[11..13]
        .iter()
        .map(|ticks| ticks.parse::<f64>().expect("a number"))
        .sum();
    ticks / 100.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn opensearch() {
    use lockstep_sink_search::opensearch::OpenSearch;
    lockstep_kit::require!(lockstep_kit::Component::OpenSearch);
    let server = lockstep_kit::opensearch::OpenSearch::shared().await;
    for concurrency in [1, 2, 3] {
        let config = json!({
            "url": server.url(),
            "index": format!("{}-{{table}}", lockstep_kit::unique("speed")),
            "concurrency": concurrency,
        });
        let sink = open::<OpenSearch>(config, &source("shop"), &[&payments()]).await;
        measure(&format!("opensearch, concurrency {concurrency}"), sink).await;
    }
}

#[cfg(feature = "tantivy")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn tantivy() {
    use lockstep_sink_search::tantivy::Tantivy;
    for interval in ["250ms", "500ms", "2s"] {
        let dir = tempfile::tempdir().expect("a folder");
        let config = json!({"path": dir.path(), "commit_interval": interval});
        let sink = open::<Tantivy>(config, &source("shop"), &[]).await;
        measure(&format!("tantivy, commits every {interval}"), sink).await;
    }
}

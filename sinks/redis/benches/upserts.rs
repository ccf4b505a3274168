//! How fast rows reach a Redis on this machine, and what that costs: `cargo bench -p lockstep-sink-redis`.
//!
//! The rows are nine columns, about 300 bytes as JSON. CPU is user and system time of this process alone, from
//! `/proc/self/stat`, and of the server, from `INFO cpu`. `LOCKSTEP_BENCH_ROWS` sets how many rows (default 300,000).

#![allow(clippy::print_stdout, reason = "the table is what this program is for")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_core::batch::Batch;
use lockstep_core::durable::Durable;
use lockstep_core::schema::TableSchema;
use lockstep_kit::redis::{Redis, RedisOptions};
use lockstep_kit::redis_cluster::RedisCluster;
use redis::Value;
use serde_json::json;
use support::{Lab, Maker, Null, T, table};

/// Keys that the writes are spread over.
const KEYS: u64 = 200_000;
/// Batches under way at a time, as the runtime keeps them.
const UNDER_WAY: usize = 8;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let rows = std::env::var("LOCKSTEP_BENCH_ROWS")
            .map_or(300_000, |text| text.parse().expect("a number"));
        println!(
            "{:<34} {:>10} {:>12} {:>12}",
            "", "upserts/s", "CPU-µs here", "CPU-µs Redis"
        );
        let server = Redis::start(RedisOptions::default()).await;
        for (name, per_batch, more) in [
            ("json, 1000 changes per batch", 1000, json!({})),
            ("json, 100 changes per batch", 100, json!({})),
            ("json, 1 change per batch", 1, json!({})),
            (
                "json with ttl, 1000 per batch",
                1000,
                json!({ "ttl": "7d" }),
            ),
            (
                "hash, 1000 changes per batch",
                1000,
                json!({ "value": "hash" }),
            ),
        ] {
            let lab = Lab::single(server.url(), more).await;
            throughput(
                name,
                &lab,
                rows / if per_batch == 1 { 5 } else { 1 },
                per_batch,
            )
            .await;
            lab.ask(&["FLUSHALL", "ASYNC"]).await;
        }
        let lab = Lab::single(server.url(), json!({})).await;
        for together in [false, true] {
            pairs(&lab, rows / 10, together).await;
            lab.ask(&["FLUSHALL", "ASYNC"]).await;
        }
        latency(&lab).await;
        let cluster = RedisCluster::start().await;
        let lab = Lab::cluster(&cluster.urls(), json!({})).await;
        throughput("json, cluster, 1000 per batch", &lab, rows / 4, 1000).await;
    });
}

fn shop_table() -> Arc<TableSchema> {
    let columns = [
        ("id", 20, "int8"),
        ("customer_id", 20, "int8"),
        ("status", 25, "text"),
        ("total", 1700, "numeric"),
        ("currency", 25, "text"),
        ("note", 25, "text"),
        ("created_at", 1184, "timestamptz"),
        ("updated_at", 1184, "timestamptz"),
        ("paid", 16, "bool"),
    ];
    table("shop", "orders", &columns)
}

fn batches(lab: &Lab, rows: u64, per_batch: u64) -> Vec<Arc<Batch>> {
    let orders = shop_table();
    let note = "a note of the usual length that a person writes to a shop, eighty letters or so";
    let mut number = 0;
    (0..rows / per_batch)
        .map(|commit| {
            let mut maker = lab.make().commit(commit + 1);
            for _ in 0..per_batch {
                number += 1;
                // Spread as orders are touched, never twice in a batch.
                let id = (number * 7919 % KEYS).to_string();
                let customer = (number % 5000).to_string();
                let time = T("2026-03-01 12:34:56.789012+00");
                let row = [
                    T(&id),
                    T(&customer),
                    T("paid"),
                    T("129.90"),
                    T("EUR"),
                    T(note),
                    time,
                    time,
                    T("t"),
                ];
                maker = maker.update(&orders, &row);
            }
            maker.stream()
        })
        .collect()
}

async fn throughput(name: &str, lab: &Lab, rows: u64, per_batch: u64) {
    let batches = batches(lab, rows, per_batch);
    let mut sink = lab.open().await;
    let (cpu, server_before, begun) = (own_cpu(), server_cpu(lab).await, Instant::now());
    let mut under_way: VecDeque<Durable> = VecDeque::new();
    for batch in &batches {
        if under_way.len() >= UNDER_WAY.max(4096 / per_batch as usize) {
            under_way
                .pop_front()
                .expect("it is not empty")
                .await
                .expect("durable");
        }
        under_way.push_back(sink.write(Arc::clone(batch)).await.expect("taken"));
    }
    for durable in under_way {
        durable.await.expect("durable");
    }
    let took = begun.elapsed().as_secs_f64();
    let each = |seconds: f64| seconds * 1e6 / rows as f64;
    println!(
        "{name:<34} {:>10.0} {:>12.2} {:>12.2}",
        rows as f64 / took,
        each(own_cpu() - cpu),
        each(server_cpu(lab).await - server_before),
    );
    sink.close().await.expect("closes");
}

/// Purchases of two branches with five changes each: written one behind the other, or together.
async fn pairs(lab: &Lab, count: u64, together: bool) {
    let (orders, shelf) = (shop_table(), support::orders("stock"));
    let stock = support::source("stock", &lab.prefix);
    let mut sink = lab.open().await;
    let purchase = |commit: u64| {
        let (mut order, mut shelved) = (lab.make(), Maker::new(&stock));
        (order, shelved) = (order.commit(commit), shelved.commit(commit));
        for number in 0..5 {
            let id = ((commit * 5 + number) * 7919 % KEYS).to_string();
            let time = T("2026-03-01 12:34:56.789012+00");
            let row = [
                T(&id),
                T("1"),
                T("paid"),
                T("129.90"),
                T("EUR"),
                T("a note"),
                time,
                time,
            ];
            order = order.update(&orders, &[&row[..], &[T("t")]].concat());
            shelved = shelved.update(&shelf, &[T(&id), T("paid"), T("a note"), T("129.90")]);
        }
        vec![order.stream(), shelved.stream()]
    };
    let purchases: Vec<_> = (1..=count / 10).map(purchase).collect();
    let (cpu, server_before, begun) = (own_cpu(), server_cpu(lab).await, Instant::now());
    let mut under_way: VecDeque<Durable> = VecDeque::new();
    for parts in purchases {
        while under_way.len() >= 1024 {
            let oldest = under_way.pop_front().expect("it is not empty");
            oldest.await.expect("durable");
        }
        if together {
            under_way.extend(sink.write_together(parts).await.expect("taken"));
            continue;
        }
        for part in parts {
            under_way.push_back(sink.write(part).await.expect("taken"));
        }
    }
    for durable in under_way {
        durable.await.expect("durable");
    }
    let took = begun.elapsed().as_secs_f64();
    let each = |seconds: f64| seconds * 1e6 / count as f64;
    let name = match together {
        true => "json, two branches together",
        false => "json, two branches apart",
    };
    println!(
        "{name:<34} {:>10.0} {:>12.2} {:>12.2}",
        count as f64 / took,
        each(own_cpu() - cpu),
        each(server_cpu(lab).await - server_before),
    );
    sink.close().await.expect("closes");
}

/// One change at a time on an idle connection: from `write` to durable.
async fn latency(lab: &Lab) {
    let orders = support::orders("shop");
    let mut sink = lab.open().await;
    let mut times: Vec<Duration> = Vec::new();
    for commit in 1..=2000_u64 {
        let id = commit.to_string();
        let batch = lab
            .make()
            .commit(commit)
            .update(&orders, &[T(&id), T("x"), Null, Null])
            .stream();
        let begun = Instant::now();
        sink.write(batch)
            .await
            .expect("taken")
            .await
            .expect("durable");
        times.push(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    times.sort();
    println!(
        "one change, idle: p50 {:?}, p99 {:?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    );
}

/// User and system time of this process, in seconds.
fn own_cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    // After the command, which is in parentheses, come state, ppid, …; utime and stime are the 12th and 13th of them, in
    // hundredths of a second.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |index: usize| fields[index].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / 100.0
}

/// User and system time of the server, in seconds; 0 for a cluster.
async fn server_cpu(lab: &Lab) -> f64 {
    if lab.config.cluster {
        return 0.0;
    }
    let Value::BulkString(info) = lab.ask(&["INFO", "cpu"]).await else {
        return 0.0;
    };
    let info = String::from_utf8_lossy(&info).into_owned();
    let field = |name: &str| {
        info.lines()
            .find_map(|line| {
                line.strip_prefix(name)?
                    .strip_prefix(':')?
                    .trim()
                    .parse::<f64>()
                    .ok()
            })
            .unwrap_or(0.0)
    };
    field("used_cpu_sys") + field("used_cpu_user")
}

//! What a record costs this process, and how long one takes from write to durable. Run by hand:
//! `cargo test --release -p lockstep-sink-kafka --test broker rate -- --ignored --nocapture`

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lockstep_kit::kafka::Kafka;
use lockstep_kit::{Component, require, unique};

use crate::support::{Feed, config, insert, open};

/// User and system time of this process by thread, which counts none of the broker's.
fn cpu() -> BTreeMap<String, Duration> {
    let mut used = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").expect("tasks") {
        // A thread may end in between.
        let stat =
            std::fs::read_to_string(task.expect("task").path().join("stat")).unwrap_or_default();
        let Some((name, fields)) = stat.rsplit_once(')') else {
            continue;
        };
        let name = name.split_once('(').map_or("", |(_, name)| name);
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().expect("ticks"))
            .sum();
        // USER_HZ is 100 on every Linux.
        *used.entry(name.to_owned()).or_default() += Duration::from_millis(ticks * 10);
    }
    used
}

/// What was used since `before`, for each of `count`: the sum, then the threads.
fn each(before: &BTreeMap<String, Duration>, count: u64) -> String {
    let micros = |used: Duration| used.as_secs_f64() * 1e6 / count as f64;
    let used: Vec<(String, f64)> = cpu()
        .into_iter()
        .map(|(name, now)| {
            let spent = now.saturating_sub(before.get(&name).copied().unwrap_or_default());
            (name, micros(spent))
        })
        .filter(|(_, micros)| *micros >= 0.01)
        .collect();
    let sum: f64 = used.iter().map(|(_, micros)| micros).sum();
    let threads: Vec<_> = used
        .iter()
        .map(|(name, micros)| format!("{name} {micros:.2}"))
        .collect();
    format!("{sum:.2} us CPU each ({})", threads.join(", "))
}

/// `LOCKSTEP_TEST_KAFKA_PROPERTIES='{"linger.ms":5}'` to try one out.
fn properties(codec: &str) -> serde_json::Value {
    let more = std::env::var("LOCKSTEP_TEST_KAFKA_PROPERTIES").unwrap_or_else(|_| "{}".to_owned());
    let mut properties: serde_json::Value = serde_json::from_str(&more).expect("JSON");
    properties["compression.type"] = codec.into();
    properties
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement"]
async fn records_per_second() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let note = "n".repeat(200);
    for exactly_once in [true, false] {
        for (codec, size) in [("none", 1000), ("lz4", 1000), ("none", 1)] {
            let prefix = unique("rate");
            let feed = Feed::new(&prefix);
            let more =
                serde_json::json!({"exactly_once": exactly_once, "properties": properties(codec)});
            let config = config(kafka.bootstrap(), &prefix, &more);
            let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
            let events: Vec<_> = (0..size).map(|n| insert(n, &note)).collect();
            let batches: Vec<_> = (0..1_000_000 / 10 / size)
                .map(|n| feed.batch(n + 1, &events))
                .collect();
            let total = 10 * batches.len() as u64 * size;
            let (began, used) = (Instant::now(), cpu());
            let mut receipts = Vec::with_capacity(batches.len() * 10);
            for batch in batches.iter().cycle().take(batches.len() * 10) {
                receipts.push(
                    sink.write(std::sync::Arc::clone(batch))
                        .await
                        .expect("taken"),
                );
            }
            for durable in receipts {
                durable.await.expect("durable");
            }
            println!(
                "exactly_once={exactly_once} codec={codec} {size} a batch: {:.0} records/s, {}",
                total as f64 / began.elapsed().as_secs_f64(),
                each(&used, total)
            );
            sink.close().await.expect("closes");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement"]
async fn latency() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    for exactly_once in [true, false] {
        let prefix = unique("latency");
        let feed = Feed::new(&prefix);
        let config = config(
            kafka.bootstrap(),
            &prefix,
            &serde_json::json!({"exactly_once": exactly_once, "properties": properties("none")}),
        );
        let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
        let mut times = Vec::new();
        let used = cpu();
        for commit in 1..=500 {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let began = Instant::now();
            let durable = sink
                .write(feed.batch(commit, &[insert(1, "x")]))
                .await
                .expect("taken");
            durable.await.expect("durable");
            times.push(began.elapsed());
        }
        times.sort();
        println!(
            "exactly_once={exactly_once}: idle write to durable p50 {:?} p99 {:?}, {}",
            times[250],
            times[495],
            each(&used, 500)
        );
        sink.close().await.expect("closes");
    }
}

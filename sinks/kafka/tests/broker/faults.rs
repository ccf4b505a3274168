//! The broker dies, the network breaks.

use std::sync::Arc;
use std::time::Duration;

use lockstep_core::error::Policy;
use lockstep_core::{ErrorKind, Result};
use lockstep_kit::kafka::{Kafka, KafkaOptions};
use lockstep_kit::{Component, require, unique};
use lockstep_sink_kafka::KafkaConfig;

use crate::replay::{End, History};
use crate::support::{Feed, Random, config, insert, open, read};

/// Runs a history to its end as the runtime does: errors that pass are waited out.
async fn run_to_end(history: &History, config: &KafkaConfig, pipeline: &str) -> usize {
    let mut confirmed = None;
    let mut failures = 0;
    loop {
        match history.run(config, pipeline, &mut confirmed, None).await {
            End::Complete => return failures,
            End::Dropped => unreachable!(),
            End::Failed(error) => {
                assert_eq!(error.kind().policy(), Policy::Retry, "{error}");
                failures += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_and_restarted_under_load_loses_and_doubles_nothing() {
    require!(Component::Kafka);
    // Each record is on disk before it is acknowledged: the one broker of the test has no replica that remembers.
    let settings = vec![("log.flush.interval.messages".to_owned(), "1".to_owned())];
    let kafka = Kafka::start(KafkaOptions {
        settings,
        ..KafkaOptions::default()
    })
    .await;
    let prefix = unique("killed");
    let more =
        serde_json::json!({"commit_records": 500, "commit_interval": "20ms", "format": "flat"});
    let config = config(kafka.bootstrap(), &prefix, &more);
    let history = Arc::new(History::new(Feed::new(&prefix), 8_000, &mut Random::new()));
    let running = tokio::spawn({
        let (history, config, prefix) = (Arc::clone(&history), config.clone(), prefix.clone());
        async move { run_to_end(&history, &config, &prefix).await }
    });
    let mut random = Random::new();
    let mut kills = 0;
    while kills < 2 {
        tokio::time::sleep(Duration::from_millis(500 + random.below(1500))).await;
        if running.is_finished() {
            break;
        }
        kafka.kill();
        kills += 1;
        kafka.restart().await;
    }
    let failures = running.await.expect("joined");
    println!(
        "{kills} kills, {failures} failures reported, {} changes",
        history.changes()
    );
    assert!(kills > 0, "the load was over before the first kill");
    history.check(&read(kafka.bootstrap(), &history.feed.topic()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_lose_and_double_nothing() {
    require!(Component::Kafka);
    let kafka = Kafka::start(KafkaOptions {
        proxy: true,
        ..KafkaOptions::default()
    })
    .await;
    let prefix = unique("cut");
    let more =
        serde_json::json!({"commit_records": 500, "commit_interval": "20ms", "format": "flat"});
    let config = config(&kafka.proxied_bootstrap(), &prefix, &more);
    let history = Arc::new(History::new(Feed::new(&prefix), 4_000, &mut Random::new()));
    let running = tokio::spawn({
        let (history, config, prefix) = (Arc::clone(&history), config.clone(), prefix.clone());
        async move { run_to_end(&history, &config, &prefix).await }
    });
    let mut random = Random::new();
    let mut cuts = 0;
    // Not for ever: clients wait longer and longer before they connect again.
    while cuts < 15 && !running.is_finished() {
        tokio::time::sleep(Duration::from_millis(100 + random.below(400))).await;
        kafka.proxy().cut();
        cuts += 1;
    }
    let failures = running.await.expect("joined");
    println!(
        "{cuts} cuts, {failures} failures reported, {} changes",
        history.changes()
    );
    history.check(&read(kafka.bootstrap(), &history.feed.topic()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_down_is_unavailable() -> Result<()> {
    let feed = Feed::new("down");
    let config = config("127.0.0.1:1", "down", &serde_json::json!({}));
    let Err(error) = open(&config, "down", &[&feed]).await else {
        panic!("there is no broker");
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_reported_and_nothing_counts_as_durable() {
    require!(Component::Kafka);
    let kafka = Kafka::start(KafkaOptions {
        proxy: true,
        ..KafkaOptions::default()
    })
    .await;
    for exactly_once in [true, false] {
        let prefix = unique("outage");
        let feed = Feed::new(&prefix);
        let timeout = match exactly_once {
            true => "transaction.timeout.ms",
            false => "message.timeout.ms",
        };
        let more = serde_json::json!({"exactly_once": exactly_once, "properties": {timeout: 3000}});
        let config = config(&kafka.proxied_bootstrap(), &prefix, &more);
        let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
        sink.write(feed.batch(1, &[insert(1, "a")]))
            .await
            .expect("taken")
            .await
            .expect("durable");
        kafka.proxy().down().await;
        let durable = sink
            .write(feed.batch(2, &[insert(1, "b")]))
            .await
            .expect("taken");
        let error = durable.await.expect_err("nobody answers");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        drop(sink);
        kafka.proxy().refuse(false).await;
        let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
        sink.write(feed.batch(2, &[insert(1, "b")]))
            .await
            .expect("taken")
            .await
            .expect("durable");
        sink.close().await.expect("closes");
        let seen = read(kafka.bootstrap(), &feed.topic()).await;
        assert_eq!(seen.len(), 2, "exactly_once = {exactly_once}");
    }
}

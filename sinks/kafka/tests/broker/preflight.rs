//! What `lockstep check` says.

use lockstep_core::check::Verdict;
use lockstep_core::sink::SinkFactory;
use lockstep_kit::kafka::Kafka;
use lockstep_kit::{Component, require, unique};
use lockstep_sink_kafka::KafkaSinkFactory;
use rdkafka::consumer::Consumer;

use crate::support::{DEADLINE, Feed, config, consumer, insert, open};

#[tokio::test(flavor = "multi_thread")]
async fn a_good_cluster_passes_and_is_not_changed() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let prefix = unique("check");
    let more = serde_json::json!({"topic": format!("{prefix}.{{table}}")});
    let config = config(kafka.bootstrap(), &prefix, &more);
    let findings = KafkaSinkFactory::preflight(&config, &prefix, "events").await;
    for finding in &findings {
        assert_eq!(finding.verdict, Verdict::Pass, "{finding:?}");
    }
    let subjects: Vec<_> = findings.iter().map(|finding| &*finding.subject).collect();
    assert_eq!(subjects.len(), 5, "{subjects:?}");
    let all = tokio::task::spawn_blocking({
        let bootstrap = kafka.bootstrap().to_owned();
        move || {
            consumer(&bootstrap, "read_committed")
                .fetch_metadata(None, DEADLINE)
                .expect("metadata")
        }
    });
    let all = all.await.expect("reader");
    let ours: Vec<_> = all
        .topics()
        .iter()
        .filter(|topic| topic.name().contains(&prefix))
        .map(|topic| topic.name().to_owned())
        .collect();
    assert!(ours.is_empty(), "it created {ours:?}");
    assert!(
        !all.topics()
            .iter()
            .any(|topic| topic.name() == "lockstep.check")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_sink_is_not_fenced() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let prefix = unique("check_running");
    let feed = Feed::new(&prefix);
    let config = config(kafka.bootstrap(), &prefix, &serde_json::json!({}));
    let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
    sink.write(feed.batch(1, &[insert(1, "a")]))
        .await
        .expect("taken")
        .await
        .expect("durable");
    KafkaSinkFactory::preflight(&config, &prefix, "events").await;
    sink.write(feed.batch(2, &[insert(1, "b")]))
        .await
        .expect("taken")
        .await
        .expect("durable");
    sink.close().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_broker_is_a_finding_with_a_remedy() {
    let config = config("127.0.0.1:1", "nobody", &serde_json::json!({}));
    let findings = KafkaSinkFactory::preflight(&config, "p", "events").await;
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].verdict, Verdict::Fail);
    assert!(
        findings[0].detail.contains("127.0.0.1:1") && findings[0].remedy.is_some(),
        "{findings:?}"
    );
}

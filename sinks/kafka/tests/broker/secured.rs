//! A broker that asks who we are and what we may do.

use lockstep_core::ErrorKind;
use lockstep_core::check::Verdict;
use lockstep_core::sink::SinkFactory;
use lockstep_kit::kafka::{Kafka, KafkaOptions};
use lockstep_kit::{Component, require, unique};
use lockstep_sink_kafka::{KafkaConfig, KafkaSinkFactory};

use crate::support::{Feed, config, insert, open, read};

/// The plain listener is for a superuser; the proxied one knows two users, of whom `root` may do everything and `guest` nothing.
async fn start() -> Kafka {
    let settings = [
        (
            "listener.security.protocol.map",
            "PLAINTEXT:PLAINTEXT,PROXIED:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
        ),
        ("listener.name.proxied.sasl.enabled.mechanisms", "PLAIN"),
        (
            "listener.name.proxied.plain.sasl.jaas.config",
            "org.apache.kafka.common.security.plain.PlainLoginModule required user_root=\"open-sesame\" user_guest=\"hello\";",
        ),
        (
            "authorizer.class.name",
            "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        ),
        ("super.users", "User:ANONYMOUS;User:root"),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Kafka::start(KafkaOptions {
        settings: settings.into(),
        proxy: true,
    })
    .await
}

fn as_user(kafka: &Kafka, prefix: &str, user: &str, password: &str) -> KafkaConfig {
    let properties = serde_json::json!({
        "security.protocol": "sasl_plaintext",
        "sasl.mechanism": "PLAIN",
        "sasl.username": user,
        "sasl.password": password,
    });
    let more = serde_json::json!({ "properties": properties });
    config(&kafka.proxied_bootstrap(), prefix, &more)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_we_are_and_what_we_may_do() {
    require!(Component::Kafka);
    let kafka = start().await;
    let prefix = unique("secured");
    let feed = Feed::new(&prefix);

    let wrong = as_user(&kafka, &prefix, "root", "hunter2");
    let error = open(&wrong, &prefix, &[&feed])
        .await
        .err()
        .expect("wrong password");
    assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
    assert!(
        !error.to_string().contains("hunter2") && error.remedy_text().is_some(),
        "{error}"
    );
    let findings = KafkaSinkFactory::preflight(&wrong, &prefix, "events").await;
    assert_eq!(
        (findings.len(), findings[0].verdict),
        (1, Verdict::Fail),
        "{findings:?}"
    );

    let guest = as_user(&kafka, &prefix, "guest", "hello");
    let error = open(&guest, &prefix, &[&feed])
        .await
        .err()
        .expect("no rights");
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    let findings = KafkaSinkFactory::preflight(&guest, &prefix, "events").await;
    let by_subject = |subject: &str| {
        findings
            .iter()
            .find(|finding| finding.subject == subject)
            .expect("finding")
    };
    assert_eq!(
        by_subject("create topics").verdict,
        Verdict::Warn,
        "{findings:?}"
    );
    assert_eq!(
        by_subject("transactions").verdict,
        Verdict::Fail,
        "{findings:?}"
    );
    let remedy = by_subject("transactions")
        .remedy
        .as_deref()
        .expect("remedy");
    assert!(remedy.contains("--transactional-id"), "{remedy}");

    let root = as_user(&kafka, &prefix, "root", "open-sesame");
    let mut sink = open(&root, &prefix, &[&feed]).await.expect("opens");
    let durable = sink
        .write(feed.batch(1, &[insert(1, "a")]))
        .await
        .expect("taken");
    durable.await.expect("durable");
    sink.close().await.expect("closes");
    assert_eq!(read(kafka.bootstrap(), &feed.topic()).await.len(), 1);
}

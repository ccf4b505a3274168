//! Prometheus as the kit gives it to tests.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::time::Duration;

use lockstep_kit::Component::Prometheus as Needs;
use lockstep_kit::prometheus::{Prometheus, PrometheusOptions, Target, promtool};
use lockstep_kit::{require, wait_for};

const SOON: Duration = Duration::from_secs(30);

const RULES: &str = r#"{"groups": [{"name": "one", "rules": [
    {"alert": "Up", "expr": "up{pipeline=\"its own\"} == 1", "annotations": {"summary": "{{ $labels.pipeline }}"}},
    {"alert": "Never", "expr": "up == 7"}
]}]}"#;

/// It scrapes itself.
#[tokio::test]
async fn targets_are_scraped_asked_for_and_alerted_on_until_they_go() {
    require!(Needs);
    let options = PrometheusOptions {
        rules: vec![RULES.into()],
        ..PrometheusOptions::default()
    };
    let server = Prometheus::start(options).await;
    assert_eq!(server.query("up").await.unwrap(), []);
    assert_eq!(server.query("2^3").await.unwrap()[0].value, 8.0);
    let refused = server.query("sum(").await.unwrap_err();
    assert!(refused.to_string().contains("parse error"), "{refused}");

    let labels = vec![("pipeline".into(), "its own".into())];
    let address = server.address().parse().unwrap();
    server.scrape(&[Target { address, labels }]);
    let alert = wait_for(SOON, "the alert", async || {
        let alerts = server.alerts().await.unwrap();
        alerts.into_iter().find(|alert| alert.fires)
    })
    .await;
    assert_eq!(
        (alert.name(), &*alert.annotations["summary"]),
        ("Up", "its own")
    );
    let up = server.query("up").await.unwrap().remove(0);
    assert_eq!(
        (&*up.labels["job"], &*up.labels["instance"], up.value),
        ("lockstep", server.address(), 1.0)
    );
    server.scrape(&[]);
    wait_for(SOON, "the alert to end", async || {
        server.alerts().await.unwrap().is_empty()
    })
    .await;
}

#[tokio::test]
async fn promtool_says_what_is_wrong() {
    require!(Needs);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(folder.join("right.yaml"), RULES).unwrap();
    std::fs::write(folder.join("wrong.yaml"), RULES.replace("== 7", "== (")).unwrap();
    let said = promtool(folder, &["check", "rules", "right.yaml"]).await;
    assert!(said.unwrap().contains("2 rules found"));
    let error = promtool(folder, &["check", "rules", "wrong.yaml"]).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("could not parse expression"), "{error}");
}

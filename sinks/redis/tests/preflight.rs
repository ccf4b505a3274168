//! What `lockstep check` finds.

mod support;

use lockstep_core::check::{Finding, Verdict};
use lockstep_core::sink::SinkFactory;
use lockstep_kit::Component::{Redis, RedisCluster};
use lockstep_kit::redis::{Redis as Server, RedisOptions};
use lockstep_kit::redis_cluster::RedisCluster as Cluster;
use lockstep_sink_redis::RedisFactory;
use serde_json::json;
use support::Lab;

async fn look(lab: &Lab) -> Vec<Finding> {
    let findings = RedisFactory::preflight(&lab.config, "shop", "cache").await;
    for finding in &findings {
        assert!(
            finding.verdict == Verdict::Pass || finding.remedy.is_some(),
            "{finding:?}"
        );
    }
    findings
}

fn bad<'a>(findings: &'a [Finding], subject: &str) -> &'a Finding {
    findings
        .iter()
        .find(|finding| finding.subject == subject && finding.verdict != Verdict::Pass)
        .unwrap_or_else(|| panic!("{subject} is not bad in {findings:#?}"))
}

#[tokio::test]
async fn a_good_server_passes_and_is_left_as_it_was() {
    lockstep_kit::require!(Redis);
    let server = Server::start(RedisOptions::default()).await;
    let lab = Lab::single(server.url(), json!({})).await;
    let findings = look(&lab).await;
    assert!(
        findings
            .iter()
            .all(|finding| finding.verdict == Verdict::Pass),
        "{findings:#?}"
    );
    assert_eq!(lab.ask(&["DBSIZE"]).await, redis::Value::Int(0));
}

#[tokio::test]
async fn a_good_cluster_passes() {
    lockstep_kit::require!(RedisCluster);
    let lab = Lab::cluster(&Cluster::shared().await.urls(), json!({})).await;
    let findings = look(&lab).await;
    assert!(
        findings
            .iter()
            .all(|finding| finding.verdict == Verdict::Pass),
        "{findings:#?}"
    );
    let single = Lab::single(&Cluster::shared().await.urls()[0], json!({})).await;
    bad(&look(&single).await, "mode");
}

#[tokio::test]
async fn what_is_wrong_is_found() {
    lockstep_kit::require!(Redis);
    let server = Server::start(RedisOptions {
        append_only: false,
        config: vec![
            ("maxmemory".into(), "100mb".into()),
            ("maxmemory-policy".into(), "allkeys-lru".into()),
        ],
    })
    .await;
    server
        .command(&[
            "ACL", "SETUSER", "weak", "on", ">pw", "~*", "+@all", "-set", "-scan",
        ])
        .await
        .expect("reached");
    server
        .command(&[
            "ACL", "SETUSER", "mute", "on", ">pw", "~*", "+@all", "-eval",
        ])
        .await
        .expect("reached");
    let url = |user: &str| format!("redis://{user}@{}", server.address());

    let findings = look(&Lab::single(&url("weak:pw"), json!({})).await).await;
    assert_eq!(bad(&findings, "maxmemory-policy").verdict, Verdict::Warn);
    let rights = bad(&findings, "scripts and commands");
    assert!(
        rights.detail.contains("SET") && rights.verdict == Verdict::Fail,
        "{rights:?}"
    );
    bad(&findings, "SCAN");
    bad(
        &look(&Lab::single(&url("mute:pw"), json!({})).await).await,
        "scripts and commands",
    );
    bad(
        &look(&Lab::single(&url("weak:wrong"), json!({})).await).await,
        "connection",
    );
    bad(
        &look(&Lab::single("redis://127.0.0.1:1", json!({})).await).await,
        "connection",
    );
}

//! What is refused at the start, and what the check finds.

use lockstep_core::ErrorKind;
use lockstep_core::check::Verdict;
use lockstep_core::sink::SinkFactory;
use lockstep_kit::Component;
use lockstep_sink_search::opensearch::OpenSearch;
use serde_json::json;

use super::support::*;
use super::{orders, shared};

#[tokio::test]
async fn two_tables_never_share_an_index() {
    lockstep_kit::require!(Component::OpenSearch);
    let corner = shared().await;
    let (one, two) = (
        orders(),
        table("shop", "Orders", 1, &[("id", "int4", INT4)]),
    );
    let config = serde_json::from_value(corner.config(json!({}))).expect("valid");
    let error = OpenSearch::open(&config, context(&source("shop"), &[&one, &two]))
        .await
        .err()
        .expect("refused");
    assert_eq!(error.kind(), ErrorKind::Setup);
    assert!(error.to_string().contains("public.Orders"), "{error}");
}

#[tokio::test]
async fn the_check_passes_where_all_is_well() {
    lockstep_kit::require!(Component::OpenSearch);
    let corner = shared().await;
    let config = serde_json::from_value(corner.config(json!({}))).expect("valid");
    let _sink = corner.sink(&[&orders()]).await;
    let findings = OpenSearch::preflight(&config, "test", "search").await;
    for finding in &findings {
        let disk = finding.subject.contains("disk");
        assert!(disk || finding.verdict == Verdict::Pass, "{finding:?}");
    }
    assert!(
        findings[0].detail.starts_with("OpenSearch "),
        "{findings:?}"
    );
    let index = corner.index("orders");
    corner
        .ask(
            "PUT",
            &format!("/{index}/_settings"),
            r#"{"index.blocks.write": true}"#,
        )
        .await;
    let findings = OpenSearch::preflight(&config, "test", "search").await;
    assert!(
        findings
            .iter()
            .any(|finding| finding.verdict == Verdict::Fail && finding.subject.contains(&index)),
        "{findings:?}"
    );
    let down = serde_json::from_value(json!({"url": "http://127.0.0.1:1"})).expect("valid");
    let findings = OpenSearch::preflight(&down, "test", "search").await;
    assert!(
        findings[0].detail.contains("cannot connect"),
        "{findings:?}"
    );
}

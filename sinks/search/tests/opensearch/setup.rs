//! What is refused at the start, and what the check finds.

use lockstep_core::ErrorKind;
use lockstep_core::check::Verdict;
use serde_json::json;

use super::support::*;
use super::{Corner, orders};

on_each_server!(
    two_tables_never_share_an_index,
    the_check_passes_where_all_is_well,
);

async fn two_tables_never_share_an_index(corner: Corner<'static>) {
    let (one, two) = (
        orders(),
        table("shop", "Orders", 1, &[("id", "int4", INT4)]),
    );
    let context = context(&source("shop"), &[&one, &two]);
    let opened = corner.open(json!({}), context).await;
    let error = opened.err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Setup);
    assert!(error.to_string().contains("public.Orders"), "{error}");
}

async fn the_check_passes_where_all_is_well(corner: Corner<'static>) {
    let _sink = corner.sink(&[&orders()]).await;
    let findings = corner.preflight(json!({})).await;
    for finding in &findings {
        let disk = finding.subject.contains("disk");
        assert!(disk || finding.verdict == Verdict::Pass, "{finding:?}");
    }
    let name = corner.server.product().component().to_string();
    assert!(findings[0].detail.starts_with(&name), "{findings:?}");
    let index = corner.index("orders");
    corner
        .ask(
            "PUT",
            &format!("/{index}/_settings"),
            r#"{"index.blocks.write": true}"#,
        )
        .await;
    let findings = corner.preflight(json!({})).await;
    assert!(
        findings
            .iter()
            .any(|finding| finding.verdict == Verdict::Fail && finding.subject.contains(&index)),
        "{findings:?}"
    );
    let down = json!({"url": "http://127.0.0.1:1"});
    let findings = corner.preflight(down).await;
    assert!(
        findings[0].detail.contains("cannot connect"),
        "{findings:?}"
    );
}

//! OpenSearch and Elasticsearch as the kit gives them to tests.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::time::Instant;

use lockstep_kit::opensearch::{OpenSearch, OpenSearchOptions, Product};
use lockstep_kit::require_own;

const MAPPING: &str =
    r#"{"mappings": {"dynamic": "strict", "properties": {"name": {"type": "text"}}}}"#;

const BULK: &str = r#"{"index": {"_index": "kit", "_id": "1", "version": 5, "version_type": "external"}}
{"name": "The quick brown fox"}
{"index": {"_index": "kit", "_id": "1", "version": 4, "version_type": "external"}}
{"name": "stale"}
{"index": {"_index": "kit", "_id": "2", "version": 1, "version_type": "external"}}
{"unknown": 1}
"#;

const QUERY: &str = r#"{"query": {"match": {"name": "FOX"}}}"#;

#[tokio::test]
async fn a_node_starts_indexes_restarts_and_goes() {
    starts_indexes_restarts_and_goes(Product::OpenSearch, "2.").await;
}

#[tokio::test]
async fn so_does_one_of_elasticsearch() {
    starts_indexes_restarts_and_goes(Product::Elasticsearch, "8.").await;
}

async fn starts_indexes_restarts_and_goes(product: Product, line: &str) {
    let name = product.component();
    require_own!(name);
    let began = Instant::now();
    let node = OpenSearch::start(OpenSearchOptions::of(product)).await;
    let version = node.version().await.unwrap();
    println!("{name} {version} after {:?}", began.elapsed());
    assert!(version.starts_with(line), "{name} {version}");
    let (status, answer) = node.request("PUT", "/kit", MAPPING).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let (status, answer) = node
        .request("POST", "/_bulk?refresh=true", BULK)
        .await
        .unwrap();
    assert_eq!(status, 200, "{answer}");
    assert!(
        answer.contains("version_conflict_engine_exception"),
        "{answer}"
    );
    assert!(
        answer.contains("strict_dynamic_mapping_exception"),
        "{answer}"
    );
    let began = Instant::now();
    node.kill();
    node.restart().await;
    println!("{name} again after {:?}", began.elapsed());
    let (status, answer) = node.request("POST", "/kit/_search", QUERY).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    assert!(answer.contains("The quick brown fox"), "{answer}");
    assert!(answer.contains(r#""total":{"value":1,"#), "{answer}");
    // Without the sizes of the chunks in which it may have come.
    assert!(answer.starts_with('{') && answer.ends_with('}'), "{answer}");
    let address = ("127.0.0.1", node.port());
    drop(node);
    assert!(std::net::TcpStream::connect(address).is_err());
}

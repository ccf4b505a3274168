//! What every sink promises, of the search sinks; of the one over HTTP on both servers.

use std::sync::Arc;

use async_trait::async_trait;
use lockstep_conformance::sink::{Held, Progress, SinkUnderTest, row_of};
use lockstep_core::Result;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext, SinkFactory};
use serde_json::{Value, json};

#[cfg(feature = "tantivy")]
mod embedded {
    use lockstep_sink_search::tantivy::{Tantivy, search};
    use tempfile::TempDir;

    use super::*;

    struct Embedded(TempDir);

    #[async_trait]
    impl SinkUnderTest for Embedded {
        async fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
            let path = self.0.path();
            let config = json!({"path": path, "memory": "15MB", "commit_interval": "20ms"});
            let config = serde_json::from_value(config).expect("a section");
            Tantivy::open(&config, context).await
        }

        async fn held(&self, table: &Arc<TableSchema>) -> Held {
            let name = format!("{}.{}", table.source, table.id);
            let hits = search(self.0.path(), "*", 10_000).expect("a search");
            let ours = hits.into_iter().filter(|hit| hit.table == name);
            let row = |json: &str| row_of(&serde_json::from_str(json).expect("JSON"));
            Held::Rows(ours.map(|hit| (hit.id, row(&hit.source_json))).collect())
        }

        fn progress(&self) -> Progress {
            Progress::Atomic
        }
    }

    async fn embedded() -> Option<Embedded> {
        Some(Embedded(TempDir::new().expect("a folder")))
    }

    lockstep_conformance::sink_suite!(embedded);
}

mod over_http {
    use lockstep_kit::component::available_or_say_so;
    use lockstep_kit::opensearch::{OpenSearch as Server, Product};
    use lockstep_kit::unique;
    use lockstep_sink_search::opensearch::{Elasticsearch, OpenSearch};

    use super::*;

    pub(super) struct Corner {
        server: &'static Server,
        prefix: String,
    }

    #[async_trait]
    impl SinkUnderTest for Corner {
        async fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
            // Small requests, several at a time: so that a crash finds some of them on their way.
            let config = json!({
                "url": self.server.url(),
                "index": format!("{}-{{source}}-{{table}}", self.prefix),
                "progress_index": format!("{}-progress", self.prefix),
                "settings": {"number_of_replicas": 0},
                "bulk_documents": 4,
                "concurrency": 3,
            });
            let config = serde_json::from_value(config).expect("a section");
            match self.server.product() {
                Product::OpenSearch => OpenSearch::open(&config, context).await,
                Product::Elasticsearch => Elasticsearch::open(&config, context).await,
            }
        }

        async fn held(&self, table: &Arc<TableSchema>) -> Held {
            let index = format!("/{}-{}-{}", self.prefix, table.source, table.id.name);
            let ask = async |method, path: &str| {
                let (status, body) = self
                    .server
                    .request(method, path, "")
                    .await
                    .expect("an answer");
                assert_eq!(status, 200, "{body}");
                serde_json::from_str::<Value>(&body).expect("JSON")
            };
            ask("POST", &format!("{index}/_refresh")).await;
            let found = ask("GET", &format!("{index}/_search?size=10000")).await;
            let hits = found["hits"]["hits"].as_array().expect("hits").iter();
            let row = |hit: &Value| {
                let id = hit["_id"].as_str().expect("an id").to_owned();
                (id, row_of(&hit["_source"]))
            };
            Held::Rows(hits.map(row).collect())
        }

        fn progress(&self) -> Progress {
            Progress::Behind
        }
    }

    pub(super) async fn corner(product: Product) -> Option<Corner> {
        if !available_or_say_so(product.component()) {
            return None;
        }
        Some(Corner {
            server: Server::shared_of(product).await,
            prefix: unique("conforms"),
        })
    }
}

mod opensearch {
    use lockstep_kit::opensearch::Product;

    use super::over_http::{Corner, corner};

    async fn opensearch() -> Option<Corner> {
        corner(Product::OpenSearch).await
    }

    lockstep_conformance::sink_suite!(opensearch);
}

mod elasticsearch {
    use lockstep_kit::opensearch::Product;

    use super::over_http::{Corner, corner};

    async fn elasticsearch() -> Option<Corner> {
        corner(Product::Elasticsearch).await
    }

    lockstep_conformance::sink_suite!(elasticsearch);
}

//! What every sink promises, of the search sinks; of the one over HTTP on both servers.

use std::sync::Arc;

use async_trait::async_trait;
use lockstep_conformance::sink::{Held, Progress, Rows, SinkUnderTest, row_of};
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

        fn shows_whole(&self) -> bool {
            true
        }

        /// One search, which is as of one commit.
        async fn look(&self, tables: &[&Arc<TableSchema>], _: &[String]) -> Option<Vec<Rows>> {
            // Before the first commit there is no index.
            let hits = search(self.0.path(), "*", 10_000).ok()?;
            let row = |json: &str| row_of(&serde_json::from_str(json).expect("JSON"));
            let of = |table: &&Arc<TableSchema>| {
                let name = format!("{}.{}", table.source, table.id);
                let ours = hits.iter().filter(|hit| hit.table == name);
                ours.map(|hit| (hit.id.clone(), row(&hit.source_json)))
                    .collect()
            };
            Some(tables.iter().map(of).collect())
        }
    }

    async fn embedded() -> Option<Embedded> {
        Some(Embedded(TempDir::new().expect("a folder")))
    }

    lockstep_conformance::sink_suite!(embedded);
}

mod over_http {
    use lockstep_conformance::history::Row;
    use lockstep_kit::component::available_or_say_so;
    use lockstep_kit::opensearch::{OpenSearch as Server, Product};
    use lockstep_kit::unique;
    use lockstep_sink_search::opensearch::{Elasticsearch, OpenSearch};

    use super::*;

    pub(super) struct Corner {
        server: &'static Server,
        prefix: String,
        /// Whether documents carry the numbers of their transactions.
        stamped: bool,
    }

    impl Corner {
        fn index(&self, table: &TableSchema) -> String {
            format!("{}-{}-{}", self.prefix, table.source, table.id.name)
        }

        /// `None` when it is not there, or not yet.
        async fn ask(&self, method: &str, path: &str, body: &Value) -> Option<Value> {
            let body = match body {
                Value::Null => String::new(),
                body => body.to_string(),
            };
            let (status, body) = self
                .server
                .request(method, path, &body)
                .await
                .expect("an answer");
            assert!([200, 404, 503].contains(&status), "{body}");
            (status == 200).then(|| serde_json::from_str(&body).expect("JSON"))
        }
    }

    /// The hits of a search: index, id, and row without the number of its transaction.
    fn hits(found: &Value) -> Vec<(String, String, Row)> {
        let hits = found["hits"]["hits"].as_array().expect("hits").iter();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        hits.map(|hit| {
            let mut row = row_of(&hit["_source"]);
            row.remove("gtx_epoch");
            (text(&hit["_index"]), text(&hit["_id"]), row)
        })
        .collect()
    }

    #[async_trait]
    impl SinkUnderTest for Corner {
        async fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
            // Small requests, several at a time: so that a crash finds some of them on their way.
            let mut config = json!({
                "url": self.server.url(),
                "index": format!("{}-{{source}}-{{table}}", self.prefix),
                "progress_index": format!("{}-progress", self.prefix),
                "settings": {"number_of_replicas": 0},
                "bulk_documents": 4,
                "concurrency": 3,
            });
            if self.stamped {
                config["gtx_epoch"] = true.into();
                config["visible_every"] = "20ms".into();
            }
            let config = serde_json::from_value(config).expect("a section");
            match self.server.product() {
                Product::OpenSearch => OpenSearch::open(&config, context).await,
                Product::Elasticsearch => Elasticsearch::open(&config, context).await,
            }
        }

        async fn held(&self, table: &Arc<TableSchema>) -> Held {
            let index = self.index(table);
            let path = format!("/{index}/_refresh");
            let refreshed = self.ask("POST", &path, &Value::Null).await;
            refreshed.expect("an index");
            let path = format!("/{index}/_search?size=10000");
            let found = self
                .ask("GET", &path, &Value::Null)
                .await
                .expect("an index");
            let hits = hits(&found).into_iter();
            Held::Rows(hits.map(|(_, id, row)| (id, row)).collect())
        }

        fn progress(&self) -> Progress {
            Progress::Behind
        }

        fn shows_whole(&self) -> bool {
            self.stamped
        }

        fn hides_changes(&self) -> bool {
            true
        }

        /// What is visible first, then a search with the filter that it says.
        async fn look(&self, tables: &[&Arc<TableSchema>], _: &[String]) -> Option<Vec<Rows>> {
            let id = "visible_epoch:conformance:sink";
            let path = format!("/{}-progress/_doc/{id}", self.prefix);
            let told = self.ask("GET", &path, &Value::Null).await?;
            let query = json!({"bool": {"filter": [told["_source"]["filter"]]}});
            let indexes: Vec<String> = tables.iter().map(|table| self.index(table)).collect();
            let how = "size=10000&allow_partial_search_results=false";
            let path = format!("/{}/_search?{how}", indexes.join(","));
            let found = self.ask("POST", &path, &json!({"query": query})).await?;
            let hits = hits(&found);
            let of = |index: &String| {
                let ours = hits.iter().filter(|(of, ..)| of == index);
                ours.map(|(_, id, row)| (id.clone(), row.clone())).collect()
            };
            Some(indexes.iter().map(of).collect())
        }
    }

    pub(super) async fn corner(product: Product, stamped: bool) -> Option<Corner> {
        if !available_or_say_so(product.component()) {
            return None;
        }
        Some(Corner {
            server: Server::shared_of(product).await,
            prefix: unique("conforms"),
            stamped,
        })
    }
}

mod opensearch {
    use lockstep_kit::opensearch::Product;

    use super::over_http::{Corner, corner};

    async fn opensearch() -> Option<Corner> {
        corner(Product::OpenSearch, false).await
    }

    lockstep_conformance::sink_suite!(opensearch);

    mod stamped {
        use super::*;

        async fn stamped() -> Option<Corner> {
            corner(Product::OpenSearch, true).await
        }

        lockstep_conformance::sink_suite!(stamped;
            whoever_looks_sees_branches_together,
            branches_that_are_written_together_stay_together,
            an_unchanged_value_is_never_made_up,
            a_truncate_empties_its_table_alone,
            any_crash_goes_on_to_the_right_end,
        );
    }
}

mod elasticsearch {
    use lockstep_kit::opensearch::Product;

    use super::over_http::{Corner, corner};

    async fn elasticsearch() -> Option<Corner> {
        corner(Product::Elasticsearch, false).await
    }

    lockstep_conformance::sink_suite!(elasticsearch);

    mod stamped {
        use super::*;

        async fn stamped() -> Option<Corner> {
            corner(Product::Elasticsearch, true).await
        }

        lockstep_conformance::sink_suite!(stamped;
            whoever_looks_sees_branches_together,
            branches_that_are_written_together_stay_together,
            an_unchanged_value_is_never_made_up,
            a_truncate_empties_its_table_alone,
            any_crash_goes_on_to_the_right_end,
        );
    }
}

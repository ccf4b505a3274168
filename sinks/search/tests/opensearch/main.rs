//! Against a real OpenSearch, and against a real Elasticsearch.

/// Makes tests of functions that take a corner: one on each server.
macro_rules! on_each_server {
    ($($test:ident),+ $(,)?) => {
        mod opensearch { $( on_server!(OpenSearch, $test); )+ }
        mod elasticsearch { $( on_server!(Elasticsearch, $test); )+ }
    };
}

macro_rules! on_server {
    ($product:ident, $test:ident) => {
        #[tokio::test]
        async fn $test() {
            let product = lockstep_kit::opensearch::Product::$product;
            lockstep_kit::require!(product.component());
            super::$test(crate::shared(product).await).await;
        }
    };
}

mod restart;
mod secure;
mod setup;
#[path = "../support/mod.rs"]
mod support;
mod values;
mod versions;

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::check::Finding;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Inspect, Sink, SinkContext, SinkFactory};
use lockstep_kit::opensearch::{OpenSearch as Server, Product};
use lockstep_sink_search::opensearch::{Config, Elasticsearch, OpenSearch};
use serde_json::{Value, json};
use support::*;

/// A corner of the server for one test.
struct Corner<'a> {
    server: &'a Server,
    prefix: String,
}

impl<'a> Corner<'a> {
    fn on(server: &'a Server) -> Self {
        Corner {
            server,
            prefix: lockstep_kit::unique("t"),
        }
    }

    fn config(&self, more: Value) -> Value {
        let mut config = json!({
            "url": self.server.url(),
            "index": format!("{}-{{source}}-{{table}}", self.prefix),
            "progress_index": format!("{}-progress", self.prefix),
            "settings": {"number_of_replicas": 0},
        });
        for (key, value) in more.as_object().expect("an object") {
            config[key] = value.clone();
        }
        config
    }

    async fn sink(&self, tables: &[&Arc<TableSchema>]) -> Box<dyn Sink> {
        self.sink_with(json!({}), tables).await
    }

    async fn sink_with(&self, more: Value, tables: &[&Arc<TableSchema>]) -> Box<dyn Sink> {
        let sink = self.open(more, context(&source("shop"), tables)).await;
        sink.expect("the sink opens")
    }

    fn section(&self, more: Value) -> Config {
        serde_json::from_value(self.config(more)).expect("a valid section")
    }

    async fn open(&self, more: Value, context: SinkContext) -> Result<Box<dyn Sink>> {
        let config = self.section(more);
        match self.server.product() {
            Product::OpenSearch => OpenSearch::open(&config, context).await,
            Product::Elasticsearch => Elasticsearch::open(&config, context).await,
        }
    }

    async fn inspect(&self, context: SinkContext) -> Box<dyn Inspect> {
        self.inspect_with(json!({}), context).await
    }

    async fn inspect_with(&self, more: Value, context: SinkContext) -> Box<dyn Inspect> {
        let config = self.section(more);
        let inspect = match self.server.product() {
            Product::OpenSearch => OpenSearch::inspect(&config, context).await,
            Product::Elasticsearch => Elasticsearch::inspect(&config, context).await,
        };
        inspect.expect("opens").expect("can be read")
    }

    async fn preflight(&self, more: Value) -> Vec<Finding> {
        let config = self.section(more);
        match self.server.product() {
            Product::OpenSearch => OpenSearch::preflight(&config, "test", "search").await,
            Product::Elasticsearch => Elasticsearch::preflight(&config, "test", "search").await,
        }
    }

    fn index(&self, table: &str) -> String {
        format!("{}-shop-{table}", self.prefix)
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, body) = self
            .server
            .request(method, path, body)
            .await
            .expect("the server answers");
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    /// `id → (n, document)` of all documents, written by the transaction that `Feed::begin(n)` began.
    async fn all(&self, table: &str) -> BTreeMap<String, (u64, Value)> {
        let index = self.index(table);
        self.ask("POST", &format!("/{index}/_refresh"), "").await;
        let path = format!("/{index}/_search?version=true&size=10000");
        let (status, found) = self.ask("GET", &path, "").await;
        assert_eq!(status, 200, "{found}");
        let hits = found["hits"]["hits"].as_array().expect("hits").iter();
        hits.map(|hit| {
            let id = hit["_id"].as_str().expect("an id").to_owned();
            let version = hit["_version"].as_u64().expect("a version");
            (id, (version >> 9, hit["_source"].clone()))
        })
        .collect()
    }
}

async fn shared(product: Product) -> Corner<'static> {
    Corner::on(Server::shared_of(product).await)
}

fn orders() -> Arc<TableSchema> {
    table(
        "shop",
        "orders",
        1,
        &[
            ("id", "int4", INT4),
            ("status", "text", TEXT),
            ("note", "text", TEXT),
        ],
    )
}

fn row<'a>(id: &'a str, status: &'a str) -> [V<'a>; 3] {
    [id.into(), status.into(), "gift wrap".into()]
}

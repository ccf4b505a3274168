//! What every sink promises, of Redis with both formats of values.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use lockstep_conformance::history::Row;
use lockstep_conformance::sink::{Held, Progress, SinkUnderTest, row_of};
use lockstep_core::Result;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext, SinkFactory};
use lockstep_kit::Component;
use lockstep_kit::component::available_or_say_so;
use lockstep_kit::redis::Redis as Server;
use lockstep_sink_redis::RedisFactory;
use redis::Value;
use support::Lab;

struct Cache {
    lab: Lab,
    is_hash: bool,
}

fn text(value: Value) -> String {
    match value {
        Value::BulkString(text) => String::from_utf8(text).expect("UTF-8"),
        other => panic!("{other:?}"),
    }
}

impl Cache {
    async fn row(&self, key: &str) -> Row {
        if !self.is_hash {
            let json = self.lab.get(key).await.expect("a value");
            return row_of(&serde_json::from_str(&json).expect("JSON"));
        }
        let Value::Array(words) = self.lab.ask(&["HGETALL", key]).await else {
            panic!("HGETALL");
        };
        let mut words = words.into_iter().map(text);
        let mut row = Row::new();
        while let (Some(name), Some(value)) = (words.next(), words.next()) {
            row.insert(name, value);
        }
        row
    }
}

#[async_trait]
impl SinkUnderTest for Cache {
    async fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        let pipeline = self.lab.prefix.as_str().into();
        RedisFactory::open(
            &self.lab.config,
            SinkContext {
                pipeline,
                ..context
            },
        )
        .await
    }

    async fn held(&self, table: &Arc<TableSchema>) -> Held {
        let prefix = format!("{}:{}:{}:", self.lab.prefix, table.source, table.id.name);
        let Value::Array(keys) = self.lab.ask(&["KEYS", &format!("{prefix}*")]).await else {
            panic!("KEYS");
        };
        let mut rows = BTreeMap::new();
        for key in keys.into_iter().map(text) {
            let id = key.strip_prefix(&prefix).expect("as asked for").to_owned();
            rows.insert(id, self.row(&key).await);
        }
        Held::Rows(rows)
    }

    fn progress(&self) -> Progress {
        Progress::Behind
    }

    fn is_fenced(&self) -> bool {
        true
    }
}

async fn cache(value: &str) -> Option<Cache> {
    if !available_or_say_so(Component::Redis) {
        return None;
    }
    let url = Server::shared().await.url();
    Some(Cache {
        lab: Lab::single(url, serde_json::json!({ "value": value })).await,
        is_hash: value == "hash",
    })
}

mod json {
    async fn cache() -> Option<super::Cache> {
        super::cache("json").await
    }

    lockstep_conformance::sink_suite!(cache);
}

mod hash {
    async fn cache() -> Option<super::Cache> {
        super::cache("hash").await
    }

    lockstep_conformance::sink_suite!(cache);
}

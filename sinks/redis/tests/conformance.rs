//! What every sink promises, of Redis with both formats of values.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;
use lockstep_conformance::history::Row;
use lockstep_conformance::sink::{Held, Progress, Rows, SinkUnderTest, row_of};
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

/// Reads all keys in one step.
const READ: &str = r"
local rows = {}
for i, key in ipairs(KEYS) do
  if ARGV[1] == 'hash' then rows[i] = redis.call('HGETALL', key) else rows[i] = redis.call('GET', key) end
end
return rows";

impl Cache {
    fn key(&self, table: &TableSchema, id: &str) -> String {
        format!(
            "{}:{}:{}:{id}",
            self.lab.prefix, table.source, table.id.name
        )
    }

    fn parsed(&self, value: Value) -> Option<Row> {
        match value {
            Value::Array(words) => {
                let words: Vec<String> = words.into_iter().map(text).collect();
                let pairs = words
                    .chunks(2)
                    .map(|pair| (pair[0].clone(), pair[1].clone()));
                Some(pairs.collect()).filter(|row: &Row| !row.is_empty())
            }
            Value::BulkString(json) => Some(row_of(&serde_json::from_slice(&json).expect("JSON"))),
            Value::Nil => None,
            other => panic!("{other:?}"),
        }
    }

    async fn look_at_once(&self, tables: &[&Arc<TableSchema>], ids: &[String]) -> Vec<Rows> {
        let keys = tables
            .iter()
            .flat_map(|table| ids.iter().map(|id| self.key(table, id)));
        let keys: Vec<String> = keys.collect();
        let count = keys.len().to_string();
        let mut words = vec!["EVAL", READ, &count];
        words.extend(keys.iter().map(String::as_str));
        words.push(if self.is_hash { "hash" } else { "json" });
        let Value::Array(values) = self.lab.ask(&words).await else {
            panic!("EVAL");
        };
        let mut values = values.into_iter();
        let mut rows = Vec::new();
        for _ in tables {
            let of = ids.iter().zip(values.by_ref());
            let of = of.filter_map(|(id, value)| Some((id.clone(), self.parsed(value)?)));
            rows.push(of.collect());
        }
        rows
    }

    /// What is visible first, then rows with their versions; `None` when one is not covered by it.
    async fn look_at_slots(
        &self,
        tables: &[&Arc<TableSchema>],
        ids: &[String],
    ) -> Option<Vec<Rows>> {
        let name = format!("lockstep:visible:{}:sink", self.lab.prefix);
        let Value::Array(words) = self.lab.ask(&["HGETALL", &name]).await else {
            panic!("HGETALL");
        };
        let words: Vec<String> = words.into_iter().map(text).collect();
        let visible: BTreeMap<&str, &str> =
            words.chunks(2).map(|pair| (&*pair[0], &*pair[1])).collect();
        let mut all = Vec::new();
        for table in tables {
            let visible = visible.get(&*table.source).copied();
            let rows = ids.iter().map(async |id| {
                let key = self.key(table, id);
                let pair = ["MGET", &key, &format!("lockstep:v:{{{key}}}")];
                let Value::Array(values) = self.lab.ask(&pair).await else {
                    panic!("MGET");
                };
                let [value, version] = values.try_into().expect("two");
                let is_covered = match version {
                    Value::Nil => true,
                    version => covers(visible, &text(version)),
                };
                is_covered.then(|| (id.clone(), self.parsed(value)))
            });
            let rows: Option<Vec<_>> = join_all(rows).await.into_iter().collect();
            let rows = rows?.into_iter();
            all.push(rows.filter_map(|(id, row)| Some((id, row?))).collect());
        }
        Some(all)
    }
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
        match self.lab.config.cluster {
            true => Progress::Behind,
            false => Progress::Atomic,
        }
    }

    fn empties_at_once(&self) -> bool {
        false
    }

    fn is_fenced(&self) -> bool {
        true
    }

    fn shows_whole(&self) -> bool {
        true
    }

    /// One command for all: on a single server that is a snapshot. In a cluster, where it cannot be, as the README says.
    async fn look(&self, tables: &[&Arc<TableSchema>], ids: &[String]) -> Option<Vec<Rows>> {
        match self.lab.config.cluster {
            true => self.look_at_slots(tables, ids).await,
            false => Some(self.look_at_once(tables, ids).await),
        }
    }
}

/// Whether what is visible of a source covers a version of one of its rows, as the README says.
fn covers(visible: Option<&str>, version: &str) -> bool {
    let (transaction, ordinal) = version[..28].split_at(20);
    let mut held = visible.into_iter().flat_map(|text| text.split('+'));
    let upto = held.next().unwrap_or_default();
    ordinal == "00000000" || version[..28] <= *upto || held.any(|one| one[..20] == *transaction)
}

async fn cache(value: &str, more: serde_json::Value) -> Option<Cache> {
    if !available_or_say_so(Component::Redis) {
        return None;
    }
    let url = Server::shared().await.url();
    let lab = Lab::single(url, serde_json::json!({ "value": value })).await;
    Some(Cache {
        lab: lab.with(more),
        is_hash: value == "hash",
    })
}

mod json {
    async fn cache() -> Option<super::Cache> {
        super::cache("json", serde_json::json!({})).await
    }

    lockstep_conformance::sink_suite!(cache);
}

mod hash {
    async fn cache() -> Option<super::Cache> {
        super::cache("hash", serde_json::json!({})).await
    }

    lockstep_conformance::sink_suite!(cache);
}

/// A row in each call, but for what is one step: only the step keeps a look from coming between two rows.
mod a_row_a_call {
    async fn cache() -> Option<super::Cache> {
        super::cache("json", serde_json::json!({ "batch": { "keys": 1 } })).await
    }

    lockstep_conformance::sink_suite!(cache; whoever_looks_sees_branches_together);
}

mod cluster {
    use lockstep_kit::redis_cluster::RedisCluster;

    use super::{Cache, Component, Lab, available_or_say_so};

    async fn cache() -> Option<Cache> {
        if !available_or_say_so(Component::RedisCluster) {
            return None;
        }
        let urls = RedisCluster::shared().await.urls();
        Some(Cache {
            lab: Lab::cluster(&urls, serde_json::json!({})).await,
            is_hash: false,
        })
    }

    lockstep_conformance::sink_suite!(cache; whoever_looks_sees_branches_together);
}

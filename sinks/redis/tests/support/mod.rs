//! Batches made by hand, a server to write to, and looks at what it holds.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod scenarios;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::Result;
use lockstep_core::batch::{Batch, BatchBuilder, Cell, OldImage, Op, Phase, Transaction};
use lockstep_core::durable::Delivered;
use lockstep_core::position::{Lsn, SourceIdentity, SourceInfo};
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};
use lockstep_core::sink::{Inspect, Sink, SinkContext, SinkFactory, Trouble};
use lockstep_core::token::Token;
use lockstep_kit::unique;
use lockstep_sink_redis::{RedisConfig, RedisFactory};
use redis::aio::ConnectionLike;
use redis::{Cmd, Value};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A value of a row.
#[derive(Clone, Copy, Debug)]
pub enum V<'a> {
    Null,
    /// Unchanged TOAST.
    Same,
    T(&'a str),
}
pub use V::{Null, Same, T};

/// `orders` of a source: `id int8` key, `name text`, `doc text`, `price numeric`.
pub fn orders(source: &str) -> Arc<TableSchema> {
    table(
        source,
        "orders",
        &[
            ("id", 20, "int8"),
            ("name", 25, "text"),
            ("doc", 25, "text"),
            ("price", 1700, "numeric"),
        ],
    )
}

/// A table whose first column is the key.
pub fn table(source: &str, name: &str, columns: &[(&str, u32, &str)]) -> Arc<TableSchema> {
    let columns: Vec<_> = columns
        .iter()
        .enumerate()
        .map(|(slot, (name, oid, ty))| Column {
            name: (*name).into(),
            ty: ColumnType {
                oid: *oid,
                typmod: -1,
                name: (*ty).into(),
                kind: TypeKind::Base,
            },
            slot: slot as u16,
            not_null: slot == 0,
        })
        .collect();
    Arc::new(TableSchema {
        source: source.into(),
        id: TableId::new("public", name),
        origin: TableId::new("public", name),
        relation: 1,
        version: 1,
        width: columns.len() as u16,
        columns,
        key: vec![0],
        identity: ReplicaIdentity::Default,
    })
}

/// Puts batches together.
pub struct Maker {
    source: Arc<SourceInfo>,
    block: Vec<u8>,
    builder: BatchBuilder,
    ordinal: u64,
}

impl Maker {
    pub fn new(source: &Arc<SourceInfo>) -> Self {
        Maker {
            source: Arc::clone(source),
            block: Vec::new(),
            builder: BatchBuilder::new(),
            ordinal: 0,
        }
    }

    /// Begins a transaction; its changes count from 1.
    pub fn commit(self, lsn: u64) -> Self {
        self.commit_from(lsn, 0)
    }

    /// Goes on with a transaction of which `before` changes have been sent.
    pub fn commit_from(mut self, lsn: u64, before: u64) -> Self {
        self.ordinal = before;
        self.builder.begin(Transaction {
            commit: Lsn(lsn),
            commit_micros: 0,
            xid: 1,
            origin: None,
            previous_commit: None,
            prepared: None,
            global: None,
        });
        self
    }

    fn row(&mut self, values: &[V<'_>]) -> usize {
        let start = self.builder.cells().len();
        for value in values {
            let cell = match value {
                Null => Cell::NULL,
                Same => Cell::UNCHANGED,
                T(text) => {
                    let offset = self.block.len() as u32;
                    self.block.extend_from_slice(text.as_bytes());
                    Cell::text(offset, text.len() as u32)
                }
            };
            self.builder.cells().push(cell);
        }
        start
    }

    fn push(
        mut self,
        op: Op,
        schema: &Arc<TableSchema>,
        old: Option<&str>,
        new: Option<&[V<'_>]>,
    ) -> Self {
        let index = self.builder.schema(schema);
        let old = old.map(|key| {
            let mut values = vec![Null; usize::from(schema.width)];
            values[0] = T(key);
            (OldImage::Key, self.row(&values))
        });
        let new = new.map(|values| self.row(values));
        self.ordinal += 1;
        self.builder.push(op, index, self.ordinal, Lsn(1), old, new);
        self
    }

    pub fn read(self, schema: &Arc<TableSchema>, row: &[V<'_>]) -> Self {
        self.push(Op::Read, schema, None, Some(row))
    }

    pub fn insert(self, schema: &Arc<TableSchema>, row: &[V<'_>]) -> Self {
        self.push(Op::Insert, schema, None, Some(row))
    }

    pub fn update(self, schema: &Arc<TableSchema>, row: &[V<'_>]) -> Self {
        self.push(Op::Update, schema, None, Some(row))
    }

    /// An update that changes the key.
    pub fn rekey(self, schema: &Arc<TableSchema>, old: &str, row: &[V<'_>]) -> Self {
        self.push(Op::Update, schema, Some(old), Some(row))
    }

    pub fn delete(self, schema: &Arc<TableSchema>, key: &str) -> Self {
        self.push(Op::Delete, schema, Some(key), None)
    }

    pub fn truncate(self, schema: &Arc<TableSchema>) -> Self {
        self.push(Op::Truncate, schema, None, None)
    }

    pub fn stream(self) -> Arc<Batch> {
        self.finish(Phase::Stream)
    }

    pub fn snapshot(self) -> Arc<Batch> {
        self.finish(Phase::Snapshot)
    }

    fn finish(mut self, phase: Phase) -> Arc<Batch> {
        Arc::new(
            self.builder
                .finish(self.source, phase, None, Bytes::from(self.block)),
        )
    }
}

/// A sink's surroundings: a server, a key prefix, a source, names that no other test has.
pub struct Lab {
    pub prefix: String,
    pub source: Arc<SourceInfo>,
    pub config: RedisConfig,
    json: serde_json::Value,
    looks: Looks,
}

#[derive(Clone)]
enum Looks {
    Single(redis::aio::MultiplexedConnection),
    Cluster(redis::cluster_async::ClusterConnection),
    /// The server is not reachable as it is, or needs a password.
    None,
}

impl Lab {
    /// On a single server.
    pub async fn single(url: &str, more: serde_json::Value) -> Self {
        let client = redis::Client::open(url).expect("a URL");
        let patient = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let looks = match client
            .get_multiplexed_async_connection_with_config(&patient)
            .await
        {
            Ok(connection) => Looks::Single(connection),
            Err(_) => Looks::None,
        };
        Self::new(serde_json::json!({ "url": url }), more, looks)
    }

    /// On a cluster.
    pub async fn cluster(urls: &[String], more: serde_json::Value) -> Self {
        let client = redis::cluster::ClusterClient::builder(urls.iter().map(String::as_str))
            .connection_timeout(PATIENCE)
            .response_timeout(PATIENCE)
            .build()
            .expect("URLs");
        let connection = client
            .get_async_connection()
            .await
            .expect("the cluster answers");
        Self::new(
            serde_json::json!({ "urls": urls, "cluster": true }),
            more,
            Looks::Cluster(connection),
        )
    }

    fn new(mut json: serde_json::Value, more: serde_json::Value, looks: Looks) -> Self {
        let prefix = unique("t");
        json["key"] = format!("{prefix}:{{source}}:{{table}}:{{key}}").into();
        for (name, value) in more.as_object().into_iter().flatten() {
            json[name] = value.clone();
        }
        Lab {
            source: source("shop", &prefix),
            config: serde_json::from_value(json.clone()).expect("a section"),
            prefix,
            json,
            looks,
        }
    }

    /// The same surroundings with other settings.
    pub fn with(&self, more: serde_json::Value) -> Self {
        let mut json = self.json.clone();
        for (name, value) in more.as_object().into_iter().flatten() {
            json[name] = value.clone();
        }
        Lab {
            prefix: self.prefix.clone(),
            source: Arc::clone(&self.source),
            config: serde_json::from_value(json.clone()).expect("a section"),
            json,
            looks: self.looks.clone(),
        }
    }

    /// The same surroundings, looked at through a new connection: after the server has been away.
    pub async fn fresh(&self, url: &str) -> Self {
        let looks = Self::single(url, serde_json::json!({})).await.looks;
        Lab {
            looks,
            ..self.with(serde_json::json!({}))
        }
    }

    pub fn context(&self) -> SinkContext {
        SinkContext {
            pipeline: self.prefix.as_str().into(),
            name: "cache".into(),
            state: std::env::temp_dir(),
            sources: vec![Arc::clone(&self.source)],
            tables: Vec::new(),
            trouble: Trouble::default(),
            token: None,
        }
    }

    /// By the right of a lease.
    pub async fn open_by(&self, token: u64) -> Result<Box<dyn Sink>> {
        let context = SinkContext {
            token: Some(Token(token)),
            ..self.context()
        };
        RedisFactory::open(&self.config, context).await
    }

    pub async fn try_open(&self) -> Result<Box<dyn Sink>> {
        RedisFactory::open(&self.config, self.context()).await
    }

    pub async fn open(&self) -> Box<dyn Sink> {
        self.try_open().await.expect("the sink opens")
    }

    pub async fn inspect(&self) -> Box<dyn Inspect> {
        let inspect = RedisFactory::inspect(&self.config, self.context()).await;
        inspect.expect("it opens").expect("Redis can be read")
    }

    pub fn make(&self) -> Maker {
        Maker::new(&self.source)
    }

    pub fn orders(&self) -> Arc<TableSchema> {
        orders(&self.source.name)
    }

    /// The key of a row of `orders`.
    pub fn key(&self, id: &str) -> String {
        format!("{}:shop:orders:{id}", self.prefix)
    }

    /// The key of its version.
    pub fn version_key(&self, id: &str) -> String {
        format!("lockstep:v:{{{}}}", self.key(id))
    }

    /// Asks the server; an error reply is a panic.
    pub async fn ask(&self, words: &[&str]) -> Value {
        let mut cmd = Cmd::new();
        for word in words {
            cmd.arg(*word);
        }
        let reply = match self.looks.clone() {
            Looks::Single(mut connection) => connection.req_packed_command(&cmd).await,
            Looks::Cluster(mut connection) => connection.req_packed_command(&cmd).await,
            Looks::None => panic!("no connection to look with"),
        };
        let reply = reply.unwrap_or_else(|error| panic!("{words:?}: {error}"));
        reply
            .extract_error()
            .unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// GET, `None` when there is nothing.
    pub async fn get(&self, key: &str) -> Option<String> {
        match self.ask(&["GET", key]).await {
            Value::Nil => None,
            Value::BulkString(text) => Some(String::from_utf8(text).expect("UTF-8")),
            other => panic!("GET {key}: {other:?}"),
        }
    }

    /// The JSON of a row of `orders`.
    pub async fn row(&self, id: &str) -> Option<String> {
        self.get(&self.key(id)).await
    }

    /// HGETALL of a row of `orders`, sorted, as `field=value` words.
    pub async fn fields(&self, id: &str) -> Vec<String> {
        let Value::Array(words) = self.ask(&["HGETALL", &self.key(id)]).await else {
            panic!("HGETALL")
        };
        let words: Vec<String> = words
            .into_iter()
            .map(|word| match word {
                Value::BulkString(text) => String::from_utf8(text).expect("UTF-8"),
                other => panic!("HGETALL: {other:?}"),
            })
            .collect();
        let mut fields: Vec<_> = words
            .chunks(2)
            .map(|pair| format!("{}={}", pair[0], pair[1]))
            .collect();
        fields.sort();
        fields
    }

    /// PTTL in milliseconds; −1 without one, −2 without the key.
    pub async fn ttl(&self, key: &str) -> i64 {
        match self.ask(&["PTTL", key]).await {
            Value::Int(millis) => millis,
            other => panic!("PTTL: {other:?}"),
        }
    }
}

/// A source of its own identity.
pub fn source(name: &str, database: &str) -> Arc<SourceInfo> {
    static SYSTEM: AtomicU64 = AtomicU64::new(7_000_000_000_000_000_000);
    Arc::new(SourceInfo {
        name: name.into(),
        identity: SourceIdentity {
            system: SYSTEM.fetch_add(1, Ordering::Relaxed),
            timeline: 1,
            incarnation: 0,
            database: database.into(),
        },
    })
}

/// Writes a batch and waits until it is durable.
pub async fn deliver(sink: &mut Box<dyn Sink>, batch: Arc<Batch>) -> Result<Delivered> {
    let durable = sink.write(batch).await?;
    tokio::time::timeout(PATIENCE, durable)
        .await
        .expect("an answer in time")
}

/// As [`deliver`], for writes that must succeed: returns how many were written and how many came late.
pub async fn counts(sink: &mut Box<dyn Sink>, batch: Arc<Batch>) -> (u64, u64) {
    let delivered = deliver(sink, batch).await.expect("delivered");
    (delivered.written, delivered.stale)
}

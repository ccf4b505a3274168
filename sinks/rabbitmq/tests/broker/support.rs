//! Sinks to write to, and what a consumer sees of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use lockstep_conformance::feed::{self, Feed, INT8, TEXT, V};
use lockstep_core::batch::Batch;
use lockstep_core::error::Result;
use lockstep_core::position::SourceInfo;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext, SinkFactory, Trouble};
use lockstep_core::token::Token;
use lockstep_sink_rabbitmq::{RabbitmqConfig, RabbitmqSinkFactory};
use serde_json::Value;

pub const DEADLINE: Duration = Duration::from_secs(60);

/// A section with these keys beside the URL.
pub fn config(url: &str, more: &Value) -> RabbitmqConfig {
    let mut section = serde_json::json!({"url": url, "format": "flat"});
    let more = more.as_object().expect("an object").clone();
    section.as_object_mut().expect("an object").extend(more);
    serde_json::from_value(section).expect("a section")
}

/// A source with tables `public.items` and `public.others`, `(id int8 primary key, note text)`.
pub struct Shop {
    pub source: Arc<SourceInfo>,
    pub items: Arc<TableSchema>,
    pub others: Arc<TableSchema>,
}

impl Shop {
    pub fn new() -> Self {
        let columns = [("id", "int8", INT8), ("note", "text", TEXT)];
        Shop {
            source: feed::source("shop"),
            items: feed::table("shop", "items", 1, &columns),
            others: feed::table("shop", "others", 1, &columns),
        }
    }

    pub fn feed(&self) -> Feed {
        Feed::new(&self.source)
    }

    /// A transaction that inserts these rows into `items`.
    pub fn items(&self, commit: u64, ids: impl IntoIterator<Item = u64>) -> Arc<Batch> {
        let mut feed = self.feed();
        feed.begin(commit);
        for id in ids {
            feed.insert(&self.items, &[V::Text(&id.to_string()), "gift".into()]);
        }
        feed.finish()
    }

    pub fn context(&self, pipeline: &str) -> SinkContext {
        SinkContext {
            pipeline: pipeline.into(),
            name: "sink".into(),
            state: std::env::temp_dir(),
            sources: vec![Arc::clone(&self.source)],
            tables: vec![Arc::clone(&self.items)],
            trouble: Trouble::default(),
            token: None,
        }
    }

    pub async fn open(&self, config: &RabbitmqConfig, pipeline: &str) -> Result<Box<dyn Sink>> {
        RabbitmqSinkFactory::open(config, self.context(pipeline)).await
    }

    pub async fn open_by(
        &self,
        config: &RabbitmqConfig,
        pipeline: &str,
        token: u64,
    ) -> Result<Box<dyn Sink>> {
        let context = SinkContext {
            token: Some(Token(token)),
            ..self.context(pipeline)
        };
        RabbitmqSinkFactory::open(config, context).await
    }
}

/// A message as a consumer gets it.
#[derive(Debug)]
pub struct Seen {
    pub properties: BasicProperties,
    pub routing_key: String,
    pub body: Value,
}

impl Seen {
    fn new(properties: BasicProperties, routing_key: &ShortString, data: &[u8]) -> Self {
        Seen {
            properties,
            routing_key: routing_key.as_str().to_owned(),
            body: serde_json::from_slice(data).expect("JSON"),
        }
    }

    pub fn id(&self) -> String {
        let id = self.properties.message_id().as_ref().expect("an id");
        id.as_str().to_owned()
    }

    pub fn op(&self) -> char {
        let op = self.properties.kind().as_ref().expect("a type");
        op.as_str().chars().next().expect("an op")
    }

    pub fn header(&self, name: &str) -> Option<String> {
        let headers = self.properties.headers().as_ref()?.inner();
        Some(headers.get(name)?.as_long_string()?.to_string())
    }

    pub fn key(&self) -> Option<Value> {
        let key = self.header("lockstep.key")?;
        Some(serde_json::from_str(&key).expect("JSON"))
    }

    /// The key `id` of the row.
    pub fn row_id(&self) -> u64 {
        self.key().expect("a key")["id"].as_u64().expect("a number")
    }
}

/// What a consumer that knows what it has seen makes of it: each message once, by id and type.
pub fn once(seen: Vec<Seen>) -> Vec<Seen> {
    let mut known = BTreeSet::new();
    let fresh = |seen: &Seen| known.insert((seen.id(), seen.op()));
    let mut fresh = fresh;
    seen.into_iter().filter(|seen| fresh(seen)).collect()
}

/// Somebody else on the broker.
pub struct Tap {
    connection: Connection,
}

impl Tap {
    pub async fn new(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await;
        Tap {
            connection: connection.expect("connects"),
        }
    }

    pub async fn channel(&self) -> Channel {
        self.connection.create_channel().await.expect("a channel")
    }

    pub async fn exchange(&self, name: &str) {
        let channel = self.channel().await;
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        channel
            .exchange_declare(
                name.into(),
                ExchangeKind::Topic,
                options,
                FieldTable::default(),
            )
            .await
            .expect("an exchange");
    }

    /// A queue, bound to an exchange.
    pub async fn queue(
        &self,
        name: &str,
        arguments: &[(&str, AMQPValue)],
        bind: Option<(&str, &str)>,
    ) {
        let channel = self.channel().await;
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert((*name).into(), value.clone());
        }
        channel
            .queue_declare(name.into(), QueueDeclareOptions::durable(), table)
            .await
            .expect("a queue");
        if let Some((exchange, key)) = bind {
            channel
                .queue_bind(
                    name.into(),
                    exchange.into(),
                    key.into(),
                    QueueBindOptions::default(),
                    FieldTable::default(),
                )
                .await
                .expect("a binding");
        }
    }

    /// Takes all that is in a queue; nothing where there is none.
    pub async fn take(&self, queue: &str) -> Vec<Seen> {
        let channel = self.channel().await;
        let mut seen = Vec::new();
        loop {
            let options = BasicGetOptions { no_ack: true };
            match channel.basic_get(queue.into(), options).await {
                Ok(Some(message)) => seen.push(Seen::new(
                    message.properties.clone(),
                    &message.routing_key,
                    &message.data,
                )),
                Ok(None) => return seen,
                Err(error) if error.to_string().contains("NOT_FOUND") => return seen,
                Err(error) => panic!("{queue}: {error}"),
            }
        }
    }

    /// The first messages of a stream.
    pub async fn stream(&self, queue: &str, count: usize) -> Vec<Seen> {
        let channel = self.channel().await;
        channel
            .basic_qos(100, BasicQosOptions::default())
            .await
            .expect("a limit");
        let mut arguments = FieldTable::default();
        arguments.insert(
            "x-stream-offset".into(),
            AMQPValue::LongString("first".into()),
        );
        let options = BasicConsumeOptions::default();
        let consumer =
            channel.basic_consume(queue.into(), ShortString::default(), options, arguments);
        let mut consumer = consumer.await.expect("consumes");
        let mut seen = Vec::new();
        while seen.len() < count {
            let next = tokio::time::timeout(DEADLINE, consumer.next()).await;
            let message = next.expect("in time").expect("goes on").expect("a message");
            seen.push(Seen::new(
                message.properties.clone(),
                &message.routing_key,
                &message.data,
            ));
            message.ack(BasicAckOptions::default()).await.expect("acks");
        }
        seen
    }
}

/// Rows in the order of their first messages, and how many messages there were of each.
pub fn counted(seen: &[Seen]) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    for seen in seen {
        *counts.entry(seen.row_id()).or_default() += 1;
    }
    counts
}

impl Tap {
    /// Messages in a queue; `None` where there is none.
    pub async fn depth(&self, queue: &str) -> Option<u64> {
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let channel = self.channel().await;
        let queue = channel.queue_declare(queue.into(), options, FieldTable::default());
        Some(queue.await.ok()?.message_count().into())
    }
}

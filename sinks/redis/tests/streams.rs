//! Streams: what every sink promises, and what is their own.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockstep_conformance::feed::{Feed, V, source};
use lockstep_conformance::history::{Row, items};
use lockstep_conformance::sink::{Event, Held, Progress, SinkUnderTest, row_of};
use lockstep_core::batch::Batch;
use lockstep_core::check::Verdict;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext, SinkFactory, Trouble};
use lockstep_core::{ErrorKind, Result};
use lockstep_kit::Component;
use lockstep_kit::component::available_or_say_so;
use lockstep_kit::redis::Redis as Server;
use lockstep_kit::{require, unique};
use lockstep_sink_redis::{StreamConfig, StreamFactory};
use redis::Value;
use redis::aio::MultiplexedConnection;
use serde_json::json;

/// Streams whose names begin with a prefix.
struct Streams {
    prefix: String,
    config: StreamConfig,
    connection: MultiplexedConnection,
}

impl Streams {
    async fn new(more: serde_json::Value) -> Self {
        let url = Server::shared().await.url();
        let prefix = unique("streams");
        let mut section = json!({
            "url": url,
            "stream": format!("{prefix}:{{source}}:{{table}}"),
            "message_stream": format!("{prefix}:message"),
            "format": "flat",
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            section[name] = value.clone();
        }
        let client = redis::Client::open(url).expect("a URL");
        let patient =
            redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(30)));
        let connection = client.get_multiplexed_async_connection_with_config(&patient);
        Streams {
            config: serde_json::from_value(section).expect("a section"),
            connection: connection.await.expect("the server answers"),
            prefix,
        }
    }

    fn context(&self) -> SinkContext {
        SinkContext {
            pipeline: self.prefix.as_str().into(),
            name: "sink".into(),
            state: std::env::temp_dir(),
            sources: vec![source("shop")],
            tables: Vec::new(),
            trouble: Trouble::default(),
            token: None,
        }
    }

    async fn ask(&self, words: &[&str]) -> Value {
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        let mut connection = self.connection.clone();
        command
            .query_async(&mut connection)
            .await
            .expect("an answer")
    }

    /// Names and values of each entry.
    async fn entries(&self, stream: &str) -> Vec<Vec<(String, String)>> {
        let name = format!("{}:{stream}", self.prefix);
        let Value::Array(entries) = self.ask(&["XRANGE", &name, "-", "+"]).await else {
            panic!("XRANGE");
        };
        let fields = |entry: Value| {
            let Value::Array(entry) = entry else {
                panic!("{entry:?}")
            };
            let Value::Array(words) = entry[1].clone() else {
                panic!("{entry:?}")
            };
            let words: Vec<String> = words.into_iter().map(text).collect();
            words
                .chunks(2)
                .map(|pair| (pair[0].clone(), pair[1].clone()))
                .collect()
        };
        entries.into_iter().map(fields).collect()
    }
}

fn text(value: Value) -> String {
    match value {
        Value::BulkString(text) => String::from_utf8(text).expect("UTF-8"),
        other => panic!("{other:?}"),
    }
}

#[async_trait]
impl SinkUnderTest for Streams {
    async fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        let pipeline = self.prefix.as_str().into();
        StreamFactory::open(
            &self.config,
            SinkContext {
                pipeline,
                ..context
            },
        )
        .await
    }

    async fn held(&self, table: &Arc<TableSchema>) -> Held {
        let entries = self
            .entries(&format!("{}:{}", table.source, table.id.name))
            .await;
        let event = |entry: &Vec<(String, String)>| {
            let get = |name: &str| {
                let found = entry.iter().find(|(known, _)| known == name);
                found.map(|(_, value)| value.as_str())
            };
            let value: serde_json::Value =
                serde_json::from_str(get("value").expect("a value")).expect("JSON");
            let key = get("key").map(|key| row_of(&serde_json::from_str(key).expect("JSON")));
            Event {
                id: get("lockstep.id").expect("an id").to_owned(),
                op: get("op").and_then(|op| op.chars().next()).expect("an op"),
                key: key.unwrap_or_else(Row::new),
                row: value["row"].is_object().then(|| row_of(&value["row"])),
            }
        };
        Held::Events(entries.iter().map(event).collect())
    }

    fn progress(&self) -> Progress {
        Progress::Atomic
    }

    fn is_fenced(&self) -> bool {
        true
    }
}

async fn streams() -> Option<Streams> {
    match available_or_say_so(Component::Redis) {
        true => Some(Streams::new(json!({})).await),
        false => None,
    }
}

lockstep_conformance::sink_suite!(streams);

fn three(commit: u64) -> Arc<Batch> {
    let (source, items) = (source("shop"), items("shop", "items"));
    let mut feed = Feed::new(&source);
    feed.begin(commit);
    for id in ["1", "2", "3"] {
        feed.insert(&items, &[V::Text(id), "new".into(), "n".into()]);
    }
    feed.finish()
}

#[tokio::test]
async fn a_stream_keeps_about_as_many_as_it_is_told() {
    require!(Component::Redis);
    let streams = Streams::new(json!({ "max_length": 100 })).await;
    let mut sink = streams.open(streams.context()).await.expect("opens");
    for commit in 1..=400 {
        let durable = sink.write(three(commit)).await.expect("taken");
        durable.await.expect("durable");
    }
    let left = streams.entries("shop:items").await.len();
    assert!((100..400).contains(&left), "{left} of 1200");
}

#[tokio::test]
async fn what_is_no_stream_is_named_and_nothing_is_written() {
    require!(Component::Redis);
    let streams = Streams::new(json!({})).await;
    let name = format!("{}:shop:items", streams.prefix);
    streams.ask(&["SET", &name, "mine"]).await;
    let mut sink = streams.open(streams.context()).await.expect("opens");
    let durable = sink.write(three(7)).await.expect("taken");
    let error = durable.await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    assert!(
        error.to_string().contains(&name) && error.remedy_text().is_some(),
        "{error}"
    );
    let mut sink = streams.open(streams.context()).await.expect("opens");
    let resumed = sink.resume(&source("shop")).await.expect("resumes");
    assert!(resumed.is_none(), "{resumed:?}");
    assert_eq!(text(streams.ask(&["GET", &name]).await), "mine");
}

/// Who has opened it last goes on; who was there before, as a process does that was taken for dead, is told and appends nothing.
#[tokio::test]
async fn a_second_writer_takes_the_streams_over() {
    require!(Component::Redis);
    let streams = Streams::new(json!({})).await;
    let mut first = streams.open(streams.context()).await.expect("opens");
    let durable = first.write(three(1)).await.expect("taken");
    durable.await.expect("durable");
    let mut second = streams.open(streams.context()).await.expect("opens");
    let durable = first.write(three(2)).await.expect("taken");
    let error = durable.await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert_eq!(streams.entries("shop:items").await.len(), 3);
    let durable = second.write(three(2)).await.expect("taken");
    durable.await.expect("durable");
    assert_eq!(streams.entries("shop:items").await.len(), 6);
}

#[tokio::test]
async fn the_check_tries_what_the_sink_needs() {
    require!(Component::Redis);
    let streams = Streams::new(json!({})).await;
    let findings = StreamFactory::preflight(&streams.config, "test", "sink").await;
    let failed = findings
        .iter()
        .find(|finding| finding.verdict == Verdict::Fail);
    assert!(failed.is_none() && findings.len() > 4, "{findings:?}");
    let user = unique("user");
    let rule = [
        "ACL", "SETUSER", &user, "on", ">hello", "~*", "+@all", "-xadd",
    ];
    streams.ask(&rule).await;
    let url = Server::shared()
        .await
        .url()
        .replacen("://", &format!("://{user}:hello@"), 1);
    let streams = Streams::new(json!({ "url": url })).await;
    let findings = StreamFactory::preflight(&streams.config, "test", "sink").await;
    let refused = findings
        .iter()
        .find(|finding| finding.verdict == Verdict::Fail);
    let refused = refused.expect("a finding");
    assert!(
        refused.detail.contains("XADD") && !format!("{findings:?}").contains("hello"),
        "{findings:?}"
    );
}

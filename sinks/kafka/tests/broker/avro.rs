//! Records in Avro, read by a decoder that is not ours with the schemas that a real registry has.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use apache_avro::types::Value as Avro;
use apache_avro::{Schema, from_avro_datum};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lockstep_core::ErrorKind;
use lockstep_core::batch::Op;
use lockstep_core::check::Verdict;
use lockstep_core::schema::{ColumnType, TableSchema, TypeKind};
use lockstep_core::sink::SinkFactory;
use lockstep_kit::kafka::Kafka;
use lockstep_kit::proxy::Proxy;
use lockstep_kit::registry::Registry;
use lockstep_kit::{Component, require, unique};
use lockstep_sink_kafka::{KafkaConfig, KafkaSinkFactory};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::support::{Event, Feed, Seen, config, insert, open, read};

static SCHEMAS: LazyLock<Mutex<HashMap<u32, Arc<Schema>>>> = LazyLock::new(Mutex::default);

/// The JSON of a key or value in the wire format of Confluent's registry. Blocks; columns that `unchanged` names are left out.
pub fn json(bytes: &[u8]) -> Value {
    let (head, mut rest) = bytes.split_at(5);
    let id = u32::from_be_bytes(head[1..].try_into().expect("four bytes"));
    let known = SCHEMAS.lock().expect("no panic").get(&id).cloned();
    let schema = known.unwrap_or_else(|| {
        let asked = async {
            let registry = Registry::shared().await;
            registry.ask("GET", &format!("/schemas/ids/{id}"), "").await
        };
        let (status, body) = Handle::current().block_on(asked);
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        let text = answer["schema"].as_str().expect("a schema");
        let schema = Arc::new(Schema::parse_str(text).expect("a schema"));
        let mut known = SCHEMAS.lock().expect("no panic");
        known.insert(id, Arc::clone(&schema));
        schema
    });
    let value = from_avro_datum(&schema, &mut rest, None).expect("of its schema");
    assert!(rest.is_empty(), "{} bytes too many", rest.len());
    let mut json = plain(&value);
    let unchanged = json["unchanged"].as_array().cloned().unwrap_or_default();
    for name in unchanged.iter().filter_map(Value::as_str) {
        if let Some(row) = json["row"].as_object_mut() {
            row.remove(name);
        }
    }
    json
}

fn plain(value: &Avro) -> Value {
    match value {
        Avro::Null => Value::Null,
        Avro::Boolean(value) => json!(value),
        Avro::Int(value) => json!(value),
        Avro::Long(value) => json!(value),
        Avro::Double(value) => json!(value),
        Avro::String(text) => json!(text),
        Avro::Bytes(bytes) => json!(STANDARD.encode(bytes)),
        Avro::Union(_, value) => plain(value),
        Avro::Array(items) => items.iter().map(plain).collect(),
        Avro::Record(fields) => {
            let fields = fields.iter();
            fields
                .map(|(name, value)| (name.clone(), plain(value)))
                .collect()
        }
        other => panic!("{other:?}"),
    }
}

fn in_avro(kafka: &Kafka, registry: &str, feed: &Feed, more: Value) -> KafkaConfig {
    let mut all = json!({"encoding": "avro", "registry": {"url": registry}});
    let more = more.as_object().expect("an object").clone();
    all.as_object_mut().expect("an object").extend(more);
    config(kafka.bootstrap(), &feed.source.name, &all)
}

async fn write(
    sink: &mut dyn lockstep_core::sink::Sink,
    feed: &Feed,
    commit: u64,
    events: &[Event<'_>],
) -> lockstep_core::Result<()> {
    sink.write(feed.batch(commit, events))
        .await?
        .await
        .map(drop)
}

/// The table after an ALTER: its `note` is of another type, or gone.
fn altered(feed: &Feed, note: Option<(u32, &str)>) -> Feed {
    let mut schema = TableSchema::clone(&feed.schema);
    schema.version += 1;
    match note {
        Some((oid, name)) => {
            schema.columns[1].ty = ColumnType {
                oid,
                typmod: -1,
                name: name.into(),
                kind: TypeKind::Base,
            };
        }
        None => schema.columns.truncate(1),
    }
    Feed {
        source: Arc::clone(&feed.source),
        schema: Arc::new(schema),
    }
}

fn value(seen: &Seen) -> Value {
    serde_json::from_str(seen.value.as_deref().expect("a value")).expect("JSON")
}

async fn versions(registry: &Registry, subject: &str) -> String {
    let path = format!("/subjects/{subject}/versions");
    registry.ask("GET", &path, "").await.1
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_is_read_with_the_schema_of_the_registry() {
    require!(Component::Kafka, Component::Registry);
    let kafka = Kafka::shared().await;
    let registry = Registry::shared().await;
    for format in ["debezium", "flat"] {
        let feed = Feed::new(&unique("avro"));
        let config = in_avro(
            kafka,
            registry.url(),
            &feed,
            json!({"format": format, "partitions": 1}),
        );
        let mut sink = open(&config, &feed.source.name, &[&feed])
            .await
            .expect("opens");
        let events = [
            insert(1, "one \"ü\""),
            Event {
                op: Op::Update,
                id: 1,
                note: "uno",
            },
            Event {
                op: Op::Delete,
                id: 1,
                note: "",
            },
            Event {
                op: Op::Truncate,
                id: 0,
                note: "",
            },
        ];
        write(sink.as_mut(), &feed, 100, &events)
            .await
            .expect("durable");
        // In the stream the table loses a column: another version of its schema.
        let later = altered(&feed, None);
        write(sink.as_mut(), &later, 200, &[insert(2, "two")])
            .await
            .expect("durable");
        sink.close().await.expect("closes");

        let seen = read(kafka.bootstrap(), &feed.topic()).await;
        let rows = match format {
            "flat" => "row",
            _ => "after",
        };
        let ops: Vec<Value> = seen
            .iter()
            .filter(|seen| seen.value.is_some())
            .map(|seen| {
                let value = value(seen);
                json!([value["op"], value[rows]])
            })
            .collect();
        let expected = json!([
            ["c", {"id": 1, "note": "one \"ü\""}],
            ["u", {"id": 1, "note": "uno"}],
            ["d", null],
            ["t", null],
            ["c", {"id": 2}],
        ]);
        assert_eq!(Value::from(ops), expected, "{format}");
        assert_eq!(seen[0].key.as_deref(), Some(r#"{"id":1}"#));
        assert_eq!(seen[3].value, None, "the tombstone");
        let topic = feed.topic();
        assert_eq!(
            versions(registry, &format!("{topic}-key")).await.trim(),
            "[1]"
        );
        assert_eq!(
            versions(registry, &format!("{topic}-value")).await.trim(),
            "[1,2]"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subjects_are_named_as_they_are_set() {
    require!(Component::Kafka, Component::Registry);
    let kafka = Kafka::shared().await;
    let registry = Registry::shared().await;
    for (name, prefix) in [("record", ""), ("topic-record", "TOPIC-")] {
        let source = unique("subjects");
        let feed = Feed::new(&source);
        let settings = json!({"url": registry.url(), "subject": name});
        let config = in_avro(kafka, registry.url(), &feed, json!({"registry": settings}));
        let mut sink = open(&config, &source, &[&feed]).await.expect("opens");
        write(sink.as_mut(), &feed, 100, &[insert(1, "a")])
            .await
            .expect("durable");
        sink.close().await.expect("closes");
        let prefix = prefix.replace("TOPIC", &feed.topic());
        for record in ["Key", "Envelope"] {
            let subject = format!("{prefix}{}.public.items.{record}", source.replace('-', "_"));
            let there = versions(registry, &subject).await;
            assert_eq!(there.trim(), "[1]", "{subject}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_registry_refuses_stops_with_its_words_and_nothing_is_written() {
    require!(Component::Kafka, Component::Registry);
    let kafka = Kafka::shared().await;
    let registry = Registry::shared().await;
    let feed = Feed::new(&unique("refused"));
    let config = in_avro(kafka, registry.url(), &feed, json!({}));
    let mut sink = open(&config, &feed.source.name, &[&feed])
        .await
        .expect("opens");
    write(sink.as_mut(), &feed, 100, &[insert(1, "a")])
        .await
        .expect("durable");
    let path = format!("/config/{}-value", feed.topic());
    let set = async |level: &str| {
        let body = json!({"compatibility": level}).to_string();
        assert_eq!(registry.ask("PUT", &path, &body).await.0, 200);
    };
    set("BACKWARD").await;
    let later = altered(&feed, Some((20, "int8")));
    let findings = KafkaSinkFactory::accepts(&config, &[Arc::clone(&later.schema)]).await;
    let verdicts: Vec<Verdict> = findings.iter().map(|finding| finding.verdict).collect();
    assert_eq!(verdicts, [Verdict::Pass, Verdict::Fail], "{findings:?}");

    let error = write(sink.as_mut(), &later, 200, &[insert(2, "7")]).await;
    let error = error.expect_err("incompatible");
    assert_eq!(error.kind(), ErrorKind::Setup);
    let said = error.to_string();
    // Apicurio's own.
    for words in [
        "Incompatible artifact",
        "error 409",
        "Remedy",
        "public.items",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    drop(sink);
    assert_eq!(read(kafka.bootstrap(), &feed.topic()).await.len(), 1);

    // Once it is allowed, the change comes.
    set("NONE").await;
    let mut sink = open(&config, &feed.source.name, &[&later])
        .await
        .expect("opens");
    write(sink.as_mut(), &later, 200, &[insert(2, "7")])
        .await
        .expect("durable");
    sink.close().await.expect("closes");
    let seen = read(kafka.bootstrap(), &feed.topic()).await;
    let last = seen
        .iter()
        .find(|seen| seen.key.as_deref() == Some(r#"{"id":2}"#));
    assert_eq!(
        value(last.expect("is there"))["after"],
        json!({"id": 2, "note": 7})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_is_waited_for_and_nothing_is_skipped() {
    require!(Component::Kafka, Component::Registry);
    let kafka = Kafka::shared().await;
    let registry = Registry::shared().await;
    let proxy = Proxy::start(registry.address()).await;
    let url = format!("http://{}{}", proxy.address(), registry.path());
    let feed = Feed::new(&unique("away"));
    let config = in_avro(kafka, &url, &feed, json!({}));
    let mut sink = open(&config, &feed.source.name, &[&feed])
        .await
        .expect("opens");
    write(sink.as_mut(), &feed, 100, &[insert(1, "a")])
        .await
        .expect("durable");
    proxy.down().await;
    // What is known goes on without it.
    write(sink.as_mut(), &feed, 200, &[insert(2, "b")])
        .await
        .expect("durable");
    let later = altered(&feed, None);
    let error = write(sink.as_mut(), &later, 300, &[insert(3, "c")]).await;
    let error = error.expect_err("no id for the schema");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("schema registry"), "{error}");
    let findings = KafkaSinkFactory::preflight(&config, &feed.source.name, "events").await;
    let told = findings
        .iter()
        .find(|finding| finding.subject == "schema registry");
    assert_eq!(told.expect("a finding").verdict, Verdict::Fail);
    drop(sink);

    proxy.refuse(false).await;
    let findings = KafkaSinkFactory::preflight(&config, &feed.source.name, "events").await;
    let told = findings
        .iter()
        .find(|finding| finding.subject == "schema registry");
    assert_eq!(told.expect("a finding").verdict, Verdict::Pass);
    let mut sink = open(&config, &feed.source.name, &[&later])
        .await
        .expect("opens");
    let held = sink
        .resume(&feed.source)
        .await
        .expect("resumes")
        .expect("has a position");
    assert_eq!(held.upto().commit.0, 200);
    write(sink.as_mut(), &later, 300, &[insert(3, "c")])
        .await
        .expect("durable");
    sink.close().await.expect("closes");
    let seen = read(kafka.bootstrap(), &feed.topic()).await;
    let mut ids: Vec<&str> = seen.iter().filter_map(|seen| seen.key.as_deref()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [r#"{"id":1}"#, r#"{"id":2}"#, r#"{"id":3}"#]);
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_that_must_be_there_are_not_registered() {
    require!(Component::Kafka, Component::Registry);
    let kafka = Kafka::shared().await;
    let registry = Registry::shared().await;
    let feed = Feed::new(&unique("manual"));
    let settings = json!({"url": registry.url(), "auto_register": false});
    let config = in_avro(kafka, registry.url(), &feed, json!({"registry": settings}));
    let mut sink = open(&config, &feed.source.name, &[&feed])
        .await
        .expect("opens");
    let error = write(sink.as_mut(), &feed, 100, &[insert(1, "a")]).await;
    let error = error.expect_err("it is not there");
    assert_eq!(error.kind(), ErrorKind::Setup);
    let subject = format!("{}-key", feed.topic());
    assert!(error.to_string().contains(&subject), "{error}");
    drop(sink);
    assert_eq!(
        registry
            .ask("GET", &format!("/subjects/{subject}/versions"), "")
            .await
            .0,
        404
    );
    // By hand: `check` shows what.
    let findings = KafkaSinkFactory::accepts(&config, &[Arc::clone(&feed.schema)]).await;
    for finding in &findings {
        assert_eq!(finding.verdict, Verdict::Fail, "{finding:?}");
        let remedy = finding.remedy.as_deref().expect("a remedy");
        let (_, schema) = remedy.split_once("by hand: ").expect("a schema");
        let subject = finding.subject.strip_prefix("subject ").expect("a subject");
        let body = json!({"schema": schema}).to_string();
        let (status, body) = registry
            .ask("POST", &format!("/subjects/{subject}/versions"), &body)
            .await;
        assert_eq!(status, 200, "{body}");
    }
    let mut sink = open(&config, &feed.source.name, &[&feed])
        .await
        .expect("opens");
    write(sink.as_mut(), &feed, 100, &[insert(1, "a")])
        .await
        .expect("durable");
    sink.close().await.expect("closes");
}

//! Topics are compared with rows by the latest record of each key.

use std::sync::Arc;

use lockstep_core::ErrorKind;
use lockstep_core::batch::Op;
use lockstep_core::position::Lsn;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Held, HeldVersion, Inspect, Sink, SinkFactory};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::registry::Registry;
use lockstep_kit::{Component, require, unique};
use lockstep_sink_kafka::{KafkaConfig, KafkaSinkFactory};
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::json;

use crate::support::{DEADLINE, Event, Feed, config, context, insert, open};

fn event(op: Op, id: u64, note: &str) -> Event<'_> {
    Event { op, id, note }
}

async fn write(sink: &mut dyn Sink, feed: &Feed, commit: u64, events: &[Event<'_>]) {
    let durable = sink.write(feed.batch(commit, events)).await;
    durable.expect("taken").await.expect("durable");
}

async fn inspector(config: &KafkaConfig, feeds: &[&Feed]) -> Box<dyn Inspect> {
    let opened = KafkaSinkFactory::inspect(config, context("shop", feeds)).await;
    opened.expect("opens").expect("topics can be read back")
}

/// How each row stands, in a word.
async fn standing(inspector: &mut dyn Inspect, feed: &Feed, rows: &[Event<'_>]) -> String {
    let held = inspector.compare(&feed.batch(1 << 40, rows)).await;
    let words = held.expect("compared").into_iter().map(|held| match held {
        Held::Same => "same".to_owned(),
        Held::Missing { key } => format!("missing {}", key.rsplit_once(' ').expect("a key").1),
        Held::Different {
            expected, actual, ..
        } => format!("{actual} for {expected}"),
        Held::Extra { actual, .. } => format!("extra {actual}"),
        Held::Refused { message } => format!("refused {message}"),
    });
    words.collect::<Vec<_>>().join("; ")
}

/// The keys that a walk gives, sorted, and what else it tells.
async fn keys(inspector: &mut dyn Inspect, table: &Arc<TableSchema>) -> (Vec<String>, Vec<String>) {
    let listing = inspector.list(table).await.expect("lists");
    let mut listing = listing.expect("its keys can be read back");
    let (mut keys, mut foreign) = (Vec::new(), Vec::new());
    while let Some(page) = listing.next().await.expect("a page") {
        keys.extend(page.keys.into_iter().map(|key| key.join(",")));
        foreign.extend(page.foreign);
    }
    keys.sort();
    foreign.sort();
    (keys, foreign)
}

fn producer(kafka: &Kafka, transactional: Option<&str>) -> BaseProducer {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", kafka.bootstrap())
        .set("partitioner", "murmur2_random");
    if let Some(id) = transactional {
        client.set("transactional.id", id);
    }
    client.create().expect("a producer")
}

/// Behind the sink's back.
fn produce(kafka: &Kafka, topic: &str, key: Option<&str>, value: Option<&str>) {
    let producer = producer(kafka, None);
    producer.send(record(topic, key, value)).expect("taken");
    producer.flush(DEADLINE).expect("delivered");
}

fn record<'a>(
    topic: &'a str,
    key: Option<&'a str>,
    value: Option<&'a str>,
) -> BaseRecord<'a, str, str> {
    BaseRecord {
        topic,
        partition: None,
        payload: value,
        key,
        timestamp: None,
        headers: None,
        delivery_opaque: (),
    }
}

fn admin(kafka: &Kafka) -> AdminClient<DefaultClientContext> {
    ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .create()
        .expect("a client")
}

fn row(id: u64, note: &str) -> String {
    json!({"id": id, "note": note}).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_sink_wrote_is_as_it_should_be_and_nothing_else_is() {
    require!(Component::Kafka);
    for (format, exactly_once) in [("debezium", true), ("flat", true), ("debezium", false)] {
        let more = json!({"format": format, "exactly_once": exactly_once});
        as_it_should_be(format, &more).await;
    }
}

/// What is written behind the sink's back is JSON all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_sink_wrote_in_avro_is_as_it_should_be_and_nothing_else_is() {
    require!(Component::Kafka, Component::Registry);
    let url = Registry::shared().await.url();
    for format in ["debezium", "flat"] {
        let more = json!({"format": format, "encoding": "avro", "registry": {"url": url}});
        as_it_should_be(format, &more).await;
    }
}

async fn as_it_should_be(format: &str, more: &serde_json::Value) {
    let kafka = Kafka::shared().await;
    let feed = Feed::new(&unique("inspect"));
    let topic = feed.topic();
    let config = config(kafka.bootstrap(), &feed.source.name, more);
    let mut sink = open(&config, &config.progress_topic, &[&feed])
        .await
        .expect("opens");
    let mut inspector = inspector(&config, &[&feed]).await;
    let inspector = inspector.as_mut();
    let absent = standing(inspector, &feed, &[event(Op::Read, 1, "a")]).await;
    assert_eq!(absent, r#"missing {"id":1}"#);
    let many: Vec<Event<'_>> = (1..=500).map(|id| insert(id, "a")).collect();
    write(sink.as_mut(), &feed, 100, &many).await;
    let changes = [
        event(Op::Update, 2, "b"),
        event(Op::Delete, 3, ""),
        event(Op::Delete, 4, ""),
        event(Op::Read, 4, "d"),
    ];
    write(sink.as_mut(), &feed, 200, &changes).await;
    let rows = [
        event(Op::Read, 1, "a"),
        event(Op::Read, 2, "b"),
        event(Op::Delete, 3, ""),
        event(Op::Read, 4, "d"),
        event(Op::Delete, 501, ""),
    ];
    let word = "same; same; same; same; same";
    assert_eq!(standing(inspector, &feed, &rows).await, word, "{format}");
    let wrong = [
        event(Op::Read, 1, "z"),
        event(Op::Delete, 2, ""),
        event(Op::Read, 3, "a"),
        event(Op::Read, 1, "a"),
    ];
    let expected = format!(
        r#"{} for {}; extra {}; missing {{"id":3}}; same"#,
        row(1, "a"),
        row(1, "z"),
        row(2, "b")
    );
    assert_eq!(standing(inspector, &feed, &wrong).await, expected);
    assert_eq!(inspector.count(&feed.schema).await.expect("counts"), 499);
    let (listed, foreign) = keys(inspector, &feed.schema).await;
    let mut there: Vec<String> = (1..=500)
        .filter(|id| *id != 3)
        .map(|id| id.to_string())
        .collect();
    there.sort();
    assert_eq!((listed, foreign), (there, Vec::new()));

    let asked = feed.batch(1 << 40, &[event(Op::Read, 2, "z")]);
    let held = inspector.compare(&asked).await.expect("compared");
    let of = |held: &[Held]| match &held[0] {
        Held::Different { version, .. } => *version,
        other => panic!("{other:?}"),
    };
    assert_eq!(of(&held), HeldVersion::At(Lsn(200)));

    // Behind its back: a value of another row, a version from before, a tombstone, one too many, one that is none.
    let version = |id: u64, note: &str| match format {
        "flat" => json!({"op": "u", "row": {"id": id, "note": note}}).to_string(),
        _ => json!({"before": null, "after": {"note": note, "id": id}, "op": "u"}).to_string(),
    };
    produce(kafka, &topic, Some(r#"{"id":1}"#), Some(&version(1, "ü")));
    produce(kafka, &topic, Some(r#"{"id":2}"#), Some(&version(2, "a")));
    produce(kafka, &topic, Some(r#"{"id":5}"#), None);
    produce(
        kafka,
        &topic,
        Some(r#"{"id":900}"#),
        Some(&version(900, "x")),
    );
    produce(kafka, &topic, Some(r#"{"id":6}"#), Some("{\"op\":"));
    produce(kafka, &topic, Some(r#"{"id": 7}"#), Some(&version(7, "x")));
    produce(kafka, &topic, Some("no key"), Some(&version(8, "x")));
    produce(kafka, &topic, None, Some("x"));
    // Of another order, and as it should be.
    produce(kafka, &topic, Some(r#"{"id":9}"#), Some(&version(9, "a")));
    let rows = [
        event(Op::Read, 1, "a"),
        event(Op::Read, 2, "b"),
        event(Op::Read, 5, "a"),
        event(Op::Delete, 900, ""),
        event(Op::Read, 6, "a"),
        event(Op::Read, 7, "a"),
        event(Op::Read, 9, "a"),
    ];
    let shown = |id: u64, note: &str| match format {
        "flat" => row(id, note),
        _ => json!({"note": note, "id": id}).to_string(),
    };
    let expected = format!(
        r#"{} for {}; {} for {}; missing {{"id":5}}; extra {}; {{"op": for {}; same; same"#,
        shown(1, "ü"),
        row(1, "a"),
        shown(2, "a"),
        row(2, "b"),
        shown(900, "x"),
        row(6, "a"),
    );
    assert_eq!(standing(inspector, &feed, &rows).await, expected);
    let held = inspector.compare(&asked).await.expect("compared");
    assert_eq!(of(&held), HeldVersion::Unknown);
    let (listed, foreign) = keys(inspector, &feed.schema).await;
    assert!(listed.contains(&"900".to_owned()) && !listed.contains(&"5".to_owned()));
    assert_eq!(foreign.len(), 3, "{foreign:?}");
    let told = format!("{topic} records without a key in partition ");
    assert!(foreign[1].starts_with(&told), "{foreign:?}");
    let others = [&foreign[0], &foreign[2]];
    assert_eq!(
        others,
        [
            &format!("{topic} no key"),
            &format!("{topic} {{\"id\": 7}}")
        ]
    );

    // TRUNCATE, and a row that comes behind it.
    write(sink.as_mut(), &feed, 300, &[event(Op::Truncate, 0, "")]).await;
    write(sink.as_mut(), &feed, 400, &[insert(8, "new")]).await;
    let rows = [
        event(Op::Read, 8, "new"),
        event(Op::Delete, 1, ""),
        event(Op::Read, 10, "a"),
    ];
    let expected = r#"same; same; missing {"id":10}"#;
    assert_eq!(standing(inspector, &feed, &rows).await, expected);
    assert_eq!(inspector.count(&feed.schema).await.expect("counts"), 1);
    sink.close().await.expect("closes");
}

/// Keys move to other partitions, and what they left behind is older.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_may_be_added() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let feed = Feed::new(&unique("grow"));
    let config = config(
        kafka.bootstrap(),
        &feed.source.name,
        &json!({"partitions": 2}),
    );
    let mut sink = open(&config, &config.progress_topic, &[&feed])
        .await
        .expect("opens");
    let rows = |note| {
        (1..=100)
            .map(move |id| insert(id, note))
            .collect::<Vec<_>>()
    };
    write(sink.as_mut(), &feed, 100, &rows("a")).await;
    let mut before = inspector(&config, &[&feed]).await;
    assert_eq!(before.count(&feed.schema).await.expect("counts"), 100);
    sink.close().await.expect("closes");
    let topic = feed.topic();
    let grown = [NewPartitions::new(&topic, 5)];
    let answer = admin(kafka)
        .create_partitions(&grown, &AdminOptions::new())
        .await;
    answer.expect("an answer")[0].as_ref().expect("grown");
    let mut sink = open(&config, &config.progress_topic, &[&feed])
        .await
        .expect("opens");
    write(sink.as_mut(), &feed, 200, &rows("b")).await;
    let gone: Vec<Event<'_>> = (1..=50).map(|id| event(Op::Delete, id, "")).collect();
    write(sink.as_mut(), &feed, 300, &gone).await;
    let mut after = inspector(&config, &[&feed]).await;
    for inspector in [before.as_mut(), after.as_mut()] {
        let there = (51..=100).map(|id| event(Op::Read, id, "b"));
        let all: Vec<Event<'_>> = gone.iter().copied().chain(there).collect();
        let word = standing(inspector, &feed, &all).await;
        assert_eq!(word, vec!["same"; 100].join("; "));
        assert_eq!(keys(inspector, &feed.schema).await.0.len(), 50);
    }
    sink.close().await.expect("closes");
}

/// Where a topic's records go by their age, one that is not there proves nothing; where they do not, it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_records_are_not_missing() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    for (policy, expected) in [
        (
            "delete",
            "same; {\"id\":5,\"note\":\"a\"} for {\"id\":5,\"note\":\"z\"}",
        ),
        (
            "compact",
            "missing {\"id\":1}; {\"id\":5,\"note\":\"a\"} for {\"id\":5,\"note\":\"z\"}",
        ),
    ] {
        let feed = Feed::new(&unique("retention"));
        let topic = feed.topic();
        let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
        let made = admin(kafka)
            .create_topics(&[new], &AdminOptions::new())
            .await;
        made.expect("an answer")[0].as_ref().expect("made");
        let config = config(
            kafka.bootstrap(),
            &feed.source.name,
            &json!({"exactly_once": false}),
        );
        let mut sink = open(&config, &config.progress_topic, &[&feed])
            .await
            .expect("opens");
        let many: Vec<Event<'_>> = (1..=5).map(|id| insert(id, "a")).collect();
        write(sink.as_mut(), &feed, 100, &many).await;
        let mut inspector = inspector(&config, &[&feed]).await;
        let rows = [event(Op::Read, 1, "a"), event(Op::Read, 5, "z")];
        let whole = "same; {\"id\":5,\"note\":\"a\"} for {\"id\":5,\"note\":\"z\"}";
        assert_eq!(standing(inspector.as_mut(), &feed, &rows).await, whole);
        let mut cut = TopicPartitionList::new();
        cut.add_partition_offset(&topic, 0, Offset::Offset(3))
            .expect("a partition");
        let answer = admin(kafka)
            .delete_records(&cut, &AdminOptions::new())
            .await;
        answer.expect("an answer").elements()[0]
            .error()
            .expect("cut");
        let topic = ResourceSpecifier::Topic(&topic);
        let set = AlterConfig::new(topic).set("cleanup.policy", policy);
        let altered = admin(kafka)
            .alter_configs(&[set], &AdminOptions::new())
            .await;
        altered.expect("an answer")[0].as_ref().expect("set");
        assert_eq!(
            standing(inspector.as_mut(), &feed, &rows).await,
            expected,
            "{policy}"
        );
        assert_eq!(keys(inspector.as_mut(), &feed.schema).await.0, ["4", "5"]);
        sink.close().await.expect("closes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_with_too_many_keys_is_an_error_with_a_remedy() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let (small, large) = (Feed::new(&unique("small")), Feed::new(&unique("large")));
    let config = config(
        kafka.bootstrap(),
        &large.source.name,
        &json!({"compare_memory": "256KiB"}),
    );
    let mut sink = open(&config, &config.progress_topic, &[&small, &large])
        .await
        .expect("opens");
    let rows = |count| (1..=count).map(|id| insert(id, "a")).collect::<Vec<_>>();
    write(sink.as_mut(), &small, 100, &rows(1500)).await;
    write(sink.as_mut(), &large, 100, &rows(10_000)).await;
    let mut inspector = inspector(&config, &[&small, &large]).await;
    inspector.prepare(&small.schema).await.expect("fits");
    let error = inspector
        .prepare(&large.schema)
        .await
        .expect_err("too many");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let text = error.to_string();
    for part in [
        &large.topic(),
        "public.items",
        "keys",
        "compare_memory",
        "Remedy",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // The other one fits, still.
    let word = standing(inspector.as_mut(), &small, &[event(Op::Read, 7, "a")]).await;
    assert_eq!(word, "same");
    // Keys whose rows are gone make room.
    let gone: Vec<Event<'_>> = (1..=10_000).map(|id| event(Op::Delete, id, "")).collect();
    write(sink.as_mut(), &large, 200, &gone).await;
    sink.close().await.expect("closes");
}

/// What is not committed is not there, and may be committed any moment: it is waited for, but not for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_transactions_are_waited_for() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let feed = Feed::new(&unique("open"));
    let topic = feed.topic();
    let config = config(kafka.bootstrap(), &feed.source.name, &json!({}));
    let mut sink = open(&config, &config.progress_topic, &[&feed])
        .await
        .expect("opens");
    write(sink.as_mut(), &feed, 100, &[insert(1, "a")]).await;
    let mut inspector = inspector(&config, &[&feed]).await;
    let inspector = inspector.as_mut();
    let rows = [event(Op::Read, 1, "a")];
    assert_eq!(standing(inspector, &feed, &rows).await, "same");
    let other = producer(kafka, Some(&topic));
    other.init_transactions(DEADLINE).expect("a transaction");
    for commit in [false, true] {
        other.begin_transaction().expect("a transaction");
        other
            .send(record(&topic, Some(r#"{"id":1}"#), None))
            .expect("taken");
        other.flush(DEADLINE).expect("delivered");
        let error = inspector.compare(&feed.batch(200, &rows)).await;
        let error = error.expect_err("it cannot be told");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("open transaction"), "{error}");
        let word = match commit {
            true => {
                other.commit_transaction(DEADLINE).expect("committed");
                r#"missing {"id":1}"#
            }
            false => {
                other.abort_transaction(DEADLINE).expect("aborted");
                "same"
            }
        };
        assert_eq!(standing(inspector, &feed, &rows).await, word);
    }
    sink.close().await.expect("closes");
}

/// What it costs. Run by hand:
/// `cargo test --release -p lockstep-sink-kafka --test broker inspect -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn rate() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let rows: u64 = std::env::var("LOCKSTEP_TEST_ROWS")
        .ok()
        .and_then(|rows| rows.parse().ok())
        .unwrap_or(200_000);
    let feed = Feed::new(&unique("rate"));
    let config = config(kafka.bootstrap(), &feed.source.name, &json!({}));
    let mut sink = open(&config, &config.progress_topic, &[&feed])
        .await
        .expect("opens");
    let note = "a note of a hundred and fifty bytes or so".repeat(4);
    let ids: Vec<u64> = (1..=rows).collect();
    let chunks = || ids.chunks(20_000).zip(1_u64..);
    for (chunk, commit) in chunks() {
        let events: Vec<Event<'_>> = chunk.iter().map(|id| insert(*id, &note)).collect();
        write(sink.as_mut(), &feed, commit * 100, &events).await;
    }
    let mut inspector = inspector(&config, &[&feed]).await;
    let begun = std::time::Instant::now();
    inspector.prepare(&feed.schema).await.expect("read");
    println!("{rows} rows were read in {:?}", begun.elapsed());
    for (name, shown) in [("same", note.as_str()), ("different", "x")] {
        let mut took = std::time::Duration::ZERO;
        for (chunk, _) in chunks() {
            let events = chunk.iter().map(|id| event(Op::Read, *id, shown));
            let batch = feed.batch(1 << 40, &events.collect::<Vec<_>>());
            let begun = std::time::Instant::now();
            let held = inspector.compare(&batch).await.expect("compared");
            took += begun.elapsed();
            assert!(
                held.iter()
                    .all(|held| (*held == Held::Same) == (name == "same"))
            );
        }
        println!("{name}: compared in {took:?}");
    }
    let begun = std::time::Instant::now();
    for id in 1..=100 {
        let batch = feed.batch(1 << 40, &[event(Op::Read, id, &note)]);
        inspector.compare(&batch).await.expect("compared");
    }
    println!("a chunk of one row takes {:?}", begun.elapsed() / 100);
    let begun = std::time::Instant::now();
    let batch = feed.batch(
        1 << 40,
        &(1..=500)
            .map(|id| event(Op::Read, id * (rows / 500), "x"))
            .collect::<Vec<_>>(),
    );
    inspector.compare(&batch).await.expect("compared");
    println!(
        "500 that differ, spread over all, take {:?}",
        begun.elapsed()
    );
    let begun = std::time::Instant::now();
    let (keys, _) = keys(inspector.as_mut(), &feed.schema).await;
    assert_eq!(keys.len() as u64, rows);
    println!("its keys were listed in {:?}", begun.elapsed());
    sink.close().await.expect("closes");
}

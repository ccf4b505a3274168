//! What arrives: records, keys, tombstones, headers, order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockstep_core::ErrorKind;
use lockstep_core::batch::{Batch, Op};
use lockstep_core::position::Lsn;
use lockstep_kit::kafka::Kafka;
use lockstep_kit::{Component, require, unique, wait_for};
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::Consumer;

use crate::support::{DEADLINE, Event, Feed, config, consumer, insert, open, read};

async fn everything_arrives(exactly_once: bool) {
    let kafka = Kafka::shared().await;
    let prefix = unique("arrive");
    let feed = Feed::new(&prefix);
    let config = config(
        kafka.bootstrap(),
        &prefix,
        &serde_json::json!({"exactly_once": exactly_once}),
    );
    let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
    assert_eq!(
        sink.resume(&feed.source)
            .await
            .expect("resume")
            .map(|held| held.upto()),
        None
    );

    let events = [
        insert(1, "one"),
        insert(2, "two \"quoted\" €"),
        Event {
            op: Op::Update,
            id: 1,
            note: "uno",
        },
        Event {
            op: Op::Delete,
            id: 2,
            note: "",
        },
    ];
    let durable = sink.write(feed.batch(100, &events)).await.expect("taken");
    let delivered = durable.await.expect("durable");
    assert_eq!(
        delivered.written, 5,
        "a delete is the event and a tombstone"
    );
    let progress = Arc::new(Batch::progress(Arc::clone(&feed.source), Lsn(200)));
    let delivered = sink
        .write(progress)
        .await
        .expect("taken")
        .await
        .expect("durable");
    assert_eq!(delivered.written, 0);
    sink.close().await.expect("closes");

    let seen = read(kafka.bootstrap(), &feed.topic()).await;
    assert_eq!(seen.len(), 5);
    let by_id = |ordinal| {
        seen.iter()
            .filter(|record| record.id() == feed.id(100, ordinal))
            .collect::<Vec<_>>()
    };
    for (ordinal, op, key) in [(1, "c", 1), (2, "c", 2), (3, "u", 1), (4, "d", 2)] {
        let records = by_id(ordinal);
        assert_eq!(records.len(), if op == "d" { 2 } else { 1 }, "{op}");
        for record in &records {
            assert_eq!(record.key.as_deref(), Some(&*format!("{{\"id\":{key}}}")));
            assert_eq!(record.headers["lockstep.source"], prefix);
        }
        let value = records[0].value.as_deref().expect("the event comes first");
        let value: serde_json::Value = serde_json::from_str(value).expect("JSON");
        assert_eq!(value["op"], op);
    }
    assert_eq!(by_id(4)[1].value, None, "then the tombstone");
    let one = by_id(3)[0].value.clone().expect("value");
    let one: serde_json::Value = serde_json::from_str(&one).expect("JSON");
    assert_eq!(one["after"], serde_json::json!({"id": 1, "note": "uno"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_arrives_in_transactions() {
    require!(Component::Kafka);
    everything_arrives(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_arrives_without_transactions() {
    require!(Component::Kafka);
    everything_arrives(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_keeps_its_order() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    for exactly_once in [true, false] {
        let prefix = unique("order");
        let feed = Feed::new(&prefix);
        // Small transactions, so that order holds across them too.
        let more = serde_json::json!({"exactly_once": exactly_once, "commit_records": 700, "format": "flat"});
        let config = config(kafka.bootstrap(), &prefix, &more);
        let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
        let mut receipts = Vec::new();
        for commit in 0..40 {
            let events: Vec<_> = (0..250)
                .map(|n| insert((commit * 250 + n) % 17, "x"))
                .collect();
            receipts.push(
                sink.write(feed.batch(commit + 1, &events))
                    .await
                    .expect("taken"),
            );
        }
        for durable in receipts {
            assert_eq!(durable.await.expect("durable").written, 250);
        }
        sink.close().await.expect("closes");
        let seen = read(kafka.bootstrap(), &feed.topic()).await;
        assert_eq!(seen.len(), 10_000);
        let mut last = BTreeMap::new();
        let mut partition = BTreeMap::new();
        for record in &seen {
            let key = record.key.clone().expect("key");
            let (_, position) = record.id().split_at(
                record.id().len() - 16 - record.id().rsplit('/').next().expect("ordinal").len() - 1,
            );
            let (commit, ordinal) = position.split_once('/').expect("commit/ordinal");
            let at = (
                u64::from_str_radix(commit, 16).expect("hex"),
                ordinal.parse::<u64>().expect("number"),
            );
            assert!(
                last.insert(key.clone(), at)
                    .is_none_or(|before| before < at),
                "{key} at {at:?}"
            );
            assert_eq!(
                *partition.entry(key).or_insert(record.partition),
                record.partition
            );
        }
        assert!(
            partition.values().collect::<BTreeSet<_>>().len() > 1,
            "several partitions are used"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_reaches_every_partition() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let prefix = unique("truncate");
    let feed = Feed::new(&prefix);
    let config = config(kafka.bootstrap(), &prefix, &serde_json::json!({}));
    let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
    let events = [
        insert(1, "a"),
        Event {
            op: Op::Truncate,
            id: 0,
            note: "",
        },
    ];
    sink.write(feed.batch(5, &events))
        .await
        .expect("taken")
        .await
        .expect("durable");
    sink.close().await.expect("closes");
    let seen = read(kafka.bootstrap(), &feed.topic()).await;
    let truncates: Vec<_> = seen
        .iter()
        .filter(|record| record.id() == feed.id(5, 2))
        .collect();
    assert_eq!(
        truncates
            .iter()
            .map(|record| record.partition)
            .collect::<Vec<_>>(),
        [0, 1, 2, 3]
    );
    assert!(
        truncates
            .iter()
            .all(|record| record.key.is_none() && record.value.is_some())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_comes_later_gets_its_topic() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let prefix = unique("later");
    let (first, later) = (Feed::new(&prefix), Feed::with_table(&prefix, "later"));
    let config = config(
        kafka.bootstrap(),
        &prefix,
        &serde_json::json!({"partitions": 3}),
    );
    let mut sink = open(&config, &prefix, &[&first]).await.expect("opens");
    for feed in [&first, &later] {
        let durable = sink
            .write(feed.batch(9, &[insert(1, "x")]))
            .await
            .expect("taken");
        durable.await.expect("durable");
    }
    sink.close().await.expect("closes");
    assert_eq!(read(kafka.bootstrap(), &later.topic()).await.len(), 1);
    assert_eq!(
        crate::support::partition_count(kafka.bootstrap(), &later.topic()),
        3
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn all_records_of_a_batch_that_are_too_large_are_named_at_once() {
    require!(Component::Kafka);
    let prefix = unique("larger");
    let feed = Feed::new(&prefix);
    let more = serde_json::json!({ "properties": { "message.max.bytes": "100000" } });
    let config = config(Kafka::shared().await.bootstrap(), &prefix, &more);
    let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
    let (large, larger) = ("x".repeat(120_000), "y".repeat(130_000));
    let rows = [
        (1, "small"),
        (2, &*large),
        (3, "small"),
        (4, &*larger),
        (5, &*large),
    ];
    let batch = feed.batch(1, &rows.map(|(key, note)| insert(key, note)));
    let durable = sink.write(batch).await.expect("taken");
    let error = durable.await.expect_err("too large");
    let named: Vec<u64> = error
        .refusals()
        .iter()
        .map(|refusal| refusal.position.ordinal)
        .collect();
    assert_eq!(named, [2, 4, 5], "{error}");
    assert!(!error.is_suspicion());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_too_large_is_refused_and_not_durable() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    for (exactly_once, limit) in [
        (true, "1000000"),
        (false, "1000000"),
        (true, "4000000"),
        (false, "4000000"),
    ] {
        // With a limit of 4 MB on our side it is the broker that refuses.
        let prefix = unique("large");
        let feed = Feed::new(&prefix);
        let more = serde_json::json!({"exactly_once": exactly_once, "properties": {"message.max.bytes": limit, "compression.type": "none"}});
        let config = config(kafka.bootstrap(), &prefix, &more);
        let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
        sink.write(feed.batch(1, &[insert(1, "small")]))
            .await
            .expect("taken")
            .await
            .expect("durable");
        let large = "x".repeat(2_000_000);
        let durable = sink
            .write(feed.batch(2, &[insert(1, &large)]))
            .await
            .expect("taken");
        let error = durable.await.expect_err("too large");
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(error.to_string().contains("message.max.bytes"), "{error}");
        assert!(error.to_string().contains(&feed.id(2, 1)), "{error}");
        let [named] = error.refusals() else {
            panic!("{:?}", error.refusals());
        };
        let place = (named.position.commit, named.position.ordinal);
        assert_eq!((place, named.reason), ((Lsn(2), 1), "too_large"));
        let again = sink
            .write(feed.batch(3, &[insert(1, "after")]))
            .await
            .err()
            .expect("it has failed");
        assert_eq!(again.kind(), ErrorKind::Refused, "{again}");
        drop(sink);
        let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens again");
        let resume = sink
            .resume(&feed.source)
            .await
            .expect("resume")
            .map(|held| held.upto());
        assert_eq!(
            resume.map(|position| position.commit),
            exactly_once.then_some(Lsn(1))
        );
        sink.close().await.expect("closes");
        assert_eq!(read(kafka.bootstrap(), &feed.topic()).await.len(), 1);
    }
}

fn told(error: lockstep_core::Error) -> String {
    error.to_string()
}

/// As with a clock that is wrong, here or there: nothing is wrong with a row, so none is put aside.
#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_the_broker_does_not_take_is_waited_out() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    for exactly_once in [true, false] {
        let prefix = unique("clock");
        let feed = Feed::new(&prefix);
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", kafka.bootstrap())
            .create()
            .expect("a client");
        let options = AdminOptions::new();
        // Whatever has lingered, and not what the broker itself writes to end a transaction.
        let limit = "message.timestamp.before.max.ms";
        let topic = feed.topic();
        let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set(limit, "100");
        let made = admin.create_topics(&[new], &options).await.expect("asked");
        made.into_iter().next().expect("an answer").expect("made");
        let more = serde_json::json!({
            "exactly_once": exactly_once, "properties": {"linger.ms": 500},
        });
        let config = config(kafka.bootstrap(), &prefix, &more);
        let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
        let events = [insert(1, "one"), insert(2, "two")];
        let durable = sink.write(feed.batch(8, &events)).await.expect("taken");
        let error = durable.await.expect_err("out of range");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.refusals().is_empty(), "{:?}", error.refusals());
        assert!(error.to_string().contains("set the clock"), "{error}");
        drop(sink);

        let change = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set(limit, "3600000");
        let changed = admin
            .alter_configs([&change], &options)
            .await
            .expect("asked");
        changed
            .into_iter()
            .next()
            .expect("an answer")
            .expect("changed");
        // The broker hears of it a moment after it was answered.
        wait_for(DEADLINE, "the broker to take them", async || {
            let mut sink = open(&config, &prefix, &[&feed]).await.map_err(told)?;
            let durable = sink.write(feed.batch(8, &events)).await.map_err(told)?;
            durable.await.map_err(told)?;
            sink.close().await.map_err(told)
        })
        .await;
        assert_eq!(read(kafka.bootstrap(), &topic).await.len(), 2);
    }
}

/// A comparison's fences leave the schema of messages behind in batches, and nothing of it.
#[tokio::test]
async fn a_schema_without_changes_makes_no_topic() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let prefix = unique("unused");
    let (feed, other) = (Feed::new(&prefix), Feed::with_table(&prefix, "other"));
    let config = config(kafka.bootstrap(), &prefix, &serde_json::json!({}));
    let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
    let batch = feed.batch(100, &[insert(1, "one")]);
    let unused = other.batch(100, &[insert(1, "one")]).schemas()[0].clone();
    let schemas = batch.schemas().iter().cloned().chain([unused]).collect();
    let batch = Arc::new(batch.with_parts(schemas, batch.changes().to_vec()));
    let durable = sink.write(batch).await.expect("taken");
    assert_eq!(durable.await.expect("durable").written, 1);
    let is_there = |topic: &str| {
        let client = consumer(kafka.bootstrap(), "read_committed");
        let metadata = client.fetch_metadata(None, DEADLINE).expect("metadata");
        metadata.topics().iter().any(|found| found.name() == topic)
    };
    assert!(is_there(&feed.topic()) && !is_there(&other.topic()));
    let durable = sink.write(other.batch(200, &[insert(1, "one")])).await;
    durable.expect("taken").await.expect("durable");
    assert!(is_there(&other.topic()));
    sink.close().await.expect("closes");
}

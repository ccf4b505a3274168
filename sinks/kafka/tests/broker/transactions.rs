//! Transactions of several databases as records of their own.

use std::sync::Arc;
use std::time::Duration;

use lockstep_core::batch::{Batch, Global, Op};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::{Component, require, unique};
use serde_json::{Value, json};

use crate::support::{Event, Feed, Random, config, insert, open, read};

/// A branch of the transaction with this number.
fn branch(feed: &Feed, number: u64, events: &[Event<'_>]) -> Arc<Batch> {
    let global = Arc::new(Global {
        id: format!("plain:order {number}").into(),
        branches: 2,
        cut: false,
    });
    let batch = feed.batch(number * 10, events);
    Arc::new(batch.with_globals(|_| Some(Arc::clone(&global))))
}

/// The numbers of rows in a record, in order.
fn ids(value: &Value) -> Vec<u64> {
    let branches = value["branches"].as_array().expect("branches").iter();
    let events = branches.flat_map(|branch| branch["events"].as_array().into_iter().flatten());
    events
        .map(|event| event["key"]["id"].as_u64().expect("a number"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_a_record_beside_its_events_and_parts_where_it_is_long() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let prefix = unique("gtx");
    let topic = format!("{prefix}.transactions");
    let more = json!({
        "format": "flat",
        // Nothing else is in a Kafka transaction with it, and no part is by itself.
        "commit_records": 1,
        "transactions": {"topic": topic, "max_bytes": "2kB"},
    });
    let config = config(kafka.bootstrap(), &prefix, &more);
    let [orders, stock] = ["orders", "stock"].map(|of| Feed::new(&format!("{prefix}.{of}")));
    let mut sink = open(&config, &prefix, &[&orders, &stock])
        .await
        .expect("opens");
    let long = "x".repeat(600);
    let gone = Event {
        op: Op::Delete,
        id: 9,
        note: "",
    };
    let steps = [
        vec![
            branch(&orders, 1, &[insert(1, "a"), gone]),
            branch(&stock, 1, &[insert(2, "b")]),
        ],
        vec![orders.batch(15, &[insert(3, "of one database")])],
        // One branch alone: nothing of the other comes to this sink.
        vec![branch(&stock, 2, &[insert(4, "c"), insert(5, "d")])],
        vec![
            branch(
                &orders,
                3,
                &[insert(6, &long), insert(7, &long), insert(8, &long)],
            ),
            branch(&stock, 3, &[insert(10, &long), insert(11, &long)]),
        ],
    ];
    let mut durable = Vec::new();
    for mut step in steps {
        match step.len() {
            1 => durable.push(sink.write(step.remove(0)).await.expect("taken")),
            _ => durable.extend(sink.write_together(step).await.expect("taken")),
        }
    }
    for durable in durable {
        durable.await.expect("durable");
    }
    sink.close().await.expect("closes");

    let records = read(kafka.bootstrap(), &topic).await;
    let of = |number: u64| {
        let id = format!("plain:order {number}");
        let of = records
            .iter()
            .filter(|record| record.headers["lockstep.gtrid"] == id);
        let of: Vec<_> = of.collect();
        let key = json!({"id": id}).to_string();
        assert!(of.iter().all(|record| record.key.as_deref() == Some(&*key)));
        assert!(
            of.windows(2)
                .all(|pair| pair[0].partition == pair[1].partition)
        );
        // The end of a Kafka transaction takes an offset.
        assert!(
            of.windows(2)
                .all(|pair| pair[0].offset + 1 == pair[1].offset)
        );
        let values = of.iter().map(|record| {
            let value = record.value.as_deref().expect("a value");
            serde_json::from_str(value).expect("JSON")
        });
        values.collect::<Vec<Value>>()
    };
    let first = of(1);
    assert_eq!(first.len(), 1);
    assert_eq!(ids(&first[0]), [1, 9, 2]);
    assert_eq!(
        first[0]["branches"][0]["events"][0]["topic"],
        orders.topic()
    );
    let second = of(2);
    assert_eq!((second.len(), ids(&second[0])), (1, vec![4, 5]));
    assert_eq!(
        (&second[0]["count"], &second[0]["complete"]),
        (&json!(2), &json!(true))
    );
    let third = of(3);
    let parts = third.len() - 1;
    assert!(parts > 1, "{third:?}");
    assert_eq!(
        third.iter().flat_map(ids).collect::<Vec<_>>(),
        [6, 7, 8, 10, 11]
    );
    let last = &third[parts];
    assert_eq!(
        (&last["parts"], &last["event_count"]),
        (&json!(parts), &json!(5))
    );
    assert_eq!(records.len(), 1 + 1 + parts + 1);
    // The events themselves are where they always are.
    let orders = read(kafka.bootstrap(), &orders.topic()).await;
    assert_eq!(orders.len(), 3 + 1 + 3, "with the tombstone");
    assert_eq!(
        read(kafka.bootstrap(), &stock.topic()).await.len(),
        1 + 2 + 2
    );
}

/// Whenever the sink ends, a transaction has its record or nothing of it is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_there_with_its_events_wherever_the_sink_ends() {
    const ROUNDS: u64 = 24;
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let prefix = unique("gtx");
    let topic = format!("{prefix}.transactions");
    let more = json!({
        "format": "flat", "partitions": 1, "commit_records": 1, "transactions": {"topic": topic},
    });
    let config = config(kafka.bootstrap(), &prefix, &more);
    let [orders, stock] = ["orders", "stock"].map(|of| Feed::new(&format!("{prefix}.{of}")));
    let mut random = Random::new();
    let mut drops = 0;
    loop {
        let mut sink = open(&config, &prefix, &[&orders, &stock])
            .await
            .expect("opens");
        let held = sink.resume(&orders.source).await.expect("resume");
        let from = held.map_or(0, |held| held.upto().commit.0 / 10);
        if from >= ROUNDS {
            sink.close().await.expect("closes");
            break;
        }
        let mut durables = Vec::new();
        for round in (from + 1..=ROUNDS).take(8) {
            let step = [&orders, &stock].map(|feed| branch(feed, round, &[insert(round, "x")]));
            durables.extend(sink.write_together(step.to_vec()).await.expect("taken"));
        }
        // It is dropped somewhere in what is left of its work.
        if let Some(first) = durables.into_iter().next() {
            first.await.expect("durable");
        }
        tokio::time::sleep(Duration::from_micros(random.below(20_000))).await;
        drop(sink);
        drops += 1;
        assert!(drops <= ROUNDS, "it gets nowhere");
    }
    let records = read(kafka.bootstrap(), &topic).await;
    let wholes: Vec<Value> = records
        .iter()
        .map(|record| serde_json::from_str(record.value.as_deref().expect("a value")))
        .collect::<Result<_, _>>()
        .expect("JSON");
    let told: Vec<Vec<u64>> = wholes.iter().map(ids).collect();
    let expected: Vec<Vec<u64>> = (1..=ROUNDS).map(|round| vec![round, round]).collect();
    assert_eq!(told, expected, "{drops} drops");
    for feed in [&orders, &stock] {
        let events = read(kafka.bootstrap(), &feed.topic()).await;
        assert_eq!(events.len() as u64, ROUNDS);
    }
}

//! `outbox`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::*;
use lockstep_core::ErrorKind;
use lockstep_core::batch::{OldImage, Op};
use lockstep_core::schema::{ReplicaIdentity, TableSchema};
use lockstep_core::transform::{Comparable, Transform, TransformFactory};
use lockstep_transforms::Outbox;
use serde_json::{Value, json};

fn table_of_events() -> Arc<TableSchema> {
    table(
        "public.outbox",
        &[
            "id uuid",
            "aggregatetype text",
            "aggregateid text",
            "type text",
            "payload json",
        ],
        &["id"],
        ReplicaIdentity::Default,
    )
}

fn orders() -> Arc<TableSchema> {
    table(
        "public.orders",
        &["id int8"],
        &["id"],
        ReplicaIdentity::Default,
    )
}

fn section(more: Value) -> Value {
    let mut section = json!({"tables": ["public.outbox"], "headers": {"eventType": "type"}});
    section
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    section
}

fn opened(section: Value, letters: &Arc<Letters>) -> Box<dyn Transform> {
    let config = serde_json::from_value(section).unwrap();
    Outbox::validate(&config).unwrap();
    let context = context(Path::new("/nonexistent"), Arc::clone(letters));
    Outbox::open(&config, context).unwrap()
}

#[test]
fn an_insert_is_an_event_and_its_delete_is_none() {
    let (events, orders) = (table_of_events(), orders());
    let letters = Arc::new(Letters::default());
    let mut outbox = opened(section(json!({})), &letters);
    for table in [&events, &orders] {
        outbox.bind(table).unwrap();
    }
    outbox.complete().unwrap();
    let batch = Feed::new()
        .begin(1, 1)
        .insert(&orders, &["7"])
        .insert(
            &events,
            &["u1", "order", "7", "Placed", r#"{"total": 1.50}"#],
        )
        .insert(&events, &["u2", "payment", "9", NULL, NULL])
        .delete(&events, OldImage::Key, &["u1", NULL, NULL, NULL, NULL])
        .truncate(&events)
        .finish();
    let out = outbox.apply_now(batch).unwrap();
    assert_eq!(
        lines(&out),
        [
            "insert public.orders id=7",
            r#"event .outbox.event.order id=u1 key=7 payload={"total": 1.50} eventType=Placed"#,
            "event .outbox.event.payment id=u2 key=9 payload=NULL eventType=NULL",
        ]
    );
    // Each where its row was: ids of changes stay.
    let places = out.changes().iter().map(|change| change.ordinal);
    assert_eq!(places.collect::<Vec<_>>(), [1, 2, 3]);
    let topic = out.schema(&out.changes()[1]).destination();
    assert_eq!(topic, Some("outbox.event.order"));
    assert!(letters.0.lock().unwrap().is_empty());
    assert_eq!(outbox.comparable(&events), Comparable::Not);
    assert!(outbox.output(&events).is_none());
    assert!(outbox.output(&orders).is_some());
}

#[test]
fn what_is_no_event_is_put_aside() {
    let events = table_of_events();
    let letters = Arc::new(Letters::default());
    let mut outbox = opened(section(json!({})), &letters);
    let batch = Feed::new()
        .begin(1, 1)
        .update(&events, &["u1", "order", "7", "Placed", "{}"])
        .insert(&events, &["u2", NULL, "7", "Placed", "{}"])
        .insert(&events, &["u3", "", "7", "Placed", "{}"])
        .finish();
    assert_eq!(
        lines(&outbox.apply_now(batch).unwrap()),
        Vec::<String>::new()
    );
    let kept = letters.0.lock().unwrap().clone();
    let begins: Vec<_> = kept
        .iter()
        .map(|line| &line[..line.find(" aggregatetype").unwrap()])
        .collect();
    assert_eq!(
        begins,
        [
            "transforms.here outbox_update update public.outbox id=u1",
            "transforms.here outbox_event insert public.outbox id=u2",
            "transforms.here outbox_event insert public.outbox id=u3",
        ]
    );
    let mut outbox = opened(section(json!({"updated": "skip"})), &letters);
    let batch = Feed::new()
        .begin(2, 1)
        .update(&events, &["u1", "order", "7", "Placed", "{}"])
        .finish();
    assert!(outbox.apply_now(batch).unwrap().changes().is_empty());
    assert_eq!(letters.0.lock().unwrap().len(), 3);
}

#[test]
fn copied_rows_are_events_unless_they_are_to_be_skipped() {
    let events = table_of_events();
    for (copied, left) in [("emit", 1), ("skip", 0)] {
        let mut outbox = opened(section(json!({"copied": copied})), &Arc::default());
        let batch = Feed::new()
            .begin(1, 1)
            .read(&events, &["u1", "order", "7", "Placed", "{}"])
            .finish();
        let out = outbox.apply_now(batch).unwrap();
        assert_eq!(out.changes().len(), left, "{copied}");
    }
}

#[test]
fn messages_are_events_without_a_table() {
    let messages = Arc::new(TableSchema::message("shop".into()));
    let letters = Arc::new(Letters::default());
    let section = json!({
        "messages": ["outbox"],
        "topic": "{aggregatetype}.{type}",
        "headers": {"eventType": "type", "user": "by"},
    });
    let mut outbox = opened(section, &letters);
    outbox.bind(&messages).unwrap();
    outbox.bind(&orders()).unwrap();
    outbox.complete().unwrap();
    let event = r#"{"id": "m1", "aggregatetype": "order", "aggregateid": 7, "type": "Placed", "payload": {"a":  [1.50]}}"#;
    let text =
        r#"{"aggregatetype": "order", "type": "Noted", "payload": "gift \u00fc", "by": "till"}"#;
    let message = |feed: Feed, prefix, content| {
        feed.push(Op::Message, &messages, None, Some(&[prefix, content]))
    };
    let mut feed = Feed::new().begin(1, 1);
    for (prefix, content) in [
        ("outbox", event),
        ("audit", "as it is"),
        ("outbox", text),
        ("outbox", r#"{"aggregatetype": "order"}"#),
        ("outbox", "no JSON"),
    ] {
        feed = message(feed, prefix, content);
    }
    let out = outbox.apply_now(feed.finish()).unwrap();
    assert_eq!(
        lines(&out),
        [
            r#"event .order.Placed id=m1 key=7 payload={"a":  [1.50]} eventType=Placed user=NULL"#,
            "message . prefix=audit content=as it is",
            "event .order.Noted id=NULL key=NULL payload=gift ü eventType=Noted user=till",
        ]
    );
    assert_eq!(letters.0.lock().unwrap().len(), 2);
}

#[test]
fn refusals_name_what_is_wrong() {
    let events = table_of_events();
    for (section, words) in [
        (json!({}), "neither `tables` nor `messages`"),
        (
            section(json!({"headers": {"key": "type"}})),
            "`key` is not free",
        ),
        (section(json!({"topic": "{aggregatetype"})), "`topic`"),
        (
            section(json!({"payload": "payloads"})),
            "`payload`, if that is meant",
        ),
        (
            section(json!({"topic": "{region}"})),
            "there is no column `region`",
        ),
    ] {
        let error = open::<Outbox>(section, &[&events]).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

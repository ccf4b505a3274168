//! What arrives: messages, properties, order; and what no queue takes.

use std::collections::BTreeSet;

use lockstep_conformance::feed::V;
use lockstep_core::ErrorKind;
use lockstep_core::refusal::reason;
use lockstep_kit::rabbitmq::Rabbitmq;
use lockstep_kit::{Component, require, unique};

use crate::support::{Shop, Tap, config, once};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_arrive_with_all_that_is_known_of_them() {
    require!(Component::Rabbitmq);
    let url = Rabbitmq::shared().await.url();
    let (tap, name, shop) = (Tap::new(url).await, unique("arrive"), Shop::new());
    let config = config(
        url,
        &serde_json::json!({
            "exchange": name,
            "routing_key": "{source}.{schema}.{table}.{op}.{key}",
            "declare": {"exchange": "topic", "queues": [{"name": name, "bind": ["shop.public.#", "shop.message"]}]},
        }),
    );
    let mut sink = shop.open(&config, &name).await.expect("opens");
    let batch = shop
        .feed()
        .begin(10)
        .insert(&shop.items, &["1".into(), "a \"b\" €".into()])
        .rekey(&shop.items, "1", &["2".into(), "moved".into()])
        .delete(&shop.items, "2")
        .truncate(&shop.items)
        .finish();
    let delivered = sink.write(batch.clone()).await.expect("taken").await;
    assert_eq!(delivered.expect("durable").written, 5, "without tombstones");
    sink.close().await.expect("closes");
    let seen = tap.take(&name).await;
    let told: Vec<(char, &str)> = seen
        .iter()
        .map(|seen| (seen.op(), &*seen.routing_key))
        .collect();
    assert_eq!(
        told,
        [
            ('c', "shop.public.items.c.1"),
            ('d', "shop.public.items.d.1"),
            ('c', "shop.public.items.c.2"),
            ('d', "shop.public.items.d.2"),
            ('t', "shop.public.items.t."),
        ]
    );
    let first = &seen[0];
    let properties = &first.properties;
    let id = shop.source.change_id(batch.position(&batch.changes()[0]));
    assert_eq!(first.id(), id);
    assert_eq!(first.header("lockstep.id"), Some(id));
    assert_eq!(first.header("lockstep.source").as_deref(), Some("shop"));
    assert_eq!(first.header("lockstep.key").as_deref(), Some(r#"{"id":1}"#));
    assert_eq!(properties.delivery_mode(), &Some(2));
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(ToString::to_string);
    assert_eq!(
        text(properties.content_type()).as_deref(),
        Some("application/json")
    );
    assert_eq!(text(properties.app_id()).as_deref(), Some("lockstep"));
    assert_eq!(properties.timestamp(), &Some(1_700_000_000));
    assert_eq!(first.body["row"]["note"], "a \"b\" €");
    // The two of a key change have one id, and are two by their type.
    assert_eq!(seen[1].id(), seen[2].id());
    assert_eq!(once(seen).len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_queue_takes_is_named_and_the_others_are_there() {
    require!(Component::Rabbitmq);
    let url = Rabbitmq::shared().await.url();
    let (tap, name, shop) = (Tap::new(url).await, unique("unroutable"), Shop::new());
    tap.exchange(&name).await;
    tap.queue(&name, &[], Some((&name, "shop.public.items")))
        .await;
    let config = config(url, &serde_json::json!({"exchange": name}));
    // Rows of both tables in turn, without those that are put aside.
    let batch = |aside: &BTreeSet<u64>| {
        let mut feed = shop.feed();
        for ordinal in (1..=100).filter(|ordinal| !aside.contains(ordinal)) {
            let text = ordinal.to_string();
            let table = if ordinal % 2 == 1 {
                &shop.items
            } else {
                &shop.others
            };
            feed.continued(10, ordinal - 1);
            feed.insert(table, &[V::Text(&text), "gift".into()]);
        }
        feed.finish()
    };
    let mut sink = shop.open(&config, &name).await.expect("opens");
    let before = sink.write(shop.items(5, 200..=210)).await.expect("taken");
    let mut aside = BTreeSet::new();
    let refused = sink.write(batch(&aside)).await.expect("taken").await;
    let mut refused = refused.map(drop);
    before.await.expect("what was before it is not concerned");
    // As the runtime does it.
    while let Err(error) = refused {
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(error.to_string().contains(&name), "{error}");
        assert!(
            !error.refusals().is_empty() && !error.is_suspicion(),
            "{error}"
        );
        for refusal in error.refusals() {
            assert_eq!(refusal.table.as_ref(), Some(&shop.others.id));
            assert_eq!(refusal.reason, reason::UNROUTABLE);
            assert!(
                aside.insert(refusal.position.ordinal),
                "named again: {error}"
            );
        }
        drop(sink);
        sink = shop.open(&config, &name).await.expect("opens");
        let again = sink.write(batch(&aside)).await.expect("taken").await;
        refused = again.map(drop);
    }
    assert_eq!(aside, (2..=100).step_by(2).collect());
    sink.close().await.expect("closes");
    let ids: Vec<u64> = once(tap.take(&name).await)
        .iter()
        .map(|seen| seen.row_id())
        .collect();
    let expected: Vec<u64> = (200..=210).chain((1..=100).step_by(2)).collect();
    assert_eq!(ids, expected, "each, in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quorum_queues_and_streams_get_the_same() {
    require!(Component::Rabbitmq);
    let url = Rabbitmq::shared().await.url();
    let (tap, name, shop) = (Tap::new(url).await, unique("kinds"), Shop::new());
    let queue = |kind: &str| serde_json::json!({"name": format!("{name}.{kind}"), "type": kind, "bind": ["#"]});
    let config = config(
        url,
        &serde_json::json!({
            "exchange": name,
            "declare": {"exchange": "topic", "queues": [queue("classic"), queue("quorum"), queue("stream")]},
            "progress_queue": "quorum",
        }),
    );
    let mut sink = shop.open(&config, &name).await.expect("opens");
    let all: Vec<u64> = (1..=300).collect();
    let mut durables = Vec::new();
    for (commit, ids) in all.chunks(7).enumerate() {
        let batch = shop.items(10 * (commit as u64 + 1), ids.iter().copied());
        durables.push(sink.write(batch).await.expect("taken"));
    }
    for durable in durables {
        durable.await.expect("durable");
    }
    sink.close().await.expect("closes");
    let ids = |seen: Vec<crate::support::Seen>| -> Vec<u64> {
        seen.iter().map(|seen| seen.row_id()).collect()
    };
    for kind in ["classic", "quorum"] {
        assert_eq!(
            ids(tap.take(&format!("{name}.{kind}")).await),
            all,
            "{kind}"
        );
    }
    let stream = tap.stream(&format!("{name}.stream"), all.len()).await;
    assert_eq!(ids(stream), all);
    // The position is kept in a replicated queue as well.
    let mut sink = shop.open(&config, &name).await.expect("opens");
    let held = sink.resume(&shop.source).await.expect("resume");
    let last = shop.items(10 * 43, all.chunks(7).last().expect("some").iter().copied());
    let last = last.progress_at(last.changes().last().expect("some"));
    assert_eq!(held, Some(last));
    sink.close().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_is_missing_or_of_another_kind_is_told() {
    require!(Component::Rabbitmq);
    let url = Rabbitmq::shared().await.url();
    let (tap, name, shop) = (Tap::new(url).await, unique("missing"), Shop::new());
    let missing = config(url, &serde_json::json!({"exchange": name}));
    let error = shop
        .open(&missing, &name)
        .await
        .err()
        .expect("there is none");
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    assert!(error.to_string().contains("declare"), "{error}");
    tap.exchange(&name).await;
    shop.open(&missing, &name).await.expect("it is there now");
    let fanout = config(
        url,
        &serde_json::json!({"exchange": name, "declare": {"exchange": "fanout"}}),
    );
    let error = shop
        .open(&fanout, &name)
        .await
        .err()
        .expect("it is another");
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    assert!(error.to_string().contains("PRECONDITION_FAILED"), "{error}");
}

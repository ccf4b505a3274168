//! Who holds the sink, and who has lost it.

use std::time::Duration;

use lockstep_core::ErrorKind;
use lockstep_core::refusal::reason;
use lockstep_kit::proxy::Proxy;
use lockstep_kit::rabbitmq::Rabbitmq;
use lockstep_kit::{Component, require, unique};
use serde_json::{Value, json};

use crate::support::{DEADLINE, Shop, Tap, config};

fn section(name: &str) -> Value {
    json!({
        "exchange": "",
        "routing_key": name,
        "heartbeat": "2s",
        "declare": {"queues": [{"name": name}]},
    })
}

/// `amqp://guest:guest@127.0.0.1:5672` with another port.
fn through(url: &str, proxy: &Proxy) -> String {
    let (before, _) = url.rsplit_once(':').expect("a port");
    format!("{before}:{}", proxy.port())
}

fn address(url: &str) -> String {
    let (_, address) = url.rsplit_once('@').expect("a user");
    address.to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_holder_writes_nothing_once_another_has_taken_over() {
    require!(Component::Rabbitmq);
    let url = Rabbitmq::shared().await.url();
    let (tap, name, shop) = (Tap::new(url).await, unique("frozen"), Shop::new());
    let proxy = Proxy::start(address(url)).await;
    let frozen = config(&through(url, &proxy), &section(&name));
    let mut former = shop.open(&frozen, &name).await.expect("opens");
    let durable = former.write(shop.items(10, [1])).await.expect("taken");
    durable.await.expect("durable");
    // What it sends from now on is on its way, for as long as it takes.
    proxy.pause(true);
    let late = former.write(shop.items(20, [99])).await.expect("taken");
    let next = config(url, &section(&name));
    let opened = tokio::time::timeout(DEADLINE, shop.open(&next, &name)).await;
    let mut sink = opened
        .expect("in time")
        .expect("the broker has given the former up");
    let durable = sink.write(shop.items(30, [2])).await.expect("taken");
    durable.await.expect("durable");
    proxy.pause(false);
    let error = tokio::time::timeout(DEADLINE, late).await.expect("in time");
    let error = error.expect_err("its connection is gone");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let durable = sink.write(shop.items(40, [3])).await.expect("taken");
    durable.await.expect("durable");
    sink.close().await.expect("closes");
    let ids: Vec<u64> = tap
        .take(&name)
        .await
        .iter()
        .map(|seen| seen.row_id())
        .collect();
    assert_eq!(ids, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_one_name_do_not_write_at_a_time() {
    require!(Component::Rabbitmq);
    let url = Rabbitmq::shared().await.url();
    let (name, shop) = (unique("two"), Shop::new());
    let config = config(url, &section(&name));
    let first = shop.open(&config, &name).await.expect("opens");
    let began = std::time::Instant::now();
    let error = shop.open(&config, &name).await.err().expect("it is held");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert_eq!(error.reason(), None, "nobody is newer: {error}");
    assert!(error.to_string().contains("another lockstep"), "{error}");
    assert!(
        began.elapsed() >= Duration::from_secs(3),
        "it was waited for"
    );
    first.close().await.expect("closes");
    let second = shop.open(&config, &name).await.expect("opens");
    second.close().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_goes_for_somebody_newer_and_for_nobody_else() {
    require!(Component::Rabbitmq);
    let url = Rabbitmq::shared().await.url();
    let (name, shop) = (unique("asked"), Shop::new());
    let config = config(url, &section(&name));
    let mut holder = shop.open_by(&config, &name, 7).await.expect("opens");
    for token in [5, 6] {
        let error = shop.open_by(&config, &name, token).await.err();
        let error = error.expect("it is older");
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert_eq!(error.reason(), Some(reason::FENCED), "{error}");
    }
    // As another process with the same lease would be.
    let error = shop.open_by(&config, &name, 7).await.err();
    assert_eq!(error.expect("it is held").kind(), ErrorKind::Busy);
    let durable = holder.write(shop.items(10, [1])).await.expect("taken");
    durable.await.expect("it still holds it");
    let newer = shop.open_by(&config, &name, 8).await.expect("opens");
    let error = holder.write(shop.items(20, [2])).await.err();
    let error = error.expect("it has lost it");
    assert_eq!(error.reason(), Some(reason::FENCED), "{error}");
    newer.close().await.expect("closes");
    // The token stays with the position.
    let error = shop
        .open_by(&config, &name, 7)
        .await
        .err()
        .expect("it is older");
    assert_eq!(error.reason(), Some(reason::FENCED), "{error}");
}

//! The sink on a single Redis server.

mod support;

use futures_util::StreamExt;
use lockstep_kit::Component::Redis;
use lockstep_kit::redis::Redis as Server;
use support::{Lab, Null, T, deliver, scenarios};

macro_rules! on_a_single_server {
    ($($name:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            lockstep_kit::require!(Redis);
            let url = Server::shared().await.url();
            scenarios::$name(Lab::single(url, serde_json::json!({})).await).await;
        }
    )*};
}

on_a_single_server!(
    json_rows,
    hash_rows,
    versions,
    copies,
    unchanged_columns,
    truncation,
    ttl,
    progress,
    new_identity,
    inspection,
    odd_keys,
    fence,
    branches,
);

/// Who listens hears of each row in the order of the log, and of nothing that was not written.
#[tokio::test]
async fn rows_that_are_written_are_told() {
    lockstep_kit::require!(Redis);
    let url = Server::shared().await.url();
    let lab = Lab::single(url, serde_json::json!({})).await;
    let channel = format!("{}:changed", lab.prefix);
    let lab = lab.with(serde_json::json!({ "notify": channel }));
    let client = redis::Client::open(url).expect("a URL");
    let mut heard = client.get_async_pubsub().await.expect("listens");
    heard.subscribe(&channel).await.expect("subscribed");
    let mut heard = heard.into_on_message();
    let (mut sink, orders) = (lab.open().await, lab.orders());
    let row = |id, name| [T(id), T(name), Null, Null];
    let (ann, bob) = (row("1", "Ann"), row("2", "Bob"));
    let first = lab.make().commit(100).insert(&orders, &ann);
    let second = lab.make().commit(200).delete(&orders, "1");
    // Older than what is held: refused, so nothing has changed.
    let late = lab.make().commit(50).update(&orders, &row("2", "Old"));
    let empties = lab.make().commit(300).truncate(&orders);
    for batch in [first.insert(&orders, &bob), second, late, empties] {
        deliver(&mut sink, batch.stream()).await.expect("durable");
    }
    let key = |id: &str| lab.key(id);
    for expected in [key("1"), key("2"), key("1"), key("2")] {
        let message = tokio::time::timeout(support::PATIENCE, heard.next()).await;
        let message = message.expect("in time").expect("a message");
        assert_eq!(message.get_payload::<String>().expect("a key"), expected);
    }
}

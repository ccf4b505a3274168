//! The sink on a single Redis server.

mod support;

use lockstep_kit::Component::Redis;
use lockstep_kit::redis::Redis as Server;
use support::{Lab, scenarios};

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

//! The sink on a Redis Cluster of three nodes.

mod support;

use lockstep_kit::Component::RedisCluster;
use lockstep_kit::redis_cluster::RedisCluster as Cluster;
use support::{Lab, scenarios};

macro_rules! on_a_cluster {
    ($($name:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            lockstep_kit::require!(RedisCluster);
            let urls = Cluster::shared().await.urls();
            scenarios::$name(Lab::cluster(&urls, serde_json::json!({})).await).await;
        }
    )*};
}

on_a_cluster!(
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

//! ZooKeeper as the kit gives it to tests.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::time::{Duration, Instant};

use lockstep_kit::Component::Zookeeper as NeedsZookeeper;
use lockstep_kit::zookeeper::{Zookeeper, ZookeeperOptions, installed_version};
use lockstep_kit::{require, require_own, wait_for};

#[tokio::test]
async fn the_shared_server_answers() {
    require!(NeedsZookeeper);
    let began = Instant::now();
    let server = Zookeeper::shared().await;
    println!(
        "ZooKeeper {:?} after {:?}",
        installed_version(),
        began.elapsed()
    );
    assert_eq!(server.ask("ruok").await.unwrap(), "imok");
}

#[tokio::test]
async fn a_server_of_ones_own_dies_and_comes_back_on_its_port() {
    require_own!(NeedsZookeeper);
    let server = Zookeeper::start(ZookeeperOptions::default()).await;
    assert!(server.log().contains("clientPort"), "{}", server.log());
    server.kill();
    assert!(server.ask("ruok").await.is_err());
    server.restart().await;
    assert_eq!(server.ask("ruok").await.unwrap(), "imok");
    server.freeze(true);
    let silent = tokio::time::timeout(Duration::from_millis(300), server.ask("ruok")).await;
    assert!(silent.is_err());
    server.freeze(false);
    wait_for(Duration::from_secs(10), "an answer", async || {
        server.ask("ruok").await
    })
    .await;
}

//! Redis and Redis Cluster as the kit gives them to tests.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::time::{Duration, Instant};

use lockstep_kit::Component::{Redis as NeedsRedis, RedisCluster as NeedsCluster};
use lockstep_kit::redis::{Redis, RedisOptions, Reply};
use lockstep_kit::redis_cluster::RedisCluster;
use lockstep_kit::{require, require_own, unique, wait_for};

fn text(text: &str) -> Reply {
    Reply::Text(text.into())
}

#[tokio::test]
async fn the_shared_server_answers() {
    require!(NeedsRedis);
    let began = Instant::now();
    let server = Redis::shared().await;
    println!(
        "Redis {} after {:?}",
        server.version().await.unwrap(),
        began.elapsed()
    );
    let key = unique("kit");
    assert_eq!(
        server
            .command(&["SET", &key, "Überraschung"])
            .await
            .unwrap(),
        text("OK")
    );
    assert_eq!(
        server.command(&["GET", &key]).await.unwrap(),
        text("Überraschung")
    );
    assert_eq!(
        server.command(&["MGET", &key, "none"]).await.unwrap(),
        Reply::List(vec![text("Überraschung"), Reply::Nil])
    );
    assert_eq!(
        server.command(&["DEL", &key]).await.unwrap(),
        Reply::Integer(1)
    );
    assert!(matches!(
        server.command(&["NO"]).await.unwrap(),
        Reply::Error(_)
    ));
}

#[tokio::test]
async fn data_survives_a_kill_only_with_the_append_only_file() {
    require_own!(NeedsRedis);
    for append_only in [true, false] {
        let server = Redis::start(RedisOptions {
            append_only,
            ..RedisOptions::default()
        })
        .await;
        server.command(&["SET", "k", "v"]).await.unwrap();
        server.kill();
        assert!(server.command(&["PING"]).await.is_err());
        server.restart().await;
        let expected = if append_only { text("v") } else { Reply::Nil };
        assert_eq!(server.command(&["GET", "k"]).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_dropped_server_is_gone() {
    require_own!(NeedsRedis);
    let config = vec![("maxmemory".to_owned(), "10mb".to_owned())];
    let server = Redis::start(RedisOptions {
        config,
        ..RedisOptions::default()
    })
    .await;
    let reply = server
        .command(&["CONFIG", "GET", "maxmemory"])
        .await
        .unwrap();
    assert_eq!(
        reply,
        Reply::List(vec![text("maxmemory"), text("10485760")])
    );
    let Reply::List(dir) = server.command(&["CONFIG", "GET", "dir"]).await.unwrap() else {
        panic!("no list")
    };
    let Reply::Text(dir) = &dir[1] else {
        panic!("no text")
    };
    assert!(std::path::Path::new(dir).exists());
    let port = server.port();
    drop(server);
    assert!(!std::path::Path::new(dir).exists());
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[tokio::test]
async fn a_cluster_redirects_and_heals() {
    require_own!(NeedsCluster);
    let began = Instant::now();
    let cluster = RedisCluster::start().await;
    println!("Redis Cluster after {:?}", began.elapsed());
    assert_eq!(cluster.urls().len(), 3);
    let [first, second, third] = cluster.nodes() else {
        panic!("three nodes")
    };
    // The slot of "foo" is 12182: the third third.
    assert_eq!(
        third.command(&["SET", "foo", "bar"]).await.unwrap(),
        text("OK")
    );
    let moved = first.command(&["GET", "foo"]).await.unwrap();
    assert_eq!(
        moved,
        Reply::Error(format!("MOVED 12182 {}", third.address()))
    );
    second.kill();
    let down = || async { third.command(&["GET", "foo"]).await.unwrap() };
    wait_for(
        Duration::from_secs(30),
        "the cluster to notice",
        async || matches!(down().await, Reply::Error(said) if said.starts_with("CLUSTERDOWN")),
    )
    .await;
    second.restart().await;
    cluster.healthy().await;
    assert_eq!(third.command(&["GET", "foo"]).await.unwrap(), text("bar"));
}

#[tokio::test]
async fn a_frozen_server_answers_when_it_goes_on() {
    require_own!(NeedsRedis);
    let server = Redis::start(RedisOptions::default()).await;
    server.freeze(true);
    let ping = server.command(&["PING"]);
    let mut ping = std::pin::pin!(ping);
    let look = tokio::time::timeout(Duration::from_millis(100), &mut ping).await;
    assert!(look.is_err(), "it answers");
    server.freeze(false);
    assert_eq!(ping.await.unwrap(), text("PONG"));
    server.freeze(true);
    server.stop().await;
}

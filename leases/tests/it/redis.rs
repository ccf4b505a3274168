//! The suite on Redis and on Redis Cluster, and what is special to them.

use std::time::Duration;

use lockstep_core::ErrorKind;
use lockstep_kit::Component::{Redis as NeedsRedis, RedisCluster as NeedsCluster};
use lockstep_kit::redis::{Redis, RedisOptions, Reply};
use lockstep_kit::redis_cluster::RedisCluster;
use lockstep_kit::{require, require_own, unique};
use serde_json::{Value, json};

use crate::ground::{Ground, config, written};

const TTL: Duration = Duration::from_secs(2);

struct Keys(Server);

enum Server {
    Shared(&'static Redis),
    Own(Box<Redis>),
}

impl Keys {
    fn server(&self) -> &Redis {
        match &self.0 {
            Server::Shared(server) => server,
            Server::Own(server) => server,
        }
    }

    async fn ask(&self, words: &[&str]) -> Reply {
        self.server().command(words).await.expect("an answer")
    }
}

impl Ground for Keys {
    async fn shared() -> Self {
        Keys(Server::Shared(Redis::shared().await))
    }

    async fn own() -> Self {
        let options = RedisOptions {
            append_only: true,
            config: vec![("appendfsync".into(), "always".into())],
        };
        Keys(Server::Own(Box::new(Redis::start(options).await)))
    }

    async fn restart(&self) {
        self.server().kill();
        self.server().restart().await;
    }

    fn address(&self) -> String {
        self.server().address().to_owned()
    }

    fn config(&self, address: &str, ttl: Duration) -> Value {
        json!({ "type": "redis", "url": format!("redis://{address}"), "ttl": written(ttl) })
    }

    async fn is_taken(&self, name: &str) -> bool {
        let lease = format!("lockstep:lease:{{{name}}}");
        self.ask(&["EXISTS", &lease]).await == Reply::Integer(1)
    }
}

suite!(Keys, NeedsRedis);

#[tokio::test]
async fn a_lease_that_has_run_out_is_not_brought_back() {
    require!(NeedsRedis);
    crate::suite::a_lease_that_has_run_out_is_not_brought_back::<Keys>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_keeps_leases_too() {
    require!(NeedsCluster);
    let cluster = RedisCluster::shared().await;
    let section = json!({ "type": "redis", "urls": cluster.urls(), "cluster": true, "ttl": "60s" });
    let leases = || config(section.clone()).open().expect("leases");
    // Several, so that all nodes have some.
    for _ in 0..6 {
        let name = unique("cluster");
        let (one, other) = (leases(), leases());
        let held = one.acquire(&name, "one").await.expect("held");
        let tried = other.try_acquire(&name, "other").await;
        assert!(tried.expect("an answer").is_none());
        let mut acquiring = Box::pin(other.acquire(&name, "other"));
        let early = tokio::time::timeout(Duration::from_millis(200), &mut acquiring).await;
        assert!(early.is_err(), "two hold it");
        let first = held.token();
        held.release().await.expect("let go");
        let next = tokio::time::timeout(Duration::from_secs(15), acquiring).await;
        let next = next.expect("handed over at once").expect("held");
        assert!(next.token() > first);
    }
}

/// As after the failover to a replica that had not got it yet.
#[tokio::test]
async fn a_counter_that_was_forgotten_goes_on_above_what_it_gave_out() {
    require!(NeedsRedis);
    let keys = Keys::shared().await;
    let (leases, name) = (keys.leases(TTL), unique("forgotten"));
    let held = leases.acquire(&name, "one").await.expect("held");
    let first = held.token();
    held.release().await.expect("let go");
    let counter = format!("lockstep:lease:{{{name}}}:token");
    assert_eq!(keys.ask(&["DEL", &counter]).await, Reply::Integer(1));
    let held = leases.acquire(&name, "one").await.expect("held");
    assert!(held.token() > first);
    // And one above the clock is counted on, not set back.
    held.release().await.expect("let go");
    keys.ask(&["SET", &counter, "9000000000000000"]).await;
    let held = leases.acquire(&name, "one").await.expect("held");
    assert_eq!(held.token().0, 9_000_000_000_000_001);
}

/// Without the counter the next holder could get a token that is not greater.
#[tokio::test]
async fn a_holder_whose_counter_is_gone_is_not_renewed() {
    require!(NeedsRedis);
    let keys = Keys::shared().await;
    let (leases, name) = (keys.leases(TTL), unique("gone"));
    let held = leases.acquire(&name, "one").await.expect("held");
    let counter = format!("lockstep:lease:{{{name}}}:token");
    keys.ask(&["DEL", &counter]).await;
    let lost = tokio::time::timeout(2 * TTL, held.lost()).await;
    assert!(lost.is_ok());
}

#[tokio::test]
async fn a_server_that_may_evict_leases_is_refused() {
    require_own!(NeedsRedis);
    for (policy, refused) in [
        ("allkeys-lru", true),
        ("volatile-ttl", true),
        ("noeviction", false),
    ] {
        let options = RedisOptions {
            append_only: false,
            config: vec![
                ("maxmemory".into(), "10mb".into()),
                ("maxmemory-policy".into(), policy.into()),
            ],
        };
        let keys = Keys(Server::Own(Box::new(Redis::start(options).await)));
        match keys.leases(TTL).acquire("shop", "me").await {
            Ok(_) => assert!(!refused, "{policy}"),
            Err(error) => {
                assert!(refused, "{policy}: {error}");
                assert_eq!(error.kind(), ErrorKind::Setup);
                assert!(error.to_string().contains("noeviction"), "{error}");
            }
        }
    }
}

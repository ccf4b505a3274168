//! The suite on ZooKeeper, and what is special to it.

use std::time::Duration;

use lockstep_core::ErrorKind;
use lockstep_kit::Component::Zookeeper as NeedsZookeeper;
use lockstep_kit::zookeeper::{Zookeeper, ZookeeperOptions};
use lockstep_kit::{require, require_own, unique};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::ground::{Ground, config, written};

const TTL: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(15);

struct Queue(Server);

enum Server {
    Shared(&'static Zookeeper),
    Own(Box<Zookeeper>),
}

impl Queue {
    fn server(&self) -> &Zookeeper {
        match &self.0 {
            Server::Shared(server) => server,
            Server::Own(server) => server,
        }
    }

    /// How many ephemeral nodes there are in the queue, by the server's own list.
    async fn length(&self, name: &str) -> usize {
        let dump = self.server().ask("dump").await.expect("an answer");
        let directory = format!("/lockstep/leases/{name}/");
        dump.matches(&directory).count()
    }
}

impl Ground for Queue {
    async fn shared() -> Self {
        Queue(Server::Shared(Zookeeper::shared().await))
    }

    async fn own() -> Self {
        Queue(Server::Own(Box::new(
            Zookeeper::start(ZookeeperOptions::default()).await,
        )))
    }

    async fn restart(&self) {
        self.server().kill();
        self.server().restart().await;
    }

    fn address(&self) -> String {
        self.server().address().to_owned()
    }

    fn config(&self, address: &str, ttl: Duration) -> Value {
        json!({ "type": "zookeeper", "servers": address, "ttl": written(ttl) })
    }

    async fn is_taken(&self, name: &str) -> bool {
        self.length(name).await > 0
    }
}

suite!(Queue, NeedsZookeeper);

#[tokio::test]
async fn a_lease_that_has_run_out_is_not_brought_back() {
    require!(NeedsZookeeper);
    crate::suite::a_lease_that_has_run_out_is_not_brought_back::<Queue>().await;
}

/// The first to come is the first to have it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_keep_their_order() {
    require!(NeedsZookeeper);
    let queue = Queue::shared().await;
    let (leases, name) = (queue.leases(Duration::from_secs(60)), unique("order"));
    let mut held = leases.acquire(&name, "first").await.expect("held");
    let mut waiting = Vec::new();
    for place in 1..5 {
        let (leases, name) = (leases.clone(), name.clone());
        let acquiring = {
            let name = name.clone();
            async move { leases.acquire(&name, "next").await }
        };
        waiting.push(tokio::spawn(acquiring));
        lockstep_kit::wait_for(SOON, "a place in the queue", async || {
            queue.length(&name).await == place + 1
        })
        .await;
    }
    for next in waiting {
        held.release().await.expect("let go");
        let next = timeout(SOON, next).await.expect("its turn");
        held = next.expect("no panic").expect("held");
    }
}

/// The session goes on over another connection, and so does the lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_outlives_its_connection() {
    require!(NeedsZookeeper);
    let queue = Queue::shared().await;
    let (proxy, name) = (queue.proxy().await, unique("connection"));
    let leases = queue.leases_through(&proxy, TTL);
    let held = leases.acquire(&name, "me").await.expect("held");
    for _ in 0..3 {
        proxy.cut();
        let lost = timeout(TTL, held.lost()).await;
        assert!(lost.is_err(), "lost with its connection");
    }
    assert_eq!(queue.length(&name).await, 1);
    held.release().await.expect("let go");
    assert_eq!(queue.length(&name).await, 0);
}

#[tokio::test]
async fn what_is_made_with_a_digest_is_nobody_elses() {
    require!(NeedsZookeeper);
    let queue = Queue::shared().await;
    let section = |digest: Option<&str>| {
        let servers = format!("{}/{}", queue.address(), "secret");
        json!({ "type": "zookeeper", "servers": servers, "digest": digest, "ttl": "2s" })
    };
    let leases = config(section(Some("me:secret"))).open().expect("leases");
    let name = unique("digest");
    let held = leases.acquire(&name, "me").await.expect("held");
    let other = config(section(None)).open().expect("leases");
    let error = other.try_acquire(&name, "you").await.expect_err("no right");
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    assert!(held.is_valid_now());
    let shown = format!("{:?}", config(section(Some("me:secret"))));
    assert!(!shown.contains("me:secret"), "{shown}");
}

/// A first server that is not there, and a second that is.
#[tokio::test]
async fn another_server_is_asked() {
    require!(NeedsZookeeper);
    let queue = Queue::shared().await;
    let proxy = queue.proxy().await;
    proxy.refuse(true).await;
    let servers = format!("{},{}", proxy.address(), queue.address());
    let section = json!({ "type": "zookeeper", "servers": servers, "ttl": "4s" });
    let leases = config(section).open().expect("leases");
    for _ in 0..2 {
        let held = leases.try_acquire(&unique("second"), "me").await;
        assert!(held.expect("an answer").is_some());
    }
}

/// Sessions of less than two ticks are not to be had: what is given is what counts.
#[tokio::test]
async fn a_session_lasts_as_long_as_the_server_says() {
    require_own!(NeedsZookeeper);
    let settings = vec![("minSessionTimeout".to_owned(), "6000".to_owned())];
    let options = ZookeeperOptions { settings };
    let queue = Queue(Server::Own(Box::new(Zookeeper::start(options).await)));
    let held = queue.leases(TTL).acquire("long", "me").await;
    let left = held.expect("held").right().left().expect("held");
    assert!(left > TTL && left < Duration::from_secs(4), "{left:?}");
}

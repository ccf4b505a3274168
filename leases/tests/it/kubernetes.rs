//! The suite on what an API server does with objects, and what is special to Kubernetes. This is a stand-in, which is everywhere: it
//! keeps to what clients rely on, that a write is refused when the object has changed since it was read. The real one is in
//! `kubernetes_cluster.rs`, which also asks both the same.

use std::time::Duration;

use lockstep_core::ErrorKind;
use lockstep_kit::unique;
use serde_json::{Value, json};

use crate::api_server::ApiServer;
use crate::ground::{Ground, config, written};

const TTL: Duration = Duration::from_secs(2);

/// A server for each test: it is a task of the test's own runtime.
struct Objects(ApiServer);

impl Ground for Objects {
    async fn shared() -> Self {
        Objects(ApiServer::start().await)
    }

    async fn own() -> Self {
        Self::shared().await
    }

    async fn restart(&self) {
        self.0.restart().await;
    }

    fn address(&self) -> String {
        self.0.address()
    }

    fn config(&self, address: &str, ttl: Duration) -> Value {
        json!({
            "type": "kubernetes", "url": format!("http://{address}"), "namespace": "shop", "token": "right",
            "ttl": written(ttl),
        })
    }

    async fn is_taken(&self, name: &str) -> bool {
        let holder = self.0.object(name)["spec"]["holderIdentity"].clone();
        holder.as_str().is_some_and(|holder| !holder.is_empty())
    }
}

suite!(Objects);

fn name(what: &str) -> String {
    unique(what).replace('_', "-")
}

/// Other clients, and people, find what they know in the object, and what is theirs stays.
#[tokio::test]
async fn the_object_is_one_that_others_can_read() {
    let objects = Objects::shared().await;
    let (leases, name) = (objects.leases(TTL), name("read"));
    let held = leases.acquire(&name, "host/7").await.expect("held");
    let object = objects.0.object(&name);
    let spec = &object["spec"];
    let holder = spec["holderIdentity"].as_str().expect("a holder");
    assert!(holder.starts_with("host/7 "), "{holder}");
    assert_eq!(spec["leaseDurationSeconds"], 2);
    assert_eq!(spec["leaseTransitions"], 1);
    let renewed = spec["renewTime"].as_str().expect("a time");
    assert!(renewed.len() == 27 && renewed.ends_with('Z'), "{renewed}");

    // Somebody puts a label on it between two renewals.
    objects.0.change(&name, |object| {
        object["metadata"]["labels"] = json!({ "shop": "yes" });
    });
    let kept = tokio::time::timeout(2 * TTL, held.lost()).await;
    assert!(kept.is_err(), "lost for a label");
    held.release().await.expect("let go");
    let object = objects.0.object(&name);
    assert_eq!(object["metadata"]["labels"]["shop"], "yes");
    assert_eq!(object["spec"]["holderIdentity"], "");
}

/// One that is deleted is lost, and the next one begins above it.
#[tokio::test]
async fn an_object_that_is_deleted_is_made_again_with_a_greater_token() {
    let objects = Objects::shared().await;
    let (leases, name) = (objects.leases(TTL), name("delete"));
    let mut first = None;
    for _ in 0..3 {
        let held = leases.acquire(&name, "one").await.expect("held");
        first = Some(held.token());
        held.release().await.expect("let go");
    }
    let held = leases.acquire(&name, "one").await.expect("held");
    assert!(Some(held.token()) > first);
    let last = held.token();
    // Its clock goes by the second.
    objects.0.delete(&name);
    objects.0.turn_clock(Duration::from_secs(1));
    let lost = tokio::time::timeout(2 * TTL, held.lost()).await;
    assert!(lost.is_ok(), "held without an object");
    let held = leases.acquire(&name, "one").await.expect("held");
    assert!(held.token() > last, "{} after {last}", held.token());
}

/// A client that waits as this one does, but does not count up when it lets go.
#[tokio::test]
async fn one_that_does_not_watch_looks_now_and_then() {
    let objects = Objects::shared().await;
    objects.0.forbid_watching();
    let (leases, name) = (objects.leases(TTL), name("blind"));
    let held = leases.acquire(&name, "one").await.expect("held");
    let mut acquiring = Box::pin(leases.acquire(&name, "other"));
    let early = tokio::time::timeout(TTL / 4, &mut acquiring).await;
    assert!(early.is_err(), "two hold it");
    held.release().await.expect("let go");
    let next = tokio::time::timeout(2 * TTL, acquiring).await;
    assert!(next.expect("handed over").is_ok());
}

#[tokio::test]
async fn what_the_server_refuses_is_said() {
    let objects = Objects::shared().await;
    let section = |token: &str| {
        let mut section = objects.config(&objects.address(), TTL);
        section["token"] = token.into();
        config(section)
    };
    for (token, kind) in [
        ("wrong", ErrorKind::Authentication),
        ("poor", ErrorKind::Permission),
    ] {
        let leases = section(token).open().expect("leases");
        let error = leases.acquire("shop", "me").await.expect_err("refused");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.remedy_text().is_some(), "{error}");
    }
    assert!(!format!("{:?}", section("right")).contains("right"));
    let leases = objects.leases(TTL);
    let error = leases.acquire("Shop_1", "me").await.expect_err("no name");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

/// As from a server that has just been started, which knows of no roles yet.
#[tokio::test]
async fn a_refusal_is_believed_when_it_lasts() {
    let objects = Objects::shared().await;
    let (leases, name) = (objects.leases(TTL), name("roles"));
    // One who comes new is told at once.
    objects.0.refuse_next(1);
    let refused = leases.try_acquire(&name, "new").await;
    let error = refused.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    let held = leases.acquire(&name, "one").await.expect("held");
    held.release().await.expect("let go");
    objects.0.refuse_next(3);
    let held = leases.acquire(&name, "one").await.expect("held");
    let began = std::time::Instant::now();
    objects.0.refuse_next(u32::MAX);
    let lost = tokio::time::timeout(2 * TTL, held.lost()).await;
    assert!(lost.is_ok(), "held without a renewal");
    let refused = leases.acquire(&name, "two").await;
    let error = refused.expect_err("refused for good");
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    let waited = began.elapsed();
    assert!(
        waited >= TTL && waited < 5 * TTL,
        "believed after {waited:?}"
    );
}

#[test]
fn sections_are_read() {
    let wrong = |section: Value| config(section).validate().expect_err("wrong").to_string();
    let url = "https://h:6443";
    let odd = wrong(json!({ "type": "kubernetes", "url": url, "namespace": "a", "ttl": "1500ms" }));
    assert!(odd.contains("whole seconds"), "{odd}");
    let homeless = wrong(json!({ "type": "kubernetes", "url": url }));
    assert!(homeless.contains("namespace"), "{homeless}");
    let bad = wrong(json!({ "type": "kubernetes", "url": "h:6443", "namespace": "a" }));
    assert!(bad.contains("API server"), "{bad}");
    assert!(config(json!({ "type": "kubernetes" })).validate().is_ok());
}

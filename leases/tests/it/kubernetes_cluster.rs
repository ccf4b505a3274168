//! The suite on a real API server, what a stand-in cannot show, and whether the stand-in answers as the server does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lockstep_core::ErrorKind;
use lockstep_core::error::Policy;
use lockstep_kit::Component::Kubernetes as NeedsKubernetes;
use lockstep_kit::{require, require_own, unique, wait_for};
use lockstep_leases::{Attempt, Renewal};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::api_server::ApiServer;
use crate::cluster::Cluster;
use crate::ground::{Ground, config, written};

const TTL: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(30);

impl Ground for Cluster {
    async fn shared() -> Self {
        Cluster::shared().await
    }

    async fn own() -> Self {
        Cluster::own().await
    }

    async fn restart(&self) {
        self.server().kill();
        self.server().restart().await;
    }

    fn address(&self) -> String {
        self.server().address()
    }

    fn config(&self, address: &str, ttl: Duration) -> Value {
        json!({
            "type": "kubernetes", "url": format!("https://{address}"), "namespace": self.namespace(),
            "token": self.token(), "ca": self.server().ca(), "ttl": written(ttl),
        })
    }

    async fn is_taken(&self, name: &str) -> bool {
        let object = self.object(name).await;
        let holder = object["spec"]["holderIdentity"].as_str();
        holder.is_some_and(|holder| !holder.is_empty())
    }
}

suite!(Cluster, NeedsKubernetes);

fn name(what: &str) -> String {
    unique(what).replace('_', "-")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_take_turns_a_hundred_times() {
    require!(NeedsKubernetes);
    crate::suite::take_turns::<Cluster>(2, 100).await;
}

#[tokio::test]
async fn the_object_is_one_that_others_can_read() {
    require!(NeedsKubernetes);
    let cluster = Cluster::shared().await;
    let (leases, name) = (cluster.leases(TTL), name("read"));
    let held = leases.acquire(&name, "host/7").await.expect("held");
    let object = cluster.object(&name).await;
    let spec = &object["spec"];
    let holder = spec["holderIdentity"].as_str().expect("a holder");
    assert!(holder.starts_with("host/7 "), "{holder}");
    assert_eq!(spec["leaseDurationSeconds"], 2);
    assert_eq!(spec["leaseTransitions"], 1);

    // What was read is outdated: it is read again.
    let label = |object: &mut Value| object["metadata"]["labels"] = json!({ "shop": "yes" });
    cluster.change(&name, label).await;
    let kept = timeout(2 * TTL, held.lost()).await;
    assert!(kept.is_err(), "lost for a label");
    held.release().await.expect("let go");
    let object = cluster.object(&name).await;
    assert_eq!(object["metadata"]["labels"]["shop"], "yes");
    assert_eq!(object["spec"]["holderIdentity"], "");
}

/// The server would make an object by a replacement; nobody gets a lease by that.
#[tokio::test]
async fn an_object_that_is_deleted_is_lost_and_the_next_begins_above_it() {
    require!(NeedsKubernetes);
    let cluster = Cluster::shared().await;
    let (leases, name) = (cluster.leases(TTL), name("delete"));
    for _ in 0..3 {
        let held = leases.acquire(&name, "one").await.expect("held");
        held.release().await.expect("let go");
    }
    let held = leases.acquire(&name, "one").await.expect("held");
    let last = held.token();
    let made = cluster.object(&name).await["metadata"]["creationTimestamp"].clone();
    cluster.delete(&name).await;
    timeout(2 * TTL, held.lost())
        .await
        .expect("held without an object");
    assert_eq!(cluster.object(&name).await["code"], 404);
    // The server's clock goes by the second.
    let probe = crate::kubernetes_cluster::name("probe");
    wait_for(SOON, "another second", async || {
        let body = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": probe },
        });
        let path = format!("{}?dryRun=All", cluster.path());
        let asked = cluster.server().request("POST", &path, Some(&body)).await;
        let (_, object) = asked.expect("an answer");
        object["metadata"]["creationTimestamp"] != made
    })
    .await;
    let held = leases.acquire(&name, "one").await.expect("held");
    assert!(held.token() > last, "{} after {last}", held.token());
}

/// Of two that write what they have made of the same version, one is refused; by the provider, and by the server itself.
#[tokio::test]
async fn what_was_made_of_an_old_version_is_refused() {
    require!(NeedsKubernetes);
    let cluster = Cluster::shared().await;
    let name = name("stale");
    let provider = config(cluster.config(&cluster.address(), TTL)).provider();
    let provider = provider.expect("a provider");
    let mut one = provider.candidate(&name, "one").expect("a candidate");
    let taken = one.attempt().await.expect("an answer");
    assert!(matches!(taken, Attempt::Taken { .. }), "{taken:?}");
    let stale = cluster.object(&name).await;
    let renewed = one.renew().await.expect("an answer");
    assert!(matches!(renewed, Renewal::Prolonged(_)), "{renewed:?}");
    let path = format!("{}/{name}", cluster.path());
    let put = cluster.server().request("PUT", &path, Some(&stale)).await;
    let (status, said) = put.expect("an answer");
    assert_eq!((status, &said["reason"]), (409, &json!("Conflict")));
    // Somebody takes it away by force, as `kubectl edit` can.
    let robbed = |object: &mut Value| object["spec"]["holderIdentity"] = "a person".into();
    cluster.change(&name, robbed).await;
    assert_eq!(one.renew().await.expect("an answer"), Renewal::Lost);
    let holder = cluster.object(&name).await["spec"]["holderIdentity"].clone();
    assert_eq!(holder, "a person");
}

#[tokio::test]
async fn what_the_roles_do_not_permit_is_said() {
    require!(NeedsKubernetes);
    let cluster = Cluster::shared().await;
    let blind = cluster.account("blind", &["get", "create", "update"]).await;
    let reader = cluster.account("reader", &["get", "watch"]).await;
    let nobody = cluster.account("nobody", &["delete"]).await;
    let section = |token: &str| {
        let mut section = cluster.config(&cluster.address(), TTL);
        section["token"] = token.into();
        config(section)
    };
    for (token, kind, says) in [
        ("wrong", ErrorKind::Authentication, "401"),
        (&nobody, ErrorKind::Permission, "cannot get resource"),
        (&reader, ErrorKind::Permission, "cannot create resource"),
    ] {
        let leases = section(token).open().expect("leases");
        let name = name("refused");
        let refused = leases.acquire(&name, "me");
        let refused = timeout(SOON, refused).await.expect("told at last");
        let error = refused.expect_err("refused");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert!(error.remedy_text().is_some(), "{error}");
    }
    // Who may not watch looks now and then.
    let (leases, name) = (section(&blind).open().expect("leases"), name("blind"));
    let held = leases.acquire(&name, "one").await.expect("held");
    let mut acquiring = Box::pin(leases.acquire(&name, "other"));
    let early = timeout(TTL / 4, &mut acquiring).await;
    assert!(early.is_err(), "two hold it");
    held.release().await.expect("let go");
    let next = timeout(2 * TTL, acquiring).await;
    assert!(next.expect("handed over").is_ok());
}

/// A server that has just been started refuses everybody, for as long as it has not read its roles: no standby ends for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_starts_ends_nobody() {
    require_own!(NeedsKubernetes);
    let cluster = Cluster::own().await;
    let name = name("start");
    let ttl = Duration::from_secs(20);
    let held = cluster.leases(ttl).acquire(&name, "holder").await;
    let held = held.expect("held");
    let provider = config(cluster.config(&cluster.address(), ttl)).provider();
    let mut waiting = provider
        .expect("a provider")
        .candidate(&name, "waiting")
        .expect("a candidate");
    let seen: [Arc<AtomicU32>; 2] = Default::default();
    let [answers, refusals] = seen.clone();
    let asking = tokio::spawn(async move {
        loop {
            match waiting.attempt().await {
                Ok(Attempt::Refused { .. }) => drop(answers.fetch_add(1, Ordering::Relaxed)),
                Ok(taken) => return format!("{taken:?}"),
                Err(error) if error.kind().policy() == Policy::Stop => return error.to_string(),
                Err(error) if error.to_string().contains("refuses what it permitted") => {
                    refusals.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => {}
            }
            sleep(Duration::from_millis(1)).await;
        }
    });
    let [answers, refusals] = seen;
    for kill in [true, false, true] {
        let before = answers.load(Ordering::Relaxed);
        wait_for(SOON, "an answer", async || {
            answers.load(Ordering::Relaxed) > before
        })
        .await;
        match kill {
            true => cluster.server().kill(),
            false => cluster.server().stop().await,
        }
        cluster.server().restart().await;
        assert!(
            !asking.is_finished(),
            "who waited has ended: {:?}",
            asking.await
        );
    }
    println!(
        "refused {} times by a server that started",
        refusals.load(Ordering::Relaxed)
    );
    assert!(held.is_valid_now(), "lost by a restart");
    asking.abort();
}

/// The API server lives, and what stores for it does not answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_does_not_answer_is_an_outage() {
    require_own!(NeedsKubernetes);
    let cluster = Cluster::own().await;
    let (leases, name) = (cluster.leases(TTL), name("store"));
    let held = leases.acquire(&name, "one").await.expect("held");
    cluster.server().freeze_etcd(true);
    timeout(2 * TTL, held.lost()).await.expect("not renewed");
    let tried = leases.try_acquire(&name, "two").await;
    let error = tried.expect_err("no answer");
    assert_eq!(error.kind().policy(), Policy::Retry, "{error}");
    let acquiring = tokio::spawn({
        let (leases, name) = (leases.clone(), name.clone());
        async move { leases.acquire(&name, "two").await }
    });
    cluster.server().freeze_etcd(false);
    let next = timeout(SOON, acquiring).await.expect("goes on");
    let next = next.expect("no panic").expect("held");
    assert!(next.token() > held.token());
}

/// One question after another, put to both.
#[tokio::test]
async fn the_stand_in_answers_as_the_server_does() {
    require!(NeedsKubernetes);
    let cluster = Cluster::shared().await;
    let stand_in = ApiServer::start().await;
    let http = reqwest_client();
    let name = name("alike");
    let lease = |namespace: &str| {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": name, "namespace": namespace },
            "spec": {
                "holderIdentity": "me", "leaseDurationSeconds": 10, "leaseTransitions": 1,
                "renewTime": "2026-01-31T23:59:59.000001Z",
            },
        })
    };
    let mut both = [lease(cluster.namespace()), lease("shop")];
    let all = "/apis/coordination.k8s.io/v1/namespaces/shop/leases";
    // What each of them has answered last is what the next question is made of.
    let mut ask = async |what: &str, method: &str, tail: &str, change: fn(&mut Value)| -> u16 {
        both.iter_mut().for_each(change);
        let [real, stood_in] = &mut both;
        let of_one = tail.replace("{name}", &name);
        let path = format!("{}{of_one}", cluster.path());
        let body = (method != "GET").then_some(&*real);
        let asked = cluster.server();
        let asked = asked.request_as(cluster.token(), method, &path, body).await;
        let (status, object) = asked.expect("an answer");
        let url = format!("http://{}{all}{of_one}", stand_in.address());
        let mut request = http.request(method.parse().expect("a method"), url);
        if method != "GET" {
            request = request.json(stood_in);
        }
        let answer = request.bearer_auth("right").send().await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status().as_u16(), status, "{what}: {object}");
        let other: Value = answer.json().await.expect("JSON");
        if status < 300 {
            let version = |of: &Value| of["metadata"]["resourceVersion"].clone();
            assert_eq!(
                version(&object) == version(real),
                version(&other) == version(stood_in),
                "{what}: whether it is a new version"
            );
            assert_eq!(object["spec"], other["spec"], "{what}");
            (*real, *stood_in) = (object, other);
        }
        status
    };
    let same = |_: &mut Value| {};
    assert_eq!(ask("not there", "GET", "/{name}", same).await, 404);
    assert_eq!(ask("made", "POST", "", same).await, 201);
    assert_eq!(ask("read", "GET", "/{name}", same).await, 200);
    let holder = |lease: &mut Value| lease["spec"]["holderIdentity"] = "you".into();
    assert_eq!(ask("replaced", "PUT", "/{name}", holder).await, 200);
    assert_eq!(ask("unchanged", "PUT", "/{name}", same).await, 200);
    let old = |lease: &mut Value| lease["metadata"]["resourceVersion"] = "1".into();
    assert_eq!(ask("an old version", "PUT", "/{name}", old).await, 409);
    let none = |lease: &mut Value| {
        drop(
            lease["metadata"]
                .as_object_mut()
                .map(|it| it.remove("resourceVersion")),
        )
    };
    assert_eq!(ask("no version", "PUT", "/{name}", none).await, 422);
    assert_eq!(ask("read", "GET", "/{name}", same).await, 200);
    let other = |lease: &mut Value| lease["metadata"]["uid"] = "another".into();
    assert_eq!(ask("another object", "PUT", "/{name}", other).await, 409);
    assert_eq!(ask("read", "GET", "/{name}", same).await, 200);
    let made =
        |lease: &mut Value| lease["metadata"]["creationTimestamp"] = "2001-01-01T00:00:00Z".into();
    assert_eq!(ask("made earlier", "PUT", "/{name}", made).await, 200);
    assert_eq!(ask("another name", "PUT", "/another", same).await, 400);
    let short = |lease: &mut Value| lease["spec"]["leaseDurationSeconds"] = 0.into();
    assert_eq!(ask("no time", "PUT", "/{name}", short).await, 422);
    assert_eq!(ask("read", "GET", "/{name}", same).await, 200);
    let back = |lease: &mut Value| lease["spec"]["leaseTransitions"] = (-1).into();
    assert_eq!(ask("counted back", "PUT", "/{name}", back).await, 422);
    assert_eq!(ask("read", "GET", "/{name}", same).await, 200);
    let bare = |lease: &mut Value| {
        let metadata = lease["metadata"].as_object_mut().expect("an object");
        metadata.retain(|field, _| field == "name" || field == "namespace");
    };
    assert_eq!(ask("there already", "POST", "", bare).await, 409);
    assert_eq!(ask("read", "GET", "/{name}", same).await, 200);
    cluster.delete(&name).await;
    stand_in.delete(&name);
    assert_eq!(ask("gone", "PUT", "/{name}", same).await, 409);
    let nameless =
        |lease: &mut Value| drop(lease["metadata"].as_object_mut().map(|it| it.remove("uid")));
    assert_eq!(ask("made by PUT", "PUT", "/{name}", nameless).await, 201);
}

fn reqwest_client() -> reqwest::Client {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .no_proxy()
        .build()
        .expect("a client")
}

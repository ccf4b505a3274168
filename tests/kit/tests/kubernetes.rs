//! Kubernetes as the kit gives it to tests.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::time::{Duration, Instant};

use lockstep_kit::Component::Kubernetes as NeedsKubernetes;
use lockstep_kit::kubernetes::{Kubernetes, KubernetesOptions, installed_version};
use lockstep_kit::{require, require_own, wait_for};
use serde_json::json;

#[tokio::test]
async fn the_shared_server_knows_who_may_do_what() {
    require!(NeedsKubernetes);
    let began = Instant::now();
    let server = Kubernetes::shared().await;
    let version = server.version().await.unwrap();
    println!(
        "Kubernetes {version}, installed {:?}, after {:?}",
        installed_version(),
        began.elapsed()
    );
    let name = lockstep_kit::unique("rights").replace('_', "-");
    server.namespace(&name).await;
    let rules = json!([{ "apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"] }]);
    let token = server.account(&name, "reader", &rules).await;
    let path = |kind: &str| format!("/api/v1/namespaces/{name}/{kind}/none");
    let ask = async |token: &str, method: &str, kind: &str| {
        let answered = server.request_as(token, method, &path(kind), None).await;
        answered.unwrap().0
    };
    // What is allowed is not there; what is not allowed nobody says whether it is.
    assert_eq!(ask(&token, "GET", "configmaps").await, 404);
    assert_eq!(ask(&token, "DELETE", "configmaps").await, 403);
    assert_eq!(ask(&token, "GET", "secrets").await, 403);
    assert_eq!(ask("wrong", "GET", "configmaps").await, 401);
    let (status, _) = server.request("GET", &path("secrets"), None).await.unwrap();
    assert_eq!(status, 404);
    let kubeconfig = std::fs::read_to_string(server.kubeconfig()).unwrap();
    assert!(kubeconfig.contains(server.url()), "{kubeconfig}");
}

#[tokio::test]
async fn a_server_of_ones_own_dies_and_comes_back_on_its_port() {
    require_own!(NeedsKubernetes);
    let server = Kubernetes::start(KubernetesOptions::default()).await;
    assert!(
        server.log().contains("Serving securely"),
        "{}",
        server.log()
    );
    server.namespace("kept").await;
    let look = async || match server.request("GET", "/api/v1/namespaces/kept", None).await {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    server.kill();
    assert!(look().await.is_err());
    server.restart().await;
    look().await.unwrap();
    for freeze in [Kubernetes::freeze, Kubernetes::freeze_etcd] {
        freeze(&server, true);
        let silent = tokio::time::timeout(Duration::from_millis(300), look()).await;
        assert!(silent.is_err());
        freeze(&server, false);
        wait_for(Duration::from_secs(30), "an answer", look).await;
    }
    let began = Instant::now();
    server.restart().await;
    println!("restarted in order in {:?}", began.elapsed());
}

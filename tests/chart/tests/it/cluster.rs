//! A real API server: it fills in, judges, and says who may do what. Nothing runs pods there.

use std::path::PathBuf;

use lockstep_chart::helm::Helm;
use lockstep_chart::{chart, root, yaml};
use lockstep_kit::Component::{Helm as NeedsHelm, Kubernetes as NeedsKubernetes};
use lockstep_kit::kubernetes::Kubernetes;
use lockstep_kit::{require, unique};
use serde_json::{Value, json};

use crate::cases;

/// What a release could leave behind, as the server lists it.
const LISTS: [&str; 13] = [
    "api/v1/{}/configmaps",
    "api/v1/{}/secrets",
    "api/v1/{}/services",
    "api/v1/{}/serviceaccounts",
    "api/v1/{}/pods",
    "api/v1/{}/persistentvolumeclaims",
    "apis/apps/v1/{}/deployments",
    "apis/batch/v1/{}/jobs",
    "apis/batch/v1/{}/cronjobs",
    "apis/policy/v1/{}/poddisruptionbudgets",
    "apis/networking.k8s.io/v1/{}/networkpolicies",
    "apis/rbac.authorization.k8s.io/v1/{}/roles",
    "apis/rbac.authorization.k8s.io/v1/{}/rolebindings",
];

/// A namespace that takes only pods that may do nothing, with what a person makes before the release.
struct Cluster {
    server: &'static Kubernetes,
    helm: Helm,
    namespace: String,
}

impl Cluster {
    async fn new() -> Self {
        let server = Kubernetes::shared().await;
        let cluster = Cluster {
            server,
            helm: Helm::on(server.kubeconfig()),
            namespace: unique("chart").replace('_', "-"),
        };
        let labels = json!({ "pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted" });
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": cluster.namespace, "labels": labels },
        });
        cluster.make("/api/v1/namespaces", &namespace).await;
        // A controller makes it elsewhere.
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
        cluster
            .make(&cluster.path("api/v1/{}/serviceaccounts"), &account)
            .await;
        for (name, key) in [
            ("lockstep-admin", "token"),
            ("shop-databases", "ORDERS_PASSWORD"),
        ] {
            let secret = json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": { key: "a secret" },
            });
            cluster
                .make(&cluster.path("api/v1/{}/secrets"), &secret)
                .await;
        }
        cluster
    }

    fn path(&self, list: &str) -> String {
        format!(
            "/{}",
            list.replace("{}", &format!("namespaces/{}", self.namespace))
        )
    }

    async fn make(&self, path: &str, object: &Value) -> Value {
        let (status, made) = self
            .server
            .request("POST", path, Some(object))
            .await
            .expect("an answer");
        assert!(matches!(status, 200 | 201), "{path}: {made}");
        made
    }

    async fn get(&self, list: &str, name: &str) -> Value {
        let path = format!("{}/{name}", self.path(list));
        let (status, object) = self
            .server
            .request("GET", &path, None)
            .await
            .expect("an answer");
        assert_eq!(status, 200, "{object}");
        object
    }

    /// Names of all objects, with their lists, but those that were there before.
    async fn all(&self) -> Vec<String> {
        let mut names = Vec::new();
        for list in LISTS {
            let (status, found) = self
                .server
                .request("GET", &self.path(list), None)
                .await
                .expect("an answer");
            assert_eq!(status, 200, "{found}");
            for object in found["items"].as_array().into_iter().flatten() {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                if ![
                    "default",
                    "lockstep-admin",
                    "shop-databases",
                    "kube-root-ca.crt",
                ]
                .contains(&name)
                {
                    names.push(format!(
                        "{} {name}",
                        list.rsplit('/').next().unwrap_or(list)
                    ));
                }
            }
        }
        names
    }

    /// Runs Helm on a release of the chart.
    fn helm(&self, verb: &str, values: &[PathBuf], more: &[&str]) -> String {
        let mut arguments = vec![verb.to_owned(), "shop".to_owned()];
        if matches!(verb, "install" | "upgrade") {
            arguments.push(chart().display().to_string());
        }
        for file in values {
            arguments.extend(["--values".to_owned(), file.display().to_string()]);
        }
        arguments.extend(["--namespace".to_owned(), self.namespace.clone()]);
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        let ended = self.helm.run(&arguments);
        assert!(
            !ended.stderr.contains("would violate PodSecurity"),
            "{ended}"
        );
        ended.output()
    }

    /// Whether the service account of the pipeline may do this.
    async fn may(
        &self,
        account: &str,
        verb: &str,
        group: &str,
        resource: &str,
        name: Option<&str>,
    ) -> bool {
        let attributes = json!({
            "namespace": self.namespace, "verb": verb, "group": group, "resource": resource, "name": name.unwrap_or_default(),
        });
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": format!("system:serviceaccount:{}:{account}", self.namespace),
                "groups": ["system:serviceaccounts", "system:authenticated"],
                "resourceAttributes": attributes,
            },
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let judged = self.make(path, &review).await;
        judged["status"]["allowed"] == true
    }
}

fn shop() -> PathBuf {
    root().join("deploy/helm/examples/shop.yaml")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_is_installed_upgraded_rolled_back_and_gone() {
    require!(NeedsHelm, NeedsKubernetes);
    let cluster = Cluster::new().await;
    let (deployments, secrets, files) = (
        "apis/apps/v1/{}/deployments",
        "api/v1/{}/secrets",
        "api/v1/{}/configmaps",
    );
    let notes = cluster.helm("install", &[shop()], &[]);
    assert!(notes.contains("one of 2 pods runs it"), "{notes}");
    let first = cluster.get(deployments, "shop-lockstep-shop").await;
    assert_eq!(first["spec"]["replicas"], 2);
    // The server has filled in what the chart leaves to it, and dropped nothing.
    let template = &first["spec"]["template"]["spec"];
    assert_eq!(template["restartPolicy"], "Always");
    assert_eq!(template["terminationGracePeriodSeconds"], 40);
    assert_eq!(
        template["containers"][0]["readinessProbe"]["httpGet"]["path"],
        "/readyz"
    );
    let token = cluster.get(secrets, "lockstep-admin").await;
    let file = cluster.get(files, "shop-lockstep-shop").await;

    let upgraded = "pipelines.shop.file.reconcile.every=30m";
    cluster.helm("upgrade", &[shop()], &["--set", upgraded]);
    let second = cluster.get(deployments, "shop-lockstep-shop").await;
    let checksum = |deployment: &Value| {
        deployment["spec"]["template"]["metadata"]["annotations"]["checksum/pipeline"].clone()
    };
    assert!(checksum(&first).is_string());
    assert_ne!(checksum(&first), checksum(&second), "pods are not replaced");
    let changed = cluster.get(files, "shop-lockstep-shop").await;
    assert!(
        changed["data"]["pipeline.yaml"]
            .as_str()
            .is_some_and(|text| text.contains("every: 30m"))
    );

    // Nothing of the file has changed: pods stay.
    cluster.helm(
        "upgrade",
        &[shop()],
        &["--set", upgraded, "--set", "service.annotations.a=b"],
    );
    let third = cluster.get(deployments, "shop-lockstep-shop").await;
    assert_eq!(second["spec"]["template"], third["spec"]["template"]);

    cluster.helm("rollback", &[], &["1"]);
    let back = cluster.get(deployments, "shop-lockstep-shop").await;
    assert_eq!(first["spec"], back["spec"]);
    assert_eq!(
        cluster.get(files, "shop-lockstep-shop").await["data"],
        file["data"]
    );
    let still = cluster.get(secrets, "lockstep-admin").await;
    assert_eq!(token, still, "the token was touched");

    let made = cluster.all().await;
    assert!(
        made.iter()
            .any(|name| name == "poddisruptionbudgets shop-lockstep-shop"),
        "{made:?}"
    );
    cluster.helm("uninstall", &[], &[]);
    assert_eq!(cluster.all().await, Vec::<String>::new());
}

/// By the server's own judgement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_may_do_to_its_lease_what_it_must_and_nothing_else() {
    require!(NeedsHelm, NeedsKubernetes);
    let cluster = Cluster::new().await;
    cluster.helm("install", &[shop()], &[]);
    let (group, account) = ("coordination.k8s.io", "shop-lockstep-shop");
    for (verb, name) in [
        ("create", None),
        ("get", Some("shop")),
        ("update", Some("shop")),
        ("watch", Some("shop")),
    ] {
        assert!(
            cluster.may(account, verb, group, "leases", name).await,
            "may not {verb}"
        );
    }
    for (verb, name) in [
        ("get", Some("other")),
        ("update", Some("other")),
        ("watch", Some("other")),
        ("watch", None),
        ("list", None),
        ("delete", Some("shop")),
        ("patch", Some("shop")),
    ] {
        assert!(
            !cluster.may(account, verb, group, "leases", name).await,
            "may {verb} {name:?}"
        );
    }
    for (group, resource) in [
        ("", "secrets"),
        ("", "configmaps"),
        ("", "pods"),
        ("apps", "deployments"),
    ] {
        for verb in ["get", "list", "watch", "create", "update", "delete"] {
            assert!(
                !cluster.may(account, verb, group, resource, None).await,
                "may {verb} {resource}"
            );
            assert!(
                !cluster
                    .may(account, verb, group, resource, Some("lockstep-admin"))
                    .await
            );
        }
    }
    // Who has no lease here has no rights here.
    let elsewhere = root().join("tests/chart/values/elsewhere.yaml");
    cluster.helm("upgrade", &[elsewhere], &[]);
    for verb in ["create", "get", "update", "watch"] {
        assert!(
            !cluster
                .may(account, verb, group, "leases", Some("shop"))
                .await,
            "may {verb}"
        );
    }
    cluster.helm("uninstall", &[], &[]);
}

/// The lease's own client, with the token of the service account that the chart has made, on the lease that the chart names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_requests_that_a_standby_makes_are_let_through() {
    require!(NeedsHelm, NeedsKubernetes);
    let cluster = Cluster::new().await;
    cluster.helm("install", &[shop()], &[]);
    let asked =
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
    let accounts = cluster.path("api/v1/{}/serviceaccounts");
    let given = cluster
        .make(&format!("{accounts}/shop-lockstep-shop/token"), &asked)
        .await;
    let token = given["status"]["token"].as_str().expect("a token");
    let leases = cluster.path("apis/coordination.k8s.io/v1/{}/leases");
    let lease = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": "shop" } });
    let ask = async |method: &str, path: &str, body: Option<&Value>| {
        let answer = cluster.server.request_as(token, method, path, body).await;
        answer.expect("an answer")
    };
    let (status, made) = ask("POST", &leases, Some(&lease)).await;
    assert_eq!(status, 201, "{made}");
    let (status, mut read) = ask("GET", &format!("{leases}/shop"), None).await;
    assert_eq!(status, 200, "{read}");
    read["spec"] = json!({ "holderIdentity": "me" });
    let (status, put) = ask("PUT", &format!("{leases}/shop"), Some(&read)).await;
    assert_eq!(status, 200, "{put}");
    // A watch as the client makes it; it ends at once when there is nothing to tell.
    let version = read["metadata"]["resourceVersion"]
        .as_str()
        .expect("a version");
    let watch = format!(
        "{leases}?watch=true&fieldSelector=metadata.name=shop&resourceVersion={version}&timeoutSeconds=1"
    );
    let (status, told) = ask("GET", &watch, None).await;
    assert_eq!((status, &told["type"]), (200, &json!("MODIFIED")), "{told}");
    let (status, all) = ask("GET", &leases, None).await;
    assert_eq!(status, 403, "{all}");
    let (status, all) = ask(
        "GET",
        &cluster.path("api/v1/{}/secrets/lockstep-admin"),
        None,
    )
    .await;
    assert_eq!(status, 403, "{all}");
    let path = format!("{leases}/shop");
    cluster
        .server
        .request("DELETE", &path, None)
        .await
        .expect("an answer");
    cluster.helm("uninstall", &[], &[]);
}

/// A claim has what cannot be made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_claim_stays_and_is_taken_up_again() {
    require!(NeedsHelm, NeedsKubernetes);
    let cluster = Cluster::new().await;
    let values = [root().join("tests/chart/values/one.yaml")];
    cluster.helm("install", &values, &[]);
    let claims = "api/v1/{}/persistentvolumeclaims";
    let claim = cluster.get(claims, "shop-lockstep-shop").await;
    cluster.helm("uninstall", &[], &[]);
    let left = ["persistentvolumeclaims shop-lockstep-shop"];
    assert_eq!(cluster.all().await, left);
    let kept = cluster.get(claims, "shop-lockstep-shop").await;
    assert_eq!(kept["metadata"]["uid"], claim["metadata"]["uid"]);
    // One that is deleted stays, too, where no controller looks whether it is in use.
    assert_eq!(kept["metadata"]["deletionTimestamp"], Value::Null);
    cluster.helm("install", &values, &[]);
    let again = cluster.get(claims, "shop-lockstep-shop").await;
    assert_eq!(again["metadata"]["uid"], claim["metadata"]["uid"]);
    cluster.helm("uninstall", &[], &[]);
}

/// All that the cases make, hooks and the pod of `helm test` among it, in a namespace that takes only restricted pods. Objects of the
/// Prometheus operator are left out: the server does not know them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_takes_every_object() {
    require!(NeedsHelm, NeedsKubernetes);
    let cluster = Cluster::new().await;
    cluster.server.namespace("leases").await;
    for case in cases::all() {
        let namespace = ["--namespace", &cluster.namespace];
        let rendered = case.rendered(&cluster.helm, &namespace);
        let mut ours = yaml::documents(&rendered);
        ours.retain(|object| object["apiVersion"] != "monitoring.coreos.com/v1");
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": ours });
        let file = cluster.helm.file("objects.json", &list.to_string());
        let file = file.display().to_string();
        let apply = [
            "apply",
            "--dry-run=server",
            "--validate=strict",
            "--filename",
            &file,
        ];
        let applied = cluster.helm.kubectl(&apply);
        assert!(applied.well, "{}: {applied}", case.name);
        assert!(
            !applied.stderr.contains("PodSecurity"),
            "{}: {applied}",
            case.name
        );
        assert_eq!(
            applied.stdout.lines().count(),
            ours.len(),
            "{}: {applied}",
            case.name
        );
    }
    // A pod that may do more is not let in: the namespace judges.
    let loose = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "loose", "namespace": cluster.namespace },
        "spec": { "containers": [{ "name": "loose", "image": "loose" }] },
    });
    let file = cluster
        .helm
        .file("loose.json", &loose.to_string())
        .display()
        .to_string();
    let applied = cluster
        .helm
        .kubectl(&["apply", "--dry-run=server", "--filename", &file]);
    assert!(
        !applied.well && applied.stderr.contains("PodSecurity"),
        "{applied}"
    );
}

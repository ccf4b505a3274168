//! A real API server of Kubernetes, with an account that may do to leases what lockstep needs, and nothing else.

use lockstep_kit::kubernetes::{Kubernetes, KubernetesOptions};
use serde_json::{Value, json};

/// Where the leases are.
const NAMESPACE: &str = "lockstep-leases";

pub struct Cluster {
    server: Server,
    token: String,
}

enum Server {
    Shared(&'static Kubernetes),
    Own(Box<Kubernetes>),
}

impl Cluster {
    pub async fn shared() -> Self {
        Self::on(Server::Shared(Kubernetes::shared().await)).await
    }

    pub async fn own() -> Self {
        let server = Kubernetes::start(KubernetesOptions::default()).await;
        Self::on(Server::Own(Box::new(server))).await
    }

    async fn on(server: Server) -> Self {
        let mut cluster = Cluster {
            server,
            token: String::new(),
        };
        cluster.server().namespace(NAMESPACE).await;
        cluster.token = cluster
            .account("holder", &["get", "create", "update", "watch"])
            .await;
        cluster
    }

    pub fn server(&self) -> &Kubernetes {
        match &self.server {
            Server::Shared(server) => server,
            Server::Own(server) => server,
        }
    }

    /// The token of an account that may do these things to leases, and nothing else.
    pub async fn account(&self, name: &str, verbs: &[&str]) -> String {
        let rule = json!({
            "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": verbs,
        });
        let rules = json!([rule]);
        self.server().account(NAMESPACE, name, &rules).await
    }

    /// The token of the account that lockstep has.
    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn namespace(&self) -> &str {
        NAMESPACE
    }

    /// `/apis/…/leases`
    pub fn path(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases")
    }

    /// The object as it is, or what the server says instead.
    pub async fn object(&self, name: &str) -> Value {
        let path = format!("{}/{name}", self.path());
        let (_, object) = self.ask("GET", &path, None).await;
        object
    }

    /// Replaces an object by what is made of it.
    pub async fn change(&self, name: &str, change: impl Fn(&mut Value)) {
        let path = format!("{}/{name}", self.path());
        loop {
            let mut object = self.object(name).await;
            change(&mut object);
            match self.ask("PUT", &path, Some(&object)).await {
                (200, _) => return,
                // Its holder has renewed it meanwhile.
                (409, _) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub async fn delete(&self, name: &str) {
        let path = format!("{}/{name}", self.path());
        let (status, said) = self.ask("DELETE", &path, None).await;
        assert_eq!(status, 200, "{said}");
    }

    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let asked = self.server().request(method, path, body).await;
        asked.expect("an answer")
    }
}

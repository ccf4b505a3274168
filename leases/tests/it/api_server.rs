//! A stand-in for a Kubernetes API server: leases of one namespace, by its rules of optimistic concurrency.
//!
//! Every write that changes something gives the object a new `resourceVersion`. A replacement is refused (409) unless it was made from
//! the version that is there, a creation when there is one already. What the server writes itself (`uid`, `creationTimestamp`) is not
//! the client's to change. A replacement of what is not there makes it, unless it names a `uid`: then it is refused. A watch tells of
//! all versions after the one it names. A server that has just been started refuses (403) until it has read its roles.
//!
//! `cluster.rs` is the real one; where there is one, both are asked the same, and must answer alike.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use lockstep_kit::proxy::Proxy;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub struct ApiServer {
    cluster: Cluster,
    /// In front, so that all connections can be cut.
    proxy: Proxy,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Cluster {
    store: Arc<Mutex<Store>>,
    /// The last version that was written.
    written: watch::Sender<u64>,
}

#[derive(Default)]
struct Store {
    objects: HashMap<String, Value>,
    version: u64,
    clock_ahead: Duration,
    no_watching: bool,
    /// So many requests come before it has read its roles.
    unread: u32,
}

impl ApiServer {
    pub async fn start() -> Self {
        let cluster = Cluster {
            store: Arc::default(),
            written: watch::channel(0).0,
        };
        let all = "/apis/coordination.k8s.io/v1/namespaces/shop/leases";
        let one = format!("{all}/{{name}}");
        let routes = Router::new()
            .route(all, get(list).post(create))
            .route(&one, get(read).put(replace))
            .with_state(cluster.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port");
        let address = listener.local_addr().expect("an address");
        let task = tokio::spawn(async move {
            axum::serve(listener, routes).await.expect("a server");
        });
        ApiServer {
            cluster,
            proxy: Proxy::start(address.to_string()).await,
            task,
        }
    }

    pub fn address(&self) -> String {
        self.proxy.address()
    }

    /// All connections end, and none is made for a moment. What is stored stays, as it is not the API server that stores it.
    pub async fn restart(&self) {
        self.proxy.down().await;
        self.refuse_next(2);
        self.proxy.refuse(false).await;
    }

    /// So many requests are refused, as before the roles are read.
    pub fn refuse_next(&self, requests: u32) {
        self.cluster.store().unread = requests;
    }

    pub fn object(&self, name: &str) -> Value {
        let store = self.cluster.store();
        store.objects.get(name).cloned().unwrap_or_default()
    }

    pub fn change(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut object = self.object(name);
        change(&mut object);
        self.cluster.write(&mut self.cluster.store(), name, object);
    }

    pub fn delete(&self, name: &str) {
        let mut store = self.cluster.store();
        store.objects.remove(name);
        store.version += 1;
        self.cluster.written.send_replace(store.version);
    }

    pub fn turn_clock(&self, ahead: Duration) {
        self.cluster.store().clock_ahead += ahead;
    }

    pub fn forbid_watching(&self) {
        self.cluster.store().no_watching = true;
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cluster {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().expect("no panic")
    }

    fn write(&self, store: &mut Store, name: &str, mut object: Value) -> Value {
        store.version += 1;
        object["metadata"]["resourceVersion"] = store.version.to_string().into();
        store.objects.insert(name.to_owned(), object.clone());
        self.written.send_replace(store.version);
        object
    }
}

fn status(code: StatusCode, message: &str) -> Response {
    let body = json!({ "kind": "Status", "message": message, "code": code.as_u16() });
    (code, Json(body)).into_response()
}

#[expect(clippy::result_large_err, reason = "the error is the answer")]
fn authorize(cluster: &Cluster, headers: &HeaderMap) -> Result<(), Response> {
    let given = headers.get("authorization");
    let forbidden = || Err(status(StatusCode::FORBIDDEN, "leases is forbidden"));
    let mut store = cluster.store();
    match given.and_then(|value| value.to_str().ok()) {
        Some("Bearer right") if store.unread > 0 => {
            store.unread -= 1;
            forbidden()
        }
        Some("Bearer right") => Ok(()),
        Some("Bearer poor") => forbidden(),
        _ => Err(status(StatusCode::UNAUTHORIZED, "Unauthorized")),
    }
}

async fn read(
    State(cluster): State<Cluster>,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Response {
    if let Err(refused) = authorize(&cluster, &headers) {
        return refused;
    }
    match cluster.store().objects.get(&name) {
        Some(object) => Json(object).into_response(),
        None => status(StatusCode::NOT_FOUND, "not found"),
    }
}

async fn create(
    State(cluster): State<Cluster>,
    headers: HeaderMap,
    Json(object): Json<Value>,
) -> Response {
    if let Err(refused) = authorize(&cluster, &headers) {
        return refused;
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let name = name.to_owned();
    if let Some(refused) = invalid(&object, &name) {
        return refused;
    }
    let mut store = cluster.store();
    if store.objects.contains_key(&name) {
        return status(StatusCode::CONFLICT, "already exists");
    }
    make(&cluster, &mut store, &name, object)
}

async fn replace(
    State(cluster): State<Cluster>,
    headers: HeaderMap,
    Path(name): Path<String>,
    Json(mut object): Json<Value>,
) -> Response {
    if let Err(refused) = authorize(&cluster, &headers) {
        return refused;
    }
    if object["metadata"]["name"] != *name {
        return status(
            StatusCode::BAD_REQUEST,
            "the name of the object does not match the name on the URL",
        );
    }
    if let Some(refused) = invalid(&object, &name) {
        return refused;
    }
    let mut store = cluster.store();
    let there = store.objects.get(&name).cloned();
    let uid = &object["metadata"]["uid"];
    let is_there = |there: &Value| there["metadata"]["uid"] == *uid;
    if uid.is_string() && !there.as_ref().is_some_and(is_there) {
        return status(StatusCode::CONFLICT, "Precondition failed: UID");
    }
    let Some(there) = there else {
        return make(&cluster, &mut store, &name, object);
    };
    let version = &object["metadata"]["resourceVersion"];
    if version.as_str().unwrap_or_default().is_empty() {
        return status(
            StatusCode::UNPROCESSABLE_ENTITY,
            "metadata.resourceVersion: must be specified for an update",
        );
    }
    if *version != there["metadata"]["resourceVersion"] {
        return status(
            StatusCode::CONFLICT,
            "the object has been modified; please apply your changes to the latest version",
        );
    }
    for own in ["creationTimestamp", "uid"] {
        object["metadata"][own] = there["metadata"][own].clone();
    }
    // What changes nothing is no new version.
    if object == there {
        return Json(there).into_response();
    }
    Json(cluster.write(&mut store, &name, object)).into_response()
}

fn make(cluster: &Cluster, store: &mut Store, name: &str, mut object: Value) -> Response {
    let now = SystemTime::now() + store.clock_ahead;
    object["metadata"]["creationTimestamp"] = to_the_second(now).into();
    object["metadata"]["uid"] = format!("uid-{}", store.version + 1).into();
    let made = cluster.write(store, name, object);
    (StatusCode::CREATED, Json(made)).into_response()
}

fn invalid(object: &Value, name: &str) -> Option<Response> {
    let spec = &object["spec"];
    let lasts = spec["leaseDurationSeconds"].as_i64();
    let counted = spec["leaseTransitions"].as_i64();
    let valid = object["metadata"]["name"] == name
        && object["kind"] == "Lease"
        && lasts.is_none_or(|seconds| seconds > 0 && seconds <= i64::from(i32::MAX))
        && counted.is_none_or(|count| count >= 0 && count <= i64::from(i32::MAX));
    (!valid).then(|| status(StatusCode::UNPROCESSABLE_ENTITY, "Lease is invalid"))
}

/// A watch, for there is nothing here that lists.
async fn list(
    State(cluster): State<Cluster>,
    headers: HeaderMap,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    if let Err(refused) = authorize(&cluster, &headers) {
        return refused;
    }
    if cluster.store().no_watching {
        return status(StatusCode::FORBIDDEN, "cannot watch leases");
    }
    let given = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    let name = given("fieldSelector").strip_prefix("metadata.name=");
    let (Some(name), "true") = (name, given("watch")) else {
        return status(StatusCode::BAD_REQUEST, "only watches of one object");
    };
    let seconds = given("timeoutSeconds").parse().unwrap_or(30);
    let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let watching = Watching {
        seen: given("resourceVersion").parse().unwrap_or(0),
        name: name.to_owned(),
        written: cluster.written.subscribe(),
        cluster,
    };
    let events = futures_util::stream::unfold(watching, move |mut watching| async move {
        let next = tokio::time::timeout_at(end, watching.next()).await.ok()?;
        Some((Ok::<_, Infallible>(next), watching))
    });
    Body::from_stream(events).into_response()
}

struct Watching {
    cluster: Cluster,
    name: String,
    seen: u64,
    written: watch::Receiver<u64>,
}

impl Watching {
    /// The next event, in a line.
    async fn next(&mut self) -> String {
        loop {
            let seen = self.seen;
            // The sender lives in the cluster.
            let _ = self.written.wait_for(|version| *version > seen).await;
            let store = self.cluster.store();
            self.seen = store.version;
            let event = match store.objects.get(&self.name) {
                None => json!({ "type": "DELETED", "object": {} }),
                Some(object) => {
                    let version = object["metadata"]["resourceVersion"].as_str();
                    let version = version.and_then(|version| version.parse().ok());
                    if version <= Some(seen) {
                        // Another object was written.
                        continue;
                    }
                    json!({ "type": "MODIFIED", "object": object })
                }
            };
            return format!("{event}\n");
        }
    }
}

fn to_the_second(time: SystemTime) -> String {
    let second = time
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let mut days = second / 86_400;
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (day, of_day) = (days + 1, second % 86_400);
    let (hour, minute) = (of_day / 3600, of_day / 60 % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z",
        of_day % 60
    )
}

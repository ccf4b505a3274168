//! The admin endpoint: the web page, `/metrics`, `/healthz`, `/readyz`, `/api/status`, `/api/file`, `/api/visible`, `/api/snapshot`,
//! `/api/reconcile`, `/api/invariants`, `/api/transactions`, `/api/dead-letters`.
//!
//! `/healthz` and `/readyz` never ask for the token: probes cannot carry one, and they tell no names.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use lockstep_core::config::Secret;
use lockstep_core::position::Lsn;
use lockstep_core::{Error, ErrorKind};
use lockstep_pipelines::file::Admin;
use lockstep_pipelines::letters::Selection;
use lockstep_pipelines::{Handle, Standby};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::ServiceExt;

use crate::client::STANDBY;
use crate::web::{self, Names};

/// An address that is taken and not served yet.
pub struct Listener {
    listener: TcpListener,
    token: Option<Secret>,
}

/// Takes the address.
///
/// # Errors
/// Of kind `Setup` when it is in use or not an address.
pub async fn bind(section: &Admin) -> Result<Listener, Error> {
    let listener = TcpListener::bind(&section.listen).await.map_err(|error| {
        Error::new(
            ErrorKind::Setup,
            format!("cannot listen on {}", section.listen),
        )
        .source(error)
        .remedy("choose another address or stop what listens there")
        .at("admin.listen")
    })?;
    Ok(Listener {
        listener,
        token: section.token.clone(),
    })
}

impl Listener {
    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until the task is aborted.
    pub async fn serve(self, seat: Seat) {
        tracing::info!(
            address = self.address().map(tracing::field::display),
            "admin endpoint"
        );
        let served = axum::serve(self.listener, front(seat, self.token)).await;
        if let Err(error) = served {
            tracing::error!(%error, "the admin endpoint has ended");
        }
    }
}

/// What is served: a standby until its turn has come, then the pipeline that it runs. Clones share it.
#[derive(Clone, Debug)]
pub struct Seat {
    standby: Option<Standby>,
    handle: Arc<OnceLock<Handle>>,
}

impl Seat {
    /// Nothing runs yet.
    pub fn new(standby: Option<Standby>) -> Self {
        Seat {
            standby,
            handle: Arc::default(),
        }
    }

    /// A pipeline that runs.
    pub fn running(handle: Handle) -> Self {
        let seat = Seat::new(None);
        seat.taken(handle);
        seat
    }

    /// The pipeline runs. Once.
    pub fn taken(&self, handle: Handle) {
        // Set once: a process runs one pipeline.
        let _ = self.handle.set(handle);
    }
}

/// Gives requests to the pipeline when it runs.
fn front(seat: Seat, token: Option<Secret>) -> Router {
    let waiting = Router::new()
        .route("/metrics", get(standby_metrics))
        .route("/api/status", get(standby_status))
        .fallback(standby)
        .layer(middleware::from_fn_with_state(token.clone(), require_token));
    let waiting = Router::new()
        .merge(web::assets())
        .route("/", get(standby_index))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(standby_ready))
        .merge(waiting)
        .with_state(seat.clone());
    let running: Arc<OnceLock<Router>> = Arc::default();
    Router::new().fallback(move |request: Request| {
        let router = match seat.handle.get() {
            None => waiting.clone(),
            Some(handle) => {
                let running = running
                    .get_or_init(|| router(handle.clone(), token.clone(), seat.standby.clone()));
                running.clone()
            }
        };
        router.oneshot(request)
    })
}

async fn standby_index(headers: HeaderMap) -> Response {
    let text = format!(
        "lockstep {}, a standby: it waits for the lease of its pipeline\n\n\
         /healthz       the process is alive\n\
         /readyz        it is ready to take over\n\
         /metrics       for Prometheus\n",
        env!("CARGO_PKG_VERSION"),
    );
    web::page_or(&headers, text)
}

/// A standby is ready: for its turn. What it would need then it has not got yet, and does not know.
async fn standby_ready(State(seat): State<Seat>) -> Response {
    match seat.standby {
        Some(_) => (StatusCode::OK, "ready to take over\n").into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response(),
    }
}

async fn standby_metrics(State(seat): State<Seat>) -> Response {
    match &seat.standby {
        Some(standby) => exposed(standby.metrics_text()),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// With a header by which a client knows to ask the next address of the same name.
async fn standby() -> Response {
    ([(STANDBY, "true")], answer(Err(not_running()))).into_response()
}

/// The error, and how this one stands to the lease.
async fn standby_status(State(seat): State<Seat>) -> Response {
    let mut body = told_as(&not_running());
    if let Some(standby) = &seat.standby {
        body["pipeline"] = standby.pipeline().into();
        body["lease"] = json!(standby.role());
    }
    let header = [(STANDBY, "true")];
    (StatusCode::SERVICE_UNAVAILABLE, header, Json(body)).into_response()
}

fn not_running() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "this process does not run the pipeline: it is a standby, or starts",
    )
    .remedy("ask the one that holds the lease")
}

fn router(handle: Handle, token: Option<Secret>, standby: Option<Standby>) -> Router {
    let of_lease = standby.clone();
    let status = move |State(handle): State<Handle>| {
        let mut status = json!(handle.status());
        if let Some(standby) = &of_lease {
            status["lease"] = json!(standby.role());
        }
        std::future::ready(Json(status).into_response())
    };
    let metrics = move |State(handle): State<Handle>| {
        let lease = standby.as_ref().map(Standby::metrics_text);
        let lease = lease.unwrap_or_else(|| Ok(String::new()));
        let all = lease.and_then(|lease| Ok(handle.metrics_text()? + &lease));
        std::future::ready(exposed(all))
    };

    let names = match token {
        Some(_) => Names::Any,
        None => Names::Addresses,
    };
    let api = Router::new()
        .route("/api/status", get(status))
        .route("/api/file", get(file))
        .route("/api/visible", get(visible))
        .route("/api/snapshot", get(reloads).post(reload))
        .route("/api/reconcile", get(reconciles).post(reconcile))
        .route("/api/invariants", get(invariants).post(evaluate))
        .route("/api/transactions", get(transactions))
        .route("/api/dead-letters", get(dead_letters))
        .route("/api/dead-letters/{id}", get(dead_letter))
        .route("/api/dead-letters/replay", post(replay))
        .route("/api/dead-letters/discard", post(discard));
    let guarded = web::guarded(api, names)
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn_with_state(token, require_token));
    Router::new()
        .merge(web::assets())
        .route("/", get(index))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .merge(guarded)
        .with_state(handle)
}

async fn require_token(
    State(token): State<Option<Secret>>,
    request: Request,
    next: Next,
) -> Response {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer "));
    match token {
        Some(token)
            if !given.is_some_and(|given| same(given.as_bytes(), token.reveal().as_bytes())) =>
        {
            let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
            (
                StatusCode::UNAUTHORIZED,
                challenge,
                "this endpoint asks for the token\n",
            )
                .into_response()
        }
        _ => next.run(request).await,
    }
}

/// Compares in a time that depends on the lengths only.
fn same(given: &[u8], expected: &[u8]) -> bool {
    given.len() == expected.len()
        && given
            .iter()
            .zip(expected)
            .fold(0, |sum, (a, b)| sum | (a ^ b))
            == 0
}

async fn index(State(handle): State<Handle>, headers: HeaderMap) -> Response {
    let text = format!(
        "lockstep {}, pipeline {}\n\n\
         /healthz       the process is alive\n\
         /readyz        every source streams, every sink confirms\n\
         /metrics       for Prometheus\n\
         /api/status    everything, as JSON\n\
         /api/file      the pipeline file, without secrets\n\
         /api/visible   ?source=S&lsn=X: where commits up to X are durable\n\
         /api/snapshot  tables that are loaded again; POST {{\"source\": S, \"table\": T, \"where\": C}} loads one\n\
         /api/reconcile  comparisons of sinks with their sources; POST {{\"table\": T, \"sink\": S}} begins one\n\
         /api/invariants  what must hold between sources, and does not; POST {{\"invariant\": I}} looks\n\
         /api/transactions  what was read of two-phase commits in doubt, by the `stitch`\n\
         /api/dead-letters  rows put aside; /{{id}}; POST replay, discard\n",
        env!("CARGO_PKG_VERSION"),
        handle.status().pipeline,
    );
    web::page_or(&headers, text)
}

async fn ready(State(handle): State<Handle>) -> Response {
    match handle.ready() {
        Ok(()) => (StatusCode::OK, "ready\n").into_response(),
        Err(problems) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{}\n", problems.join("\n")),
        )
            .into_response(),
    }
}

fn exposed(text: Result<String, Error>) -> Response {
    match text {
        Ok(text) => (
            [(
                header::CONTENT_TYPE,
                "text/plain; version=0.0.4; charset=utf-8",
            )],
            text,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn file(State(handle): State<Handle>) -> Response {
    Json(handle.file()).into_response()
}

#[derive(Deserialize)]
struct Visible {
    source: String,
    lsn: String,
}

async fn visible(State(handle): State<Handle>, Query(query): Query<Visible>) -> Response {
    let wrong = |message: String| {
        (StatusCode::BAD_REQUEST, Json(json!({ "error": message }))).into_response()
    };
    let lsn: Lsn = match query.lsn.parse() {
        Ok(lsn) => lsn,
        Err(error) => return wrong(error.to_string()),
    };
    match handle.visible(&query.source, lsn) {
        Some(sinks) => {
            let all = sinks.values().all(|visible| *visible);
            Json(json!({ "source": query.source, "lsn": lsn.to_string(), "visible": all, "sinks": sinks }))
                .into_response()
        }
        None => {
            let names: Vec<String> = handle.status().sources.into_keys().collect();
            let message = format!(
                "there is no source {}; there are {}",
                query.source,
                names.join(", ")
            );
            (StatusCode::NOT_FOUND, Json(json!({ "error": message }))).into_response()
        }
    }
}

async fn reconciles(State(handle): State<Handle>) -> Response {
    Json(handle.reconciles()).into_response()
}

async fn reconcile(State(handle): State<Handle>, Json(wanted): Json<Value>) -> Response {
    let request = serde_json::from_value(wanted).map_err(|error| {
        Error::new(ErrorKind::Invalid, "the request is not understood")
            .source(error)
            .remedy("send {\"source\": …, \"table\": \"schema.table\", \"sink\": …}, or {} for all")
    });
    let begun = request.and_then(|request| handle.reconcile(request));
    answer(begun.map(|id| json!({ "id": id })))
}

async fn invariants(State(handle): State<Handle>) -> Response {
    Json(handle.invariants()).into_response()
}

async fn evaluate(State(handle): State<Handle>, Json(wanted): Json<Value>) -> Response {
    let request = serde_json::from_value(wanted).map_err(|error| {
        Error::new(ErrorKind::Invalid, "the request is not understood")
            .source(error)
            .remedy("send {\"invariant\": name}, or {} for all")
    });
    let begun = request.and_then(|request| handle.evaluate(request));
    answer(begun.map(|id| json!({ "id": id })))
}

async fn transactions(State(handle): State<Handle>) -> Response {
    let doubts = handle.doubts().await;
    let nothing = || json!({ "complete": false, "branches": [] });
    answer(doubts.map(|doubts| doubts.map_or_else(nothing, |doubts| json!(doubts))))
}

async fn reloads(State(handle): State<Handle>) -> Response {
    Json(handle.reloads()).into_response()
}

#[derive(Deserialize)]
struct Wanted {
    source: Option<String>,
    #[serde(flatten)]
    request: Value,
}

async fn reload(State(handle): State<Handle>, Json(wanted): Json<Wanted>) -> Response {
    let request = serde_json::from_value(wanted.request).map_err(|error| {
        Error::new(ErrorKind::Invalid, "the request is not understood")
            .source(error)
            .remedy("send {\"source\": …, \"table\": \"schema.table\", \"where\": \"condition\"}")
    });
    // It is written to disk: a moment at most.
    let asked = tokio::task::block_in_place(|| {
        request.and_then(|request| handle.reload(wanted.source.as_deref(), request))
    });
    answer(asked.map(|(source, id)| json!({ "source": source, "id": id })))
}

async fn dead_letters(State(handle): State<Handle>, Query(selection): Query<Listed>) -> Response {
    let selection = Selection {
        ids: Vec::new(),
        sink: selection.sink,
        table: selection.table,
        reason: selection.reason,
    };
    let letters = handle.dead_letters(selection).await;
    answer(letters.map(|letters| json!({ "dead_letters": letters })))
}

/// Which letters to list; `ids` are asked for one by one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    sink: Option<String>,
    table: Option<String>,
    reason: Option<String>,
}

async fn dead_letter(State(handle): State<Handle>, Path(id): Path<u64>) -> Response {
    match handle.dead_letter(id).await {
        Err(error) if error.kind() == ErrorKind::Invalid => told(StatusCode::NOT_FOUND, &error),
        letter => answer(letter.map(|letter| json!(letter))),
    }
}

/// Which letters something is done to; all of them only when that is said.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    #[serde(default)]
    ids: Vec<u64>,
    sink: Option<String>,
    table: Option<String>,
    reason: Option<String>,
    #[serde(default)]
    all: bool,
}

impl Asked {
    fn selection(self) -> Result<Selection, Error> {
        let selection = Selection {
            ids: self.ids,
            sink: self.sink,
            table: self.table,
            reason: self.reason,
        };
        if self.all == (selection == Selection::default()) {
            return Ok(selection);
        }
        Err(
            Error::new(ErrorKind::Invalid, "say which dead letters are meant").remedy(
                "give `ids`, `sink`, `table` or `reason`, or `\"all\": true` and none of them",
            ),
        )
    }
}

async fn replay(State(handle): State<Handle>, Json(asked): Json<Asked>) -> Response {
    let replayed = match asked.selection() {
        Ok(selection) => handle.replay(selection).await,
        Err(error) => Err(error),
    };
    answer(replayed.map(|reports| json!(reports)))
}

async fn discard(State(handle): State<Handle>, Json(asked): Json<Asked>) -> Response {
    let discarded = match asked.selection() {
        Ok(selection) => handle.discard(selection).await,
        Err(error) => Err(error),
    };
    answer(discarded.map(|discarded| json!({ "discarded": discarded })))
}

fn answer(result: Result<Value, Error>) -> Response {
    let error = match result {
        Ok(value) => return Json(value).into_response(),
        Err(error) => error,
    };
    let status = match error.kind() {
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::Unavailable | ErrorKind::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    told(status, &error)
}

fn told(status: StatusCode, error: &Error) -> Response {
    (status, Json(told_as(error))).into_response()
}

fn told_as(error: &Error) -> Value {
    json!({ "error": error.to_string(), "code": error.kind().code() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_compare_whole() {
        assert!(same(b"secret", b"secret"));
        assert!(!same(b"secre", b"secret") && !same(b"Secret", b"secret") && !same(b"", b"secret"));
    }

    /// By which a client goes on to the next address of the same name.
    #[tokio::test]
    async fn a_standby_says_that_it_is_one() {
        let asked = |path: &str| {
            let request = Request::builder().uri(path).body(axum::body::Body::empty());
            front(Seat::new(None), None).oneshot(request.expect("a request"))
        };
        let answer = asked("/api/status").await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.headers().contains_key(STANDBY), "{answer:?}");
        let alive = asked("/healthz").await.expect("an answer");
        assert!(!alive.headers().contains_key(STANDBY), "{alive:?}");
    }
}

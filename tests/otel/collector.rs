//! A collector of traces, as far as a test needs one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message as _;
use tokio::net::TcpListener;

/// Listens on a port of its own, for as long as its test runs.
pub struct Collector {
    /// For `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub url: String,
    got: Arc<Mutex<Got>>,
}

#[derive(Default)]
struct Got {
    spans: Vec<Seen>,
    headers: Vec<HeaderMap>,
}

/// A span that has arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub name: String,
    pub trace: Vec<u8>,
    pub id: Vec<u8>,
    /// Empty for the first of a trace.
    pub parent: Vec<u8>,
    /// As numbers in `opentelemetry.proto.trace.v1`.
    pub kind: i32,
    pub status: i32,
    /// Nanoseconds.
    pub took: u64,
    pub attributes: BTreeMap<String, String>,
    /// Of its process.
    pub resource: BTreeMap<String, String>,
}

impl Seen {
    /// An attribute; empty where there is none.
    pub fn get(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let got = Arc::<Mutex<Got>>::default();
        let router = Router::new()
            .route("/v1/traces", post(take))
            .with_state(Arc::clone(&got));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Collector { url, got }
    }

    /// All that has arrived.
    pub fn spans(&self) -> Vec<Seen> {
        self.lock().spans.clone()
    }

    /// Whether every request had this header.
    pub fn all_had(&self, name: &str, value: &str) -> bool {
        let had = |headers: &HeaderMap| headers.get(name).is_some_and(|found| found == value);
        let got = self.lock();
        !got.headers.is_empty() && got.headers.iter().all(had)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Got> {
        self.got.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn take(State(got): State<Arc<Mutex<Got>>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST;
    };
    let mut got = got.lock().unwrap_or_else(PoisonError::into_inner);
    got.headers.push(headers);
    for of_resource in request.resource_spans {
        let resource = of_resource.resource.unwrap_or_default();
        let resource = attributes(resource.attributes);
        let spans = of_resource.scope_spans.into_iter();
        got.spans
            .extend(spans.flat_map(|scope| scope.spans).map(|span| Seen {
                name: span.name,
                trace: span.trace_id,
                id: span.span_id,
                parent: span.parent_span_id,
                kind: span.kind,
                status: span.status.map_or(0, |status| status.code),
                took: span.end_time_unix_nano - span.start_time_unix_nano,
                attributes: attributes(span.attributes),
                resource: resource.clone(),
            }));
    }
    StatusCode::OK
}

/// Each once, as text.
fn attributes(pairs: Vec<KeyValue>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for KeyValue { key, value, .. } in pairs {
        let text = match value {
            Some(AnyValue {
                value: Some(Value::StringValue(text)),
            }) => text,
            Some(AnyValue {
                value: Some(Value::IntValue(number)),
            }) => number.to_string(),
            other => format!("{other:?}"),
        };
        let before = all.insert(key.clone(), text);
        assert_eq!(before, None, "{key} is there twice");
    }
    all
}

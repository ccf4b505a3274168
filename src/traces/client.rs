//! The HTTP client that spans are sent by. It says in the log, now and then, what keeps them from arriving.

use std::error::Error as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use reqwest::Certificate;
use reqwest::redirect::Policy;
use tokio::runtime::{Builder, Runtime};

use super::settings::Settings;

/// The shortest time between two complaints in the log.
const SELDOM: Duration = Duration::from_secs(60);
/// The longest answer that is read: a good one is a few bytes.
const LONGEST: usize = 64 * 1024;
/// Characters of what the collector says that a complaint has.
const SHOWN: usize = 200;

/// See the module's page.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    /// Of its own: spans are sent by a thread that is in none, also when that of the pipelines has ended.
    runtime: Runtime,
    complaints: Mutex<Complaints>,
}

#[derive(Debug, Default)]
struct Complaints {
    /// When something was logged last.
    logged: Option<Instant>,
    /// Requests that have failed since then.
    failed: u64,
    /// The last word in the log is that they fail.
    is_told: bool,
}

impl Client {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let mut http = reqwest::Client::builder()
            .timeout(settings.timeout)
            // A redirect would send the headers elsewhere.
            .redirect(Policy::none());
        if let Some(path) = &settings.authorities {
            let read = std::fs::read(path).map_err(|error| error.to_string());
            let read = read.and_then(|pem| {
                let found =
                    Certificate::from_pem_bundle(&pem).map_err(|error| error.to_string())?;
                match found.is_empty() {
                    true => Err("there is no certificate in it".to_owned()),
                    false => Ok(found),
                }
            });
            let authorities =
                read.map_err(|error| format!("OTEL_EXPORTER_OTLP_CERTIFICATE: {error}"))?;
            http = http.tls_certs_only(authorities);
        }
        let http = http.build().map_err(|error| told(&error.without_url()))?;
        let runtime = Builder::new_current_thread().enable_all().build();
        Ok(Client {
            http,
            runtime: runtime.map_err(|error| error.to_string())?,
            complaints: Mutex::default(),
        })
    }

    async fn answer(&self, request: Request<Bytes>) -> Result<Response<Bytes>, String> {
        let request = reqwest::Request::try_from(request);
        let request = request.map_err(|error| told(&error.without_url()))?;
        let asked = async {
            let mut response = self.http.execute(request).await?;
            let mut body = BytesMut::new();
            while let Some(part) = response.chunk().await? {
                let room = LONGEST - body.len();
                body.extend_from_slice(&part[..part.len().min(room)]);
                if part.len() >= room {
                    break;
                }
            }
            let mut answer = Response::new(body.freeze());
            *answer.status_mut() = response.status();
            *answer.headers_mut() = std::mem::take(response.headers_mut());
            Ok(answer)
        };
        asked
            .await
            .map_err(|error: reqwest::Error| told(&error.without_url()))
    }

    /// Logs that it fails, or does not any more.
    fn note(&self, problem: Option<String>) {
        let mut complaints = self
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(problem) = problem else {
            if std::mem::take(&mut complaints.is_told) {
                tracing::info!("traces are exported again");
            }
            return;
        };
        complaints.failed += 1;
        if complaints.logged.is_some_and(|at| at.elapsed() < SELDOM) {
            return;
        }
        let requests = std::mem::take(&mut complaints.failed);
        complaints.logged = Some(Instant::now());
        complaints.is_told = true;
        tracing::warn!(
            problem,
            requests,
            "traces do not arrive; what waits for too long is dropped"
        );
    }
}

#[async_trait]
impl HttpClient for Client {
    /// Blocks the thread, which must not be one of a runtime.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.runtime.block_on(self.answer(request));
        self.note(match &answer {
            Ok(answer) => problem_of(answer),
            Err(problem) => Some(problem.clone()),
        });
        Ok(answer?)
    }
}

/// What an answer has against what was sent; `None` where all of it was taken.
fn problem_of(answer: &Response<Bytes>) -> Option<String> {
    if !answer.status().is_success() {
        return Some(format!("the collector answers {}", answer.status()));
    }
    let said = ExportTraceServiceResponse::decode(answer.body().clone()).ok()?;
    let partial = said.partial_success?;
    let message: String = partial.error_message.chars().take(SHOWN).collect();
    match partial.rejected_spans {
        0 => None,
        spans => Some(format!(
            "the collector has refused {spans} spans: {message}"
        )),
    }
}

/// An error with those underneath.
fn told(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        text = format!("{text}: {error}");
        below = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;

    use super::*;

    fn answer(status: u16, rejected: i64) -> Response<Bytes> {
        let partial_success = Some(ExportTracePartialSuccess {
            rejected_spans: rejected,
            error_message: "too old".to_owned(),
        });
        let said = ExportTraceServiceResponse { partial_success };
        let mut answer = Response::new(said.encode_to_vec().into());
        *answer.status_mut() = reqwest::StatusCode::from_u16(status).expect("a status");
        answer
    }

    #[test]
    fn an_answer_is_good_when_all_spans_were_taken() {
        assert_eq!(problem_of(&answer(200, 0)), None);
        assert_eq!(problem_of(&Response::new(Bytes::new())), None);
        let refused = "the collector has refused 3 spans: too old";
        assert_eq!(problem_of(&answer(200, 3)).as_deref(), Some(refused));
        let status = "the collector answers 401 Unauthorized";
        assert_eq!(problem_of(&answer(401, 0)).as_deref(), Some(status));
    }
}

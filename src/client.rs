//! Asks the admin endpoint of a running pipeline.

use std::time::Duration;

use lockstep_core::{Error, ErrorKind};
use lockstep_pipelines::file::Admin;
use serde_json::Value;

/// How long the endpoint may take to answer a question.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An admin endpoint.
pub struct Client<'a> {
    /// `http://127.0.0.1:9187`.
    pub url: &'a str,
    /// Its token, when it asks for one.
    pub token: Option<&'a str>,
}

/// The URL of an admin endpoint, as it is reached from this machine.
#[must_use]
pub fn url(admin: &Admin) -> String {
    let (host, port) = admin
        .listen
        .rsplit_once(':')
        .unwrap_or((&admin.listen, "9187"));
    let host = match host {
        "0.0.0.0" | "[::]" => "127.0.0.1",
        host => host,
    };
    format!("http://{host}:{port}")
}

impl Client<'_> {
    /// GET.
    ///
    /// # Errors
    /// When there is no answer, or one that is an error.
    pub async fn get(&self, path: &str) -> Result<Value, Error> {
        let client = reqwest::Client::builder().timeout(TIMEOUT).build();
        let client = client.map_err(|error| self.unreachable(error))?;
        self.send(client.get(self.address(path))).await
    }

    /// GET of what a pipeline says of itself. A standby has no status; what it says instead comes as it is, with `error` in it.
    ///
    /// # Errors
    /// When there is no answer, or one that is another error.
    pub async fn status(&self) -> Result<Value, Error> {
        let client = reqwest::Client::builder().timeout(TIMEOUT).build();
        let client = client.map_err(|error| self.unreachable(error))?;
        let (code, body) = self.ask(client.get(self.address("/api/status"))).await?;
        let standby = serde_json::from_str(&body).ok();
        let standby = standby.filter(|said: &Value| code == 503 && said["lease"].is_object());
        standby.map_or_else(|| self.understood(code, &body), Ok)
    }

    /// POST of JSON. Waits as long as the work takes.
    ///
    /// # Errors
    /// When there is no answer, or one that is an error.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        let client = reqwest::Client::builder().connect_timeout(TIMEOUT).build();
        let client = client.map_err(|error| self.unreachable(error))?;
        self.send(client.post(self.address(path)).json(body)).await
    }

    fn address(&self, path: &str) -> String {
        format!("{}{path}", self.url.trim_end_matches('/'))
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Value, Error> {
        let (code, body) = self.ask(request).await?;
        self.understood(code, &body)
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> Result<(u16, String), Error> {
        let request = match self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let response = request.send().await;
        let response = response.map_err(|error| self.unreachable(error))?;
        let code = response.status().as_u16();
        let body = response.text().await;
        Ok((code, body.map_err(|error| self.unreachable(error))?))
    }

    fn understood(&self, code: u16, body: &str) -> Result<Value, Error> {
        let url = self.url;
        match code {
            200..=299 => serde_json::from_str(body).map_err(|error| {
                Error::new(
                    ErrorKind::Unavailable,
                    format!("{url} answered what is no JSON"),
                )
                .source(error)
                .remedy("is it lockstep that listens there?")
            }),
            401 => Err(
                Error::new(ErrorKind::Authentication, format!("{url} asks for a token"))
                    .remedy("give it with --token or LOCKSTEP_ADMIN_TOKEN"),
            ),
            code => Err(told(body).unwrap_or_else(|| {
                Error::new(ErrorKind::Unavailable, format!("{url} answered {code}"))
                    .remedy("is it lockstep that listens there?")
            })),
        }
    }

    fn unreachable(&self, error: reqwest::Error) -> Error {
        Error::new(ErrorKind::Unavailable, format!("cannot ask {}", self.url))
            .source(error)
            .remedy("is the pipeline running, with an [admin] section? name its address with --url")
    }
}

/// The error in an answer; its code says whose mistake it is.
fn told(body: &str) -> Option<Error> {
    let body: Value = serde_json::from_str(body).ok()?;
    let text = body["error"].as_str()?;
    let kind = match body["code"].as_str() {
        Some("LS002") => ErrorKind::Invalid,
        _ => ErrorKind::Unavailable,
    };
    let text = text.strip_prefix(kind.code()).unwrap_or(text).trim_start();
    Some(match text.split_once(". Remedy: ") {
        Some((message, remedy)) => Error::new(kind, message).remedy(remedy),
        None => Error::new(kind, text),
    })
}

//! Asks the admin endpoint of a running pipeline.

use std::time::Duration;

use lockstep_core::{Error, ErrorKind, Result};
use reqwest::{Client, RequestBuilder};
use serde_json::Value;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The admin endpoint of a running pipeline.
pub struct Endpoint {
    url: String,
    token: Option<String>,
    client: Client,
}

impl Endpoint {
    /// # Errors
    /// When no client can be made.
    pub fn new(url: &str, token: Option<&str>) -> Result<Self> {
        let url = url.trim_end_matches('/').to_owned();
        let client = Client::builder().timeout(TIMEOUT).build();
        Ok(Endpoint {
            client: client.map_err(|error| unreachable(&url, error))?,
            token: token.map(str::to_owned),
            url,
        })
    }

    /// # Errors
    /// By kind: `Unavailable`, `Authentication`, and `Invalid` with what the endpoint says.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.send(self.client.get(format!("{}{path}", self.url)))
            .await
    }

    /// # Errors
    /// As [`Endpoint::get`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.client.post(format!("{}{path}", self.url));
        self.send(request.json(body)).await
    }

    async fn send(&self, mut request: RequestBuilder) -> Result<Value> {
        let url = &self.url;
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request
            .send()
            .await
            .map_err(|error| unreachable(url, error))?;
        let status = response.status();
        match status.as_u16() {
            200..=299 => response
                .json()
                .await
                .map_err(|error| unreachable(url, error)),
            401 => Err(
                Error::new(ErrorKind::Authentication, format!("{url} asks for a token"))
                    .remedy("give it with --token or LOCKSTEP_ADMIN_TOKEN"),
            ),
            code => {
                let answer: Option<Value> = response.json().await.ok();
                let said = answer.as_ref().and_then(|answer| answer["error"].as_str());
                Err(match said {
                    Some(said) => Error::new(ErrorKind::Invalid, said),
                    None => Error::new(ErrorKind::Unavailable, format!("{url} answered {code}"))
                        .remedy("is it lockstep that listens there?"),
                })
            }
        }
    }
}

fn unreachable(url: &str, error: reqwest::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("cannot ask {url}"))
        .source(error)
        .remedy("is the pipeline running, with an [admin] section? name its address with --url")
}

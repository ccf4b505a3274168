//! HTTP to the receiver: headers, credentials, signatures.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lockstep_core::config::Secret;
use lockstep_core::token::Token;
use lockstep_core::{Error, ErrorKind, Result};
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
    USER_AGENT,
};
use reqwest::{Response, Url};

use crate::address::Addresses;
use crate::answer::{Answer, Verdict};
use crate::config::{Config, wrong};
use crate::request::{Head, Request};
use crate::sign::Signer;
use crate::tls::tls;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer that are read, so that its connection can be used again. What is longer ends its connection.
const READ: usize = 64 << 10;
/// Characters of an answer that a message shows.
const SHOWN: usize = 200;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const SOURCE: HeaderName = HeaderName::from_static("x-lockstep-source");
const TABLE: HeaderName = HeaderName::from_static("x-lockstep-table");
const OP: HeaderName = HeaderName::from_static("x-lockstep-op");
const RECORDS: HeaderName = HeaderName::from_static("x-lockstep-records");
const TOKEN: HeaderName = HeaderName::from_static("x-lockstep-token");
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// Connections to the receiver.
pub(crate) struct Client {
    http: reqwest::Client,
    /// Of every request.
    headers: HeaderMap,
    signer: Signer,
    has_token: bool,
    /// What an answer that repeats its request must not bring into a message.
    hidden: Vec<String>,
    origin: Url,
}

impl Client {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// When the section or a file that it names cannot be used.
    pub(crate) fn new(config: &Config, token: Option<Token>) -> Result<Self> {
        let addresses = Addresses::new(&config.url)?;
        let origin = addresses.sample()?.url;
        let probe = config.probe_url()?;
        let is_secure = |url: &Url| url.scheme() == "https";
        let is_secure = is_secure(&origin) || probe.as_ref().is_some_and(is_secure);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let agent = concat!("lockstep/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        if let Some(token) = token {
            headers.insert(TOKEN, HeaderValue::from(token.0));
        }
        headers.extend(config.header_pairs()?);
        if let Some(value) = config.authorization(&addresses)? {
            headers.insert(AUTHORIZATION, value);
        }
        let sensitive = headers.values().filter(|value| value.is_sensitive());
        let mut hidden: Vec<String> = sensitive
            .filter_map(|value| value.to_str().ok())
            .flat_map(|text| [Some(text), text.split_once(' ').map(|(_, rest)| rest)])
            .flatten()
            .map(str::to_owned)
            .collect();
        let login = addresses.login().and_then(|(_, password)| password);
        let passwords = [login, config.password.as_ref()].into_iter().flatten();
        hidden.extend(passwords.map(|password| password.reveal().to_owned()));
        let query = origin.query().unwrap_or_default().split('&');
        let values = query.filter_map(|pair| pair.split_once('='));
        hidden.extend(values.map(|(_, value)| value.to_owned()));
        // The names of the sample are no secrets, and neither is nothing.
        hidden.retain(|text| !["", "source", "schema", "table"].contains(&text.as_str()));
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(config, is_secure)?)
            .timeout(config.request_timeout.0)
            .connect_timeout(CONNECT_TIMEOUT.min(config.request_timeout.0))
            .tcp_nodelay(true)
            // A redirect would drop the body or the credentials, or send them elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| wrong("cannot set up the HTTP client").source(error))?;
        Ok(Client {
            http,
            headers,
            signer: Signer::new(&config.secrets)?,
            has_token: token.is_some(),
            hidden,
            origin,
        })
    }

    /// One try. The signature is of now.
    pub(crate) async fn post(&self, request: &Request) -> Verdict {
        let what = request.shown();
        let headers = match self.headers_of(request) {
            Ok(headers) => headers,
            Err(error) => return Verdict::Failed(error.at(what)),
        };
        let sent = self
            .http
            .post(request.target.url.clone())
            .headers(headers)
            .body(request.body.clone())
            .send();
        match sent.await {
            Ok(response) => self.read(response).await.judge(&what, self.has_token),
            Err(error) => Verdict::Again(unanswered(&what, error), None),
        }
    }

    /// Asks an address by GET. Credentials go along to the receiver itself only.
    ///
    /// # Errors
    /// When there is no answer.
    pub(crate) async fn get(&self, url: Url) -> Result<Answer> {
        let what = format!("GET {}", Secret::new(url.as_str()).redacted_url());
        let request = match url.origin() == self.origin.origin() {
            true => {
                let mut headers = self.headers.clone();
                headers.remove(CONTENT_TYPE);
                self.http.get(url).headers(headers)
            }
            false => self.http.get(url),
        };
        match request.send().await {
            Ok(response) => Ok(self.read(response).await),
            Err(error) => Err(unanswered(&what, error)),
        }
    }

    fn headers_of(&self, request: &Request) -> Result<HeaderMap> {
        let mut headers = self.headers.clone();
        let value = |text: &str| {
            HeaderValue::from_str(text).map_err(|error| {
                Error::new(ErrorKind::Protocol, "an id does not fit into a header").source(error)
            })
        };
        let id = value(&request.id)?;
        headers.insert(IDEMPOTENCY_KEY, id.clone());
        match &request.head {
            Head::One(source, table, op) => {
                headers.insert(SOURCE, value(source)?);
                headers.insert(TABLE, value(table)?);
                headers.insert(OP, value(op)?);
            }
            Head::Many => {
                headers.insert(RECORDS, HeaderValue::from(request.records.len()));
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs().to_string();
        if let Some(signature) = self.signer.sign(&request.id, &now, &request.body) {
            headers.insert(WEBHOOK_ID, id);
            headers.insert(WEBHOOK_TIMESTAMP, value(&now)?);
            headers.insert(WEBHOOK_SIGNATURE, value(&signature)?);
        }
        Ok(headers)
    }

    /// The status decides; a body that breaks off changes nothing about it.
    async fn read(&self, mut response: Response) -> Answer {
        let text = |name| {
            let value = response.headers().get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let mut answer = Answer {
            status: response.status().as_u16(),
            retry_after: text(RETRY_AFTER),
            location: text(LOCATION),
            text: String::new(),
        };
        let mut body = Vec::new();
        while body.len() < READ
            && let Ok(Some(chunk)) = response.chunk().await
        {
            body.extend_from_slice(&chunk);
        }
        answer.text = self.excerpt(&body);
        answer
    }

    /// The beginning of an answer on one line, without what is secret.
    fn excerpt(&self, body: &[u8]) -> String {
        let mut text = String::from_utf8_lossy(body).into_owned();
        for hidden in &self.hidden {
            text = text.replace(hidden, "***");
        }
        let clean = text.trim().chars();
        clean
            .take(SHOWN)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect()
    }
}

fn unanswered(what: &str, error: reqwest::Error) -> Error {
    let happened = if error.is_connect() {
        format!("cannot connect for {what}")
    } else if error.is_timeout() {
        format!("{what} was not answered in time")
    } else {
        format!("no answer to {what}")
    };
    Error::new(ErrorKind::Unavailable, happened)
        .source(error.without_url())
        .remedy("see that the receiver is up and can be reached from here, that its certificate is one of `ca_file`, and that `url` is right")
}

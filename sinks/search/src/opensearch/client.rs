//! HTTP to the cluster: addresses, credentials, TLS.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::config::Secret;
use lockstep_core::{Error, ErrorKind, Result};
use reqwest::{Method, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::config::{Config, parse_url};
use super::reply::Reply;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection pool to the nodes of one cluster.
pub(super) struct Client {
    http: reqwest::Client,
    nodes: Vec<Node>,
    /// The node asked first: the last that could be connected to.
    current: AtomicUsize,
    credentials: Credentials,
}

struct Node {
    base: Url,
    /// For messages.
    shown: String,
}

enum Credentials {
    None,
    Basic(String, Option<Secret>),
    ApiKey(Secret),
}

/// What a request carries.
#[derive(Clone)]
pub(super) enum Body {
    None,
    Json(Bytes),
    /// Newline-delimited JSON.
    Lines(Bytes),
}

impl Body {
    pub(super) fn json(value: &serde_json::Value) -> Self {
        Body::Json(value.to_string().into())
    }
}

impl Client {
    /// A client of the cluster. Connects to nothing yet.
    ///
    /// # Errors
    /// When a URL or the certificate file cannot be used.
    pub(super) fn new(config: &Config) -> Result<Self> {
        let mut credentials = match (&config.api_key, &config.user) {
            (Some(key), _) => Credentials::ApiKey(key.clone()),
            (None, Some(user)) => Credentials::Basic(user.clone(), config.password.clone()),
            (None, None) => Credentials::None,
        };
        let mut nodes = Vec::new();
        for url in config.addresses() {
            let mut base = parse_url(url)?;
            if matches!(credentials, Credentials::None) && !base.username().is_empty() {
                let password = base.password().map(|text| Secret::new(decode(text)));
                credentials = Credentials::Basic(decode(base.username()), password);
            }
            // Neither fails on a URL with a host, which this one has.
            let _ = base.set_username("");
            let _ = base.set_password(None);
            base.set_query(None);
            base.set_fragment(None);
            let shown = base.as_str().trim_end_matches('/').to_owned();
            nodes.push(Node { base, shown });
        }
        let secure = nodes.iter().any(|node| node.base.scheme() == "https");
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(config, secure)?)
            .timeout(config.request_timeout.0)
            .connect_timeout(CONNECT_TIMEOUT.min(config.request_timeout.0))
            .tcp_nodelay(true)
            // A redirect would drop the credentials or send them elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| {
                Error::new(ErrorKind::Config, "cannot set up the HTTP client").source(error)
            })?;
        Ok(Client {
            http,
            nodes,
            current: AtomicUsize::new(0),
            credentials,
        })
    }

    /// The first address, for messages.
    pub(super) fn shown(&self) -> &str {
        &self.nodes[self.current.load(Ordering::Relaxed)].shown
    }

    /// Sends a request and reads the whole answer, whatever its status. `path` is given in segments, which are encoded.
    /// Another node is asked only when a connection could not be made, so that nothing is sent twice.
    ///
    /// # Errors
    /// `Unavailable` when there was no answer; the request may then have been carried out or not.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Body,
    ) -> Result<Reply> {
        let first = self.current.load(Ordering::Relaxed);
        let mut tried = 0;
        loop {
            let index = (first + tried) % self.nodes.len();
            let node = &self.nodes[index];
            tried += 1;
            match self
                .ask(node, method.clone(), path, query, body.clone())
                .await
            {
                Ok(reply) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(reply);
                }
                Err(error) if error.is_connect() && tried < self.nodes.len() => {}
                Err(error) => return Err(unanswered(node, &method, path, error)),
            }
        }
    }

    async fn ask(
        &self,
        node: &Node,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Body,
    ) -> reqwest::Result<Reply> {
        let mut url = node.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = self.http.request(method, url);
        let request = match &self.credentials {
            Credentials::None => request,
            Credentials::Basic(user, password) => {
                request.basic_auth(user, password.as_ref().map(Secret::reveal))
            }
            Credentials::ApiKey(key) => {
                request.header("authorization", format!("ApiKey {}", key.reveal()))
            }
        };
        let request = match body {
            Body::None => request,
            Body::Json(bytes) => request
                .header("content-type", "application/json")
                .body(bytes),
            Body::Lines(bytes) => request
                .header("content-type", "application/x-ndjson")
                .body(bytes),
        };
        let response = request.send().await?;
        let status = response.status().as_u16();
        let body = response.bytes().await?;
        Ok(Reply { status, body })
    }
}

fn unanswered(node: &Node, method: &Method, path: &[&str], error: reqwest::Error) -> Error {
    let what = if error.is_connect() {
        format!("cannot connect to {}", node.shown)
    } else if error.is_timeout() {
        format!(
            "{} did not answer {method} /{} in time",
            node.shown,
            path.join("/")
        )
    } else {
        format!(
            "no answer from {} to {method} /{}",
            node.shown,
            path.join("/")
        )
    };
    Error::new(ErrorKind::Unavailable, what)
        .source(error.without_url())
        .remedy("see that the cluster is up, reachable from here and not overloaded, and that `url` is right")
}

/// TLS by rustls with ring. Without an `https` address no certificate is read.
fn tls(config: &Config, secure: bool) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = &config.ca_file {
        let unusable = |error: String| {
            Error::new(
                ErrorKind::Config,
                format!("cannot use `ca_file` {}", path.display()),
            )
            .source(error)
            .remedy("name a file of PEM certificates")
        };
        let certificates =
            CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| unusable(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(unusable("it holds no certificate".to_owned()));
        }
    } else if secure {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(
                Error::new(ErrorKind::Config, "this system has no trusted certificates")
                    .remedy("install the package `ca-certificates`, or set `ca_file`"),
            );
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(ErrorKind::Config, "cannot set up TLS").source(error))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Undoes percent-encoding; what is not UTF-8 then stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match hex.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(value) if byte == b'%' => {
                bytes.push(value);
                rest = &after[2..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn credentials_are_decoded() {
        assert_eq!(decode("p%40ss%2fw"), "p@ss/w");
        assert_eq!(decode("100%"), "100%");
        assert_eq!(decode("%zz"), "%zz");
    }
}

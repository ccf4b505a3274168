//! The few requests to the API server.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep_core::config::Secret;
use lockstep_core::{Error, ErrorKind, Result};
use reqwest::{Method, StatusCode, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use super::KubernetesLeases;
use super::object::Object;

/// Where a pod finds its service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A client of the leases of one namespace.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    /// Of all leases of the namespace.
    leases: Url,
    token: Bearer,
    /// Whether the server has ever done what it was asked.
    let_in: AtomicBool,
}

#[derive(Debug)]
enum Bearer {
    None,
    Given(Secret),
    /// The service account's: it changes about once an hour.
    Account,
}

/// What the server makes of a write.
pub(super) enum Answer {
    Object(Object),
    /// Somebody else was first.
    Conflict,
    /// There is none.
    Missing,
}

/// What can be checked without I/O.
///
/// # Errors
/// Of kind `Config`, naming the field.
pub(super) fn check(config: &KubernetesLeases) -> Result<()> {
    let wrong = |message: String, remedy: &str, field: &str| {
        let error = Error::new(ErrorKind::Config, message);
        Err(error.remedy(remedy).at(field))
    };
    if let Some(url) = &config.url {
        let remedy = "write https://host:6443";
        match Url::parse(url) {
            Ok(parsed) if matches!(parsed.scheme(), "http" | "https") => {}
            _ => {
                return wrong(
                    format!("`{url}` is not the URL of an API server"),
                    remedy,
                    "url",
                );
            }
        }
        if config.namespace.is_none() {
            let message = "with `url` there is no service account to take the namespace from";
            return wrong(message.into(), "write namespace = \"…\"", "namespace");
        }
    }
    Ok(())
}

impl Client {
    /// Reads what the service account gives where the section does not say. Connects to nothing yet.
    ///
    /// # Errors
    /// Of kind `Config` when a file cannot be used, `Setup` where this does not run in a cluster.
    pub(super) async fn new(config: &KubernetesLeases) -> Result<Self> {
        let account = Path::new(ACCOUNT);
        let url = match &config.url {
            Some(url) => url.clone(),
            None => in_cluster()?,
        };
        let namespace = match &config.namespace {
            Some(namespace) => namespace.clone(),
            None => read(&account.join("namespace")).await?.trim().to_owned(),
        };
        let ca = match (&config.ca, &config.url) {
            (Some(ca), _) => Some(ca.clone()),
            (None, None) => Some(account.join("ca.crt")),
            (None, Some(_)) => None,
        };
        let token = match (&config.token, &config.url) {
            (Some(token), _) => Bearer::Given(token.clone()),
            (None, None) => Bearer::Account,
            (None, Some(_)) => Bearer::None,
        };
        let wrong = || Error::new(ErrorKind::Config, format!("`{url}` cannot be used"));
        let mut leases = Url::parse(&url).map_err(|error| wrong().source(error))?;
        let secure = leases.scheme() == "https";
        leases
            .path_segments_mut()
            .map_err(|()| wrong())?
            .pop_if_empty()
            .extend([
                "apis",
                "coordination.k8s.io",
                "v1",
                "namespaces",
                &namespace,
                "leases",
            ]);
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(ca.as_deref(), secure)?)
            .connect_timeout(config.ttl.0)
            .tcp_nodelay(true)
            // A redirect would send the token elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| {
                Error::new(ErrorKind::Config, "cannot set up the HTTP client").source(error)
            })?;
        Ok(Client {
            http,
            leases,
            token,
            let_in: AtomicBool::new(false),
        })
    }

    /// Whether the server has ever given this client an answer that is not for everyone.
    pub(super) fn was_let_in(&self) -> bool {
        self.let_in.load(Ordering::Relaxed)
    }

    /// The object as it is now.
    pub(super) async fn read(&self, name: &str) -> Result<Option<Object>> {
        match self.call(Method::GET, Some(name), None).await? {
            Answer::Object(object) => Ok(Some(object)),
            Answer::Missing | Answer::Conflict => Ok(None),
        }
    }

    pub(super) async fn create(&self, object: &Object) -> Result<Answer> {
        match self.call(Method::POST, None, Some(object)).await? {
            // Then it is the namespace that is missing.
            Answer::Missing => Err(Error::new(
                ErrorKind::Setup,
                format!("{} is not there", self.leases),
            )
            .remedy("make the namespace, or correct its name")),
            answer => Ok(answer),
        }
    }

    /// Writes it if it is still of the version that was read.
    pub(super) async fn replace(&self, name: &str, object: &Object) -> Result<Answer> {
        self.call(Method::PUT, Some(name), Some(object)).await
    }

    /// Returns when the object is of another version than `since`, if that can be seen.
    pub(super) async fn changed(&self, name: &str, since: &str, limit: Duration) {
        if let Some(true) = self.watch(name, since, limit).await {
            return;
        }
        // Not seen, as without the right to watch: the caller's patience decides.
        std::future::pending().await
    }

    async fn watch(&self, name: &str, since: &str, limit: Duration) -> Option<bool> {
        let seconds = (limit.as_secs() + 1).to_string();
        let mut url = self.leases.clone();
        url.query_pairs_mut()
            .append_pair("watch", "true")
            .append_pair("fieldSelector", &format!("metadata.name={name}"))
            .append_pair("resourceVersion", since)
            .append_pair("timeoutSeconds", &seconds);
        let request = self.http.request(Method::GET, url);
        let mut response = self.authorized(request).await.ok()?.send().await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        let mut line = Vec::new();
        while let Some(chunk) = response.chunk().await.ok()? {
            line.extend_from_slice(&chunk);
            if let Some(end) = line.iter().position(|&byte| byte == b'\n') {
                let event: Value = serde_json::from_slice(&line[..end]).ok()?;
                let kind = event["type"].as_str();
                return Some(matches!(kind, Some("ADDED" | "MODIFIED" | "DELETED")));
            }
        }
        None
    }

    async fn authorized(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::RequestBuilder> {
        Ok(match &self.token {
            Bearer::None => request,
            Bearer::Given(token) => request.bearer_auth(token.reveal()),
            Bearer::Account => {
                let token = read(&Path::new(ACCOUNT).join("token")).await?;
                request.bearer_auth(token.trim())
            }
        })
    }

    async fn call(
        &self,
        method: Method,
        name: Option<&str>,
        object: Option<&Object>,
    ) -> Result<Answer> {
        let mut url = self.leases.clone();
        if let (Some(name), Ok(mut path)) = (name, url.path_segments_mut()) {
            path.push(name);
        }
        let mut request = self.http.request(method.clone(), url);
        if let Some(Object(value)) = object {
            request = request.json(value);
        }
        let unanswered = |error: reqwest::Error| {
            Error::new(
                ErrorKind::Unavailable,
                format!("no answer from the API server to {method}"),
            )
            .source(error.without_url())
            .remedy("see that the API server can be reached from here")
        };
        let response = self.authorized(request).await?.send().await;
        let response = response.map_err(unanswered)?;
        let status = response.status();
        let body = response.bytes().await.map_err(unanswered)?;
        let let_in = matches!(
            status,
            StatusCode::OK | StatusCode::CREATED | StatusCode::NOT_FOUND | StatusCode::CONFLICT
        );
        if let_in {
            self.let_in.store(true, Ordering::Relaxed);
        }
        match status {
            StatusCode::OK | StatusCode::CREATED => {
                let value = serde_json::from_slice(&body).map_err(|error| {
                    Error::new(
                        ErrorKind::Protocol,
                        "the API server's answer is not an object",
                    )
                    .source(error)
                    .remedy("check that the URL leads to an API server")
                })?;
                Ok(Answer::Object(Object(value)))
            }
            StatusCode::NOT_FOUND => Ok(Answer::Missing),
            StatusCode::CONFLICT => Ok(Answer::Conflict),
            status => Err(refused(status, &body)),
        }
    }
}

/// The house error for a status; the server says why in its body.
fn refused(status: StatusCode, body: &[u8]) -> Error {
    let said: Value = serde_json::from_slice(body).unwrap_or_default();
    let why = said["message"].as_str().unwrap_or("it does not say why");
    let error = |kind| {
        Error::new(
            kind,
            format!("the API server answers {}: {why}", status.as_u16()),
        )
    };
    match status.as_u16() {
        401 => error(ErrorKind::Authentication).remedy("give a token that is valid"),
        403 => error(ErrorKind::Permission).remedy(
            "give the service account a Role with get, create, update and watch on leases of coordination.k8s.io",
        ),
        422 => error(ErrorKind::Invalid),
        408 | 425 | 429 => error(ErrorKind::Overloaded),
        500..=599 => error(ErrorKind::Unavailable),
        _ => error(ErrorKind::Protocol),
    }
}

/// The address that every pod is told.
fn in_cluster() -> Result<String> {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (Some(host), Some(port)) = (
        set("KUBERNETES_SERVICE_HOST"),
        set("KUBERNETES_SERVICE_PORT"),
    ) else {
        return Err(Error::new(
            ErrorKind::Setup,
            "this does not run in a Kubernetes cluster",
        )
        .remedy("give `url`, `namespace` and `token`"));
    };
    Ok(match host.contains(':') {
        true => format!("https://[{host}]:{port}"),
        false => format!("https://{host}:{port}"),
    })
}

async fn read(path: &Path) -> Result<String> {
    tokio::fs::read_to_string(path).await.map_err(|error| {
        Error::new(ErrorKind::Setup, format!("cannot read {}", path.display()))
            .source(error)
            .remedy("give the pod a service account (automountServiceAccountToken)")
    })
}

/// TLS by rustls with ring. Without `https` no certificate is read.
fn tls(ca: Option<&Path>, secure: bool) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = ca.filter(|_| secure) {
        let unusable = |error: String| {
            Error::new(ErrorKind::Config, format!("cannot use {}", path.display()))
                .source(error)
                .remedy("name a file of PEM certificates as `ca`")
        };
        let certificates =
            CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
            let added = roots.add(certificate);
            added.map_err(|error| unusable(error.to_string()))?;
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
                    .remedy("install the package `ca-certificates`, or set `ca`"),
            );
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(ErrorKind::Config, "cannot set up TLS").source(error))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

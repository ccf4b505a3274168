//! Where a Redis is, and how to get in.

use std::path::PathBuf;
use std::time::Duration as StdDuration;

use lockstep_core::config::{Duration, Secret};
use lockstep_core::{Error, ErrorKind, Result};
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use schemars::JsonSchema;
use serde::Deserialize;

/// How long a connection may take to come up.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration(StdDuration::from_secs(5));
/// How long the server may take to answer before it counts as gone.
pub const DEFAULT_RESPONSE_TIMEOUT: Duration = Duration(StdDuration::from_secs(10));

/// [`DEFAULT_CONNECT_TIMEOUT`], for serde.
#[must_use]
pub fn default_connect_timeout() -> Duration {
    DEFAULT_CONNECT_TIMEOUT
}

/// [`DEFAULT_RESPONSE_TIMEOUT`], for serde.
#[must_use]
pub fn default_response_timeout() -> Duration {
    DEFAULT_RESPONSE_TIMEOUT
}

/// The part of a section that says where the server is. Sections spell these keys out themselves: a flattened struct could
/// not refuse unknown ones.
#[derive(Clone, Debug)]
pub struct Server {
    /// One server, or any node of a cluster.
    pub url: Option<Secret>,
    /// Several nodes of a cluster, instead of `url`.
    pub urls: Option<Vec<Secret>>,
    /// Whether it is a Redis Cluster.
    pub cluster: bool,
    /// Certificates for `rediss://`.
    pub tls: Option<TlsConfig>,
    /// How long a connection may take to come up.
    pub connect_timeout: Duration,
    /// How long the server may take to answer.
    pub response_timeout: Duration,
}

/// Certificates for `rediss://`, as PEM files.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate authorities to trust instead of the system's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// The client's certificate chain, together with `key`.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// The client's private key, together with `cert`.
    #[serde(default)]
    pub key: Option<PathBuf>,
}

impl Server {
    /// Checks what can be checked without I/O.
    ///
    /// # Errors
    /// Of kind `Config`, naming the field.
    pub fn validate(&self) -> Result<()> {
        self.endpoints()?;
        for (name, duration) in [
            ("connect_timeout", self.connect_timeout),
            ("response_timeout", self.response_timeout),
        ] {
            if duration.0.is_zero() {
                return Err(
                    wrong(format!("`{name}` is zero")).remedy("give it a length, such as 10s")
                );
            }
        }
        if let Some(tls) = &self.tls {
            if tls.cert.is_some() != tls.key.is_some() {
                return Err(
                    wrong("`tls.cert` and `tls.key` belong together").remedy("give both or none")
                );
            }
            if !self.first_url().reveal().starts_with("rediss://") {
                return Err(wrong("`tls` is given for a URL without TLS")
                    .remedy("write rediss:// in the URL"));
            }
        }
        Ok(())
    }

    /// The URLs to connect to, of which there is at least one, parsed.
    pub(crate) fn endpoints(&self) -> Result<Vec<ConnectionInfo>> {
        let urls = match (&self.url, &self.urls) {
            (Some(url), None) => std::slice::from_ref(url),
            (None, Some(urls)) if !urls.is_empty() => urls.as_slice(),
            (Some(_), Some(_)) => {
                return Err(wrong("`url` and `urls` are both given").remedy("keep one of them"));
            }
            (None, _) => {
                return Err(
                    wrong("`url` is missing").remedy("write url = \"redis://127.0.0.1:6379\"")
                );
            }
        };
        if urls.len() > 1 && !self.cluster {
            return Err(wrong("`urls` names several servers").remedy(
                "write cluster = true if they are nodes of a Redis Cluster, else keep one as `url`",
            ));
        }
        urls.iter()
            .map(|url| parse_url(url, self.cluster))
            .collect()
    }

    /// The first URL, for messages by [`Secret::redacted_url`].
    fn first_url(&self) -> Secret {
        self.url
            .clone()
            .or_else(|| self.urls.as_ref().and_then(|urls| urls.first().cloned()))
            .unwrap_or_else(|| Secret::new(""))
    }

    /// The server as messages name it, without credentials.
    #[must_use]
    pub fn place(&self) -> String {
        self.first_url().redacted_url()
    }
}

fn parse_url(url: &Secret, cluster: bool) -> Result<ConnectionInfo> {
    let info = url.reveal().into_connection_info().map_err(|cause| {
        // The cause may quote a part of the URL, though not its credentials: the parser's messages are fixed texts.
        wrong(format!(
            "`{}` is not the URL of a Redis server",
            url.redacted_url()
        ))
        .source(cause)
        .remedy(
            "write redis://[user:password@]host[:port][/db], rediss://… for TLS, or unix:///path",
        )
    })?;
    if cluster {
        if matches!(info.addr(), ConnectionAddr::Unix(_)) {
            return Err(wrong("a cluster cannot be reached through a socket file")
                .remedy("use a redis:// URL"));
        }
        if info.redis_settings().db() != 0 {
            return Err(
                wrong("a cluster has database 0 only").remedy("remove the database from the URL")
            );
        }
    }
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    Ok(info.set_tcp_settings(tcp))
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

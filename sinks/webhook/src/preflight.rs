//! What `lockstep check` looks at. Nothing is posted.

use std::sync::Arc;
use std::time::Duration;

use lockstep_core::check::Finding;
use lockstep_core::config::Secret;
use lockstep_core::{Error, Result};
use reqwest::Url;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::address::{Addresses, Target};
use crate::answer::Verdict;
use crate::client::Client;
use crate::config::Config;
use crate::tls::tls;

/// How long the receiver may take to be connected to.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn preflight(config: &Config) -> Vec<Finding> {
    let made = config.validate().and_then(|()| {
        let client = Client::new(config, None)?;
        let target = Addresses::new(&config.url)?.sample()?;
        Ok((client, target, config.probe_url()?))
    });
    let (client, target, probe) = match made {
        Ok(made) => made,
        Err(error) => return vec![failed("configuration", &error)],
    };
    let mut findings = vec![connects(config, &target).await];
    if let Some(probe) = probe {
        findings.push(is_well(&client, probe).await);
    }
    let has_login = config.bearer.is_some() || config.user.is_some() || !config.headers.is_empty();
    if has_login && target.url.scheme() == "http" && !is_here(&target.url) {
        findings.push(Finding::warn(
            "encryption",
            "credentials go over the network as they are",
            "write `url` with https://",
        ));
    }
    findings
}

pub(crate) fn failed(subject: impl Into<String>, error: &Error) -> Finding {
    let remedy = error
        .remedy_text()
        .unwrap_or("mend the section of the sink");
    Finding::fail(subject, error.to_string(), remedy)
}

/// Whether it is this machine.
fn is_here(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = host.parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

async fn connects(config: &Config, target: &Target) -> Finding {
    let host = target.url.host_str().unwrap_or_default();
    let port = target.url.port_or_known_default().unwrap_or(443);
    let subject = format!("receiver {host}:{port}");
    let remedy = "see that the receiver is up and can be reached from here, and that its certificate is one of `ca_file`";
    match timeout(PATIENCE, connect(config, target, host, port)).await {
        Ok(Ok(how)) => {
            let to = config.url.redacted_url();
            Finding::pass(subject, format!("{how}; changes are posted to {to}"))
        }
        Ok(Err(error)) => Finding::fail(subject, error, remedy),
        Err(_) => Finding::fail(subject, "cannot be connected to in time", remedy),
    }
}

/// A connection, and the handshake of TLS. What was found, or what happened.
async fn connect(
    config: &Config,
    target: &Target,
    host: &str,
    port: u16,
) -> Result<&'static str, String> {
    let plain = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((plain, port));
    let stream = stream.await.map_err(|error| error.to_string())?;
    if target.url.scheme() != "https" {
        return Ok("can be connected to");
    }
    let tls = tls(config, true).map_err(|error| error.to_string())?;
    let name = ServerName::try_from(plain.to_owned()).map_err(|error| error.to_string())?;
    let connector = TlsConnector::from(Arc::new(tls));
    match connector.connect(name, stream).await {
        Ok(_) => Ok("can be connected to, by TLS"),
        Err(error) => Err(format!("TLS: {error}")),
    }
}

async fn is_well(client: &Client, probe: Url) -> Finding {
    let subject = format!("probe {}", Secret::new(probe.as_str()).redacted_url());
    let answer = match client.get(probe).await {
        Ok(answer) => answer,
        Err(error) => return failed(subject, &error),
    };
    match answer.judge("GET", false) {
        Verdict::Taken => Finding::pass(subject, format!("answers {}", answer.status)),
        Verdict::Again(error, _) | Verdict::Failed(error) => failed(subject, &error),
    }
}

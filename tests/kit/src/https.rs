//! HTTP over TLS, to servers whose authority the kit has made.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{Context, Error};

/// Trusts only what descends from `ca`; shows a certificate and its key where it is given them. All in PEM.
pub(crate) fn client(ca: &str, identity: Option<(&str, &str)>) -> Result<reqwest::Client, Error> {
    let doing = || "making a client of HTTPS".into();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate.context(doing)?).context(doing)?;
    }
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context(doing)?
        .with_root_certificates(roots);
    let config = match identity {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes());
            let chain = chain.collect::<Result<Vec<_>, _>>().context(doing)?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context(doing)?;
            config.with_client_auth_cert(chain, key).context(doing)?
        }
    };
    reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        // Tests restart the server: what is left of a connection is no use.
        .pool_max_idle_per_host(0)
        .no_proxy()
        .build()
        .context(doing)
}

/// Status and body of the answer.
pub(crate) async fn answer(request: reqwest::RequestBuilder) -> io::Result<(u16, String)> {
    let answer = request.send().await.map_err(io::Error::other)?;
    let status = answer.status().as_u16();
    let body = answer.text().await.map_err(io::Error::other)?;
    Ok((status, body))
}

//! TLS with rustls and ring.

use std::path::Path;
use std::sync::Arc;

use lockstep_core::{Error, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::config::{TlsConfig, wrong};

/// How to talk to a broker whose certificate descends from one of the authorities, and from no other.
///
/// # Errors
/// Of kind `Config` when a file cannot be read or does not fit.
pub(crate) fn client_config(tls: &TlsConfig) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong("tls", "it cannot be set up").source(error))?
        .with_root_certificates(authorities(tls.ca.as_deref())?);
    let config = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => {
            let secret = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| unreadable("tls.key", key, error))?;
            builder
                .with_client_auth_cert(certificates("tls.cert", cert)?, secret)
                .map_err(|error| wrong("tls", "`cert` and `key` do not fit").source(error))?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn authorities(ca: Option<&Path>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca else {
        let (added, _) =
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return match added {
            0 => Err(wrong("tls", "the system has no certificate authorities")
                .remedy("install ca-certificates, or name a file: tls = { ca = \"…\" }")),
            _ => Ok(roots),
        };
    };
    for certificate in certificates("tls.ca", path)? {
        roots
            .add(certificate)
            .map_err(|error| wrong("tls.ca", "a certificate cannot be used").source(error))?;
    }
    Ok(roots)
}

fn certificates(field: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bad = |error| unreadable(field, path, error);
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(bad)?
        .collect::<Result<_, _>>()
        .map_err(bad)?;
    match certificates.is_empty() {
        true => Err(wrong(
            field,
            format!("{} holds no certificate", path.display()),
        )),
        false => Ok(certificates),
    }
}

fn unreadable(field: &str, path: &Path, error: rustls::pki_types::pem::Error) -> Error {
    wrong(field, format!("cannot read {}", path.display()))
        .source(error)
        .remedy("name a readable PEM file")
}

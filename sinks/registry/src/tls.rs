//! TLS by rustls with ring.

use std::sync::Arc;

use lockstep_core::{Error, ErrorKind, Result};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::config::RegistryConfig;

/// What is trusted. Without an `https` address no certificate of the system is read.
///
/// # Errors
/// When a file cannot be used.
pub(crate) fn tls(config: &RegistryConfig, is_secure: bool) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &config.ca_file {
        let unusable = |cause: String| {
            let what = format!("cannot use `ca_file` {}", path.display());
            Error::new(ErrorKind::Config, what)
                .source(cause)
                .remedy("name a file of PEM certificates that lockstep may read")
        };
        let found =
            CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))?;
        for certificate in found {
            let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
            let added = roots.add(certificate);
            added.map_err(|error| unusable(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(unusable("it holds no certificate".to_owned()));
        }
    } else if is_secure {
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
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(ErrorKind::Config, "cannot set up TLS").source(error))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

//! TLS by rustls with ring.

use std::path::Path;
use std::sync::Arc;

use lockstep_core::{Error, ErrorKind, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::config::Config;

/// What the client trusts, and says it is. Without an `https` address no certificate of the system is read.
///
/// # Errors
/// When a file cannot be used.
pub(crate) fn tls(config: &Config, is_secure: bool) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &config.ca_file {
        for certificate in certificates("ca_file", path)? {
            roots
                .add(certificate)
                .map_err(|error| unusable("ca_file", path, error.to_string()))?;
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
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(ErrorKind::Config, "cannot set up TLS").source(error))?
        .with_root_certificates(roots);
    let (Some(cert), Some(key)) = (&config.cert_file, &config.key_file) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates("cert_file", cert)?;
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| unusable("key_file", key, error.to_string()))?;
    builder
        .with_client_auth_cert(chain, private)
        .map_err(|error| unusable("key_file", key, error.to_string()))
}

fn certificates(field: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let unusable = |error: String| unusable(field, path, error);
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(|error| unusable(error.to_string()))?
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(error.to_string()))?;
    match found.is_empty() {
        true => Err(unusable("it holds no certificate".to_owned())),
        false => Ok(found),
    }
}

fn unusable(field: &str, path: &Path, cause: String) -> Error {
    let what = format!("cannot use `{field}` {}", path.display());
    Error::new(ErrorKind::Config, what)
        .source(cause)
        .remedy("name a file in PEM that lockstep may read")
}

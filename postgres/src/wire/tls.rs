//! TLS by libpq's rules, with rustls and ring.

use std::path::Path;
use std::sync::Arc;

use lockstep_core::error::{Error, ErrorKind, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::target::{SslMode, Target};

/// The client configuration for a target.
///
/// # Errors
/// Of kind `Config` when a certificate or key file cannot be read or does not fit.
pub fn client_config(target: &Target) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // libpq: `require` with a root certificate behaves like `verify-ca`.
    let verify_chain = target.sslmode >= SslMode::VerifyCa
        || (target.sslmode == SslMode::Require && target.sslrootcert.is_some());
    let verifier: Arc<dyn ServerCertVerifier> = if verify_chain {
        let roots = root_store(target)?;
        let webpki =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|error| {
                    config_error("the root certificates cannot be used")
                        .source(error)
                        .at("sslrootcert")
                })?;
        if target.sslmode == SslMode::VerifyFull {
            webpki
        } else {
            Arc::new(ChainOnly(webpki))
        }
    } else {
        Arc::new(Anything(Arc::clone(&provider)))
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| config_error("TLS cannot be set up").source(error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match (&target.sslcert, &target.sslkey) {
        (Some(cert), Some(key)) => {
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| file_error("sslkey", key, error))?;
            builder
                .with_client_auth_cert(certificates("sslcert", cert)?, key)
                .map_err(|error| {
                    config_error("the client certificate and key do not fit").source(error)
                })?
        }
        (None, None) => builder.with_no_client_auth(),
        _ => return Err(config_error("sslcert and sslkey go together").remedy("give both or none")),
    };
    Ok(Arc::new(config))
}

fn config_error(message: &str) -> Error {
    Error::new(ErrorKind::Config, message)
}

fn file_error(parameter: &str, path: &Path, error: rustls::pki_types::pem::Error) -> Error {
    config_error(&format!("cannot read {}", path.display()))
        .source(error)
        .remedy("name a readable PEM file")
        .at(parameter)
}

fn certificates(parameter: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |error| file_error(parameter, path, error);
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(wrong)?
        .collect::<Result<_, _>>()
        .map_err(wrong)?;
    if certificates.is_empty() {
        return Err(
            config_error(&format!("{} holds no certificate", path.display())).at(parameter),
        );
    }
    Ok(certificates)
}

fn root_store(target: &Target) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match target.sslrootcert.as_deref() {
        Some(path) if path != Path::new("system") => {
            for certificate in certificates("sslrootcert", path)? {
                roots.add(certificate).map_err(|error| {
                    config_error("a root certificate cannot be used")
                        .source(error)
                        .at("sslrootcert")
                })?;
            }
        }
        _ => {
            let found = rustls_native_certs::load_native_certs();
            let (added, _) = roots.add_parsable_certificates(found.certs);
            if added == 0 {
                return Err(config_error("the system has no root certificates")
                    .remedy("install ca-certificates or name a file with sslrootcert"));
            }
        }
    }
    Ok(roots)
}

/// Verifies the chain, not the name: `verify-ca`.
#[derive(Debug)]
struct ChainOnly(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
        match self
            .0
            .verify_server_cert(end_entity, intermediates, server_name, ocsp, now)
        {
            // The name is looked at after the chain has been found good.
            Err(rustls::Error::InvalidCertificate(
                NotValidForName | NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Encrypts without knowing to whom: `allow`, `prefer`, and `require` without a root certificate, as libpq does.
#[derive(Debug)]
struct Anything(Arc<CryptoProvider>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The `tls-server-end-point` channel binding of a certificate (RFC 5929 §4.1): its hash by the hash of its own
/// signature algorithm, SHA-256 where that is MD5 or SHA-1. `None` when the algorithm has no single hash (Ed25519).
#[must_use]
pub fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    use ring::digest::{SHA256, SHA384, SHA512, digest};
    // Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { OID, … }, … }
    let (_, body, _) = der(certificate)?;
    let (_, _, after_tbs) = der(body)?;
    let (_, algorithm, _) = der(after_tbs)?;
    let (_, oid, _) = der(algorithm)?;
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA_SHA2: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
    const ECDSA_SHA1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];
    let (last, prefix) = oid.split_last()?;
    let hash = match (prefix, last) {
        (RSA, 4 | 5 | 11) | (ECDSA_SHA2, 2) => &SHA256,
        (RSA, 12) | (ECDSA_SHA2, 3) => &SHA384,
        (RSA, 13) | (ECDSA_SHA2, 4) => &SHA512,
        _ if oid == ECDSA_SHA1 => &SHA256,
        _ => return None,
    };
    Some(digest(hash, certificate).as_ref().to_vec())
}

/// Tag, content and rest of the DER value at the start of `bytes`.
fn der(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 4 || rest.len() < count {
            return None;
        }
        let length = rest[..count]
            .iter()
            .fold(0usize, |sum, &byte| sum << 8 | usize::from(byte));
        (length, &rest[count..])
    };
    (rest.len() >= length).then(|| (tag, &rest[..length], &rest[length..]))
}

//! Certificates made for one server.

use std::fs;
use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::error::{Context, Error};
use crate::scratch::Scratch;

/// PEM files, valid as long as the server that they were made for.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// Signed the server's and the client's certificate: `sslrootcert`.
    pub ca: PathBuf,
    /// An authority that signed neither: with it as `sslrootcert`, `verify-ca` must fail.
    pub other_ca: PathBuf,
    /// Valid for `localhost` and `127.0.0.1`; not for `127.0.0.2`, where the server listens too: `verify-full` must fail.
    pub server: PathBuf,
    /// Readable by the server alone.
    pub server_key: PathBuf,
    /// Its common name is the user `postgres`: for `cert` authentication.
    pub client: PathBuf,
    /// Readable by this process alone.
    pub client_key: PathBuf,
}

pub(crate) fn make(scratch: &Scratch) -> Result<Certificates, Error> {
    let doing = || "making certificates".into();
    let (ca, ca_pem) = authority("lockstep-kit CA").context(doing)?;
    let (_, other_pem) = authority("another CA").context(doing)?;
    let names = ["localhost", "127.0.0.1"];
    let (server, server_key) = serving("localhost", &names, &ca).context(doing)?;
    let (client, client_key) = asking("postgres", None, &ca).context(doing)?;
    let public = |name: &str, pem: &str| {
        let path = scratch.join(name);
        fs::write(&path, pem)
            .context(|| format!("writing {}", path.display()))
            .map(|()| path)
    };
    let client_key = {
        use std::os::unix::fs::PermissionsExt;
        let path = public("client.key", &client_key)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .context(|| "chmod client.key".into())?;
        path
    };
    Ok(Certificates {
        ca: public("ca.crt", &ca_pem)?,
        other_ca: public("other-ca.crt", &other_pem)?,
        server: public("server.crt", &server)?,
        server_key: scratch.write("server.key", &server_key)?,
        client: public("client.crt", &client)?,
        client_key,
    })
}

pub(crate) type Authority = Issuer<'static, KeyPair>;

/// One that signs, and its certificate in PEM.
pub(crate) fn authority(name: &str) -> Result<(Authority, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let key = KeyPair::generate()?;
    let pem = params.self_signed(&key)?.pem();
    Ok((Issuer::new(params, key), pem))
}

/// Certificate and key, in PEM, of a server that is known by these names and addresses.
pub(crate) fn serving(
    common_name: &str,
    names: &[&str],
    ca: &Authority,
) -> Result<(String, String), rcgen::Error> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    signed(params, common_name, ca)
}

/// Certificate and key, in PEM, of a client: a user, and the group it is in.
pub(crate) fn asking(
    user: &str,
    group: Option<&str>,
    ca: &Authority,
) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    if let Some(group) = group {
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    signed(params, user, ca)
}

fn signed(
    mut params: CertificateParams,
    common_name: &str,
    ca: &Authority,
) -> Result<(String, String), rcgen::Error> {
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, ca)?.pem(), key.serialize_pem()))
}

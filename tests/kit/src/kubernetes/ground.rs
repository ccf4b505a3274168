//! What a server needs before it starts: certificates, a key for the tokens of service accounts, and an administrator.

use std::path::PathBuf;

use rcgen::KeyPair;

use super::access::Access;
use crate::certificates;
use crate::error::{Context, Error};
use crate::scratch::Scratch;

/// What the server's certificate is valid for: loopback, what pods call it, and the first address of its services.
const NAMES: [&str; 6] = [
    "localhost",
    "127.0.0.1",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "10.0.0.1",
];

/// Who is in it may do everything, whatever the roles say.
const MASTERS: &str = "system:masters";

pub(super) struct Files {
    pub(super) ca: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    /// Signs tokens.
    pub(super) signing: PathBuf,
    /// Proves them. The server takes no private key for it.
    pub(super) proving: PathBuf,
    pub(super) kubeconfig: PathBuf,
    pub(super) access: Access,
}

pub(super) fn make(scratch: &Scratch, url: &str) -> Result<Files, Error> {
    let doing = || "making certificates".into();
    let (ca, ca_pem) = certificates::authority("lockstep-kit CA").context(doing)?;
    let (certificate, key) = certificates::serving("kube-apiserver", &NAMES, &ca).context(doing)?;
    let (admin, admin_key) =
        certificates::asking("administrator", Some(MASTERS), &ca).context(doing)?;
    let accounts = KeyPair::generate().context(doing)?;
    let access = Access::new(url, &ca_pem, &admin, &admin_key)?;
    Ok(Files {
        ca: scratch.write("ca.crt", &ca_pem)?,
        certificate: scratch.write("server.crt", &certificate)?,
        key: scratch.write("server.key", &key)?,
        signing: scratch.write("accounts.key", &accounts.serialize_pem())?,
        proving: scratch.write("accounts.pub", &accounts.public_key_pem())?,
        kubeconfig: scratch.write("kubeconfig.json", &access.kubeconfig())?,
        access,
    })
}

//! The sink over TLS.

mod support;

use std::net::TcpListener;

use lockstep_core::ErrorKind;
use lockstep_kit::Component::Redis;
use lockstep_kit::redis::{Redis as Server, RedisOptions};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::json;
use support::{Lab, Null, T, counts};

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked() {
    lockstep_kit::require!(Redis);
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        std::fs::write(path(name), certificate.pem()).expect("written");
        Issuer::new(params, key)
    };
    let issuer = authority("ca.crt");
    authority("other.crt");
    for name in ["server", "client"] {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("params");
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &issuer).expect("signed");
        std::fs::write(path(&format!("{name}.crt")), certificate.pem()).expect("written");
        std::fs::write(path(&format!("{name}.key")), key.serialize_pem()).expect("written");
    }
    let users = "user default on nopass ~* &* +@all\nuser lockstep on >open-sesame ~* &* +@all\n";
    std::fs::write(path("users.acl"), users).expect("written");
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|held| held.local_addr())
        .expect("a port")
        .port();
    let config = [
        ("tls-port", port.to_string()),
        ("tls-cert-file", path("server.crt")),
        ("tls-key-file", path("server.key")),
        ("tls-ca-cert-file", path("ca.crt")),
        ("aclfile", path("users.acl")),
    ];
    let server = Server::start(RedisOptions {
        append_only: false,
        config: config.map(|(name, value)| (name.to_owned(), value)).into(),
    })
    .await;

    let plain = Lab::single(server.url(), json!({})).await;
    let url = format!("rediss://127.0.0.1:{port}");
    let tls =
        json!({ "ca": path("ca.crt"), "cert": path("client.crt"), "key": path("client.key") });
    let lab = plain.with(json!({ "url": url, "tls": tls }));
    let mut sink = lab.open().await;
    let batch = lab
        .make()
        .commit(1)
        .insert(&lab.orders(), &[T("1"), T("x"), Null, Null])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (1, 0));
    assert!(plain.row("1").await.is_some());

    let named = format!("rediss://lockstep:open-sesame@127.0.0.1:{port}");
    plain
        .with(json!({ "url": named, "tls": tls }))
        .try_open()
        .await
        .expect("a user of the ACL");
    let named = format!("rediss://lockstep:hunter2@127.0.0.1:{port}");
    let error = plain
        .with(json!({ "url": named, "tls": tls }))
        .try_open()
        .await
        .err()
        .expect("wrong password");
    assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
    assert!(
        !error.to_string().contains("hunter2") && error.remedy_text().is_some(),
        "{error}"
    );

    for (tls, kind) in [
        (
            json!({ "ca": path("other.crt"), "cert": path("client.crt"), "key": path("client.key") }),
            ErrorKind::Unavailable,
        ),
        (json!({ "ca": path("ca.crt") }), ErrorKind::Unavailable),
        (json!({ "ca": path("missing.crt") }), ErrorKind::Config),
    ] {
        let error = plain
            .with(json!({ "url": url, "tls": tls }))
            .try_open()
            .await
            .err()
            .expect("not trusted");
        assert_eq!(error.kind(), kind, "{error}");
    }
}

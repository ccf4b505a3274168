//! A broker that is reached by TLS, asks for a certificate of its clients, and then for a user.

use std::path::Path;

use lockstep_core::ErrorKind;
use lockstep_kit::kafka::{Kafka, KafkaOptions};
use lockstep_kit::{Component, require, unique};
use lockstep_sink_kafka::KafkaConfig;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::support::{Feed, config, insert, open, read};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).expect("params");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().expect("a key");
    let pem = params.self_signed(&key).expect("signed").pem();
    Authority {
        issuer: Issuer::new(params, key),
        pem,
    }
}

/// Certificate and key of `name`, in PEM.
fn signed(name: &str, ca: &Authority) -> (String, String) {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("params");
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, &ca.issuer).expect("signed");
    (certificate.pem(), key.serialize_pem())
}

/// The plain listener is the test's own; the proxied one is SASL_SSL and demands a client certificate.
async fn start(ca: &Authority) -> Kafka {
    let (certificate, key) = signed("broker", ca);
    let line = |pem: &str| pem.replace("\r", "").replace('\n', "\\n");
    let own = "listener.name.proxied";
    let settings = [
        (
            "listener.security.protocol.map".to_owned(),
            "PLAINTEXT:PLAINTEXT,PROXIED:SASL_SSL,CONTROLLER:PLAINTEXT".to_owned(),
        ),
        (format!("{own}.ssl.keystore.type"), "PEM".to_owned()),
        (format!("{own}.ssl.keystore.certificate.chain"), line(&certificate)),
        (format!("{own}.ssl.keystore.key"), line(&key)),
        (format!("{own}.ssl.truststore.type"), "PEM".to_owned()),
        (format!("{own}.ssl.truststore.certificates"), line(&ca.pem)),
        (format!("{own}.ssl.client.auth"), "required".to_owned()),
        (
            format!("{own}.sasl.enabled.mechanisms"),
            "PLAIN,SCRAM-SHA-512".to_owned(),
        ),
        (
            format!("{own}.scram-sha-512.sasl.jaas.config"),
            "org.apache.kafka.common.security.scram.ScramLoginModule required;".to_owned(),
        ),
        (
            format!("{own}.plain.sasl.jaas.config"),
            "org.apache.kafka.common.security.plain.PlainLoginModule required user_root=\"open-sesame\";".to_owned(),
        ),
    ];
    Kafka::start(KafkaOptions {
        settings: settings.into(),
        proxy: true,
    })
    .await
}

/// The connection of a user, as a pipeline file has it, with `changed` properties.
fn connection(kafka: &Kafka, folder: &Path, prefix: &str, changed: &[(&str, &str)]) -> KafkaConfig {
    let path = |name: &str| folder.join(name).to_str().expect("UTF-8").to_owned();
    let mut properties = json!({
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "root",
        "sasl.password": "open-sesame",
        "ssl.ca.location": path("ca.crt"),
        "ssl.certificate.location": path("client.crt"),
        "ssl.key.location": path("client.key"),
    });
    for (name, value) in changed {
        let value = match name.ends_with(".location") {
            true => path(value),
            false => (*value).to_owned(),
        };
        properties[*name] = Value::String(value);
    }
    config(
        &kafka.proxied_bootstrap(),
        prefix,
        &json!({ "properties": properties }),
    )
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(
    not(feature = "kafka-ssl"),
    ignore = "needs a build with kafka-ssl: make test-features"
)]
async fn certificates_and_passwords_are_checked() {
    require!(Component::Kafka);
    let folder = tempfile::tempdir().expect("a folder");
    let ca = authority("the CA");
    let other = authority("another CA");
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).expect("written");
    };
    write("ca.crt", &ca.pem);
    write("other.crt", &other.pem);
    for (name, by) in [("client", &ca), ("stranger", &other)] {
        let (certificate, key) = signed(name, by);
        write(&format!("{name}.crt"), &certificate);
        write(&format!("{name}.key"), &key);
    }
    let kafka = start(&ca).await;
    let prefix = unique("encrypted");
    let feed = Feed::new(&prefix);

    kafka.scram_user("till", "open-barley").await.expect("made");
    let scram = [
        ("sasl.mechanism", "SCRAM-SHA-512"),
        ("sasl.username", "till"),
        ("sasl.password", "open-barley"),
    ];
    for (number, by) in [(1, &[][..]), (2, &scram)] {
        let right = connection(&kafka, folder.path(), &prefix, by);
        let mut sink = open(&right, &prefix, &[&feed])
            .await
            .unwrap_or_else(|error| panic!("{by:?}: {error}"));
        let durable = sink
            .write(feed.batch(number, &[insert(1, "a")]))
            .await
            .expect("taken");
        durable.await.expect("durable");
        sink.close().await.expect("closes");
    }
    assert_eq!(read(kafka.bootstrap(), &feed.topic()).await.len(), 2);

    let stranger = [
        ("ssl.certificate.location", "stranger.crt"),
        ("ssl.key.location", "stranger.key"),
    ];
    for (changed, kinds) in [
        (
            &[("sasl.password", "hunter2")][..],
            &[ErrorKind::Authentication][..],
        ),
        (
            &[scram[0], scram[1], ("sasl.password", "hunter2")],
            &[ErrorKind::Authentication],
        ),
        (
            &[("ssl.ca.location", "other.crt")],
            &[ErrorKind::Authentication, ErrorKind::Unavailable],
        ),
        (
            &stranger,
            &[ErrorKind::Authentication, ErrorKind::Unavailable],
        ),
    ] {
        let wrong = connection(&kafka, folder.path(), &prefix, changed);
        let error = open(&wrong, &prefix, &[&feed])
            .await
            .err()
            .unwrap_or_else(|| panic!("{changed:?} is taken"));
        eprintln!("{changed:?}: {error} / {:?}", error.remedy_text());
        assert!(kinds.contains(&error.kind()), "{changed:?}: {error}");
        assert!(
            !error.to_string().contains("hunter2") && error.remedy_text().is_some(),
            "{error}"
        );
        if changed[0].0 == "ssl.ca.location" {
            let told = format!("{error} {}", error.remedy_text().unwrap_or_default());
            assert!(told.contains("SSL handshake failed"), "{told}");
            assert!(told.contains("ssl.ca.location"), "{told}");
        }
    }
}

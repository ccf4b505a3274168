//! What requests look like: bodies, headers, signatures, TLS; and what `lockstep check` finds.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lockstep_core::ErrorKind;
use lockstep_core::check::Verdict;
use lockstep_core::position::SourceInfo;
use lockstep_core::sink::SinkFactory;
use lockstep_kit::wait_for;
use lockstep_sink_webhook::Webhook;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use ring::hmac;
use serde_json::{Value, json};
use support::*;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};

const SECRETS: [&str; 2] = [
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
];

#[tokio::test]
async fn a_request_says_what_it_is_about() {
    let receiver = Receiver::willing().await;
    let url = format!(
        "{}/in/{{source}}/{{schema}}/{{table}}?of={{table}}",
        receiver.url
    );
    let section = json!({"headers": {"X-Api-Key": "k"}, "user": "u", "password": "p"});
    let mut open = open(&url, section).await;
    let table = table("shop", "odd ü/name", 1, &[("id", "int8", INT8)]);
    let batch = Feed::new(&source("shop"))
        .begin(10)
        .insert(&table, &["1".into()])
        .finish();
    put_ok(&mut open.sink, batch).await;
    let [asked] = &*receiver.asked() else {
        panic!("one request");
    };
    assert_eq!(asked.method, "POST");
    assert_eq!(
        asked.path,
        "/in/shop/public/odd%20%C3%BC%2Fname?of=odd%20%C3%BC%2Fname"
    );
    let id = "7000000000000000001/1/shop/0000000000000050/1:shop:public:odd%20%C3%BC/name:c";
    for (name, value) in [
        ("content-type", "application/json"),
        ("idempotency-key", id),
        ("x-lockstep-source", "shop"),
        ("x-lockstep-table", "public.odd%20%C3%BC/name"),
        ("x-lockstep-op", "c"),
        ("x-api-key", "k"),
        ("authorization", "Basic dTpw"),
    ] {
        assert_eq!(asked.header(name), value, "{name}");
    }
    for name in ["x-lockstep-token", "webhook-id", "webhook-signature"] {
        assert!(!asked.headers.contains_key(name), "{name}");
    }
    let body: Value = serde_json::from_str(&asked.body).expect("JSON");
    assert_eq!(body["id"], id);
    assert_eq!(body["key"], json!({"id": 1}));
    assert_eq!(body["value"]["row"], json!({"id": 1}));
    let fields: Vec<&String> = body.as_object().expect("an object").keys().collect();
    assert_eq!(fields, ["id", "key", "value"]);
}

/// Of one change there may be several records, and of one place of a log several changes: each has an id of its own.
#[tokio::test]
async fn records_of_one_place_have_ids_of_their_own() {
    let receiver = Receiver::willing().await;
    let mut open = open(&receiver.url, json!({})).await;
    let items = items();
    let other = Arc::new(SourceInfo {
        name: "other".into(),
        ..SourceInfo::clone(&source("shop"))
    });
    let moved = Feed::new(&source("shop"))
        .begin(10)
        .rekey(&items, "1", &["2".into(), "moved".into()])
        .finish();
    put_ok(&mut open.sink, moved).await;
    // Another slot on the same log, which counts the changes of its own tables only.
    let shelf = lockstep_conformance::history::items("other", "shelf");
    let same_place = Feed::new(&other).begin(10).delete(&shelf, "1").finish();
    put_ok(&mut open.sink, same_place).await;
    let place = "7000000000000000001/1/shop/0000000000000050/1";
    let ids: Vec<String> = receiver
        .taken()
        .into_iter()
        .map(|record| record.id)
        .collect();
    let expected = [
        format!("{place}:shop:public:items:d"),
        format!("{place}:shop:public:items:c"),
        format!("{place}:other:public:shelf:d"),
    ];
    assert_eq!(ids, expected);
    for id in ids {
        let (change, _) = id.split_once(':').expect("parts");
        assert!(SourceInfo::parse_change_id(change).is_some(), "{change}");
    }
}

/// What is in an id besides cannot be mixed up with what is signed behind it.
#[tokio::test]
async fn no_name_brings_a_full_stop_or_a_quote_into_an_id() {
    let receiver = Receiver::willing().await;
    let mut open = open(&receiver.url, json!({})).await;
    let mut odd = SourceInfo::clone(&source("shop"));
    odd.identity.database = "a.b:\"c\\%".into();
    odd.identity.incarnation = 2;
    let batch = Feed::new(&Arc::new(odd))
        .begin(10)
        .insert(&items(), &["1".into()])
        .finish();
    put_ok(&mut open.sink, batch).await;
    assert_eq!(
        receiver.taken()[0].id,
        "7000000000000000001/1%2E2/a%2Eb%3A%22c%5C%25/0000000000000050/1:shop:public:items:c"
    );
}

#[tokio::test]
async fn a_logical_message_is_posted_as_one() {
    use lockstep_core::schema::TableSchema;
    let receiver = Receiver::willing().await;
    let url = format!("{}/{{schema}}/{{table}}", receiver.url);
    let mut open = open(&url, json!({})).await;
    let schema = Arc::new(TableSchema::message("shop".into()));
    let batch = message(&schema);
    put_ok(&mut open.sink, batch).await;
    let [asked] = &*receiver.asked() else {
        panic!("one request");
    };
    assert_eq!(asked.path, "/pg_logical/message");
    assert_eq!(asked.header("x-lockstep-table"), "pg_logical.message");
    assert_eq!(asked.header("x-lockstep-op"), "m");
    assert_eq!(asked.records[0].key, json!({"prefix": "greeting"}));
}

fn message(schema: &Arc<lockstep_core::schema::TableSchema>) -> Arc<lockstep_core::batch::Batch> {
    use lockstep_core::batch::{BatchBuilder, Cell, Op, Phase, Transaction};
    let mut builder = BatchBuilder::new();
    builder.begin(Transaction {
        commit: lsn(10),
        commit_micros: 0,
        xid: 1,
        origin: None,
        previous_commit: None,
        prepared: None,
        global: None,
    });
    let block = b"greetinghello";
    let start = builder.cells().len();
    builder.cells().push(Cell::text(0, 8));
    builder.cells().push(Cell::text(8, 5));
    let index = builder.schema(schema);
    builder.push(Op::Message, index, 1, lsn(10), None, Some(start));
    let block = bytes::Bytes::from_static(block);
    Arc::new(builder.finish(source("shop"), Phase::Stream, Some(lsn(11)), block))
}

/// Verified as a receiver does it, by another implementation than the one that signed.
fn is_signed(asked: &Asked, secret: &str) -> bool {
    let key = STANDARD
        .decode(secret.trim_start_matches("whsec_"))
        .expect("base64");
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let (id, time) = (
        asked.header("webhook-id"),
        asked.header("webhook-timestamp"),
    );
    let signed = format!("{id}.{time}.{}", asked.body);
    asked.header("webhook-signature").split(' ').any(|one| {
        let signature = one.strip_prefix("v1,").expect("a version");
        let signature = STANDARD.decode(signature).expect("base64");
        hmac::verify(&key, signed.as_bytes(), &signature).is_ok()
    })
}

#[tokio::test]
async fn requests_are_signed_by_every_secret_and_each_try_anew() {
    for batch in [Value::Null, json!({"records": 2})] {
        let receiver = Receiver::start(|asked| match asked.before {
            0 => Reply::status(503).header("retry-after", "1"),
            _ => Reply::status(200),
        })
        .await;
        let section = json!({"secrets": SECRETS, "batch": batch});
        let mut open = open(&receiver.url, section).await;
        put_ok(&mut open.sink, inserts(10, &["1", "2"])).await;
        let asked = receiver.asked();
        assert!(asked.len() >= 2);
        for asked in &asked {
            assert!(is_signed(asked, SECRETS[0]) && is_signed(asked, SECRETS[1]));
            assert!(!is_signed(
                asked,
                "whsec_bm90IHRoZSBzZWNyZXQgYXQgYWxsISEhIQ=="
            ));
            assert_eq!(asked.header("webhook-id"), asked.header("idempotency-key"));
            assert!(!asked.header("webhook-id").contains('.'));
            let mut changed = asked.clone();
            changed.body.push(' ');
            assert!(!is_signed(&changed, SECRETS[0]), "the body is signed");
        }
        let time = |at: usize| -> u64 {
            asked[at]
                .header("webhook-timestamp")
                .parse()
                .expect("seconds")
        };
        assert!(time(1) > time(0), "a try is signed when it is made");
    }
}

#[tokio::test]
async fn an_array_is_known_by_its_records() {
    let receiver = Receiver::start(|asked| match asked.before {
        0 => Reply::status(503),
        _ => Reply::status(200),
    })
    .await;
    let mut open = open(&receiver.url, json!({"batch": {}})).await;
    put_ok(&mut open.sink, inserts(10, &["1", "2"])).await;
    let asked = receiver.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(
        asked[0].headers["idempotency-key"],
        asked[1].headers["idempotency-key"]
    );
    assert_eq!(
        (&asked[0].body, asked[0].header("x-lockstep-records")),
        (&asked[1].body, "2")
    );
    assert!(
        asked[0].body.starts_with("[{\"id\":\""),
        "{}",
        asked[0].body
    );
    assert_eq!(receiver.rows(), ["1", "2"]);
}

/// An authority, and what it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    folder: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Authority {
            issuer: Issuer::new(params, key),
            pem,
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    /// Certificate and key, in PEM.
    fn sign(&self, name: &str) -> (String, String) {
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }

    fn file(&self, name: &str, pem: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, pem).expect("written");
        path
    }

    fn ca(&self) -> PathBuf {
        self.file("ca.pem", &self.pem)
    }

    fn roots(&self) -> RootCertStore {
        use tokio_rustls::rustls::pki_types::pem::PemObject;
        let mut roots = RootCertStore::empty();
        let der = CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("PEM");
        roots.add(der).expect("an authority");
        roots
    }

    /// A server of this authority's; which asks for certificates of it, when `asks`.
    fn acceptor(&self, asks: bool) -> TlsAcceptor {
        use tokio_rustls::rustls::pki_types::pem::PemObject;
        let (certificate, key) = self.sign("127.0.0.1");
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
        let provider = Arc::new(crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions");
        let builder = match asks {
            false => builder.with_no_client_auth(),
            true => {
                let roots = Arc::new(self.roots());
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let config = builder.with_single_cert(vec![certificate], key);
        Arc::new(config.expect("a certificate and its key")).into()
    }
}

#[tokio::test]
async fn tls_trusts_the_given_authority_only() {
    let (authority, other) = (Authority::new(), Authority::new());
    let acceptor = authority.acceptor(false);
    let receiver = Receiver::listen(Some(acceptor), |_| Reply::status(200)).await;
    let mut right = open(&receiver.url, json!({"ca_file": authority.ca()})).await;
    put_ok(&mut right.sink, inserts(10, &["1"])).await;
    let mut wrong = open(&receiver.url, json!({"ca_file": other.ca()})).await;
    let durable = wrong.sink.write(inserts(20, &["2"])).await.expect("taken");
    let told = wait_for(PATIENCE, "trouble", async || wrong.trouble.get()).await;
    assert!(told.contains("certificate"), "{told}");
    drop(wrong.sink);
    durable.await.expect_err("not durable");
    assert_eq!(receiver.asked().len(), 1);
    for (ca, verdict) in [(authority.ca(), Verdict::Pass), (other.ca(), Verdict::Fail)] {
        let config = config(&receiver.url, &json!({"ca_file": ca}));
        let findings = Webhook::preflight(&config, "test", "hook").await;
        assert_eq!(findings[0].verdict, verdict, "{findings:?}");
    }
    let nothing = authority.file("empty.pem", "");
    for ca in [Path::new("/not/there"), &nothing] {
        let config = config(&receiver.url, &json!({"ca_file": ca}));
        let folder = tempfile::tempdir().expect("a folder");
        let opened = Webhook::open(&config, context(&source("shop"), folder.path())).await;
        let error = opened.err().expect("no authority");
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains("`ca_file`"), "{error}");
    }
}

#[tokio::test]
async fn a_server_may_ask_for_a_certificate() {
    let authority = Authority::new();
    let acceptor = authority.acceptor(true);
    let receiver = Receiver::listen(Some(acceptor), |_| Reply::status(200)).await;
    let (certificate, key) = authority.sign("lockstep");
    let section = json!({
        "ca_file": authority.ca(),
        "cert_file": authority.file("client.pem", &certificate),
        "key_file": authority.file("client.key", &key),
    });
    let mut known = open(&receiver.url, section).await;
    put_ok(&mut known.sink, inserts(10, &["1"])).await;
    let mut unknown = open(&receiver.url, json!({"ca_file": authority.ca()})).await;
    let durable = unknown
        .sink
        .write(inserts(20, &["2"]))
        .await
        .expect("taken");
    wait_for(PATIENCE, "trouble", async || unknown.trouble.get()).await;
    drop(unknown.sink);
    durable.await.expect_err("not durable");
    assert_eq!(receiver.rows(), ["1"]);
}

#[tokio::test]
async fn a_check_connects_and_posts_nothing() {
    let receiver = Receiver::start(|asked| {
        let is_known = asked.header("authorization") == "Bearer hunter2";
        let told = format!("no {}", asked.header("authorization"));
        Reply::status(if is_known { 200 } else { 401 }).body(told)
    })
    .await;
    let look = async |section: Value| {
        let url = format!("{}/{{table}}?key=hunter3", receiver.url);
        let findings = Webhook::preflight(&config(&url, &section), "test", "hook").await;
        let text = format!("{findings:?}");
        assert!(!text.contains("hunter"), "{text}");
        assert!(
            findings
                .iter()
                .all(|one| one.verdict != Verdict::Fail || one.remedy.is_some())
        );
        findings.iter().map(|one| one.verdict).collect::<Vec<_>>()
    };
    assert_eq!(look(json!({})).await, [Verdict::Pass]);
    let dots = table("shop", "..", 1, &[("id", "int8", INT8)]);
    let section = config("https://h/{table}", &json!({}));
    let findings = Webhook::suits(&section, &dots);
    assert_eq!(findings[0].verdict, Verdict::Fail, "{findings:?}");
    assert_eq!(Webhook::suits(&section, &items()), []);
    assert_eq!(receiver.asked().len(), 0);
    let probe = format!("{}/health?hunter2", receiver.url);
    let known = json!({"probe": probe, "bearer": "hunter2"});
    assert_eq!(look(known).await, [Verdict::Pass, Verdict::Pass]);
    let unknown = json!({"probe": probe, "bearer": "hunter4"});
    assert_eq!(look(unknown).await, [Verdict::Pass, Verdict::Fail]);
    let asked = receiver.asked();
    assert!(
        asked
            .iter()
            .all(|asked| asked.method == "GET" && asked.body.is_empty())
    );
    assert_eq!(asked.len(), 2);
    // Another host learns nothing of who we are.
    let elsewhere = Receiver::willing().await;
    let probe = format!("{}/health", elsewhere.url);
    let section = json!({"probe": probe, "bearer": "hunter2", "headers": {"X-Key": "hunter2"}});
    assert_eq!(look(section).await, [Verdict::Pass, Verdict::Pass]);
    let [asked] = &*elsewhere.asked() else {
        panic!("one request");
    };
    assert!(!format!("{asked:?}").contains("hunter2"), "{asked:?}");
    let mut gone = Receiver::willing().await;
    gone.kill().await;
    let findings = Webhook::preflight(&config(&gone.url, &json!({})), "test", "hook").await;
    assert_eq!(findings[0].verdict, Verdict::Fail, "{findings:?}");
}

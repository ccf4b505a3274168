//! Answers that a real cluster gives only in trouble.

#[path = "support/stub.rs"]
mod stub;
mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use lockstep_core::ErrorKind;
use lockstep_core::check::Verdict;
use lockstep_core::error::Policy;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::SinkFactory;
use lockstep_sink_search::opensearch::{Elasticsearch, OpenSearch};
use serde_json::{Value, json};
use stub::{Asked, Stub};
use support::*;

fn items() -> Arc<TableSchema> {
    table(
        "shop",
        "items",
        1,
        &[("id", "int4", INT4), ("name", "text", TEXT)],
    )
}

/// An answer to a bulk request: `judge(id)` gives each item's status and cause.
fn bulk(asked: &Asked, judge: impl Fn(&str) -> (u16, Option<Value>)) -> (u16, String) {
    let mut items = Vec::new();
    for line in asked.body.lines() {
        let line: Value = serde_json::from_str(line).expect("lines of JSON");
        for op in ["index", "delete"] {
            if let Some(id) = line[op]["_id"].as_str() {
                let (status, cause) = judge(id);
                let mut item = json!({"_id": id, "status": status});
                if let Some(cause) = cause {
                    item["error"] = cause;
                }
                items.push(json!({op: item}));
            }
        }
    }
    (200, json!({"errors": true, "items": items}).to_string())
}

/// What every cluster answers: indexes are there, mappings too.
fn usual(asked: &Asked) -> (u16, String) {
    match &*asked.path {
        "/shop-items/_mapping" => (
            200,
            json!({"shop-items": {"mappings": {"properties": {"id": {}, "name": {}}}}}).to_string(),
        ),
        path if path.contains("/_doc/identities") && asked.method == "GET" => (404, "{}".into()),
        _ => (200, "{}".into()),
    }
}

async fn sink(stub: &Stub) -> Box<dyn lockstep_core::sink::Sink> {
    open::<OpenSearch>(json!({"url": stub.url}), &source("shop"), &[&items()]).await
}

fn three() -> Arc<lockstep_core::batch::Batch> {
    let items = items();
    Feed::new(&source("shop"))
        .begin(10)
        .insert(&items, &["1".into(), "a".into()])
        .insert(&items, &["2".into(), "b".into()])
        .insert(&items, &["3".into(), "c".into()])
        .finish()
}

#[tokio::test]
async fn only_items_that_were_rejected_are_sent_again() {
    let rounds = AtomicUsize::new(0);
    let stub = Stub::start(move |asked| {
        if !asked.path.starts_with("/_bulk") {
            return usual(asked);
        }
        let round = rounds.fetch_add(1, Ordering::Relaxed);
        bulk(asked, |id| match (round, id) {
            (0, "2" | "3") | (1, "3") => (
                429,
                Some(json!({"type": "es_rejected_execution_exception", "reason": "rejected"})),
            ),
            _ => (201, None),
        })
    })
    .await;
    let delivered = put_ok(&mut sink(&stub).await, three()).await;
    assert_eq!(delivered.written, 3);
    let sizes: Vec<_> = stub
        .asked("/_bulk")
        .iter()
        .map(|asked| asked.body.lines().count() / 2)
        .collect();
    assert_eq!(sizes, [3, 2, 1]);
}

/// The answer to a bulk request waits a while for another one to come.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn requests_overlap_unless_they_share_a_key() {
    for (second, overlaps) in [("2", 2), ("1", 1)] {
        let under_way = Arc::new((Mutex::new((0, 0)), Condvar::new()));
        let seen = Arc::clone(&under_way);
        let stub = Stub::start(move |asked| {
            if !asked.path.starts_with("/_bulk") {
                return usual(asked);
            }
            let (counts, came) = &*seen;
            let mut counts = counts.lock().expect("not poisoned");
            counts.0 += 1;
            counts.1 = counts.1.max(counts.0);
            came.notify_all();
            let (mut counts, _) = came
                .wait_timeout_while(counts, Duration::from_millis(300), |counts| counts.1 < 2)
                .expect("not poisoned");
            counts.0 -= 1;
            bulk(asked, |_| (200, None))
        })
        .await;
        let config = json!({"url": stub.url, "bulk_documents": 1});
        let mut sink = open::<OpenSearch>(config, &source("shop"), &[&items()]).await;
        let items = items();
        let mut waiting = Vec::new();
        for (ordinal, id) in ["1", second].into_iter().enumerate() {
            let batch = Feed::new(&source("shop"))
                .continued(10, ordinal as u64)
                .update(&items, &[V::Text(id), "x".into()])
                .finish();
            waiting.push(sink.write(batch).await.expect("taken"));
        }
        for durable in waiting {
            durable.await.expect("durable");
        }
        let most = under_way.0.lock().expect("not poisoned").1;
        assert_eq!(most, overlaps, "1 and {second}");
    }
}

/// Of two changes of a row that wait for the same request only the later one is sent. When it is refused, the earlier one is
/// still to be written.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_refused_change_replaced_is_not_durable() {
    // Requests that have come, and whether they are answered.
    let gate = Arc::new((Mutex::new((0, false)), Condvar::new()));
    let seen = Arc::clone(&gate);
    let stub = Stub::start(move |asked| {
        if !asked.path.starts_with("/_bulk") {
            return usual(asked);
        }
        let (state, changed) = &*seen;
        let mut state = state.lock().expect("not poisoned");
        state.0 += 1;
        changed.notify_all();
        drop(changed.wait_while(state, |(_, is_open)| !*is_open));
        bulk(asked, |id| match id {
            "1" => (
                400,
                Some(json!({"type": "mapper_parsing_exception", "reason": "no"})),
            ),
            _ => (201, None),
        })
    })
    .await;
    let config = json!({"url": stub.url, "concurrency": 1});
    let mut sink = open::<OpenSearch>(config, &source("shop"), &[&items()]).await;
    let items = items();
    let mut waiting = Vec::new();
    for (commit, id) in [(10, "9"), (20, "1"), (30, "1")] {
        let batch = Feed::new(&source("shop"))
            .begin(commit)
            .insert(&items, &[V::Text(id), "x".into()])
            .finish();
        waiting.push(sink.write(batch).await.expect("taken"));
        // The first one is under way before the others come.
        let state = gate.0.lock().expect("not poisoned");
        let (state, late) = gate
            .1
            .wait_timeout_while(state, Duration::from_secs(30), |(came, _)| *came == 0)
            .expect("not poisoned");
        assert!(!late.timed_out());
        drop(state);
    }
    gate.0.lock().expect("not poisoned").1 = true;
    gate.1.notify_all();
    let mut answers = Vec::new();
    for durable in waiting {
        answers.push(durable.await.map_err(|error| error.kind()).err());
    }
    // The one who learns first speaks for all.
    let others = [Some(ErrorKind::Refused), Some(ErrorKind::Abandoned)];
    assert_eq!((answers[0], &answers[1..]), (None, &others[..]));
}

/// A shard without a node is left out of a search, whose status is 200 all the same.
#[tokio::test]
async fn a_truncate_that_part_of_the_index_has_not_answered_is_not_done() {
    let stub = Stub::start(|asked| {
        if !asked.path.starts_with("/shop-items/_search") {
            return usual(asked);
        }
        let page = json!({
            "_scroll_id": "s", "_shards": {"total": 2, "successful": 1, "failed": 1}, "hits": {"hits": []}
        });
        (200, page.to_string())
    })
    .await;
    let mut sink = sink(&stub).await;
    let batch = Feed::new(&source("shop"))
        .begin(10)
        .truncate(&items())
        .finish();
    let error = match sink.write(batch).await {
        Ok(durable) => durable.await.expect_err("half an answer"),
        Err(error) => error,
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

/// A crash between the two would lose the value: no request may hold both.
#[tokio::test]
async fn a_moved_value_is_safe_before_its_old_document_goes() {
    let stub = Stub::start(|asked| match &*asked.path {
        path if path.starts_with("/_bulk") => bulk(asked, |_| (200, None)),
        "/_mget" => (
            200,
            json!({"docs": [
                {"_id": "1", "found": true, "_version": 5, "_source": {"id": 1, "name": "kept"}},
                {"_id": "2", "found": false},
            ]})
            .to_string(),
        ),
        _ => usual(asked),
    })
    .await;
    let items = items();
    let moved = Feed::new(&source("shop"))
        .begin(10)
        .rekey(&items, "1", &["2".into(), V::Unchanged])
        .finish();
    put_ok(&mut sink(&stub).await, moved).await;
    let bulks = stub.asked("/_bulk");
    assert_eq!(bulks.len(), 2);
    assert!(
        bulks[0].body.contains(r#"{"id":2,"name":"kept"}"#),
        "{}",
        bulks[0].body
    );
    assert!(
        bulks[1]
            .body
            .starts_with(r#"{"delete":{"_index":"shop-items","_id":"1""#)
    );
}

#[tokio::test]
async fn a_cluster_that_stays_busy_is_an_error_that_is_retried() {
    let stub = Stub::start(|asked| match asked.path.starts_with("/_bulk") {
        true => (
            429,
            json!({"error": {"type": "circuit_breaking_exception", "reason": "too much"}})
                .to_string(),
        ),
        false => usual(asked),
    })
    .await;
    let mut sink = sink(&stub).await;
    let error = put_err(&mut sink, three()).await;
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert_eq!(error.kind().policy(), Policy::Retry);
    assert!(error.to_string().contains("too much"), "{error}");
    // The sink has ended, and says so.
    let error = sink.flush().await.expect_err("ended");
    assert_eq!(error.kind(), ErrorKind::Abandoned);
}

#[tokio::test]
async fn every_item_must_be_answered_in_order() {
    for change in [
        |items: &mut Vec<Value>| drop(items.pop()),
        |items: &mut Vec<Value>| items.swap(0, 1),
    ] {
        let stub = Stub::start(move |asked| {
            if !asked.path.starts_with("/_bulk") {
                return usual(asked);
            }
            let (status, body) = bulk(asked, |_| (201, None));
            let mut body: Value = serde_json::from_str(&body).expect("JSON");
            change(body["items"].as_array_mut().expect("items"));
            (status, body.to_string())
        })
        .await;
        let error = put_err(&mut sink(&stub).await, three()).await;
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    }
}

#[tokio::test]
async fn a_full_disk_is_waited_for_and_a_block_by_hand_is_not() {
    for (reason, kind) in [
        (
            "index [shop-items] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage watermark];",
            ErrorKind::Overloaded,
        ),
        (
            "index [shop-items] blocked by: [FORBIDDEN/8/index write (api)];",
            ErrorKind::Setup,
        ),
    ] {
        let stub = Stub::start(move |asked| match asked.path.starts_with("/_bulk") {
            true => bulk(asked, |_| {
                (
                    403,
                    Some(json!({"type": "cluster_block_exception", "reason": reason})),
                )
            }),
            false => usual(asked),
        })
        .await;
        let error = put_err(&mut sink(&stub).await, three()).await;
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains("index shop-items"), "{error}");
    }
}

#[tokio::test]
async fn another_process_that_is_ahead_is_noticed() {
    let stub = Stub::start(|asked| match &*asked.path {
        path if path.starts_with("/_bulk") => bulk(asked, |_| (201, None)),
        path if path.contains("/_doc/test") => (
            409,
            json!({"error": {"type": "version_conflict_engine_exception", "reason": "current version is higher"}}).to_string(),
        ),
        _ => usual(asked),
    })
    .await;
    let mut sink = sink(&stub).await;
    put_ok(&mut sink, three()).await;
    let error = sink.flush().await.expect_err("the position is refused");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
}

#[tokio::test]
async fn wrong_credentials_end_the_pipeline() {
    let stub = Stub::start(|asked| match &*asked.authorization {
        // user:p@ss
        "Basic dXNlcjpwQHNz" => usual(asked),
        _ => (401, json!({"error": {"type": "security_exception", "reason": "unable to authenticate user"}}).to_string()),
    })
    .await;
    let with = |user: &str| stub.url.replace("http://", &format!("http://{user}@"));
    let context = context(&source("shop"), &[&items()]);
    let config = serde_json::from_value(json!({"url": with("user:wrong")})).expect("valid");
    let error = OpenSearch::open(&config, context.clone())
        .await
        .err()
        .expect("refused");
    assert_eq!(error.kind(), ErrorKind::Authentication);
    assert!(!error.to_string().contains("wrong"), "{error}");
    let findings = OpenSearch::preflight(&config, "test", "search").await;
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].verdict, Verdict::Fail);
    assert!(findings[0].remedy.is_some());
    let config = serde_json::from_value(json!({"url": with("user:p%40ss")})).expect("valid");
    OpenSearch::open(&config, context.clone())
        .await
        .expect("opens");
    let config =
        serde_json::from_value(json!({"url": stub.url, "user": "user", "password": "p@ss"}));
    OpenSearch::open(&config.expect("valid"), context)
        .await
        .expect("opens");
}

#[tokio::test]
async fn tls_trusts_the_given_authority_only() {
    use tokio_rustls::rustls;
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let other =
        rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.expect("a key"))
        .expect("a certificate and its key");
    let stub = Stub::listen(Some(Arc::new(server).into()), usual).await;
    let dir = tempfile::tempdir().expect("a folder");
    let trusting = |name: &str, pem: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, pem).expect("written");
        serde_json::from_value(json!({"url": stub.url, "ca_file": path})).expect("valid")
    };
    let context = context(&source("shop"), &[&items()]);
    let right = trusting("right.pem", made.cert.pem());
    OpenSearch::open(&right, context.clone())
        .await
        .expect("opens");
    let wrong = trusting("wrong.pem", other.cert.pem());
    let error = OpenSearch::open(&wrong, context.clone())
        .await
        .err()
        .expect("not trusted");
    assert!(error.to_string().contains("certificate"), "{error}");
    let none = trusting("none.pem", "nothing".into());
    let error = OpenSearch::open(&none, context)
        .await
        .err()
        .expect("no certificate");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
}

#[tokio::test]
async fn the_next_node_is_asked_when_one_is_down() {
    let stub = Stub::start(|asked| match asked.path.starts_with("/_bulk") {
        true => bulk(asked, |_| (201, None)),
        false => usual(asked),
    })
    .await;
    let urls = json!({"urls": ["http://127.0.0.1:1", stub.url]});
    let mut sink = open::<OpenSearch>(urls, &source("shop"), &[&items()]).await;
    assert_eq!(put_ok(&mut sink, three()).await.written, 3);
}

#[tokio::test]
async fn elasticsearch_is_asked_for_privileges() {
    let stub = Stub::start(|asked| match asked.path.split('?').next().unwrap_or_default() {
        "/" => (200, json!({"version": {"number": "8.15.3"}}).to_string()),
        "/_cluster/health" => (200, json!({"status": "green"}).to_string()),
        "/_cat/allocation" => (
            200,
            json!([{"node": "a", "disk.percent": "93"}, {"node": null, "disk.percent": null}]).to_string(),
        ),
        "/*-*/_settings" => (
            200,
            json!({"shop-items": {"settings": {"index.blocks.read_only_allow_delete": "true"}}}).to_string(),
        ),
        "/_security/user/_has_privileges" => (
            200,
            json!({"has_all_requested": false, "index": {"*-*": {"index": true, "create_index": false}}}).to_string(),
        ),
        _ => (404, "{}".into()),
    })
    .await;
    let config = serde_json::from_value(json!({"url": stub.url, "api_key": "aWQ6a2V5"}));
    let config = config.expect("valid");
    let findings = Elasticsearch::preflight(&config, "test", "search").await;
    let shown: Vec<_> = findings
        .iter()
        .map(|finding| (finding.verdict, &*finding.detail))
        .collect();
    assert_eq!(
        shown,
        [
            (Verdict::Pass, "Elasticsearch 8.15.3"),
            (Verdict::Pass, "green"),
            (Verdict::Warn, "93 % used on a"),
            (
                Verdict::Fail,
                "blocked: index.blocks.read_only_allow_delete"
            ),
            (Verdict::Fail, "missing: create_index on *-*"),
            (Verdict::Pass, "will be created"),
        ]
    );
    assert!(
        findings
            .iter()
            .all(|finding| finding.verdict == Verdict::Pass || finding.remedy.is_some())
    );
    for asked in stub.asked("/") {
        assert_eq!(asked.authorization, "ApiKey aWQ6a2V5", "{}", asked.path);
    }
}

#[test]
fn mistakes_in_the_section_are_named() {
    for (section, named) in [
        (json!({}), "url"),
        (
            json!({"url": "http://h:9200", "urls": ["http://i:9200"]}),
            "urls",
        ),
        (json!({"url": "h:9200"}), "url"),
        (json!({"url": "http://h", "index": "{tabel}"}), "{tabel}"),
        (json!({"url": "http://h", "concurrency": 0}), "concurrency"),
        (json!({"url": "http://h", "password": "x"}), "user"),
        (
            json!({"url": "http://h", "progress_index": "A/b"}),
            "progress_index",
        ),
    ] {
        let config = serde_json::from_value(section.clone()).expect("readable");
        let error = OpenSearch::validate(&config).expect_err("wrong");
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(named), "{section}: {error}");
    }
    let unknown = json!({"url": "http://h", "indx": "x"});
    assert!(
        serde_json::from_value::<lockstep_sink_search::opensearch::Config>(unknown)
            .expect_err("unknown key")
            .to_string()
            .contains("indx")
    );
}

//! Against a real registry, and against answers that a real one gives seldom.

use lockstep_core::ErrorKind;
use lockstep_kit::registry::Registry as Server;
use lockstep_kit::{Component, require, unique};
use lockstep_registry::{Registry, RegistryConfig, Verdict};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn config(url: &str, more: &Value) -> RegistryConfig {
    let mut section = json!({"url": url});
    let more = more.as_object().expect("an object").clone();
    section.as_object_mut().expect("an object").extend(more);
    serde_json::from_value(section).expect("valid")
}

fn registry(url: &str, more: &Value) -> Registry {
    Registry::new(&config(url, more)).expect("valid")
}

/// A record with a field of this type.
fn schema(name: &str, ty: &str) -> String {
    let fields = json!([{"name": "x", "type": ty}]);
    json!({"type": "record", "name": name, "fields": fields}).to_string()
}

#[tokio::test]
async fn schemas_are_registered_once_and_found_again() {
    require!(Component::Registry);
    let server = Server::shared().await;
    let mut ours = registry(server.url(), &json!({}));
    // With what a path must not have as it is.
    let subject = format!("{}-ü-value", unique("t"));
    let first = schema("first", "int");
    let id = ours.id(&subject, &first).await.expect("registered");
    assert_eq!(ours.id(&subject, &first).await.expect("known"), id);
    let mut other = registry(server.url(), &json!({"auto_register": false}));
    assert_eq!(other.id(&subject, &first).await.expect("found"), id);
    let text = other
        .schema(id)
        .await
        .expect("an answer")
        .expect("is there");
    assert_eq!(
        serde_json::from_str::<Value>(&text).expect("JSON"),
        serde_json::from_str::<Value>(&first).expect("JSON")
    );
    assert_eq!(other.schema(987_654_321).await.expect("an answer"), None);
    let missing = other.id(&subject, &schema("first", "long")).await;
    assert_eq!(missing.expect_err("is not there").kind(), ErrorKind::Setup);
    assert!(ours.subject_count().await.expect("an answer") > 0);
}

#[tokio::test]
async fn what_would_be_refused_is_told_before_and_is_refused() {
    require!(Component::Registry);
    let server = Server::shared().await;
    let mut ours = registry(server.url(), &json!({}));
    let subject = format!("{}-value", unique("t"));
    let (first, other) = (schema("first", "int"), schema("first", "string"));
    let judged = ours.judge(&subject, &first).await.expect("an answer");
    assert_eq!(judged, Verdict::Accepted);
    ours.id(&subject, &first).await.expect("registered");
    let judged = ours.judge(&subject, &first).await.expect("an answer");
    assert_eq!(judged, Verdict::Known);
    let path = format!("/config/{subject}");
    let set = server
        .ask("PUT", &path, r#"{"compatibility":"FULL"}"#)
        .await;
    assert_eq!(set.0, 200, "{}", set.1);
    let judged = ours.judge(&subject, &other).await.expect("an answer");
    assert!(matches!(judged, Verdict::Refused(_)), "{judged:?}");
    let error = ours.id(&subject, &other).await.expect_err("incompatible");
    assert_eq!(error.kind(), ErrorKind::Setup);
    let said = error.to_string();
    assert!(
        said.contains("Incompatible artifact") && said.contains(&subject),
        "{said}"
    );
    // Refused once is not known.
    ours.id(&subject, &other).await.expect_err("incompatible");
}

/// Answers every request like this, and hands out what was asked.
async fn answering(status: &str, body: &str) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/base", listener.local_addr().expect("an address"));
    let length = body.len();
    let answer =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let mut request = Vec::new();
        while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
            stream.read_buf(&mut request).await.expect("a request");
        }
        stream
            .write_all(answer.as_bytes())
            .await
            .expect("an answer");
        String::from_utf8_lossy(&request).into_owned()
    });
    (url, asked)
}

#[tokio::test]
async fn answers_mean_what_they_say() {
    for (status, body, kind, words) in [
        (
            "401 x",
            r#"{"error_code":401,"message":"who"}"#,
            ErrorKind::Authentication,
            "who (error 401)",
        ),
        (
            "403 x",
            r#"{"message":"no"}"#,
            ErrorKind::Permission,
            ": no",
        ),
        ("429 x", "slow down", ErrorKind::Overloaded, "slow down"),
        (
            "500 x",
            r#"{"error_code":50001,"message":"store"}"#,
            ErrorKind::Unavailable,
            "store",
        ),
        ("503 x", "", ErrorKind::Unavailable, "503"),
        ("302 x", "", ErrorKind::Setup, "302"),
        ("404 x", "<html>", ErrorKind::Setup, "ccompat"),
        ("200 OK", "<html>", ErrorKind::Setup, "no schema registry"),
        (
            "422 x",
            r#"{"error_code":42201,"message":"no schema"}"#,
            ErrorKind::Setup,
            "no schema (error 42201)",
        ),
    ] {
        let (url, asked) = answering(status, body).await;
        let login = url.replace("http://", "http://me:hunter2@");
        let mut ours = registry(&login, &json!({}));
        let error = ours.id("t-value", "\"int\"").await.expect_err(status);
        assert_eq!(error.kind(), kind, "{status}: {error}");
        let said = error.to_string();
        assert!(said.contains(words), "{status}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
        let request = asked.await.expect("was asked");
        assert!(
            request.starts_with("POST /base/subjects/t-value/versions HTTP/1.1"),
            "{request}"
        );
        // me:hunter2
        let login = "authorization: Basic bWU6aHVudGVyMg==";
        assert!(request.contains(login), "{request}");
        assert!(request.contains("content-type: application/vnd.schemaregistry.v1+json"));
    }
}

#[tokio::test]
async fn one_that_is_away_is_unavailable() {
    let mut ours = registry("http://127.0.0.1:1", &json!({"bearer": "hunter2"}));
    let error = ours.id("t-value", "\"int\"").await.expect_err("nobody");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("an address"));
    let mut ours = registry(&url, &json!({"request_timeout": "200ms"}));
    let error = ours.id("t-value", "\"int\"").await.expect_err("silence");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("in time"), "{error}");
}

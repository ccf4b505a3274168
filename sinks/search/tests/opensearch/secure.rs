//! A server that is reached by TLS, and asks who it is: OpenSearch with its security plugin.

use lockstep_core::ErrorKind;
use lockstep_core::check::Verdict;
use lockstep_kit::opensearch::{OpenSearch as Server, OpenSearchOptions};
use lockstep_kit::{Component, require_own};
use serde_json::{Value, json};

use super::support::*;
use super::{Corner, orders, row};

const PASSWORD: &str = "An-0pen-sesame!";

/// The role of the README, in the names of one corner.
fn role(corner: &Corner<'_>) -> Value {
    let readme = include_str!("../../README.md");
    let block = readme
        .split("```json\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("a role in the README");
    let text = block
        .replace("shop-*", &format!("{}-shop-*", corner.prefix))
        .replace("lockstep-progress", &format!("{}-progress", corner.prefix));
    serde_json::from_str(&text).expect("the role is JSON")
}

async fn put_as_administrator(corner: &Corner<'_>, path: &str, body: &Value) {
    let path = format!("/_plugins/_security/api/{path}");
    let (status, answer) = corner.ask("PUT", &path, &body.to_string()).await;
    assert!((200..300).contains(&status), "{path}: {status} {answer}");
}

/// A user with exactly this role.
async fn user(corner: &Corner<'_>, name: &str, role: &Value) {
    put_as_administrator(corner, &format!("roles/{name}"), role).await;
    let user = json!({ "password": PASSWORD, "opendistro_security_roles": [name] });
    put_as_administrator(corner, &format!("internalusers/{name}"), &user).await;
}

#[tokio::test]
async fn a_user_with_a_role_writes_by_tls_and_nobody_else() {
    require_own!(Component::OpenSearch);
    let options = OpenSearchOptions {
        secure: true,
        ..OpenSearchOptions::default()
    };
    let server = Server::start(options).await;
    let corner = Corner::on(&server);
    user(&corner, "lockstep", &role(&corner)).await;
    let reader = json!({
        "cluster_permissions": ["cluster:monitor/main"],
        "index_permissions": [{ "index_patterns": ["*"], "allowed_actions": ["read"] }],
    });
    user(&corner, "reader", &reader).await;
    let certificates = server.certificates();
    let by = |name: &str| json!({ "user": name, "password": PASSWORD, "ca_file": certificates.ca });

    let (source, orders) = (source("shop"), orders());
    let mut sink = corner.sink_with(by("lockstep"), &[&orders]).await;
    let rows = Feed::snapshot(&source, 10)
        .read(&orders, &row("1", "new"))
        .read(&orders, &row("2", "new"))
        .read(&orders, &row("3", "new"))
        .finish();
    assert_eq!(put_ok(&mut sink, rows).await.written, 3);
    let changed = Feed::new(&source)
        .begin(20)
        .update(&orders, &row("2", "paid"))
        .delete(&orders, "3")
        .finish();
    put_ok(&mut sink, changed).await;
    sink.close().await.expect("closes");
    let all = corner.all("orders").await;
    assert_eq!(all.len(), 2, "{all:?}");
    assert_eq!(all["2"].1["status"], "paid");

    // It goes on where it was, and what was written can be compared.
    let mut sink = corner.sink_with(by("lockstep"), &[&orders]).await;
    let resumed = sink.resume(&source).await.expect("resumes");
    assert!(resumed.is_some());
    let mut inspect = corner
        .inspect_with(by("lockstep"), context(&source, &[]))
        .await;
    assert_eq!(inspect.count(&orders).await.expect("counted"), 2);

    let findings = corner.preflight(by("lockstep")).await;
    let failed = findings
        .iter()
        .find(|finding| finding.verdict == Verdict::Fail);
    assert!(failed.is_none(), "{findings:?}");

    let wrong_password =
        json!({ "user": "lockstep", "password": "hunter2", "ca_file": certificates.ca });
    let wrong_authority =
        json!({ "user": "lockstep", "password": PASSWORD, "ca_file": certificates.other_ca });
    for (what, section, kind) in [
        (
            "a wrong password",
            wrong_password,
            ErrorKind::Authentication,
        ),
        (
            "no user",
            json!({ "ca_file": certificates.ca }),
            ErrorKind::Authentication,
        ),
        (
            "an authority of others",
            wrong_authority,
            ErrorKind::Unavailable,
        ),
        (
            "a user who may only read",
            by("reader"),
            ErrorKind::Permission,
        ),
    ] {
        let opened = corner.open(section, context(&source, &[&orders])).await;
        let error = opened.err().unwrap_or_else(|| panic!("{what} is taken"));
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(error.remedy_text().is_some(), "{what}: {error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

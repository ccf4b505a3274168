//! Asking the API server as its administrator.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::error::{Context, Error};
use crate::https;

/// How a kubeconfig that a person gives is made.
const REMEDY: &str =
    "make the file by `kubectl config view --raw --minify --flatten --output json`";

/// Where the server is, and who the administrator is.
#[derive(Debug)]
pub(super) struct Access {
    url: String,
    /// PEM.
    ca: String,
    identity: Identity,
    /// With the identity, if that is a certificate.
    http: reqwest::Client,
    /// Without.
    anonymous: reqwest::Client,
}

#[derive(Debug)]
enum Identity {
    /// Certificate and key, in PEM.
    Certificate(String, String),
    Token(String),
}

impl Access {
    /// By a client's certificate; all in PEM.
    pub(super) fn new(url: &str, ca: &str, certificate: &str, key: &str) -> Result<Self, Error> {
        let identity = Identity::Certificate(certificate.into(), key.into());
        Self::of(url, ca.to_owned(), identity)
    }

    fn of(url: &str, ca: String, identity: Identity) -> Result<Self, Error> {
        let pair = match &identity {
            Identity::Certificate(certificate, key) => Some((certificate.as_str(), key.as_str())),
            Identity::Token(_) => None,
        };
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            http: https::client(&ca, pair)?,
            anonymous: https::client(&ca, None)?,
            ca,
            identity,
        })
    }

    /// What the current context of a kubeconfig says, if it says all of it in the file itself.
    pub(super) fn read(kubeconfig: &str) -> Result<Self, Error> {
        let lacks = |what: &str| Error::new(format!("it has no {what}: {REMEDY}"));
        let file: Value = serde_json::from_str(kubeconfig)
            .map_err(|cause| Error::new(format!("{cause}: {REMEDY}")))?;
        let named = |list: &str, kind: &str, name: &Value| {
            let entries = file[list].as_array().cloned().unwrap_or_default();
            let found = entries.into_iter().find(|entry| entry["name"] == *name);
            found.map(|mut entry| entry[kind].take())
        };
        let context = named("contexts", "context", &file["current-context"]);
        let context = context.ok_or_else(|| lacks("current context"))?;
        let cluster = named("clusters", "cluster", &context["cluster"]);
        let cluster = cluster.ok_or_else(|| lacks("cluster of that context"))?;
        let user = named("users", "user", &context["user"]);
        let user = user.ok_or_else(|| lacks("user of that context"))?;
        let pem = |of: &Value, field: &str| -> Result<String, Error> {
            let text = of[field].as_str().ok_or_else(|| lacks(field))?;
            let bytes = STANDARD.decode(text).context(|| field.to_owned())?;
            String::from_utf8(bytes).context(|| field.to_owned())
        };
        let identity = match user["token"].as_str() {
            Some(token) => Identity::Token(token.into()),
            None => Identity::Certificate(
                pem(&user, "client-certificate-data")?,
                pem(&user, "client-key-data")?,
            ),
        };
        let url = cluster["server"].as_str().ok_or_else(|| lacks("server"))?;
        Self::of(url, pem(&cluster, "certificate-authority-data")?, identity)
    }

    /// In JSON.
    pub(super) fn kubeconfig(&self) -> String {
        let user = match &self.identity {
            Identity::Certificate(certificate, key) => json!({
                "client-certificate-data": STANDARD.encode(certificate),
                "client-key-data": STANDARD.encode(key),
            }),
            Identity::Token(token) => json!({ "token": token }),
        };
        let cluster = json!({
            "server": self.url,
            "certificate-authority-data": STANDARD.encode(&self.ca),
        });
        let file = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "kit", "cluster": cluster }],
            "users": [{ "name": "administrator", "user": user }],
            "contexts": [{ "name": "kit", "context": { "cluster": "kit", "user": "administrator" } }],
            "current-context": "kit",
        });
        format!("{file:#}\n")
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn ca(&self) -> &str {
        &self.ca
    }

    /// Status and body of the answer.
    pub(super) async fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> io::Result<(u16, String)> {
        match &self.identity {
            Identity::Certificate(..) => self.send(&self.http, None, method, path, body).await,
            Identity::Token(token) => self.request_as(token, method, path, body).await,
        }
    }

    pub(super) async fn request_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> io::Result<(u16, String)> {
        self.send(&self.anonymous, Some(token), method, path, body)
            .await
    }

    async fn send(
        &self,
        http: &reqwest::Client,
        token: Option<&str>,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> io::Result<(u16, String)> {
        let method = method.parse().map_err(io::Error::other)?;
        let mut request = http.request(method, format!("{}{path}", self.url));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        https::answer(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates;

    #[test]
    fn what_is_written_is_read() {
        let (ca, ca_pem) = certificates::authority("a").expect("an authority");
        let (certificate, key) = certificates::asking("me", None, &ca).expect("signed");
        let url = "https://127.0.0.1:1";
        let access = Access::new(url, &ca_pem, &certificate, &key).expect("access");
        let read = Access::read(&access.kubeconfig()).expect("read");
        assert_eq!((read.url(), read.ca()), (url, ca_pem.as_str()));
        assert!(
            matches!(read.identity, Identity::Certificate(a, b) if a == certificate && b == key)
        );
        let file = access.kubeconfig();
        let mut file: Value = serde_json::from_str(&file).expect("JSON");
        file["users"][0]["user"] = json!({ "token": "t" });
        let read = Access::read(&file.to_string()).expect("read");
        assert!(matches!(read.identity, Identity::Token(token) if token == "t"));
        let other = Access::read("apiVersion: v1").expect_err("no JSON");
        assert!(other.to_string().contains("--output json"), "{other}");
    }
}

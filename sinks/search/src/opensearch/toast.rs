//! Documents that hold what an UPDATE left unchanged.

use std::borrow::Cow;
use std::sync::Arc;

use lockstep_core::{Error, ErrorKind, Result};
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::client::{Body, Client};
use super::epoch::Version;
use super::index::Target;
use super::reply::{Cause, meaning};

/// A write that needs the document under `from` to become whole under `to`.
pub(super) struct Wanted {
    pub(super) target: Arc<Target>,
    pub(super) from: String,
    pub(super) to: String,
    /// From here on, what is under `from` is not the row any more.
    pub(super) before: Version,
}

/// What was found.
pub(super) enum Held {
    /// A document with the values.
    Found(Box<RawValue>),
    /// None, and nothing under the key that is to be written either.
    Absent,
    /// None, and a document under the key that is to be written which does not have the values.
    Taken,
}

#[derive(Deserialize)]
struct Reply<'a> {
    #[serde(borrow)]
    docs: Vec<Document<'a>>,
}

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(rename = "_id", borrow)]
    id: Cow<'a, str>,
    #[serde(default)]
    found: bool,
    #[serde(rename = "_version")]
    version: Option<u64>,
    #[serde(rename = "_source", borrow)]
    source: Option<&'a RawValue>,
    error: Option<Cause>,
}

/// Reads the documents, as they are after the last acknowledged write, in the order of `wanted`; and the bytes read.
///
/// # Errors
/// When the server refuses, or does not keep the source of documents.
pub(super) async fn fetch(client: &Client, wanted: &[Wanted]) -> Result<(Vec<Held>, usize)> {
    let mut ids = Vec::new();
    for want in wanted {
        ids.push((&want.target.index, &want.from));
        if want.from != want.to {
            ids.push((&want.target.index, &want.to));
        }
    }
    let docs: Vec<_> = ids
        .iter()
        .map(|(index, id)| json!({"_index": &***index, "_id": id}))
        .collect();
    let reply = client
        .call(
            Method::POST,
            &["_mget"],
            &[],
            Body::json(&json!({"docs": docs})),
        )
        .await?
        .success("reading documents")?;
    let docs = reply.json::<Reply<'_>>("reading documents")?.docs;
    if docs.len() != ids.len() || !docs.iter().zip(&ids).all(|(doc, (_, id))| doc.id == **id) {
        return Err(Error::new(
            ErrorKind::Protocol,
            format!(
                "{} documents were asked for, and others answered",
                ids.len()
            ),
        ));
    }
    for (doc, (index, id)) in docs.iter().zip(&ids) {
        check(doc, index, id)?;
    }
    let mut docs = docs.into_iter();
    let mut held = Vec::with_capacity(wanted.len());
    for want in wanted {
        let from = docs.next().filter(|doc| doc.found);
        let to = match want.from == want.to {
            true => None,
            false => docs.next().filter(|doc| doc.found),
        };
        held.push(choose(want, from, to));
    }
    Ok((held, reply.body.len()))
}

fn check(doc: &Document<'_>, index: &str, id: &str) -> Result<()> {
    let place = |error: Error| {
        error
            .at(format!("document {id}"))
            .at(format!("index {index}"))
    };
    if let Some(cause) = &doc.error {
        let (kind, remedy) = meaning(503, cause);
        return Err(place(
            Error::new(kind, "a document cannot be read")
                .source(cause.text())
                .remedy(remedy),
        ));
    }
    if doc.found && doc.source.is_none() {
        return Err(place(
            Error::new(ErrorKind::Setup, "the index does not keep the source of its documents")
                .remedy("create it without `_source: {enabled: false}`, or set REPLICA IDENTITY FULL on the table"),
        ));
    }
    Ok(())
}

/// A row keeps its values under its own key, whatever the version: where the index is ahead, the write will be refused
/// as stale. After a key change they are under the old key, unless this change has been written before: the new document
/// is always acknowledged before the old one is touched ([`super::order`]), so it has them then.
fn choose(want: &Wanted, from: Option<Document<'_>>, to: Option<Document<'_>>) -> Held {
    let before = want.before.0;
    let version = |doc: &Option<Document<'_>>| doc.as_ref().and_then(|doc| doc.version);
    let chosen = if want.from == want.to || version(&from).is_some_and(|held| held < before) {
        from
    } else if version(&to).is_some_and(|held| held >= before) {
        to
    } else if version(&from) == Some(before) {
        from
    } else if to.is_some() {
        return Held::Taken;
    } else {
        None
    };
    match chosen.and_then(|doc| doc.source) {
        Some(source) => Held::Found(source.to_owned()),
        None => Held::Absent,
    }
}

/// Whether the server remembers that a document, which is not there, was deleted at this version or later: the write that
/// misses it is a replay, and its deletion is to come once more. The server is asked by deleting what is not there, at a
/// version that must be above the one it remembers.
///
/// # Errors
/// When the server refuses.
pub(super) async fn is_deleted(
    client: &Client,
    target: &Target,
    id: &str,
    version: Version,
) -> Result<bool> {
    let version = version.to_string();
    let query = [("version", version.as_str()), ("version_type", "external")];
    let reply = client
        .call(
            Method::DELETE,
            &[&target.index, "_doc", id],
            &query,
            Body::None,
        )
        .await?;
    match reply.status {
        409 => Ok(true),
        404 if reply.cause().kind != "index_not_found_exception" => Ok(false),
        _ => reply.success("asking for a deletion").map(|_| false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Documents;
    use lockstep_core::schema::TableSchema;

    fn want(from: &str, to: &str) -> Wanted {
        let schema = Arc::new(TableSchema::message("orders".into()));
        Wanted {
            target: Arc::new(Target {
                index: "x".into(),
                documents: Documents::new(&schema),
                index_action: String::new(),
                delete_action: String::new(),
            }),
            from: from.into(),
            to: to.into(),
            before: Version(10),
        }
    }

    fn doc(version: u64, source: &str) -> Option<Document<'_>> {
        Some(Document {
            id: "".into(),
            found: true,
            version: Some(version),
            source: Some(serde_json::from_str(source).expect("JSON")),
            error: None,
        })
    }

    fn found(held: Held) -> Option<String> {
        match held {
            Held::Found(source) => Some(source.get().to_owned()),
            Held::Absent | Held::Taken => None,
        }
    }

    #[test]
    fn values_come_from_where_they_are() {
        let moved = want("a", "b");
        let choose_moved = |from, to| found(choose(&moved, from, to));
        assert_eq!(choose_moved(doc(9, "1"), None).as_deref(), Some("1"));
        assert_eq!(choose_moved(doc(9, "1"), doc(3, "2")).as_deref(), Some("1"));
        assert_eq!(
            choose_moved(None, doc(10, "2")).as_deref(),
            Some("2"),
            "a replay"
        );
        assert_eq!(
            choose_moved(doc(10, "1"), doc(10, "2")).as_deref(),
            Some("2"),
            "a replay after another row took the old key"
        );
        assert_eq!(
            choose_moved(doc(10, "1"), None).as_deref(),
            Some("1"),
            "written earlier in the same transaction"
        );
        assert_eq!(choose_moved(doc(11, "1"), None), None);
        assert!(matches!(choose(&moved, None, doc(3, "2")), Held::Taken));
        let same = want("a", "a");
        assert_eq!(
            found(choose(&same, doc(12, "1"), None)).as_deref(),
            Some("1")
        );
        assert!(matches!(choose(&same, None, None), Held::Absent));
    }
}

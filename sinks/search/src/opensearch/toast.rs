//! Documents that hold what an UPDATE left unchanged.

use std::borrow::Cow;
use std::sync::Arc;

use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::fold::held::{Looked, Place, Seen, locate};
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::client::{Body, Client};
use super::epoch::Version;
use super::index::Target;
use super::reply::{Cause, meaning};
use super::truncate::truncated_at;

/// A write that needs the document under `from` to become whole under `to`.
pub(super) struct Wanted {
    pub(super) target: Arc<Target>,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) version: Version,
    /// From here on, what is under `from` is not the row any more.
    pub(super) before: Version,
}

/// What was found.
pub(super) enum Held {
    /// A document with the values.
    Found(Box<RawValue>),
    /// None: a later change, written before, has removed the row. The write is a replay.
    Later,
    /// None, or one of which it cannot be told whose it is.
    Nowhere,
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
pub(super) async fn fetch(
    client: &Client,
    progress_index: &str,
    wanted: &[Wanted],
) -> Result<(Vec<Held>, usize)> {
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
        held.push(match want.locate(from.as_ref(), to.as_ref(), None, None) {
            Place::From => found(from),
            Place::To => found(to),
            Place::Later => Held::Later,
            Place::Nowhere if to.is_some() || (from.is_some() && want.from == want.to) => {
                Held::Nowhere
            }
            Place::Nowhere => want.recall(client, progress_index, from.as_ref()).await?,
        });
    }
    Ok((held, reply.body.len()))
}

fn found(document: Option<Document<'_>>) -> Held {
    match document.and_then(|document| document.source) {
        Some(source) => Held::Found(source.to_owned()),
        None => Held::Nowhere,
    }
}

impl Wanted {
    /// `deleted` is the version at which the row's own key was deleted, where it is not there.
    fn locate(
        &self,
        from: Option<&Document<'_>>,
        to: Option<&Document<'_>>,
        deleted: Option<Version>,
        truncated: Option<Version>,
    ) -> Place {
        let moved = self.from != self.to;
        let seen = |document: Option<&Document<'_>>, deleted| match document {
            Some(document) => Seen {
                is_there: true,
                version: document.version.map(Version),
            },
            None => Seen {
                is_there: false,
                version: deleted,
            },
        };
        let looked = Looked {
            version: self.version,
            before: self.before,
            moved,
            truncated,
        };
        let from = seen(from, deleted.filter(|_| !moved));
        locate(&looked, &from, &seen(to, deleted))
    }

    /// Asks what the server and we remember of the row's own key, which is not there.
    async fn recall(
        &self,
        client: &Client,
        progress_index: &str,
        from: Option<&Document<'_>>,
    ) -> Result<Held> {
        let deleted = deleted_at(client, &self.target, &self.to).await?;
        let truncated = truncated_at(client, progress_index, &self.target).await?;
        Ok(match self.locate(from, None, deleted, truncated) {
            Place::Later => Held::Later,
            // The documents themselves were looked at before.
            Place::From | Place::To | Place::Nowhere => Held::Nowhere,
        })
    }
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

/// A version below all that are written.
const LOWEST: Version = Version(1);
/// How the server says which version it remembers, in a conflict of external versions.
const CURRENT: &str = "current version [";

/// The version at which a document, which is not there, was deleted, as far as the server remembers. The server is asked
/// by deleting what is not there at a version below all that are written: it refuses, and says what it remembers; or it
/// remembers that version, which is of no consequence.
///
/// # Errors
/// When the server refuses, or says it in other words.
async fn deleted_at(client: &Client, target: &Target, id: &str) -> Result<Option<Version>> {
    let version = LOWEST.to_string();
    let query = [("version", version.as_str()), ("version_type", "external")];
    let reply = client
        .call(
            Method::DELETE,
            &[&target.index, "_doc", id],
            &query,
            Body::None,
        )
        .await?;
    let cause = reply.cause();
    match reply.status {
        409 => {
            let remembered = current_version(cause.reason());
            remembered.map(Some).ok_or_else(|| {
                Error::new(
                    ErrorKind::Protocol,
                    "the server does not say at which version a document was deleted",
                )
                .source(cause.text())
                .remedy("report this, with the version of the server")
            })
        }
        404 if cause.kind != "index_not_found_exception" => Ok(None),
        _ => reply.success("asking for a deletion").map(|_| None),
    }
}

fn current_version(reason: &str) -> Option<Version> {
    let (_, rest) = reason.split_once(CURRENT)?;
    let (digits, _) = rest.split_once(']')?;
    digits.parse().ok().map(Version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_conflict() {
        let reason = "[7]: version conflict, current version [1280] is higher or equal to the one provided [1]";
        assert_eq!(current_version(reason), Some(Version(1280)));
        assert_eq!(
            current_version("version conflict, document already exists"),
            None
        );
    }
}

//! TRUNCATE.
//!
//! Not `_delete_by_query`: that deletes by the internal version, so that a replayed TRUNCATE would take documents written
//! after it, and leave deletion marks one above their versions, at which the replayed rows would be refused. Here every
//! document that a search finds is deleted at the version of the TRUNCATE: newer ones are kept by the server itself.
//!
//! The version is remembered in the progress index: of rows that came and went within one batch the server knows nothing.

use std::borrow::Cow;
use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::durable::Delivered;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::bulk::{Bulk, KeyHash};
use super::client::{Body, Client};
use super::config::Refresh;
use super::epoch::Version;
use super::index::Target;
use super::send::send;

/// Documents read and deleted at a time.
const PAGE: usize = 2_000;
/// How long the server keeps the search open between two pages.
const KEEP: &str = "5m";

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(rename = "_scroll_id", borrow)]
    scroll: Cow<'a, str>,
    #[serde(borrow)]
    hits: Hits<'a>,
}

#[derive(Deserialize)]
struct Hits<'a> {
    #[serde(borrow)]
    hits: Vec<Hit<'a>>,
}

#[derive(Deserialize)]
struct Hit<'a> {
    #[serde(rename = "_id", borrow)]
    id: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Found {
    #[serde(rename = "_version")]
    version: u64,
}

/// Remembers that a table is being truncated.
///
/// # Errors
/// When the server refuses.
pub(super) async fn remember(
    client: &Client,
    progress_index: &str,
    target: &Target,
    version: Version,
) -> Result<()> {
    let id = id(target);
    let shown = version.to_string();
    let query = [
        ("version", shown.as_str()),
        ("version_type", "external_gte"),
    ];
    let body = Body::json(&json!({"truncated": &*target.index}));
    let reply = client
        .call(Method::PUT, &[progress_index, "_doc", &id], &query, body)
        .await?;
    // 409: a later one is remembered.
    if reply.status == 409 {
        return Ok(());
    }
    reply.success("storing the version of a TRUNCATE").map(drop)
}

/// When a table was truncated last, if it was.
///
/// # Errors
/// When the server refuses.
pub(super) async fn truncated_at(
    client: &Client,
    progress_index: &str,
    target: &Target,
) -> Result<Option<Version>> {
    let id = id(target);
    let reply = client
        .call(Method::GET, &[progress_index, "_doc", &id], &[], Body::None)
        .await?;
    if reply.status == 404 {
        return Ok(None);
    }
    let reply = reply.success("reading the version of a TRUNCATE")?;
    let found: Found = reply.json("reading the version of a TRUNCATE")?;
    Ok(Some(Version(found.version)))
}

fn id(target: &Target) -> String {
    format!("truncated/{}", target.index)
}

/// Deletes the documents that are not newer than `version`. Everything before must have been acknowledged, and nothing may
/// be under way.
///
/// # Errors
/// When the server refuses.
pub(super) async fn truncate(
    client: &Arc<Client>,
    target: &Target,
    version: Version,
) -> Result<Delivered> {
    let index = &*target.index;
    client
        .call(Method::POST, &[index, "_refresh"], &[], Body::None)
        .await?
        .success("making all documents visible")?
        .whole("making all documents visible")?;
    let search = json!({"size": PAGE, "_source": false, "sort": ["_doc"]});
    let mut reply = client
        .call(
            Method::POST,
            &[index, "_search"],
            &[("scroll", KEEP)],
            Body::json(&search),
        )
        .await?
        .success("listing all documents")?
        .whole("listing all documents")?;
    let mut delivered = Delivered::default();
    loop {
        let page: Page<'_> = reply.json("listing all documents")?;
        let scroll = page.scroll.into_owned();
        if page.hits.hits.is_empty() {
            forget(client, &scroll).await;
            return Ok(delivered);
        }
        let mut bulk = Bulk::default();
        for hit in page.hits.hits {
            let key = KeyHash::of(index, &hit.id);
            bulk.add(target, key, &hit.id, version, (0, None), None)?;
        }
        for answer in send(client, Refresh::None, bulk.finish()).await? {
            delivered += answer.delivered;
        }
        reply = client
            .call(
                Method::POST,
                &["_search", "scroll"],
                &[],
                Body::json(&json!({"scroll": KEEP, "scroll_id": scroll})),
            )
            .await?
            .success("listing all documents")?
            .whole("listing all documents")?;
    }
}

/// The server forgets the search by itself in time; a failure to say so earlier is nobody's loss.
async fn forget(client: &Client, scroll: &str) {
    let body = Body::json(&json!({"scroll_id": scroll}));
    let forgotten = client
        .call(Method::DELETE, &["_search", "scroll"], &[], body)
        .await
        .and_then(|reply| reply.success("closing a search"));
    if let Err(error) = forgotten {
        tracing::debug!(%error, "a search stays open until it expires");
    }
}

//! TRUNCATE.
//!
//! Not `_delete_by_query`: that deletes by the internal version, so that a replayed TRUNCATE would take documents written
//! after it, and leave deletion marks one above their versions, at which the replayed rows would be refused. Here every
//! document that a search finds is deleted at the version of the TRUNCATE: newer ones are kept by the server itself.
//!
//! The version is remembered in the progress index: of rows that came and went within one batch the server knows nothing.

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
use super::scroll::Scroll;
use super::send::send;

/// Documents read and deleted at a time.
const PAGE: usize = 2_000;
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
    let mut scroll = Scroll::new(client, &target.index, PAGE);
    let mut delivered = Delivered::default();
    while let Some(ids) = scroll.next().await? {
        let mut bulk = Bulk::default();
        for id in &ids {
            let key = KeyHash::of(&target.index, id);
            bulk.add(target, key, id, version, (0, None), None)?;
        }
        for answer in send(client, Refresh::None, bulk.finish()).await? {
            delivered += answer.delivered;
        }
    }
    Ok(delivered)
}

//! A walk over the ids of all documents of an index, as it was when the walk began.

use std::borrow::Cow;
use std::sync::Arc;

use lockstep_core::Result;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::client::{Body, Client};

/// How long the server keeps the search open between two pages.
const KEEP: &str = "5m";
const DOING: &str = "listing all documents";

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

/// See the module's page. Begins with the first page that is asked for.
pub(super) struct Scroll {
    client: Arc<Client>,
    index: Arc<str>,
    page: usize,
    at: At,
}

enum At {
    Begin,
    Open(String),
    End,
}

impl Scroll {
    /// A walk in pages of so many ids.
    pub(super) fn new(client: &Arc<Client>, index: &Arc<str>, page: usize) -> Self {
        Scroll {
            client: Arc::clone(client),
            index: Arc::clone(index),
            page,
            at: At::Begin,
        }
    }

    /// The next ids; `None` at the end, and of an index that is not there.
    ///
    /// # Errors
    /// When the server refuses, or some shard has not answered.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<String>>> {
        let reply = match &self.at {
            At::End => return Ok(None),
            At::Begin => {
                let path = [&*self.index, "_refresh"];
                let refreshed = self.client.call(Method::POST, &path, &[], Body::None);
                let refreshed = refreshed.await?;
                if refreshed.status == 404 {
                    self.at = At::End;
                    return Ok(None);
                }
                let doing = "making all documents visible";
                refreshed.success(doing)?.whole(doing)?;
                let search = json!({"size": self.page, "_source": false, "sort": ["_doc"]});
                let (path, query) = ([&*self.index, "_search"], [("scroll", KEEP)]);
                let search = Body::json(&search);
                self.client
                    .call(Method::POST, &path, &query, search)
                    .await?
            }
            At::Open(scroll) => {
                let body = Body::json(&json!({"scroll": KEEP, "scroll_id": scroll}));
                let path = ["_search", "scroll"];
                self.client.call(Method::POST, &path, &[], body).await?
            }
        };
        let reply = reply.success(DOING)?.whole(DOING)?;
        let page: Page<'_> = reply.json(DOING)?;
        let ids: Vec<String> = page
            .hits
            .hits
            .into_iter()
            .map(|hit| hit.id.into_owned())
            .collect();
        let scroll = page.scroll.into_owned();
        if ids.is_empty() {
            forget(&self.client, &scroll).await;
            self.at = At::End;
            return Ok(None);
        }
        self.at = At::Open(scroll);
        Ok(Some(ids))
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

//! The position, kept as a document of its own.
//!
//! It is written after what it covers was acknowledged, and a little behind: it only saves the writing of what is there
//! already. Its version is the commit LSN, so that a writer left over from earlier cannot move it back.

use std::sync::Arc;

use lockstep_core::position::SourceInfo;
use lockstep_core::progress::Progress as Held;
use lockstep_core::refusal::reason;
use lockstep_core::sink::SinkContext;
use lockstep_core::token::Token;
use lockstep_core::{Error, ErrorKind, Result};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::bulk::ID_LIMIT;
use super::client::{Body, Client};
use super::config::Config;
use super::flights::Mark;

/// Where positions are kept.
#[derive(Clone)]
pub(super) struct Store {
    client: Arc<Client>,
    index: Arc<str>,
    /// `pipeline/sink`.
    owner: Arc<str>,
    /// Names of the indexes: positions say nothing about other indexes.
    template: Arc<str>,
    /// Where a lease decides who writes.
    token: Option<Token>,
}

/// What is stored of a source.
#[derive(Serialize)]
struct Document<'a> {
    owner: &'a str,
    source: &'a str,
    identity: String,
    index: &'a str,
    #[serde(flatten)]
    held: &'a Held,
}

#[derive(Deserialize)]
struct Found {
    #[serde(rename = "_source")]
    source: Held,
}

impl Store {
    pub(super) fn new(client: Arc<Client>, config: &Config, context: &SinkContext) -> Self {
        let (pipeline, name) = (&context.pipeline, &context.name);
        Store {
            client,
            token: context.token,
            index: config.progress_index.as_str().into(),
            owner: format!("{pipeline}/{name}").into(),
            template: config.index.as_str().into(),
        }
    }

    /// Creates the index when it is missing.
    ///
    /// # Errors
    /// When the server refuses.
    pub(super) async fn ensure(&self) -> Result<()> {
        let body = json!({
            "settings": {"index.number_of_shards": 1, "index.auto_expand_replicas": "0-1"},
            "mappings": {"dynamic": false},
        });
        let reply = self
            .client
            .call(Method::HEAD, &[&self.index], &[], Body::None)
            .await?;
        if reply.status != 404 {
            return reply.success("looking for the progress index").map(drop);
        }
        let reply = self
            .client
            .call(Method::PUT, &[&self.index], &[], Body::json(&body))
            .await?;
        if reply.status == 400 && reply.cause().kind == "resource_already_exists_exception" {
            return Ok(());
        }
        reply.success("creating the progress index").map(drop)
    }

    /// Raises the greatest token seen to this one's: the version of a document, which the server lets nobody lower. Does nothing
    /// where no lease decides.
    ///
    /// # Errors
    /// `Busy` when a greater one is there.
    pub(super) async fn fence(&self) -> Result<()> {
        let Some(token) = self.token else {
            return Ok(());
        };
        let id = format!("{}/lease", self.owner);
        let version = token.0.to_string();
        let reply = self
            .client
            .call(
                Method::PUT,
                &[&self.index, "_doc", &id],
                &[("version", &version), ("version_type", "external_gte")],
                Body::json(&json!({"owner": &*self.owner, "token": version})),
            )
            .await?;
        if reply.status == 409 {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("a newer lease than {token} has written to {}", self.index),
            )
            .because(reason::FENCED)
            .remedy(
                "another process runs the pipeline: this one starts anew when it is its turn",
            ));
        }
        reply.success("storing the token of the lease").map(drop)
    }

    /// The stored position of a source.
    ///
    /// # Errors
    /// When the server refuses, or the document is not one of ours.
    pub(super) async fn load(&self, source: &SourceInfo) -> Result<Option<Held>> {
        let id = self.id(source)?;
        let reply = self
            .client
            .call(Method::GET, &[&self.index, "_doc", &id], &[], Body::None)
            .await?;
        if reply.status == 404 {
            return Ok(None);
        }
        let reply = reply.success("reading the position")?;
        Ok(Some(reply.json::<Found>("reading the position")?.source))
    }

    /// Stores what is durable of a source.
    ///
    /// # Errors
    /// `Busy` when a higher position is there, or a greater token: another process writes as the same pipeline.
    pub(super) async fn save(&self, source: &SourceInfo, held: &Held) -> Result<()> {
        self.fence().await?;
        let id = self.id(source)?;
        let document = Document {
            owner: &self.owner,
            source: &source.name,
            identity: source.identity.to_string(),
            index: &self.template,
            held,
        };
        let version = held.last().commit.0.to_string();
        let reply = self
            .client
            .call(
                Method::PUT,
                &[&self.index, "_doc", &id],
                &[("version", &version), ("version_type", "external_gte")],
                Body::json(&json!(document)),
            )
            .await?;
        if reply.status == 409 {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "the position of {} in {} is beyond {held}: another process writes here",
                    source.name, self.index
                ),
            )
            .because(reason::FENCED)
            .remedy("let one process run this pipeline; give a second one another `name`"));
        }
        reply.success("storing the position").map(drop)
    }

    fn id(&self, source: &SourceInfo) -> Result<String> {
        let id = format!(
            "{}/{}/{}/{}",
            self.owner, source.name, source.identity, self.template
        );
        if id.len() > ID_LIMIT {
            return Err(Error::new(
                ErrorKind::Config,
                format!("the names of pipeline, sink and source and `index` are longer than {ID_LIMIT} bytes together"),
            )
            .remedy("shorten one of them"));
        }
        Ok(id)
    }
}

/// The positions that this process has reached.
pub(super) struct Progress {
    store: Store,
    reached: Vec<Reached>,
}

struct Reached {
    source: Arc<SourceInfo>,
    held: Held,
    stored: Held,
}

impl Progress {
    pub(super) fn new(store: Store) -> Self {
        Progress {
            store,
            reached: Vec::new(),
        }
    }

    /// Everything of the source up to the mark is durable.
    pub(super) fn advance(&mut self, mark: Mark) {
        let known = self.reached.iter_mut().find(|reached| {
            reached.source.identity == mark.source.identity
                && reached.source.name == mark.source.name
        });
        match known {
            Some(reached) if reached.held.covers(&mark.held) => {}
            Some(reached) => reached.held = mark.held,
            None => self.reached.push(Reached {
                source: mark.source,
                held: mark.held,
                stored: Held::default(),
            }),
        }
    }

    /// What is durable of each source.
    pub(super) fn reached(&self) -> impl Iterator<Item = (&Arc<SourceInfo>, &Held)> {
        let reached = self.reached.iter();
        reached.map(|reached| (&reached.source, &reached.held))
    }

    pub(super) fn is_stored(&self) -> bool {
        self.reached
            .iter()
            .all(|reached| reached.held == reached.stored)
    }

    /// Stores what is not stored.
    ///
    /// # Errors
    /// See [`Store::save`].
    pub(super) async fn save(&mut self) -> Result<()> {
        for reached in &mut self.reached {
            if reached.held != reached.stored {
                self.store.save(&reached.source, &reached.held).await?;
                reached.stored = reached.held.clone();
            }
        }
        Ok(())
    }
}

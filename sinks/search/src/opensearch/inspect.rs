//! Reading the indexes back.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use lockstep_core::batch::{Batch, Change, Op};
use lockstep_core::position::SourceInfo;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Held, HeldVersion, Inspect, Keys, Listing};
use lockstep_core::template::Template;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::key::key_text;
use lockstep_encode::plans::Plans;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::client::{Body, Client};
use super::config::Config;
use super::epoch::{Epochs, Version};
use super::index::index_name;
use super::scroll::Scroll;
use super::visible::{QUOTED_FIELD, unstamped};
use crate::compared::{compared_row, page, unless_refused, verdict};
use crate::document::Documents;

/// Documents read at a time.
const PAGE: usize = 500;

/// Compares rows with documents.
pub(super) struct Inspector {
    client: Arc<Client>,
    template: Template,
    /// Indexes of several tables of the database: their documents do not say which of them they are of.
    shared: HashSet<Arc<str>>,
    plans: Plans<(Arc<str>, Documents)>,
    epochs: Epochs,
}

struct Expected {
    index: Arc<str>,
    id: String,
    /// None: it must not be there.
    document: Option<String>,
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
    #[serde(rename = "_source", borrow)]
    source: Option<&'a RawValue>,
    #[serde(rename = "_version")]
    version: Option<u64>,
    error: Option<super::reply::Cause>,
}

impl Inspector {
    pub(super) fn open(config: &Config, tables: &[Arc<TableSchema>]) -> Result<Self> {
        config.validate()?;
        let template = config.index_template()?;
        let mut owners: HashMap<Arc<str>, &TableSchema> = HashMap::new();
        let mut shared = HashSet::new();
        for table in tables {
            let index = index_name(&template, table)?;
            let owner = *owners.entry(Arc::clone(&index)).or_insert(table);
            if owner.origin != table.origin {
                shared.insert(index);
            }
        }
        let client = Arc::new(Client::new(config)?);
        Ok(Inspector {
            epochs: Epochs::new(Arc::clone(&client), config),
            client,
            template,
            shared,
            plans: Plans::new(),
        })
    }

    fn expected(&mut self, batch: &Batch, change: &Change) -> Result<Expected> {
        let schema = batch.schema(change);
        let row = compared_row(batch, change)?;
        let template = &self.template;
        let (index, documents) = self.plans.get_or_try(schema, |schema| {
            Ok::<_, Error>((index_name(template, schema)?, Documents::new(schema)))
        })?;
        let mut id = String::new();
        key_text(schema, row, &mut id)?;
        let document = match change.op {
            Op::Delete => None,
            _ => {
                let mut text = Vec::new();
                documents.write(row, &mut text)?;
                Some(String::from_utf8_lossy(&text).into_owned())
            }
        };
        Ok(Expected {
            index: Arc::clone(index),
            id,
            document,
        })
    }

    /// What is there of a page of rows. Their versions are told by the numbers that they are.
    async fn look(&self, page: &[Expected], held: &mut Vec<(Held, Option<Version>)>) -> Result<()> {
        let docs: Vec<_> = page
            .iter()
            .map(|row| json!({"_index": &*row.index, "_id": row.id}))
            .collect();
        let reply = self
            .client
            .call(
                Method::POST,
                &["_mget"],
                &[],
                Body::json(&json!({"docs": docs})),
            )
            .await?
            .success("reading documents")?;
        let docs = reply.json::<Reply<'_>>("reading documents")?.docs;
        if docs.len() != page.len() {
            return Err(Error::new(
                ErrorKind::Protocol,
                format!(
                    "{} documents were asked for, and {} answered",
                    page.len(),
                    docs.len()
                ),
            ));
        }
        for (row, doc) in page.iter().zip(docs) {
            held.push((compare(row, &doc)?, doc.version.map(Version)));
        }
        Ok(())
    }

    /// Tells of documents that differ of which log and place they are.
    async fn tell_versions(
        &self,
        source: &SourceInfo,
        held: &mut [(Held, Option<Version>)],
    ) -> Result<()> {
        if !held
            .iter()
            .any(|(held, _)| matches!(held, Held::Different { .. }))
        {
            return Ok(());
        }
        let Some(epoch) = self.epochs.find(source).await? else {
            return Ok(());
        };
        for (held, number) in held {
            if let (Held::Different { version, .. }, Some(number)) = (held, number) {
                *version = number.held(epoch);
            }
        }
        Ok(())
    }
}

fn compare(row: &Expected, doc: &Document<'_>) -> Result<Held> {
    let key = format!("{}/{}", row.index, row.id);
    if doc.id != row.id {
        return Err(Error::new(
            ErrorKind::Protocol,
            format!("document {key} was asked for, and {} answered", doc.id),
        ));
    }
    if let Some(cause) = &doc.error
        && cause.kind != "index_not_found_exception"
    {
        let (kind, remedy) = super::reply::meaning(503, cause);
        return Err(Error::new(kind, format!("document {key} cannot be read"))
            .source(cause.text())
            .remedy(remedy));
    }
    let actual = doc.source.map(|source| match &row.document {
        // A row with a column of that name is not stamped.
        Some(expected) if !expected.contains(QUOTED_FIELD) => unstamped(source.get()).into_owned(),
        _ => source.get().to_owned(),
    });
    let version = HeldVersion::Unknown;
    Ok(verdict(key, row.document.clone(), actual, version))
}

/// Ids of a page of a listing.
const LISTED: usize = 1_000;

/// The keys of the documents of an index.
struct Ids {
    scroll: Scroll,
    columns: usize,
}

#[async_trait]
impl Listing for Ids {
    async fn next(&mut self) -> Result<Option<Keys>> {
        let ids = self.scroll.next().await?;
        Ok(ids.map(|ids| page(ids, self.columns)))
    }
}

#[async_trait]
impl Inspect for Inspector {
    async fn compare(&mut self, batch: &Batch) -> Result<Vec<Held>> {
        let mut expected = Vec::with_capacity(batch.changes().len());
        let mut refused = Vec::with_capacity(batch.changes().len());
        for change in batch.changes() {
            match self.expected(batch, change) {
                Ok(one) => {
                    expected.push(one);
                    refused.push(None);
                }
                Err(error) => refused.push(Some(unless_refused(Err(error))?)),
            }
        }
        let mut held = Vec::with_capacity(expected.len());
        for page in expected.chunks(PAGE) {
            self.look(page, &mut held).await?;
        }
        self.tell_versions(&batch.source, &mut held).await?;
        let mut held = held.into_iter().map(|(held, _)| held);
        let all = refused
            .into_iter()
            .map(|refused| refused.or_else(|| held.next()));
        Ok(all.flatten().collect())
    }

    async fn count(&mut self, table: &TableSchema) -> Result<u64> {
        #[derive(Deserialize)]
        struct Count {
            count: u64,
        }
        let index = index_name(&self.template, table)?;
        let refreshed = self
            .client
            .call(Method::POST, &[&index, "_refresh"], &[], Body::None)
            .await?;
        if refreshed.status == 404 {
            return Ok(0);
        }
        refreshed
            .success("making all documents visible")?
            .whole("making all documents visible")?;
        let reply = self
            .client
            .call(Method::GET, &[&index, "_count"], &[], Body::None)
            .await?
            .success("counting documents")?
            .whole("counting documents")?;
        Ok(reply.json::<Count>("counting documents")?.count)
    }

    async fn list(&mut self, table: &Arc<TableSchema>) -> Result<Option<Box<dyn Listing>>> {
        let index = index_name(&self.template, table)?;
        if self.shared.contains(&index) {
            return Ok(None);
        }
        Ok(Some(Box::new(Ids {
            scroll: Scroll::new(&self.client, &index, LISTED),
            columns: table.key.len(),
        })))
    }
}

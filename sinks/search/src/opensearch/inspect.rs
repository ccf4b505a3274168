//! Reading the indexes back.

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use lockstep_core::batch::Batch;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Held, Inspect};
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
use super::index::index_name;
use crate::document::{Documents, same};

/// Documents read at a time.
const PAGE: usize = 500;

/// Compares rows with documents.
pub(super) struct Inspector {
    client: Client,
    template: Template,
    plans: Plans<(Arc<str>, Documents)>,
}

struct Expected {
    index: Arc<str>,
    id: String,
    document: String,
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
    error: Option<super::reply::Cause>,
}

impl Inspector {
    pub(super) fn open(config: &Config) -> Result<Self> {
        config.validate()?;
        Ok(Inspector {
            client: Client::new(config)?,
            template: config.index_template()?,
            plans: Plans::new(),
        })
    }

    fn expected(&mut self, batch: &Batch) -> Result<Vec<Expected>> {
        let mut all = Vec::with_capacity(batch.changes().len());
        for change in batch.changes() {
            let schema = batch.schema(change);
            let row = batch.new_row(change).ok_or_else(|| {
                Error::new(
                    ErrorKind::Invalid,
                    "a change without a row cannot be compared",
                )
            })?;
            let template = &self.template;
            let (index, documents) = self.plans.get_or_try(schema, |schema| {
                Ok::<_, Error>((index_name(template, schema)?, Documents::new(schema)))
            })?;
            let mut id = String::new();
            key_text(schema, row, &mut id)?;
            let mut document = Vec::new();
            documents.write(row, &mut document)?;
            all.push(Expected {
                index: Arc::clone(index),
                id,
                document: String::from_utf8_lossy(&document).into_owned(),
            });
        }
        Ok(all)
    }

    async fn look(&self, page: &[Expected], held: &mut Vec<Held>) -> Result<()> {
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
            held.push(compare(row, &doc)?);
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
    Ok(match doc.source {
        None => Held::Missing { key },
        Some(actual) if same(&row.document, actual.get()) => Held::Same,
        Some(actual) => Held::Different {
            key,
            expected: row.document.clone(),
            actual: actual.get().to_owned(),
        },
    })
}

#[async_trait]
impl Inspect for Inspector {
    async fn compare(&mut self, batch: &Batch) -> Result<Vec<Held>> {
        let expected = self.expected(batch)?;
        let mut held = Vec::with_capacity(expected.len());
        for page in expected.chunks(PAGE) {
            self.look(page, &mut held).await?;
        }
        Ok(held)
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
}

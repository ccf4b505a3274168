//! Reading the index back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::tantivy::collector::Count;
use ::tantivy::query::TermQuery;
use ::tantivy::schema::IndexRecordOption;
use ::tantivy::{DocAddress, IndexReader, ReloadPolicy, Searcher};
use async_trait::async_trait;
use lockstep_core::Result;
use lockstep_core::batch::{Batch, Change, Op};
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Held, HeldVersion, Inspect, Keys, Listing};
use lockstep_encode::key::key_text;
use lockstep_encode::plans::Plans;

use super::layout::{Layout, Table};
use super::query::{exists, open};
use super::storage;
use crate::compared::{compared_row, page, unless_refused, verdict};

/// Keys that are listed at a time.
const PAGE: usize = 1_000;

/// Compares rows with documents, as of the last commit. An index that is not there holds nothing.
pub(super) struct Inspector {
    path: PathBuf,
    opened: Option<(IndexReader, Layout)>,
    tables: Plans<Arc<Table>>,
}

impl Inspector {
    pub(super) fn new(path: &Path) -> Self {
        Inspector {
            path: path.to_owned(),
            opened: None,
            tables: Plans::new(),
        }
    }

    fn searcher(&mut self) -> Result<Option<(Searcher, Layout)>> {
        let failed = |error| storage("read the index", error);
        if self.opened.is_none() && exists(&self.path) {
            let (index, layout) = open(&self.path)?;
            let reader = index
                .reader_builder()
                .reload_policy(ReloadPolicy::Manual)
                .try_into()
                .map_err(failed)?;
            self.opened = Some((reader, layout));
        }
        let Some((reader, layout)) = &self.opened else {
            return Ok(None);
        };
        reader.reload().map_err(failed)?;
        Ok(Some((reader.searcher(), layout.clone())))
    }

    fn table(&mut self, schema: &Arc<TableSchema>) -> Arc<Table> {
        Arc::clone(
            self.tables
                .get(schema, |schema| Arc::new(Table::new(schema))),
        )
    }
}

/// How the document of one row stands.
fn one(
    table: &Table,
    opened: Option<&(Searcher, Layout)>,
    batch: &Batch,
    change: &Change,
) -> Result<Held> {
    let row = compared_row(batch, change)?;
    let mut id = String::new();
    key_text(batch.schema(change), row, &mut id)?;
    let expected = match change.op {
        Op::Delete => None,
        _ => {
            let mut text = Vec::new();
            table.documents.write(row, &mut text)?;
            Some(String::from_utf8_lossy(&text).into_owned())
        }
    };
    let held = match opened {
        Some((searcher, layout)) => layout.find(searcher, layout.key(table, &id)?)?,
        None => None,
    };
    let key = format!("{}/{id}", table.name);
    // Of an earlier log, the number may be any; as a version it is older than all of this one's.
    let version = held.as_ref().map(|held| HeldVersion::At(held.version));
    let version = version.unwrap_or_default();
    Ok(verdict(
        key,
        expected,
        held.map(|held| held.source),
        version,
    ))
}

#[async_trait]
impl Inspect for Inspector {
    async fn compare(&mut self, batch: &Batch) -> Result<Vec<Held>> {
        let opened = self.searcher()?;
        let mut all = Vec::with_capacity(batch.changes().len());
        for change in batch.changes() {
            let table = self.table(batch.schema(change));
            all.push(unless_refused(one(&table, opened.as_ref(), batch, change))?);
        }
        Ok(all)
    }

    async fn count(&mut self, table: &TableSchema) -> Result<u64> {
        let Some((searcher, layout)) = self.searcher()? else {
            return Ok(0);
        };
        let table = Table::new(&Arc::new(table.clone()));
        let query = TermQuery::new(layout.table(&table), IndexRecordOption::Basic);
        let count = searcher
            .search(&query, &Count)
            .map_err(|error| storage("count documents", error))?;
        Ok(count as u64)
    }

    async fn list(&mut self, table: &Arc<TableSchema>) -> Result<Option<Box<dyn Listing>>> {
        let columns = table.key.len();
        let table = self.table(table);
        let Some((searcher, layout)) = self.searcher()? else {
            return Ok(Some(Box::new(Nothing)));
        };
        let addresses = layout.addresses(&searcher, &table)?.into_iter();
        Ok(Some(Box::new(Documents {
            searcher,
            layout,
            addresses,
            columns,
        })))
    }
}

/// The keys of a table's documents, as of one commit.
struct Documents {
    searcher: Searcher,
    layout: Layout,
    addresses: std::vec::IntoIter<DocAddress>,
    columns: usize,
}

#[async_trait]
impl Listing for Documents {
    async fn next(&mut self) -> Result<Option<Keys>> {
        let mut ids = Vec::with_capacity(PAGE);
        for at in self.addresses.by_ref().take(PAGE) {
            ids.extend(self.layout.id_at(&self.searcher, at)?);
        }
        Ok((!ids.is_empty()).then(|| page(ids, self.columns)))
    }
}

/// Of an index that is not there.
struct Nothing;

#[async_trait]
impl Listing for Nothing {
    async fn next(&mut self) -> Result<Option<Keys>> {
        Ok(None)
    }
}

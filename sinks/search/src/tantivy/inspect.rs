//! Reading the index back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::tantivy::collector::Count;
use ::tantivy::query::TermQuery;
use ::tantivy::schema::IndexRecordOption;
use ::tantivy::{IndexReader, ReloadPolicy, Searcher};
use async_trait::async_trait;
use lockstep_core::batch::Batch;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Held, Inspect};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::key::key_text;
use lockstep_encode::plans::Plans;

use super::layout::{Layout, Table};
use super::query::{exists, open};
use super::storage;
use crate::document::same;

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

#[async_trait]
impl Inspect for Inspector {
    async fn compare(&mut self, batch: &Batch) -> Result<Vec<Held>> {
        let opened = self.searcher()?;
        let mut all = Vec::with_capacity(batch.changes().len());
        for change in batch.changes() {
            let schema = batch.schema(change);
            let row = batch.new_row(change).ok_or_else(|| {
                Error::new(
                    ErrorKind::Invalid,
                    "a change without a row cannot be compared",
                )
            })?;
            let table = self.table(schema);
            let mut id = String::new();
            key_text(schema, row, &mut id)?;
            let mut expected = Vec::new();
            table.documents.write(row, &mut expected)?;
            let expected = String::from_utf8_lossy(&expected).into_owned();
            let held = match &opened {
                Some((searcher, layout)) => layout.find(searcher, layout.key(&table, &id)?)?,
                None => None,
            };
            let key = format!("{}/{id}", table.name);
            all.push(match held {
                None => Held::Missing { key },
                Some(held) if same(&expected, &held.source) => Held::Same,
                Some(held) => Held::Different {
                    key,
                    expected,
                    actual: held.source,
                },
            });
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
}

//! The fields of the index, and how a document becomes one.

use std::sync::Arc;

use ::tantivy::collector::{DocSetCollector, TopDocs};
use ::tantivy::query::TermQuery;
use ::tantivy::schema::document::Value as _;
use ::tantivy::schema::{
    Field, INDEXED, IndexRecordOption, JsonObjectOptions, OwnedValue, STORED, STRING, Schema, TEXT,
    TextFieldIndexing, TextOptions,
};
use ::tantivy::{DocAddress, Searcher, TantivyDocument, Term};
use lockstep_core::position::Lsn;
use lockstep_core::refusal::reason;
use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, ErrorKind, Result};

use super::storage;
use crate::document::Documents;

/// Between the parts of a key: no name or value of PostgreSQL text has it by accident, and none can lead to the key of
/// another table by it, since the number of parts before the id is fixed.
const SEPARATOR: char = '\u{1f}';
/// Longest key, in bytes; the engine drops terms above 65 530.
const KEY_LIMIT: usize = 32_768;

/// The fields.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Table and id: what a document is replaced and deleted by.
    key: Field,
    /// The key of the row.
    pub(super) id: Field,
    /// `source.schema.table`.
    pub(super) table: Field,
    /// The table of the database that the row came from, which a TRUNCATE names.
    origin: Field,
    /// Commit LSN.
    version: Field,
    /// The row as JSON, as it was written.
    pub(super) source: Field,
    /// The columns, for queries such as `status:paid`.
    pub(super) doc: Field,
    /// All texts and numbers of the row, for queries without a column.
    pub(super) text: Field,
}

/// Names and plan of one schema version.
pub(super) struct Table {
    pub(super) documents: Documents,
    /// `source.schema.table`.
    pub(super) name: String,
    /// What a key begins with.
    prefix: String,
    /// Of [`Layout::rows_of`].
    pub(super) origin: String,
}

/// A document that the index holds.
pub(super) struct Held {
    pub(super) version: Lsn,
    pub(super) source: String,
}

impl Layout {
    pub(super) fn new() -> (Schema, Layout) {
        let mut schema = Schema::builder();
        let key = schema.add_text_field("_key", STRING);
        let id = schema.add_text_field("_id", STRING | STORED);
        let table = schema.add_text_field("_table", STRING | STORED);
        let origin = schema.add_text_field("_origin", STRING);
        let version = schema.add_u64_field("_version", INDEXED | STORED);
        let source = schema.add_text_field("_source", TextOptions::default().set_stored());
        let words = TextFieldIndexing::default()
            .set_tokenizer("default")
            .set_index_option(IndexRecordOption::WithFreqsAndPositions);
        let columns = JsonObjectOptions::default().set_indexing_options(words);
        let doc = schema.add_json_field("doc", columns);
        let text = schema.add_text_field("_text", TEXT);
        let layout = Layout {
            key,
            id,
            table,
            origin,
            version,
            source,
            doc,
            text,
        };
        (schema.build(), layout)
    }

    /// The term that names a row.
    ///
    /// # Errors
    /// When the key is too long.
    pub(super) fn key(&self, table: &Table, id: &str) -> Result<Term> {
        let key = format!("{}{SEPARATOR}{id}", table.prefix);
        if key.len() > KEY_LIMIT {
            let shown: String = id.chars().take(64).collect();
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "the key `{shown}…` has {} bytes, and {KEY_LIMIT} is the limit",
                    id.len()
                ),
            )
            .because(reason::KEY)
            .remedy("leave the row out with a `filter`, or give the table a shorter key")
            .at(format!("table {}", table.name)));
        }
        Ok(Term::from_field_text(self.key, &key))
    }

    /// The term that names all rows of a table of the database.
    pub(super) fn rows_of(&self, table: &Table) -> Term {
        Term::from_field_text(self.origin, &table.origin)
    }

    /// The term that names all rows of a table of the index.
    pub(super) fn table(&self, table: &Table) -> Term {
        Term::from_field_text(self.table, &table.name)
    }

    /// The document of a row.
    pub(super) fn document(
        &self,
        table: &Table,
        key: &Term,
        id: &str,
        version: Lsn,
        source: &str,
    ) -> TantivyDocument {
        let mut document = TantivyDocument::with_capacity(source.len() * 3);
        // A key's term is text: `Layout::key` made it.
        document.add_text(self.key, key.value().as_str().unwrap_or_default());
        document.add_text(self.id, id);
        document.add_text(self.table, &table.name);
        document.add_text(self.origin, &table.origin);
        document.add_u64(self.version, version.0);
        document.add_text(self.source, source);
        match serde_json::from_str::<OwnedValue>(source) {
            Ok(columns) => {
                let mut text = String::new();
                gather(&columns, &mut text);
                document.add_text(self.text, &text);
                document.add_field_value(self.doc, &columns);
            }
            Err(error) => {
                // JSON of PostgreSQL may be deeper, and its numbers larger, than what can be searched by column.
                tracing::debug!(table = table.name, id, %error, "the row is searchable as text only");
                document.add_text(self.text, source);
            }
        }
        document
    }

    /// Where the documents of a table of the database are.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub(super) fn addresses(&self, searcher: &Searcher, table: &Table) -> Result<Vec<DocAddress>> {
        let query = TermQuery::new(self.rows_of(table), IndexRecordOption::Basic);
        let found = searcher.search(&query, &DocSetCollector);
        let mut found: Vec<DocAddress> = found
            .map_err(|error| storage("list documents", error))?
            .into_iter()
            .collect();
        found.sort_unstable();
        Ok(found)
    }

    /// The id of a document.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub(super) fn id_at(&self, searcher: &Searcher, at: DocAddress) -> Result<Option<String>> {
        let document: TantivyDocument = searcher
            .doc(at)
            .map_err(|error| storage("read a document", error))?;
        let id = document.get_first(self.id);
        Ok(id.and_then(|id| id.as_str().map(str::to_owned)))
    }

    /// The document of a key.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub(super) fn find(&self, searcher: &Searcher, key: Term) -> Result<Option<Held>> {
        let query = TermQuery::new(key, IndexRecordOption::Basic);
        let failed = |error| storage("read a document", error);
        let found = searcher
            .search(&query, &TopDocs::with_limit(1).order_by_score())
            .map_err(failed)?;
        let Some((_, address)) = found.first() else {
            return Ok(None);
        };
        let document: TantivyDocument = searcher.doc(*address).map_err(failed)?;
        let version = document
            .get_first(self.version)
            .and_then(|value| value.as_u64());
        let source = document
            .get_first(self.source)
            .and_then(|value| value.as_str().map(str::to_owned));
        match (version, source) {
            (Some(version), Some(source)) => Ok(Some(Held {
                version: Lsn(version),
                source,
            })),
            _ => Err(Error::new(
                ErrorKind::Storage,
                "a document of the index lacks what every document has",
            )
            .remedy("the index is damaged: remove it and load its tables again")),
        }
    }
}

impl Table {
    pub(super) fn new(schema: &Arc<TableSchema>) -> Self {
        let TableSchema {
            source, id, origin, ..
        } = &**schema;
        Table {
            documents: Documents::new(schema),
            name: format!("{source}.{id}"),
            prefix: format!("{source}{SEPARATOR}{}{SEPARATOR}{}", id.schema, id.name),
            origin: format!(
                "{source}{SEPARATOR}{}{SEPARATOR}{}",
                origin.schema, origin.name
            ),
        }
    }
}

/// All texts and numbers, separated by spaces.
fn gather(value: &OwnedValue, out: &mut String) {
    use std::fmt::Write as _;
    let written = match value {
        OwnedValue::Str(text) => {
            out.push_str(text);
            Ok(())
        }
        OwnedValue::U64(number) => write!(out, "{number}"),
        OwnedValue::I64(number) => write!(out, "{number}"),
        OwnedValue::F64(number) => write!(out, "{number}"),
        OwnedValue::Array(values) => return values.iter().for_each(|value| gather(value, out)),
        OwnedValue::Object(fields) => {
            return fields.iter().for_each(|(_, value)| gather(value, out));
        }
        // JSON makes no other values, and nobody looks for `true` or `null` alone.
        _ => return,
    };
    debug_assert!(written.is_ok(), "writing to a text cannot fail");
    out.push(' ');
}

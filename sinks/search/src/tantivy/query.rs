//! Searching, also while the index is written.

use std::path::Path;

use ::tantivy::collector::TopDocs;
use ::tantivy::query::QueryParser;
use ::tantivy::schema::document::Value as _;
use ::tantivy::{Index, TantivyDocument};
use lockstep_core::{Error, ErrorKind, Result};

use super::layout::Layout;
use super::storage;

/// A row that a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// `source.schema.table`.
    pub table: String,
    /// The key of the row.
    pub id: String,
    /// The row as JSON.
    pub source_json: String,
    /// How well it fits; comparable within one search.
    pub score: f32,
}

/// Searches the index in the folder `path` as of its last commit; the best `limit` rows, best first.
///
/// A word alone is looked for in all columns; `status:paid` in one, `address.city:paris` inside a JSON column;
/// `_table:orders.public.payments` keeps to one table; `"a phrase"`, `AND`, `OR`, `-word` and parentheses work too.
/// Blocks while it reads.
///
/// # Errors
/// `Setup` when there is no index, `Invalid` when the query is not understood.
pub fn search(path: &Path, query: &str, limit: usize) -> Result<Vec<Hit>> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    let (index, layout) = open(path)?;
    let failed = |error| storage("search", error);
    let mut parser = QueryParser::for_index(&index, vec![layout.text, layout.doc]);
    parser.set_conjunction_by_default();
    let query = parser.parse_query(query).map_err(|error| {
        Error::new(ErrorKind::Invalid, format!("the query `{query}` is not understood"))
            .source(error)
            .remedy("write words, column:word, \"a phrase\", AND, OR, -word; put a backslash before : and other signs that are meant literally")
    })?;
    let searcher = index.reader().map_err(failed)?.searcher();
    let top = TopDocs::with_limit(limit).order_by_score();
    let found = searcher.search(&query, &top).map_err(failed)?;
    let mut hits = Vec::with_capacity(found.len());
    for (score, address) in found {
        let document: TantivyDocument = searcher.doc(address).map_err(failed)?;
        let text = |field| {
            let value = document.get_first(field);
            value
                .and_then(|value| value.as_str())
                .unwrap_or_default()
                .to_owned()
        };
        hits.push(Hit {
            table: text(layout.table),
            id: text(layout.id),
            source_json: text(layout.source),
            score,
        });
    }
    Ok(hits)
}

/// Whether there is an index in the folder.
pub(super) fn exists(path: &Path) -> bool {
    path.join("meta.json").exists()
}

/// Opens an index that is there, for reading.
pub(super) fn open(path: &Path) -> Result<(Index, Layout)> {
    if !exists(path) {
        return Err(Error::new(
            ErrorKind::Setup,
            format!("there is no search index in {}", path.display()),
        )
        .remedy("name the `path` of a tantivy sink whose pipeline has run"));
    }
    let index = Index::open_in_dir(path).map_err(|error| storage("open the index", error))?;
    let (schema, layout) = Layout::new();
    if index.schema() != schema {
        return Err(Error::new(
            ErrorKind::Setup,
            format!("{} holds another index", path.display()),
        )
        .remedy("name the `path` of a tantivy sink"));
    }
    Ok((index, layout))
}

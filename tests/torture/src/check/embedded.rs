//! Documents of the embedded index.

use std::path::Path;

use tantivy::schema::Value as _;
use tantivy::{Index, TantivyDocument, TantivyError};

use super::rows::Rows;

/// All documents of a table. Nobody writes the index meanwhile.
pub(super) fn read(path: &Path, table: &str) -> Result<Rows, String> {
    let rows = read_index(path, table).map_err(|error| format!("{}: {error}", path.display()))?;
    let parsed = rows.into_iter().map(|(id, source)| {
        let id = id.parse().map_err(|_| format!("{table}: the id {id}"))?;
        let source = serde_json::from_str(&source).map_err(|error| format!("{error}: {source}"))?;
        Ok((id, source))
    });
    let parsed: Vec<_> = parsed.collect::<Result<_, String>>()?;
    let (count, rows) = (parsed.len(), parsed.into_iter().collect::<Rows>());
    if rows.len() == count {
        Ok(rows)
    } else {
        Err(format!("{table}: {count} documents of {} keys", rows.len()))
    }
}

fn read_index(path: &Path, table: &str) -> Result<Vec<(String, String)>, TantivyError> {
    let index = Index::open_in_dir(path)?;
    let schema = index.schema();
    let (name, id, source) = (
        schema.get_field("_table")?,
        schema.get_field("_id")?,
        schema.get_field("_source")?,
    );
    let searcher = index.reader()?.searcher();
    let mut rows = Vec::new();
    for segment in searcher.segment_readers() {
        let store = segment.get_store_reader(1)?;
        for document in store.iter::<TantivyDocument>(segment.alive_bitset()) {
            let document = document?;
            let text = |field| {
                let value = document.get_first(field);
                value
                    .and_then(|value| value.as_str().map(str::to_owned))
                    .unwrap_or_default()
            };
            if text(name) == table {
                rows.push((text(id), text(source)));
            }
        }
    }
    Ok(rows)
}

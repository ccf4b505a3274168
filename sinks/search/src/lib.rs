//! Search indexes as state sinks: one document per row, under the row's key.
//!
//! [`opensearch`] writes to OpenSearch and Elasticsearch over HTTP; [`tantivy`] (feature `tantivy`) keeps an embedded
//! index in a folder. Both write the same document, the row as JSON.

mod compared;
mod document;
pub mod opensearch;
#[cfg(feature = "tantivy")]
pub mod tantivy;
mod together;

pub use document::Incomplete;

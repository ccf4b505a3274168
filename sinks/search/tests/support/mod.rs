//! Sinks opened on batches made by hand.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_core::batch::Batch;
use lockstep_core::durable::Delivered;
use lockstep_core::position::SourceInfo;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext, SinkFactory, Trouble};
use lockstep_core::{Error, Result};

#[allow(unused_imports, reason = "each test binary uses a part of it")]
pub use lockstep_conformance::feed::*;

pub fn context(source: &Arc<SourceInfo>, tables: &[&Arc<TableSchema>]) -> SinkContext {
    SinkContext {
        pipeline: "test".into(),
        name: "search".into(),
        state: std::env::temp_dir(),
        sources: vec![Arc::clone(source)],
        tables: tables.iter().map(|table| Arc::clone(table)).collect(),
        trouble: Trouble::default(),
        token: None,
    }
}

pub async fn open<F: SinkFactory>(
    config: serde_json::Value,
    source: &Arc<SourceInfo>,
    tables: &[&Arc<TableSchema>],
) -> Box<dyn Sink> {
    let config: F::Config = serde_json::from_value(config).expect("a valid section");
    F::open(&config, context(source, tables))
        .await
        .expect("the sink opens")
}

/// Writes a batch and waits until it is durable.
pub async fn put(sink: &mut Box<dyn Sink>, batch: Arc<Batch>) -> Result<Delivered> {
    sink.write(batch).await?.await
}

pub async fn put_ok(sink: &mut Box<dyn Sink>, batch: Arc<Batch>) -> Delivered {
    put(sink, batch).await.expect("the batch is written")
}

pub async fn put_err(sink: &mut Box<dyn Sink>, batch: Arc<Batch>) -> Error {
    put(sink, batch).await.expect_err("the batch is refused")
}

/// A table with a value that updates leave alone.
pub fn docs() -> Arc<TableSchema> {
    let columns = [
        ("id", "int4", INT4),
        ("status", "text", TEXT),
        ("body", "text", TEXT),
    ];
    table("shop", "docs", 1, &columns)
}

/// Of a few rows one is changed again and again, and its body is left alone; some go, and come back with another body.
#[derive(Default)]
pub struct HotRows {
    /// The status and the body of each row that is there.
    pub rows: BTreeMap<String, (String, String)>,
    /// Changes until now.
    pub changes: u64,
}

impl HotRows {
    /// The next transaction.
    pub fn next(&mut self, source: &Arc<SourceInfo>, docs: &Arc<TableSchema>) -> Arc<Batch> {
        let number = self.changes;
        self.changes += 1;
        let id = (number * 7 % 5).to_string();
        let status = format!("s{number}");
        let mut feed = Feed::new(source);
        feed.begin(10 + number);
        match self.rows.get_mut(&id) {
            Some(_) if number % 23 == 22 => {
                feed.delete(docs, &id);
                self.rows.remove(&id);
            }
            Some(row) => {
                feed.update(docs, &[V::Text(&id), V::Text(&status), V::Unchanged]);
                row.0 = status;
            }
            None => {
                let body = format!("{number} ").repeat(1_000);
                feed.insert(docs, &[V::Text(&id), V::Text(&status), V::Text(&body)]);
                self.rows.insert(id, (status, body));
            }
        }
        feed.finish()
    }
}

/// Writes transactions on hot rows without waiting for any. What is there at the end is told by the one who asked; here, that the
/// sink did not write each of them.
pub async fn write_hot_rows(sink: &mut Box<dyn Sink>, source: &Arc<SourceInfo>) -> HotRows {
    let (docs, mut hot) = (docs(), HotRows::default());
    let mut waiting = Vec::new();
    for _ in 0..400 {
        let batch = hot.next(source, &docs);
        waiting.push(sink.write(batch).await.expect("taken"));
    }
    let mut written = 0;
    for durable in waiting {
        written += durable.await.expect("durable").written;
    }
    assert!(written < hot.changes / 2, "{written} of {}", hot.changes);
    hot
}

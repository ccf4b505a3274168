//! Sinks opened on batches made by hand.
#![allow(dead_code)]

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

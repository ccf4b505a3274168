//! Sinks opened on a receiver of the test.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod receiver;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lockstep_core::Result;
use lockstep_core::batch::Batch;
use lockstep_core::durable::Delivered;
use lockstep_core::position::SourceInfo;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext, SinkFactory, Trouble};
use lockstep_sink_webhook::{Config, Webhook};
use serde_json::{Value, json};

#[allow(unused_imports, reason = "each test binary uses a part of it")]
pub use lockstep_conformance::feed::*;
#[allow(unused_imports, reason = "each test binary uses a part of it")]
pub use receiver::{Asked, Receiver, Reply};

/// How long anything may take that is expected to happen at once.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The section: `more` beside the address.
pub fn config(url: &str, more: &Value) -> Config {
    let mut section = json!({"url": url, "format": "flat"});
    let fields = section.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    serde_json::from_value(section).expect("a valid section")
}

pub fn context(source: &Arc<SourceInfo>, state: &Path) -> SinkContext {
    SinkContext {
        pipeline: "test".into(),
        name: "hook".into(),
        state: state.to_owned(),
        sources: vec![Arc::clone(source)],
        tables: Vec::new(),
        trouble: Trouble::default(),
        token: None,
    }
}

/// A sink, what it waits for, and the folder of its state.
pub struct Open {
    pub sink: Box<dyn Sink>,
    pub trouble: Trouble,
    pub folder: tempfile::TempDir,
}

pub async fn open(url: &str, more: Value) -> Open {
    let folder = tempfile::tempdir().expect("a folder");
    let context = context(&source("shop"), folder.path());
    let trouble = context.trouble.clone();
    let sink = Webhook::open(&config(url, &more), context).await;
    Open {
        sink: sink.expect("opens"),
        trouble,
        folder,
    }
}

pub fn items() -> Arc<TableSchema> {
    lockstep_conformance::history::items("shop", "items")
}

/// A transaction that inserts rows of these ids, each of them new.
pub fn inserts(commit: u64, ids: &[&str]) -> Arc<Batch> {
    let items = items();
    let mut feed = Feed::new(&source("shop"));
    feed.begin(commit);
    for id in ids {
        feed.insert(&items, &[V::Text(id), "new".into(), "gift".into()]);
    }
    feed.finish()
}

/// Writes a batch and waits until it is durable.
pub async fn put(sink: &mut Box<dyn Sink>, batch: Arc<Batch>) -> Result<Delivered> {
    let durable = sink.write(batch).await?;
    tokio::time::timeout(PATIENCE, durable)
        .await
        .expect("a receipt is answered in time")
}

pub async fn put_ok(sink: &mut Box<dyn Sink>, batch: Arc<Batch>) -> Delivered {
    put(sink, batch).await.expect("the batch is written")
}

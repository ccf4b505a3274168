//! The sink and its factories.

use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use lockstep_core::batch::Batch;
use lockstep_core::check::Finding;
use lockstep_core::durable::Durable;
use lockstep_core::position::SourceInfo;
use lockstep_core::progress::Progress as Held;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Inspect, Sink, SinkContext, SinkFactory};
use lockstep_core::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use super::client::Client;
use super::config::Config;
use super::index::Indexes;
use super::inspect::Inspector;
use super::preflight::preflight;
use super::progress::{Progress, Store};
use super::visible::{Places, Visible};
use super::writer::{Command, Fault, Writer};
use crate::together;

/// `type = "opensearch"`.
#[derive(Debug)]
pub struct OpenSearch;

/// `type = "elasticsearch"`. The same as [`OpenSearch`]: what is used of the interface is common to both.
#[derive(Debug)]
pub struct Elasticsearch;

#[async_trait]
impl SinkFactory for OpenSearch {
    const KIND: &'static str = "opensearch";
    type Config = Config;

    fn keeps_rows() -> bool {
        true
    }

    fn resumes_exactly() -> bool {
        false
    }

    fn validate(config: &Config) -> Result<()> {
        config.validate()
    }

    async fn open(config: &Config, context: SinkContext) -> Result<Box<dyn Sink>> {
        Ok(Box::new(SearchSink::open(config, &context).await?))
    }

    fn suits(_: &Self::Config, table: &TableSchema) -> Vec<Finding> {
        Finding::keyless(table).into_iter().collect()
    }

    async fn preflight(config: &Config, pipeline: &str, name: &str) -> Vec<Finding> {
        preflight(config, pipeline, name).await
    }

    async fn inspect(config: &Config, context: SinkContext) -> Result<Option<Box<dyn Inspect>>> {
        Ok(Some(Box::new(Inspector::open(config, &context.tables)?)))
    }
}

#[async_trait]
impl SinkFactory for Elasticsearch {
    const KIND: &'static str = "elasticsearch";
    type Config = Config;

    fn keeps_rows() -> bool {
        true
    }

    fn resumes_exactly() -> bool {
        false
    }

    fn validate(config: &Config) -> Result<()> {
        config.validate()
    }

    async fn open(config: &Config, context: SinkContext) -> Result<Box<dyn Sink>> {
        OpenSearch::open(config, context).await
    }

    fn suits(_: &Self::Config, table: &TableSchema) -> Vec<Finding> {
        Finding::keyless(table).into_iter().collect()
    }

    async fn preflight(config: &Config, pipeline: &str, name: &str) -> Vec<Finding> {
        preflight(config, pipeline, name).await
    }

    async fn inspect(config: &Config, context: SinkContext) -> Result<Option<Box<dyn Inspect>>> {
        OpenSearch::inspect(config, context).await
    }
}

/// The handle of the writer's task, which ends with it.
struct SearchSink {
    inbox: mpsc::Sender<Command>,
    task: JoinHandle<()>,
    store: Store,
    /// How far sources were visible when it was opened, where readers are told.
    visible: Option<Places>,
    fault: Fault,
}

impl SearchSink {
    async fn open(config: &Config, context: &SinkContext) -> Result<Self> {
        config.validate()?;
        let config = Arc::new(config.clone());
        let client = Arc::new(Client::new(&config)?);
        let store = Store::new(Arc::clone(&client), &config, context);
        store.ensure().await?;
        store.fence().await?;
        let mut indexes = Indexes::new(Arc::clone(&client), Arc::clone(&config))?;
        for table in &context.tables {
            indexes.target(table).await?;
        }
        let (sender, inbox) = mpsc::channel(together::MOST_WAITING);
        let fault = Fault::default();
        let progress = Progress::new(store.clone());
        let visible = match config.gtx_epoch {
            true => {
                let owner = (&*context.pipeline, &*context.name);
                Some(Visible::load(&client, &config, owner, &indexes).await?)
            }
            false => None,
        };
        let places = visible.as_ref().map(|visible| visible.places().clone());
        let (progress, fault_of) = ((progress, visible), Arc::clone(&fault));
        let writer = Writer::new(client, config, inbox, indexes, progress, fault_of);
        Ok(SearchSink {
            inbox: sender,
            task: tokio::spawn(writer.run().in_current_span()),
            store,
            visible: places,
            fault,
        })
    }

    /// Why the writer is gone. Usually the batch that it failed at has said so already.
    fn gone(&self) -> Error {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.take().unwrap_or_else(|| {
            Error::new(
                ErrorKind::Abandoned,
                "the sink stopped after an error that an earlier batch reports",
            )
        })
    }
}

#[async_trait]
impl Sink for SearchSink {
    async fn resume(&mut self, source: &SourceInfo) -> Result<Option<Held>> {
        match &self.visible {
            // Positions by themselves may have been stored of one source, and not of another.
            Some(places) => Ok(places.of(source)),
            None => self.store.load(source).await,
        }
    }

    async fn write(&mut self, batch: Arc<Batch>) -> Result<Durable> {
        let (durable, receipt) = Durable::later();
        match self.inbox.send(Command::Write(batch, receipt)).await {
            Ok(()) => Ok(durable),
            Err(_) => Err(self.gone()),
        }
    }

    /// They become durable together; visible in one step only where readers follow `gtx_epoch`.
    async fn write_together(&mut self, batches: Vec<Arc<Batch>>) -> Result<Vec<Durable>> {
        let (mut all, mut parts) = (Vec::new(), Vec::new());
        for batch in batches {
            let (durable, receipt) = Durable::later();
            all.push(durable);
            parts.push((batch, receipt));
        }
        match self.inbox.send(Command::Together(parts)).await {
            Ok(()) => Ok(all),
            Err(_) => Err(self.gone()),
        }
    }

    async fn flush(&mut self) -> Result<()> {
        let (done, flushed) = oneshot::channel();
        if self.inbox.send(Command::Flush(done)).await.is_err() {
            return Err(self.gone());
        }
        flushed.await.map_err(|_| self.gone())
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        self.flush().await
    }
}

impl Drop for SearchSink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

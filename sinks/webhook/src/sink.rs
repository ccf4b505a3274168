//! The sink as the runtime sees it; the work is done by its task.

use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use lockstep_core::batch::Batch;
use lockstep_core::check::Finding;
use lockstep_core::durable::Durable;
use lockstep_core::position::SourceInfo;
use lockstep_core::progress::Progress;
use lockstep_core::schema::TableSchema;
use lockstep_core::sidecar::{Positions, Sidecar};
use lockstep_core::sink::{Sink, SinkContext, SinkFactory};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::Encoder;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::Instrument as _;

use crate::address::Addresses;
use crate::client::Client;
use crate::config::Config;
use crate::preflight::{failed, preflight};
use crate::send::Sender;
use crate::writer::{Command, Fault, Flights, Outbox, Saved, Writer};

/// Batches that may wait for the task; their bytes are bounded by the memory budget.
const WAITING: usize = 64;

/// `type = "webhook"`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Webhook;

#[async_trait]
impl SinkFactory for Webhook {
    const KIND: &'static str = "webhook";
    type Config = Config;

    fn validate(config: &Config) -> Result<()> {
        config.validate()
    }

    async fn open(config: &Config, context: SinkContext) -> Result<Box<dyn Sink>> {
        config.validate()?;
        let client = Client::new(config, context.token)?;
        let folder = context.state.clone();
        let opened = spawn_blocking(move || Sidecar::open::<Positions>(&folder, &|| false)).await;
        let (file, positions) = opened.map_err(|error| {
            let what = "opening the state folder ended without a word";
            Error::new(ErrorKind::Abandoned, what).source(error)
        })??;
        let mut addresses = Addresses::new(&config.url)?;
        for table in &context.tables {
            addresses.of(table)?;
        }
        let (orders, inbox) = mpsc::channel(WAITING);
        let fault = Fault::default();
        let writer = Writer::new(
            inbox,
            Encoder::new(config.format.with_decimals(config.decimals)),
            Outbox::new(addresses, config.batch.clone()),
            Flights::new(Sender::new(client, context.trouble), config.concurrency),
            Saved::new(file, positions.clone()),
            Arc::clone(&fault),
        );
        Ok(Box::new(WebhookSink {
            inbox: orders,
            task: tokio::spawn(writer.run().in_current_span()),
            positions,
            fault,
        }))
    }

    /// The file is a while behind what was confirmed.
    fn resumes_exactly() -> bool {
        false
    }

    fn is_exact(_: &Config) -> bool {
        false
    }

    fn suits(config: &Config, table: &TableSchema) -> Vec<Finding> {
        let mut findings = config.format.findings(table);
        let subject = format!("table {}", table.origin);
        let table = Arc::new(table.clone());
        let address = Addresses::new(&config.url).and_then(|mut all| all.of(&table));
        findings.extend(address.err().map(|error| failed(subject, &error)));
        findings
    }

    async fn preflight(config: &Config, _pipeline: &str, _name: &str) -> Vec<Finding> {
        preflight(config).await
    }
}

/// The handle of the writer's task, which ends with it.
struct WebhookSink {
    inbox: mpsc::Sender<Command>,
    task: JoinHandle<()>,
    /// When it was opened.
    positions: Positions,
    fault: Fault,
}

impl WebhookSink {
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
impl Sink for WebhookSink {
    async fn resume(&mut self, source: &SourceInfo) -> Result<Option<Progress>> {
        Ok(self.positions.of(source).cloned())
    }

    async fn write(&mut self, batch: Arc<Batch>) -> Result<Durable> {
        let (durable, receipt) = Durable::later();
        match self.inbox.send(Command::Write(batch, receipt)).await {
            Ok(()) => Ok(durable),
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

impl Drop for WebhookSink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

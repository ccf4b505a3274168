//! The sink as the runtime sees it; the work is done on its thread.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use async_trait::async_trait;
use lockstep_core::batch::Batch;
use lockstep_core::check::Finding;
use lockstep_core::durable::{Durable, Receipt};
use lockstep_core::position::SourceInfo;
use lockstep_core::progress::Progress;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Inspect, Sink, SinkContext, SinkFactory};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::avro::Schemas;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::config::{Encoding, KafkaConfig};
use crate::error::Failure;
use crate::inspect::KafkaInspect;
use crate::outlet::Shared;
use crate::progress::{self, Positions};
use crate::registrar::{self, Registrar};
use crate::worker::Order;
use crate::{open, preflight};

/// Batches that may wait for the thread. Their bytes are bounded by the memory budget; while a commit is under way many
/// small ones gather here and share the next transaction.
const ROOM: usize = 1024;

/// Makes Kafka sinks.
#[derive(Clone, Copy, Debug, Default)]
pub struct KafkaSinkFactory;

#[async_trait]
impl SinkFactory for KafkaSinkFactory {
    const KIND: &'static str = "kafka";
    type Config = KafkaConfig;

    fn validate(config: &KafkaConfig) -> Result<()> {
        config.check()
    }

    fn is_exact(config: &KafkaConfig) -> bool {
        config.exactly_once
    }

    async fn open(config: &KafkaConfig, context: SinkContext) -> Result<Box<dyn Sink>> {
        config.check()?;
        let (orders, inbox) = channel();
        let shared = Arc::new(Shared::new(ROOM));
        // Made first: dropping it, as when this future is dropped, stops the thread.
        let mut sink = KafkaSink {
            pipeline: Arc::clone(&context.pipeline),
            name: Arc::clone(&context.name),
            orders,
            shared: Arc::clone(&shared),
            positions: Positions::new(),
        };
        let (ready, opened) = oneshot::channel();
        let registrar = Registrar::new(config, Handle::current())?;
        let config = Arc::new(config.clone());
        let span = tracing::Span::current();
        std::thread::Builder::new()
            .name(format!("kafka-{}", context.name))
            .spawn(move || {
                let _entered = span.entered();
                match open::open(&config, &context, &shared, registrar) {
                    Ok((worker, positions)) => {
                        if ready.send(Ok(positions)).is_ok() {
                            worker.run(&inbox);
                        }
                    }
                    // Whoever opened may have gone.
                    Err(error) => drop(ready.send(Err(error))),
                }
            })
            .map_err(|error| {
                Error::new(ErrorKind::Storage, "the sink's thread cannot be started").source(error)
            })?;
        sink.positions = opened.await.map_err(|_| gone())??;
        Ok(Box::new(sink))
    }

    fn suits(config: &Self::Config, table: &TableSchema) -> Vec<Finding> {
        let mut findings = config.format.findings(table);
        if config.encoding == Encoding::Avro
            && let Err(error) = Schemas::of(config.format, &Arc::new(table.clone()))
        {
            let remedy = error.remedy_text().unwrap_or_default();
            let subject = format!("table {}", table.origin);
            findings.push(Finding::fail(subject, error.message(), remedy));
        }
        findings
    }

    async fn accepts(config: &Self::Config, tables: &[Arc<TableSchema>]) -> Vec<Finding> {
        registrar::judge(config, tables).await
    }

    async fn inspect(
        config: &KafkaConfig,
        context: SinkContext,
    ) -> Result<Option<Box<dyn Inspect>>> {
        Ok(Some(Box::new(KafkaInspect::open(config, &context)?)))
    }

    async fn preflight(config: &KafkaConfig, pipeline: &str, name: &str) -> Vec<Finding> {
        preflight::run(config.clone(), pipeline.to_owned(), name.to_owned()).await
    }
}

struct KafkaSink {
    pipeline: Arc<str>,
    name: Arc<str>,
    orders: Sender<Order>,
    shared: Arc<Shared>,
    positions: Positions,
}

impl KafkaSink {
    fn failure(&self) -> Error {
        self.shared
            .failure()
            .map_or_else(gone, |failure: Failure| failure.error())
    }

    async fn order(&self, parts: Vec<(Arc<Batch>, Receipt)>) -> Result<()> {
        self.check()?;
        let room = Arc::clone(&self.shared.room).acquire_owned().await;
        let room = room.map_err(|_| self.failure())?;
        let order = Order::Write { parts, room };
        self.orders.send(order).map_err(|_| self.failure())
    }

    fn check(&self) -> Result<()> {
        match self.shared.failure() {
            Some(failure) => Err(failure.error()),
            None => Ok(()),
        }
    }
}

fn gone() -> Error {
    Error::new(
        ErrorKind::Abandoned,
        "the sink's thread ended without a word",
    )
}

#[async_trait]
impl Sink for KafkaSink {
    async fn resume(&mut self, source: &SourceInfo) -> Result<Option<Progress>> {
        let key = progress::key(&self.pipeline, &self.name, source);
        Ok(self.positions.get(&key).cloned())
    }

    async fn write(&mut self, batch: Arc<Batch>) -> Result<Durable> {
        let (durable, receipt) = Durable::later();
        self.order(vec![(batch, receipt)]).await?;
        Ok(durable)
    }

    /// With `exactly_once` they are in one transaction of Kafka, with the progress of their sources.
    async fn write_together(&mut self, batches: Vec<Arc<Batch>>) -> Result<Vec<Durable>> {
        let (mut all, mut parts) = (Vec::new(), Vec::new());
        for batch in batches {
            let (durable, receipt) = Durable::later();
            all.push(durable);
            parts.push((batch, receipt));
        }
        self.order(parts).await?;
        Ok(all)
    }

    /// There is nothing to hurry: a transaction is committed as soon as no batch waits, records linger a millisecond.
    async fn flush(&mut self) -> Result<()> {
        self.check()
    }

    async fn close(self: Box<Self>) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.orders
            .send(Order::Close(done))
            .map_err(|_| self.failure())?;
        answer.await.map_err(|_| self.failure())?
    }
}

impl Drop for KafkaSink {
    fn drop(&mut self) {
        self.shared.drop_sink();
    }
}

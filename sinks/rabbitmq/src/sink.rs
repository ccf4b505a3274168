//! The sink as the runtime sees it; the work is done in its task.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use lockstep_core::batch::Batch;
use lockstep_core::check::Finding;
use lockstep_core::durable::Durable;
use lockstep_core::position::SourceInfo;
use lockstep_core::progress::Progress;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext, SinkFactory};
use lockstep_core::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument as _;

use crate::config::RabbitmqConfig;
use crate::link::Plug;
use crate::worker::Order;
use crate::{open, preflight};

/// Batches that may wait for the task. Their bytes are bounded by the memory budget.
const ROOM: usize = 256;

/// Makes RabbitMQ sinks.
#[derive(Clone, Copy, Debug, Default)]
pub struct RabbitmqSinkFactory;

#[async_trait]
impl SinkFactory for RabbitmqSinkFactory {
    const KIND: &'static str = "rabbitmq";
    type Config = RabbitmqConfig;

    fn validate(config: &RabbitmqConfig) -> Result<()> {
        config.check()
    }

    fn resumes_exactly() -> bool {
        false
    }

    fn is_exact(_config: &RabbitmqConfig) -> bool {
        false
    }

    async fn open(config: &RabbitmqConfig, context: SinkContext) -> Result<Box<dyn Sink>> {
        config.check()?;
        let worker = open::open(config, &context).await?;
        let positions = context.sources.iter();
        let positions = positions.map(|source| (Arc::clone(source), worker.book.progress(source)));
        let (orders, inbox) = mpsc::channel(ROOM);
        let failure = Arc::new(OnceLock::new());
        let sink = RabbitmqSink {
            positions: positions.collect(),
            orders,
            failure: Arc::clone(&failure),
            plug: worker.plug(),
        };
        tokio::spawn(worker.run(inbox, failure).in_current_span());
        Ok(Box::new(sink))
    }

    async fn preflight(config: &RabbitmqConfig, pipeline: &str, name: &str) -> Vec<Finding> {
        preflight::run(config, pipeline, name).await
    }

    fn suits(config: &RabbitmqConfig, table: &TableSchema) -> Vec<Finding> {
        config.format.findings(table)
    }
}

struct RabbitmqSink {
    positions: Vec<(Arc<SourceInfo>, Option<Progress>)>,
    orders: mpsc::Sender<Order>,
    failure: Arc<OnceLock<Error>>,
    plug: Arc<Plug>,
}

impl RabbitmqSink {
    fn failure(&self) -> Error {
        self.failure.get().cloned().unwrap_or_else(gone)
    }

    async fn order(&self, order: Order) -> Result<()> {
        if let Some(failure) = self.failure.get() {
            return Err(failure.clone());
        }
        self.orders.send(order).await.map_err(|_| self.failure())
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Abandoned, "the sink's task ended without a word")
}

#[async_trait]
impl Sink for RabbitmqSink {
    async fn resume(&mut self, source: &SourceInfo) -> Result<Option<Progress>> {
        let known = self.positions.iter().find(|(known, _)| **known == *source);
        Ok(known.and_then(|(_, reached)| reached.clone()))
    }

    async fn write(&mut self, batch: Arc<Batch>) -> Result<Durable> {
        let (durable, receipt) = Durable::later();
        self.order(Order::Write(batch, receipt)).await?;
        Ok(durable)
    }

    /// Messages are sent at once; the position is written without waiting for its turn.
    async fn flush(&mut self) -> Result<()> {
        self.order(Order::Flush).await
    }

    async fn close(self: Box<Self>) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Close(done)).await?;
        answer.await.map_err(|_| self.failure())?
    }
}

impl Drop for RabbitmqSink {
    /// Nothing is sent any more, not even what the client has in its buffers.
    fn drop(&mut self) {
        self.plug.pull();
    }
}

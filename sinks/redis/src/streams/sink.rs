//! The sink as the runtime sees it.

use std::sync::Arc;

use async_trait::async_trait;
use lockstep_core::Result;
use lockstep_core::batch::Batch;
use lockstep_core::check::Finding;
use lockstep_core::durable::Durable;
use lockstep_core::position::SourceInfo;
use lockstep_core::progress::Progress;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext, SinkFactory};
use lockstep_encode::envelope::Encoder;
use lockstep_encode::plans::Plans;
use lockstep_redis::Link;
use tokio::sync::mpsc;

use super::config::StreamConfig;
use super::writer::Writer;
use crate::chain::Chain;
use crate::fence::Fence;
use crate::state::{self, Names};
use crate::writer::{Fate, Job, Task};
use crate::{preflight, scripts};

/// Batches that wait for the writer; `write` pends when there are as many.
const QUEUE: usize = 16;

/// Builds sinks of streams, `type = "redis-stream"`.
#[derive(Debug)]
pub struct StreamFactory;

/// A sink that appends each change to a stream. See the README.
pub struct StreamSink {
    link: Link,
    names: Names,
    jobs: mpsc::Sender<Job>,
    fate: Fate,
    task: Task,
}

#[async_trait]
impl SinkFactory for StreamFactory {
    const KIND: &'static str = "redis-stream";
    type Config = StreamConfig;

    fn validate(config: &StreamConfig) -> Result<()> {
        config.validate()
    }

    async fn open(config: &StreamConfig, context: SinkContext) -> Result<Box<dyn Sink>> {
        config.validate()?;
        let link = Link::open(&config.server()).await?;
        scripts::load(&link, context.token.is_some()).await?;
        let names = Names {
            pipeline: context.pipeline,
            sink: context.name,
        };
        let fence = context.token.map(|token| Fence::new(&names, token));
        if let Some(fence) = &fence {
            fence.raise(&link).await?;
        }
        let chain = Chain::begin(&link, &names, fence.as_ref()).await?;
        let fate = Fate::default();
        let writer = Writer {
            link: link.clone(),
            names: names.clone(),
            fence,
            max_length: config.max_length,
            chain,
            encoder: Encoder::new(config.format.with_decimals(config.decimals)),
            templates: config.templates()?,
            streams: Plans::new(),
            fate: fate.clone(),
        };
        let (jobs, received) = mpsc::channel(QUEUE);
        Ok(Box::new(StreamSink {
            link,
            names,
            jobs,
            fate,
            task: Task::spawn(writer.run(received)),
        }))
    }

    fn suits(config: &StreamConfig, table: &TableSchema) -> Vec<Finding> {
        config.format.findings(table)
    }

    async fn preflight(config: &StreamConfig, _pipeline: &str, _name: &str) -> Vec<Finding> {
        match config.validate() {
            Ok(()) => preflight::look_at_streams(&config.server()).await,
            Err(error) => vec![preflight::wrong_section(&error)],
        }
    }
}

#[async_trait]
impl Sink for StreamSink {
    async fn resume(&mut self, source: &SourceInfo) -> Result<Option<Progress>> {
        state::load_progress(&self.link, &self.names, source).await
    }

    async fn write(&mut self, batch: Arc<Batch>) -> Result<Durable> {
        let (durable, receipt) = Durable::later();
        let job = Job::One((batch, receipt));
        self.jobs.send(job).await.map_err(|_| self.fate.error())?;
        Ok(durable)
    }

    /// They are one step.
    async fn write_together(&mut self, batches: Vec<Arc<Batch>>) -> Result<Vec<Durable>> {
        let (mut all, mut parts) = (Vec::new(), Vec::new());
        for batch in batches {
            let (durable, receipt) = Durable::later();
            all.push(durable);
            parts.push((batch, receipt));
        }
        let sent = self.jobs.send(Job::Together(parts)).await;
        sent.map_err(|_| self.fate.error())?;
        Ok(all)
    }

    async fn flush(&mut self) -> Result<()> {
        // Nothing is ever held back; all there is to tell is whether the writer lives.
        if self.jobs.is_closed() {
            return Err(self.fate.error());
        }
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        let StreamSink {
            jobs, fate, task, ..
        } = *self;
        drop(jobs);
        task.join().await?;
        fate.outcome()
    }
}

impl std::fmt::Debug for StreamSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamSink")
            .field("place", &self.link.place())
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

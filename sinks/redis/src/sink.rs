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
use lockstep_core::sink::{Inspect, Sink, SinkContext, SinkFactory};
use lockstep_redis::Link;
use tokio::sync::mpsc;

use crate::chain::Chain;
use crate::config::RedisConfig;
use crate::fence::Fence;
use crate::flush::Limits;
use crate::inspect::RedisInspect;
use crate::rows::Tables;
use crate::state::{self, Names, Sources};
use crate::writer::{Fate, Job, Task, Writer};
use crate::{keys, preflight, scripts};

/// Batches that wait for the writer; `write` pends when there are as many.
const QUEUE: usize = 16;

/// Builds Redis sinks, `type = "redis"`.
#[derive(Debug)]
pub struct RedisFactory;

/// A sink that keeps one Redis key per row. See the crate's page.
pub struct RedisSink {
    link: Link,
    names: Names,
    jobs: mpsc::Sender<Job>,
    fate: Fate,
    task: Task,
}

#[async_trait]
impl SinkFactory for RedisFactory {
    const KIND: &'static str = "redis";
    type Config = RedisConfig;

    fn keeps_rows() -> bool {
        true
    }

    fn validate(config: &RedisConfig) -> Result<()> {
        config.validate()
    }

    async fn open(config: &RedisConfig, context: SinkContext) -> Result<Box<dyn Sink>> {
        config.validate()?;
        let mut tables = Tables::new(keys::parse_template(&config.key)?, config.value);
        // Tables whose keys could meet are found here, not in the middle of the night.
        for schema in context
            .tables
            .iter()
            .filter(|schema| !schema.key.is_empty())
        {
            tables.get(schema)?;
        }
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
        let chain = match link.is_cluster() {
            true => None,
            false => Some(Chain::begin(&link, &names, fence.as_ref()).await?),
        };
        let mut sources = Sources::default();
        for source in &context.sources {
            sources.get(&link, &names, source).await?;
        }
        let limits = Limits {
            keys: config.batch.keys,
            bytes: config.batch.bytes.bytes(),
            ttl: config.ttl.map_or(0, |ttl| millis(ttl.0)),
            tombstone_ttl: millis(config.tombstone_ttl.0),
            notify: config.notify.clone(),
            fence,
        };
        let writer = Writer::new(
            link.clone(),
            limits,
            names.clone(),
            tables,
            (sources, chain),
        );
        let (jobs, received) = mpsc::channel(QUEUE);
        Ok(Box::new(RedisSink {
            link,
            names,
            jobs,
            fate: writer.fate(),
            task: Task::spawn(writer.run(received)),
        }))
    }

    fn suits(_: &Self::Config, table: &TableSchema) -> Vec<Finding> {
        Finding::keyless(table).into_iter().collect()
    }

    async fn preflight(config: &RedisConfig, _pipeline: &str, _name: &str) -> Vec<Finding> {
        preflight::look(config).await
    }

    async fn inspect(
        config: &RedisConfig,
        _context: SinkContext,
    ) -> Result<Option<Box<dyn Inspect>>> {
        config.validate()?;
        let tables = Tables::new(keys::parse_template(&config.key)?, config.value);
        let link = Link::open(&config.server()).await?;
        Ok(Some(Box::new(RedisInspect::new(
            link,
            tables,
            config.ttl.is_some(),
        ))))
    }
}

/// Milliseconds of a TTL, at least one: the server takes no zero.
fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX)
        .max(1)
}

#[async_trait]
impl Sink for RedisSink {
    async fn resume(&mut self, source: &SourceInfo) -> Result<Option<Progress>> {
        state::load_progress(&self.link, &self.names, source).await
    }

    async fn write(&mut self, batch: Arc<Batch>) -> Result<Durable> {
        let (durable, receipt) = Durable::later();
        let job = Job::One((batch, receipt));
        self.jobs.send(job).await.map_err(|_| self.fate.error())?;
        Ok(durable)
    }

    /// On a single server they are one step, unless [`crate::together`] says otherwise; in a cluster one for each hash slot.
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
        let RedisSink {
            jobs, fate, task, ..
        } = *self;
        drop(jobs);
        task.join().await?;
        fate.outcome()
    }
}

impl std::fmt::Debug for RedisSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisSink")
            .field("place", &self.link.place())
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

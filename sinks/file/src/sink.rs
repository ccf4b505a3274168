//! The sink as the runtime sees it; the work is done on its thread.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use async_trait::async_trait;
use lockstep_core::batch::Batch;
use lockstep_core::check::Finding;
use lockstep_core::durable::{Durable, Receipt};
use lockstep_core::position::SourceInfo;
use lockstep_core::progress::Progress;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext, SinkFactory};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::Encoder;
use rustix::fs::Access;
use tokio::sync::oneshot;

use crate::config::FileConfig;
use crate::files::Files;
use crate::sidecar::Sidecar;
use crate::writer::{Order, Shared, Writer};

/// Batches that may wait for the thread; their bytes are bounded by the memory budget.
const ROOM: usize = 1024;

/// Makes file sinks.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileSinkFactory;

type Positions = Vec<(Arc<SourceInfo>, Option<Progress>)>;

#[async_trait]
impl SinkFactory for FileSinkFactory {
    const KIND: &'static str = "file";
    type Config = FileConfig;

    fn keeps_here() -> bool {
        true
    }

    fn validate(config: &FileConfig) -> Result<()> {
        config.check()
    }

    async fn open(config: &FileConfig, context: SinkContext) -> Result<Box<dyn Sink>> {
        config.check()?;
        let (orders, inbox) = channel();
        let shared = Arc::new(Shared::new(ROOM));
        // Made first: dropping it, as when this future is dropped, stops the thread.
        let mut sink = FileSink {
            orders,
            shared: Arc::clone(&shared),
            positions: Vec::new(),
        };
        let (ready, opened) = oneshot::channel();
        let config = config.clone();
        let span = tracing::Span::current();
        std::thread::Builder::new()
            .name(format!("file-{}", context.name))
            .spawn(move || {
                let _entered = span.entered();
                match writer(&config, &context, shared) {
                    Ok((writer, positions)) => {
                        if ready.send(Ok(positions)).is_ok() {
                            writer.run(&inbox);
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
        config.format.findings(table)
    }

    async fn preflight(config: &FileConfig, _pipeline: &str, _name: &str) -> Vec<Finding> {
        let folder = config.path.split('{').next().unwrap_or_default();
        let folder = match folder.rfind('/') {
            Some(0) => "/",
            // Without the slash: `x/` does not exist when `x` is a file.
            Some(end) => &folder[..end],
            None => ".",
        };
        vec![look_at(Path::new(folder))]
    }
}

fn writer(
    config: &FileConfig,
    context: &SinkContext,
    shared: Arc<Shared>,
) -> Result<(Writer, Positions)> {
    let sidecar = Sidecar::open(&context.state, &|| shared.is_dropped())?;
    let mut positions = Vec::with_capacity(context.sources.len());
    for source in &context.sources {
        positions.push((Arc::clone(source), sidecar.progress(source).cloned()));
    }
    let writer = Writer {
        encoder: Encoder::new(config.format.with_decimals(config.decimals)),
        files: Files::restore(config.template()?, &sidecar)?,
        sidecar,
        interval: config.sync_interval.0,
        shared,
        awaiting: VecDeque::new(),
        since: Instant::now(),
    };
    Ok((writer, positions))
}

/// Whether files can be made in `folder`, or the folder itself in the nearest one that exists.
fn look_at(folder: &Path) -> Finding {
    let subject = "folder";
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| PathBuf::from(folder));
    let existing = absolute
        .ancestors()
        .find(|folder| folder.exists())
        .unwrap_or_else(|| Path::new("/"));
    if !existing.is_dir() {
        return Finding::fail(
            subject,
            format!("{} is not a folder", existing.display()),
            "choose another `path`",
        );
    }
    match rustix::fs::access(existing, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) if existing == absolute => {
            Finding::pass(subject, format!("{} can be written", absolute.display()))
        }
        Ok(()) => Finding::pass(subject, format!("{} will be made", absolute.display())),
        Err(error) => Finding::fail(
            subject,
            format!("{} cannot be written: {error}", existing.display()),
            format!(
                "give the user of lockstep the right: chown … {}",
                existing.display()
            ),
        ),
    }
}

struct FileSink {
    orders: Sender<Order>,
    shared: Arc<Shared>,
    positions: Positions,
}

impl FileSink {
    fn failure(&self) -> Error {
        self.shared.failure().unwrap_or_else(gone)
    }

    async fn order(&self, parts: Vec<(Arc<Batch>, Receipt)>) -> Result<()> {
        self.check()?;
        let room = Arc::clone(&self.shared.room).acquire_owned().await;
        let room = room.map_err(|_| self.failure())?;
        let order = Order::Write { parts, _room: room };
        self.orders.send(order).map_err(|_| self.failure())
    }

    fn check(&self) -> Result<()> {
        self.shared.failure().map_or(Ok(()), Err)
    }
}

fn gone() -> Error {
    Error::new(
        ErrorKind::Abandoned,
        "the sink's thread ended without a word",
    )
}

#[async_trait]
impl Sink for FileSink {
    async fn resume(&mut self, source: &SourceInfo) -> Result<Option<Progress>> {
        let known = self.positions.iter().find(|(known, _)| **known == *source);
        Ok(known.and_then(|(_, reached)| reached.clone()))
    }

    async fn write(&mut self, batch: Arc<Batch>) -> Result<Durable> {
        let (durable, receipt) = Durable::later();
        self.order(vec![(batch, receipt)]).await?;
        Ok(durable)
    }

    /// All of them are synced, or the next start removes what was written. Who follows the files sees lines as they come.
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

    /// There is nothing to hurry: files are synced as soon as no batch waits.
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

impl Drop for FileSink {
    fn drop(&mut self) {
        self.shared.dropped.store(true, Ordering::Release);
    }
}

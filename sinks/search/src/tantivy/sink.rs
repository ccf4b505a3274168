//! The sink and its factory.

use std::sync::Arc;
use std::sync::PoisonError;

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

use super::config::Config;
use super::engine::{Engine, committed};
use super::inspect::Inspector;
use super::progress::Progress;
use super::worker::{Command, Fault, Worker};
use crate::together;

/// `type = "tantivy"`.
#[derive(Debug)]
pub struct Tantivy;

#[async_trait]
impl SinkFactory for Tantivy {
    const KIND: &'static str = "tantivy";
    type Config = Config;

    fn keeps_here() -> bool {
        true
    }

    fn keeps_rows() -> bool {
        true
    }

    fn validate(config: &Config) -> Result<()> {
        config.validate()
    }

    async fn open(config: &Config, _: SinkContext) -> Result<Box<dyn Sink>> {
        Ok(Box::new(EmbeddedSink::open(config).await?))
    }

    fn suits(_: &Self::Config, table: &TableSchema) -> Vec<Finding> {
        Finding::keyless(table).into_iter().collect()
    }

    async fn preflight(config: &Config, _: &str, _: &str) -> Vec<Finding> {
        let config = config.clone();
        let looked = tokio::task::spawn_blocking(move || look(&config)).await;
        vec![looked.unwrap_or_else(|error| {
            Finding::fail(
                "search index",
                error.to_string(),
                "report this as a fault of lockstep",
            )
        })]
    }

    async fn inspect(config: &Config, _: SinkContext) -> Result<Option<Box<dyn Inspect>>> {
        Ok(Some(Box::new(Inspector::new(&config.path))))
    }
}

fn look(config: &Config) -> Finding {
    let subject = format!("search index {}", config.path.display());
    if let Err(error) = config.validate() {
        let remedy = error
            .remedy_text()
            .unwrap_or("mend the section of the sink");
        return Finding::fail(subject, error.to_string(), remedy);
    }
    if !super::query::exists(&config.path) {
        let there = config.path.ancestors().find(|folder| folder.exists());
        return match there.map(std::fs::metadata) {
            Some(Ok(meta)) if !meta.is_dir() => Finding::fail(
                subject,
                "a part of the path is not a folder",
                "choose another `path`",
            ),
            Some(Ok(meta)) if meta.permissions().readonly() => Finding::fail(
                subject,
                "the folder may not be written",
                "allow it, or choose another `path`",
            ),
            _ => Finding::pass(subject, "will be created"),
        };
    }
    let opened = super::query::open(&config.path).and_then(|(index, _)| committed(&index));
    match opened {
        Ok(_) => Finding::pass(subject, "there and readable"),
        Err(error) => {
            let remedy = error
                .remedy_text()
                .unwrap_or("choose another `path`")
                .to_owned();
            Finding::fail(subject, error.to_string(), remedy)
        }
    }
}

/// The handle of the worker's thread, which ends when this is dropped, without a commit.
struct EmbeddedSink {
    inbox: mpsc::Sender<Command>,
    resumed: Progress,
    fault: Fault,
}

impl EmbeddedSink {
    async fn open(config: &Config) -> Result<Self> {
        config.validate()?;
        let config = config.clone();
        let (sender, inbox) = mpsc::channel(together::MOST_WAITING);
        let fault = Fault::default();
        let (opened, engine_opened) = oneshot::channel();
        let failed = |error: std::io::Error| {
            Error::new(
                ErrorKind::Storage,
                "cannot start a thread for the search index",
            )
            .source(error)
            .remedy("raise the limit of threads of this user")
        };
        let clock = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(failed)?;
        let thread_fault = Arc::clone(&fault);
        let span = tracing::Span::current();
        std::thread::Builder::new()
            .name("tantivy".to_owned())
            .spawn(move || {
                let _entered = span.entered();
                let engine = match Engine::open(&config) {
                    Ok(engine) => engine,
                    // The one who asked may be gone, and then nobody needs the engine.
                    Err(error) => return drop(opened.send(Err(error))),
                };
                if opened.send(Ok(engine.progress().clone())).is_err() {
                    return;
                }
                let most = config.memory.bytes();
                let interval = config.commit_interval.0;
                let worker = Worker::new(engine, inbox, thread_fault, most, interval);
                clock.block_on(worker.run());
            })
            .map_err(failed)?;
        let resumed = engine_opened
            .await
            .map_err(|_| Error::new(ErrorKind::Abandoned, "the search index did not open"))??;
        Ok(EmbeddedSink {
            inbox: sender,
            resumed,
            fault,
        })
    }

    /// Why the worker is gone. Usually the batch that it failed at has said so already.
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
impl Sink for EmbeddedSink {
    async fn resume(&mut self, source: &SourceInfo) -> Result<Option<Held>> {
        Ok(self.resumed.get(source))
    }

    async fn write(&mut self, batch: Arc<Batch>) -> Result<Durable> {
        let (durable, receipt) = Durable::later();
        match self.inbox.send(Command::Write(batch, receipt)).await {
            Ok(()) => Ok(durable),
            Err(_) => Err(self.gone()),
        }
    }

    /// One commit of the index has them all, with the progress of their sources.
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

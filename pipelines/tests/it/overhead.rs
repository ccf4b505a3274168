//! What the runtime costs per batch and per change, apart from its ends. Run by hand, alone on the machine:
//! `cargo test --release -p lockstep-pipelines --test it overhead -- --ignored --nocapture`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use lockstep_core::Result;
use lockstep_core::batch::{Batch, BatchBuilder, Cell, Op, Phase, Transaction};
use lockstep_core::check::Finding;
use lockstep_core::durable::{Delivered, Durable};
use lockstep_core::position::{Lsn, SourceIdentity, SourceInfo};
use lockstep_core::progress::Progress;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext, SinkFactory};
use lockstep_core::source::{Source, SourceContext, SourceFactory};
use lockstep_pipelines::Registry;
use lockstep_pipelines::file::{Variables, load_with};
use tokio_util::sync::CancellationToken;

use crate::ends::Config;

static CHANGES_PER_BATCH: AtomicUsize = AtomicUsize::new(1);
const BATCHES: u64 = 20_000;

/// Batches of one transaction each, without reading anything.
struct Ready {
    info: Arc<SourceInfo>,
    schema: Arc<TableSchema>,
    context: SourceContext,
    builder: BatchBuilder,
    sent: u64,
}

#[async_trait]
impl SourceFactory for Ready {
    const KIND: &'static str = "ready";
    type Config = Config;

    fn validate(_: &Config) -> Result<()> {
        Ok(())
    }

    async fn open(_: &Config, context: SourceContext) -> Result<Box<dyn Source>> {
        let name = Arc::clone(&context.name);
        Ok(Box::new(Ready {
            info: Arc::new(SourceInfo {
                name: Arc::clone(&name),
                identity: SourceIdentity {
                    system: 1,
                    timeline: 1,
                    incarnation: 0,
                    database: "x".into(),
                },
            }),
            schema: Arc::new(TableSchema::message(name)),
            context,
            builder: BatchBuilder::new(),
            sent: 0,
        }))
    }

    async fn preflight(_: &Config, _: &str, _: &str, _: &std::path::Path) -> Vec<Finding> {
        Vec::new()
    }
}

#[async_trait]
impl Source for Ready {
    fn info(&self) -> Arc<SourceInfo> {
        Arc::clone(&self.info)
    }

    fn tables(&self) -> Vec<Arc<TableSchema>> {
        vec![Arc::clone(&self.schema)]
    }

    async fn next(&mut self) -> Result<Option<Batch>> {
        if self.sent == BATCHES {
            return Ok(None);
        }
        let changes = CHANGES_PER_BATCH.load(Ordering::Relaxed);
        let permit = self.context.budget.take(changes * 100).await;
        self.sent += 1;
        let commit = Lsn(self.sent * 100);
        self.builder.begin(Transaction {
            commit,
            commit_micros: 0,
            xid: 1,
            origin: None,
            previous_commit: None,
            prepared: None,
            global: None,
        });
        let schema = self.builder.schema(&self.schema);
        for ordinal in 1..=changes as u64 {
            let start = self.builder.cells().len();
            self.builder
                .cells()
                .extend([Cell::text(0, 2), Cell::text(0, 2)]);
            self.builder
                .push(Op::Message, schema, ordinal, commit, None, Some(start));
        }
        let block = Bytes::from_static(b"hi");
        let batch = self.builder.finish(
            Arc::clone(&self.info),
            Phase::Stream,
            Some(Lsn(commit.0 + 50)),
            block,
        );
        Ok(Some(batch.with_permit(permit)))
    }

    async fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

struct Nothing;

#[async_trait]
impl SinkFactory for Nothing {
    const KIND: &'static str = "nothing";
    type Config = Config;

    fn validate(_: &Config) -> Result<()> {
        Ok(())
    }

    async fn open(_: &Config, _: SinkContext) -> Result<Box<dyn Sink>> {
        Ok(Box::new(Nothing))
    }

    async fn preflight(_: &Config, _: &str, _: &str) -> Vec<Finding> {
        Vec::new()
    }
}

#[async_trait]
impl Sink for Nothing {
    async fn resume(&mut self, _: &SourceInfo) -> Result<Option<Progress>> {
        Ok(None)
    }

    async fn write(&mut self, batch: Arc<Batch>) -> Result<Durable> {
        let written = batch.changes().len() as u64;
        Ok(Durable::now(Delivered {
            written,
            stale: 0,
            incomplete: 0,
            bytes: 0,
        }))
    }

    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

#[tokio::test]
#[ignore = "a measurement, for a release build"]
async fn overhead() {
    let registry = Registry::new()
        .with_source::<Ready>()
        .with_sink::<Nothing>();
    for (changes, sinks) in [(1, 1), (1, 3), (1000, 1), (1000, 3)] {
        CHANGES_PER_BATCH.store(changes, Ordering::Relaxed);
        // The source alone, to be taken off.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipeline.toml");
        let mut text = format!(
            "name = \"x\"\nstate.dir = {:?}\nsources.a = {{ type = \"ready\", script = \"\" }}\n",
            directory.path().join("state").display().to_string()
        );
        for sink in 0..sinks {
            text += &format!(
                "sinks.s{sink} = {{ type = \"nothing\", script = \"\", inputs = [\"a\"] }}\n"
            );
        }
        std::fs::write(&path, text).unwrap();
        let pipeline = load_with(&path, &registry, &Variables::new()).unwrap();
        let begun = Instant::now();
        let running = lockstep_pipelines::start(&pipeline, CancellationToken::new())
            .await
            .unwrap();
        running.wait().await.unwrap();
        let whole = begun.elapsed();
        let context = SourceContext {
            pipeline: "x".into(),
            name: "a".into(),
            state: directory.path().into(),
            feedback: lockstep_core::feedback::Feedback::default(),
            budget: lockstep_core::memory::Budget::new(32 << 20),
            status: lockstep_core::source::SourceStatus::default(),
            token: None,
        };
        let begun = Instant::now();
        let mut source = Ready::open(
            &Config {
                script: String::new(),
            },
            context,
        )
        .await
        .unwrap();
        while let Some(batch) = source.next().await.unwrap() {
            std::hint::black_box(&batch);
        }
        let nanos = whole.saturating_sub(begun.elapsed()).as_nanos() as u64 / BATCHES;
        println!(
            "{changes} changes a batch, {sinks} sinks: {nanos} ns per batch, {} ns per change",
            nanos / changes as u64
        );
    }
}

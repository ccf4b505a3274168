//! lockstep as a contender: one source, at most one sink, in a process of its own.

use std::path::PathBuf;
use std::sync::Arc;

use lockstep_core::batch::{Batch, Change, Op};
use lockstep_core::durable::{Delivered, Durable};
use lockstep_core::feedback::Feedback;
use lockstep_core::memory::Budget;
use lockstep_core::position::Lsn;
use lockstep_core::sink::{Sink, SinkContext, SinkFactory, Trouble};
use lockstep_core::source::{Source, SourceContext, SourceFactory, SourceStatus};
use lockstep_postgres::{PostgresConfig, PostgresFactory};
use lockstep_sink_file::{FileConfig, FileSinkFactory};
use lockstep_sink_kafka::{KafkaConfig, KafkaSinkFactory};
use lockstep_sink_rabbitmq::RabbitmqSinkFactory;
use lockstep_sink_redis::{RedisFactory, StreamFactory};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;

use crate::{Result, measure};

/// The product's default.
const MEMORY: usize = 32 << 20;

/// What to do.
#[derive(Serialize, Deserialize)]
pub struct Task {
    pub url: String,
    /// Also the publication's name.
    pub table: String,
    pub slot: String,
    /// How many to expect; it ends with the transaction that has the last of them.
    pub rows: u64,
    pub into: Destination,
    /// Copies the table instead of following the log.
    pub copy_workers: Option<u8>,
    /// `coalesce_micros`.
    pub nap: Option<u32>,
    /// An empty folder.
    pub state: PathBuf,
}

/// Where the changes go.
#[derive(Serialize, Deserialize)]
pub enum Destination {
    Nothing,
    File,
    Kafka {
        brokers: String,
        /// The envelope.
        format: String,
        /// Of the schemas, where it is in Avro.
        registry: Option<String>,
        exactly_once: bool,
        partitions: u16,
    },
    Redis {
        url: String,
    },
    RedisStream {
        url: String,
    },
    Rabbitmq {
        url: String,
    },
}

/// What a stream or a queue keeps: nobody reads it.
const KEPT: u32 = 10_000;

/// What it says on standard output when it is done.
#[derive(Serialize, Deserialize)]
pub struct Outcome {
    pub rows: u64,
    pub batches: u64,
    pub peak_kib: u64,
}

/// Runs a task.
pub async fn run(task: &str) -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let task: Task = serde_json::from_str(task)?;
    let feedback = Feedback::default();
    let mut source = open_source(&task, &feedback).await?;
    let (rows, batches) = match open_sink(&task, &*source).await? {
        None => {
            let mut drain = Drain::new(&task);
            while !drain.done {
                let batch = drain.next(&mut *source).await?;
                if let Some(through) = batch.through {
                    feedback.confirm(through);
                }
            }
            (drain.rows, drain.batches)
        }
        Some(sink) => into_sink(&task, &mut *source, sink, feedback.clone()).await?,
    };
    let peak_kib = measure::high_water_kib("self").unwrap_or(0);
    source.close().await?;
    let outcome = Outcome {
        rows,
        batches,
        peak_kib,
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

async fn open_source(task: &Task, feedback: &Feedback) -> Result<Box<dyn Source>> {
    let mut section = json!({
        "url": format!("{}?sslmode=disable", task.url),
        "slot": task.slot,
        "publication": task.table,
        "tables": [format!("public.{}", task.table)],
        "snapshot": if task.copy_workers.is_some() { "initial" } else { "never" },
    });
    if let Some(workers) = task.copy_workers {
        section["snapshot_workers"] = workers.into();
    }
    if let Some(micros) = task.nap {
        section["coalesce_micros"] = micros.into();
    }
    let config: PostgresConfig = serde_json::from_value(section)?;
    let context = SourceContext {
        pipeline: "bench".into(),
        name: "shop".into(),
        state: task.state.join("source").into(),
        feedback: feedback.clone(),
        budget: Budget::new(MEMORY),
        status: SourceStatus::default(),
        token: None,
    };
    std::fs::create_dir_all(&*context.state)?;
    PostgresFactory::validate(&config)?;
    Ok(PostgresFactory::open(&config, context).await?)
}

async fn open_sink(task: &Task, source: &dyn Source) -> Result<Option<Box<dyn Sink>>> {
    let context = SinkContext {
        pipeline: task.slot.as_str().into(),
        name: "sink".into(),
        state: task.state.join("sink"),
        sources: vec![source.info()],
        tables: source.tables(),
        trouble: Trouble::default(),
        token: None,
    };
    std::fs::create_dir_all(&context.state)?;
    Ok(match &task.into {
        Destination::Nothing => None,
        Destination::File => {
            let path = task.state.join("{table}.jsonl");
            let config: FileConfig =
                serde_json::from_value(json!({ "path": path, "format": "debezium" }))?;
            FileSinkFactory::validate(&config)?;
            Some(FileSinkFactory::open(&config, context).await?)
        }
        Destination::Kafka {
            brokers,
            format,
            registry,
            exactly_once,
            partitions,
        } => {
            let mut config = json!({
                "brokers": brokers,
                "topic": format!("{}.{{table}}", task.slot),
                "format": format,
                "exactly_once": exactly_once,
                "partitions": partitions,
            });
            if let Some(url) = registry {
                config["encoding"] = "avro".into();
                config["registry"] = json!({ "url": url });
            }
            let config: KafkaConfig = serde_json::from_value(config)?;
            KafkaSinkFactory::validate(&config)?;
            Some(KafkaSinkFactory::open(&config, context).await?)
        }
        Destination::Redis { url } => {
            let key = format!("{}:{{table}}:{{key}}", task.slot);
            let config = serde_json::from_value(json!({ "url": url, "key": key }))?;
            RedisFactory::validate(&config)?;
            Some(RedisFactory::open(&config, context).await?)
        }
        Destination::RedisStream { url } => {
            let stream = format!("{}:{{table}}", task.slot);
            let section = json!({ "url": url, "stream": stream, "max_length": KEPT });
            let config = serde_json::from_value(section)?;
            StreamFactory::validate(&config)?;
            Some(StreamFactory::open(&config, context).await?)
        }
        Destination::Rabbitmq { url } => {
            let queue = format!("{}.{{table}}", task.slot);
            let arguments = json!({ "x-max-length": KEPT, "x-overflow": "drop-head" });
            let config = serde_json::from_value(json!({
                "url": url,
                "exchange": "",
                "routing_key": queue,
                "declare": { "queues": [{ "name": queue, "arguments": arguments }] },
            }))?;
            RabbitmqSinkFactory::validate(&config)?;
            Some(RabbitmqSinkFactory::open(&config, context).await?)
        }
    })
}

/// Counts what comes.
struct Drain {
    expected: u64,
    copying: bool,
    rows: u64,
    batches: u64,
    /// The transaction with the last of the rows is complete.
    done: bool,
}

impl Drain {
    fn new(task: &Task) -> Self {
        Drain {
            expected: task.rows,
            copying: task.copy_workers.is_some(),
            rows: 0,
            batches: 0,
            done: false,
        }
    }

    async fn next(&mut self, source: &mut dyn Source) -> Result<Batch> {
        let batch = source.next().await?.ok_or("the source ended")?;
        // A copy that is made again begins with a TRUNCATE, which is no row.
        let rows = |change: &&Change| !matches!(change.op, Op::Truncate | Op::Message | Op::Event);
        self.rows += batch.changes().iter().filter(rows).count() as u64;
        self.batches += 1;
        self.done = self.rows >= self.expected && (self.copying || batch.through.is_some());
        Ok(batch)
    }
}

/// Writes every batch and confirms it when it is durable, as the runtime does.
async fn into_sink(
    task: &Task,
    source: &mut dyn Source,
    mut sink: Box<dyn Sink>,
    feedback: Feedback,
) -> Result<(u64, u64)> {
    let (sender, mut receipts) = mpsc::unbounded_channel::<(Durable, Option<Lsn>)>();
    let confirming = tokio::spawn(async move {
        let mut total = Delivered::default();
        while let Some((durable, through)) = receipts.recv().await {
            total += durable.await?;
            if let Some(through) = through {
                feedback.confirm(through);
            }
        }
        Ok::<Delivered, lockstep_core::Error>(total)
    });
    let mut drain = Drain::new(task);
    while !drain.done {
        let batch = drain.next(source).await?;
        let through = batch.through;
        let durable = sink.write(Arc::new(batch)).await?;
        sender
            .send((durable, through))
            .map_err(|_| "a batch did not become durable")?;
    }
    sink.flush().await?;
    drop(sender);
    let total = confirming.await??;
    sink.close().await?;
    if total.written < drain.rows {
        return Err(format!("{} records for {} rows", total.written, drain.rows).into());
    }
    Ok((drain.rows, drain.batches))
}

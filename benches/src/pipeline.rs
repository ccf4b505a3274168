//! A whole pipeline, from PostgreSQL to Redis or into files, in a process of its own.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use lockstep_core::metrics::{Metric, STITCH_DECIDED, STITCH_HOLD};
use lockstep_core::position::Lsn;
use lockstep_core::source::SourcePhase;
use lockstep_kit::postgres::Database;
use lockstep_kit::redis::Redis;
use lockstep_pipelines::{Handle, Reconcile, ReconcileRequest, Registry};
use lockstep_postgres::PostgresFactory;
use lockstep_sink_file::FileSinkFactory;
use lockstep_sink_redis::RedisFactory;
use lockstep_transforms::Stitch;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{Result, measure};

/// What the process says once it streams.
const READY: &str = "ready";
/// Between two looks at what it does.
const LOOK: Duration = Duration::from_millis(10);

/// One that streams.
pub struct Pipeline {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// What a pipeline is asked for.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    /// To compare.
    Compare(ReconcileRequest),
    /// To say when everything up to these places of its sources is durable.
    Durable(Vec<(String, Lsn)>),
    /// How long branches were held back.
    Hold,
}

/// How long branches were held back, all together: upper ends of buckets in seconds, and how many were not longer.
pub type Hold = Vec<(f64, u64)>;

/// How long branches were held back.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Held {
    /// How many for how long.
    pub hold: Hold,
    /// Seconds, all together.
    pub seconds: f64,
}

/// A comparison that has ended.
#[derive(Debug, Serialize, Deserialize)]
pub struct Compared {
    pub seconds: f64,
    pub reconcile: Reconcile,
}

impl Pipeline {
    /// Starts this program again as a pipeline, and waits until it streams.
    ///
    /// # Errors
    /// When it ends before.
    pub async fn start(
        database: &Database,
        tables: &[&str],
        redis: &Redis,
        folder: &Path,
    ) -> Result<Self> {
        let tables: Vec<String> = tables
            .iter()
            .map(|name| format!("\"public.{name}\""))
            .collect();
        let text = format!(
            "name = \"bench\"\n[state]\ndir = \"{}\"\n\
             [sources.shop]\ntype = \"postgres\"\nurl = \"{}?sslmode=disable\"\ntables = [{}]\n\
             [sinks.cache]\ntype = \"redis\"\ninputs = [\"shop\"]\nurl = \"{}\"\nkey = \"bench:{{table}}:{{key}}\"\n",
            folder.join("state").display(),
            database.url(),
            tables.join(", "),
            redis.url()
        );
        Self::start_file(&text, folder).await
    }

    /// Starts this program again as the pipeline of this file, and waits until it streams.
    ///
    /// # Errors
    /// When it ends before.
    pub async fn start_file(text: &str, folder: &Path) -> Result<Self> {
        let file = folder.join("pipeline.toml");
        std::fs::write(&file, text)?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("pipeline")
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take().ok_or("no input")?;
        let output = child.stdout.take().ok_or("no output")?;
        let mut output = BufReader::new(output).lines();
        match output.next_line().await? {
            Some(line) if line == READY => Ok(Pipeline {
                child,
                input,
                output,
            }),
            other => Err(format!("the pipeline did not start: {other:?}").into()),
        }
    }

    /// The most memory that it has had since its start or [`Pipeline::forget_peak`].
    pub fn peak_kib(&self) -> u64 {
        let process = self.child.id().unwrap_or_default().to_string();
        measure::high_water_kib(&process).unwrap_or(0)
    }

    /// Its memory counts from what it has now.
    ///
    /// # Errors
    /// Where the kernel does not let it be forgotten.
    pub fn forget_peak(&self) -> Result<()> {
        let process = self.child.id().unwrap_or_default();
        // See proc_pid_clear_refs(5): 5 resets VmHWM.
        Ok(std::fs::write(format!("/proc/{process}/clear_refs"), "5")?)
    }

    /// Lets it compare, and waits.
    ///
    /// # Errors
    /// When it does not.
    pub async fn compare(&mut self, request: &ReconcileRequest) -> Result<Compared> {
        self.ask(&Ask::Compare(request.clone())).await
    }

    /// Waits until everything up to these places of its sources is durable.
    ///
    /// # Errors
    /// When it ends before.
    pub async fn durable(&mut self, ends: Vec<(String, Lsn)>) -> Result<()> {
        self.ask(&Ask::Durable(ends)).await
    }

    /// How long branches were held back so far, and how long they would have been, had all gone on as soon as their branches were known.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn hold(&mut self) -> Result<[Held; 2]> {
        self.ask(&Ask::Hold).await
    }

    async fn ask<T: DeserializeOwned>(&mut self, ask: &Ask) -> Result<T> {
        let mut line = serde_json::to_string(ask)?;
        line.push('\n');
        self.input.write_all(line.as_bytes()).await?;
        let line = self.output.next_line().await?;
        Ok(serde_json::from_str(
            &line.ok_or("the pipeline has ended")?,
        )?)
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it does not end well.
    pub async fn end(mut self) -> Result<()> {
        // The end of its input asks it to.
        drop(self.input);
        let status = self.child.wait().await?;
        match status.success() {
            true => Ok(()),
            false => Err(format!("the pipeline ended with {status}").into()),
        }
    }
}

/// Runs a pipeline file in this process, says when it streams, does what it is asked to, and ends with its input.
///
/// # Errors
/// What ended the pipeline.
pub async fn run(file: &str) -> Result<()> {
    let registry = Registry::new()
        .with_source::<PostgresFactory>()
        .with_transform::<Stitch>()
        .with_sink::<FileSinkFactory>()
        .with_sink::<RedisFactory>();
    let pipeline = lockstep_pipelines::file::load(Path::new(file), &registry)
        .map_err(lockstep_core::Error::from)?;
    let stop = CancellationToken::new();
    let running = lockstep_pipelines::start(&pipeline, stop.clone()).await?;
    let handle = running.handle();
    let mut ended = std::pin::pin!(running.wait());
    let told = async {
        while !streams(&handle) {
            tokio::time::sleep(LOOK).await;
        }
        println!("{READY}");
        let mut input = input();
        while let Some(line) = input.recv().await {
            let answer = match serde_json::from_str(&line)? {
                Ask::Compare(request) => serde_json::to_string(&compare(&handle, request).await?)?,
                Ask::Durable(ends) => serde_json::to_string(&durable(&handle, &ends).await)?,
                Ask::Hold => serde_json::to_string(
                    &[STITCH_HOLD, STITCH_DECIDED].map(|metric| held(&handle, &metric)),
                )?,
            };
            println!("{answer}");
        }
        Result::<()>::Ok(())
    };
    tokio::select! {
        ended = &mut ended => return Ok(ended?),
        told = told => told?,
    }
    stop.cancel();
    Ok(ended.await?)
}

/// The lines of the input.
fn input() -> mpsc::UnboundedReceiver<String> {
    let (sender, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            // Whoever reads them may have gone.
            let _ = sender.send(line);
        }
    });
    lines
}

async fn compare(handle: &Handle, request: ReconcileRequest) -> Result<Compared> {
    let begun = Instant::now();
    let id = handle.reconcile(request)?;
    loop {
        let done = handle
            .reconciles()
            .into_iter()
            .find(|one| one.id == id && one.done);
        if let Some(reconcile) = done {
            let seconds = begun.elapsed().as_secs_f64();
            return Ok(Compared { seconds, reconcile });
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn durable(handle: &Handle, ends: &[(String, Lsn)]) {
    let is_durable = |(source, end): &(String, Lsn)| {
        let sinks = handle.visible(source, *end).unwrap_or_default();
        !sinks.is_empty() && sinks.values().all(|visible| *visible)
    };
    while !ends.iter().all(is_durable) {
        tokio::time::sleep(LOOK).await;
    }
}

fn held(handle: &Handle, metric: &Metric) -> Held {
    let families = handle.metrics().registry().gather();
    let family = families.iter().find(|family| family.name() == metric.name);
    let metric = family.and_then(|family| family.get_metric().first());
    let Some(metric) = metric else {
        return Held::default();
    };
    let histogram = metric.get_histogram();
    let buckets = histogram.get_bucket().iter();
    let mut hold: Hold = buckets
        .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()))
        .collect();
    hold.push((f64::MAX, histogram.get_sample_count()));
    let seconds = histogram.get_sample_sum();
    Held { hold, seconds }
}

fn streams(handle: &Handle) -> bool {
    let status = handle.status();
    let mut sources = status.sources.values();
    status.ready && sources.all(|source| source.state.phase == SourcePhase::Streaming)
}

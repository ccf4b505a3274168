//! A whole pipeline, from PostgreSQL to Redis, in a process of its own.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use lockstep_core::source::SourcePhase;
use lockstep_kit::postgres::Database;
use lockstep_kit::redis::Redis;
use lockstep_pipelines::{Handle, Reconcile, ReconcileRequest, Registry};
use lockstep_postgres::PostgresFactory;
use lockstep_sink_redis::RedisFactory;
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
        let file = folder.join("pipeline.toml");
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
        let mut line = serde_json::to_string(request)?;
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

/// Runs a pipeline file in this process, says when it streams, compares when it is asked to, and ends with its input.
///
/// # Errors
/// What ended the pipeline.
pub async fn run(file: &str) -> Result<()> {
    let registry = Registry::new()
        .with_source::<PostgresFactory>()
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
            let compared = compare(&handle, serde_json::from_str(&line)?).await?;
            println!("{}", serde_json::to_string(&compared)?);
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

fn streams(handle: &Handle) -> bool {
    let status = handle.status();
    let mut sources = status.sources.values();
    status.ready && sources.all(|source| source.state.phase == SourcePhase::Streaming)
}

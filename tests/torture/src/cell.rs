//! One run: a workload, a fault, all sinks; then the look at what arrived.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lockstep_kit::postgres::Database;
use lockstep_kit::{Random, unique};

use crate::check::{Begin, Checked, Counts, Place, check};
use crate::fault::{Fault, Faults};
use crate::lockstep::Lockstep;
use crate::servers::Servers;
use crate::sinks::{Sink, pipeline};
use crate::workload::{self, Load, TABLES, Tally, Workload};

/// How long the beginning may take on a busy machine.
const BEGIN: Duration = Duration::from_secs(90);
/// From the end of the last fault to everything being there. It holds the longest pause between two tries, and the wait
/// for an answer that does not come.
const DRAIN: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(45);
const TAIL: usize = 25;

/// A workload under a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// What is written.
    pub workload: Workload,
    /// What goes wrong.
    pub fault: Fault,
}

impl Cell {
    /// As on the command line.
    pub fn name(&self) -> String {
        format!("{}/{}", self.workload.name(), self.fault.name())
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Which one.
    pub cell: Cell,
    /// Of this run alone.
    pub seed: u64,
    /// Faults that were injected, one line each.
    pub faults: Vec<String>,
    /// What the writers did.
    pub tally: Tally,
    /// What was read, and what is wrong with it.
    pub checked: Checked,
    /// What else went wrong: it ended by itself, did not drain, did not stop, cannot be read.
    pub troubles: Vec<String>,
    /// From the last fault to everything being in every sink.
    pub drained: Duration,
    /// Altogether.
    pub took: Duration,
    /// Kept when something is wrong.
    pub folder: PathBuf,
}

impl Outcome {
    /// Of all sinks.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for findings in self.checked.sinks.values() {
            counts.add(&findings.counts);
        }
        counts
    }

    /// Whether everything is as it should be.
    pub fn is_right(&self) -> bool {
        self.counts().is_zero() && self.troubles.is_empty()
    }

    /// All about it, for people.
    pub fn story(&self) -> String {
        let mut story = format!(
            "{} with seed {}: {} faults, {} changes, {}\n",
            self.cell.name(),
            self.seed,
            self.faults.len(),
            self.checked.changes,
            self.counts()
        );
        for trouble in &self.troubles {
            story += &format!("  {trouble}\n");
        }
        for (sink, findings) in &self.checked.sinks {
            if !findings.counts.is_zero() {
                story += &format!("  {sink}: {}\n", findings.counts);
            }
            for example in &findings.examples {
                story += &format!("    {example}\n");
            }
        }
        for fault in &self.faults {
            story += &format!("  fault: {fault}\n");
        }
        story += &format!(
            "  writers: {} committed, {} failed, {:?}\n  folder: {}\n  repeat: make torture TORTURE='--only {} --seed {}'\n",
            self.tally.committed,
            self.tally.failed,
            self.tally.last,
            self.folder.display(),
            self.cell.name(),
            self.seed
        );
        story
    }
}

/// What a run is made with.
#[derive(Debug)]
pub struct Bench<'a> {
    /// The servers.
    pub servers: &'a Servers,
    /// The command under test.
    pub program: &'a Path,
    /// Where runs have their folders.
    pub root: &'a Path,
    /// Which sinks.
    pub sinks: &'a [Sink],
}

/// Runs a cell.
///
/// # Panics
/// When a server cannot be brought back, or a file cannot be written: then there is nothing to be said about lockstep.
pub async fn run(bench: &Bench<'_>, cell: Cell, seed: u64) -> Outcome {
    let began = Instant::now();
    let name = unique("torture");
    let folder = bench.root.join(&name);
    fs::create_dir_all(&folder).expect("the folder of runs can be written");
    let database = bench.servers.postgres.database("torture").await;
    workload::create(&database, cell.workload.rows_at_first()).await;
    let text = pipeline(&name, &folder, &database, bench.servers, bench.sinks);
    fs::write(folder.join("pipeline.toml"), text).expect("the folder can be written");
    let mut run = Run {
        bench,
        cell,
        random: Random::seeded(seed),
        lockstep: Lockstep::new(bench.program.into(), folder.clone()),
        database: &database,
        troubles: Vec::new(),
    };
    run.begin(&name).await;
    let (faults, tally) = run.torture().await;
    let since = Instant::now();
    run.drain().await;
    let drained = since.elapsed();
    run.stop().await;
    let checked = run.check(&name).await;
    let outcome = Outcome {
        cell,
        seed,
        faults,
        tally,
        checked,
        troubles: run.troubles,
        drained,
        took: began.elapsed(),
        folder: folder.clone(),
    };
    clean(bench, &name).await;
    if outcome.is_right() {
        // What stays is in the way of nobody.
        let _ = fs::remove_dir_all(&folder);
    } else {
        let _ = fs::write(folder.join("story.txt"), outcome.story());
    }
    outcome
}

struct Run<'a> {
    bench: &'a Bench<'a>,
    cell: Cell,
    random: Random,
    lockstep: Lockstep,
    database: &'a Database,
    troubles: Vec<String>,
}

impl Run<'_> {
    /// Starts lockstep, and waits for the moment from which on every commit is in its stream.
    async fn begin(&mut self, name: &str) {
        self.lockstep.start();
        if self.cell.workload == Workload::FirstCopy {
            let sql = format!(
                "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{name}'"
            );
            lockstep_kit::wait_for(BEGIN, format!("the slot {name}"), async || {
                self.database.value(&sql).await
            })
            .await;
        } else if !self
            .lockstep
            .says("the copy is durable in every sink", BEGIN)
            .await
        {
            self.trouble("the initial copy did not end");
        }
    }

    async fn torture(&mut self) -> (Vec<String>, Tally) {
        let load = Load::start(self.cell.workload, self.database.url(), &mut self.random);
        let fork = self.random.fork();
        let mut faults = Faults::new(self.cell.fault, self.bench.servers, fork);
        let mut injected = Vec::new();
        for _ in 0..self.cell.fault.times() {
            injected.push(faults.inject(&mut self.lockstep).await);
            self.still_runs();
        }
        (injected, load.stop().await)
    }

    /// One that ended by itself is a trouble, and started again.
    fn still_runs(&mut self) {
        if !self.lockstep.runs() {
            let status = self.lockstep.ended.last().map(|(_, status)| *status);
            self.trouble(&format!("it ended by itself: {status:?}"));
            self.lockstep.start();
        }
    }

    async fn drain(&mut self) {
        let lsn = self
            .database
            .value("SELECT pg_current_wal_flush_lsn()")
            .await;
        let lsn = lsn.expect("a server has an LSN");
        let Err(seen) = self.lockstep.visible(&lsn, DRAIN).await else {
            return;
        };
        let status = self.lockstep.get("/api/status").await.unwrap_or_default();
        self.trouble(&format!("not drained up to {lsn}: {seen}; {status}"));
        // Whether a restart helps tells what is lost from what is only late.
        self.lockstep.start();
        if let Err(seen) = self.lockstep.visible(&lsn, DRAIN).await {
            self.trouble(&format!("nor after a restart: {seen}"));
        }
    }

    async fn stop(&mut self) {
        match self.lockstep.terminate(STOP).await {
            Some(status) if status.success() => {}
            other => self.trouble(&format!("SIGTERM ended it with {other:?}")),
        }
    }

    async fn check(&mut self, name: &str) -> Checked {
        let begin = match self.cell.workload {
            Workload::FirstCopy => Begin::LastCopy,
            _ => Begin::FirstCopy,
        };
        let place = Place {
            name,
            folder: self.lockstep.folder(),
            database: self.database,
            servers: self.bench.servers,
        };
        match check(&place, self.bench.sinks, begin).await {
            Ok(checked) => checked,
            Err(error) => {
                self.trouble(&format!("cannot be read: {error}"));
                Checked::default()
            }
        }
    }

    fn trouble(&mut self, what: &str) {
        let tail = self.lockstep.tail(TAIL).replace('\n', "\n      ");
        self.troubles.push(format!("{what}\n      {tail}"));
    }
}

/// Removes what a run leaves on the servers: they stay fast.
async fn clean(bench: &Bench<'_>, name: &str) {
    // What cannot be removed is a burden and no harm: names are never used again.
    let _ = bench.servers.redis.command(&["FLUSHALL"]).await;
    for table in TABLES {
        let path = format!("/{name}-{table}");
        let _ = bench.servers.opensearch.request("DELETE", &path, "").await;
    }
    crate::topics::remove(bench.servers.kafka.bootstrap(), name).await;
}

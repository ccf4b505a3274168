//! One run: a workload, a fault, all sinks; then the look at what arrived.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use lockstep_kit::disk::SmallDisk;
use lockstep_kit::postgres::Database;
use lockstep_kit::{Random, unique};

use crate::check::{Begin, Checked, Counts, Place, check};
use crate::contestant::{Contestant, Subject};
use crate::debezium::Debezium;
use crate::fault::{Fault, Faults, Own, STOP};
use crate::lockstep::Lockstep;
use crate::servers::Servers;
use crate::sinks::{Sink, pipeline};
use crate::workload::{self, Load, TABLES, Tally, Workload};

/// From the end of the last fault to everything being there. It holds the longest pause between two tries, and the wait
/// for an answer that does not come, on a machine that has other work.
const DRAIN: Duration = Duration::from_secs(300);
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
    /// Whose.
    pub contestant: Contestant,
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
            "{} {} with seed {}: {} faults, {} changes, {}\n",
            self.contestant,
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
            "  writers: {} committed, {} failed, {:?}\n  folder: {}\n  repeat: make torture TORTURE='--only {} --seed {} --contestants {}'\n",
            self.tally.committed,
            self.tally.failed,
            self.tally.last,
            self.folder.display(),
            self.cell.name(),
            self.seed,
            self.contestant
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
    /// Whether the folders of peers' runs go although something is wrong: that is expected of them, and there are many.
    pub forget_peers: bool,
}

/// Runs a cell.
///
/// # Panics
/// When a server cannot be brought back, or a file cannot be written: then there is nothing to be said about anybody.
pub async fn run(bench: &Bench<'_>, contestant: Contestant, cell: Cell, seed: u64) -> Outcome {
    let began = Instant::now();
    let name = unique("torture");
    let folder = bench.root.join(&name);
    fs::create_dir_all(&folder).expect("the folder of runs can be written");
    let database = bench.servers.postgres.database("torture").await;
    workload::create(&database, cell.workload.rows_at_first()).await;
    let own = Own::new(cell.fault, &folder);
    let subject = match contestant {
        Contestant::Lockstep => {
            let data = own.disk.as_ref().map_or(&*folder, SmallDisk::path);
            let text = pipeline(&name, data, &database, bench.servers, bench.sinks);
            fs::write(folder.join("pipeline.toml"), text).expect("the folder can be written");
            let (disk, clock) = (own.disk.as_ref(), own.clock.as_ref());
            Subject::Lockstep(Lockstep::new(bench.program, folder.clone(), disk, clock))
        }
        Contestant::Debezium | Contestant::DebeziumWithTransactions => {
            let with_transactions = contestant == Contestant::DebeziumWithTransactions;
            let folder = folder.clone();
            let debezium =
                Debezium::new(&name, folder, &database, bench.servers, with_transactions);
            Subject::Debezium(debezium)
        }
    };
    let mut run = Run {
        bench,
        contestant,
        cell,
        random: Random::seeded(seed),
        subject,
        own: &own,
        name: &name,
        folder: &folder,
        database: &database,
        troubles: Vec::new(),
    };
    run.begin().await;
    let (faults, tally) = run.torture().await;
    let since = Instant::now();
    run.drain().await;
    let drained = since.elapsed();
    run.stop().await;
    let checked = run.check().await;
    let outcome = Outcome {
        contestant,
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
    clean(bench, &contestant.topics(&name), &name).await;
    if outcome.is_right() || contestant != Contestant::Lockstep && bench.forget_peers {
        // What stays is in the way of nobody.
        let _ = fs::remove_dir_all(&folder);
    } else {
        let _ = fs::write(folder.join("story.txt"), outcome.story());
    }
    outcome
}

struct Run<'a> {
    bench: &'a Bench<'a>,
    contestant: Contestant,
    cell: Cell,
    random: Random,
    subject: Subject,
    own: &'a Own,
    name: &'a str,
    folder: &'a Path,
    database: &'a Database,
    troubles: Vec<String>,
}

impl Run<'_> {
    async fn begin(&mut self) {
        let begun = self
            .subject
            .begin(self.cell.workload, self.name, self.database);
        if let Err(what) = begun.await {
            self.trouble(&what);
        }
    }

    async fn torture(&mut self) -> (Vec<String>, Tally) {
        let (url, more) = (self.database.url(), self.contestant.rounds());
        let load = Load::start(self.cell.workload, url, &mut self.random, more);
        let whose = (self.contestant, self.cell.workload);
        let fork = self.random.fork();
        let servers = self.bench.servers;
        let mut faults = Faults::new(self.cell.fault, whose, self.name, servers, self.own, fork);
        let mut injected = Vec::new();
        for _ in 0..self.cell.fault.times(self.contestant) {
            injected.push(faults.inject(&mut self.subject).await);
            if let Some(what) = self.subject.revived().await {
                self.trouble(&what);
            }
        }
        faults.end();
        (injected, load.stop().await)
    }

    async fn drain(&mut self) {
        let Err(seen) = self.subject.caught_up(self.database, DRAIN).await else {
            return;
        };
        self.trouble(&seen);
        // Whether a restart helps tells what is lost from what is only late.
        self.subject.program().start();
        if let Err(seen) = self.subject.caught_up(self.database, DRAIN).await {
            self.trouble(&format!("nor after a restart: {seen}"));
        }
    }

    async fn stop(&mut self) {
        let status = self.subject.program().terminate(STOP).await;
        // A Java virtual machine ends so when it is asked to.
        let of_signal = |status: &ExitStatus| status.code() == Some(128 + 15);
        match status {
            Some(status) if status.success() => {}
            Some(status) if self.contestant != Contestant::Lockstep && of_signal(&status) => {}
            other => self.trouble(&format!("SIGTERM ended it with {other:?}")),
        }
    }

    async fn check(&mut self) -> Checked {
        let begin = match self.cell.workload {
            Workload::FirstCopy => Begin::LastCopy,
            _ => Begin::FirstCopy,
        };
        let topics = self.contestant.topics(self.name);
        if let Some(disk) = &self.own.disk {
            // Out of the disk's namespace, which not every reader enters.
            let copied = Command::new("cp")
                .arg("-rT")
                .arg(disk.seen())
                .arg(self.folder)
                .status();
            assert!(copied.is_ok_and(|status| status.success()), "cp -r failed");
        }
        let place = Place {
            name: self.name,
            topics: &topics,
            folder: self.folder,
            database: self.database,
            servers: self.bench.servers,
        };
        let sinks = match self.contestant {
            Contestant::Lockstep => self.bench.sinks,
            _ => &[Sink::Kafka],
        };
        match check(&place, sinks, begin).await {
            Ok(checked) => checked,
            Err(error) => {
                self.trouble(&format!("cannot be read: {error}"));
                Checked::default()
            }
        }
    }

    fn trouble(&mut self, what: &str) {
        let tail = self.subject.program().tail(TAIL).replace('\n', "\n      ");
        self.troubles.push(format!("{what}\n      {tail}"));
    }
}

/// Removes what a run leaves on the servers: they stay fast.
async fn clean(bench: &Bench<'_>, topics: &str, name: &str) {
    // What cannot be removed is a burden and no harm: names are never used again.
    let _ = bench.servers.redis.command(&["FLUSHALL"]).await;
    for table in TABLES {
        let path = format!("/{name}-{table}");
        let _ = bench.servers.opensearch.request("DELETE", &path, "").await;
    }
    crate::topics::remove(bench.servers.kafka.bootstrap(), topics).await;
}

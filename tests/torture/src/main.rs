//! `lockstep-torture`: runs cells until the time is over, tells what is wrong, and writes the page about it.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command talks to its terminal"
)]

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use lockstep_torture::cell::{Bench, Cell, Outcome, run};
use lockstep_torture::contestant::{CONTESTANTS, Contestant};
use lockstep_torture::fault::Fault;
use lockstep_torture::lockstep::program;
use lockstep_torture::plan;
use lockstep_torture::report::{Circumstances, Report, replaced};
use lockstep_torture::servers::Servers;
use lockstep_torture::sinks::{SINKS, Sink};

/// Breaks everything around lockstep at random moments, and counts what is lost, doubled, reordered or stale; and does the
/// same to Debezium.
#[derive(Debug, Parser)]
#[command(name = "lockstep-torture")]
struct Options {
    /// Begins no run after so many minutes.
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// Decides the order of the cells and all that is random in them; by default the clock does.
    #[arg(long)]
    seed: Option<u64>,
    /// Only this cell, with the seed that a failure told: `keys/black-hole`.
    #[arg(long, value_name = "WORKLOAD/FAULT", value_parser = plan::named)]
    only: Option<Cell>,
    /// Runs of the cell of `--only`.
    #[arg(long, default_value_t = 1)]
    times: u32,
    /// Who is tortured, separated by commas: with `debezium` beside `lockstep`, it gets two fifths of the time.
    #[arg(long, value_delimiter = ',', value_parser = contestant, default_value = "lockstep")]
    contestants: Vec<Contestant>,
    /// Only these sinks of lockstep, separated by commas.
    #[arg(long, value_delimiter = ',', value_parser = sink)]
    sinks: Vec<Sink>,
    /// The page that gets the result of anything but `--only`.
    #[arg(long, value_name = "FILE", default_value = "docs/reliability.md")]
    report: PathBuf,
    /// Where a run that went wrong is kept.
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

fn sink(name: &str) -> Result<Sink, String> {
    let found = SINKS.into_iter().find(|sink| sink.name() == name);
    found.ok_or_else(|| {
        let names = SINKS.map(Sink::name).join(", ");
        format!("there is no sink {name:?}; there are {names}")
    })
}

fn contestant(name: &str) -> Result<Contestant, String> {
    let found = CONTESTANTS.into_iter().find(|one| one.name() == name);
    found.ok_or_else(|| {
        let names = CONTESTANTS.map(Contestant::name).join(", ");
        format!("there is no contestant {name:?}; there are {names}")
    })
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    match torture(&options).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lockstep-torture: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn torture(options: &Options) -> std::io::Result<bool> {
    let program = program()?;
    let seed = options.seed.unwrap_or_else(from_clock);
    let root = options.keep.clone().unwrap_or_else(|| {
        std::env::temp_dir().join(format!("lockstep-torture.{}", std::process::id()))
    });
    std::fs::create_dir_all(&root)?;
    let sinks = match options.sinks.as_slice() {
        [] => SINKS.to_vec(),
        some => some.to_vec(),
    };
    let servers = Servers::start().await;
    let versions = servers.versions().await;
    println!("seed {seed}; {versions}; {}", version(&program));
    let bench = Bench {
        servers: &servers,
        program: &program,
        root: &root,
        sinks: &sinks,
        forget_peers: options.only.is_none(),
    };
    let mut progress = Progress::new(options);
    let mut report = Report::default();
    let began = Instant::now();
    let mut plan = Plan::new(options, seed);
    while let Some((contestant, cell, seed)) = plan.next(report.peers_took(), began.elapsed()) {
        if report.runs() > 0 && options.only.is_none() && began.elapsed() > progress.whole {
            break;
        }
        progress.begins(&report, &cell);
        let outcome = run(&bench, contestant, cell, seed).await;
        progress.ends(&outcome);
        report.add(outcome);
    }
    println!("\n{}", report.tables());
    for outcome in report.wrong() {
        println!("{}", outcome.story());
    }
    if options.only.is_none() {
        let about = Circumstances {
            seed,
            took: began.elapsed(),
            servers: versions,
            lockstep: version(&program),
            sinks: sinks
                .iter()
                .map(|sink| sink.name())
                .collect::<Vec<_>>()
                .join(", "),
            day: today(),
        };
        write_page(&options.report, &report.section(&about))?;
        println!("written to {}", options.report.display());
    }
    if report.is_right() && options.keep.is_none() {
        std::fs::remove_dir_all(&root)?;
    }
    Ok(report.is_right())
}

/// What is run, one after the other: round after round, until the time ends it.
struct Plan {
    cells: Box<dyn Iterator<Item = (Contestant, Cell, u64)>>,
    peers: Option<Box<dyn Iterator<Item = (Contestant, Cell, u64)>>>,
}

impl Plan {
    fn new(options: &Options, seed: u64) -> Self {
        let contestants = options.contestants.clone();
        if let Some(cell) = options.only {
            let each = (0..options.times).flat_map(move |time| {
                let all = contestants.clone().into_iter();
                all.map(move |one| (one, cell, seed + u64::from(time)))
            });
            return Self {
                cells: Box::new(each),
                peers: None,
            };
        }
        let peers = contestants
            .contains(&Contestant::Debezium)
            .then(|| Box::new(plan::of_peers(seed)) as Box<_>);
        let alone = !contestants.contains(&Contestant::Lockstep);
        let has_disk = Fault::Disk.is_possible();
        if !has_disk {
            println!("NOT RUN: disk-full, since no disk can be mounted here");
        }
        let cells = (0..).flat_map(move |number| plan::round(seed, number));
        let cells = cells.filter(move |(cell, _)| has_disk || cell.fault != Fault::Disk);
        let cells = cells.map(|(cell, seed)| (Contestant::Lockstep, cell, seed));
        Self {
            cells: if alone {
                Box::new(std::iter::empty())
            } else {
                Box::new(cells)
            },
            peers,
        }
    }

    /// The next one: a peer's, while those have had less than two fifths of the time.
    fn next(&mut self, peers_took: Duration, took: Duration) -> Option<(Contestant, Cell, u64)> {
        match &mut self.peers {
            Some(peers) if peers_took * 5 < took * 2 => peers.next(),
            Some(peers) => self.cells.next().or_else(|| peers.next()),
            None => self.cells.next(),
        }
    }
}

/// A line that is written over on a terminal, and a line per run.
struct Progress {
    live: bool,
    began: Instant,
    whole: Duration,
}

impl Progress {
    fn new(options: &Options) -> Self {
        Self {
            live: std::io::stdout().is_terminal(),
            began: Instant::now(),
            whole: Duration::from_secs_f64(options.minutes * 60.0),
        }
    }

    fn begins(&self, report: &Report, cell: &Cell) {
        if self.live {
            print!(
                "\r\x1b[K{} of {} min, {} runs, {} faults, {} wrong; now {}",
                self.began.elapsed().as_secs() / 60,
                self.whole.as_secs() / 60,
                report.runs(),
                report.faults(),
                report.wrong().count(),
                cell.name()
            );
            // A terminal that is gone is nobody's loss.
            let _ = std::io::stdout().flush();
        }
    }

    fn ends(&mut self, outcome: &Outcome) {
        let clear = if self.live { "\r\x1b[K" } else { "" };
        let right = outcome.is_right();
        if right && self.live {
            return;
        }
        println!(
            "{clear}{} {} {:<22} seed {:<10} {} faults, {:>6} changes, {}, {} troubles, drained in {:.1} s, took {:.1} s",
            if right { "✓" } else { "✗" },
            outcome.contestant,
            outcome.cell.name(),
            outcome.seed,
            outcome.faults.len(),
            outcome.checked.changes,
            outcome.counts(),
            outcome.troubles.len(),
            outcome.drained.as_secs_f64(),
            outcome.took.as_secs_f64()
        );
        if outcome.contestant == Contestant::Lockstep {
            if !right {
                println!("{}", outcome.story());
            }
        } else {
            for trouble in &outcome.troubles {
                println!("    {}", trouble.lines().next().unwrap_or_default());
            }
            let of_sinks = outcome.checked.sinks.values();
            for example in of_sinks.flat_map(|findings| &findings.examples).take(2) {
                println!("    {example}");
            }
        }
    }
}

fn write_page(path: &Path, section: &str) -> std::io::Result<()> {
    let page = match std::fs::read_to_string(path) {
        Ok(page) => page,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "# Reliability\n".into(),
        Err(error) => return Err(error),
    };
    std::fs::write(path, replaced(&page, section))
}

fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let output = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    output.unwrap_or_default()
}

fn from_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(1, |since| since.as_secs() % 1_000_000)
}

/// By the civil calendar, from the days since 1970.
fn today() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let days = (since.as_secs() / 86_400) as i64 + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

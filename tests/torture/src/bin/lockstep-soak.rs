//! `lockstep-soak`: a steady load for long, while every sink is compared with the table without a pause; or purchases over two
//! clusters, while everything is killed at random and readers of the sinks look for a purchase that is not whole.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command talks to its terminal"
)]

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use lockstep_kit::postgres::Database;
use lockstep_torture::lockstep::{Lockstep, program};
use lockstep_torture::sinks::Sink;
use lockstep_torture::soak::load::{self, Load};
use lockstep_torture::soak::passes::Passes;
use lockstep_torture::soak::purchases::shop::Shop;
use lockstep_torture::soak::{self, Servers, purchases};
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// Writes at a steady pace and lets lockstep compare all its sinks with the table again and again: whatever it tells is wrong.
///
/// With --purchases it does something else: coordinators of four kinds and three real transaction managers buy over two clusters, they, the
/// clusters and lockstep are killed at random, and readers of Kafka, Redis and the embedded index look at every purchase.
#[derive(Debug, Parser)]
#[command(name = "lockstep-soak")]
struct Options {
    /// How long it writes.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Rows of the table.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// Changes per second, five to a transaction; 0 for none.
    #[arg(long, default_value_t = 2_000)]
    changes: u64,
    /// Only these sinks, separated by commas.
    #[arg(long, value_delimiter = ',', value_parser = sink)]
    sinks: Vec<Sink>,
    /// Decides which rows are written, and what is killed when.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Buys so often per second, and does nothing of the above. Of that each real manager has a twentieth, and 50 at most.
    #[arg(long)]
    purchases: Option<u64>,
    /// With --purchases: one line more for the section of the `stitch`, such as 'mode = "decision"'. Can be given several times.
    #[arg(long, value_name = "LINE")]
    stitch: Vec<String>,
    /// With --purchases: seconds between two kills, in the mean.
    #[arg(long, default_value_t = 5.0)]
    pause: f64,
    /// Where the log and the state are kept.
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

/// How long the first copy may take.
const COPY: Duration = Duration::from_secs(1_800);
/// How long it may take until all that was written has arrived.
const DRAIN: Duration = Duration::from_secs(600);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Between two lines that say how it goes.
const TELL: Duration = Duration::from_secs(30);
/// Articles that are bought: so many that few purchases wait for each other, and so few that each is bought again and again.
const ARTICLES: u64 = 500;
/// Rows that invariants read grow with the time.
const INVARIANTS_EVERY: &str = "20s";

fn sink(name: &str) -> Result<Sink, String> {
    let found = soak::SINKS.into_iter().find(|sink| sink.name() == name);
    found.ok_or_else(|| {
        let names = soak::SINKS.map(Sink::name).join(", ");
        format!("there is no sink {name:?} that can be compared; there are {names}")
    })
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Options::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lockstep-soak: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<bool, Box<dyn std::error::Error>> {
    let folder = options.keep.clone().unwrap_or_else(|| {
        std::env::temp_dir().join(format!("lockstep-soak.{}", std::process::id()))
    });
    std::fs::create_dir_all(&folder)?;
    if let Some(purchases) = options.purchases {
        return purchase(options, purchases, &folder).await;
    }
    let sinks = match options.sinks.as_slice() {
        [] => soak::SINKS.to_vec(),
        some => some.to_vec(),
    };
    let servers = Servers::start().await;
    println!("{}", servers.versions().await);
    let database = servers.postgres.database("soak").await;
    load::create(&database, options.rows).await;
    let file = soak::pipeline(&folder, &database, &servers, &sinks);
    std::fs::write(folder.join("pipeline.toml"), file)?;
    let mut lockstep = Lockstep::new(&program()?, folder.clone(), None, None);
    let began = Instant::now();
    lockstep.program.start();
    let there = lockstep.program.says("admin endpoint", LOOK * 30).await;
    if !there {
        return Err(lockstep.program.tail(20).into());
    }
    arrived(&mut lockstep, &database, COPY).await?;
    let copied = began.elapsed().as_secs_f64();
    println!("{} rows in every sink after {copied:.0} s", options.rows);

    let mut passes = Passes::behind(&ask(&lockstep, "/api/reconcile").await?);
    let told = load(options, &database, &mut lockstep, &mut passes).await;
    let (changes, rate) = told?;
    // What is under way when the load ends is compared without it.
    let behind = Instant::now();
    arrived(&mut lockstep, &database, DRAIN).await?;
    println!(
        "\n{changes} changes at {rate:.0}/s, the last of them everywhere after {:.1} s; {} passes, {} rows compared, {} undecided",
        behind.elapsed().as_secs_f64(),
        passes.ended,
        passes.compared(),
        passes.undecided
    );
    print!("{passes}");
    let ended = lockstep.program.terminate(DRAIN).await;
    let is_well = ended.is_some_and(|status| status.success());
    if !is_well {
        println!("it ended with {ended:?}:\n{}", lockstep.program.tail(20));
    }
    drop(lockstep);
    if options.keep.is_none() {
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(is_well && passes.are_clean())
}

/// The other soak: whether nothing was seen that may not be.
async fn purchase(
    options: &Options,
    purchases: u64,
    folder: &Path,
) -> Result<bool, Box<dyn std::error::Error>> {
    let shop = Shop::open(purchases::buyer()?, ARTICLES).await;
    println!("{}", shop.versions().await);
    let soak = purchases::Options {
        purchases,
        lasts: Duration::from_secs_f64(options.minutes * 60.0),
        pause: Duration::from_secs_f64(options.pause),
        articles: ARTICLES,
        stitch: options.stitch.join("\n"),
        invariants_every: INVARIANTS_EVERY.to_owned(),
        seed: options.seed,
        tell_every: Some(TELL),
    };
    let report = purchases::run(&soak, &shop, &program()?, folder).await?;
    print!("\n{report}");
    let is_clean = report.is_clean();
    if options.keep.is_none() && is_clean {
        std::fs::remove_dir_all(folder)?;
    } else {
        println!("the logs are in {}", folder.display());
    }
    Ok(is_clean)
}

/// Waits until every sink holds what the database holds now.
async fn arrived(
    lockstep: &mut Lockstep,
    database: &Database,
    deadline: Duration,
) -> Result<(), String> {
    let end = database.value("SELECT pg_current_wal_insert_lsn()").await;
    let end = end.ok_or("the server does not say where its log ends")?;
    let there = lockstep.visible("shop", &end, deadline).await;
    there.map_err(|seen| {
        format!(
            "not everything arrived: {seen}\n{}",
            lockstep.program.tail(20)
        )
    })
}

async fn ask(lockstep: &Lockstep, path: &str) -> Result<Value, String> {
    let answer = lockstep.get(path).await;
    let answer = answer.map_err(|error| format!("{path}: {error}"))?;
    serde_json::from_str(&answer).map_err(|error| format!("{path}: {error}"))
}

/// Writes until the time is over. Gives how many changes, and how many per second.
async fn load(
    options: &Options,
    database: &Database,
    lockstep: &mut Lockstep,
    passes: &mut Passes,
) -> Result<(u64, f64), String> {
    let end = Instant::now() + Duration::from_secs_f64(options.minutes * 60.0);
    let load = match options.changes {
        0 => None,
        changes => Some(Load::start(database, options.rows, changes, options.seed).await),
    };
    let mut load = load;
    let is_live = std::io::stdout().is_terminal();
    let mut told = Instant::now();
    while Instant::now() < end {
        sleep(LOOK).await;
        if !lockstep.program.runs() {
            return Err(format!(
                "lockstep has ended:\n{}",
                lockstep.program.tail(40)
            ));
        }
        if let Some(why) = load.as_mut().and_then(Load::ended) {
            return Err(format!("the load has ended: {why}"));
        }
        for (path, compared) in [("/api/reconcile", true), ("/api/status", false)] {
            let answer = ask(lockstep, path).await?;
            match compared {
                true => passes.take(&answer),
                false => passes.lags(&answer),
            }
        }
        if is_live || told.elapsed() > Duration::from_secs(60) {
            told = Instant::now();
            let left = end.saturating_duration_since(told).as_secs();
            let begin = if is_live { "\r\x1b[K" } else { "" };
            let stop = if is_live { "" } else { "\n" };
            print!(
                "{begin}{left} s left, {:.0} changes/s, {} passes, {} rows compared, {} differ, {} undecided, {} MB{stop}",
                load.as_ref().map_or(0.0, Load::rate),
                passes.ended,
                passes.compared(),
                passes.differing(),
                passes.undecided,
                lockstep.program.resident_kib().unwrap_or_default() / 1_000,
            );
            // A terminal that is gone is nobody's loss.
            let _ = std::io::stdout().flush();
        }
    }
    Ok(load.map_or((0, 0.0), |load| (load.changes(), load.rate())))
}

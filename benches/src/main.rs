//! Measures lockstep beside the server's own tools, on the same log: `make bench`.
//!
//! Each contender is a process of its own, so that its CPU time and memory are its own; lockstep's is this binary
//! started again as `drain`. See the README for what a row means.
// Its output is what it is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod compare;
mod contender;
mod drain;
mod latency;
mod machine;
mod measure;
mod pipeline;
mod report;
mod server;
mod stages;
mod stitch;
mod workload;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::contender::{Contender, Entry};
use crate::measure::Sample;
use crate::report::Results;
use crate::server::Servers;
use crate::workload::Workload;

/// As in the product.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Measures lockstep beside the server's own tools, on the same log.
#[derive(Parser)]
#[command(name = "lockstep-benches", args_conflicts_with_subcommands = true)]
struct Command {
    #[command(subcommand)]
    hidden: Option<Hidden>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Hidden {
    /// Runs one contender of ours in this process.
    #[command(hide = true)]
    Drain {
        /// The task, as JSON.
        task: String,
    },
    /// Runs a pipeline in this process.
    #[command(hide = true)]
    Pipeline {
        /// The pipeline file.
        file: String,
    },
}

#[derive(Args)]
struct Options {
    /// A tenth of the size: to see that everything runs, not for figures.
    #[arg(long)]
    quick: bool,
    /// How often each contender runs; medians are printed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Only rows whose `workload/contender` contains one of these texts, and `pg_recvlogical` beside them.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Major version of PostgreSQL.
    #[arg(long, default_value_t = 15)]
    postgres: u16,
    /// Naps between reads of a busy stream to compare, in microseconds; default: the product's.
    #[arg(long, value_delimiter = ',')]
    coalesce_micros: Vec<u32>,
}

fn main() -> ExitCode {
    let command = Command::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start a runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match command.hidden {
            Some(Hidden::Drain { task }) => drain::run(&task).await,
            Some(Hidden::Pipeline { file }) => pipeline::run(&file).await,
            None => bench(&command.options).await,
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is to be run: the workloads, each with its contenders.
fn plan(only: &[String]) -> Vec<(Workload, Vec<Contender>)> {
    let wanted = |workload: Workload, contender: Contender| {
        let name = format!("{}/{}", workload.name(), contender.name());
        only.is_empty() || only.iter().any(|text| name.contains(text.as_str()))
    };
    let mut plan = Vec::new();
    for workload in Workload::ALL {
        let yardstick = Contender::yardstick(workload);
        let mut contenders: Vec<Contender> = Contender::of(workload)
            .iter()
            .copied()
            .filter(|&contender| wanted(workload, contender))
            .collect();
        if contenders.is_empty() {
            continue;
        }
        if !contenders.contains(&yardstick) {
            contenders.insert(0, yardstick);
        }
        plan.push((workload, contenders));
    }
    plan
}

/// The contenders, those that read the stream ourselves once per nap.
fn entries(contenders: &[Contender], naps: &[u32]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for &contender in contenders {
        if contender.naps() && !naps.is_empty() {
            let nap = |&micros| Entry {
                contender,
                nap: Some(micros),
            };
            entries.extend(naps.iter().map(nap));
        } else {
            entries.push(Entry {
                contender,
                nap: None,
            });
        }
    }
    entries
}

async fn bench(options: &Options) -> Result<()> {
    let machine = machine::describe();
    println!("{machine}");
    let wanted = |name: &str| {
        options.only.is_empty() || options.only.iter().any(|text| name.contains(text.as_str()))
    };
    if wanted("memory") {
        stages::print(options.quick)?;
    }
    if wanted(latency::NAME) {
        latency::print(options.postgres, options.runs, options.quick).await?;
    }
    if wanted(compare::NAME) {
        compare::print(options.postgres, options.runs, options.quick).await?;
    }
    if wanted(stitch::NAME) {
        stitch::print(options.postgres, options.runs, options.quick).await?;
    }
    let plan = plan(&options.only);
    if plan.is_empty() {
        return Ok(());
    }
    let needs = |component| {
        let mut contenders = plan.iter().flat_map(|(_, contenders)| contenders);
        contenders.any(|contender| contender.needs().contains(&component))
    };
    let servers = Servers::start(options.postgres, needs).await?;
    println!(
        "PostgreSQL {}{}; {} runs each, in a new order every time; medians [range of rows/s]",
        servers.postgres_version(),
        servers.kafka_version(),
        options.runs
    );
    let mut results = Results::default();
    for (workload, contenders) in plan {
        let rows = workload.rows(options.quick);
        let loaded = servers.load(workload, rows).await?;
        for run in 0..options.runs {
            for entry in machine::shuffled(&entries(&contenders, &options.coalesce_micros)) {
                if !servers.can_run(entry.contender) {
                    continue;
                }
                let sample: Sample = servers
                    .run(&loaded, entry)
                    .await
                    .map_err(|error| format!("{}/{entry}: {error}", workload.name()))?;
                eprintln!(
                    "  run {} {:<8} {:<30} {:>8.0} rows/s  own {:.2} µs  server {:.2} µs  {:>4.0} MB  others {:.2} cores",
                    run + 1,
                    workload.name(),
                    entry.to_string(),
                    sample.rate(),
                    sample.own_micros(),
                    sample.server_micros(),
                    sample.peak_mb(),
                    sample.others
                );
                results.add(workload, entry, sample);
            }
        }
        servers.unload(&loaded).await;
    }
    print!("{results}");
    Ok(())
}

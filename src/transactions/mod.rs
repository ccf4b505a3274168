//! `lockstep transactions`: two-phase commits that are not decided.

mod evidence;
mod list;
mod resolve;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use lockstep_core::Result;
use lockstep_core::error::At;
use lockstep_core::query::{InDoubt, Queries};
use lockstep_pipelines::{Pipeline, Registry};

use crate::Outcome;
use crate::cli::Format;
use crate::figures::duration;

/// What to do about them.
#[derive(Debug, Subcommand)]
pub enum Transactions {
    /// List the transactions that are prepared in the sources of a pipeline, and neither committed nor rolled back; the branches of one
    /// together. Asks the databases: no pipeline has to run.
    List {
        /// The pipeline file.
        file: PathBuf,
        /// How the answer looks.
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Say what is to become of each: by lockstep's decision log, by what the running pipeline has read of its other branches, and by the
    /// tables of other coordinators where they are in one of the databases. Nothing is done without --apply; exit 1 when something that was to be done was not.
    Resolve(resolve::Arguments),
}

impl Transactions {
    /// How the answer is to look.
    pub fn format(&self) -> Format {
        match self {
            Transactions::List { format, .. } => *format,
            Transactions::Resolve(arguments) => arguments.format(),
        }
    }
}

/// Runs it.
pub async fn run(command: Transactions, registry: &Registry) -> Outcome {
    match command {
        Transactions::List { file, format } => list::list(&file, format, registry).await,
        Transactions::Resolve(arguments) => resolve::resolve(arguments, registry).await,
    }
}

type Databases = Vec<(Arc<str>, Arc<dyn Queries>)>;

/// The databases of a pipeline, by the names of their sources.
fn databases(pipeline: &Pipeline) -> Result<Databases> {
    let mut all = Vec::new();
    for (name, component) in pipeline.plan.sources.iter().zip(&pipeline.sources) {
        if let Some(queries) = component.queries().at(format!("sources.{name}"))? {
            all.push((Arc::clone(name), queries));
        }
    }
    Ok(all)
}

/// What is prepared in each source.
///
/// # Errors
/// When a database cannot be asked: a list without it would say that nothing is left there.
async fn ask(databases: &Databases) -> Result<Vec<(Arc<str>, Vec<InDoubt>)>> {
    let mut all = Vec::new();
    for (name, queries) in databases {
        let in_doubt = queries.in_doubt().await.at(format!("sources.{name}"))?;
        all.push((Arc::clone(name), in_doubt));
    }
    Ok(all)
}

/// For how long it has been prepared, for people.
fn age(one: &InDoubt, now_micros: i64) -> String {
    let micros = now_micros.saturating_sub(one.prepared_micros);
    duration(Duration::from_micros(u64::try_from(micros).unwrap_or(0)))
}

fn now_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    })
}

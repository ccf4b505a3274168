//! The `lockstep` command: one file per subcommand, the admin server, the demo.
//!
//! A third party adds a sink in a crate of its own, and a `main` of one line:
//! `lockstep::main(lockstep::builtin().with_sink::<AcmeFactory>())`.

mod admin;
mod check;
mod cli;
mod client;
mod dead_letters;
pub mod demo;
mod explain;
mod figures;
mod here;
mod invariants;
mod logging;
mod output;
mod postgres;
mod progress;
mod reconcile;
mod run;
mod schema;
#[cfg(feature = "search-embedded")]
mod search;
mod snapshot;
mod status;
mod transactions;
mod web;

use std::process::ExitCode;

use clap::Parser;
use lockstep_core::{Error, ErrorKind};
use lockstep_pipelines::Registry;

/// What a subcommand ends with.
type Outcome = Result<ExitCode, Error>;

/// Exit code of a usage or config error.
const USAGE: u8 = 2;

/// The sources, transforms and sinks that are in the box.
#[must_use]
pub fn builtin() -> Registry {
    let registry = Registry::new()
        .with_source::<postgres::Postgres>()
        .with_transform::<lockstep_transforms::Dedupe>()
        .with_transform::<lockstep_transforms::Filter>()
        .with_transform::<lockstep_transforms::Mask>()
        .with_transform::<lockstep_transforms::Project>()
        .with_transform::<lockstep_transforms::Route>()
        .with_transform::<lockstep_transforms::Stitch>()
        .with_sink::<lockstep_sink_kafka::KafkaSinkFactory>()
        .with_sink::<lockstep_sink_redis::RedisFactory>()
        .with_sink::<lockstep_sink_search::opensearch::OpenSearch>()
        .with_sink::<lockstep_sink_search::opensearch::Elasticsearch>()
        .with_sink::<lockstep_sink_file::FileSinkFactory>();
    #[cfg(feature = "search-embedded")]
    let registry = registry.with_sink::<lockstep_sink_search::tantivy::Tantivy>();
    registry
}

/// The whole command: reads the arguments, runs the subcommand, prints an error, and says how it went.
#[must_use]
pub fn main(registry: Registry) -> ExitCode {
    let cli = cli::Cli::parse();
    // Every TLS user of the process takes this provider: one implementation, ring.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let progress = progress::Bars::new(cli.command.draws());
    logging::start(cli.log_format, &progress);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return fail(&Error::new(ErrorKind::Storage, "cannot start the runtime").source(error));
        }
    };
    let outcome = runtime.block_on(cli.command.run(&registry, &progress));
    // Blocking work that nobody waits for must not hold the process.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn fail(error: &Error) -> ExitCode {
    output::error(&format!("error: {error}"));
    let code = error.kind().code();
    output::error(&format!("`lockstep explain {code}` says more"));
    match error.kind() {
        ErrorKind::Config | ErrorKind::Invalid => ExitCode::from(USAGE),
        _ => ExitCode::FAILURE,
    }
}

//! The `lockstep` command: one file per subcommand, the admin server, the demo.
//!
//! A third party adds a sink in a crate of its own, and a `main` of one line:
//! `lockstep::main(lockstep::builtin().with_sink::<AcmeFactory>())`.

mod admin;
mod check;
mod cli;
mod client;
#[cfg(all(test, feature = "search-embedded"))]
mod command_line;
mod completions;
mod dead_letters;
pub mod demo;
mod explain;
mod figures;
mod here;
mod init;
mod invariants;
mod logging;
mod man;
mod output;
mod postgres;
mod progress;
mod quoted;
mod reconcile;
#[cfg(all(test, feature = "search-embedded"))]
mod reference;
mod run;
mod schema;
#[cfg(feature = "search-embedded")]
mod search;
mod snapshot;
mod status;
mod terminal;
mod test;
mod traces;
mod transactions;
mod web;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use lockstep_core::{Error, ErrorKind};
use lockstep_pipelines::Registry;
use serde_json::json;

use crate::cli::Format;

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
        .with_transform::<lockstep_transforms::Map>()
        .with_transform::<lockstep_transforms::Mask>()
        .with_transform::<lockstep_transforms::Project>()
        .with_transform::<lockstep_transforms::Outbox>()
        .with_transform::<lockstep_transforms::Route>()
        .with_transform::<lockstep_transforms::Stitch>()
        .with_sink::<lockstep_sink_kafka::KafkaSinkFactory>()
        .with_sink::<lockstep_sink_redis::RedisFactory>()
        .with_sink::<lockstep_sink_redis::StreamFactory>()
        .with_sink::<lockstep_sink_search::opensearch::OpenSearch>()
        .with_sink::<lockstep_sink_search::opensearch::Elasticsearch>()
        .with_sink::<lockstep_sink_file::FileSinkFactory>()
        .with_sink::<lockstep_sink_webhook::Webhook>();
    #[cfg(feature = "search-embedded")]
    let registry = registry.with_sink::<lockstep_sink_search::tantivy::Tantivy>();
    #[cfg(feature = "rabbitmq")]
    let registry = registry.with_sink::<lockstep_sink_rabbitmq::RabbitmqSinkFactory>();
    registry
}

/// The whole command: reads the arguments, runs the subcommand, prints an error, and says how it went.
#[must_use]
pub fn main(registry: Registry) -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match cli::Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refused(&error, &arguments),
    };
    let format = cli.command.format();
    // Every TLS user of the process takes this provider: one implementation, ring.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let progress = progress::Bars::new(cli.command.draws());
    let traces = traces::Traces::start(cli.command.runs_pipeline());
    logging::start(cli.log_format, &progress, &traces);
    traces.tell();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = Error::new(ErrorKind::Storage, "cannot start the runtime").source(error);
            return fail(&error, format);
        }
    };
    let outcome = runtime.block_on(cli.command.run(&registry, &progress));
    // While the runtime still hears a second signal.
    traces.finish();
    // Blocking work that nobody waits for must not hold the process.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(error) => fail(&error, format),
    }
}

/// Help and the version are answers; anything else that the arguments end with is an error.
fn refused(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    if error.use_stderr() && cli::asks_for_json(arguments) {
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
        let told = json!({ "code": "usage", "message": text, "remedy": null });
        output::error(&json!({ "error": told }).to_string());
        return ExitCode::from(USAGE);
    }
    // A closed pipe has nobody to tell.
    let _ = error.print();
    match error.use_stderr() {
        true => ExitCode::from(USAGE),
        false => ExitCode::SUCCESS,
    }
}

fn fail(error: &Error, format: Format) -> ExitCode {
    match format {
        Format::Json => output::error(&json!({ "error": output::error_json(error) }).to_string()),
        Format::Table => {
            output::error(&format!("error: {error}"));
            let code = error.kind().code();
            output::error(&format!("`lockstep explain {code}` says more"));
        }
    }
    match error.kind() {
        ErrorKind::Config | ErrorKind::Invalid => ExitCode::from(USAGE),
        _ => ExitCode::FAILURE,
    }
}

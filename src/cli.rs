//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use lockstep_core::source::ReloadRequest;
use lockstep_pipelines::{Pipeline, ReconcileRequest, Registry, Share};

use crate::client::Client;
use crate::dead_letters::DeadLetters;
use crate::here::Here;
use crate::progress::Bars;
use crate::reconcile::Wanted;
use crate::transactions::Transactions;
use crate::{
    Outcome, check, completions, demo, explain, init, man, reconcile, run, schema, snapshot,
    status, test,
};

/// What holds for every subcommand.
const AFTER: &str = "\
Exit codes:
  0    done; all is as it should be
  1    failed, or not as it should be
  2    the command line or the pipeline file is wrong
  3    reconcile: something differs, or an invariant does not hold
  130  told to stop before the end

Environment:
  LOCKSTEP_LOG           what is logged, such as `debug` or `info,lockstep_postgres=debug`
  LOCKSTEP_LOG_FORMAT    how log lines look, as --log-format
  LOCKSTEP_ADMIN_URL     the admin endpoint that is asked
  LOCKSTEP_ADMIN_TOKEN   its token
  LOCKSTEP__A__B         overrides a.b of the pipeline file
  OTEL_EXPORTER_OTLP_ENDPOINT
                         where traces go, in a build with the feature `otel`
  NO_COLOR               no colours
  CLICOLOR_FORCE         colours also where there is no terminal
  LC_ALL, LC_CTYPE, LANG whether letters beyond ASCII are understood";

/// Keeps Kafka, Redis and search in lockstep with PostgreSQL.
#[derive(Debug, Parser)]
#[command(name = "lockstep", version, propagate_version = true, after_long_help = AFTER)]
pub struct Cli {
    /// How log lines look; LOCKSTEP_LOG sets what is logged, `info` by default.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Auto, env = "LOCKSTEP_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `text` on a terminal, `json` elsewhere.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How answers look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a pipeline until SIGTERM or SIGINT; drains, then exits 0.
    Run {
        /// The pipeline file: TOML, YAML or JSON.
        file: PathBuf,
    },
    /// Write a pipeline file: ask what it is to join, or read it off a database.
    Init(Box<init::Arguments>),
    /// Check a pipeline file, then look at every server it names; exit 1 if `run` would not work.
    Check {
        /// The pipeline file.
        file: PathBuf,
        /// Only the file, no server.
        #[arg(long)]
        offline: bool,
        /// How the answer looks.
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Send the examples of a pipeline file through its transforms and compare what comes of them, without any server; exit 1 if
    /// something else comes than the file says.
    Test {
        /// The pipeline file, with `[[tests]]`.
        file: PathBuf,
        /// Only tests with this in their names.
        #[arg(long, value_name = "WORD")]
        only: Option<String>,
        /// How the answer looks.
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Ask a running pipeline how it is; exit 1 when it is not ready.
    Status {
        /// Its admin endpoint.
        #[arg(
            long,
            default_value = "http://127.0.0.1:9187",
            env = "LOCKSTEP_ADMIN_URL"
        )]
        url: String,
        /// Its token, when it asks for one.
        #[arg(long, env = "LOCKSTEP_ADMIN_TOKEN", hide_env_values = true)]
        token: Option<String>,
        /// Look again and again, until `q` or Ctrl-C: a table that stays in place on a terminal, a block behind the other elsewhere, a
        /// line behind the other as JSON.
        #[arg(long, short)]
        watch: bool,
        /// How often to look.
        #[arg(long, default_value = status::DEFAULT_INTERVAL, value_name = "TIME", value_parser = status::interval, requires = "watch")]
        interval: Duration,
        /// How the answer looks.
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Load a table again through a running pipeline, while it streams: all rows, or those that meet a condition.
    Snapshot {
        /// The pipeline file of the running pipeline; it says where to ask.
        file: PathBuf,
        /// The table, `schema.table`.
        #[arg(long)]
        table: String,
        /// The source that has it; not needed when there is one only.
        #[arg(long)]
        source: Option<String>,
        /// A condition in SQL that rows must meet.
        #[arg(long = "where", value_name = "SQL")]
        condition: Option<String>,
        /// Empty the table in every sink first, so that rows go which the source does not have any more.
        #[arg(long, conflicts_with = "condition")]
        truncate: bool,
        /// Return when the request is taken, instead of when all rows are durable in every sink.
        #[arg(long)]
        no_wait: bool,
        /// How the answer looks.
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// The pipeline's admin endpoint, where it is not the one that the file says.
        #[arg(long, env = "LOCKSTEP_ADMIN_URL")]
        url: Option<String>,
    },
    /// Compare what sinks hold with their sources, and look at what must hold between sources, through a running pipeline and while
    /// it goes on; exit 0 when all is as it should be, 3 when something is not, 1 when it cannot be told.
    Reconcile {
        /// The pipeline file of the running pipeline; it says where to ask.
        file: PathBuf,
        /// Only this table, `schema.table` or the bare name.
        #[arg(long)]
        table: Option<String>,
        /// Only with this sink.
        #[arg(long)]
        sink: Option<String>,
        /// Only tables of this source.
        #[arg(long)]
        source: Option<String>,
        /// Only rows that meet this condition in SQL; rows that should not be there are not looked for then.
        #[arg(long = "where", value_name = "SQL", requires = "table")]
        condition: Option<String>,
        /// Only so many of the rows, others each time: `1%`. Rows that should not be there are not looked for then.
        #[arg(long, value_name = "PERCENT")]
        sample: Option<Share>,
        /// Only the row with this key, and others that are named alike: its value as PostgreSQL writes it, or a JSON array of
        /// such values where the key has several columns.
        #[arg(long = "key", value_name = "KEY", requires = "table", conflicts_with_all = ["condition", "sample"])]
        keys: Vec<String>,
        /// Where no process runs this pipeline: run it here until all is compared, then drain it. No other one is asked, whatever `--url` says.
        #[arg(long)]
        once: bool,
        /// Mend what differs: rows are written as they are in the source, or taken out of the sink, each at a place of the
        /// stream where nothing newer of it has passed. Without it, what would be mended is only told.
        #[arg(long)]
        repair: bool,
        /// Only look at this invariant; compare nothing.
        #[arg(long, value_name = "NAME", conflicts_with_all = ["table", "sink", "source", "repair"])]
        invariant: Option<String>,
        /// Only look at the invariants; compare nothing.
        #[arg(long, conflicts_with_all = ["table", "sink", "source", "repair"])]
        invariants_only: bool,
        /// How the answer looks.
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// The pipeline's admin endpoint, where it is not the one that the file says.
        #[arg(long, env = "LOCKSTEP_ADMIN_URL")]
        url: Option<String>,
    },
    /// Rows that sinks have refused for good: list, show, replay or discard them.
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Two-phase commits of the sources: list those that are not decided, and end those that a coordinator has left behind.
    #[command(subcommand)]
    Transactions(Transactions),
    /// Print the JSON Schema of the pipeline file.
    Schema {
        /// As a Helm chart's values take it: in draft 7, with `${NAME}` and `${file:PATH}` where numbers and words may be.
        #[arg(long)]
        chart: bool,
    },
    /// Say what an error means, why it comes, and what to do about it.
    Explain {
        /// The code that the error begins with, `LS004`; without one all are listed.
        code: Option<String>,
        /// How the answer looks.
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Search an embedded index, also while a pipeline writes it.
    #[cfg(feature = "search-embedded")]
    Search {
        /// The index: the `path` of the tantivy sink.
        path: PathBuf,
        /// Words, `column:word`, "a phrase", AND, OR, -word.
        query: Vec<String>,
        /// Rows to show.
        #[arg(long, default_value_t = 10)]
        limit: usize,
        /// How the answer looks.
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// The shop, end to end.
    Demo(Box<demo::args::DemoArgs>),
    /// Print what a shell completes the command line by.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print a page of the manual, or write all of them into a folder.
    Man {
        /// The subcommand that the page is about, such as `dead-letters list`; the command itself when not given.
        subcommand: Vec<String>,
        /// Write every page into this folder instead, as `lockstep.1`, `lockstep-run.1` and so on.
        #[arg(long, value_name = "FOLDER", conflicts_with = "subcommand")]
        folder: Option<PathBuf>,
    },
}

/// Whether arguments that are not understood ask for answers as JSON.
pub fn asks_for_json(arguments: &[OsString]) -> bool {
    let mut behind_format = false;
    arguments.iter().any(|argument| {
        let found = argument == "--format=json" || (behind_format && argument == "json");
        behind_format = argument == "--format";
        found
    })
}

impl Command {
    /// Whether progress may be drawn on the terminal.
    pub fn draws(&self) -> bool {
        matches!(self, Command::Run { .. })
    }

    /// Whether this process runs a pipeline.
    pub fn runs_pipeline(&self) -> bool {
        match self {
            Command::Run { .. } | Command::Demo(_) => true,
            Command::Reconcile { once, .. } => *once,
            _ => false,
        }
    }

    /// How the answer is to look, and an error as well.
    pub fn format(&self) -> Format {
        match self {
            Command::Check { format, .. }
            | Command::Test { format, .. }
            | Command::Status { format, .. }
            | Command::Snapshot { format, .. }
            | Command::Reconcile { format, .. }
            | Command::Explain { format, .. } => *format,
            #[cfg(feature = "search-embedded")]
            Command::Search { format, .. } => *format,
            Command::Init(arguments) => arguments.format,
            Command::DeadLetters(command) => command.format(),
            Command::Transactions(command) => command.format(),
            Command::Demo(arguments) => arguments.format,
            Command::Run { .. }
            | Command::Schema { .. }
            | Command::Completions { .. }
            | Command::Man { .. } => Format::Table,
        }
    }

    /// Runs it.
    pub async fn run(self, registry: &Registry, progress: &Bars) -> Outcome {
        match self {
            Command::Run { file } => {
                let pipeline = load(&file, registry)?;
                run::run(&pipeline, progress, || load(&file, registry)).await
            }
            Command::Init(arguments) => init::init(&arguments, registry).await,
            Command::Check {
                file,
                offline,
                format,
            } => check::check(&file, registry, offline, format).await,
            Command::Test { file, only, format } => {
                test::run(&file, registry, only.as_deref(), format).await
            }
            Command::Status {
                url,
                token,
                watch,
                interval,
                format,
            } => {
                let token = token.as_deref();
                let client = Client { url: &url, token };
                match watch {
                    true => status::watch(&client, interval, format).await,
                    false => status::status(&client, format).await,
                }
            }
            Command::Snapshot {
                file,
                table,
                source,
                condition,
                truncate,
                no_wait,
                format,
                url,
            } => {
                let pipeline = load(&file, registry)?;
                let (url, token) = snapshot::endpoint(&pipeline, url)?;
                let token = token.map(|token| token.reveal());
                let client = Client { url: &url, token };
                let request = ReloadRequest {
                    table,
                    condition,
                    truncate,
                };
                snapshot::snapshot(&client, source, request, !no_wait, format).await
            }
            Command::Reconcile {
                file,
                table,
                sink,
                source,
                condition,
                sample,
                keys,
                once,
                repair,
                invariant,
                invariants_only,
                format,
                url,
            } => {
                let pipeline = load(&file, registry)?;
                let wanted = Wanted {
                    request: ReconcileRequest {
                        source,
                        table,
                        sink,
                        condition,
                        sample,
                        keys: keys.iter().map(|text| reconcile::key(text)).collect(),
                        repair,
                        by: Some(reconcile::asker()),
                    },
                    invariant,
                    invariants_only,
                };
                if once {
                    return Here::start(pipeline).await?.ask(wanted, format).await;
                }
                let (url, token) = snapshot::endpoint(&pipeline, url)?;
                let token = token.map(|token| token.reveal());
                let client = Client { url: &url, token };
                reconcile::reconcile(&client, &wanted, format).await
            }
            Command::DeadLetters(command) => crate::dead_letters::run(command, registry).await,
            Command::Transactions(command) => crate::transactions::run(command, registry).await,
            Command::Schema { chart } => schema::schema(registry, chart),
            Command::Explain { code, format } => explain::explain(code.as_deref(), format),
            #[cfg(feature = "search-embedded")]
            Command::Search {
                path,
                query,
                limit,
                format,
            } => crate::search::search(&path, &query.join(" "), limit, format),
            Command::Demo(args) => demo::command::demo(&args, registry).await,
            Command::Completions { shell } => completions::completions(shell),
            Command::Man { subcommand, folder } => man::man(&subcommand, folder.as_deref()),
        }
    }
}

/// Reads and checks a pipeline file.
pub fn load(file: &std::path::Path, registry: &Registry) -> Result<Pipeline, lockstep_core::Error> {
    lockstep_pipelines::file::load(file, registry).map_err(lockstep_core::Error::from)
}

//! The options of `lockstep init`.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::cli::Format;

/// What is known before anybody is asked.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The file to write, in TOML; NAME.toml when not given.
    pub file: Option<PathBuf>,
    /// A database to read from, `postgres://user@host:5432/database`, or NAME=URL to say what the source is called. Given twice,
    /// there are two sources. `${VARIABLE}` is taken from the environment, and stays in the file as it is.
    #[arg(long = "url", value_name = "URL")]
    pub urls: Vec<String>,
    /// As --url, and nothing is asked: whatever is not given is taken as the database suggests it.
    #[arg(long = "from", value_name = "URL", conflicts_with = "urls")]
    pub from: Vec<String>,
    /// Tables, with commas between them: `schema.table`, `schema.*`, the bare name, or `source.schema.table`. Without it, and nobody to ask,
    /// all that have a primary key.
    #[arg(long, value_name = "TABLES", value_delimiter = ',')]
    pub tables: Vec<String>,
    /// Where changes go: kafka=HOST:PORT, redis=URL, redis-stream=URL, rabbitmq=URL, opensearch=URL, elasticsearch=URL, webhook=URL,
    /// tantivy=FOLDER or file=FOLDER; a kind alone stands for its usual address on this machine. Several with commas between them, or the option again.
    #[arg(long = "sink", value_name = "KIND=ADDRESS")]
    pub sinks: Vec<String>,
    /// Name of the pipeline.
    #[arg(long)]
    pub name: Option<String>,
    /// Transactions that are committed in two phases over the databases go on together.
    #[arg(long)]
    pub stitch: bool,
    /// Where the admin endpoint is to listen; 127.0.0.1:9187 when not given, or the next port that is free.
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<SocketAddr>,
    /// Ask nothing: take what is suggested.
    #[arg(long, short)]
    pub yes: bool,
    /// Replace a file that is there.
    #[arg(long)]
    pub force: bool,
    /// How the answer looks.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

impl Arguments {
    /// The databases that are given.
    pub fn databases(&self) -> &[String] {
        match self.from.is_empty() {
            true => &self.urls,
            false => &self.from,
        }
    }

    /// Whether suggestions are taken instead of asking.
    pub fn takes_suggestions(&self) -> bool {
        self.yes || !self.from.is_empty() || self.format == Format::Json
    }
}

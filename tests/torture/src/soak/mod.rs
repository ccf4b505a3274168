//! A steady load, for long, while lockstep compares every sink with the table again and again: nothing of what it tells
//! may be untrue, and since nothing is broken here, all that it tells is.

pub mod load;
pub mod passes;
pub mod purchases;

use std::fmt::Write as _;
use std::path::Path;

use lockstep_kit::kafka::{Kafka, KafkaOptions};
use lockstep_kit::opensearch::{OpenSearch, OpenSearchOptions};
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::redis::{Redis, RedisOptions};

use crate::sinks::Sink;

/// Those that can be compared.
pub const SINKS: [Sink; 5] = [
    Sink::Kafka,
    Sink::Json,
    Sink::Hash,
    Sink::OpenSearch,
    Sink::Tantivy,
];

/// The major version of PostgreSQL.
const POSTGRES: u16 = 17;

/// One server of each kind, without anything in between.
#[derive(Debug)]
pub struct Servers {
    /// The source.
    pub postgres: Postgres,
    kafka: Kafka,
    redis: Redis,
    opensearch: OpenSearch,
}

impl Servers {
    /// Starts them.
    ///
    /// # Panics
    /// When one is not installed or does not start.
    pub async fn start() -> Self {
        let options = PostgresOptions::new(POSTGRES).set("max_wal_size", "4GB");
        let (postgres, redis, kafka, opensearch) = tokio::join!(
            Postgres::start(options),
            Redis::start(RedisOptions::default()),
            Kafka::start(KafkaOptions::default()),
            OpenSearch::start(OpenSearchOptions::default()),
        );
        Self {
            postgres,
            kafka,
            redis,
            opensearch,
        }
    }

    /// Which versions these are, for people.
    ///
    /// # Panics
    /// When a server does not answer.
    pub async fn versions(&self) -> String {
        format!(
            "PostgreSQL {}, Kafka {}, Redis {}, OpenSearch {}",
            self.postgres.version(),
            lockstep_kit::kafka::installed_version().unwrap_or_default(),
            self.redis.version().await.expect("Redis answers"),
            self.opensearch.version().await.expect("OpenSearch answers"),
        )
    }

    fn section(&self, sink: Sink, folder: &Path) -> String {
        let redis = |prefix: &str, value: &str| {
            format!(
                "type = \"redis\"\nurl = \"{}\"\nkey = \"{prefix}:{{table}}:{{key}}\"\nvalue = \"{value}\"",
                self.redis.url()
            )
        };
        match sink {
            Sink::Kafka => format!(
                "type = \"kafka\"\nbrokers = \"{}\"\ntopic = \"soak.{{table}}\"\npartitions = 3",
                self.kafka.bootstrap()
            ),
            Sink::Json => redis("json", "json"),
            Sink::Hash => redis("hash", "hash"),
            Sink::OpenSearch => format!(
                "type = \"opensearch\"\nurl = \"{}\"\nindex = \"soak-{{table}}\"",
                self.opensearch.url()
            ),
            Sink::Tantivy => format!("type = \"tantivy\"\npath = \"{}/index\"", folder.display()),
            Sink::File => format!(
                "type = \"file\"\npath = \"{}/{{table}}.jsonl\"",
                folder.display()
            ),
            Sink::Streams | Sink::Rabbitmq => {
                unreachable!("`SINKS` has those only that can be compared")
            }
        }
    }
}

/// The pipeline file: everything as it is by default, and comparisons without a pause.
pub fn pipeline(folder: &Path, database: &Database, servers: &Servers, sinks: &[Sink]) -> String {
    let mut text = format!(
        "name = \"soak\"\n\n[admin]\nlisten = \"127.0.0.1:0\"\n\n[state]\ndir = \"{}/state\"\n\n[reconcile]\nevery = \"1s\"\n\n\
         [sources.shop]\ntype = \"postgres\"\nurl = \"{}\"\ntables = [\"public.{}\"]\n",
        folder.display(),
        database.url(),
        load::TABLE,
    );
    for sink in sinks {
        let section = servers.section(*sink, folder);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n[sinks.{}]\ninputs = [\"shop\"]\n{section}\n",
            sink.name()
        );
    }
    text
}

//! The sinks, and the pipeline file that has them all side by side.

use std::fmt::Write;
use std::path::Path;

use lockstep_kit::postgres::Database;

use crate::servers::{Link, Servers};
use crate::workload::TABLES;

/// A sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Exactly once.
    Kafka,
    /// Redis, a JSON text per row.
    Json,
    /// Redis, a hash per row.
    Hash,
    /// OpenSearch.
    OpenSearch,
    /// The embedded index.
    Tantivy,
    /// JSON lines.
    File,
    /// Redis, a stream per table.
    Streams,
    /// A queue per table.
    Rabbitmq,
}

/// All of them, in the order of the table.
pub const SINKS: [Sink; 8] = [
    Sink::Kafka,
    Sink::Json,
    Sink::Hash,
    Sink::OpenSearch,
    Sink::Tantivy,
    Sink::File,
    Sink::Streams,
    Sink::Rabbitmq,
];

impl Sink {
    /// As on the command line, and in the pipeline file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Json => "redis-json",
            Self::Hash => "redis-hash",
            Self::OpenSearch => "opensearch",
            Self::Tantivy => "tantivy",
            Self::File => "file",
            Self::Streams => "redis-stream",
            Self::Rabbitmq => "rabbitmq",
        }
    }

    fn section(self, name: &str, data: &Path, servers: &Servers) -> String {
        let redis = |value: &str| {
            let address = servers.proxy(Link::Redis).address();
            format!(
                "type = \"redis\"\nurl = \"redis://{address}\"\nkey = \"{name}:{}:{{table}}:{{key}}\"\nvalue = \"{value}\"\nresponse_timeout = \"4s\"",
                self.name()
            )
        };
        match self {
            Self::Kafka => format!(
                "type = \"kafka\"\nbrokers = \"{}\"\ntopic = \"{name}.{{table}}\"\nprogress_topic = \"{name}.progress\"\npartitions = 3\nexactly_once = true\nproperties = {{ \"socket.timeout.ms\" = 6000, \"socket.connection.setup.timeout.ms\" = 3000 }}",
                servers.kafka.proxied_bootstrap()
            ),
            Self::Json => redis("json"),
            Self::Hash => redis("hash"),
            Self::OpenSearch => format!(
                "type = \"opensearch\"\nurl = \"http://{}\"\nindex = \"{name}-{{table}}\"\nrequest_timeout = \"8s\"",
                servers.proxy(Link::OpenSearch).address()
            ),
            Self::Tantivy => format!("type = \"tantivy\"\npath = \"{}/index\"", data.display()),
            Self::File => format!(
                "type = \"file\"\npath = \"{}/{{table}}.jsonl\"",
                data.display()
            ),
            Self::Streams => format!(
                "type = \"redis-stream\"\nurl = \"redis://{}\"\nstream = \"{name}:stream:{{table}}\"\nresponse_timeout = \"4s\"",
                servers.proxy(Link::Redis).address()
            ),
            Self::Rabbitmq => format!(
                "type = \"rabbitmq\"\nurl = \"amqp://guest:guest@{}\"\nexchange = \"\"\nrouting_key = \"{name}.{{table}}\"\nheartbeat = \"3s\"\ndeclare = {{ queues = [{{ name = \"{name}.{{table}}\" }}] }}",
                servers.proxy(Link::Rabbitmq).address()
            ),
        }
    }
}

/// The pipeline file, whose state, files and index lie in the folder `data`. Everything but what bounds the wait for an answer that will not come is as it is by default.
pub fn pipeline(
    name: &str,
    data: &Path,
    database: &Database,
    servers: &Servers,
    sinks: &[Sink],
) -> String {
    let own = format!("127.0.0.1:{}", servers.postgres.port());
    let url = database
        .url()
        .replace(&own, &servers.proxy(Link::Postgres).address());
    let tables = TABLES.map(|table| format!("\"public.{table}\"")).join(", ");
    let mut text = format!(
        "name = \"{name}\"\n\n[admin]\nlisten = \"127.0.0.1:0\"\n\n[state]\ndir = \"{}/state\"\n\n\
         [sources.shop]\ntype = \"postgres\"\nurl = \"{url}\"\nslot = \"{name}\"\ntables = [{tables}]\nstatus_interval = \"2s\"\n",
        data.display(),
    );
    for sink in sinks {
        let section = sink.section(name, data, servers);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n[sinks.{}]\ninputs = [\"shop\"]\n{section}\n",
            sink.name()
        );
    }
    text
}

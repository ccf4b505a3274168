//! Compares what arrived with what PostgreSQL says must have.
//!
//! Reads PostgreSQL, Kafka, Redis, OpenSearch, RabbitMQ, the files and the embedded index with plain clients, and shares no code with
//! the product: what a sink's encoder believes of itself is not asked.

mod embedded;
mod expected;
mod files;
mod history;
mod kafka;
mod rabbitmq;
mod redis;
mod rows;
mod search;
mod streams;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use lockstep_kit::postgres::Database;

use crate::servers::Servers;
use crate::sinks::Sink;
use expected::Expected;
pub use history::Begin;

/// What is wrong, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Changes or rows that are not there.
    pub lost: u64,
    /// Changes that are there again.
    pub doubled: u64,
    /// Keys whose changes stand in another order.
    pub reordered: u64,
    /// Rows or changes with other values than they should have, or rows that should be gone.
    pub stale: u64,
}

impl Counts {
    /// Whether nothing is.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.reordered += other.reordered;
        self.stale += other.stale;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "lost {}, doubled {}, reordered {}, stale {}",
            self.lost, self.doubled, self.reordered, self.stale
        )
    }
}

/// Differences of a kind that are told in full; the others are counted.
const SHOWN: usize = 3;

/// What was found in one place, with examples.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// How much of what.
    pub counts: Counts,
    /// The first ones.
    pub examples: Vec<String>,
}

impl Findings {
    fn lost(&mut self, what: impl fmt::Display) {
        self.counts.lost += 1;
        self.show("lost", what);
    }

    fn doubled(&mut self, what: impl fmt::Display) {
        self.counts.doubled += 1;
        self.show("doubled", what);
    }

    fn reordered(&mut self, what: impl fmt::Display) {
        self.counts.reordered += 1;
        self.show("reordered", what);
    }

    fn stale(&mut self, what: impl fmt::Display) {
        self.counts.stale += 1;
        self.show("stale", what);
    }

    fn show(&mut self, kind: &str, what: impl fmt::Display) {
        let shown = self.examples.iter();
        if shown.filter(|one| one.starts_with(kind)).count() < SHOWN {
            self.examples.push(format!("{kind}: {what}"));
        }
    }
}

/// Where a run left its traces.
#[derive(Debug)]
pub struct Place<'a> {
    /// What all names begin with.
    pub name: &'a str,
    /// What the names of topics begin with.
    pub topics: &'a str,
    /// Of files and index.
    pub folder: &'a Path,
    /// The source.
    pub database: &'a Database,
    /// The others.
    pub servers: &'a Servers,
}

/// What the checker has read and found.
#[derive(Debug, Default)]
pub struct Checked {
    /// Changes that PostgreSQL committed.
    pub changes: u64,
    /// By sink, in the order of the pipeline file; sinks without findings are there too.
    pub sinks: BTreeMap<&'static str, Findings>,
}

/// Reads both ends and compares.
///
/// # Errors
/// When something cannot be read: that is no finding, it is no answer.
pub async fn check(place: &Place<'_>, sinks: &[Sink], begin: Begin) -> Result<Checked, String> {
    let expected = Expected::read(place.database, begin).await?;
    let mut checked = Checked {
        changes: expected.changes,
        sinks: BTreeMap::new(),
    };
    for &sink in sinks {
        let mut findings = Findings::default();
        for (table, expected) in &expected.tables {
            let found = &mut findings;
            match sink {
                Sink::Kafka => {
                    let topic = format!("{}.{table}", place.topics);
                    let records = kafka::read(place.servers.kafka.bootstrap(), &topic).await?;
                    history::compare(
                        &topic,
                        expected,
                        &records,
                        history::Tombstones::Follow,
                        found,
                    );
                }
                Sink::File => {
                    let path = place.folder.join(format!("{table}.jsonl"));
                    let records = files::read(&path)?;
                    let name = path.display().to_string();
                    history::compare(&name, expected, &records, history::Tombstones::None, found);
                }
                Sink::Streams => {
                    let key = format!("{}:stream:{table}", place.name);
                    let records = streams::read(place.servers.redis.url(), &key).await?;
                    history::compare(&key, expected, &records, history::Tombstones::None, found);
                }
                Sink::Rabbitmq => {
                    let queue = format!("{}.{table}", place.name);
                    let records = rabbitmq::read(place.servers.rabbitmq.url(), &queue).await?;
                    history::compare(&queue, expected, &records, history::Tombstones::None, found);
                }
                Sink::Json | Sink::Hash => {
                    let prefix = format!("{}:{}:{table}:", place.name, sink.name());
                    let rows = redis::read(place.servers.redis.url(), &prefix, sink).await?;
                    rows::compare(&prefix, expected, &rows, found);
                }
                Sink::OpenSearch => {
                    let index = format!("{}-{table}", place.name);
                    let rows = search::read(&place.servers.opensearch, &index).await?;
                    rows::compare(&index, expected, &rows, found);
                }
                Sink::Tantivy => {
                    let path = place.folder.join("index");
                    let name = format!("shop.public.{table}");
                    let rows = embedded::read(&path, &name)?;
                    rows::compare(&name, expected, &rows, found);
                }
            }
        }
        // What is lost first.
        findings
            .examples
            .sort_by_key(|one| !one.starts_with("lost"));
        checked.sinks.insert(sink.name(), findings);
    }
    Ok(checked)
}

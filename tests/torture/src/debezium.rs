//! Debezium as a contestant: Kafka Connect with its connector, into Kafka.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use lockstep_kit::connect::Connect;
use lockstep_kit::postgres::Database;
use tokio::time::{Instant, sleep};
use tokio_postgres::Config;

use crate::http;
use crate::program::{LOOK_AGAIN, Program};
use crate::servers::{Link, Servers};
use crate::workload::TABLES;

/// Keys of rows that show how far the connector is, above all others.
const FENCES: i64 = 9_000_000_000;
/// How often such a row is written.
const FENCE_EVERY: Duration = Duration::from_secs(3);

/// The worker and what it is asked.
#[derive(Debug)]
pub struct Debezium {
    /// The process.
    pub program: Program,
    connect: Connect,
    bootstrap: String,
    /// What the names of topics begin with.
    topics: String,
    fences: i64,
}

impl Debezium {
    /// In this folder, for the tables of this database.
    ///
    /// # Panics
    /// When it is not installed, or the folder cannot be written.
    pub fn new(
        name: &str,
        folder: PathBuf,
        database: &Database,
        servers: &Servers,
        with_transactions: bool,
    ) -> Self {
        let url: Config = database.url().parse().expect("the kit gives a URL");
        let own = |name: &'static str, value: &str| (name, value.to_owned());
        let json = "org.apache.kafka.connect.json.JsonConverter";
        let worker = [
            own("bootstrap.servers", &servers.kafka.proxied_bootstrap()),
            own("key.converter", json),
            own("value.converter", json),
            own("key.converter.schemas.enable", "false"),
            own("value.converter.schemas.enable", "false"),
            own("offset.flush.interval.ms", "1000"),
        ];
        let tables = TABLES.map(|table| format!("public.{table}"));
        let mut connector = vec![
            own("name", "shop"),
            own(
                "connector.class",
                "io.debezium.connector.postgresql.PostgresConnector",
            ),
            own("plugin.name", "pgoutput"),
            own("database.hostname", "127.0.0.1"),
            own(
                "database.port",
                &servers.proxy(Link::Postgres).port().to_string(),
            ),
            own("database.user", url.get_user().unwrap_or("postgres")),
            // The server asks for none, and the connector insists on one.
            own("database.password", "none"),
            own("database.dbname", database.name()),
            own("topic.prefix", name),
            own("slot.name", name),
            own("publication.name", name),
            own("publication.autocreate.mode", "filtered"),
            own("table.include.list", &tables.join(",")),
            own("skipped.operations", "none"),
        ];
        if with_transactions {
            connector.push(own("provide.transaction.metadata", "true"));
        }
        let connect =
            Connect::new(&folder, &worker, &connector).unwrap_or_else(|error| panic!("{error}"));
        Self {
            program: Program::new("connect", &connect.command(), folder),
            connect,
            bootstrap: servers.kafka.bootstrap().to_owned(),
            topics: format!("{name}.public"),
            fences: FENCES,
        }
    }

    /// Waits until the connector and its task run; else what the worker says.
    ///
    /// # Errors
    /// When the time is over.
    pub async fn running(&mut self, deadline: Duration) -> Result<(), String> {
        let end = Instant::now() + deadline;
        loop {
            let seen = self
                .status()
                .await
                .unwrap_or_else(|error| error.to_string());
            if seen.matches("\"state\":\"RUNNING\"").count() == 2 {
                return Ok(());
            }
            if Instant::now() > end || !self.program.runs() {
                return Err(seen);
            }
            sleep(LOOK_AGAIN * 5).await;
        }
    }

    /// Whether the task has failed for good: then nothing happens until somebody starts it again.
    pub async fn has_failed(&self) -> Option<String> {
        let seen = self.status().await.ok()?;
        seen.contains("\"state\":\"FAILED\"").then_some(seen)
    }

    async fn status(&self) -> io::Result<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.connect.port()));
        http::get(address, "/connectors/shop/status").await
    }

    /// Waits until what is committed now is in the topics, when nobody else writes: a row that is committed after it stands at
    /// the end of each, since each has one partition.
    ///
    /// # Errors
    /// When the time is over.
    pub async fn caught_up(
        &mut self,
        database: &Database,
        deadline: Duration,
    ) -> Result<(), String> {
        let end = Instant::now() + deadline;
        let first = self.fence(database).await;
        let mut written = Instant::now();
        loop {
            let mut seen = Vec::new();
            for table in TABLES {
                let topic = format!("{}.{table}", self.topics);
                seen.push(crate::topics::last_id(&self.bootstrap, &topic).await);
            }
            let is_there = |last: &Result<Option<i64>, String>| {
                last.as_ref().is_ok_and(|last| *last >= Some(first))
            };
            if seen.iter().all(is_there) {
                return Ok(());
            }
            if Instant::now() > end || !self.program.runs() {
                return Err(format!("its topics end with {seen:?}, not {first}"));
            }
            if written.elapsed() > FENCE_EVERY {
                // The first one may be among what it loses.
                self.fence(database).await;
                written = Instant::now();
            }
            sleep(LOOK_AGAIN * 10).await;
        }
    }

    /// Writes a row with a key above all others into each table. They are changes like any other.
    async fn fence(&mut self, database: &Database) -> i64 {
        self.fences += 1;
        for table in TABLES {
            let sql = format!("INSERT INTO {table} (id) VALUES ({})", self.fences);
            database.execute(&sql).await;
        }
        self.fences
    }

    /// When the worker last wrote its position down.
    pub fn kept(&self) -> Option<SystemTime> {
        let file = std::fs::metadata(self.connect.offsets()).ok()?;
        file.modified().ok()
    }

    /// Waits until the worker has written a position down.
    pub async fn has_offsets(&self, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        while Instant::now() < end {
            let bytes = std::fs::read(self.connect.offsets()).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            // Of the stream, or of the end of the initial copy.
            if text.contains("lsn_commit") || text.contains("\"snapshot_completed\":true") {
                return true;
            }
            sleep(LOOK_AGAIN * 5).await;
        }
        false
    }
}

//! The servers, the logs in them, and a contender on a log.

use std::path::PathBuf;
use std::process::Command;

use lockstep_kit::kafka::{Kafka, KafkaOptions, installed_version};
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::rabbitmq::{Rabbitmq, RabbitmqOptions};
use lockstep_kit::redis::{Redis, RedisOptions};
use lockstep_kit::registry::{Registry, RegistryOptions};
use lockstep_kit::{Component, unique};

use crate::Result;
use crate::contender::{Contender, Entry};
use crate::drain::{Destination, Outcome, Task};
use crate::measure::{self, Sample};
use crate::workload::Workload;

/// A quiet server whose log stays in memory. Text forms are those that lockstep asks for, so that `pg_recvlogical`, which
/// asks for nothing, is sent the same bytes.
const SETTINGS: &[(&str, &str)] = &[
    ("shared_buffers", "1GB"),
    ("max_wal_size", "20GB"),
    ("checkpoint_timeout", "1d"),
    ("autovacuum", "off"),
    ("jit", "off"),
    ("synchronous_commit", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO"),
];

/// Records are kept for a moment only.
const BROKER: &[(&str, &str)] = &[
    ("log.segment.bytes", "67108864"),
    ("log.retention.bytes", "134217728"),
    ("log.retention.check.interval.ms", "2000"),
    ("log.segment.delete.delay.ms", "0"),
];

/// Partitions of a topic.
const PARTITIONS: u16 = 4;

pub struct Servers {
    // Dropped before its server.
    database: Database,
    postgres: Postgres,
    postmaster: u32,
    kafka: Option<Kafka>,
    registry: Option<Registry>,
    redis: Option<Redis>,
    rabbitmq: Option<Rabbitmq>,
    folder: PathBuf,
}

/// A log to drain.
pub struct Loaded {
    workload: Workload,
    rows: u64,
    /// End of the last commit.
    end: String,
}

impl Servers {
    /// Starts PostgreSQL, and of the others those that are needed and are here.
    pub async fn start(major: u16, needs: impl Fn(Component) -> bool) -> Result<Self> {
        let options = SETTINGS
            .iter()
            .fold(PostgresOptions::new(major), |options, (name, value)| {
                options.set(name, value)
            });
        let postgres = Postgres::try_start(options).await?;
        let has = |component: Component| {
            let is_needed = needs(component);
            if is_needed && !component.is_installed() {
                println!("NOT RUN: rows into {component:?}: none here: see tests/kit/install");
            }
            is_needed && component.is_installed()
        };
        let kafka = match has(Component::Kafka) {
            true => {
                let settings = BROKER
                    .iter()
                    .map(|(name, value)| ((*name).into(), (*value).into()))
                    .collect();
                let options = KafkaOptions {
                    settings,
                    ..KafkaOptions::default()
                };
                Some(Kafka::try_start(options).await?)
            }
            false => None,
        };
        let registry = match has(Component::Registry) {
            true => Some(Registry::try_start(RegistryOptions::default()).await?),
            false => None,
        };
        let redis = match has(Component::Redis) {
            true => Some(Redis::try_start(RedisOptions::default()).await?),
            false => None,
        };
        let rabbitmq = match has(Component::Rabbitmq) {
            true => Some(Rabbitmq::try_start(RabbitmqOptions::default()).await?),
            false => None,
        };
        // The postmaster is the parent of any of its processes.
        let checkpointer = postgres
            .value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
            .await
            .ok_or("no checkpointer")?;
        let status = std::fs::read_to_string(format!("/proc/{checkpointer}/status"))?;
        let postmaster = status
            .lines()
            .find_map(|line| line.strip_prefix("PPid:"))
            .ok_or("no parent")?
            .trim()
            .parse()?;
        let database = postgres.database("bench").await;
        let folder = std::env::temp_dir().join(unique("lockstep-benches"));
        std::fs::create_dir_all(&folder)?;
        Ok(Servers {
            postgres,
            postmaster,
            kafka,
            registry,
            redis,
            rabbitmq,
            database,
            folder,
        })
    }

    pub fn postgres_version(&self) -> &str {
        self.postgres.version()
    }

    /// `, Apache Kafka 4.3.1` or nothing.
    pub fn kafka_version(&self) -> String {
        match &self.kafka {
            Some(_) => format!(", Apache Kafka {}", installed_version().unwrap_or_default()),
            None => String::new(),
        }
    }

    /// Whether the server that it writes to is there.
    pub fn can_run(&self, contender: Contender) -> bool {
        contender.needs().iter().all(|component| match component {
            Component::Kafka => self.kafka.is_some(),
            Component::Registry => self.registry.is_some(),
            Component::Redis => self.redis.is_some(),
            Component::Rabbitmq => self.rabbitmq.is_some(),
            _ => false,
        })
    }

    /// Makes a table and a slot, and then the log that the slot sees.
    pub async fn load(&self, workload: Workload, rows: u64) -> Result<Loaded> {
        eprintln!("loading {rows} rows ({})", workload.name());
        let table = workload.table();
        self.database.execute(&workload.create()).await;
        if workload == Workload::Table {
            self.database.execute(&workload.fill(rows)).await;
            // Hint bits and the visibility map are set once, not by the first who reads.
            self.database
                .execute(&format!("VACUUM ANALYZE {table}"))
                .await;
            self.make_slot(table).await;
        } else {
            self.make_slot(table).await;
            self.database.execute(&workload.fill(rows)).await;
        }
        let end = self
            .database
            .value("SELECT pg_current_wal_insert_lsn()")
            .await;
        // Commits were asynchronous; what is not flushed is not sent.
        self.database.execute("CHECKPOINT").await;
        Ok(Loaded {
            workload,
            rows,
            end: end.ok_or("no position")?,
        })
    }

    async fn make_slot(&self, name: &str) {
        let sql = format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')");
        self.database.execute(&sql).await;
    }

    /// Frees the log.
    pub async fn unload(&self, loaded: &Loaded) {
        let table = loaded.workload.table();
        let sql = format!(
            "SELECT pg_drop_replication_slot('{table}'); DROP PUBLICATION {table}; DROP TABLE {table}; CHECKPOINT"
        );
        self.database.execute(&sql).await;
    }

    /// One run, on a copy of the slot.
    pub async fn run(&self, loaded: &Loaded, entry: Entry) -> Result<Sample> {
        let contender = entry.contender;
        let slot = unique("run");
        let table = loaded.workload.table();
        let copy = format!("SELECT pg_copy_logical_replication_slot('{table}', '{slot}', false)");
        self.database.execute(&copy).await;
        let state = self.folder.join(&slot);
        std::fs::create_dir_all(&state)?;
        let (command, ours) = match contender {
            Contender::PgRecvlogical => (self.pg_recvlogical(loaded, &slot), false),
            Contender::Psql => (self.psql(table), false),
            _ => {
                let task = Task {
                    url: self.database.url().to_owned(),
                    table: table.to_owned(),
                    slot: slot.clone(),
                    rows: loaded.rows,
                    into: self.target(contender),
                    copy_workers: match contender {
                        Contender::CopyOne => Some(1),
                        Contender::CopyTwo => Some(2),
                        _ => None,
                    },
                    nap: entry.nap,
                    state: state.clone(),
                };
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("drain").arg(serde_json::to_string(&task)?);
                (command, true)
            }
        };
        let (rows, postmaster) = (loaded.rows, self.postmaster);
        let measured =
            tokio::task::spawn_blocking(move || measure::run(command, rows, postmaster)).await?;
        std::fs::remove_dir_all(&state)?;
        if let (Contender::Redis, Some(redis)) = (contender, &self.redis) {
            redis.command(&["FLUSHALL"]).await?;
        }
        let (mut sample, text) = measured?;
        let drop_slot = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{slot}'"
        );
        lockstep_kit::wait_for(
            std::time::Duration::from_secs(10),
            "the slot to be free",
            async || {
                let active =
                    format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'");
                (self.database.value(&active).await.as_deref() != Some("t")).then_some(())
            },
        )
        .await;
        self.database.execute(&drop_slot).await;
        if ours {
            let outcome: Outcome = serde_json::from_str(&text)?;
            sample.peak_kib = outcome.peak_kib;
            if outcome.rows != rows {
                return Err(format!("{} rows came, not {rows}", outcome.rows).into());
            }
        }
        Ok(sample)
    }

    fn target(&self, contender: Contender) -> Destination {
        let none = Destination::Nothing;
        let url = |url: Option<&str>, destination: fn(String) -> Destination| {
            url.map_or(Destination::Nothing, |url| destination(url.to_owned()))
        };
        let redis = self.redis.as_ref().map(Redis::url);
        match contender {
            Contender::File => Destination::File,
            Contender::Redis => url(redis, |url| Destination::Redis { url }),
            Contender::RedisStream => url(redis, |url| Destination::RedisStream { url }),
            Contender::Rabbitmq => {
                let rabbitmq = self.rabbitmq.as_ref().map(Rabbitmq::url);
                url(rabbitmq, |url| Destination::Rabbitmq { url })
            }
            contender if contender.needs().contains(&Component::Kafka) => {
                let registry = self.registry.as_ref();
                let registry =
                    registry.filter(|_| contender.needs().contains(&Component::Registry));
                self.kafka
                    .as_ref()
                    .map_or(none, |kafka| Destination::Kafka {
                        brokers: kafka.bootstrap().to_owned(),
                        format: contender.format().to_owned(),
                        registry: registry.map(|registry| registry.url().to_owned()),
                        exactly_once: contender == Contender::KafkaTransactions,
                        partitions: PARTITIONS,
                    })
            }
            _ => none,
        }
    }

    fn pg_recvlogical(&self, loaded: &Loaded, slot: &str) -> Command {
        let mut command = Command::new(self.postgres.bin_dir().join("pg_recvlogical"));
        command
            .args(["-d", &format!("{}?sslmode=disable", self.database.url())])
            .args([
                "-S",
                slot,
                "--start",
                "-f",
                "/dev/null",
                "--endpos",
                &loaded.end,
            ])
            .args(["-o", "proto_version=1", "-o"])
            .arg(format!("publication_names={}", loaded.workload.table()))
            .args(["-s", "1", "--no-loop"]);
        command
    }

    fn psql(&self, table: &str) -> Command {
        let mut command = Command::new(self.postgres.bin_dir().join("psql"));
        command
            .args([
                "-X",
                "-q",
                "-d",
                &format!("{}?sslmode=disable", self.database.url()),
            ])
            .args(["-o", "/dev/null", "-c", &format!("COPY {table} TO STDOUT")]);
        command
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // A folder left behind in the temporary one harms nobody.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

//! The `[sources.NAME]` section with `type = "postgres"`.

use lockstep_core::config::{ByteSize, Duration, Secret};
use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_pg::wire::target::Target;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `publication` when the file does not say.
pub const DEFAULT_PUBLICATION: &str = "lockstep";
/// `snapshot_workers` when the file does not say: two connections outrun one by 1.8 on two cores, and a copy should
/// not take the whole server.
pub const DEFAULT_SNAPSHOT_WORKERS: u8 = 2;
/// `snapshot_chunk` when the file does not say: what a copy that is interrupted reads again, and so little that all
/// connections end at about the same time; so much that a statement for each costs nothing.
pub const DEFAULT_SNAPSHOT_CHUNK: ByteSize = ByteSize(8 << 20);
/// The smallest `snapshot_chunk`: a page.
const LEAST_SNAPSHOT_CHUNK: u64 = 8 << 10;
/// `status_interval` when the file does not say. Far inside half of the server's default `wal_sender_timeout` (60 s),
/// beyond which the server checks for replies on every record it sends.
pub const DEFAULT_STATUS_INTERVAL: Duration = Duration(std::time::Duration::from_secs(10));
/// `coalesce` when the file does not say: measured to drain the same log 1.7 to 2.6 times faster than an eager reader
/// when the server is on the same machine.
pub const DEFAULT_COALESCE: Duration = Duration(std::time::Duration::from_micros(200));

/// A PostgreSQL database as a source: one slot, one publication.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database?sslmode=…`. TLS by `sslmode` (disable, allow, prefer, require,
    /// verify-ca, verify-full), `sslrootcert`, `sslcert`, `sslkey` as in libpq.
    pub url: Secret,
    /// The password, when it is not part of the URL.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Replication slot; created when missing, never altered. Default: `lockstep_<source name>`.
    #[serde(default)]
    pub slot: Option<String>,
    /// Publication; created for `tables` when missing and permitted. Tables that come are added to it where that is
    /// permitted; nothing else of it is altered.
    #[serde(default = "default_publication")]
    pub publication: String,
    /// Tables to read, `schema.table`, or `schema.*` for all tables of a schema.
    pub tables: Vec<String>,
    /// Whether existing rows are copied before the stream.
    #[serde(default)]
    pub snapshot: SnapshotMode,
    /// Connections that copy tables at the same time.
    #[serde(default = "default_snapshot_workers")]
    pub snapshot_workers: u8,
    /// Large tables are copied in pieces of this size, several at the same time.
    #[serde(default = "default_snapshot_chunk")]
    pub snapshot_chunk: ByteSize,
    /// Bytes per second that copies and loads read at most, all connections together. Default: no limit.
    #[serde(default)]
    pub snapshot_rate: Option<ByteSize>,
    /// Copies and loads pause while more sessions than this are active on the server, ours left out. Needs
    /// `pg_read_all_stats`. Default: no limit.
    #[serde(default)]
    pub snapshot_max_load: Option<u32>,
    /// Copies, loads and comparisons pause while a physical standby has more bytes of WAL than this to replay. Default: no limit. Needs
    /// `pg_read_all_stats`.
    #[serde(default)]
    pub snapshot_max_replica_lag: Option<ByteSize>,
    /// What to do when changes can no longer be read without a gap: the slot was dropped, given up by the server or made
    /// again, or the server is another one or was restored to an earlier point. Default: `stop`.
    #[serde(default)]
    pub on_slot_lost: Option<OnSlotLost>,
    /// Create the slot so that standbys have it too and it survives a failover. PostgreSQL 17 and newer.
    #[serde(default)]
    pub failover: bool,
    /// Whether large transactions are received while they are still in progress.
    #[serde(default)]
    pub streaming: Streaming,
    /// Receive transactions when they are prepared, with the names that their coordinator gives them, and send them on when
    /// they are committed. PostgreSQL 15 and newer. A slot that has been switched to it stays so.
    #[serde(default)]
    pub two_phase: bool,
    /// How often the server hears from us at least. Keep it below half of the server's `wal_sender_timeout`.
    #[serde(default = "default_status_interval")]
    pub status_interval: Duration,
    /// How long the reader naps between reads while the stream is busy; `0` reads eagerly.
    #[serde(default = "default_coalesce")]
    pub coalesce_micros: u32,
}

/// Whether existing rows are copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotMode {
    /// Once, when the pipeline has not copied them yet.
    #[default]
    Initial,
    /// Never: only changes from the slot's creation on.
    Never,
    /// `initial` with `on_slot_lost = "resync"`.
    WhenNeeded,
}

/// Whether transactions that outgrow the server's `logical_decoding_work_mem` are received while they are in progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Streaming {
    /// The server keeps them, and sends them when they have committed.
    #[default]
    Off,
    /// They are kept here, in files in the state directory, and go on when they have committed.
    On,
}

/// What to do when changes can no longer be read without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnSlotLost {
    /// Stop the pipeline and leave everything as it is.
    Stop,
    /// Make or move the slot, and copy the tables again. The copy begins with a TRUNCATE, so that rows deleted in the gap
    /// do not stay in the sinks.
    Resync,
}

fn default_publication() -> String {
    DEFAULT_PUBLICATION.to_owned()
}

fn default_snapshot_workers() -> u8 {
    DEFAULT_SNAPSHOT_WORKERS
}

fn default_snapshot_chunk() -> ByteSize {
    DEFAULT_SNAPSHOT_CHUNK
}

fn default_status_interval() -> Duration {
    DEFAULT_STATUS_INTERVAL
}

fn default_coalesce() -> u32 {
    DEFAULT_COALESCE.0.as_micros() as u32
}

impl PostgresConfig {
    /// What can be checked without a server.
    ///
    /// # Errors
    /// Of kind `Config`, naming the field.
    pub fn validate(&self) -> Result<()> {
        let wrong = |field: &str, message: String, remedy: &str| {
            Err(Error::new(ErrorKind::Config, message)
                .remedy(remedy)
                .at(field))
        };
        self.target().map_err(|error| error.at("url"))?;
        if self.tables.is_empty() {
            return wrong(
                "tables",
                "no tables are named".to_owned(),
                "list them: tables = [\"public.orders\"]",
            );
        }
        for table in &self.tables {
            let parts: Vec<&str> = table.split('.').collect();
            if parts.len() != 2
                || parts.iter().any(|part| part.is_empty())
                || parts[0].contains('*')
            {
                return wrong(
                    "tables",
                    format!("`{table}` does not name a table"),
                    "write schema.table, or schema.* for all tables of a schema",
                );
            }
        }
        if let Some(slot) = &self.slot
            && (slot.is_empty()
                || slot.len() > 63
                || !slot
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        {
            return wrong(
                "slot",
                format!("`{slot}` is not a slot name"),
                "use lower-case letters, digits and underscores, at most 63",
            );
        }
        if self.snapshot_workers == 0 || self.snapshot_workers > 32 {
            return wrong(
                "snapshot_workers",
                format!("{} workers", self.snapshot_workers),
                "use 1 to 32",
            );
        }
        if self.snapshot_chunk.0 < LEAST_SNAPSHOT_CHUNK {
            return wrong(
                "snapshot_chunk",
                format!("{} bytes are less than a page", self.snapshot_chunk.0),
                "use 8KiB or more; 8MiB is the default",
            );
        }
        if self.snapshot_rate.is_some_and(|rate| rate.0 == 0) {
            return wrong(
                "snapshot_rate",
                "at 0 bytes per second nothing is ever read".to_owned(),
                "leave it out for no limit",
            );
        }
        match (self.snapshot, self.on_slot_lost) {
            (SnapshotMode::Never, Some(OnSlotLost::Resync)) => {
                return wrong(
                    "on_slot_lost",
                    "`resync` copies the tables, and snapshot = \"never\" rules that out"
                        .to_owned(),
                    "use on_slot_lost = \"stop\", or snapshot = \"initial\"",
                );
            }
            (SnapshotMode::WhenNeeded, Some(OnSlotLost::Stop)) => {
                return wrong(
                    "on_slot_lost",
                    "`stop` contradicts snapshot = \"when_needed\", which is `initial` with `resync`"
                        .to_owned(),
                    "leave one of the two out",
                );
            }
            _ => {}
        }
        if self.status_interval.0.is_zero() {
            return wrong("status_interval", "zero".to_owned(), "use 1s to 30s");
        }
        if self.coalesce_micros > 100_000 {
            return wrong(
                "coalesce_micros",
                format!(
                    "{} microseconds would delay every change",
                    self.coalesce_micros
                ),
                "use 0 to 100000; 200 is the default",
            );
        }
        Ok(())
    }

    /// Where to connect.
    ///
    /// # Errors
    /// Of kind `Config` when the URL cannot be read.
    pub fn target(&self) -> Result<Target> {
        let mut target = Target::parse(self.url.reveal())?;
        if let Some(password) = &self.password {
            target.password = Some(password.clone());
        }
        Ok(target)
    }

    /// What to do when changes can no longer be read without a gap.
    #[must_use]
    pub fn on_slot_lost(&self) -> OnSlotLost {
        match (self.on_slot_lost, self.snapshot) {
            (Some(policy), _) => policy,
            (None, SnapshotMode::WhenNeeded) => OnSlotLost::Resync,
            (None, _) => OnSlotLost::Stop,
        }
    }

    /// The slot's name.
    #[must_use]
    pub fn slot_name(&self, source: &str) -> String {
        self.slot.clone().unwrap_or_else(|| {
            let clean: String = source
                .chars()
                .map(|c| {
                    if c.is_ascii_alphanumeric() {
                        c.to_ascii_lowercase()
                    } else {
                        '_'
                    }
                })
                .collect();
            format!("lockstep_{clean}").chars().take(63).collect()
        })
    }
}

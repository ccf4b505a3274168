//! Opens a source on a kit database and collects what it sends.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_core::Result;
use lockstep_core::batch::{Batch, Branch, CellRef, Change, OldImage, Op, Phase, Row};
use lockstep_core::feedback::Feedback;
use lockstep_core::memory::Budget;
use lockstep_core::position::{Lsn, Position};
use lockstep_core::source::{Source, SourceContext, SourceFactory, SourceStatus};
use lockstep_kit::postgres::Database;
use lockstep_postgres::{PostgresConfig, PostgresFactory};
use serde_json::{Value, json};

/// How long a test waits for something that should happen at once.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A change, with its values as text; `~` stands for an unchanged value.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub op: Op,
    pub table: String,
    pub new: BTreeMap<String, Option<String>>,
    pub old: BTreeMap<String, Option<String>>,
    pub old_image: OldImage,
    pub key: Vec<String>,
    pub position: Position,
    pub phase: Phase,
    pub xid: u32,
    pub lsn: Lsn,
    pub micros: i64,
    pub origin: Option<String>,
    pub previous_commit: Option<Lsn>,
    pub gid: Option<String>,
}

impl Seen {
    pub fn value(&self, column: &str) -> &str {
        self.new
            .get(column)
            .and_then(Option::as_deref)
            .unwrap_or("NULL")
    }
}

fn values(
    batch: &Batch,
    change: &Change,
    row: Option<Row<'_>>,
) -> BTreeMap<String, Option<String>> {
    let Some(row) = row else {
        return BTreeMap::new();
    };
    batch
        .schema(change)
        .columns
        .iter()
        .map(|column| {
            let value = match row.get(column) {
                CellRef::Null => None,
                CellRef::Unchanged => Some("~".to_owned()),
                CellRef::Text(bytes) | CellRef::Binary(bytes) => {
                    Some(String::from_utf8_lossy(bytes).into_owned())
                }
            };
            (column.name.to_string(), value)
        })
        .collect()
}

/// An open source.
pub struct Opened {
    pub source: Box<dyn Source>,
    pub feedback: Feedback,
    pub status: SourceStatus,
    pub seen: Vec<Seen>,
    /// Words of two-phase commits.
    pub branches: Vec<Branch>,
    pub through: Lsn,
    pub mark: u64,
    pub batches: usize,
    /// Bytes of the largest batch.
    pub largest: usize,
}

/// The section of a pipeline file for a database, with more keys on top.
pub fn config(url: &str, tables: &[&str], more: Value) -> PostgresConfig {
    let mut section = json!({ "url": url, "tables": tables, "slot": slot_name(url) });
    for (key, value) in more.as_object().into_iter().flatten() {
        section[key] = value.clone();
    }
    serde_json::from_value(section).expect("a valid section")
}

/// Slots belong to the server, not to the database: each test's has its database's name.
pub fn slot_name(url: &str) -> String {
    let database = url
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .split('?')
        .next()
        .unwrap_or_default();
    database
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '_'
            }
        })
        .collect()
}

impl Opened {
    pub async fn try_open(config: &PostgresConfig, state: &std::path::Path) -> Result<Opened> {
        Self::try_open_with(config, state, Budget::new(64 << 20)).await
    }

    pub async fn try_open_with(
        config: &PostgresConfig,
        state: &std::path::Path,
        budget: Budget,
    ) -> Result<Opened> {
        PostgresFactory::validate(config)?;
        let context = SourceContext {
            pipeline: "test".into(),
            name: "shop".into(),
            state: state.into(),
            feedback: Feedback::default(),
            budget,
            status: SourceStatus::default(),
            token: None,
        };
        let (feedback, status) = (context.feedback.clone(), context.status.clone());
        let source = PostgresFactory::open(config, context).await?;
        Ok(Opened {
            source,
            feedback,
            status,
            seen: Vec::new(),
            branches: Vec::new(),
            through: Lsn::ZERO,
            mark: 0,
            batches: 0,
            largest: 0,
        })
    }

    pub async fn open(config: &PostgresConfig, state: &std::path::Path) -> Opened {
        Self::try_open(config, state)
            .await
            .expect("the source opens")
    }

    /// One batch more.
    pub async fn next(&mut self) -> Result<()> {
        let batch = tokio::time::timeout(DEADLINE, self.source.next())
            .await
            .expect("a batch in time")?;
        let batch = batch.expect("the source goes on");
        self.batches += 1;
        self.branches.extend(batch.branch.clone());
        self.largest = self.largest.max(batch.size());
        for change in batch.changes() {
            let schema = batch.schema(change);
            let transaction = batch.transaction(change);
            self.seen.push(Seen {
                op: change.op,
                table: schema.id.to_string(),
                new: values(&batch, change, batch.new_row(change)),
                old: values(&batch, change, batch.old_row(change)),
                old_image: change.old_image,
                key: schema
                    .key_columns()
                    .map(|column| column.name.to_string())
                    .collect(),
                position: batch.position(change),
                phase: batch.phase,
                xid: transaction.xid,
                lsn: change.lsn,
                micros: transaction.commit_micros,
                origin: transaction.origin.as_deref().map(str::to_owned),
                previous_commit: transaction.previous_commit,
                gid: transaction
                    .prepared
                    .as_ref()
                    .map(|first| first.gid.to_string()),
            });
        }
        self.mark = batch.mark.unwrap_or(self.mark);
        if let Some(through) = batch.through {
            assert!(through > self.through, "through only moves forward");
            self.through = through;
        }
        Ok(())
    }

    /// Reads on until `count` changes have come in all, then checks that they are all.
    pub async fn changes(&mut self, count: usize) -> &[Seen] {
        while self.seen.len() < count {
            self.next().await.expect("the stream goes on");
        }
        assert_eq!(self.seen.len(), count, "{:#?}", self.seen);
        &self.seen
    }

    /// Reads on until `count` changes of tables have come in all, then gives them. Messages may be among them, such as that
    /// of [`Opened::catch_up`].
    pub async fn rows(&mut self, count: usize) -> Vec<&Seen> {
        while self
            .seen
            .iter()
            .filter(|seen| seen.op != Op::Message)
            .count()
            < count
        {
            self.next().await.expect("the stream goes on");
        }
        let rows = self.seen.iter().filter(|seen| seen.op != Op::Message);
        let rows: Vec<_> = rows.collect();
        assert_eq!(rows.len(), count, "{rows:#?}");
        rows
    }

    /// Reads on until everything up to the server's present position has come.
    pub async fn catch_up(&mut self, database: &Database) {
        let here: Lsn = database
            .value("SELECT pg_current_wal_insert_lsn()::text")
            .await
            .expect("a position")
            .parse()
            .expect("an LSN");
        // A later record makes the server pass the position even when nothing of ours follows.
        database
            .execute("SELECT pg_logical_emit_message(false, 'test', '')")
            .await;
        while self.through < here {
            self.next().await.expect("the stream goes on");
        }
    }

    pub async fn close(mut self) {
        self.source.close().await.expect("closes");
    }
}

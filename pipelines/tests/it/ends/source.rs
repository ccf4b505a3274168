//! A log with a slot.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lockstep_core::batch::{Batch, BatchBuilder, Cell, Op, Phase, Transaction};
use lockstep_core::check::Finding;
use lockstep_core::feedback::Feedback;
use lockstep_core::position::{Lsn, Position, SourceIdentity, SourceInfo};
use lockstep_core::query::{
    Ending, Finish, InDoubt, Queries, QueryColumn, QuerySession, XactStatus,
};
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};
use lockstep_core::source::{Source, SourceContext, SourceFactory, SourcePhase, SourceStatus};
use lockstep_core::{Error, ErrorKind, Result};
use tokio::sync::Notify;

use super::{Config, Ends, ROW_BYTES, error, find};

static SERVERS: LazyLock<Ends<Server>> = LazyLock::new(Mutex::default);

/// One row of the log: table and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogRow {
    pub table: &'static str,
    pub key: u64,
}

/// A committed transaction. The end of one is the commit of the next, as PostgreSQL has it at times.
#[derive(Clone, Debug)]
pub struct LogTransaction {
    pub commit: Lsn,
    pub end: Lsn,
    pub rows: Vec<LogRow>,
}

/// A server with a log and a slot.
pub struct Server {
    pub name: &'static str,
    state: Mutex<ServerState>,
    changed: Notify,
    schemas: BTreeMap<&'static str, Arc<TableSchema>>,
}

pub struct ServerState {
    pub log: Vec<LogTransaction>,
    /// Rows that an opening at position zero copies first.
    pub snapshot: Vec<LogRow>,
    /// The slot's confirmed position, as the server was told.
    pub confirmed: Lsn,
    /// How far the server's log reaches, with nothing published at its end.
    pub idle: Lsn,
    /// The log ends: `next` gives `None` when all is read.
    pub bounded: bool,
    /// Errors of openings to come.
    pub open_faults: VecDeque<ErrorKind>,
    /// Errors of `next`, after so many more batches.
    pub read_faults: VecDeque<(usize, ErrorKind)>,
    /// Changes per batch, in turn.
    pub batch_sizes: Vec<usize>,
    pub batches: usize,
    pub opened: usize,
    pub closed: usize,
    pub system: u64,
    pub feedback: Option<Feedback>,
    pub status: Option<SourceStatus>,
    /// Called with every position the slot is told to confirm.
    pub watch: Option<Box<dyn Fn(Lsn) + Send>>,
}

impl Server {
    pub fn new(script: &str, name: &'static str, tables: &[&'static str]) -> Arc<Server> {
        let schemas = tables
            .iter()
            .map(|table| (*table, table_schema(name, table)))
            .collect();
        let server = Arc::new(Server {
            name,
            state: Mutex::new(ServerState {
                log: Vec::new(),
                snapshot: Vec::new(),
                confirmed: Lsn(0),
                idle: Lsn(0),
                bounded: false,
                open_faults: VecDeque::new(),
                read_faults: VecDeque::new(),
                batch_sizes: vec![3],
                batches: 0,
                opened: 0,
                closed: 0,
                system: 1,
                feedback: None,
                status: None,
                watch: None,
            }),
            changed: Notify::new(),
            schemas,
        });
        SERVERS
            .lock()
            .unwrap()
            .insert(script.to_owned(), Arc::clone(&server));
        server
    }

    pub fn state(&self) -> MutexGuard<'_, ServerState> {
        self.state.lock().unwrap()
    }

    /// Commits rows and returns the end of the commit.
    pub fn commit(&self, rows: &[LogRow]) -> Lsn {
        let mut state = self.state();
        let commit = Lsn(100 * (state.log.len() as u64 + 1));
        let end = Lsn(commit.0 + 100);
        state.log.push(LogTransaction {
            commit,
            end,
            rows: rows.to_vec(),
        });
        drop(state);
        self.changed.notify_waiters();
        end
    }

    /// Commits `count` transactions of one row each to `table`; keys count up.
    pub fn fill(&self, table: &'static str, count: u64) -> Lsn {
        let start = self.state().log.len() as u64;
        (start..start + count)
            .map(|key| self.commit(&[LogRow { table, key }]))
            .last()
            .unwrap_or(Lsn(0))
    }

    /// The log grows without anything for us in it.
    pub fn idle_to(&self, lsn: Lsn) {
        self.state().idle = lsn;
        self.changed.notify_waiters();
    }

    /// Every change of the stream, in order: what an exactly-once sink must hold.
    pub fn stream(&self) -> Vec<(Position, LogRow)> {
        let rows = |transaction: &LogTransaction| {
            let commit = transaction.commit;
            let place = move |(index, row): (usize, LogRow)| {
                let ordinal = index as u64 + 1;
                (Position { commit, ordinal }, row)
            };
            transaction
                .rows
                .clone()
                .into_iter()
                .enumerate()
                .map(place)
                .collect::<Vec<_>>()
        };
        self.state().log.iter().flat_map(rows).collect()
    }

    fn tell(&self, lsn: Lsn) {
        let mut state = self.state();
        if lsn > state.confirmed {
            state.confirmed = lsn;
            if let Some(watch) = &state.watch {
                watch(lsn);
            }
        }
    }
}

fn table_schema(source: &str, table: &str) -> Arc<TableSchema> {
    let column = |name: &str, slot| Column {
        name: name.into(),
        ty: ColumnType {
            oid: 25,
            typmod: -1,
            name: "text".into(),
            kind: TypeKind::Base,
        },
        slot,
        not_null: true,
    };
    Arc::new(TableSchema {
        source: source.into(),
        id: TableId::new("public", table),
        origin: TableId::new("public", table),
        relation: 1,
        version: 1,
        columns: vec![column("table", 0), column("key", 1)],
        key: vec![1],
        identity: ReplicaIdentity::Default,
        width: 2,
    })
}

/// Reads a [`Server`].
pub struct ScriptedSource {
    server: Arc<Server>,
    info: Arc<SourceInfo>,
    context: SourceContext,
    copied: bool,
    closed: bool,
    transaction: usize,
    row: usize,
    idle_sent: Lsn,
    builder: BatchBuilder,
}

#[async_trait]
impl SourceFactory for ScriptedSource {
    const KIND: &'static str = "scripted";
    type Config = Config;

    fn validate(config: &Config) -> Result<()> {
        if config.script.is_empty() {
            return Err(Error::new(ErrorKind::Config, "`script` is empty"));
        }
        Ok(())
    }

    async fn open(config: &Config, context: SourceContext) -> Result<Box<dyn Source>> {
        let server = find(&SERVERS, &config.script);
        let mut state = server.state();
        if let Some(kind) = state.open_faults.pop_front() {
            return Err(error(kind));
        }
        state.opened += 1;
        state.feedback = Some(context.feedback.clone());
        state.status = Some(context.status.clone());
        let start = state.confirmed;
        let transaction = state
            .log
            .iter()
            .filter(|transaction| transaction.end <= start)
            .count();
        let identity = SourceIdentity {
            system: state.system,
            timeline: 1,
            incarnation: 0,
            database: server.name.into(),
        };
        drop(state);
        context.status.update(|status| {
            status.phase = SourcePhase::Streaming;
            status.heard_now();
        });
        Ok(Box::new(ScriptedSource {
            info: Arc::new(SourceInfo {
                name: Arc::clone(&context.name),
                identity,
            }),
            copied: start > Lsn(0),
            closed: false,
            idle_sent: start,
            server,
            context,
            transaction,
            row: 0,
            builder: BatchBuilder::new(),
        }))
    }

    async fn preflight(_: &Config, pipeline: &str, name: &str, _: &Path) -> Vec<Finding> {
        vec![Finding::pass("reachable", format!("{pipeline}/{name}"))]
    }

    fn queries(_: &Config) -> Result<Option<Arc<dyn Queries>>> {
        Ok(Some(Arc::new(Away)))
    }
}

/// A database that does not answer.
struct Away;

#[async_trait]
impl Queries for Away {
    async fn describe(&self, _: &str) -> Result<Vec<QueryColumn>> {
        Err(error(ErrorKind::Unavailable))
    }

    async fn open(&self, _: Duration) -> Result<Box<dyn QuerySession>> {
        Err(error(ErrorKind::Unavailable))
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubt>> {
        Err(error(ErrorKind::Unavailable))
    }

    async fn finish(&self, _: &InDoubt, _: Ending) -> Result<Finish> {
        Err(error(ErrorKind::Unavailable))
    }

    async fn xact_status(&self, _: u32) -> Result<XactStatus> {
        Err(error(ErrorKind::Unavailable))
    }
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_millis() as u64
}

/// What to read next.
enum Next {
    Batch(Box<Batch>, usize),
    Wait,
    End,
    Fail(ErrorKind),
}

impl ScriptedSource {
    fn look(&mut self) -> Next {
        let server = Arc::clone(&self.server);
        let mut state = server.state();
        if let Some((after, kind)) = state.read_faults.front_mut() {
            if *after == 0 {
                let kind = *kind;
                state.read_faults.pop_front();
                return Next::Fail(kind);
            }
            *after -= 1;
        }
        if !self.copied {
            self.copied = true;
            if !state.snapshot.is_empty() {
                let rows: Vec<_> = state.snapshot.clone();
                drop(state);
                return self.batch(Phase::Snapshot, &[(Lsn(1), 0, rows)], Some(Lsn(1)));
            }
        }
        let turn = state.batches;
        let size = state.batch_sizes[turn % state.batch_sizes.len()];
        state.batches += 1;
        let mut parts = Vec::new();
        let mut count = 0;
        let mut through = None;
        while count < size && self.transaction < state.log.len() {
            let transaction = &state.log[self.transaction];
            let until = (self.row + size - count).min(transaction.rows.len());
            parts.push((
                transaction.commit,
                self.row,
                transaction.rows[self.row..until].to_vec(),
            ));
            count += until - self.row;
            self.row = until;
            // Of the last whole one, also when the next is cut.
            if self.row == transaction.rows.len() {
                through = Some(transaction.end);
                self.transaction += 1;
                self.row = 0;
            }
        }
        let (bounded, idle) = (state.bounded, state.idle);
        drop(state);
        if count > 0 {
            return self.batch(Phase::Stream, &parts, through);
        }
        if idle > self.idle_sent {
            self.idle_sent = idle;
            return Next::Batch(Box::new(Batch::progress(Arc::clone(&self.info), idle)), 0);
        }
        if bounded { Next::End } else { Next::Wait }
    }

    fn batch(
        &mut self,
        phase: Phase,
        parts: &[(Lsn, usize, Vec<LogRow>)],
        through: Option<Lsn>,
    ) -> Next {
        let mut block = Vec::new();
        let mut count = 0;
        for (commit, first, rows) in parts {
            self.builder.begin(Transaction {
                commit: *commit,
                commit_micros: now_ms() as i64 * 1000,
                xid: 1,
                origin: None,
                previous_commit: None,
                prepared: None,
                global: None,
            });
            for (index, row) in rows.iter().enumerate() {
                let schema = self.builder.schema(&self.server.schemas[row.table]);
                let start = self.builder.cells().len();
                for text in [row.table.to_owned(), row.key.to_string()] {
                    let cell = Cell::text(block.len() as u32, text.len() as u32);
                    self.builder.cells().push(cell);
                    block.extend_from_slice(text.as_bytes());
                }
                let op = if phase == Phase::Snapshot {
                    Op::Read
                } else {
                    Op::Insert
                };
                let ordinal = (first + index) as u64 + 1;
                self.builder
                    .push(op, schema, ordinal, *commit, None, Some(start));
                count += 1;
            }
        }
        let info = Arc::clone(&self.info);
        let batch = self
            .builder
            .finish(info, phase, through, Bytes::from(block));
        Next::Batch(Box::new(batch), count)
    }
}

#[async_trait]
impl Source for ScriptedSource {
    fn info(&self) -> Arc<SourceInfo> {
        Arc::clone(&self.info)
    }

    fn tables(&self) -> Vec<Arc<TableSchema>> {
        self.server.schemas.values().cloned().collect()
    }

    async fn next(&mut self) -> Result<Option<Batch>> {
        loop {
            if self.closed {
                return Ok(None);
            }
            self.server.tell(self.context.feedback.confirmed());
            // Room first, so that nothing is lost when this future is dropped.
            let permit = self.context.budget.take(3 * ROW_BYTES).await;
            let server = Arc::clone(&self.server);
            let changed = server.changed.notified();
            match self.look() {
                Next::Batch(batch, 0) => return Ok(Some(*batch)),
                Next::Batch(batch, _) => return Ok(Some(batch.with_permit(permit))),
                Next::End => return Ok(None),
                Next::Fail(kind) => return Err(error(kind)),
                Next::Wait => {
                    drop(permit);
                    // Also look at the feedback now and then, as a keepalive timer does.
                    let _ = tokio::time::timeout(Duration::from_millis(50), changed).await;
                }
            }
        }
    }

    async fn close(&mut self) -> Result<()> {
        self.server.tell(self.context.feedback.confirmed());
        self.server.state().closed += 1;
        self.closed = true;
        Ok(())
    }
}

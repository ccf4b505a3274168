//! The initial copy: every table as one snapshot shows it, by COPY, in parallel across tables and inside large ones.
//!
//! Rows carry the slot's consistent point as their version, so that any later change wins. How much of it is durable is
//! on record ([`extent`]); what an interrupted copy has left to do is read beside the stream, see `opening`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lockstep_core::batch::{Batch, Transaction};
use lockstep_core::config::ByteSize;
use lockstep_core::error::{At, Error, ErrorKind, Result};
use lockstep_core::memory::Budget;
use lockstep_core::position::{Lsn, SourceInfo};
use lockstep_core::schema::TableSchema;
use lockstep_core::source::{SourcePhase, SourceStatus, TableProgress};
use lockstep_core::trace::{TARGET, Traced, count};
use lockstep_pg::error::protocol;
use lockstep_pg::sql::{self, quote_ident, quote_literal};
use lockstep_pg::wire::target::Target;
use lockstep_pg::wire::{Connection, Mode};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::catalog::Published;
use crate::copy_out::{CopyOut, Rows};
use crate::extent::{self, Pages, Recorder};
use crate::throttle::Throttle;

/// A batch goes on when its block has grown to this size.
const BLOCK: usize = 256 * 1024;
/// How often the progress is logged.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// Everything a copy needs.
pub struct Copy {
    pub pipeline: Arc<str>,
    pub target: Target,
    pub source: Arc<SourceInfo>,
    pub tables: Vec<(Published, Arc<TableSchema>)>,
    /// Name of the exported snapshot; its owner keeps it open until the copy is done.
    pub snapshot: String,
    pub consistent_point: Lsn,
    pub workers: u8,
    /// Tables are cut into pieces of this many bytes of heap.
    pub chunk: ByteSize,
    pub batches: mpsc::Sender<Result<Batch>>,
    pub recorder: Recorder,
    pub throttle: Arc<Throttle>,
    pub budget: Budget,
    pub status: SourceStatus,
}

/// A piece of a table.
#[derive(Debug)]
struct Chunk {
    /// Index into the tables.
    table: usize,
    /// The heap, and its name, quoted: the table itself or one of its partitions.
    relation: u32,
    heap: String,
    pages: Pages,
}

struct Shared {
    copy: Copy,
    chunks: Mutex<VecDeque<Chunk>>,
    /// Chunks left per table.
    left: Vec<AtomicU64>,
    /// Tables of which something has been read and something is left, where traces are exported.
    traces: Mutex<Vec<Option<Traced>>>,
    ordinal: AtomicU64,
    started: Instant,
    started_micros: i64,
    logged: Mutex<Instant>,
}

impl Copy {
    /// Copies all tables. The batches say nothing about positions; the caller does when all are sent.
    ///
    /// # Errors
    /// By kind; the copy is then done again from the start.
    pub async fn run(self, client: &Client) -> Result<u64> {
        let Plan {
            chunks,
            progress,
            extents,
        } = plan(client, &self.tables, self.chunk).await?;
        self.recorder.plan(extents);
        // The clock that commits have: ours may be another.
        let now = "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::int8";
        let now = sql::query_one(client, "ask for the time", now, &[]).await?;
        let mut left: Vec<u64> = vec![0; self.tables.len()];
        for chunk in &chunks {
            left[chunk.table] += 1;
        }
        let total: u64 = progress.iter().map(|table| table.estimated_rows).sum();
        tracing::info!(
            source = &*self.source.name,
            tables = self.tables.len(),
            chunks = chunks.len(),
            estimated_rows = total,
            "copying tables"
        );
        self.status.update(|state| {
            state.phase = SourcePhase::Snapshot;
            state.problem = None;
            state.snapshot = progress;
        });
        let workers = usize::from(self.workers).min(chunks.len());
        let traces = self.tables.iter().map(|_| None).collect();
        let shared = Arc::new(Shared {
            copy: self,
            chunks: Mutex::new(chunks.into()),
            left: left.into_iter().map(AtomicU64::new).collect(),
            traces: Mutex::new(traces),
            ordinal: AtomicU64::new(1),
            started: Instant::now(),
            started_micros: now.get(0),
            logged: Mutex::new(Instant::now()),
        });
        let mut tasks = JoinSet::new();
        for _ in 0..workers {
            tasks.spawn(work(Arc::clone(&shared)).in_current_span());
        }
        while let Some(done) = tasks.join_next().await {
            // Dropping the set on an error ends the other workers.
            done.map_err(|error| {
                Error::new(ErrorKind::Abandoned, "a copy worker panicked").source(error)
            })??;
        }
        shared.copy.recorder.whole();
        let rows = shared.ordinal.load(Ordering::Relaxed) - 1;
        let seconds = shared.started.elapsed().as_secs_f64();
        tracing::info!(
            source = &*shared.copy.source.name,
            rows,
            seconds = format!("{seconds:.1}"),
            rows_per_second = format!("{:.0}", rows as f64 / seconds.max(1e-9)),
            "tables copied"
        );
        Ok(rows)
    }
}

/// What is to be done.
struct Plan {
    chunks: Vec<Chunk>,
    progress: Vec<TableProgress>,
    extents: BTreeMap<String, extent::Table>,
}

/// Cuts the tables into chunks, the largest tables first so that no worker is left alone with one at the end.
async fn plan(
    client: &Client,
    tables: &[(Published, Arc<TableSchema>)],
    chunk: ByteSize,
) -> Result<Plan> {
    let setting = "SELECT current_setting('block_size')::int8";
    let page: i64 = sql::query_one(client, "read the page size", setting, &[])
        .await?
        .get(0);
    let step = (i64::try_from(chunk.0).unwrap_or(i64::MAX) / page).max(1);
    let mut heaps: Vec<(i64, usize, String, u32)> = Vec::new();
    let mut progress = Vec::new();
    let mut extents = BTreeMap::new();
    for (index, (table, _)) in tables.iter().enumerate() {
        // A partitioned table has no heap of its own: its leaves are copied under its name.
        let rows = sql::query(
                client,
                "measure the table",
                "SELECT n.nspname::text, c.relname::text, pg_catalog.pg_relation_size(c.oid), \
                 greatest(c.reltuples, 0)::float8, c.oid, coalesce(pg_catalog.pg_relation_filenode(c.oid), 0) \
                 FROM (SELECT relid FROM pg_catalog.pg_partition_tree($1::oid::regclass) WHERE isleaf \
                       UNION SELECT $1::oid::regclass WHERE NOT EXISTS \
                         (SELECT FROM pg_catalog.pg_class WHERE oid = $1::oid AND relkind = 'p')) t \
                 JOIN pg_catalog.pg_class c ON c.oid = t.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace",
                &[&table.relation],
            )
            .await
            .at(format!("table {}", table.id))?;
        let mut estimate = 0.0;
        let mut extent = extent::Table {
            relation: table.relation,
            heaps: Vec::new(),
        };
        for row in rows {
            let heap = format!("{}.{}", quote_ident(row.get(0)), quote_ident(row.get(1)));
            estimate += row.get::<_, f64>(3);
            let relation = row.get(4);
            heaps.push((row.get::<_, i64>(2) / page, index, heap, relation));
            extent.heaps.push(extent::Heap {
                relation,
                file: row.get(5),
                done: Vec::new(),
            });
        }
        extents.insert(table.id.to_string(), extent);
        progress.push(TableProgress {
            table: table.id.to_string(),
            rows: 0,
            estimated_rows: estimate as u64,
            done: false,
        });
    }
    heaps.sort_by(|a, b| b.cmp(a));
    let mut chunks = Vec::new();
    for (pages, table, heap, relation) in heaps {
        let chunk = |from, to| Chunk {
            table,
            relation,
            heap: heap.clone(),
            pages: Pages { from, to },
        };
        let mut from = 0;
        while pages - from > step {
            chunks.push(chunk(from, Some(from + step)));
            from += step;
        }
        chunks.push(chunk(from, None));
    }
    Ok(Plan {
        chunks,
        progress,
        extents,
    })
}

async fn work(shared: Arc<Shared>) -> Result<()> {
    let mut connection = Connection::open(&shared.copy.target, Mode::Sql).await?;
    connection
        .query(
            "open a transaction",
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        )
        .await?;
    let snapshot = format!(
        "SET TRANSACTION SNAPSHOT {}",
        quote_literal(&shared.copy.snapshot)
    );
    connection
        .query("use the exported snapshot", &snapshot)
        .await?;
    let ask = "SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text";
    let rows = connection.query("look at the snapshot", ask).await?;
    let xmin = rows.into_iter().flatten().next().flatten();
    let xmin = xmin.and_then(|text| text.parse().ok());
    let xmin = xmin.ok_or_else(|| protocol("no number where a snapshot's xmin was asked for"))?;
    shared.copy.recorder.saw(xmin);
    loop {
        let next = shared
            .chunks
            .lock()
            .ok()
            .and_then(|mut chunks| chunks.pop_front());
        let Some(chunk) = next else { break };
        let place = format!("table {}", shared.copy.tables[chunk.table].0.id);
        copy_chunk(&shared, &mut connection, &chunk)
            .await
            .map_err(|error| error.at(place))?;
    }
    connection.terminate().await;
    Ok(())
}

/// The COPY of a chunk: the columns of the stream, in its order, under the publication's row filter.
fn copy_statement(chunk: &Chunk, published: &Published, schema: &TableSchema) -> String {
    let columns: Vec<String> = schema
        .columns
        .iter()
        .map(|column| quote_ident(&column.name))
        .collect();
    let mut conditions = Vec::new();
    if chunk.pages.from > 0 {
        conditions.push(format!("ctid >= '({},0)'::tid", chunk.pages.from));
    }
    if let Some(to) = chunk.pages.to {
        conditions.push(format!("ctid < '({to},0)'::tid"));
    }
    if let Some(filter) = &published.filter {
        conditions.push(format!("({filter})"));
    }
    let condition = if conditions.is_empty() {
        String::new()
    } else {
        format!(" WHERE {}", conditions.join(" AND "))
    };
    format!(
        "COPY (SELECT {} FROM ONLY {}{condition}) TO STDOUT",
        columns.join(", "),
        chunk.heap
    )
}

async fn copy_chunk(shared: &Shared, connection: &mut Connection, chunk: &Chunk) -> Result<()> {
    let (published, schema) = &shared.copy.tables[chunk.table];
    shared.begins(chunk.table);
    let statement = copy_statement(chunk, published, schema);
    let mut out = CopyOut::begin(connection, &statement, schema).await?;
    while out.read(connection).await? {
        if out.len() >= BLOCK {
            hand_on(shared, chunk.table, out.take()).await?;
        }
    }
    hand_on(shared, chunk.table, out.take()).await?;
    let name = published.id.to_string();
    let mark = shared.copy.recorder.sent(name, chunk.relation, chunk.pages);
    send(shared, Batch::marker(Arc::clone(&shared.copy.source), mark)).await?;
    if shared.left[chunk.table].fetch_sub(1, Ordering::AcqRel) == 1 {
        shared
            .copy
            .status
            .update(|state| state.snapshot[chunk.table].done = true);
        shared.is_read(chunk.table);
    }
    Ok(())
}

async fn hand_on(shared: &Shared, table: usize, rows: Rows) -> Result<()> {
    let count = rows.count() as u64;
    if count == 0 {
        return Ok(());
    }
    let first = shared.ordinal.fetch_add(count, Ordering::Relaxed);
    let transaction = Transaction {
        commit: shared.copy.consistent_point,
        commit_micros: shared.started_micros,
        xid: 0,
        origin: None,
        previous_commit: None,
        prepared: None,
        global: None,
    };
    let schema = &shared.copy.tables[table].1;
    let batch = rows.into_batch(&shared.copy.source, schema, transaction, first);
    shared.copy.throttle.pass(batch.size()).await?;
    let permit = shared.copy.budget.take(batch.size()).await;
    send(shared, batch.with_permit(permit)).await?;
    shared.copy.status.update(|state| {
        state.heard_now();
        state.snapshot[table].rows += count;
    });
    shared.log_progress();
    Ok(())
}

async fn send(shared: &Shared, batch: Batch) -> Result<()> {
    let sent = shared.copy.batches.send(Ok(batch)).await;
    sent.map_err(|_| Error::new(ErrorKind::Stopping, "the pipeline is stopping"))
}

impl Shared {
    /// A chunk of a table is about to be read.
    fn begins(&self, table: usize) {
        let Ok(mut traces) = self.traces.lock() else {
            return;
        };
        traces[table].get_or_insert_with(|| {
            Traced::new(tracing::info_span!(
                target: TARGET, parent: None, "copy", otel.kind = "client",
                pipeline = &*self.copy.pipeline, source = &*self.copy.source.name,
                table = %self.copy.tables[table].0.id, at = %self.copy.consistent_point,
                rows = Empty, outcome = Empty, error = Empty, otel.status_code = Empty,
            ))
        });
    }

    /// All of a table has been read and handed on.
    fn is_read(&self, table: usize) {
        let trace = self.traces.lock().ok();
        let Some(trace) = trace.and_then(|mut traces| traces[table].take()) else {
            return;
        };
        if !trace.span().is_disabled() {
            let rows = self.copy.status.get().snapshot[table].rows;
            trace.span().record("rows", count(rows));
        }
        trace.ended("read");
    }

    /// Rows, rate and time left, every few seconds.
    fn log_progress(&self) {
        let Ok(mut logged) = self.logged.lock() else {
            return;
        };
        if logged.elapsed() < LOG_EVERY {
            return;
        }
        *logged = Instant::now();
        let state = self.copy.status.get();
        let rows: u64 = state.snapshot.iter().map(|table| table.rows).sum();
        let expected: u64 = state
            .snapshot
            .iter()
            .map(|table| table.estimated_rows.max(table.rows))
            .sum();
        let rate = rows as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        tracing::info!(
            source = &*self.copy.source.name,
            rows,
            expected_rows = expected,
            rows_per_second = format!("{rate:.0}"),
            seconds_left = format!("{:.0}", (expected - rows) as f64 / rate.max(1.0)),
            "copying tables"
        );
    }
}

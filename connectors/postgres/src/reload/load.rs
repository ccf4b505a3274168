//! One table, loaded again chunk by chunk.
//!
//! A chunk waits for its fence in the stream, and the stream waits for room in the budget of all batches. So what chunks hold is
//! bounded by itself, and waited for before a chunk is read: between its snapshot and its fence nothing is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_core::memory::Permit;
use lockstep_core::position::Lsn;
use lockstep_core::schema::TableSchema;
use lockstep_core::source::{CheckRequest, CheckRows, Checked, Purpose, Sample};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_pg::error::protocol;
use lockstep_pg::sql::{quote_ident, quote_literal};
use lockstep_pg::wire::{Connection, Mode};
use tokio::sync::oneshot;

use super::check::Wanted;
use super::desk::Entry;
use super::reader::{LOOK, Reader};
use super::shape::Shape;
use super::window::{FENCE, Merged, Offer};
use crate::catalog::Published;
use crate::copy_out::{CopyOut, Rows};
use crate::visible::Visible;

/// Rows of the first chunk of a table.
const FIRST_ROWS: usize = 500;
/// The most rows of a chunk.
const MOST_ROWS: usize = 20_000;
/// The most rows of a chunk that is compared: lanes stand still for it, and two of them are in memory.
const MOST_COMPARED: usize = 6_500;
/// Bytes a chunk is to have, about.
const CHUNK: usize = 4 << 20;
/// Bytes after which a chunk ends, whatever it was to have: rows may be larger than those before.
const MOST_BYTES: usize = 2 * CHUNK;
/// Bytes that chunks hold, from before they are read until they are durable.
pub const LOADING: usize = 2 * MOST_BYTES;
/// Chunks that have passed and are not durable yet.
const IN_FLIGHT: usize = 4;
/// Between two tries to read a row once more.
const OWED_PAUSE: Duration = Duration::from_millis(100);
/// After so long it is told what is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks from then on.
const SELDOM: Duration = Duration::from_secs(1);

/// A load under way.
pub(super) struct Load<'a> {
    reader: &'a Reader,
    connection: Connection,
    from: String,
    published: &'a Published,
    at_open: &'a Arc<TableSchema>,
    /// Transactions that must have ended.
    before: &'a Visible,
    /// Rows are sent to be compared.
    compares: bool,
    /// Only the key is read, and NULL for all else.
    keys_only: bool,
    /// Who wrote each row last is read with it.
    writers: bool,
    /// The last condition that the server has understood.
    tried: Option<String>,
    /// Transactions that must be seen.
    must_see: Vec<u32>,
    shape: Shape,
    passed: VecDeque<Passed>,
}

/// A chunk that has passed.
struct Passed {
    fence: Lsn,
    entry: Entry,
}

/// Rows, and the snapshot that they were read under.
struct Read {
    visible: Visible,
    rows: Rows,
    /// All that were asked for, and not as many as a chunk may have.
    whole: bool,
}

/// Rows that were read.
struct Found {
    /// The version in which the table had passed before.
    latest: Option<u32>,
    read: Read,
    permit: Permit,
}

/// A chunk that was read.
struct Chunk {
    rows: usize,
    bytes: usize,
    /// The key of the last row.
    last: Vec<String>,
    merged: Merged,
}

impl<'a> Load<'a> {
    /// From where its entry says that it has come. `condition`: one that the server understands.
    ///
    /// # Errors
    /// `Setup` when the table has another key than when the source was opened; the server's.
    pub(super) async fn begin(
        reader: &'a Reader,
        from: String,
        published: &'a Published,
        at_open: &'a Arc<TableSchema>,
        before: &'a Visible,
        compares: bool,
        condition: Option<&str>,
    ) -> Result<Self> {
        let mut connection = Connection::open(&reader.target, Mode::Sql).await?;
        let must_see = watch(reader, at_open, compares);
        let shape = shape(reader, &mut connection, published, at_open).await?;
        Ok(Load {
            reader,
            connection,
            from,
            published,
            at_open,
            before,
            compares,
            keys_only: false,
            writers: false,
            tried: condition.map(str::to_owned),
            must_see,
            shape,
            passed: VecDeque::new(),
        })
    }

    /// To its end.
    ///
    /// # Errors
    /// The server's; what is durable by then is on record.
    pub(super) async fn finish(mut self, entry: &mut Entry) -> Result<()> {
        // How far rows have been read; the entry is how far they are durable.
        let mut ahead = entry.clone();
        if entry.request.truncate && !entry.emptied {
            self.empty(&mut ahead).await?;
        }
        let mut limit = FIRST_ROWS;
        loop {
            let after = ahead.after.as_deref();
            let after = after.map(|after| format!("({}) > {}", self.keys(), literals(after)));
            let wanted = ahead.request.condition.as_ref();
            let wanted = wanted.map(|condition| format!("({condition}\n)"));
            let conditions: Vec<String> = [after, wanted].into_iter().flatten().collect();
            let Some(chunk) = self.chunk(entry.id, &conditions, limit).await? else {
                break;
            };
            limit = next_limit(&chunk);
            if let Merged::Passed {
                fence,
                rows,
                superseded,
            } = chunk.merged
            {
                ahead.after = Some(chunk.last);
                ahead.rows += rows;
                ahead.superseded += superseded;
                let entry = ahead.clone();
                self.passed.push_back(Passed { fence, entry });
            }
            // A row that is larger than all of it goes alone.
            let most = if chunk.bytes > MOST_BYTES {
                0
            } else {
                IN_FLIGHT
            };
            self.settle(entry, most).await?;
        }
        self.settle(entry, 0).await?;
        self.pay(entry).await?;
        self.connection.terminate().await;
        Ok(())
    }

    /// Whether it is of this table, and may go on with a condition that became part of a statement before.
    pub(super) fn goes_on(&self, table: &Arc<TableSchema>, condition: Option<&str>) -> bool {
        let is_tried = condition.is_none() || condition == self.tried.as_deref();
        Arc::ptr_eq(self.at_open, table) && is_tried
    }

    /// Says goodbye.
    pub(super) async fn end(self) {
        self.connection.terminate().await;
    }

    /// Empties the table in the sinks.
    async fn empty(&mut self, ahead: &mut Entry) -> Result<()> {
        let latest = self.latest();
        let permit = self.reader.budget.take(1).await;
        let visible = snapshot(&mut self.connection).await?;
        let offer = self.offer(ahead.id, latest, None, permit, visible, None);
        let Merged::Passed { fence, .. } = offer.await? else {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the table has changed its shape meanwhile",
            ));
        };
        ahead.emptied = true;
        let entry = ahead.clone();
        self.passed.push_back(Passed { fence, entry });
        // What has passed before counts no more: the rows must all come from snapshots that see it.
        self.must_see = self.watch();
        Ok(())
    }

    /// Reads rows once more whose large values sinks may lack, one by one, until none is left.
    async fn pay(&mut self, entry: &mut Entry) -> Result<()> {
        let desk = Arc::clone(&self.reader.desk);
        let mut again = 0_u32;
        while let Some(key) = desk.owed(entry) {
            let condition = format!("({}) = {}", self.keys(), literals(&key));
            let chunk = self.chunk(entry.id, &[condition], 1).await?;
            // When it is not there, it is gone, or will come as it is.
            match chunk.map(|chunk| chunk.merged) {
                Some(Merged::Again | Merged::Checked(_) | Merged::Failed(_)) => continue,
                Some(Merged::Passed { fence, rows, .. }) => {
                    let mut entry = entry.clone();
                    entry.rows += rows;
                    self.passed.push_back(Passed { fence, entry });
                }
                None => {}
            }
            self.settle(entry, 0).await?;
            if desk.paid(entry, &key)? {
                continue;
            }
            again += 1;
            if again.is_multiple_of(100) {
                let table = &entry.request.table;
                tracing::warn!(
                    table,
                    ?key,
                    "the row changes whenever it is read; it is tried again"
                );
            }
            tokio::time::sleep(OWED_PAUSE).await;
        }
        Ok(())
    }

    fn watch(&self) -> Vec<u32> {
        watch(self.reader, self.at_open, self.compares)
    }

    /// The version in which the table has passed last.
    fn latest(&self) -> Option<u32> {
        let latest = self.reader.merge.lock().shape(&self.at_open.origin);
        latest.map(|schema| schema.version)
    }

    /// The key columns.
    fn keys(&self) -> String {
        let columns = self.shape.schema.key_columns();
        let keys: Vec<String> = columns.map(|column| quote_ident(&column.name)).collect();
        keys.join(", ")
    }

    /// Reads the next rows that fit the conditions, in the order of the key, and puts them at their place in the stream. `None`
    /// when there are none.
    async fn chunk(
        &mut self,
        id: u64,
        conditions: &[String],
        limit: usize,
    ) -> Result<Option<Chunk>> {
        let found = self.found(conditions, limit).await?;
        let Found {
            latest,
            read: Read { visible, rows, .. },
            permit,
        } = found;
        if rows.count() == 0 {
            return Ok(None);
        }
        let (count, bytes) = (rows.count(), rows.size());
        let key = self.shape.schema.key_columns();
        let last: Option<Vec<String>> = key
            .map(|column| rows.last(column).map(str::to_owned))
            .collect();
        let last = last.ok_or_else(|| protocol("a key column is NULL, or not UTF-8"))?;
        let offer = self.offer(id, latest, Some(rows), permit, visible, None);
        let merged = offer.await?;
        match merged {
            Merged::Passed { .. } | Merged::Checked(_) | Merged::Failed(_) => {
                self.must_see.clear();
            }
            Merged::Again => self.must_see = self.watch(),
        }
        // Afterwards: a pause before the fence would let changes overtake the rows.
        self.reader.throttle.pass(bytes).await?;
        Ok(Some(Chunk {
            rows: count,
            bytes,
            last,
            merged,
        }))
    }

    /// Reads rows, whatever becomes of them.
    async fn found(&mut self, conditions: &[String], limit: usize) -> Result<Found> {
        let reader = self.reader;
        reader.throttle.pass(0).await?;
        let permit = reader.budget.take(MOST_BYTES).await;
        loop {
            let latest = self.latest();
            let statement = self.statement(conditions, limit);
            if let Some(read) = self.read(&statement).await? {
                return Ok(Found {
                    latest,
                    read,
                    permit,
                });
            }
            let connection = &mut self.connection;
            self.shape = shape(reader, connection, self.published, self.at_open).await?;
        }
    }

    /// Reads the rows of a request and puts them at their place in the stream, to be compared.
    ///
    /// # Errors
    /// The server's; `Unavailable` when the stream was interrupted.
    pub(super) async fn check(&mut self, request: &CheckRequest) -> Result<Checked> {
        self.keys_only = matches!(request.rows, CheckRows::Absent(_));
        // Few rows, that are thought to differ: of all others nobody has to know.
        self.writers = matches!(
            (&request.rows, request.purpose),
            (CheckRows::Keys(_), Purpose::Compare)
        );
        let (keys, only_absent) = match &request.rows {
            CheckRows::Behind(_) => (Vec::new(), false),
            CheckRows::Keys(keys) => (keys.clone(), false),
            CheckRows::Absent(keys) => (keys.clone(), true),
        };
        loop {
            let shape = Arc::clone(&self.shape.schema);
            let condition = match &request.rows {
                CheckRows::Behind(after) => after
                    .as_deref()
                    .map(|after| format!("({}) > {}", self.keys(), literals(after))),
                CheckRows::Keys(_) | CheckRows::Absent(_) => Some(self.named(&keys).await?),
            };
            let wanted = request.condition.as_ref();
            let wanted = wanted.map(|condition| format!("({condition}\n)"));
            let some = request.sample.map(|sample| self.some(sample));
            let conditions: Vec<String> = [condition, wanted, some].into_iter().flatten().collect();
            let Found {
                latest,
                read,
                permit,
            } = self.found(&conditions, MOST_COMPARED).await?;
            if !Arc::ptr_eq(&shape, &self.shape.schema) {
                // The conditions are about the table as it was.
                continue;
            }
            let bytes = read.rows.size();
            let wanted = Wanted {
                number: request.number,
                purpose: request.purpose,
                keys: keys.clone(),
                changed_after: self.changed_after(&read),
                only_absent,
                whole: read.whole && read.rows.count() < MOST_COMPARED,
            };
            let rows = Some(read.rows);
            let offer = self.offer(
                request.number,
                latest,
                rows,
                permit,
                read.visible,
                Some(wanted),
            );
            match offer.await? {
                Merged::Checked(checked) => {
                    // What follows is read under a later snapshot, which sees what this one has seen.
                    self.must_see.clear();
                    self.reader.throttle.pass(bytes).await?;
                    return Ok(checked);
                }
                Merged::Again => self.must_see = self.watch(),
                Merged::Failed(error) => return Err(error),
                Merged::Passed { .. } => {
                    let message = format!("rows of {} were sent instead of compared", shape.id);
                    return Err(protocol(message));
                }
            }
        }
    }

    /// The places of the log behind which rows were written last, as far as that is known.
    fn changed_after(&self, read: &Read) -> Vec<Option<Lsn>> {
        let after = |xmin: &u32| {
            let writer = read.visible.writer(*xmin)?;
            self.reader.horizons.behind(writer)
        };
        read.rows.writers().iter().map(after).collect()
    }

    /// The condition that chooses rows by a hash of their keys.
    fn some(&self, sample: Sample) -> String {
        format!(
            "(pg_catalog.hashtextextended(ROW({})::pg_catalog.text, {}) & {}) % 1000000 < {}",
            self.keys(),
            sample.seed.cast_signed(),
            i64::MAX,
            sample.per_million
        )
    }

    /// The condition that rows have one of these keys. Some may be no keys of the table at all: a sink may hold anything.
    async fn named(&mut self, keys: &[Vec<String>]) -> Result<String> {
        let mut sound: Vec<String> = Vec::with_capacity(keys.len());
        // No value of PostgreSQL holds a zero byte, and no statement.
        let possible = keys
            .iter()
            .filter(|key| !key.iter().any(|text| text.contains('\0')));
        let mut unsure: Vec<Vec<String>> = vec![possible.map(|key| literals(key)).collect()];
        while let Some(mut part) = unsure.pop() {
            if part.is_empty() {
                continue;
            }
            let explain = format!(
                "EXPLAIN SELECT FROM {} WHERE {}",
                self.from,
                self.one_of(&part)
            );
            match self.connection.query("look keys up", &explain).await {
                Ok(_) => sound.append(&mut part),
                Err(error) if is_no_value(&error) && part.len() == 1 => {}
                Err(error) if is_no_value(&error) => {
                    unsure.push(part.split_off(part.len() / 2));
                    unsure.push(part);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(match sound.is_empty() {
            true => "false".to_owned(),
            false => self.one_of(&sound),
        })
    }

    fn one_of(&self, keys: &[String]) -> String {
        format!("({}) IN ({})", self.keys(), keys.join(", "))
    }

    fn statement(&self, conditions: &[String], limit: usize) -> String {
        let schema = &self.shape.schema;
        let is_read = |at: usize| !self.keys_only || schema.key.contains(&(at as u16));
        let columns = schema.columns.iter().enumerate();
        let columns = columns.map(|(at, column)| match is_read(at) {
            true => quote_ident(&column.name),
            false => "NULL".to_owned(),
        });
        let columns: Vec<String> = columns
            .chain(self.writers.then(|| "xmin".to_owned()))
            .collect();
        let filter = self.shape.filter.as_ref();
        let filter = filter.map(|filter| format!("({filter})"));
        let conditions: Vec<&str> = conditions
            .iter()
            .chain(&filter)
            .map(String::as_str)
            .collect();
        let condition = match conditions.is_empty() {
            true => String::new(),
            false => format!(" WHERE {}", conditions.join(" AND ")),
        };
        format!(
            "COPY (SELECT {} FROM {}{condition} ORDER BY {} LIMIT {limit}) TO STDOUT",
            columns.join(", "),
            self.from,
            self.keys()
        )
    }

    /// Rows under a snapshot that fits, and the snapshot; `None` when the table has another shape by now.
    async fn read(&mut self, statement: &str) -> Result<Option<Read>> {
        const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        const ROLLBACK: &str = "ROLLBACK";
        // Before the snapshot: what the snapshot sees of the columns then holds for the rows too.
        let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", self.from);
        let begun = Instant::now();
        let mut told = false;
        loop {
            let connection = &mut self.connection;
            connection.query("open a transaction", BEGIN).await?;
            if let Err(error) = connection.query("lock the table", &lock).await {
                connection.query("end a transaction", ROLLBACK).await?;
                return Err(error);
            }
            let visible = snapshot(connection).await?;
            let is_still = self.shape.is_still(connection).await?;
            let fits = self.before.are_done(&visible)
                && self.must_see.iter().all(|xid| visible.sees(*xid));
            if is_still && fits {
                break self.copy(statement, visible).await.map(Some);
            }
            connection.query("end a transaction", ROLLBACK).await?;
            if !is_still {
                return Ok(None);
            }
            let is_long = begun.elapsed() > PATIENCE;
            if is_long && !std::mem::replace(&mut told, true) {
                tracing::warn!(
                    table = %self.published.id,
                    transactions = %self.before.running_in(&visible),
                    "loading waits for transactions that have been open since before; see pg_stat_activity and pg_prepared_xacts"
                );
            }
            tokio::time::sleep(if is_long { SELDOM } else { LOOK }).await;
        }
    }

    async fn copy(&mut self, statement: &str, visible: Visible) -> Result<Read> {
        let schema = &self.shape.schema;
        let mut out = CopyOut::begin(&mut self.connection, statement, schema).await?;
        if self.writers {
            out = out.with_writers();
        }
        while out.read(&mut self.connection).await? {
            if out.len() >= MOST_BYTES && out.rows() > 0 {
                // The rest is still to be sent on this connection; another one is made sooner.
                self.connection = Connection::open(&self.reader.target, Mode::Sql).await?;
                return Ok(Read {
                    visible,
                    rows: out.take(),
                    whole: false,
                });
            }
        }
        let end = "end a transaction";
        self.connection.query(end, "COMMIT").await?;
        Ok(Read {
            visible,
            rows: out.take(),
            whole: true,
        })
    }

    /// Hands a chunk over and marks its place in the stream.
    async fn offer(
        &mut self,
        id: u64,
        latest: Option<u32>,
        rows: Option<Rows>,
        permit: Permit,
        visible: Visible,
        check: Option<Wanted>,
    ) -> Result<Merged> {
        let fence = format!("{id}-{:016x}", unique());
        let (answer, merged) = oneshot::channel();
        self.reader.merge.lock().offer(Offer {
            fence: fence.clone(),
            schema: Arc::clone(&self.shape.schema),
            passed: latest,
            rows,
            permit,
            visible,
            check,
            answer,
        });
        // In a transaction, so that it is on disk at once, and with it in the stream.
        let mark = format!(
            "SELECT pg_catalog.pg_logical_emit_message(true, {}, {})",
            quote_literal(FENCE),
            quote_literal(&fence)
        );
        let doing = "mark a place in the log";
        self.connection.query(doing, &mark).await?;
        merged
            .await
            .map_err(|_| Error::new(ErrorKind::Unavailable, "the stream was interrupted"))
    }

    /// Notes what has become durable, until at most `most` chunks are not.
    async fn settle(&mut self, entry: &mut Entry, most: usize) -> Result<()> {
        loop {
            let confirmed = self.reader.feedback.confirmed();
            let mut news = false;
            while let Some(first) = self.passed.pop_front_if(|first| confirmed > first.fence) {
                *entry = first.entry;
                news = true;
            }
            if news {
                self.reader.desk.reached(entry)?;
            }
            if self.passed.len() <= most {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Begins to note the changes of a table.
fn watch(reader: &Reader, table: &TableSchema, compares: bool) -> Vec<u32> {
    reader.merge.lock().watch(table.origin.clone(), compares)
}

/// The shape of a table now, which must be found by the key that it had when the source was opened: how far a load came is a
/// key.
async fn shape(
    reader: &Reader,
    connection: &mut Connection,
    published: &Published,
    at_open: &Arc<TableSchema>,
) -> Result<Shape> {
    let passed = reader.merge.lock().shape(&at_open.origin);
    let known: Vec<_> = passed.into_iter().chain([Arc::clone(at_open)]).collect();
    let (target, publication) = (&reader.target, &reader.publication);
    let shape = Shape::ask(connection, target, publication, published, &known).await?;
    let types = |schema: &TableSchema| -> Vec<u32> {
        schema.key_columns().map(|column| column.ty.oid).collect()
    };
    if types(&shape.schema) != types(at_open) {
        return Err(Error::new(
            ErrorKind::Setup,
            "has another key than when the source was opened",
        )
        .remedy("restart the pipeline, then ask again"));
    }
    Ok(shape)
}

/// What a snapshot that is taken now sees.
pub(super) async fn snapshot(connection: &mut Connection) -> Result<Visible> {
    let rows = connection
        .query(
            "take a snapshot",
            "SELECT pg_catalog.pg_current_snapshot()::text",
        )
        .await?;
    let text = rows.into_iter().flatten().next().flatten();
    Visible::parse(&text.ok_or_else(|| protocol("no snapshot where one was asked for"))?)
}

/// Whether the server finds that a text is no value of its type (classes 22 and 23 of SQLSTATE: what a type's input says, and what
/// a domain checks).
fn is_no_value(error: &Error) -> bool {
    let text = error.to_string();
    let classes = ["(SQLSTATE 22", "(SQLSTATE 23"];
    classes.iter().any(|class| text.contains(class))
}

/// Values as a row.
fn literals(values: &[String]) -> String {
    let values: Vec<String> = values.iter().map(|text| quote_literal(text)).collect();
    format!("({})", values.join(", "))
}

/// Rows of the next chunk, by the size of the last one.
fn next_limit(chunk: &Chunk) -> usize {
    let each = (chunk.bytes / chunk.rows.max(1)).max(1);
    (CHUNK / each).clamp(1, MOST_ROWS)
}

/// A number that no other fence has.
fn unique() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

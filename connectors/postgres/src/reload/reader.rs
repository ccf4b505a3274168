//! Reads the chunks of the tables that are to be loaded again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use lockstep_core::error::{At, Policy};
use lockstep_core::feedback::Feedback;
use lockstep_core::memory::Budget;
use lockstep_core::position::Lsn;
use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, ErrorKind, Result};
use tokio::sync::oneshot;

use super::Merge;
use super::desk::{Desk, Entry};
use super::shape::Shape;
use super::window::{FENCE, Merged, Offer};
use crate::catalog::Published;
use crate::copy_out::{CopyOut, Rows};
use crate::error::protocol;
use crate::sql::{self, quote_ident, quote_literal};
use crate::throttle::Throttle;
use crate::visible::Visible;
use crate::wire::target::Target;
use crate::wire::{Connection, Mode};

/// Rows of the first chunk of a table.
const FIRST_ROWS: usize = 500;
/// The most rows of a chunk.
const MOST_ROWS: usize = 20_000;
/// Bytes a chunk is to have, about.
const CHUNK: usize = 4 << 20;
/// Chunks that have passed and are not durable yet.
const IN_FLIGHT: usize = 4;
/// Between two looks at what cannot be waited for.
const LOOK: Duration = Duration::from_millis(20);
/// Before another try.
const PAUSE: Duration = Duration::from_secs(2);

/// Everything the reader needs.
pub struct Reader {
    pub target: Target,
    pub publication: String,
    pub tables: Vec<(Published, Arc<TableSchema>)>,
    pub desk: Arc<Desk>,
    pub merge: Merge,
    pub feedback: Feedback,
    pub budget: Budget,
    pub throttle: Arc<Throttle>,
}

/// A chunk that has passed.
struct Passed {
    fence: Lsn,
    entry: Entry,
}

impl Reader {
    /// Carries out requests until it is dropped. What fails for now is tried again; what fails for good is reported.
    pub async fn run(self) {
        let before = loop {
            match self.running().await {
                Ok(before) => break before,
                Err(error) => tracing::warn!(%error, "cannot get ready to load tables again"),
            }
            tokio::time::sleep(PAUSE).await;
        };
        loop {
            let mut entry = self.desk.next().await;
            let table = entry.request.table.clone();
            let loaded = self.load(&mut entry, &before).await;
            self.merge.lock().rest();
            let ended = match loaded {
                Ok(()) => {
                    tracing::info!(table, rows = entry.rows, "the table is loaded again");
                    self.desk.end(&entry, None)
                }
                Err(error) if error.kind().policy() == Policy::Retry => {
                    tracing::warn!(table, %error, "loading the table again goes on in a moment");
                    tokio::time::sleep(PAUSE).await;
                    Ok(())
                }
                Err(error) => {
                    tracing::error!(table, %error, "the table cannot be loaded again");
                    self.desk.end(&entry, Some(&error))
                }
            };
            if let Err(error) = ended {
                tracing::error!(%error, "the requests to load tables cannot be kept");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// The transactions that run now. One of them may have been committed and streamed to an earlier connection of ours,
    /// and not be seen by snapshots yet: chunks wait for all of them.
    async fn running(&self) -> Result<Visible> {
        let mut connection = Connection::open(&self.target, Mode::Sql).await?;
        let visible = snapshot(&mut connection).await?;
        connection.terminate().await;
        Ok(visible)
    }

    async fn load(&self, entry: &mut Entry, before: &Visible) -> Result<()> {
        let table = &entry.request.table;
        let found = self
            .tables
            .iter()
            .find(|(published, _)| published.id.to_string() == *table);
        let Some((published, at_open)) = found else {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("there is no table {table}"),
            ));
        };
        let place = format!("table {table}");
        if at_open.key.is_empty() {
            return Err(Error::new(ErrorKind::Setup, "has no key to load it by")
                .remedy("give it a primary key")
                .at(place));
        }
        let mut connection = Connection::open(&self.target, Mode::Sql).await?;
        let from = self.origin(published, entry).await.at(&*place)?;
        let loaded = self.chunks(&mut connection, entry, &from, published, at_open, before);
        loaded.await.at(place)?;
        connection.terminate().await;
        Ok(())
    }

    /// `FROM` of the chunks; the condition is tried before it becomes part of a COPY.
    async fn origin(&self, published: &Published, entry: &Entry) -> Result<String> {
        let client = sql::connect(&self.target).await?;
        let kind = "SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = $1";
        let doing = "look the table up";
        let row = sql::query_opt(&client, doing, kind, &[&published.relation]).await?;
        let partitioned = row.ok_or_else(|| {
            Error::new(ErrorKind::Setup, "is not there any more").remedy("restart the pipeline")
        })?;
        let only = if partitioned.get::<_, bool>(0) {
            ""
        } else {
            "ONLY "
        };
        let id = &published.id;
        let from = format!(
            "{only}{}.{}",
            quote_ident(&id.schema),
            quote_ident(&id.name)
        );
        if let Some(condition) = &entry.request.condition {
            let statement = format!("SELECT FROM {from} WHERE ({condition}\n)");
            let tried = sql::in_time("try the condition", client.prepare(&statement)).await;
            tried.map_err(|error| match error.kind().policy() {
                Policy::Retry => error,
                _ => Error::new(ErrorKind::Invalid, "the server does not understand `where`")
                    .source(error)
                    .remedy("write a condition as it would stand after WHERE"),
            })?;
        }
        Ok(from)
    }

    async fn chunks(
        &self,
        connection: &mut Connection,
        entry: &mut Entry,
        from: &str,
        published: &Published,
        at_open: &Arc<TableSchema>,
        before: &Visible,
    ) -> Result<()> {
        let mut limit = FIRST_ROWS;
        let mut passed: VecDeque<Passed> = VecDeque::new();
        // How far rows have been read; the entry is how far they are durable.
        let mut ahead = entry.clone();
        let mut must_see = self.merge.lock().watch(at_open.origin.clone());
        let mut shape = self.shape(connection, published, at_open).await?;
        if entry.request.truncate && !entry.emptied {
            let latest = self.merge.lock().shape(&at_open.origin);
            let schema = (&shape.schema, latest.map(|schema| schema.version));
            let visible = snapshot(connection).await?;
            let offered = self.offer(connection, entry.id, schema, None, visible);
            let Merged::Passed { fence, .. } = offered.await? else {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "the table has changed its shape meanwhile",
                ));
            };
            ahead.emptied = true;
            let entry = ahead.clone();
            passed.push_back(Passed { fence, entry });
            // What has passed before counts no more: the rows must all come from snapshots that see it.
            must_see = self.merge.lock().watch(at_open.origin.clone());
        }
        loop {
            let latest = self.merge.lock().shape(&at_open.origin);
            let latest = latest.map(|schema| schema.version);
            let schema = Arc::clone(&shape.schema);
            let statement = statement(&shape, from, &ahead, limit);
            let chunk = read(connection, from, &statement, &shape, |visible| {
                before.are_done(visible) && must_see.iter().all(|xid| visible.sees(*xid))
            });
            let Some((visible, rows)) = chunk.await? else {
                shape = self.shape(connection, published, at_open).await?;
                continue;
            };
            if rows.count() == 0 {
                break;
            }
            limit = next_limit(&rows);
            let last: Option<Vec<String>> = schema
                .key_columns()
                .map(|column| rows.last(column).map(str::to_owned))
                .collect();
            let last = last.ok_or_else(|| protocol("a key column is NULL"))?;
            let offered = self.offer(connection, entry.id, (&schema, latest), Some(rows), visible);
            match offered.await? {
                Merged::Passed {
                    fence,
                    rows,
                    superseded,
                } => {
                    ahead.after = Some(last);
                    ahead.rows += rows;
                    ahead.superseded += superseded;
                    passed.push_back(Passed {
                        fence,
                        entry: ahead.clone(),
                    });
                    must_see.clear();
                }
                Merged::Again => must_see = self.merge.lock().watch(at_open.origin.clone()),
            }
            self.settle(entry, &mut passed, IN_FLIGHT).await?;
        }
        self.settle(entry, &mut passed, 0).await
    }

    /// The shape of a table now, which must be found by the key that it had when the source was opened: how far a load came
    /// is a key.
    async fn shape(
        &self,
        connection: &mut Connection,
        published: &Published,
        at_open: &Arc<TableSchema>,
    ) -> Result<Shape> {
        let passed = self.merge.lock().shape(&at_open.origin);
        let known: Vec<_> = passed.into_iter().chain([Arc::clone(at_open)]).collect();
        let shape = Shape::ask(
            connection,
            &self.target,
            &self.publication,
            published,
            &known,
        )
        .await?;
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

    /// Hands a chunk over and marks its place in the stream.
    async fn offer(
        &self,
        connection: &mut Connection,
        id: u64,
        (schema, latest): (&Arc<TableSchema>, Option<u32>),
        rows: Option<Rows>,
        visible: Visible,
    ) -> Result<Merged> {
        let fence = format!("{id}-{:016x}", unique());
        self.throttle
            .pass(rows.as_ref().map_or(0, Rows::size))
            .await?;
        let permit = self.budget.take(rows.as_ref().map_or(0, Rows::size)).await;
        let (answer, merged) = oneshot::channel();
        self.merge.lock().offer(Offer {
            fence: fence.clone(),
            schema: Arc::clone(schema),
            passed: latest,
            rows,
            permit,
            visible,
            answer,
        });
        // In a transaction, so that it is on disk at once, and with it in the stream.
        let mark = format!(
            "SELECT pg_catalog.pg_logical_emit_message(true, {}, {})",
            quote_literal(FENCE),
            quote_literal(&fence)
        );
        connection.query("mark a place in the log", &mark).await?;
        merged
            .await
            .map_err(|_| Error::new(ErrorKind::Unavailable, "the stream was interrupted"))
    }

    /// Notes what has become durable, until at most `most` chunks are not.
    async fn settle(
        &self,
        entry: &mut Entry,
        passed: &mut VecDeque<Passed>,
        most: usize,
    ) -> Result<()> {
        loop {
            let confirmed = self.feedback.confirmed();
            let mut news = false;
            while let Some(first) = passed.pop_front_if(|first| confirmed > first.fence) {
                *entry = first.entry;
                news = true;
            }
            if news {
                self.desk.reached(entry)?;
            }
            if passed.len() <= most {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A chunk under a snapshot that `fits`, and the snapshot; `None` when the table has another shape by now.
async fn read(
    connection: &mut Connection,
    from: &str,
    statement: &str,
    shape: &Shape,
    fits: impl Fn(&Visible) -> bool,
) -> Result<Option<(Visible, Rows)>> {
    const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    const ROLLBACK: &str = "ROLLBACK";
    // Before the snapshot: what the snapshot sees of the columns then holds for the rows too.
    let lock = format!("LOCK TABLE {from} IN ACCESS SHARE MODE");
    loop {
        connection.query("open a transaction", BEGIN).await?;
        if let Err(error) = connection.query("lock the table", &lock).await {
            connection.query("end a transaction", ROLLBACK).await?;
            return Err(error);
        }
        let visible = snapshot(connection).await?;
        let is_still = shape.is_still(connection).await?;
        if !is_still || !fits(&visible) {
            connection.query("end a transaction", ROLLBACK).await?;
            if !is_still {
                return Ok(None);
            }
            tokio::time::sleep(LOOK).await;
            continue;
        }
        let mut out = CopyOut::begin(connection, statement, &shape.schema).await?;
        while out.read(connection).await? {}
        connection.query("end a transaction", "COMMIT").await?;
        return Ok(Some((visible, out.take())));
    }
}

async fn snapshot(connection: &mut Connection) -> Result<Visible> {
    let rows = connection
        .query(
            "take a snapshot",
            "SELECT pg_catalog.pg_current_snapshot()::text",
        )
        .await?;
    let text = rows.into_iter().flatten().next().flatten();
    Visible::parse(&text.ok_or_else(|| protocol("no snapshot where one was asked for"))?)
}

/// The rows behind the ones read, in the order of the key.
fn statement(shape: &Shape, from: &str, entry: &Entry, limit: usize) -> String {
    let schema = &shape.schema;
    let columns: Vec<String> = schema
        .columns
        .iter()
        .map(|column| quote_ident(&column.name))
        .collect();
    let keys: Vec<String> = schema
        .key_columns()
        .map(|column| quote_ident(&column.name))
        .collect();
    let keys = keys.join(", ");
    let after = entry.after.as_ref().map(|after| {
        let after: Vec<String> = after.iter().map(|text| quote_literal(text)).collect();
        format!("({keys}) > ({})", after.join(", "))
    });
    let wanted = entry
        .request
        .condition
        .as_ref()
        .map(|condition| format!("({condition}\n)"));
    let filter = shape.filter.as_ref().map(|filter| format!("({filter})"));
    let conditions: Vec<String> = [after, wanted, filter].into_iter().flatten().collect();
    let condition = match conditions.is_empty() {
        true => String::new(),
        false => format!(" WHERE {}", conditions.join(" AND ")),
    };
    format!(
        "COPY (SELECT {} FROM {from}{condition} ORDER BY {keys} LIMIT {limit}) TO STDOUT",
        columns.join(", ")
    )
}

/// Rows of the next chunk, by the size of the last ones.
fn next_limit(rows: &Rows) -> usize {
    let each = (rows.size() / rows.count().max(1)).max(1);
    (CHUNK / each).clamp(1, MOST_ROWS)
}

/// A number that no other fence has.
fn unique() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

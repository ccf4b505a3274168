//! Asks the database what invariants ask: queries under one snapshot, read row by row, and who is in the middle of a transaction.
//!
//! A session has two connections. One keeps a snapshot, and can tell nothing of what happens after it; the other sees the present.

use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use lockstep_core::error::{Error, ErrorKind, Policy, Result};
use lockstep_core::query::{
    Ending, Finish, InDoubt, InProgress, Queries, QueryColumn, QuerySession, Question, Row,
    Snapshot, XactStatus,
};
use lockstep_pg::error::{from_sql, protocol};
use lockstep_pg::sql::{self, quote_ident, quote_literal};
use lockstep_pg::wire::target::Target;
use tokio_postgres::types::{Kind, ToSql, Type};
use tokio_postgres::{Client, RowStream, Statement};

use crate::visible::Visible;

/// How long a query may wait for a lock: somebody alters a table, and everybody queues up behind us meanwhile.
const LOCK: Duration = Duration::from_secs(5);
/// Rows that are handed on at once, at most.
const ROWS: usize = 500;
/// Bytes of rows from which on they are handed on.
const BYTES: usize = 1 << 20;
const READING: &str = "read the rows of the query";

/// See [`Queries`].
pub struct Asking {
    target: Target,
}

impl Asking {
    pub fn new(target: Target) -> Self {
        Asking { target }
    }
}

#[async_trait]
impl Queries for Asking {
    async fn describe(&self, query: &str) -> Result<Vec<QueryColumn>> {
        let client = sql::connect(&self.target).await?;
        let columns = Columns::of(&client, query).await?;
        Ok(columns.0.iter().map(Column::told).collect())
    }

    async fn open(&self, timeout: Duration) -> Result<Box<dyn QuerySession>> {
        let (frozen, present) =
            tokio::try_join!(sql::connect(&self.target), sql::connect(&self.target))?;
        let begin = format!(
            "SET statement_timeout = {0}; SET idle_in_transaction_session_timeout = {0}; SET lock_timeout = {1};
             BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            timeout.as_millis(),
            LOCK.as_millis()
        );
        sql::in_time("begin a transaction", frozen.batch_execute(&begin)).await?;
        Ok(Box::new(Session {
            frozen,
            present,
            rows: None,
        }))
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubt>> {
        let client = sql::connect(&self.target).await?;
        let rows = sql::query(&client, "read pg_prepared_xacts", IN_DOUBT, &[]).await?;
        let read = |row: &tokio_postgres::Row| InDoubt {
            gid: row.get(0),
            xid: row.get::<_, i64>(1) as u32,
            prepared_micros: row.get(2),
            owner: row.get(3),
        };
        Ok(rows.iter().map(read).collect())
    }

    async fn finish(&self, one: &InDoubt, ending: Ending) -> Result<Finish> {
        let client = sql::connect(&self.target).await?;
        let (doing, number) = ("read pg_prepared_xacts", one.xid.to_string());
        let which: [&(dyn ToSql + Sync); 2] = [&one.gid, &number];
        let there = sql::query_opt(&client, doing, IS_PREPARED, &which).await?;
        if there.is_none() {
            return Ok(Finish::Gone);
        }
        let gid = quote_literal(&one.gid);
        let (verb, doing) = match ending {
            Ending::Commit => ("COMMIT", "commit the prepared transaction"),
            Ending::RollBack => ("ROLLBACK", "roll the prepared transaction back"),
        };
        // Waits for the disk, and for synchronous standbys.
        let statement = format!("{verb} PREPARED {gid}");
        let done = sql::in_time_raw(doing, client.batch_execute(&statement));
        let Err(error) = done.await? else {
            return Ok(Finish::Done);
        };
        let code = error.code().map(|code| code.code().to_owned());
        match code.as_deref() {
            // undefined_object: somebody else was faster.
            Some("42704") => Ok(Finish::Gone),
            Some("42501") => {
                let (owner, remedy) = (&one.owner, "name a user in the URL who is a superuser, or");
                Err(from_sql(doing, error).remedy(format!("{remedy} `{owner}`, who prepared it")))
            }
            Some("0A000") => Err(from_sql(doing, error)
                .remedy("name the database in the URL in which it was prepared")),
            _ => Err(from_sql(doing, error)),
        }
    }

    async fn xact_status(&self, xid: u32) -> Result<XactStatus> {
        let client = sql::connect(&self.target).await?;
        let doing = "ask how a transaction has ended";
        let near = "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text";
        let near = sql::query_one(&client, doing, near, &[]).await?;
        let near: Option<u64> = near.get::<_, &str>(0).parse().ok();
        let Some(xid) = near.and_then(|near| widened(xid, near)) else {
            return Err(protocol("a transaction's number is not one"));
        };
        let ask = format!("SELECT pg_catalog.pg_xact_status('{xid}'::xid8)");
        let status = match sql::in_time_raw(doing, client.query_one(&*ask, &[])).await? {
            Ok(row) => row.get::<_, Option<String>>(0),
            // "transaction ID is in the future": the server has lost it.
            Err(error) if error.code().is_some_and(|code| code.code() == "22023") => None,
            Err(error) => return Err(from_sql(doing, error)),
        };
        Ok(match status.as_deref() {
            Some("committed") => XactStatus::Committed,
            Some("aborted") => XactStatus::RolledBack,
            Some(_) => XactStatus::InProgress,
            None => XactStatus::Unknown,
        })
    }
}

/// Of this number and database: a name may be given again.
const IS_PREPARED: &str = "SELECT 1 FROM pg_catalog.pg_prepared_xacts
    WHERE gid = $1 AND transaction::text = $2 AND database = current_database()";

/// The view lists those of all databases.
const IN_DOUBT: &str = "SELECT gid, transaction::text::int8, (extract(epoch FROM prepared) * 1000000)::int8, owner::text
    FROM pg_catalog.pg_prepared_xacts WHERE database = current_database() ORDER BY prepared, gid";

struct Session {
    frozen: Client,
    present: Client,
    rows: Option<Pin<Box<RowStream>>>,
}

/// Those of other databases of the server are left out where that can be seen. A snapshot does not list what began after the last
/// transaction that has ended, so those that are prepared or have a backend are asked for besides. Numbers of 32 bits are those
/// nearest to the last column.
const IN_PROGRESS: &str = "WITH present AS MATERIALIZED (SELECT pg_catalog.pg_current_snapshot() AS snapshot), all_there AS (
      SELECT x::xid AS xid FROM present, pg_catalog.pg_snapshot_xip(snapshot) x
      UNION SELECT transaction FROM pg_catalog.pg_prepared_xacts
      UNION SELECT backend_xid FROM pg_catalog.pg_stat_activity WHERE backend_xid IS NOT NULL)
    SELECT t.xid::text, p.gid, (extract(epoch FROM p.prepared) * 1000000)::int8, pg_catalog.pg_snapshot_xmax(snapshot)::text
    FROM present, all_there t
    LEFT JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = t.xid
    LEFT JOIN pg_catalog.pg_stat_activity a ON a.backend_xid = t.xid
    WHERE coalesce(p.database, a.datname, current_database()) = current_database()";

/// The 64 bits of a transaction's number, of which the lower half is known, and another one near it.
fn widened(xid: u32, near: u64) -> Option<u64> {
    let behind = (near as u32).wrapping_sub(xid).cast_signed();
    near.checked_add_signed(-i64::from(behind))
}

#[async_trait]
impl QuerySession for Session {
    async fn freeze(&mut self) -> Result<Snapshot> {
        let ask = "SELECT pg_catalog.pg_current_snapshot()::text, pg_catalog.pg_is_in_recovery()";
        let row = sql::query_one(&self.frozen, "take a snapshot", ask, &[]).await?;
        if row.get(1) {
            // A standby's snapshots do not tell which transactions run.
            return Err(
                Error::new(ErrorKind::Setup, "the server is a standby").remedy(
                    "name the primary in the URL: only there can it be told what is in progress",
                ),
            );
        }
        Visible::parse(row.get(0)).map(Visible::into_snapshot)
    }

    async fn in_progress(&mut self) -> Result<Vec<InProgress>> {
        let doing = "list the transactions in progress";
        let rows = sql::query(&self.present, doing, IN_PROGRESS, &[]).await?;
        let read = |row: &tokio_postgres::Row| {
            let (xid, near): (&str, &str) = (row.get(0), row.get(3));
            Some(InProgress {
                xid: widened(xid.parse().ok()?, near.parse().ok()?)?,
                gid: row.get(1),
                prepared_micros: row.get(2),
            })
        };
        let all: Option<_> = rows.iter().map(read).collect();
        all.ok_or_else(|| protocol("a transaction's number is not one"))
    }

    async fn begin(&mut self, question: &Question<'_>) -> Result<Vec<QueryColumn>> {
        let columns = Columns::of(&self.frozen, question.query)
            .await?
            .with_key_first(question.key)?;
        let keys = question.key.len();
        let only = question.only.map(|only| {
            (0..keys)
                .map(|at| only.iter().filter_map(|key| key.get(at)).collect())
                .collect::<Vec<Vec<&String>>>()
        });
        let statement = columns.statement(question.query, keys, only.is_some());
        let prepared = sql::in_time("prepare the query", self.frozen.prepare(&statement)).await?;
        let only = only.unwrap_or_default();
        let parameters = only.iter().map(|column| column as &(dyn ToSql + Sync));
        let rows = self.frozen.query_raw(&prepared, parameters).await;
        let rows = rows.map_err(|error| from_sql(READING, error))?;
        self.rows = Some(Box::pin(rows));
        Ok(columns.0.iter().map(Column::told).collect())
    }

    async fn next(&mut self) -> Result<Vec<Row>> {
        let (mut read, mut bytes) = (Vec::new(), 0);
        while let Some(rows) = &mut self.rows
            && read.len() < ROWS
            && bytes < BYTES
        {
            match rows.next().await {
                Some(row) => {
                    let row = row.map_err(|error| from_sql(READING, error))?;
                    let row: Row = (0..row.len()).map(|at| row.get(at)).collect();
                    bytes += row.iter().flatten().map(String::len).sum::<usize>();
                    read.push(row);
                }
                None => self.rows = None,
            }
        }
        Ok(read)
    }
}

struct Column {
    name: String,
    ty: Type,
}

impl Column {
    fn told(&self) -> QueryColumn {
        QueryColumn {
            name: self.name.clone(),
            kind: self.ty.name().to_owned(),
            exact: matches!(
                *self.base(),
                Type::INT2 | Type::INT4 | Type::INT8 | Type::NUMERIC
            ),
        }
    }

    /// The type that a domain is over.
    fn base(&self) -> &Type {
        let mut ty = &self.ty;
        while let Kind::Domain(over) = ty.kind() {
            ty = over;
        }
        ty
    }

    /// The same text for the same value: of `1.50` and `1.5` as well.
    fn text(&self) -> String {
        let name = quote_ident(&self.name);
        match *self.base() {
            Type::NUMERIC => format!("pg_catalog.trim_scale(q.{name}::numeric)::text"),
            _ => format!("q.{name}::text"),
        }
    }
}

struct Columns(Vec<Column>);

impl Columns {
    /// What a query yields, by the server.
    async fn of(client: &Client, query: &str) -> Result<Self> {
        let statement = format!("SELECT * FROM (\n{}\n) AS q", bare(query));
        let prepared = sql::in_time("prepare the query", client.prepare(&statement)).await;
        let prepared: Statement = prepared.map_err(|error| match error.kind().policy() {
            Policy::Retry => error,
            _ => Error::new(
                ErrorKind::Config,
                "the server does not understand the query",
            )
            .source(error)
            .remedy("write one SELECT, as it would stand in parentheses behind FROM"),
        })?;
        if !prepared.params().is_empty() {
            return Err(Error::new(ErrorKind::Config, "the query has parameters")
                .remedy("write the values themselves in place of $1"));
        }
        let columns = prepared.columns().iter().map(|column| Column {
            name: column.name().to_owned(),
            ty: column.type_().clone(),
        });
        Ok(Columns(columns.collect()))
    }

    /// The columns of the key, in its order, before the others.
    fn with_key_first(mut self, key: &[String]) -> Result<Self> {
        let mut first = Vec::new();
        for name in key {
            let Some(at) = self.0.iter().position(|column| column.name == *name) else {
                let message = format!("the query has no column {name}, which is in the key");
                return Err(Error::new(ErrorKind::Config, message)
                    .remedy("select it, or give a column that name with AS"));
            };
            first.push(self.0.remove(at));
        }
        first.append(&mut self.0);
        Ok(Columns(first))
    }

    /// Rows as texts, ordered by the bytes of the first columns in UTF-8, whatever the database's encoding and collation are.
    fn statement(&self, query: &str, keys: usize, narrowed: bool) -> String {
        let all: Vec<String> = self.0.iter().map(Column::text).collect();
        let order = all[..keys].iter();
        let order: Vec<String> = order
            .map(|text| format!("pg_catalog.convert_to({text}, 'UTF8')"))
            .collect();
        // By the columns themselves: so the server can use an index, or at least compute less.
        let only = self.0[..keys].iter().enumerate().map(|(at, column)| {
            let of_type = format!(
                "{}.{}",
                quote_ident(column.ty.schema()),
                quote_ident(column.ty.name())
            );
            format!(
                "q.{} = ANY (${}::text[]::{of_type}[])",
                quote_ident(&column.name),
                at + 1
            )
        });
        let only: Vec<String> = only.collect();
        let filter = match narrowed {
            true => format!("WHERE {}", only.join(" AND ")),
            false => String::new(),
        };
        format!(
            "SELECT {} FROM (\n{}\n) AS q {filter} ORDER BY {}",
            all.join(", "),
            bare(query),
            order.join(", ")
        )
    }
}

/// Without the semicolon that ends it.
fn bare(query: &str) -> &str {
    query.trim_end_matches(|c: char| c == ';' || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Columns {
        let column = |name: &str, ty| Column {
            name: name.to_owned(),
            ty,
        };
        Columns(vec![
            column("quantity", Type::NUMERIC),
            column("order\"id", Type::UUID),
            column("sku", Type::TEXT),
        ])
    }

    #[test]
    fn rows_come_by_their_keys_as_texts() {
        let key = ["order\"id".to_owned(), "sku".to_owned()];
        let columns = columns().with_key_first(&key).expect("there");
        let all = columns.statement("SELECT 1 -- one\n ; ", 2, false);
        assert_eq!(
            all,
            "SELECT q.\"order\"\"id\"::text, q.\"sku\"::text, pg_catalog.trim_scale(q.\"quantity\"::numeric)::text FROM (\nSELECT 1 -- one\n) AS q  \
             ORDER BY pg_catalog.convert_to(q.\"order\"\"id\"::text, 'UTF8'), pg_catalog.convert_to(q.\"sku\"::text, 'UTF8')"
        );
        let some = columns.statement("SELECT 1", 2, true);
        assert!(
            some.contains(
                "WHERE q.\"order\"\"id\" = ANY ($1::text[]::\"pg_catalog\".\"uuid\"[]) AND q.\"sku\" = ANY ($2::"
            ),
            "{some}"
        );
    }

    #[test]
    fn numbers_of_32_bits_are_those_near_the_snapshot() {
        let epoch = 7_u64 << 32;
        assert_eq!(widened(5, epoch + 3), Some(epoch + 5));
        assert_eq!(widened(u32::MAX, epoch + 3), Some(epoch - 1));
        assert_eq!(widened(2, epoch - 1), Some(epoch + 2));
        assert_eq!(widened(u32::MAX, 3), None);
    }

    #[test]
    fn a_key_that_is_not_there_is_told() {
        let error = columns().with_key_first(&["id".to_owned()]);
        let error = error.err().expect("not there").to_string();
        assert!(error.contains("no column id"), "{error}");
    }
}

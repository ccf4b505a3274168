//! Reads one table and asks the sinks about its rows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use futures_util::StreamExt as _;
use lockstep_core::batch::{Batch, BatchBuilder, Cell, Op, Phase, Transaction};
use lockstep_core::error::At as _;
use lockstep_core::position::{Lsn, SourceInfo};
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::Held;
use lockstep_core::{Error, ErrorKind, Result};
use serde_json::value::RawValue;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::super::rows::failed;
use super::{Compared, Copy};
use crate::figures::of;

/// Rows handed to a sink at once.
const ROWS_PER_BATCH: usize = 1_000;

/// One table of a source.
pub(super) struct Reader {
    pub(super) source: Arc<SourceInfo>,
    pub(super) table: Arc<TableSchema>,
    /// Columns of the idempotency key.
    pub(super) keys: Vec<String>,
    /// Columns that a copy may lack.
    pub(super) added: Vec<String>,
    pub(super) now: Lsn,
}

impl Reader {
    pub(super) async fn compare(
        &self,
        client: &Client,
        copies: &mut [Copy],
    ) -> Result<Vec<Compared>> {
        self.check_columns(client).await?;
        let mut results: Vec<Compared> = copies.iter().map(|copy| self.result_for(copy)).collect();
        let mut plain = Chunk::default();
        let mut groups = Groups::default();
        let doing = |error| failed("reading the table", error);
        let rows = client
            .simple_query_raw(&self.select())
            .await
            .map_err(doing)?;
        let mut rows = std::pin::pin!(rows);
        while let Some(message) = rows.next().await {
            let SimpleQueryMessage::Row(row) = message.map_err(doing)? else {
                continue;
            };
            let Some(key) = row.get(self.table.columns.len()) else {
                self.add(&mut plain, &row)?;
                if plain.rows == ROWS_PER_BATCH {
                    self.hand_over(&mut plain, copies, &mut results).await?;
                }
                continue;
            };
            // Rows of a group come one after the other.
            if groups.chunk.rows >= ROWS_PER_BATCH && groups.last != key {
                self.hand_over_groups(&mut groups, copies, &mut results)
                    .await?;
            }
            groups.begin(key);
            self.add(&mut groups.chunk, &row)?;
        }
        self.hand_over(&mut plain, copies, &mut results).await?;
        self.hand_over_groups(&mut groups, copies, &mut results)
            .await?;
        for (copy, result) in std::iter::zip(copies, &mut results) {
            let held = copy
                .inspect
                .count(&self.table)
                .await
                .at(format!("sinks.{}", copy.name))?;
            let seen = result.same + result.different + result.extra;
            let unknown = held.saturating_sub(seen);
            if unknown > 0 {
                result.extra += unknown;
                let unknown = of(unknown, "row", "rows");
                result.example(|| format!("{unknown} too many: there, and not in the table"));
            }
        }
        Ok(results)
    }

    fn result_for(&self, copy: &Copy) -> Compared {
        Compared {
            sink: copy.name.clone(),
            source: self.source.name.to_string(),
            table: self.table.origin.name.to_string(),
            ..Compared::default()
        }
    }

    /// The columns, and behind them the idempotency key where more than one row has it.
    fn select(&self) -> String {
        let mut sql = String::from("SELECT ");
        for column in &self.table.columns {
            let _ = write!(sql, "{}, ", identifier(&column.name));
        }
        let origin = &self.table.origin;
        let from = format!(
            "{}.{}",
            identifier(&origin.schema),
            identifier(&origin.name)
        );
        if self.keys.is_empty() {
            let _ = write!(sql, "NULL FROM {from}");
            return sql;
        }
        let keys: Vec<String> = self.keys.iter().map(|name| identifier(name)).collect();
        let (list, row) = (keys.join(", "), format!("ROW({})", keys.join(", ")));
        // A key with a NULL in it is no key.
        let _ = write!(
            sql,
            "CASE WHEN {row} IS NOT NULL AND count(*) OVER (PARTITION BY {list}) > 1 THEN {row}::text END FROM {from}
             ORDER BY {list}"
        );
        sql
    }

    /// A schema that lags behind an ALTER TABLE would compare the wrong columns.
    async fn check_columns(&self, client: &Client) -> Result<()> {
        let sql = "SELECT attname::text FROM pg_attribute
                   WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum";
        let rows = client.query(sql, &[&self.table.relation]).await;
        let rows = rows.map_err(|error| failed("reading the table's columns", error))?;
        let mut now: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
        let mut known: Vec<&str> = self
            .table
            .columns
            .iter()
            .map(|column| &*column.name)
            .collect();
        now.sort_unstable();
        known.sort_unstable();
        if now == known {
            return Ok(());
        }
        let message = format!(
            "the table has the columns {}, the schema to compare by has {}",
            now.join(", "),
            known.join(", ")
        );
        Err(Error::new(ErrorKind::Setup, message)
            .remedy("read the source's tables again after a schema change"))
    }

    fn add(&self, chunk: &mut Chunk, row: &SimpleQueryRow) -> Result<()> {
        if chunk.rows == 0 {
            chunk.builder.begin(Transaction {
                commit: self.now,
                commit_micros: 0,
                xid: 0,
                origin: None,
                previous_commit: None,
                prepared: None,
                global: None,
            });
        }
        let schema = chunk.builder.schema(&self.table);
        let start = chunk.builder.cells().len();
        let width = usize::from(self.table.width);
        chunk.builder.cells().resize(start + width, Cell::NULL);
        for (index, column) in self.table.columns.iter().enumerate() {
            let Some(value) = row.get(index) else {
                continue;
            };
            let offset = u32::try_from(chunk.block.len());
            let (Ok(offset), true) = (offset, value.len() <= Cell::MAX_LENGTH) else {
                let message = format!("a value of {} bytes is too long to compare", value.len());
                return Err(
                    Error::new(ErrorKind::Refused, message).at(format!("column {}", column.name))
                );
            };
            chunk.block.extend_from_slice(value.as_bytes());
            chunk.builder.cells()[start + usize::from(column.slot)] =
                Cell::text(offset, value.len() as u32);
        }
        chunk.rows += 1;
        chunk.builder.push(
            Op::Read,
            schema,
            chunk.rows as u64,
            self.now,
            None,
            Some(start),
        );
        Ok(())
    }

    async fn hand_over(
        &self,
        chunk: &mut Chunk,
        copies: &mut [Copy],
        results: &mut [Compared],
    ) -> Result<()> {
        let Some(batch) = chunk.take(&self.source) else {
            return Ok(());
        };
        for (copy, result) in std::iter::zip(copies, results) {
            for held in self.ask(copy, &batch).await? {
                result.count(held);
            }
        }
        Ok(())
    }

    async fn hand_over_groups(
        &self,
        groups: &mut Groups,
        copies: &mut [Copy],
        results: &mut [Compared],
    ) -> Result<()> {
        let Some(batch) = groups.chunk.take(&self.source) else {
            return Ok(());
        };
        let mut starts = std::mem::take(&mut groups.starts);
        starts.push(batch.changes().len());
        groups.last.clear();
        for (copy, result) in std::iter::zip(copies, results) {
            let mut answers = self.ask(copy, &batch).await?.into_iter();
            for bounds in starts.windows(2) {
                result.count_group(answers.by_ref().take(bounds[1] - bounds[0]).collect());
            }
        }
        Ok(())
    }

    /// One answer per row of `batch`.
    async fn ask(&self, copy: &mut Copy, batch: &Batch) -> Result<Vec<Held>> {
        let place = || format!("sinks.{}", copy.name);
        let asked = batch.changes().len();
        let mut answers = copy.inspect.compare(batch).await.at(place())?;
        if answers.len() != asked {
            let message = format!(
                "{asked} rows were asked for, {} answers came",
                answers.len()
            );
            return Err(Error::new(ErrorKind::Protocol, message).at(place()));
        }
        for answer in &mut answers {
            if let Held::Different {
                expected, actual, ..
            } = answer
                && lacks_only(&self.added, expected, actual)
            {
                *answer = Held::Same;
            }
        }
        Ok(answers)
    }
}

/// Whether `actual` is the JSON object `expected` but for members of `added` that are null there and absent here.
fn lacks_only(added: &[String], expected: &str, actual: &str) -> bool {
    type Members<'a> = BTreeMap<String, &'a RawValue>;
    let parse = |text| serde_json::from_str::<Members<'_>>(text).ok();
    let (Some(expected), Some(mut actual)) = (parse(expected), parse(actual)) else {
        return false;
    };
    let all = expected
        .iter()
        .all(|(name, value)| match actual.remove(name) {
            Some(held) => held.get() == value.get(),
            None => value.get() == "null" && added.contains(name),
        });
    all && actual.is_empty()
}

/// Rows on their way to the sinks.
#[derive(Default)]
struct Chunk {
    builder: BatchBuilder,
    block: Vec<u8>,
    rows: usize,
}

impl Chunk {
    fn take(&mut self, source: &Arc<SourceInfo>) -> Option<Batch> {
        if self.rows == 0 {
            return None;
        }
        self.rows = 0;
        let block = std::mem::take(&mut self.block);
        Some(
            self.builder
                .finish(Arc::clone(source), Phase::Snapshot, None, block.into()),
        )
    }
}

/// Rows that share their idempotency key with others.
#[derive(Default)]
struct Groups {
    chunk: Chunk,
    /// Index of the first row of each group.
    starts: Vec<usize>,
    last: String,
}

impl Groups {
    fn begin(&mut self, key: &str) {
        if self.starts.is_empty() || self.last != key {
            self.starts.push(self.chunk.rows);
            key.clone_into(&mut self.last);
        }
    }
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_added_column_may_be_absent() {
        let added = ["gift".to_owned()];
        let lacks = |expected, actual| lacks_only(&added, expected, actual);
        assert!(lacks(r#"{"a":1,"gift":null}"#, r#"{"a":1}"#));
        assert!(lacks(r#"{"a":1,"gift":null}"#, r#"{"gift":null,"a":1}"#));
        assert!(!lacks(r#"{"a":1,"gift":"x"}"#, r#"{"a":1}"#));
        assert!(!lacks(r#"{"a":1,"b":null}"#, r#"{"a":1}"#));
        assert!(!lacks(r#"{"a":1,"gift":null}"#, r#"{"a":1.0}"#));
        assert!(!lacks(r#"{"gift":null}"#, r#"{"a":1}"#));
        assert!(!lacks("no json", "no json"));
    }
}

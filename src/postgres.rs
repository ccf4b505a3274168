//! PostgreSQL as a source that can also tell its tables before anything has been made on its server.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use lockstep_core::Result;
use lockstep_core::check::Finding;
use lockstep_core::query::Queries;
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};
use lockstep_core::source::{Source, SourceContext, SourceFactory};
use lockstep_pg::wire::connection::TextRow;
use lockstep_pg::wire::{Connection, Mode};
use lockstep_postgres::{PostgresConfig, PostgresFactory, describe};

/// Every column of every table that could be published, with its place in the key that identifies rows.
const SHAPES: &str = "SELECT n.nspname, c.relname, c.oid, c.relreplident, a.attname, t.oid, t.typname, a.atttypmod,
      a.attnotnull, k.position
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid
      AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END
    LEFT JOIN LATERAL (SELECT position FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, position)
      WHERE k.attnum = a.attnum AND position <= i.indnkeyatts) k ON true
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
    ORDER BY n.nspname, c.relname, a.attnum";

/// [`PostgresFactory`], with [`SourceFactory::tables`].
pub struct Postgres;

#[async_trait]
impl SourceFactory for Postgres {
    const KIND: &'static str = PostgresFactory::KIND;
    type Config = PostgresConfig;

    fn validate(config: &PostgresConfig) -> Result<()> {
        PostgresFactory::validate(config)
    }

    async fn open(config: &PostgresConfig, context: SourceContext) -> Result<Box<dyn Source>> {
        PostgresFactory::open(config, context).await
    }

    async fn preflight(
        config: &PostgresConfig,
        pipeline: &str,
        name: &str,
        state: &Path,
    ) -> Vec<Finding> {
        PostgresFactory::preflight(config, pipeline, name, state).await
    }

    async fn tables(config: &PostgresConfig, name: &str) -> Result<Option<Vec<Arc<TableSchema>>>> {
        let mut server = Connection::open(&config.target()?, Mode::Sql).await?;
        let sql = "SELECT pubname FROM pg_catalog.pg_publication";
        let publications = server.query("list the publications", sql).await?;
        let published = publications
            .iter()
            .any(|row| text(row, 0) == config.publication);
        // `describe` would create a publication that is missing.
        let tables = if published {
            describe(config, name).await?.1
        } else {
            let rows = server.query("read the tables' columns", SHAPES).await?;
            shapes(&rows, &config.tables, name)
        };
        server.terminate().await;
        Ok(Some(tables))
    }

    fn queries(config: &PostgresConfig) -> Result<Option<Arc<dyn Queries>>> {
        PostgresFactory::queries(config)
    }

    fn tells_of_branches(config: &PostgresConfig) -> bool {
        PostgresFactory::tells_of_branches(config)
    }
}

fn text(row: &TextRow, index: usize) -> &str {
    row.get(index)
        .and_then(Option::as_deref)
        .unwrap_or_default()
}

/// The tables that the patterns name. Types are as written, domains and arrays not resolved: enough to look columns up.
fn shapes(rows: &[TextRow], patterns: &[String], source: &str) -> Vec<Arc<TableSchema>> {
    let mut tables: BTreeMap<TableId, Vec<&TextRow>> = BTreeMap::new();
    for row in rows {
        let id = TableId::new(text(row, 0), text(row, 1));
        if patterns.iter().any(|pattern| names(pattern, &id)) {
            tables.entry(id).or_default().push(row);
        }
    }
    tables
        .into_iter()
        .map(|(id, rows)| Arc::new(shape(id, &rows, source)))
        .collect()
}

fn names(pattern: &str, id: &TableId) -> bool {
    let named = pattern.split_once('.');
    named.is_some_and(|(schema, name)| schema == &*id.schema && (name == "*" || name == &*id.name))
}

fn shape(id: TableId, rows: &[&TextRow], source: &str) -> TableSchema {
    let first = rows.first();
    let columns = rows.iter().zip(0..).map(|(row, slot)| Column {
        name: text(row, 4).into(),
        ty: ColumnType {
            oid: text(row, 5).parse().unwrap_or(0),
            typmod: text(row, 7).parse().unwrap_or(-1),
            name: text(row, 6).into(),
            kind: TypeKind::Base,
        },
        slot,
        not_null: text(row, 8) == "t",
    });
    let mut key: Vec<(u16, u16)> = rows
        .iter()
        .zip(0..)
        .filter_map(|(row, index)| Some((text(row, 9).parse().ok()?, index)))
        .collect();
    key.sort_unstable();
    TableSchema {
        source: source.into(),
        origin: id.clone(),
        id,
        relation: first.map_or(0, |row| text(row, 2).parse().unwrap_or(0)),
        version: 1,
        columns: columns.collect(),
        key: key.into_iter().map(|(_, index)| index).collect(),
        identity: match first.map_or("", |row| text(row, 3)) {
            "n" => ReplicaIdentity::Nothing,
            "f" => ReplicaIdentity::Full,
            "i" => ReplicaIdentity::Index,
            _ => ReplicaIdentity::Default,
        },
        width: u16::try_from(rows.len()).unwrap_or(u16::MAX),
    }
}

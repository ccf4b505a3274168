//! Batches made by hand, and sinks opened on them.
#![allow(dead_code)]

use std::sync::Arc;

use lockstep_core::batch::{Batch, BatchBuilder, Cell, OldImage, Op, Phase, Transaction};
use lockstep_core::durable::Delivered;
use lockstep_core::position::{Lsn, Position, SourceIdentity, SourceInfo};
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};
use lockstep_core::sink::{Sink, SinkContext, SinkFactory, Trouble};
use lockstep_core::{Error, Result};

/// A value of a row.
#[derive(Clone, Copy, Debug)]
pub enum V<'a> {
    Text(&'a str),
    Null,
    Unchanged,
}

impl<'a> From<&'a str> for V<'a> {
    fn from(text: &'a str) -> Self {
        V::Text(text)
    }
}

/// `(name, type, oid)`
pub type Col<'a> = (&'a str, &'a str, u32);

pub const INT4: u32 = 23;
pub const INT8: u32 = 20;
pub const TEXT: u32 = 25;
pub const NUMERIC: u32 = 1700;
pub const JSON: u32 = 114;
pub const JSONB: u32 = 3802;
pub const TIMESTAMPTZ: u32 = 1184;
pub const BOOL: u32 = 16;
pub const BYTEA: u32 = 17;
pub const FLOAT8: u32 = 701;
pub const DATE: u32 = 1082;

pub fn base(name: &str, oid: u32) -> ColumnType {
    ColumnType {
        oid,
        typmod: -1,
        name: name.into(),
        kind: TypeKind::Base,
    }
}

/// A table of `source` in schema `public` whose first column is the key.
pub fn table(source: &str, name: &str, version: u32, columns: &[Col<'_>]) -> Arc<TableSchema> {
    let columns = columns
        .iter()
        .map(|(name, ty, oid)| (*name, base(ty, *oid)));
    table_of(source, name, version, columns.collect())
}

pub fn table_of(
    source: &str,
    name: &str,
    version: u32,
    columns: Vec<(&str, ColumnType)>,
) -> Arc<TableSchema> {
    let width = columns.len() as u16;
    let columns = columns
        .into_iter()
        .enumerate()
        .map(|(slot, (name, ty))| Column {
            name: name.into(),
            ty,
            slot: slot as u16,
            not_null: slot == 0,
        });
    Arc::new(TableSchema {
        source: source.into(),
        id: TableId::new("public", name),
        origin: TableId::new("public", name),
        relation: 1,
        version,
        columns: columns.collect(),
        key: vec![0],
        identity: ReplicaIdentity::Default,
        width,
    })
}

pub fn source(name: &str) -> Arc<SourceInfo> {
    Arc::new(SourceInfo {
        name: name.into(),
        identity: SourceIdentity {
            system: 7_000_000_000_000_000_001,
            timeline: 1,
            incarnation: 0,
            database: "shop".into(),
        },
    })
}

/// Where the n-th record of a log begins.
pub fn lsn(n: u64) -> Lsn {
    Lsn(8 * n)
}

/// Puts a batch together.
pub struct Feed {
    source: Arc<SourceInfo>,
    builder: BatchBuilder,
    block: Vec<u8>,
    phase: Phase,
    commit: u64,
    ordinal: u64,
}

impl Feed {
    pub fn new(source: &Arc<SourceInfo>) -> Self {
        Feed {
            source: Arc::clone(source),
            builder: BatchBuilder::new(),
            block: Vec::new(),
            phase: Phase::Stream,
            commit: 0,
            ordinal: 0,
        }
    }

    /// Rows of an initial copy at this consistent point.
    pub fn snapshot(source: &Arc<SourceInfo>, point: u64) -> Self {
        let mut feed = Self::new(source);
        feed.phase = Phase::Snapshot;
        feed.begin(point);
        feed
    }

    /// The following changes belong to the transaction that commits at `commit`.
    pub fn begin(&mut self, commit: u64) -> &mut Self {
        self.continued(commit, 0)
    }

    /// As `begin`, for a transaction of which an earlier batch had the first changes.
    pub fn continued(&mut self, commit: u64, ordinal: u64) -> &mut Self {
        self.commit = commit;
        self.ordinal = ordinal;
        self.builder.begin(Transaction {
            commit: lsn(commit),
            commit_micros: 1_700_000_000_000_000,
            xid: 1,
            origin: None,
            previous_commit: None,
        });
        self
    }

    fn row(&mut self, schema: &TableSchema, values: &[V<'_>]) -> usize {
        let start = self.builder.cells().len();
        for slot in 0..usize::from(schema.width) {
            let cell = match values.get(slot).copied().unwrap_or(V::Null) {
                V::Null => Cell::NULL,
                V::Unchanged => Cell::UNCHANGED,
                V::Text(text) => {
                    let offset = self.block.len() as u32;
                    self.block.extend_from_slice(text.as_bytes());
                    Cell::text(offset, text.len() as u32)
                }
            };
            self.builder.cells().push(cell);
        }
        start
    }

    fn push(
        &mut self,
        op: Op,
        schema: &Arc<TableSchema>,
        old: Option<&[V<'_>]>,
        new: Option<&[V<'_>]>,
    ) -> &mut Self {
        self.ordinal += 1;
        let old = old.map(|values| (OldImage::Key, self.row(schema, values)));
        let new = new.map(|values| self.row(schema, values));
        let index = self.builder.schema(schema);
        self.builder
            .push(op, index, self.ordinal, lsn(self.commit), old, new);
        self
    }

    pub fn read(&mut self, schema: &Arc<TableSchema>, row: &[V<'_>]) -> &mut Self {
        self.push(Op::Read, schema, None, Some(row))
    }

    pub fn insert(&mut self, schema: &Arc<TableSchema>, row: &[V<'_>]) -> &mut Self {
        self.push(Op::Insert, schema, None, Some(row))
    }

    pub fn update(&mut self, schema: &Arc<TableSchema>, row: &[V<'_>]) -> &mut Self {
        self.push(Op::Update, schema, None, Some(row))
    }

    /// An update that changes the key from `old`.
    pub fn rekey(&mut self, schema: &Arc<TableSchema>, old: &str, row: &[V<'_>]) -> &mut Self {
        self.push(Op::Update, schema, Some(&[V::Text(old)]), Some(row))
    }

    pub fn delete(&mut self, schema: &Arc<TableSchema>, key: &str) -> &mut Self {
        self.push(Op::Delete, schema, Some(&[V::Text(key)]), None)
    }

    pub fn truncate(&mut self, schema: &Arc<TableSchema>) -> &mut Self {
        self.push(Op::Truncate, schema, None, None)
    }

    pub fn finish(&mut self) -> Arc<Batch> {
        let block = std::mem::take(&mut self.block).into();
        let through = Some(lsn(self.commit + 1));
        Arc::new(
            self.builder
                .finish(Arc::clone(&self.source), self.phase, through, block),
        )
    }
}

pub fn context(source: &Arc<SourceInfo>, tables: &[&Arc<TableSchema>]) -> SinkContext {
    SinkContext {
        pipeline: "test".into(),
        name: "search".into(),
        state: std::env::temp_dir(),
        sources: vec![Arc::clone(source)],
        tables: tables.iter().map(|table| Arc::clone(table)).collect(),
        trouble: Trouble::default(),
    }
}

pub async fn open<F: SinkFactory>(
    config: serde_json::Value,
    source: &Arc<SourceInfo>,
    tables: &[&Arc<TableSchema>],
) -> Box<dyn Sink> {
    let config: F::Config = serde_json::from_value(config).expect("a valid section");
    F::open(&config, context(source, tables))
        .await
        .expect("the sink opens")
}

/// Writes a batch and waits until it is durable.
pub async fn put(sink: &mut Box<dyn Sink>, batch: Arc<Batch>) -> Result<Delivered> {
    sink.write(batch).await?.await
}

pub async fn put_ok(sink: &mut Box<dyn Sink>, batch: Arc<Batch>) -> Delivered {
    put(sink, batch).await.expect("the batch is written")
}

pub async fn put_err(sink: &mut Box<dyn Sink>, batch: Arc<Batch>) -> Error {
    put(sink, batch).await.expect_err("the batch is refused")
}

pub fn position(commit: u64, ordinal: u64) -> Position {
    Position {
        commit: lsn(commit),
        ordinal,
    }
}

//! Batches made by hand.

use std::sync::Arc;

use lockstep_core::batch::{Batch, BatchBuilder, Cell, OldImage, Op, Phase, Prepared, Transaction};
use lockstep_core::position::{Lsn, Position, SourceIdentity, SourceInfo};
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};

/// A value of a row.
#[derive(Clone, Copy, Debug)]
pub enum V<'a> {
    /// The type's text form.
    Text(&'a str),
    /// Bytes that may be no text at all.
    Bytes(&'a [u8]),
    /// SQL NULL.
    Null,
    /// A large value that the update did not touch.
    Unchanged,
}

impl<'a> From<&'a str> for V<'a> {
    fn from(text: &'a str) -> Self {
        V::Text(text)
    }
}

/// `(name, type, oid)`
pub type Col<'a> = (&'a str, &'a str, u32);

/// Of the type `int4`.
pub const INT4: u32 = 23;
/// Of the type `int8`.
pub const INT8: u32 = 20;
/// Of the type `text`.
pub const TEXT: u32 = 25;
/// Of the type `numeric`.
pub const NUMERIC: u32 = 1700;
/// Of the type `json`.
pub const JSON: u32 = 114;
/// Of the type `jsonb`.
pub const JSONB: u32 = 3802;
/// Of the type `timestamptz`.
pub const TIMESTAMPTZ: u32 = 1184;
/// Of the type `bool`.
pub const BOOL: u32 = 16;
/// Of the type `bytea`.
pub const BYTEA: u32 = 17;
/// Of the type `float8`.
pub const FLOAT8: u32 = 701;
/// Of the type `date`.
pub const DATE: u32 = 1082;

/// A type without modifier.
#[must_use]
pub fn base(name: &str, oid: u32) -> ColumnType {
    ColumnType {
        oid,
        typmod: -1,
        name: name.into(),
        kind: TypeKind::Base,
    }
}

/// A table of `source` in schema `public` whose first column is the key.
#[must_use]
pub fn table(source: &str, name: &str, version: u32, columns: &[Col<'_>]) -> Arc<TableSchema> {
    let columns = columns
        .iter()
        .map(|(name, ty, oid)| (*name, base(ty, *oid)));
    table_of(source, name, version, columns.collect())
}

/// As [`table`], of any types.
#[must_use]
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

/// A source of that name; all of them read the same log.
#[must_use]
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
#[must_use]
pub fn lsn(n: u64) -> Lsn {
    Lsn(8 * n)
}

/// The position of a change.
#[must_use]
pub fn position(commit: u64, ordinal: u64) -> Position {
    Position {
        commit: lsn(commit),
        ordinal,
    }
}

fn branch(at: u64) -> Arc<Prepared> {
    Arc::new(Prepared {
        gid: "g".into(),
        lsn: lsn(at),
        micros: 1_700_000_000_000_000,
        marker: None,
    })
}

/// Puts a batch together.
#[derive(Debug)]
pub struct Feed {
    source: Arc<SourceInfo>,
    builder: BatchBuilder,
    block: Vec<u8>,
    phase: Phase,
    commit: u64,
    ordinal: u64,
}

impl Feed {
    /// A batch of the stream. A row shorter than its table ends in NULLs.
    #[must_use]
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
    #[must_use]
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
        self.begin_with(commit, ordinal, None)
    }

    /// The following changes belong to a branch that was prepared at `lsn` and has not committed.
    pub fn prepare(&mut self, at: u64) -> &mut Self {
        self.begin_with(at, 0, Some(branch(at)))
    }

    /// The following changes belong to a branch that was prepared at `at`, and commits at `commit`.
    pub fn commit_prepared(&mut self, at: u64, commit: u64) -> &mut Self {
        self.begin_with(commit, 0, Some(branch(at)))
    }

    fn begin_with(
        &mut self,
        commit: u64,
        ordinal: u64,
        prepared: Option<Arc<Prepared>>,
    ) -> &mut Self {
        self.commit = commit;
        self.ordinal = ordinal;
        self.builder.begin(Transaction {
            commit: lsn(commit),
            commit_micros: 1_700_000_000_000_000,
            xid: 1,
            origin: None,
            previous_commit: None,
            prepared,
            global: None,
        });
        self
    }

    fn row(&mut self, schema: &TableSchema, values: &[V<'_>]) -> usize {
        let start = self.builder.cells().len();
        for slot in 0..usize::from(schema.width) {
            let cell = match values.get(slot).copied().unwrap_or(V::Null) {
                V::Null => Cell::NULL,
                V::Unchanged => Cell::UNCHANGED,
                V::Text(text) => self.cell(text.as_bytes()),
                V::Bytes(bytes) => self.cell(bytes),
            };
            self.builder.cells().push(cell);
        }
        start
    }

    fn cell(&mut self, bytes: &[u8]) -> Cell {
        let offset = self.block.len() as u32;
        self.block.extend_from_slice(bytes);
        Cell::text(offset, bytes.len() as u32)
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

    /// A row of a copy.
    pub fn read(&mut self, schema: &Arc<TableSchema>, row: &[V<'_>]) -> &mut Self {
        self.push(Op::Read, schema, None, Some(row))
    }

    /// INSERT.
    pub fn insert(&mut self, schema: &Arc<TableSchema>, row: &[V<'_>]) -> &mut Self {
        self.push(Op::Insert, schema, None, Some(row))
    }

    /// UPDATE that leaves the key alone.
    pub fn update(&mut self, schema: &Arc<TableSchema>, row: &[V<'_>]) -> &mut Self {
        self.push(Op::Update, schema, None, Some(row))
    }

    /// An update that changes the key from `old`.
    pub fn rekey(&mut self, schema: &Arc<TableSchema>, old: &str, row: &[V<'_>]) -> &mut Self {
        self.push(Op::Update, schema, Some(&[V::Text(old)]), Some(row))
    }

    /// DELETE.
    pub fn delete(&mut self, schema: &Arc<TableSchema>, key: &str) -> &mut Self {
        self.push(Op::Delete, schema, Some(&[V::Text(key)]), None)
    }

    /// TRUNCATE.
    pub fn truncate(&mut self, schema: &Arc<TableSchema>) -> &mut Self {
        self.push(Op::Truncate, schema, None, None)
    }

    /// The batch; its last transaction is complete.
    pub fn finish(&mut self) -> Arc<Batch> {
        let through = lsn(self.commit + 1);
        self.end(Some(through))
    }

    /// The batch; the rest of its last transaction comes in the next one.
    pub fn finish_cut(&mut self) -> Arc<Batch> {
        self.end(None)
    }

    fn end(&mut self, through: Option<Lsn>) -> Arc<Batch> {
        let block = std::mem::take(&mut self.block).into();
        let source = Arc::clone(&self.source);
        Arc::new(self.builder.finish(source, self.phase, through, block))
    }
}

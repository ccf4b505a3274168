//! Batches for this crate's tests.

use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::batch::{Batch, BatchBuilder, Cell, OldImage, Op, Phase, Transaction};
use lockstep_core::position::{Lsn, SourceIdentity, SourceInfo};
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};

/// A value of a test row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Null,
    Unchanged,
    Text(&'a str),
    Bytes(&'a [u8]),
    Binary(&'a [u8]),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Value::Text(text)
    }
}

/// A type without modifier.
pub(crate) fn base(oid: u32, name: &str) -> ColumnType {
    typed(oid, name, -1)
}

/// A type with its modifier.
pub(crate) fn typed(oid: u32, name: &str, typmod: i32) -> ColumnType {
    ColumnType {
        oid,
        typmod,
        name: name.into(),
        kind: TypeKind::Base,
    }
}

/// An array of `element`.
pub(crate) fn array(element: ColumnType) -> ColumnType {
    ColumnType {
        oid: 1,
        typmod: element.typmod,
        name: format!("_{}", element.name).into(),
        kind: TypeKind::Array(Arc::new(element)),
    }
}

/// A table of these columns, the first `keys` of them the key.
pub(crate) fn table(name: &str, columns: &[(&str, ColumnType)], keys: u16) -> Arc<TableSchema> {
    let columns: Vec<Column> = columns
        .iter()
        .enumerate()
        .map(|(slot, (name, ty))| Column {
            name: (*name).into(),
            ty: ty.clone(),
            slot: slot as u16,
            not_null: false,
        })
        .collect();
    let id = TableId::new("public", name);
    Arc::new(TableSchema {
        source: "orders".into(),
        id: id.clone(),
        origin: id,
        relation: 1,
        version: 1,
        width: columns.len() as u16,
        columns,
        key: (0..keys).collect(),
        identity: ReplicaIdentity::Default,
    })
}

/// The source of all test batches.
pub(crate) fn source() -> Arc<SourceInfo> {
    Arc::new(SourceInfo {
        name: "orders".into(),
        identity: SourceIdentity {
            system: 7_000_000_000_000_000_001,
            timeline: 1,
            incarnation: 0,
            database: "shop".into(),
        },
    })
}

/// Builds a batch value by value.
pub(crate) struct Maker {
    builder: BatchBuilder,
    block: Vec<u8>,
    ordinal: u64,
}

impl Maker {
    /// A batch whose first transaction commits at `commit`.
    pub(crate) fn new(commit: u64) -> Self {
        let mut maker = Maker {
            builder: BatchBuilder::new(),
            block: Vec::new(),
            ordinal: 0,
        };
        maker.begin(commit, None);
        maker
    }

    /// A further transaction.
    pub(crate) fn begin(&mut self, commit: u64, previous: Option<u64>) {
        self.ordinal = 0;
        self.builder.begin(Transaction {
            commit: Lsn(commit),
            commit_micros: 1_795_342_720_581_473,
            xid: 801,
            origin: None,
            previous_commit: previous.map(Lsn),
            prepared: None,
            global: None,
        });
    }

    fn row(&mut self, values: &[Value<'_>]) -> usize {
        let start = self.builder.cells().len();
        for value in values {
            let (offset, bytes) = (
                self.block.len() as u32,
                match value {
                    Value::Text(text) => text.as_bytes(),
                    Value::Bytes(bytes) | Value::Binary(bytes) => bytes,
                    Value::Null | Value::Unchanged => &[],
                },
            );
            self.block.extend_from_slice(bytes);
            self.builder.cells().push(match value {
                Value::Null => Cell::NULL,
                Value::Unchanged => Cell::UNCHANGED,
                Value::Binary(_) => Cell::binary(offset, bytes.len() as u32),
                Value::Text(_) | Value::Bytes(_) => Cell::text(offset, bytes.len() as u32),
            });
        }
        start
    }

    /// Adds a change.
    pub(crate) fn push(
        &mut self,
        op: Op,
        schema: &Arc<TableSchema>,
        old: Option<(OldImage, &[Value<'_>])>,
        new: Option<&[Value<'_>]>,
    ) -> &mut Self {
        let old = old.map(|(image, values)| (image, self.row(values)));
        let new = new.map(|values| self.row(values));
        let index = self.builder.schema(schema);
        self.ordinal += 1;
        self.builder
            .push(op, index, self.ordinal, Lsn(29_672_896), old, new);
        self
    }

    /// The batch.
    pub(crate) fn batch(mut self, phase: Phase) -> Batch {
        self.builder
            .finish(source(), phase, None, Bytes::from(self.block))
    }
}

//! Tables as the stream describes them: columns, types, key, replica identity.

use std::fmt;
use std::sync::Arc;

/// Schema and name of a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId {
    /// Schema (namespace).
    pub schema: Arc<str>,
    /// Table name.
    pub name: Arc<str>,
}

impl TableId {
    /// A table id from its two parts.
    #[must_use]
    pub fn new(schema: &str, name: &str) -> Self {
        TableId {
            schema: schema.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// What an UPDATE or DELETE sends of the old row (`pg_class.relreplident`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key, when it changed (UPDATE) or always (DELETE).
    Default,
    /// Nothing; PostgreSQL then refuses UPDATE and DELETE on a published table.
    Nothing,
    /// The whole old row.
    Full,
    /// The columns of one unique index.
    Index,
}

/// A PostgreSQL type, with domains already resolved to what they are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnType {
    /// `pg_type.oid`, of the base type for a domain.
    pub oid: u32,
    /// `atttypmod`, −1 for none; of the domain where the domain sets it.
    pub typmod: i32,
    /// `pg_type.typname` (`int4`, `varchar`, `citext`, `order_status`).
    pub name: Arc<str>,
    /// What shape of type it is.
    pub kind: TypeKind,
}

/// The shapes of types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TypeKind {
    /// A scalar, known by oid (built in) or by name (extensions: `citext`, `hstore`, `ltree`, …).
    Base,
    /// An enum.
    Enum,
    /// An array of the given element type.
    Array(Arc<ColumnType>),
    /// A range.
    Range,
    /// A multirange.
    Multirange,
    /// A composite (row) type.
    Composite,
}

/// One column as the pipeline carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Name; a projection may have renamed it.
    pub name: Arc<str>,
    /// Type.
    pub ty: ColumnType,
    /// Which cell of the row holds its value. A projection drops and reorders columns by changing slots only; the
    /// cells stay where they are.
    pub slot: u16,
    /// `attnotnull`.
    pub not_null: bool,
}

/// Columns that every event has: `id`, `key`, `payload`, in this order. See [`TableSchema::event`].
pub const EVENT_COLUMNS: usize = 3;

/// One version of a table's shape. Shared by all rows decoded under it; a new `Relation` message or a transform makes
/// a new one, so pointer equality is a valid cache key while the `Arc` is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSchema {
    /// Name of the source in the pipeline file.
    pub source: Arc<str>,
    /// Where records of this table go: the table's own name, or what a `route` made of it.
    pub id: TableId,
    /// The table's own name in the database.
    pub origin: TableId,
    /// Relation oid.
    pub relation: u32,
    /// Counts the versions of this table that this process has seen, from 1.
    pub version: u32,
    /// Columns in output order.
    pub columns: Vec<Column>,
    /// Indices into `columns`, in primary-key order; empty when the table has no key.
    pub key: Vec<u16>,
    /// Replica identity.
    pub identity: ReplicaIdentity,
    /// Cells a row of this table has in a batch (columns of the wire tuple).
    pub width: u16,
}

impl TableSchema {
    /// The column named `name` and its index.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<(usize, &Column)> {
        self.columns
            .iter()
            .enumerate()
            .find(|(_, column)| &*column.name == name)
    }

    /// The key columns in key order.
    pub fn key_columns(&self) -> impl Iterator<Item = &Column> {
        self.key
            .iter()
            .map(|&index| &self.columns[usize::from(index)])
    }

    /// `a, b, c` for messages that list the columns there are.
    #[must_use]
    pub fn column_list(&self) -> String {
        self.columns
            .iter()
            .map(|column| &*column.name)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// The shape of events that an outbox makes of the rows of `origin`, for one destination (a topic, say): the columns `id`, `key`,
    /// `payload`, and one per header, named as it is. A row has `width` cells. No key: there is nothing to be replaced by a later event.
    #[must_use]
    pub fn event(
        origin: &TableSchema,
        destination: &str,
        columns: Vec<Column>,
        width: u16,
    ) -> Self {
        debug_assert!(columns.len() >= EVENT_COLUMNS, "id, key, payload");
        TableSchema {
            id: TableId::new("", destination),
            columns,
            key: Vec::new(),
            identity: ReplicaIdentity::Nothing,
            width,
            ..origin.clone()
        }
    }

    /// Where an [event](TableSchema::event) goes, whatever a sink makes of names of tables; `None` for all that is no event.
    #[must_use]
    pub fn destination(&self) -> Option<&str> {
        let is_event = self.id.schema.is_empty() && !self.id.name.is_empty();
        is_event.then_some(&*self.id.name)
    }

    /// The shape of a logical message (`pg_logical_emit_message`): table `""."":` columns `prefix` and `content`, no key.
    #[must_use]
    pub fn message(source: Arc<str>) -> Self {
        let column = |name: &str, oid, ty: &str, slot| Column {
            name: name.into(),
            ty: ColumnType {
                oid,
                typmod: -1,
                name: ty.into(),
                kind: TypeKind::Base,
            },
            slot,
            not_null: true,
        };
        TableSchema {
            source,
            id: TableId::new("", ""),
            origin: TableId::new("", ""),
            relation: 0,
            version: 1,
            columns: vec![
                column("prefix", 25, "text", 0),
                column("content", 17, "bytea", 1),
            ],
            key: Vec::new(),
            identity: ReplicaIdentity::Nothing,
            width: 2,
        }
    }
}

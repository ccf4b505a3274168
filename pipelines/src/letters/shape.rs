//! The shape of a letter's table.

use std::sync::Arc;

use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};
use serde::{Deserialize, Serialize};

/// A table's schema as it is kept. Columns that a projection has dropped are not in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    source: Arc<str>,
    /// Schema and name of where records go, then of the table itself.
    id: (Arc<str>, Arc<str>),
    table: (Arc<str>, Arc<str>),
    relation: u32,
    version: u32,
    columns: Vec<ShapeColumn>,
    /// Indices into `columns`.
    key: Vec<u16>,
    identity: Identity,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ShapeColumn {
    name: Arc<str>,
    #[serde(rename = "type")]
    ty: ShapeType,
    not_null: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ShapeType {
    oid: u32,
    typmod: i32,
    name: Arc<str>,
    kind: ShapeKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ShapeKind {
    Base,
    Enum,
    Array(Box<ShapeType>),
    Range,
    Multirange,
    Composite,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Identity {
    Default,
    Nothing,
    Full,
    Index,
}

impl Shape {
    pub(super) fn of(schema: &TableSchema) -> Self {
        let id = |id: &TableId| (Arc::clone(&id.schema), Arc::clone(&id.name));
        Shape {
            source: Arc::clone(&schema.source),
            id: id(&schema.id),
            table: id(&schema.origin),
            relation: schema.relation,
            version: schema.version,
            columns: schema
                .columns
                .iter()
                .map(|column| ShapeColumn {
                    name: Arc::clone(&column.name),
                    ty: ShapeType::of(&column.ty),
                    not_null: column.not_null,
                })
                .collect(),
            key: schema.key.clone(),
            identity: match schema.identity {
                ReplicaIdentity::Default => Identity::Default,
                ReplicaIdentity::Nothing => Identity::Nothing,
                ReplicaIdentity::Full => Identity::Full,
                ReplicaIdentity::Index => Identity::Index,
            },
        }
    }

    fn schema(&self) -> TableSchema {
        let id = |(schema, name): &(Arc<str>, Arc<str>)| TableId::new(schema, name);
        let columns = self.columns.iter().enumerate();
        TableSchema {
            source: Arc::clone(&self.source),
            id: id(&self.id),
            origin: id(&self.table),
            relation: self.relation,
            version: self.version,
            columns: columns
                .map(|(slot, column)| Column {
                    name: Arc::clone(&column.name),
                    ty: column.ty.column_type(),
                    slot: slot as u16,
                    not_null: column.not_null,
                })
                .collect(),
            key: self.key.clone(),
            identity: match self.identity {
                Identity::Default => ReplicaIdentity::Default,
                Identity::Nothing => ReplicaIdentity::Nothing,
                Identity::Full => ReplicaIdentity::Full,
                Identity::Index => ReplicaIdentity::Index,
            },
            width: self.columns.len() as u16,
        }
    }
}

impl ShapeType {
    fn of(ty: &ColumnType) -> Self {
        ShapeType {
            oid: ty.oid,
            typmod: ty.typmod,
            name: Arc::clone(&ty.name),
            kind: match &ty.kind {
                TypeKind::Base => ShapeKind::Base,
                TypeKind::Enum => ShapeKind::Enum,
                TypeKind::Array(element) => ShapeKind::Array(Box::new(ShapeType::of(element))),
                TypeKind::Range => ShapeKind::Range,
                TypeKind::Multirange => ShapeKind::Multirange,
                TypeKind::Composite => ShapeKind::Composite,
            },
        }
    }

    fn column_type(&self) -> ColumnType {
        ColumnType {
            oid: self.oid,
            typmod: self.typmod,
            name: Arc::clone(&self.name),
            kind: match &self.kind {
                ShapeKind::Base => TypeKind::Base,
                ShapeKind::Enum => TypeKind::Enum,
                ShapeKind::Array(element) => TypeKind::Array(Arc::new(element.column_type())),
                ShapeKind::Range => TypeKind::Range,
                ShapeKind::Multirange => TypeKind::Multirange,
                ShapeKind::Composite => TypeKind::Composite,
            },
        }
    }
}

/// Schemas by shape: sinks plan once per `Arc`, so letters of one shape share it.
#[derive(Debug, Default)]
pub(crate) struct Schemas(Vec<(Shape, Arc<TableSchema>)>);

impl Schemas {
    pub(super) fn get(&mut self, shape: &Shape) -> Arc<TableSchema> {
        if let Some((_, schema)) = self.0.iter().find(|(known, _)| known == shape) {
            return Arc::clone(schema);
        }
        let schema = Arc::new(shape.schema());
        self.0.push((shape.clone(), Arc::clone(&schema)));
        schema
    }
}

//! The types of the language, and which of them PostgreSQL's are.

use std::fmt;

use lockstep_core::schema::{ColumnType, TypeKind};

use crate::text::oid;

/// What a part of an expression gives, where that is not NULL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    /// `null` itself.
    Null,
    Bool,
    Int,
    Double,
    /// `numeric`: exact.
    Decimal,
    Text,
    /// An enum: a text whose order is not known here.
    Word,
    /// Dates and timestamps.
    Moment,
    Duration,
    Json,
    List(Box<Type>),
    /// A type of PostgreSQL that the language does not know, by its text.
    Other,
}

impl Type {
    /// What values of a column are.
    pub(crate) fn of(ty: &ColumnType) -> Self {
        match &ty.kind {
            TypeKind::Enum => Type::Word,
            TypeKind::Array(element) => match Type::of(element) {
                element @ (Type::Bool
                | Type::Int
                | Type::Double
                | Type::Decimal
                | Type::Text
                | Type::Word) => Type::List(Box::new(element)),
                _ => Type::Other,
            },
            TypeKind::Range | TypeKind::Multirange | TypeKind::Composite => Type::Other,
            TypeKind::Base => match ty.oid {
                oid::BOOL => Type::Bool,
                oid::INT2 | oid::INT4 | oid::INT8 | oid::OID => Type::Int,
                oid::FLOAT4 | oid::FLOAT8 => Type::Double,
                oid::NUMERIC => Type::Decimal,
                oid::TEXT | oid::VARCHAR | oid::NAME | oid::CHAR | oid::BPCHAR => Type::Text,
                oid::UUID | oid::TIME => Type::Text,
                oid::DATE | oid::TIMESTAMP | oid::TIMESTAMPTZ => Type::Moment,
                oid::JSON | oid::JSONB => Type::Json,
                _ => Type::Other,
            },
        }
    }

    /// The type of a column that is made of such values; `None` where there is none.
    pub(crate) fn column(&self) -> Option<ColumnType> {
        let (oid, name) = match self {
            Type::Bool => (oid::BOOL, "bool"),
            Type::Int => (oid::INT8, "int8"),
            Type::Double => (oid::FLOAT8, "float8"),
            Type::Decimal => (oid::NUMERIC, "numeric"),
            Type::Null | Type::Text | Type::Word => (oid::TEXT, "text"),
            Type::Moment => (oid::TIMESTAMPTZ, "timestamptz"),
            Type::Json => (oid::JSONB, "jsonb"),
            Type::Duration | Type::List(_) | Type::Other => return None,
        };
        Some(ColumnType {
            oid,
            typmod: -1,
            name: name.into(),
            kind: TypeKind::Base,
        })
    }

    /// Whether it is a number.
    pub(super) fn is_number(&self) -> bool {
        matches!(self, Type::Int | Type::Double | Type::Decimal)
    }

    /// Whether it is a text.
    pub(super) fn is_text(&self) -> bool {
        matches!(self, Type::Text | Type::Word)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Type::Null => "null",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Double => "double",
            Type::Decimal => "decimal",
            Type::Text => "string",
            Type::Word => "enum",
            Type::Moment => "timestamp",
            Type::Duration => "duration",
            Type::Json => "json",
            Type::List(element) => return write!(f, "list of {element}"),
            Type::Other => "value that is only known as text",
        })
    }
}

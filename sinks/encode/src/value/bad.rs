//! What can be wrong with a value, before table and column are known.

use lockstep_core::refusal::reason;
use lockstep_core::schema::{Column, TableSchema};
use lockstep_core::{Error, ErrorKind};

/// Why a value has no JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// The bytes are not UTF-8.
    NotUtf8,
    /// The text is not what its type prints; says what it should be.
    Malformed(&'static str),
    /// The value came in binary form.
    Binary,
    /// The encoding has no form for it; says what it is.
    Formless(&'static str),
    /// An update left it as it was, the log does not carry it, and nothing of its type can stand for it.
    Unchanged,
}

impl Bad {
    /// The error for people.
    #[cold]
    pub(crate) fn of(self, schema: &TableSchema, column: &Column) -> Error {
        let place = format!("table {}: column {}", schema.origin, column.name);
        match self {
            Bad::NotUtf8 => Error::new(ErrorKind::Refused, "the value is not UTF-8 text")
                .because(reason::ENCODING)
                .remedy("repair the row in the database, or drop the column with a `project` transform")
                .at(place),
            Bad::Malformed(expected) => Error::new(
                ErrorKind::Refused,
                format!("the value is not {expected}, as type {} prints it", column.ty.name),
            )
            .because(reason::ENCODING)
            .remedy("when a transform replaces this column's values, let it replace a text column, or drop the column with a `project` transform")
            .at(place),
            Bad::Formless(what) => Error::new(
                ErrorKind::Refused,
                format!("{what}, of type {}, has no form in this encoding", column.ty.name),
            )
            .because(reason::ENCODING)
            .remedy("`encoding = \"json\"` has one; or drop the column with a `project` transform")
            .at(place),
            Bad::Unchanged => Error::new(
                ErrorKind::Refused,
                format!(
                    "the change does not carry this value, and nothing of type {} can stand for it in this encoding",
                    column.ty.name
                ),
            )
            .because(reason::ENCODING)
            .remedy(format!(
                "let the log carry it: ALTER TABLE {} REPLICA IDENTITY FULL; or `encoding = \"json\"`",
                schema.origin
            ))
            .at(place),
            Bad::Binary => Error::new(
                ErrorKind::Protocol,
                format!(
                    "a value of type {} came in binary form, and binary tuples were not asked for",
                    column.ty.name
                ),
            )
            .remedy("report this: the connector must ask for text tuples")
            .at(place),
        }
    }
}

/// A writer's result.
pub(crate) type Done = Result<(), Bad>;

//! The errors that several formats share.

use lockstep_core::refusal::reason;
use lockstep_core::schema::{Column, TableSchema};
use lockstep_core::{Error, ErrorKind};

#[cold]
pub(crate) fn no_key(schema: &TableSchema) -> Error {
    Error::new(ErrorKind::Setup, "the table has no primary key, and this sink keeps rows by their key")
        .remedy(format!(
            "add one (ALTER TABLE {} ADD PRIMARY KEY (…)), or leave the table out of this sink's inputs",
            schema.origin
        ))
        .at(format!("table {}", schema.origin))
}

#[cold]
pub(crate) fn absent(schema: &TableSchema, column: &Column) -> Error {
    Error::new(
        ErrorKind::Refused,
        "the row does not carry the value of this key column",
    )
    .because(reason::KEY)
    .remedy(format!(
        "let the log carry the key: ALTER TABLE {} REPLICA IDENTITY DEFAULT (or FULL)",
        schema.origin
    ))
    .at(format!("table {}: column {}", schema.origin, column.name))
}

#[cold]
pub(crate) fn no_image(schema: &TableSchema) -> Error {
    Error::new(ErrorKind::Protocol, "a change came without the row it is about")
        .remedy("report this: the connector must give every insert and update a new row, every delete an old one")
        .at(format!("table {}", schema.origin))
}

//! Examples in a pipeline file: rows that are sent through its transforms, and what must come of them. `lockstep test` runs them, without
//! any server; everybody else ignores them.

pub(crate) mod came;
pub(crate) mod table;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

pub use self::came::Line;
use crate::file::Section;
pub use crate::run::trial::{Seen, Tested, test};

/// What is expected under this name is what transforms put aside.
pub const DEAD_LETTERS: &str = "dead_letters";

/// An example: changes, and what must come of them.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Test {
    /// What it shows.
    pub name: String,
    /// The tables that its changes are of. Default: those of the test before.
    #[serde(default)]
    pub tables: Vec<Table>,
    /// The changes, in order, each a transaction of its own.
    pub input: Vec<Example>,
    /// What must come to a sink or out of a transform, by its name; `[]` where nothing must. Nodes that are not named are not looked at.
    /// `dead_letters`: what transforms put aside, nothing by default.
    pub expect: BTreeMap<String, Vec<Example>>,
}

/// A table of an example.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// `schema.table`, or `source.schema.table` where there are several sources.
    pub table: String,
    /// Its columns, each a name and PostgreSQL's type: `total numeric(10,2)`, `tags text[]`, `state enum`.
    pub columns: Vec<String>,
    /// The columns of its key.
    #[serde(default)]
    pub key: Vec<String>,
    /// Its replica identity.
    #[serde(default)]
    pub identity: Identity,
}

/// What UPDATE and DELETE say of the old row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Identity {
    /// Its key.
    #[default]
    Default,
    /// All of it.
    Full,
}

/// A change that goes in, or must come out.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// `schema.table`, or `source.schema.table` where there are several sources. Default: the table, where the test has one only.
    #[serde(default)]
    pub table: Option<String>,
    /// What happens to the row. Default `insert`.
    #[serde(default)]
    pub op: Operation,
    /// The new row: columns and values. Columns that are left out are NULL.
    #[serde(default)]
    pub row: Option<Section>,
    /// The old row, or its key. Of what comes out the columns that are named are compared.
    #[serde(default)]
    pub old: Option<Section>,
    /// Columns whose values an UPDATE has left alone and the log does not carry.
    #[serde(default)]
    pub unchanged: Vec<String>,
}

/// What happens to a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// A row of the initial copy.
    Read,
    /// INSERT.
    #[default]
    Insert,
    /// UPDATE.
    Update,
    /// DELETE.
    Delete,
    /// TRUNCATE.
    Truncate,
    /// An event of an `outbox`, which comes out only.
    Event,
}

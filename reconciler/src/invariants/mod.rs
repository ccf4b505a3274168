//! Invariants between databases: what must hold whatever is being written, looked at again and again, and told as violated only
//! when it is proven.
//!
//! A *look* takes a snapshot of each database and goes over both results in the order of the join key ([`merge`]). The snapshots
//! are of nearly one moment and not of one: a transaction that writes into both databases may be seen in one of them only. So what
//! does not hold is a suspect, and looked at again. [`book`] says when a suspect is proven, and why that is a proof.

mod book;
mod evaluate;
mod merge;
mod number;
mod report;
mod rule;

use std::sync::Arc;
use std::time::Duration;

pub use book::{Book, Kept};
pub use evaluate::{Ends, evaluate, shape};
pub use report::{Broken, Columns, InvariantReport, Standing, Waiting};
pub use rule::{Rule, Shape};

/// The values of the columns of the join key, in order.
pub type Key = Vec<String>;

/// What must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invariant {
    /// Its name.
    pub name: Arc<str>,
    /// How the sides relate.
    pub rule: Rule,
    /// The columns that rows of both sides are joined by.
    pub key: Vec<String>,
    /// What is asked of each database.
    pub sides: Vec<Side>,
    /// The side whose rows are looked at, of a rule that has a direction.
    pub for_each: usize,
    /// The columns that the rule is about; all but the key when it does not say.
    pub compare: Option<Vec<String>>,
    /// For how long it may not hold.
    pub within: Duration,
    /// How long a query may take.
    pub timeout: Duration,
}

/// What is asked of one database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// Name of the source in the pipeline file.
    pub source: Arc<str>,
    /// In SQL.
    pub query: String,
}

#[cfg(test)]
mod tests;

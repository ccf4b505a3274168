//! Descriptions of tables that came inside a transaction that was prepared, and that nothing outside it has gone by yet.
//!
//! The server describes a table once to everybody, also where what brings the description may wait long for its coordinator's
//! word, or be rolled back. Until a row of another transaction needs it, nothing is asked about it: in a transaction that changes the
//! table itself it is of a shape that the catalog does not show before it commits.

use std::collections::HashMap;

use crate::catalog::Described;

/// The last of each relation, with the number of the payload that it came in.
#[derive(Default)]
pub struct Noted(HashMap<u32, (u64, Described)>);

impl Noted {
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn put(&mut self, number: u64, described: Described) {
        self.0.insert(described.relation, (number, described));
    }

    /// What rows of a relation go by from here on.
    pub fn get(&self, relation: u32) -> Option<(u64, &Described)> {
        let (number, described) = self.0.get(&relation)?;
        Some((*number, described))
    }

    /// The one with this number has been gone by, or a later one has come.
    pub fn forget(&mut self, relation: u32, number: u64) {
        if self
            .0
            .get(&relation)
            .is_some_and(|(noted, _)| *noted <= number)
        {
            self.0.remove(&relation);
        }
    }
}

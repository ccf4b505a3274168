//! One plan per schema version.

use std::collections::HashMap;
use std::sync::Arc;

use lockstep_core::schema::TableSchema;

/// Above this many entries, plans of schema versions that nobody else holds are dropped before one is added.
const TIDY_ABOVE: usize = 256;

/// Keeps what was built for each schema version, found again by the address of the `Arc` (which is held, so that the
/// address cannot come to mean another schema).
#[derive(Debug)]
pub struct Plans<T> {
    entries: Vec<(Arc<TableSchema>, T)>,
    by_address: HashMap<usize, usize>,
    last: usize,
    tidy_above: usize,
}

impl<T> Default for Plans<T> {
    fn default() -> Self {
        Plans {
            entries: Vec::new(),
            by_address: HashMap::new(),
            last: 0,
            tidy_above: TIDY_ABOVE,
        }
    }
}

impl<T> Plans<T> {
    /// No plans yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The plan of `schema`, made by `make` when it is asked for the first time.
    ///
    /// # Errors
    /// What `make` returns.
    pub fn get_or_try<E>(
        &mut self,
        schema: &Arc<TableSchema>,
        make: impl FnOnce(&Arc<TableSchema>) -> Result<T, E>,
    ) -> Result<&mut T, E> {
        let known = self
            .entries
            .get(self.last)
            .is_some_and(|(held, _)| Arc::ptr_eq(held, schema));
        if !known {
            let address = Arc::as_ptr(schema).addr();
            self.last = match self.by_address.get(&address) {
                Some(&index) => index,
                None => {
                    let plan = make(schema)?;
                    self.tidy();
                    self.entries.push((Arc::clone(schema), plan));
                    self.by_address.insert(address, self.entries.len() - 1);
                    self.entries.len() - 1
                }
            };
        }
        Ok(&mut self.entries[self.last].1)
    }

    /// The plan of `schema`, if it was made.
    #[must_use]
    pub fn known(&self, schema: &Arc<TableSchema>) -> Option<&T> {
        let index = self.by_address.get(&Arc::as_ptr(schema).addr())?;
        self.entries.get(*index).map(|(_, plan)| plan)
    }

    /// The plan of `schema`, made by `make` when it is asked for the first time.
    pub fn get(
        &mut self,
        schema: &Arc<TableSchema>,
        make: impl FnOnce(&Arc<TableSchema>) -> T,
    ) -> &mut T {
        let made = self.get_or_try(schema, |schema| {
            Ok::<T, std::convert::Infallible>(make(schema))
        });
        match made {
            Ok(plan) => plan,
            Err(never) => match never {},
        }
    }

    fn tidy(&mut self) {
        if self.entries.len() < self.tidy_above {
            return;
        }
        self.entries.retain(|(held, _)| Arc::strong_count(held) > 1);
        self.tidy_above = TIDY_ABOVE.max(self.entries.len() * 2);
        self.by_address = self
            .entries
            .iter()
            .enumerate()
            .map(|(index, (held, _))| (Arc::as_ptr(held).addr(), index))
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{base, table};

    #[test]
    fn a_plan_is_made_once_and_forgotten_when_nobody_holds_its_schema() {
        let schema = || table("t", &[("id", base(23, "int4"))], 1);
        let kept = schema();
        let mut plans = Plans::new();
        assert_eq!(*plans.get(&kept, |_| 7), 7);
        for _ in 0..10 * TIDY_ABOVE {
            // Equal, but another version.
            assert_eq!(*plans.get(&schema(), |_| 1), 1);
            assert_eq!(*plans.get(&kept, |_| unreachable!("made before")), 7);
        }
        assert!(plans.entries.len() <= TIDY_ABOVE + 1);
        let failed = plans.get_or_try(&schema(), |_| Err("no"));
        assert_eq!(failed, Err("no"));
    }
}

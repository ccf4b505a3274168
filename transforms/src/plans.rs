//! What a transform has worked out for each version of each table.

use std::collections::HashMap;
use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::batch::Batch;
use lockstep_core::schema::TableSchema;

/// Versions kept. A route that decides per row makes a schema per destination, so there may be many; what is
/// forgotten is worked out again.
const MAX_VERSIONS: usize = 4096;

/// Plans by schema version. The `Arc` is held beside its plan, which keeps the address a valid key.
pub(crate) struct Plans<P> {
    by_address: HashMap<usize, (Arc<TableSchema>, P)>,
}

impl<P> Plans<P> {
    pub(crate) fn new() -> Self {
        Plans {
            by_address: HashMap::new(),
        }
    }

    /// The plan of `schema`, made when there is none.
    pub(crate) fn bind(
        &mut self,
        schema: &Arc<TableSchema>,
        make: impl FnOnce(&Arc<TableSchema>) -> Result<P>,
    ) -> Result<&P> {
        let address = address(schema);
        if !self.by_address.contains_key(&address) {
            if self.by_address.len() >= MAX_VERSIONS {
                self.by_address.clear();
            }
            let plan = make(schema)?;
            self.by_address.insert(address, (Arc::clone(schema), plan));
        }
        Ok(&self.by_address[&address].1)
    }

    /// The plan of `schema`, when there is one.
    pub(crate) fn get(&self, schema: &Arc<TableSchema>) -> Option<&P> {
        self.by_address.get(&address(schema)).map(|(_, plan)| plan)
    }
}

impl<P: Clone> Plans<P> {
    /// The plans of a batch's schemas, in their order. Schemas that a route upstream made for single rows have not been
    /// bound before; they are bound here.
    pub(crate) fn of(
        &mut self,
        batch: &Batch,
        mut make: impl FnMut(&Arc<TableSchema>) -> Result<P>,
    ) -> Result<Vec<P>> {
        batch
            .schemas()
            .iter()
            .map(|schema| self.bind(schema, &mut make).cloned())
            .collect()
    }
}

fn address(schema: &Arc<TableSchema>) -> usize {
    Arc::as_ptr(schema) as usize
}

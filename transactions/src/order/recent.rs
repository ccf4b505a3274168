//! The last names of many.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// How many are remembered.
const REMEMBERED: usize = 10_000;

/// Names, with the sources where something of that name has ended.
#[derive(Debug, Default)]
pub(super) struct Recent {
    names: HashMap<Arc<str>, Vec<usize>>,
    order: VecDeque<Arc<str>>,
}

impl Recent {
    pub fn put(&mut self, name: &Arc<str>, source: usize) {
        if let Some(sources) = self.names.get_mut(name) {
            if !sources.contains(&source) {
                sources.push(source);
            }
            return;
        }
        self.names.insert(Arc::clone(name), vec![source]);
        self.order.push_back(Arc::clone(name));
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
    }

    /// Where something of that name has ended.
    pub fn places(&self, name: &Arc<str>) -> &[usize] {
        self.names.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether something of that name has ended, and not in this source: where it has, a name is used again.
    pub fn was_elsewhere(&self, name: &Arc<str>, source: usize) -> bool {
        let sources = self.names.get(name);
        sources.is_some_and(|sources| !sources.contains(&source))
    }
}

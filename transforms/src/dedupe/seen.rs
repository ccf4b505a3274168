//! Whether any table that reaches the transform has the key.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, ErrorKind, Result};

use crate::tables::{is_no_table, nearest};

/// The tables met before all were bound.
#[derive(Default)]
pub(crate) struct Seen {
    checked: bool,
    with_key: bool,
    /// Columns by table.
    without_key: BTreeMap<String, Vec<Arc<str>>>,
}

/// Tables listed in a message.
const LISTED: usize = 20;

impl Seen {
    pub(crate) fn note(&mut self, schema: &TableSchema, with_key: bool) {
        if self.checked || is_no_table(schema) {
            return;
        }
        self.with_key |= with_key;
        if !with_key && self.without_key.len() < LISTED {
            let columns = schema.columns.iter().map(|column| Arc::clone(&column.name));
            self.without_key.insert(
                format!("{}.{}", schema.source, schema.id),
                columns.collect(),
            );
        }
    }

    /// When every table of every source has been bound: a key that none of them has is a mistake.
    pub(crate) fn check(&mut self, key: &[String]) -> Result<()> {
        if self.checked {
            return Ok(());
        }
        if !self.with_key && !self.without_key.is_empty() {
            return Err(self.missing(key));
        }
        self.checked = true;
        Ok(())
    }

    fn missing(&self, key: &[String]) -> Error {
        let tables: Vec<String> = self
            .without_key
            .iter()
            .map(|(table, columns)| format!("{table} ({})", columns.join(", ")))
            .collect();
        let error = Error::new(
            ErrorKind::Config,
            format!(
                "`key`: no table that reaches the transform has the columns {}; there are {}",
                key.join(", "),
                tables.join("; ")
            ),
        );
        let columns = || self.without_key.values().flatten().map(|name| &**name);
        let absent = |name: &&String| columns().all(|column| column != name.as_str());
        let nearest = key
            .iter()
            .find(absent)
            .and_then(|name| nearest(name, columns()));
        match nearest {
            Some(nearest) => error.remedy(format!("write `{nearest}`, if that is meant")),
            None => error.remedy("name the columns of the idempotency key, or take other `inputs`"),
        }
    }
}

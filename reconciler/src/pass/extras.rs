//! Rows that a sink holds and should not: what it lists is looked up in the source.

use std::sync::Arc;

use lockstep_core::source::CheckRows;
use lockstep_core::{Error, Result};

use super::{AT_ONCE, Key, Pass, Purpose, suspects_of};
use crate::Ends;
use crate::report::{Difference, Drift};

impl Pass {
    /// Looks for rows that a sink holds and should not.
    pub(super) async fn extras(&self, ends: &dyn Ends, name: &Arc<str>) -> Result<()> {
        let listings = ends.list(name).await;
        let mut listed = false;
        for mut listing in self.given(name, listings).unwrap_or_default() {
            let mut unknown: Vec<Key> = Vec::new();
            while let Some(page) = self.given(name, listing.next().await).flatten() {
                self.foreign(name, page.foreign);
                unknown.extend({
                    let seen = &mut self.lock().seen;
                    let keys = page.keys.into_iter();
                    keys.filter(|key| !seen.has(key)).collect::<Vec<Key>>()
                });
                while unknown.len() >= AT_ONCE {
                    let rest = unknown.split_off(AT_ONCE);
                    self.unless_there(ends, name, unknown).await?;
                    unknown = rest;
                }
            }
            self.unless_there(ends, name, unknown).await?;
            listed = true;
        }
        self.of(name, |sink| sink.listed = listed && sink.problem.is_none());
        Ok(())
    }

    /// What a sink has given; what it says instead is told.
    fn given<T>(&self, sink: &str, given: Result<T>) -> Option<T> {
        let failed = |error: Error| self.of(sink, |sink| sink.problem = Some(error.to_string()));
        given.map_err(failed).ok()
    }

    /// Tells keys that no row can have.
    fn foreign(&self, name: &Arc<str>, keys: Vec<String>) {
        for held_as in keys {
            if !self.is_new(&(name, &held_as)) {
                continue;
            }
            let actual = String::new();
            let drift = Drift {
                key: Vec::new(),
                held_as,
                fence: None,
                difference: Difference::Extra { actual },
                repaired: false,
            };
            self.of(name, |sink| sink.take(drift));
        }
    }

    /// Looks in the source for rows with keys that a sink holds; tells those that have none.
    async fn unless_there(&self, ends: &dyn Ends, name: &Arc<str>, keys: Vec<Key>) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let only = std::slice::from_ref(name);
        let compared = self.ask(ends, CheckRows::Absent(keys), only).await?;
        let suspects = suspects_of(&compared);
        let unsteady = compared.checked.unsteady;
        self.verify(ends, suspects, unsteady, Purpose::Extras, only)
            .await
    }
}

//! Dead letters: changes that a sink refuses for good, or that a transform puts aside.
//!
//! A letter is on disk (or acknowledged by the queue that takes letters) before the sink is given what follows it, and
//! before its position is confirmed. [`letter`] is what is kept, [`store`] where, [`queue`] the other place it may go.

mod letter;
mod queue;
mod shape;
mod store;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lockstep_core::batch::{Batch, Change, Row};
use lockstep_core::transform::DeadLetters;
use lockstep_core::{Error, ErrorKind, Result};
use prometheus::IntCounterVec;
use serde::{Deserialize, Serialize};

pub(crate) use letter::keys;
pub use letter::{Body, Head, Letter};
pub(crate) use queue::Queue;
pub(crate) use shape::Schemas;
pub use store::Limits;
pub(crate) use store::Store;

/// Which letters. Everything that is given must hold; nothing given means all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Selection {
    /// These numbers.
    pub ids: Vec<u64>,
    /// Of this sink.
    pub sink: Option<String>,
    /// Of this table, `schema.table` or the bare name.
    pub table: Option<String>,
    /// For this reason.
    pub reason: Option<String>,
}

impl Selection {
    /// Whether a letter is meant.
    #[must_use]
    pub fn takes(&self, head: &Head) -> bool {
        let sink = |name: &String| head.place.strip_prefix("sinks.") == Some(name);
        let table = |name: &String| {
            head.table == *name || head.table.rsplit('.').next() == Some(name.as_str())
        };
        (self.ids.is_empty() || self.ids.contains(&head.id))
            && self.sink.as_ref().is_none_or(sink)
            && self.table.as_ref().is_none_or(table)
            && self.reason.as_ref().is_none_or(|name| head.reason == *name)
    }
}

/// Where dead letters go; shared by lanes, transforms and the keeper.
pub(crate) struct Desk {
    to: To,
    /// Letters that came from transforms, and notes on letters; how many of them are safe.
    came: AtomicU64,
    safe: AtomicU64,
    kept: IntCounterVec,
}

enum To {
    Store(Store),
    Queue(Queue),
}

impl Desk {
    /// A desk over the embedded store. `kept` counts by place and reason.
    pub(crate) fn embedded(store: Store, kept: IntCounterVec) -> Self {
        Desk {
            to: To::Store(store),
            came: AtomicU64::new(0),
            safe: AtomicU64::new(0),
            kept,
        }
    }

    /// A desk that hands letters to a queue.
    pub(crate) fn queue(queue: Queue, kept: IntCounterVec) -> Self {
        Desk {
            to: To::Queue(queue),
            came: AtomicU64::new(0),
            safe: AtomicU64::new(0),
            kept,
        }
    }

    /// The embedded store, when that is where letters go.
    pub(crate) fn store(&self) -> Option<&Store> {
        match &self.to {
            To::Store(store) => Some(store),
            To::Queue(_) => None,
        }
    }

    /// The embedded store, for one who needs it.
    ///
    /// # Errors
    /// Kind `Invalid` when letters go elsewhere.
    pub(crate) fn need_store(&self) -> Result<&Store> {
        self.store().ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                "dead letters of this pipeline go to a queue, and are not kept here",
            )
            .remedy("read them there; only the embedded store can list, show and replay")
        })
    }

    /// Keeps letters, and returns when they are safe.
    ///
    /// # Errors
    /// Kind `Storage` when the store is full, `Full` when the disk is; what the queue says.
    pub(crate) async fn put(self: &Arc<Self>, letters: Vec<Letter>) -> Result<()> {
        let counts: Vec<_> = letters.iter().map(label).collect();
        let new = match &self.to {
            To::Queue(queue) => {
                queue.put(letters).await?;
                vec![true; counts.len()]
            }
            To::Store(_) => {
                self.blocking(move |store| {
                    let kept = store.keep(&letters)?;
                    store.persist()?;
                    Ok(kept.into_iter().map(|kept| kept.new).collect())
                })
                .await?
            }
        };
        self.count(counts.iter().zip(new));
        Ok(())
    }

    /// Work with the embedded store that may wait for the disk.
    ///
    /// # Errors
    /// What `work` says; as [`Desk::need_store`].
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let desk = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(desk.need_store()?));
        done.await.unwrap_or_else(|error| {
            let message = "work on dead letters has ended unexpectedly";
            Err(Error::new(ErrorKind::Protocol, message).source(error))
        })
    }

    fn count<'a>(&self, letters: impl Iterator<Item = (&'a (String, String), bool)>) {
        for ((place, reason), _) in letters.filter(|(_, new)| *new) {
            self.kept.with_label_values(&[place, reason]).inc();
        }
    }

    /// Waits until there is room for letters. Cancel-safe. The embedded store has limits of its own, and says when it is full.
    pub(crate) async fn room(&self) {
        if let To::Queue(queue) = &self.to {
            queue.room().await;
        }
    }

    /// Why letters wait, when they do.
    pub(crate) fn problem(&self) -> Option<String> {
        match &self.to {
            To::Store(_) => None,
            To::Queue(queue) => queue.problem(),
        }
    }

    /// Something was noted on letters, which is to be safe before anything more is confirmed.
    pub(crate) fn noted(&self) {
        self.came.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether letters came that are not safe yet.
    pub(crate) fn is_dirty(&self) -> bool {
        self.came.load(Ordering::Acquire) > self.safe.load(Ordering::Acquire)
    }

    /// Makes what came from transforms, and what was noted, safe against power loss. Waits: for a blocking thread.
    ///
    /// # Errors
    /// As for [`Desk::put`].
    pub(crate) fn persist(&self) -> Result<()> {
        let came = self.came.load(Ordering::Acquire);
        if came <= self.safe.load(Ordering::Acquire) {
            return Ok(());
        }
        match &self.to {
            To::Store(store) => store.persist()?,
            To::Queue(queue) => queue.blocking_persist()?,
        }
        self.safe.fetch_max(came, Ordering::AcqRel);
        Ok(())
    }

    /// Letters kept now, by place; none when they go to a queue.
    pub(crate) fn counts(&self) -> HashMap<String, u64> {
        let counts = self.store().map(Store::counts);
        // A store that cannot be read stops whoever needs it; a metric is no place to say so.
        counts.and_then(Result::ok).unwrap_or_default()
    }
}

impl DeadLetters for Desk {
    fn keep(
        &self,
        place: &str,
        reason: &str,
        batch: &Batch,
        change: &Change,
        _row: Option<Row<'_>>,
    ) -> Result<()> {
        let message = format!("put aside by {place}");
        let letter = Letter::of(place, reason, message, batch, change);
        let counts = [label(&letter)];
        let new = match &self.to {
            To::Store(store) => store.keep(&[letter])?.iter().all(|kept| kept.new),
            To::Queue(queue) => {
                queue.send(letter)?;
                true
            }
        };
        self.came.fetch_add(1, Ordering::AcqRel);
        self.count(counts.iter().zip([new]));
        Ok(())
    }
}

fn label(letter: &Letter) -> (String, String) {
    (letter.head.place.clone(), letter.head.reason.clone())
}

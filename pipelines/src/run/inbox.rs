//! What waits for a lane. Bounded by the memory budget that batches carry, not by a count.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use lockstep_core::batch::{Batch, Phase};
use lockstep_core::position::Lsn;
use tokio::sync::{Notify, mpsc};
use tracing::Span;

use super::checks::Check;
use super::lane_state::Announced;
use super::{lock, now_micros};

/// A batch on its way to a sink, or only word of how far its source has come.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Index of the source.
    pub source: usize,
    /// `None`: nothing of it is for this sink.
    pub batch: Option<Arc<Batch>>,
    /// Once this entry and all before it are durable, the source may confirm this.
    pub through: Option<Lsn>,
    /// Once this entry and all before it are durable, the source may count this mark.
    pub mark: Option<u64>,
    /// Once this entry and all before it are durable, whatever was prepared in the source before this has ended and is there.
    pub settled: Option<Lsn>,
    /// When its oldest change was committed (or came, for the initial copy), microseconds since the Unix epoch.
    pub since: i64,
    /// The source reads another log or other tables from here on.
    pub renewal: Option<Renewal>,
    /// Rows to compare with what the sink holds once everything before is durable.
    pub check: Option<Check>,
    /// The next entry belongs to it: the two are written together.
    pub joined: bool,
    /// The way of its batch, where traces are exported: over when the last one who holds it lets go.
    pub way: Span,
}

/// A source reads another log, or other tables of the same one: what came before has to be durable first.
#[derive(Clone, Debug)]
pub(super) struct Renewal {
    /// The source as it is from now on.
    pub announced: Announced,
    /// Nothing of what came before counts any more: it is another log.
    pub forget: bool,
    /// Dropped once the lane has done its part.
    pub done: mpsc::Sender<()>,
}

impl Entry {
    pub fn new(source: usize, batch: Option<Arc<Batch>>, through: Option<Lsn>) -> Self {
        let since =
            batch
                .as_ref()
                .map_or(0, |batch| match (batch.phase, batch.changes().first()) {
                    (Phase::Stream, Some(change)) => batch.transaction(change).commit_micros,
                    _ => now_micros(),
                });
        Entry {
            source,
            batch,
            through,
            mark: None,
            settled: None,
            since,
            renewal: None,
            check: None,
            joined: false,
            way: Span::none(),
        }
    }

    /// As a part of what goes this way, if it has a batch: where there is none, nothing is waited for.
    pub fn within(mut self, way: &Span) -> Self {
        if self.batch.is_some() {
            self.way = way.clone();
        }
        self
    }

    pub fn marker(source: usize, mark: u64) -> Self {
        Entry {
            mark: Some(mark),
            ..Entry::new(source, None, None)
        }
    }

    pub fn check(source: usize, check: Check) -> Self {
        Entry {
            check: Some(check),
            ..Entry::new(source, None, None)
        }
    }

    pub fn renewal(source: usize, renewal: Renewal) -> Self {
        Entry {
            renewal: Some(renewal),
            ..Entry::new(source, None, None)
        }
    }
}

/// Lets an entry that only carries progress ride on the last entry of its source, if there is one: between the two lies
/// nothing for this sink. So an idle source fills no queue. What comes behind a renewal is progress in what begins there.
pub(super) fn ride<'a>(entry: &Entry, mut queue: impl Iterator<Item = &'a mut Entry>) -> bool {
    if entry.batch.is_some() || entry.renewal.is_some() || entry.check.is_some() {
        return false;
    }
    match queue.find(|queued| queued.source == entry.source) {
        Some(queued) if queued.renewal.is_none() => {
            queued.through = queued.through.max(entry.through);
            queued.mark = queued.mark.max(entry.mark);
            queued.settled = queued.settled.max(entry.settled);
            true
        }
        _ => false,
    }
}

/// A queue from all pumps to one lane.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    queue: Mutex<Queue>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<Entry>,
    closed: bool,
}

impl Inbox {
    /// Adds an entry. Never waits: what bounds the queue is the permit that a source takes before it reads.
    pub fn push(&self, entry: Entry) {
        {
            let mut queue = lock(&self.queue);
            if !ride(&entry, queue.entries.iter_mut().rev()) {
                queue.entries.push_back(entry);
            }
        }
        self.changed.notify_one();
    }

    /// Adds entries with batches that are to be written together: nothing comes in between.
    pub fn push_together(&self, mut entries: Vec<Entry>) {
        let last = entries.len().saturating_sub(1);
        for entry in &mut entries[..last] {
            entry.joined = true;
        }
        lock(&self.queue).entries.extend(entries);
        self.changed.notify_one();
    }

    /// The next entry, if there is one.
    pub fn try_pop(&self) -> Option<Entry> {
        lock(&self.queue).entries.pop_front()
    }

    /// The next entry; `None` once the inbox is closed and empty. For one reader. Cancel-safe.
    pub async fn pop(&self) -> Option<Entry> {
        loop {
            let changed = self.changed.notified();
            {
                let mut queue = lock(&self.queue);
                if let Some(entry) = queue.entries.pop_front() {
                    return Some(entry);
                }
                if queue.closed {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// Nothing will be added any more.
    pub fn close(&self) {
        lock(&self.queue).closed = true;
        self.changed.notify_one();
    }

    /// How many batches wait, and since when the oldest.
    pub fn waiting(&self) -> (usize, Option<i64>) {
        let queue = lock(&self.queue);
        let batches = || queue.entries.iter().filter(|entry| entry.batch.is_some());
        (batches().count(), batches().next().map(|entry| entry.since))
    }
}

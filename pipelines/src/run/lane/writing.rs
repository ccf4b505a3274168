//! Takes entries in, writes them, and takes note of what has become durable.

use std::pin::pin;
use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::batch::{Batch, Phase};
use lockstep_core::durable::{Delivered, Durable};
use lockstep_core::position::Position;
use lockstep_core::sink::Sink;
use tokio::time::Instant;

use super::super::batches::{self, Rest};
use super::super::inbox::{Entry, ride};
use super::{End, Lane, Pending, front};

impl Lane {
    /// Takes an entry from the inbox. One without changes counts as durable once everything before it is.
    pub(super) fn accept(&mut self, mut entry: Entry) {
        if let Some(renewal) = entry.renewal.take() {
            self.renewals.push((entry.source, renewal));
            return;
        }
        if entry.check.is_some() {
            self.checks.push_back(entry);
            return;
        }
        let queued = self
            .pending
            .iter_mut()
            .rev()
            .map(|pending| &mut pending.entry);
        if ride(&entry, queued) {
            return;
        }
        match entry.batch.clone() {
            Some(batch) => {
                let mut view = self.parts.state.view();
                if self.pending.is_empty() {
                    view.moved = Instant::now();
                    view.oldest = Some(entry.since);
                }
                self.pending.push_back(Pending::new(entry, batch));
                view.in_flight = self.pending.len();
            }
            None => self.advance(&entry),
        }
    }

    /// Whether a batch is to be written now: one that goes alone waits for all before it, and all after wait for it.
    pub(super) fn may_write(&self) -> bool {
        let Some(next) = self.pending.get(self.written) else {
            return false;
        };
        let last = self.written.checked_sub(1);
        let alone = next.alone || last.is_some_and(|last| self.pending[last].alone);
        self.written == 0 || !alone
    }

    /// Writes the oldest batch that has not been written, settling receipts meanwhile.
    pub(super) async fn write(&mut self, sink: &mut dyn Sink) -> Result<Option<End>> {
        let Some(pending) = self.pending.get(self.written) else {
            return Ok(None);
        };
        let (source, batch) = (pending.entry.source, Arc::clone(&pending.batch));
        let mut rest = Some(batch);
        if pending.letter.is_none() {
            self.parts.aside.arrived(&pending.batch)?;
            rest = rest.and_then(|batch| self.rest(source, batch));
            if let Some(batch) = rest {
                rest = self.parts.aside.sift(batch).await?;
            }
        }
        let given = rest.as_deref().and_then(batches::last_position);
        let durable = match rest {
            // The sink has proved that it holds all of it, or all of it lies aside.
            None => Durable::now(Delivered::default()),
            Some(batch) => {
                let mut write = pin!(sink.write(batch));
                loop {
                    tokio::select! {
                        biased;
                        delivered = front(&mut self.pending) => self.settle(delivered?),
                        () = self.parts.abort.cancelled() => return Ok(Some(End::Aborted)),
                        taken = &mut write => break taken?,
                    }
                }
            }
        };
        // Settling takes from the front and counts `written` down with it, so this is still the same batch.
        if let Some(pending) = self.pending.get_mut(self.written) {
            pending.durable = Some(durable);
            pending.given = given;
            self.written += 1;
        }
        Ok(None)
    }

    /// What the sink that is open now does not hold of a batch.
    pub(super) fn rest(&mut self, source: usize, batch: Arc<Batch>) -> Option<Arc<Batch>> {
        let Some(&held) = self.resume.get(&source) else {
            return Some(batch);
        };
        // Copied rows have no positions. They are there when something of the stream that was written behind them is; once
        // more they would come behind it, and are older.
        if batch.phase == Phase::Snapshot && self.holds_what_follows(source, held) {
            return None;
        }
        if batches::last_position(&batch).is_some_and(|last| last > held) {
            // Positions only grow: nothing later needs to be compared.
            self.resume.remove(&source);
        }
        match batches::after(&batch, held) {
            Rest::Whole => Some(batch),
            Rest::Part(rest) => Some(Arc::from(rest)),
            Rest::Nothing => None,
        }
    }

    /// Whether the sink holds something of the stream that stands behind the batch which is to be written next.
    pub(super) fn holds_what_follows(&self, source: usize, held: Position) -> bool {
        let behind = self.pending.iter().skip(self.written + 1);
        let mut stream = behind.filter(|pending| {
            pending.entry.source == source && pending.batch.phase == Phase::Stream
        });
        let first = stream.find_map(|pending| {
            let batch = &pending.batch;
            Some(batch.position(batch.changes().first()?))
        });
        first.is_some_and(|first| first <= held)
    }

    /// The oldest batch is durable.
    pub(super) fn settle(&mut self, delivered: Delivered) {
        let Some(pending) = self.pending.pop_front() else {
            return;
        };
        self.written -= 1;
        self.backoff.reset();
        let Pending {
            entry,
            batch,
            letter,
            given,
            ..
        } = pending;
        if let (Some(tag), Some(course)) = (letter, &mut self.course) {
            course.settled(tag.id, delivered);
        }
        self.durable
            .extend(given.map(|given| (entry.source, given)));
        self.parts.metrics.delivered(&delivered, &batch);
        {
            let mut view = self.parts.state.view();
            view.written += delivered.written;
            view.stale += delivered.stale;
            view.incomplete += delivered.incomplete;
            view.in_flight = self.pending.len();
            view.oldest = self.pending.front().map(|pending| pending.entry.since);
            view.moved = Instant::now();
        }
        self.advance(&entry);
    }

    /// Everything up to an entry is durable.
    pub(super) fn advance(&mut self, entry: &Entry) {
        if entry.through.is_none() && entry.mark.is_none() {
            return;
        }
        {
            let mut view = self.parts.state.view();
            if let Some(through) = entry.through {
                let reached = view.through.entry(entry.source).or_default();
                *reached = (*reached).max(through);
            }
            if let Some(mark) = entry.mark {
                let reached = view.marks.entry(entry.source).or_default();
                *reached = (*reached).max(mark);
            }
        }
        self.parts.keeper.notify_one();
    }
}

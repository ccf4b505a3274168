//! Takes entries in, writes them, and takes note of what has become durable.

use std::pin::pin;
use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::batch::{Batch, Phase};
use lockstep_core::durable::{Delivered, Durable};
use lockstep_core::progress::Progress;
use lockstep_core::sink::Sink;
use tokio::time::Instant;

use super::super::batches;
use super::super::inbox::{Entry, ride};
use super::super::traces;
use super::{End, Lane, Pending, front};

impl Lane {
    /// Takes an entry from the inbox, and those that belong to it: they are in the inbox already.
    pub(super) fn accept_all(&mut self, mut entry: Entry) {
        while entry.joined {
            self.accept(entry);
            match self.parts.state.inbox.try_pop() {
                Some(next) => entry = next,
                None => return,
            }
        }
        self.accept(entry);
    }

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

    /// Writes the oldest batch that has not been written, with those that belong to it, settling receipts meanwhile.
    pub(super) async fn write(&mut self, sink: &mut dyn Sink) -> Result<Option<End>> {
        let count = self.written_next();
        let mut rests = Vec::with_capacity(count);
        for at in self.written..self.written + count {
            let rest = self.rest_at(at).await?;
            if let Some(rest) = &rest {
                self.begins(at, rest);
            }
            rests.push(rest);
        }
        let batches: Vec<Arc<Batch>> = rests.iter().flatten().cloned().collect();
        let Some(durable) = self.hand_over(sink, batches).await? else {
            return Ok(Some(End::Aborted));
        };
        let mut durable = durable.into_iter();
        // Settling takes from the front and counts `written` down with it, so these are still the same batches.
        for rest in rests {
            let Some(pending) = self.pending.get_mut(self.written) else {
                break;
            };
            pending.durable = Some(match rest {
                // The sink has proved that it holds all of it, or all of it lies aside.
                None => Durable::now(Delivered::default()),
                // One without an answer counts as not written.
                Some(_) => durable.next().unwrap_or_else(|| Durable::later().0),
            });
            pending.given = rest.as_deref().and_then(batches::progress);
            self.written += 1;
        }
        Ok(None)
    }

    /// What the sink does not hold of a batch that waits is about to be given to it.
    fn begins(&mut self, at: usize, rest: &Batch) {
        let (pipeline, sink) = (&self.parts.pipeline, &self.parts.state.name);
        let pending = &mut self.pending[at];
        pending.attempts += 1;
        let way = &pending.entry.way;
        let write = traces::write(way, pipeline, sink, rest, pending.attempts);
        pending.write = Some(write);
    }

    /// How many batches are written next: one, or as many as belong together.
    fn written_next(&self) -> usize {
        let rest = self.pending.iter().skip(self.written);
        let joined = rest.take_while(|pending| pending.entry.joined).count();
        (joined + 1).min(self.pending.len() - self.written)
    }

    /// What the sink is to get of a batch that waits.
    async fn rest_at(&mut self, at: usize) -> Result<Option<Arc<Batch>>> {
        let pending = &self.pending[at];
        let (source, batch) = (pending.entry.source, Arc::clone(&pending.batch));
        if pending.letter.is_some() {
            return Ok(Some(batch));
        }
        self.parts.aside.arrived(&batch)?;
        let mut rest = self.rest(source, at, batch);
        if !self.parts.aside.keeps_rows() {
            rest = rest.and_then(|rest| self.early.rest(source, rest));
        }
        match rest {
            Some(rest) => self.parts.aside.sift(rest).await,
            None => Ok(None),
        }
    }

    /// Gives batches to the sink; `None` when time is up.
    async fn hand_over(
        &mut self,
        sink: &mut dyn Sink,
        mut batches: Vec<Arc<Batch>>,
    ) -> Result<Option<Vec<Durable>>> {
        let only = match batches.len() {
            0 => return Ok(Some(Vec::new())),
            1 => batches.pop(),
            _ => None,
        };
        self.parts.permit.check()?;
        let mut write = pin!(async {
            match only {
                Some(batch) => Ok(vec![sink.write(batch).await?]),
                None => sink.write_together(batches).await,
            }
        });
        loop {
            tokio::select! {
                biased;
                delivered = front(&mut self.pending) => self.settle(delivered?),
                () = self.parts.abort.cancelled() => return Ok(None),
                taken = &mut write => return taken.map(Some),
            }
        }
    }

    /// What the sink that is open now does not hold of a batch, which waits at this place.
    fn rest(&mut self, source: usize, at: usize, batch: Arc<Batch>) -> Option<Arc<Batch>> {
        let Some(held) = self.resume.get(&source) else {
            return Some(batch);
        };
        // Copied rows have no positions. They are there when something of the stream that was written behind them is; once
        // more they would come behind it, and are older.
        if batch.phase == Phase::Snapshot && self.holds_what_follows(source, at, held) {
            return None;
        }
        if batch.phase != Phase::Stream {
            return Some(batch);
        }
        if batches::is_early(&batch) {
            // Whether it is there is told elsewhere; with it the sink writes down what it holds.
            let standing = batch.standing.as_deref().cloned().unwrap_or_default();
            return Some(Arc::new(batch.with_standing(standing.beside(held))));
        }
        if batches::is_past(&batch, held) {
            // Nothing later needs to be compared.
            self.resume.remove(&source);
            return Some(batch);
        }
        batches::beyond(&batch, held)
    }

    /// Whether the sink holds something of the stream that stands behind the batch at a place.
    fn holds_what_follows(&self, source: usize, at: usize, held: &Progress) -> bool {
        let behind = self.pending.iter().skip(at + 1);
        let mut stream = behind.filter(|pending| {
            pending.entry.source == source && pending.batch.phase == Phase::Stream
        });
        let first = stream.find_map(|pending| {
            let batch = &pending.batch;
            Some(batch.is_held(batch.changes().first()?, held))
        });
        first.unwrap_or_default()
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
            write,
            ..
        } = pending;
        if let Some(write) = write {
            traces::written(write, &delivered);
        }
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
        if let Some(settled) = entry.settled {
            self.early.settled(entry.source, settled);
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

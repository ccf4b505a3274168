//! A lane: writes to one sink, in order, and knows how far everything is durable there.
//!
//! What is not durable is kept. After any error the sink is dropped and opened again, says how far it can prove it
//! holds each source, and gets the rest again from the oldest batch on. So the sink and the lane together lose nothing,
//! and a sink that keeps its position with its data gets nothing twice.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use lockstep_core::batch::Batch;
use lockstep_core::durable::{Delivered, Durable};
use lockstep_core::error::{At, Policy};
use lockstep_core::position::Position;
use lockstep_core::sink::{Sink, SinkContext};
use lockstep_core::{Error, Result};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::batches::{self, Rest};
use super::inbox::{Entry, Renewal, ride};
use super::lane_state::LaneState;
use crate::metrics::SinkMetrics;
use crate::registry::SinkComponent;
use crate::status::SinkPhase;

/// Batches that may be written and not durable. The memory budget is the real bound; this one keeps a sink that never
/// answers from being handed ever more tiny batches.
const MAX_IN_FLIGHT: usize = 1024;

/// What a lane is made from.
pub(super) struct Parts {
    pub state: Arc<LaneState>,
    pub component: Arc<dyn SinkComponent>,
    pub pipeline: Arc<str>,
    pub directory: PathBuf,
    pub metrics: SinkMetrics,
    /// Woken when something became durable.
    pub keeper: Arc<Notify>,
    /// The pipeline stops: no new attempts once something fails.
    pub draining: CancellationToken,
    /// Time is up: what is not durable now is left for the next start.
    pub abort: CancellationToken,
}

/// See the module's page.
pub(super) struct Lane {
    parts: Parts,
    /// Not durable yet, oldest first. The first `written` of them have been written to the sink that is open now.
    pending: VecDeque<Pending>,
    written: usize,
    /// By source index: the sink that is open now holds everything up to here. Gone once the stream is past it.
    resume: BTreeMap<usize, Position>,
    /// By source index: the last position that was durable.
    durable: BTreeMap<usize, Position>,
    /// Sources that read another log from here on. Nothing more is taken before that is done.
    renewals: Vec<(usize, Renewal)>,
    backoff: Backoff,
    /// The last problem that was logged.
    logged: Option<String>,
}

struct Pending {
    entry: Entry,
    batch: Arc<Batch>,
    durable: Option<Durable>,
}

/// How serving a sink ended, when it did not fail.
enum End {
    /// All that came is durable, and nothing more comes.
    Drained,
    /// Time is up.
    Aborted,
    /// All that came is durable, and a source reads another log from here on.
    Renewed,
}

impl Lane {
    pub fn new(parts: Parts) -> Self {
        Lane {
            parts,
            pending: VecDeque::new(),
            written: 0,
            resume: BTreeMap::new(),
            durable: BTreeMap::new(),
            renewals: Vec::new(),
            backoff: Backoff::default(),
            logged: None,
        }
    }

    /// Runs until the inbox is closed and everything is durable, or time is up.
    ///
    /// # Errors
    /// One whose policy is to stop.
    pub async fn run(mut self) -> Result<()> {
        let name = Arc::clone(&self.parts.state.name);
        let ended = self.attempts().await.at(format!("sinks.{name}"));
        let mut view = self.parts.state.view();
        view.phase = SinkPhase::Stopped;
        if let Err(error) = &ended {
            view.problem = Some(error.to_string());
        }
        drop(view);
        let left = self.pending.len() + self.parts.state.inbox.waiting().0;
        if left > 0 {
            tracing::warn!(sink = %name, batches = left, "stopped before all was durable; it is sent again at the next start");
        }
        ended
    }

    async fn attempts(&mut self) -> Result<()> {
        let draining = self.parts.draining.clone();
        let abort = self.parts.abort.clone();
        loop {
            let opened = tokio::select! {
                biased;
                () = abort.cancelled() => return Ok(()),
                opened = self.open() => opened,
            };
            let was_open = matches!(opened, Ok(Some(_)));
            let failed = match opened {
                Ok(Some(sink)) => match self.serve(sink).await {
                    Ok(End::Drained | End::Aborted) => return Ok(()),
                    Ok(End::Renewed) => {
                        self.renew();
                        continue;
                    }
                    Err(error) => error,
                },
                // No source has come up, and none will any more.
                Ok(None) => return Ok(()),
                Err(error) => error,
            };
            self.written = 0;
            self.pending
                .iter_mut()
                .for_each(|pending| pending.durable = None);
            self.failed(&failed);
            if failed.kind().policy() == Policy::Stop {
                return Err(failed);
            }
            // A sink that was down before the pipeline began to stop is not waited for; one that fails meanwhile gets
            // another chance.
            if draining.is_cancelled() && !was_open {
                return Ok(());
            }
            let pause = self.backoff.next();
            tokio::select! {
                biased;
                () = abort.cancelled() => return Ok(()),
                () = draining.cancelled(), if !draining.is_cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Opens the sink and asks how far it is. `None` when the pipeline stops before every source has been open.
    async fn open(&mut self) -> Result<Option<Box<dyn Sink>>> {
        let state = &self.parts.state;
        let announced = tokio::select! {
            biased;
            announced = state.announced() => announced,
            () = self.parts.draining.cancelled() => return Ok(None),
        };
        let context = SinkContext {
            pipeline: Arc::clone(&self.parts.pipeline),
            name: Arc::clone(&state.name),
            state: self.parts.directory.clone(),
            sources: announced
                .values()
                .map(|source| Arc::clone(&source.info))
                .collect(),
            tables: announced
                .values()
                .flat_map(|source| source.tables.iter().cloned())
                .collect(),
            trouble: state.trouble.clone(),
        };
        state.trouble.clear();
        let mut sink = self.parts.component.open(context).await?;
        self.resume.clear();
        for (index, source) in announced {
            let held = sink.resume(&source.info).await?;
            let confirmed = self.durable.get(&index).copied();
            if let (Some(held), Some(confirmed)) = (held, confirmed)
                && held < confirmed
            {
                tracing::warn!(
                    sink = %state.name, source = %source.info.name, %held, %confirmed,
                    "the sink can prove less than it has confirmed; if it lost data, load the tables again"
                );
            }
            self.resume.extend(held.map(|held| (index, held)));
        }
        let mut view = state.view();
        view.phase = SinkPhase::Running;
        view.problem = None;
        view.moved = Instant::now();
        drop(view);
        self.backoff.opened();
        if self.logged.take().is_some() {
            tracing::info!(sink = %state.name, attempts = self.backoff.failures(), "open again");
        } else {
            tracing::info!(sink = %state.name, "open");
        }
        Ok(Some(sink))
    }

    /// Writes to an open sink until it fails or all is done.
    async fn serve(&mut self, mut sink: Box<dyn Sink>) -> Result<End> {
        let abort = self.parts.abort.clone();
        loop {
            if self.written < self.pending.len() {
                if let Some(end) = self.write(sink.as_mut()).await? {
                    return Ok(end);
                }
                continue;
            }
            if self.pending.is_empty() && !self.renewals.is_empty() {
                return Ok(match self.finish(sink).await? {
                    End::Aborted => End::Aborted,
                    _ => End::Renewed,
                });
            }
            let has_room = self.pending.len() < MAX_IN_FLIGHT && self.renewals.is_empty();
            tokio::select! {
                biased;
                // 1. Receipts first: they give memory back and move the confirmed position.
                delivered = front(&mut self.pending) => self.settle(delivered?),
                // 2. Time is up.
                () = abort.cancelled() => return Ok(End::Aborted),
                // 3. More work, when there is room for it.
                entry = self.parts.state.inbox.pop(), if has_room => match entry {
                    Some(entry) => self.accept(entry),
                    None => return self.finish(sink).await,
                },
            }
        }
    }

    /// Nothing of the old log counts any more: the sink is opened anew and asked what it holds of the new one.
    fn renew(&mut self) {
        for (source, renewal) in self.renewals.drain(..) {
            self.resume.remove(&source);
            self.durable.remove(&source);
            self.parts.state.view().through.remove(&source);
            self.parts.state.announce(source, renewal.announced);
            drop(renewal.done);
        }
    }

    /// Takes an entry from the inbox. One without changes counts as durable once everything before it is.
    fn accept(&mut self, mut entry: Entry) {
        if let Some(renewal) = entry.renewal.take() {
            self.renewals.push((entry.source, renewal));
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
                self.pending.push_back(Pending {
                    entry,
                    batch,
                    durable: None,
                });
                view.in_flight = self.pending.len();
            }
            None => self.advance(&entry),
        }
    }

    /// Writes the oldest batch that has not been written, settling receipts meanwhile.
    async fn write(&mut self, sink: &mut dyn Sink) -> Result<Option<End>> {
        let Some(pending) = self.pending.get(self.written) else {
            return Ok(None);
        };
        let (source, batch) = (pending.entry.source, Arc::clone(&pending.batch));
        let durable = match self.rest(source, batch) {
            // The sink has proved that it holds all of it.
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
            self.written += 1;
        }
        Ok(None)
    }

    /// What the sink that is open now does not hold of a batch.
    fn rest(&mut self, source: usize, batch: Arc<Batch>) -> Option<Arc<Batch>> {
        let Some(&held) = self.resume.get(&source) else {
            return Some(batch);
        };
        if batches::last_position(&batch).is_some_and(|last| last > held) {
            // Positions only grow: nothing later needs to be compared.
            self.resume.remove(&source);
        }
        match batches::after(&batch, held) {
            Rest::Whole => Some(batch),
            Rest::Part(rest) => Some(Arc::new(rest)),
            Rest::Nothing => None,
        }
    }

    /// The oldest batch is durable.
    fn settle(&mut self, delivered: Delivered) {
        let Some(pending) = self.pending.pop_front() else {
            return;
        };
        self.written -= 1;
        self.backoff.reset();
        let Pending { entry, batch, .. } = pending;
        if let Some(position) = batches::last_position(&batch) {
            self.durable.insert(entry.source, position);
        }
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
    fn advance(&mut self, entry: &Entry) {
        let Some(through) = entry.through else {
            return;
        };
        {
            let mut view = self.parts.state.view();
            let reached = view.through.entry(entry.source).or_default();
            *reached = (*reached).max(through);
        }
        self.parts.keeper.notify_one();
    }

    /// Nothing more comes: hurries the sink, waits for the last receipts, and closes it.
    async fn finish(&mut self, mut sink: Box<dyn Sink>) -> Result<End> {
        let abort = self.parts.abort.clone();
        {
            let mut flush = pin!(sink.flush());
            loop {
                tokio::select! {
                    biased;
                    delivered = front(&mut self.pending) => self.settle(delivered?),
                    () = abort.cancelled() => return Ok(End::Aborted),
                    flushed = &mut flush => break flushed?,
                }
            }
        }
        while !self.pending.is_empty() {
            tokio::select! {
                biased;
                delivered = front(&mut self.pending) => self.settle(delivered?),
                () = abort.cancelled() => return Ok(End::Aborted),
            }
        }
        tokio::select! {
            biased;
            closed = sink.close() => if let Err(error) = closed {
                // Every receipt has been answered: nothing is lost with it.
                tracing::warn!(sink = %self.parts.state.name, %error, "did not close in order");
            },
            () = abort.cancelled() => {}
        }
        Ok(End::Drained)
    }

    /// Counts a failure and logs it, unless it is the one that was logged last.
    fn failed(&mut self, error: &Error) {
        self.parts.metrics.failed(error.kind().code());
        let text = error.to_string();
        let mut view = self.parts.state.view();
        view.phase = SinkPhase::Retrying;
        view.errors += 1;
        view.in_flight = self.pending.len();
        view.problem = Some(text.clone());
        drop(view);
        let sink = &self.parts.state.name;
        if self.logged.as_ref() == Some(&text) {
            tracing::debug!(%sink, %error, attempt = self.backoff.failures(), "failed again");
        } else {
            tracing::warn!(%sink, %error, "failed; it is opened again and gets what is not durable once more");
            self.logged = Some(text);
        }
    }
}

/// The answer for the oldest batch; pends while there is none. Cancel-safe. Looking at the oldest is enough: a receipt
/// covers its batch and all before it.
async fn front(pending: &mut VecDeque<Pending>) -> Result<Delivered> {
    match pending
        .front_mut()
        .and_then(|pending| pending.durable.as_mut())
    {
        Some(durable) => durable.await,
        None => std::future::pending().await,
    }
}

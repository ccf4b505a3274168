//! A lane: writes to one sink, in order, and knows how far everything is durable there.
//!
//! What is not durable is kept. After any error the sink is dropped and opened again, says how far it can prove it
//! holds each source, and gets the rest again from the oldest batch on. So the sink and the lane together lose nothing,
//! and a sink that keeps its position with its data gets nothing twice.
//!
//! Changes that the sink refuses for good are put aside first, and the sink that is opened next gets the rest. Letters that
//! are replayed go the same way as batches: as entries of the queue, while the inbox waits.

mod comparing;
mod early;
mod opening;
mod refusals;
mod writing;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use lockstep_core::batch::Batch;
use lockstep_core::durable::{Delivered, Durable};
use lockstep_core::error::{At, Policy};
use lockstep_core::position::SourceIdentity;
use lockstep_core::progress::Progress;
use lockstep_core::refusal::reason;
use lockstep_core::sink::Sink;
use lockstep_core::trace::Traced;
use lockstep_core::{Error, Result};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::aside::Aside;
use super::backoff::Backoff;
use super::checks::CheckDesk;
use super::course::{Course, Request, Tag};
use super::inbox::{Entry, Renewal};
use super::lane_state::LaneState;
use super::permit::Permit;
use crate::metrics::SinkMetrics;
use crate::registry::SinkComponent;
use crate::status::SinkPhase;
use early::EarlyBranches;

/// Batches that may be written and not durable. The memory budget is the real bound; this one keeps a sink that never
/// answers from being handed ever more tiny batches.
const MAX_IN_FLIGHT: usize = 1024;

/// What a lane is made from.
pub(super) struct Parts {
    pub state: Arc<LaneState>,
    pub component: Arc<dyn SinkComponent>,
    /// Asked before the sink is opened, and before each write.
    pub permit: Permit,
    pub pipeline: Arc<str>,
    pub directory: PathBuf,
    pub metrics: SinkMetrics,
    pub aside: Aside,
    /// Woken when something became durable.
    pub keeper: Arc<Notify>,
    /// Where comparisons are asked for.
    pub checks: Arc<CheckDesk>,
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
    /// By source index: what the sink that is open now holds. Gone once the stream is past it.
    resume: BTreeMap<usize, Progress>,
    /// By source index: what the sink told when it was opened last.
    proved: BTreeMap<usize, Progress>,
    /// By source index: what the sink has confirmed.
    durable: BTreeMap<usize, Progress>,
    /// What a sink that keeps every change got before it committed.
    early: EarlyBranches,
    /// By name of the source: whose log it reads.
    logs: BTreeMap<Arc<str>, SourceIdentity>,
    /// Comparisons that are asked for, in their place. Nothing more is taken before they are done.
    checks: VecDeque<Entry>,
    /// Sources that read another log or other tables from here on. Nothing more is taken before that is done.
    renewals: Vec<(usize, Renewal)>,
    backoff: Backoff,
    /// The last problem that was logged.
    logged: Option<String>,
    /// Replays that are asked for.
    requests: mpsc::Receiver<Request>,
    /// The replay under way. What is pending then is its letters, once all else is durable.
    course: Option<Course>,
    /// It is opened anew because rows were put aside.
    after_aside: bool,
}

struct Pending {
    entry: Entry,
    batch: Arc<Batch>,
    durable: Option<Durable>,
    /// What the sink holds of its source once it is durable; `None`: nothing of it was given to the sink.
    given: Option<Progress>,
    /// Written with nothing else on its way, so that an error can only be about it.
    alone: bool,
    /// The letter that it is.
    letter: Option<Tag>,
    /// How often it has been given to a sink.
    attempts: u32,
    /// Being written, where traces are exported.
    write: Option<Traced>,
}

impl Pending {
    fn new(entry: Entry, batch: Arc<Batch>) -> Self {
        Pending {
            entry,
            batch,
            durable: None,
            given: None,
            alone: false,
            letter: None,
            attempts: 0,
            write: None,
        }
    }

    fn letter(tag: Tag, batch: Arc<Batch>, alone: bool) -> Self {
        let entry = Entry::new(NO_SOURCE, Some(Arc::clone(&batch)), None);
        Pending {
            alone,
            letter: Some(tag),
            ..Pending::new(entry, batch)
        }
    }
}

/// The source index of letters: they belong to no source's progress.
const NO_SOURCE: usize = usize::MAX;

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
            requests: parts.state.requests(),
            course: None,
            after_aside: false,
            parts,
            pending: VecDeque::new(),
            written: 0,
            resume: BTreeMap::new(),
            proved: BTreeMap::new(),
            durable: BTreeMap::new(),
            early: EarlyBranches::default(),
            logs: BTreeMap::new(),
            checks: VecDeque::new(),
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
            for pending in &mut self.pending {
                pending.durable = None;
                if let Some(write) = pending.write.take() {
                    write.failed(&failed);
                }
            }
            let failed = match self.put_aside(&failed).await {
                Ok(true) => {
                    self.after_aside = true;
                    continue;
                }
                Ok(false) => failed,
                // Refused rows that cannot be kept now are refused again, and kept then.
                Err(error) => error,
            };
            self.failed(&failed);
            if failed.kind().policy() == Policy::Stop {
                // One that only a letter has met ends its replay, not the line.
                if self.give_up_replay(&failed) {
                    continue;
                }
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

    /// Writes to an open sink until it fails or all is done.
    async fn serve(&mut self, mut sink: Box<dyn Sink>) -> Result<End> {
        let abort = self.parts.abort.clone();
        loop {
            if self.may_write() {
                if let Some(end) = self.write(sink.as_mut()).await? {
                    return Ok(end);
                }
                continue;
            }
            if self.course.is_some() && self.pending.is_empty() {
                self.next_letters().await?;
                continue;
            }
            if self.pending.is_empty() && !self.renewals.is_empty() {
                return Ok(match self.finish(sink).await? {
                    End::Aborted => End::Aborted,
                    _ => End::Renewed,
                });
            }
            let all_written = self.written == self.pending.len();
            if !self.checks.is_empty() && self.course.is_none() && all_written {
                if !self.pending.is_empty() && !self.settle_all(sink.as_mut()).await? {
                    return Ok(End::Aborted);
                }
                self.check().await;
                continue;
            }
            let is_free = self.renewals.is_empty() && self.checks.is_empty();
            let idle = self.course.is_none() && is_free;
            let has_room = idle && self.pending.len() < MAX_IN_FLIGHT;
            tokio::select! {
                biased;
                // 1. Receipts first: they give memory back and move the confirmed position.
                delivered = front(&mut self.pending) => self.settle(delivered?),
                // 2. Time is up.
                () = abort.cancelled() => return Ok(End::Aborted),
                // 3. A replay, which begins when all that has come is durable.
                Some(request) = self.requests.recv(), if idle => {
                    self.course = Some(Course::new(request));
                }
                // 4. More work, when there is room for it.
                entry = self.parts.state.inbox.pop(), if has_room => match entry {
                    Some(entry) => self.accept_all(entry),
                    None => return self.finish(sink).await,
                },
            }
        }
    }

    /// The sink is opened anew, with the tables there are now. Where the log is another one, nothing of the old one counts
    /// any more, and the sink is asked what it holds of the new one.
    fn renew(&mut self) {
        for (source, renewal) in self.renewals.drain(..) {
            if renewal.forget {
                self.resume.remove(&source);
                self.durable.remove(&source);
                self.proved.remove(&source);
                self.early.forget(source);
                self.parts.state.view().through.remove(&source);
            }
            self.parts.state.announce(source, renewal.announced);
            drop(renewal.done);
        }
    }

    /// Nothing more comes: hurries the sink, waits for the last receipts, and closes it.
    async fn finish(&mut self, mut sink: Box<dyn Sink>) -> Result<End> {
        let abort = self.parts.abort.clone();
        if !self.settle_all(sink.as_mut()).await? {
            return Ok(End::Aborted);
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

    fn place(&self) -> String {
        self.parts.aside.place().to_owned()
    }

    /// Counts a failure and logs it, unless it is the one that was logged last.
    fn failed(&mut self, error: &Error) {
        self.parts.metrics.failed(error.kind().code());
        if error.reason() == Some(reason::FENCED) {
            self.parts.metrics.fenced();
        }
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

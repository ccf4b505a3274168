//! A lane: writes to one sink, in order, and knows how far everything is durable there.
//!
//! What is not durable is kept. After any error the sink is dropped and opened again, says how far it can prove it
//! holds each source, and gets the rest again from the oldest batch on. So the sink and the lane together lose nothing,
//! and a sink that keeps its position with its data gets nothing twice.
//!
//! Changes that the sink refuses for good are put aside first, and the sink that is opened next gets the rest. Letters that
//! are replayed go the same way as batches: as entries of the queue, while the inbox waits.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use lockstep_core::batch::{Batch, Change, Phase};
use lockstep_core::durable::{Delivered, Durable};
use lockstep_core::error::{At, Policy};
use lockstep_core::position::{Position, SourceIdentity};
use lockstep_core::refusal::Refusal;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_reconciler::Outcome;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::aside::Aside;
use super::backoff::Backoff;
use super::batches::{self, Rest};
use super::checks::{self, Check, CheckDesk};
use super::course::{Course, Request, Tag};
use super::inbox::{Entry, Renewal, ride};
use super::lane_state::LaneState;
use crate::letters::Letter;
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
    /// By source index: the sink that is open now holds everything up to here. Gone once the stream is past it.
    resume: BTreeMap<usize, Position>,
    /// By source index: what the sink told when it was opened last.
    proved: BTreeMap<usize, Position>,
    /// By source index: the last position that the sink has confirmed.
    durable: BTreeMap<usize, Position>,
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
    /// The last position of it that the sink has been given.
    given: Option<Position>,
    /// Written with nothing else on its way, so that an error can only be about it.
    alone: bool,
    /// The letter that it is.
    letter: Option<Tag>,
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
            self.pending
                .iter_mut()
                .for_each(|pending| pending.durable = None);
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
        let mut sink = self.parts.component.open(context.clone()).await?;
        state.opened(context);
        self.resume.clear();
        for (index, source) in announced {
            let info = &source.info;
            self.logs
                .insert(Arc::clone(&info.name), info.identity.clone());
            let held = sink.resume(&source.info).await?;
            if let Some(before) = self.set_back(index, held) {
                let held = held.map_or_else(|| "nothing".to_owned(), |held| held.to_string());
                tracing::warn!(
                    sink = %state.name, source = %source.info.name, held, %before,
                    "the sink can prove less than it could before: it has lost what it had confirmed; load the tables again"
                );
                self.parts.metrics.set_back();
            }
            self.proved.remove(&index);
            self.proved.extend(held.map(|held| (index, held)));
            self.resume.extend(held.map(|held| (index, held)));
        }
        let mut view = state.view();
        view.phase = SinkPhase::Running;
        view.problem = None;
        view.moved = Instant::now();
        drop(view);
        self.backoff.opened();
        if std::mem::take(&mut self.after_aside) {
            tracing::debug!(sink = %state.name, "open again without the rows that were put aside");
        } else if self.logged.take().is_some() {
            tracing::info!(sink = %state.name, attempts = self.backoff.failures(), "open again");
        } else {
            tracing::info!(sink = %state.name, "open");
        }
        Ok(Some(sink))
    }

    /// What the sink has been known to hold of a source, when it tells less now. One that never tells holds what it holds.
    fn set_back(&self, source: usize, held: Option<Position>) -> Option<Position> {
        let proved = self.proved.get(&source).copied();
        let confirmed = self.durable.get(&source).copied();
        let confirmed = confirmed.filter(|_| self.parts.component.resumes_exactly());
        let before = match held {
            None => proved?.max(confirmed.unwrap_or_default()),
            Some(_) => proved.max(confirmed)?,
        };
        (held < Some(before)).then_some(before)
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
                    Some(entry) => self.accept(entry),
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
                self.parts.state.view().through.remove(&source);
            }
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
    fn may_write(&self) -> bool {
        let Some(next) = self.pending.get(self.written) else {
            return false;
        };
        let last = self.written.checked_sub(1);
        let alone = next.alone || last.is_some_and(|last| self.pending[last].alone);
        self.written == 0 || !alone
    }

    /// Writes the oldest batch that has not been written, settling receipts meanwhile.
    async fn write(&mut self, sink: &mut dyn Sink) -> Result<Option<End>> {
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
    fn rest(&mut self, source: usize, batch: Arc<Batch>) -> Option<Arc<Batch>> {
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
    fn holds_what_follows(&self, source: usize, held: Position) -> bool {
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
    fn settle(&mut self, delivered: Delivered) {
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
    fn advance(&mut self, entry: &Entry) {
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

    /// Compares what is asked for: all before it is durable, and nothing behind it has been written. What the sink says
    /// to it is no reason to open it anew.
    async fn check(&mut self) {
        let Some(mut entry) = self.checks.pop_front() else {
            return;
        };
        let Some(check) = entry.check.take() else {
            return;
        };
        let abort = self.parts.abort.clone();
        let outcome = tokio::select! {
            biased;
            // Whoever asked hears it from the desk's end.
            () = abort.cancelled() => return,
            outcome = self.compared(&check) => outcome,
        };
        let outcome = outcome.unwrap_or_else(|error| {
            self.parts.state.inspectors.forget();
            Outcome::Failed(error)
        });
        let desk = &self.parts.checks;
        desk.answer(check.number, &self.parts.state.name, outcome);
        self.parts.state.view().moved = Instant::now();
        self.advance(&entry);
    }

    async fn compared(&mut self, check: &Check) -> Result<Outcome> {
        if let Some(error) = &check.failed {
            return Err(error.clone());
        }
        let Some(batch) = &check.batch else {
            return Ok(Outcome::Compared {
                rows: 0,
                different: Vec::new(),
            });
        };
        let Parts {
            state,
            component,
            aside,
            ..
        } = &self.parts;
        let Some(context) = state.context() else {
            return Ok(Outcome::Unreadable);
        };
        let tables = context.tables.clone();
        let opened = state.inspectors.get(component.as_ref(), context).await?;
        let Some(inspector) = opened else {
            return Ok(Outcome::Unreadable);
        };
        let is_alone = |table: &TableSchema| checks::is_alone(&tables, table);
        let mut inspector = inspector.lock().await;
        checks::compare(inspector.as_mut(), batch, aside, is_alone).await
    }

    /// Hurries the sink, and waits until all is durable that has been written to it. False when time is up.
    async fn settle_all(&mut self, sink: &mut dyn Sink) -> Result<bool> {
        let abort = self.parts.abort.clone();
        {
            let mut flush = pin!(sink.flush());
            loop {
                tokio::select! {
                    biased;
                    delivered = front(&mut self.pending) => self.settle(delivered?),
                    () = abort.cancelled() => return Ok(false),
                    flushed = &mut flush => break flushed?,
                }
            }
        }
        while !self.pending.is_empty() {
            tokio::select! {
                biased;
                delivered = front(&mut self.pending) => self.settle(delivered?),
                () = abort.cancelled() => return Ok(false),
            }
        }
        Ok(true)
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

    /// The letters that come next, or the end of the replay.
    async fn next_letters(&mut self) -> Result<()> {
        let Some(mut course) = self.course.take() else {
            return Ok(());
        };
        let (desk, place) = (Arc::clone(self.parts.aside.desk()), self.place());
        let (waits, keeps_rows) = (self.parts.aside.waits(), self.parts.aside.keeps_rows());
        let stopping = self.parts.draining.is_cancelled();
        let (mut course, letters) = desk
            .blocking(move |store| {
                let letters = match stopping {
                    true => course.clear(store).map(|()| Vec::new()),
                    false => course.next(store, &place, waits),
                };
                Ok((course, letters))
            })
            .await?;
        let letters = match letters {
            Ok(letters) => letters,
            // The line does not need what the replay could not read.
            Err(error) => {
                course.answer(Some(&error));
                return Ok(());
            }
        };
        if letters.is_empty() {
            let stopped = Error::new(ErrorKind::Stopping, "the pipeline stops");
            course.answer(stopping.then_some(&stopped));
            return Ok(());
        }
        for letter in letters {
            if keeps_rows && (letter.head.overtaken.is_some() || self.is_of_a_former_log(&letter)) {
                course.stale(letter.head.id);
                continue;
            }
            let tag = Tag::of(&letter.head);
            match letter.batch(&mut course.schemas) {
                Ok(batch) => {
                    let pending = Pending::letter(tag, Arc::new(batch), waits);
                    self.pending.push_back(pending);
                }
                Err(error) => course.unreadable(&tag, &error),
            }
        }
        self.course = Some(course);
        let mut view = self.parts.state.view();
        view.in_flight = self.pending.len();
        view.moved = Instant::now();
        Ok(())
    }

    /// The source reads another log by now, and with it came every row there was: a letter of the former one is older.
    fn is_of_a_former_log(&self, letter: &Letter) -> bool {
        let now = self.logs.get(letter.head.source.as_str());
        now.is_some_and(|now| *now != letter.head.identity)
    }

    fn place(&self) -> String {
        self.parts.aside.place().to_owned()
    }

    /// Puts aside what the sink refuses for good, so that the next one gets the rest. False when the error is none of that
    /// kind, or the sink is to stop on it.
    ///
    /// # Errors
    /// When it can be kept nowhere.
    async fn put_aside(&mut self, error: &Error) -> Result<bool> {
        if self.pending.iter().any(|pending| pending.letter.is_some()) {
            return self.refused_again(error).await;
        }
        if !self.parts.aside.takes(error) {
            return Ok(false);
        }
        if error.is_suspicion() && self.isolate(error.refusals()) {
            return Ok(true);
        }
        let refusals = by_position(error.refusals());
        let (mut letters, mut rests) = (Vec::new(), Vec::new());
        for (index, pending) in self.pending.iter().enumerate() {
            let batch = &pending.batch;
            let mut rest: Vec<Change> = Vec::with_capacity(batch.changes().len());
            for change in batch.changes() {
                match refusal_of(&refusals, batch, change) {
                    Some(refusal) => {
                        letters.push(self.parts.aside.letter(batch, change, refusal));
                    }
                    None => rest.push(*change),
                }
            }
            if rest.len() < batch.changes().len() {
                rests.push((index, Arc::new(batch.with_changes(rest))));
            }
        }
        if letters.is_empty() {
            return Ok(false);
        }
        let rows = letters.len();
        self.parts.aside.keep(letters).await?;
        for (index, rest) in rests {
            self.pending[index].batch = rest;
        }
        self.parts.metrics.failed(error.kind().code());
        self.parts.state.view().errors += 1;
        tracing::warn!(
            sink = %self.parts.state.name, rows, %error,
            "refused for good: put aside among the dead letters, the rest goes on"
        );
        Ok(true)
    }

    /// The sink cannot tell which of these it refuses: each goes by itself from now on. False when all do already.
    fn isolate(&mut self, suspects: &[Refusal]) -> bool {
        let suspects = by_position(suspects);
        let mut isolated = false;
        let pending = std::mem::take(&mut self.pending);
        for pending in pending {
            let batch = &pending.batch;
            let is_suspect = |change: &Change| refusal_of(&suspects, batch, change).is_some();
            if pending.alone || !batch.changes().iter().any(is_suspect) {
                self.pending.push_back(pending);
                continue;
            }
            isolated = true;
            if pending.letter.is_some() {
                self.pending.push_back(Pending {
                    alone: true,
                    ..pending
                });
                continue;
            }
            let runs = batches::runs(batch, is_suspect);
            let last = runs.len() - 1;
            for (index, (alone, run)) in runs.into_iter().enumerate() {
                let mut entry = pending.entry.clone();
                entry.through = entry.through.filter(|_| index == last);
                entry.mark = entry.mark.filter(|_| index == last);
                let part = Arc::new(batch.with_changes(run));
                self.pending.push_back(Pending {
                    alone,
                    ..Pending::new(entry, part)
                });
            }
        }
        self.parts.state.view().in_flight = self.pending.len();
        isolated
    }

    /// Letters that are refused once more stay where they are.
    async fn refused_again(&mut self, error: &Error) -> Result<bool> {
        if error.kind() != ErrorKind::Refused || error.refusals().is_empty() {
            return Ok(false);
        }
        if error.is_suspicion() && self.isolate(error.refusals()) {
            return Ok(true);
        }
        let refusals = by_position(error.refusals());
        let Some(course) = &mut self.course else {
            return Ok(false);
        };
        let mut tried: Vec<(u64, Refusal)> = Vec::new();
        self.pending.retain(|pending| {
            let batch = &pending.batch;
            let mut changes = batch.changes().iter();
            let refusal = changes.find_map(|change| refusal_of(&refusals, batch, change));
            if let (Some(refusal), Some(tag)) = (refusal, &pending.letter) {
                tried.push((tag.id, refusal.clone()));
                course.refused(tag, refusal);
            }
            refusal.is_none()
        });
        if tried.is_empty() {
            return Ok(false);
        }
        if self.parts.aside.waits() {
            self.pending.retain(|pending| {
                let tag = pending.letter.as_ref();
                !tag.is_some_and(|tag| course.is_stuck(tag))
            });
        }
        self.parts.metrics.failed(error.kind().code());
        let now = super::now_micros();
        let desk = Arc::clone(self.parts.aside.desk());
        desk.blocking(move |store| {
            tried.iter().try_for_each(|(id, refusal)| {
                store.tried(*id, refusal.reason, &refusal.message, now)
            })
        })
        .await?;
        Ok(true)
    }

    /// Ends a replay whose letters have met an error that only a person can mend. False when none is under way.
    fn give_up_replay(&mut self, error: &Error) -> bool {
        if !self.pending.iter().any(|pending| pending.letter.is_some()) {
            return false;
        }
        self.pending.clear();
        self.parts.state.view().in_flight = 0;
        let Some(mut course) = self.course.take() else {
            return false;
        };
        // What was delivered meanwhile stays a letter if this fails: better twice than lost.
        if let Some(store) = self.parts.aside.desk().store()
            && let Err(error) = course.clear(store)
        {
            tracing::warn!(sink = %self.parts.state.name, %error, "delivered letters were not removed");
        }
        course.answer(Some(error));
        true
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

/// Refusals by position; a position may have several, of different tables or sources.
fn by_position(refusals: &[Refusal]) -> HashMap<Position, Vec<&Refusal>> {
    let mut by_position: HashMap<Position, Vec<&Refusal>> = HashMap::new();
    for refusal in refusals {
        by_position
            .entry(refusal.position)
            .or_default()
            .push(refusal);
    }
    by_position
}

fn refusal_of<'r>(
    refusals: &HashMap<Position, Vec<&'r Refusal>>,
    batch: &Batch,
    change: &Change,
) -> Option<&'r Refusal> {
    let at = refusals.get(&batch.position(change))?;
    at.iter()
        .find(|refusal| refusal.is_of(batch, change))
        .copied()
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

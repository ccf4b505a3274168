//! The task that owns the writing: takes batches, folds them, keeps a few flushes under way, notes the progress.
//!
//! On a single server a flush is one step, with the progress of its batches ([`crate::steps`]), and the steps make a chain
//! ([`crate::chain`]). In a cluster there is no such step. Scripts compare versions, so writes of whole rows and deletes may overtake
//! each other and be repeated without harm: flushes overlap, and the progress follows when they are answered.
//!
//! What must read what is there first (unchanged columns) or truncates waits until all before it is answered
//! ([`crate::careful`]). Branches of one transaction go into one flush ([`crate::together`]).

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, OnceLock};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use lockstep_core::batch::Batch;
use lockstep_core::durable::{Delivered, Receipt};
use lockstep_core::position::SourceInfo;
use lockstep_core::progress::Progress;
use lockstep_core::refusal::Refusals;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::fold::{Part, Write, fold, is_independent};
use lockstep_redis::Link;
use tokio::sync::mpsc;
use tracing::Instrument as _;

use crate::chain::Chain;
use crate::flush::{Flush, Limits, Tally};
use crate::rows::{Base, Tables};
use crate::state::{self, Names, Source, Sources};
use crate::version::Version;

/// Flushes under way at a time: enough that the server never waits for us, few enough that memory stays small.
const IN_FLIGHT: usize = 4;

/// A batch and the promise made for it.
pub(crate) type Promised = (Arc<Batch>, Receipt);

/// What the writer is asked to write.
pub(crate) enum Job {
    One(Promised),
    /// Batches that belong together.
    Together(Vec<Promised>),
}

/// Why the writer ended, for those who come after.
#[derive(Clone, Default)]
pub(crate) struct Fate(Arc<OnceLock<Error>>);

impl Fate {
    /// The first one counts.
    pub(crate) fn set(&self, error: &Error) {
        let _ = self.0.set(error.clone());
    }

    /// The error that ended the writer, or the general one when it ended without.
    pub(crate) fn error(&self) -> Error {
        self.outcome()
            .err()
            .unwrap_or_else(|| Error::new(ErrorKind::Abandoned, "the writer has stopped"))
    }

    /// The error that ended the writer, if one did.
    pub(crate) fn outcome(&self) -> Result<()> {
        match self.0.get() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

pub(crate) struct Writer {
    pub(crate) link: Link,
    pub(crate) limits: Limits,
    pub(crate) names: Names,
    pub(crate) tables: Tables,
    pub(crate) sources: Sources,
    /// On a single server.
    pub(crate) chain: Option<Chain>,
    pub(crate) current: Flush,
    flight: FuturesOrdered<BoxFuture<'static, Landed>>,
    flushes: usize,
    /// Batches not yet reported, oldest first. In a cluster `saving` of them wait for the progress to be saved, and the next
    /// `answered` have all their writes answered.
    pub(crate) waiting: VecDeque<Waiting>,
    saving: usize,
    answered: usize,
    /// Stale writes that have been counted but not yet put on a batch.
    stale: u64,
    fate: Fate,
}

/// A batch on its way.
pub(crate) struct Waiting {
    receipt: Receipt,
    pub(crate) delivered: Delivered,
    /// In a cluster; elsewhere it goes along with the writes.
    reached: Option<Reached>,
}

impl Waiting {
    pub(crate) fn new(receipt: Receipt, reached: Option<Reached>) -> Self {
        Waiting {
            receipt,
            delivered: Delivered::default(),
            reached,
        }
    }
}

/// How far a source has come.
#[derive(Clone)]
pub(crate) struct Reached {
    pub(crate) source: Arc<SourceInfo>,
    /// Of the source's identity.
    pub(crate) epoch: u16,
    pub(crate) progress: Progress,
}

enum Landed {
    Flush { jobs: usize, tally: Result<Tally> },
    Progress(Result<()>),
}

impl Writer {
    pub(crate) fn new(
        link: Link,
        limits: Limits,
        names: Names,
        tables: Tables,
        (sources, chain): (Sources, Option<Chain>),
    ) -> Self {
        Writer {
            link,
            limits,
            names,
            tables,
            sources,
            chain,
            current: Flush::default(),
            flight: FuturesOrdered::new(),
            flushes: 0,
            waiting: VecDeque::new(),
            saving: 0,
            answered: 0,
            stale: 0,
            fate: Fate::default(),
        }
    }

    pub(crate) fn fate(&self) -> Fate {
        self.fate.clone()
    }

    /// Runs until the sender is gone and everything is reported, or until the first error. The error goes to the oldest
    /// batch that is not reported; the receipts of the others are dropped, which reports them as not written.
    pub(crate) async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let Err(error) = self.serve(&mut jobs).await else {
            return;
        };
        tracing::debug!(%error, "the Redis writer stops");
        // Set once: this is the only place, at the task's end.
        self.fate.set(&error);
        if let Some(oldest) = self.waiting.pop_front() {
            oldest.receipt.resolve(Err(error));
        }
    }

    async fn serve(&mut self, jobs: &mut mpsc::Receiver<Job>) -> Result<()> {
        loop {
            let job = tokio::select! {
                biased;
                // Landed flushes first: they free memory and let progress go out.
                Some(landed) = self.flight.next(), if !self.flight.is_empty() => {
                    self.settle(landed)?;
                    continue;
                }
                job = jobs.recv() => job,
            };
            let Some(job) = job else { break };
            self.obey(job).await?;
            // What has gathered meanwhile goes along; when nothing has, the flush goes out at once.
            while !self.is_full() {
                let Ok(job) = jobs.try_recv() else { break };
                self.obey(job).await?;
            }
            self.submit().await?;
        }
        self.drain().await
    }

    async fn obey(&mut self, job: Job) -> Result<()> {
        match job {
            Job::One(promised) => self.take(promised).await,
            Job::Together(parts) => self.take_together(parts).await,
        }
    }

    /// Lets a batch wait for its answers.
    pub(crate) async fn await_answers(&mut self, batch: &Batch, receipt: Receipt) -> Result<()> {
        let reached = match self.chain {
            Some(_) => None,
            None => self.reached_by(batch).await?,
        };
        self.waiting.push_back(Waiting::new(receipt, reached));
        Ok(())
    }

    /// Puts the writes of a batch into the current flush, sending flushes as they fill.
    pub(crate) async fn take(&mut self, promised: Promised) -> Result<()> {
        if self.chain.is_some() {
            return self.take_in_steps(promised).await;
        }
        let (batch, receipt) = promised;
        self.await_answers(&batch, receipt).await?;
        if !batch.changes().is_empty() {
            let parts = fold(&batch)?;
            let delivered = if is_independent(&parts) {
                let writes = parts.first().map_or(&[][..], Part::writes);
                self.put_all(&batch, writes).await?
            } else {
                self.submit().await?;
                self.drain_flushes().await?;
                self.apply_carefully(&batch, &parts).await?
            };
            let waiting = self
                .waiting
                .back_mut()
                .expect("pushed above; only reported batches leave, oldest first");
            waiting.delivered += delivered;
        }
        self.current.jobs += 1;
        Ok(())
    }

    async fn put_all(&mut self, batch: &Batch, writes: &[Write<'_>]) -> Result<Delivered> {
        let mut delivered = Delivered::default();
        let mut refusals = Refusals::default();
        let mut writes = writes.iter();
        while !writes.as_slice().is_empty() {
            let source = self
                .sources
                .get(&self.link, &self.names, &batch.source)
                .await?;
            for write in writes.by_ref() {
                let put = put(
                    &mut self.tables,
                    &mut self.current,
                    source,
                    batch,
                    write,
                    &Base::Whole,
                );
                delivered += refusals.take(put)?.unwrap_or_default().0;
                if self.current.is_full() {
                    break;
                }
            }
            if self.current.is_full() {
                self.submit().await?;
            }
        }
        refusals.finish()?;
        Ok(delivered)
    }

    /// What is known of the source of a batch.
    pub(crate) async fn source_of(&mut self, batch: &Batch) -> Result<&mut Source> {
        let source = &batch.source;
        self.sources.get(&self.link, &self.names, source).await
    }

    /// Sends the current flush, once there is room for it.
    pub(crate) async fn submit(&mut self) -> Result<()> {
        if self.current.is_empty() {
            return Ok(());
        }
        while self.flushes >= IN_FLIGHT {
            self.land_one().await?;
        }
        let flush = std::mem::take(&mut self.current);
        let (link, limits) = (self.link.clone(), self.limits.clone());
        self.flushes += 1;
        let next = self.chain.as_mut().filter(|_| flush.has_effect());
        let (place, names) = (next.map(Chain::next), self.names.clone());
        self.flight.push_back(Box::pin(async move {
            let tally = match place {
                Some(place) => flush.send_step(&link, &limits, &names, place).await,
                None => flush.send(&link, &limits).await,
            };
            Landed::Flush {
                jobs: flush.jobs,
                tally,
            }
        }));
        Ok(())
    }

    /// Waits until everything submitted is answered, saved and reported.
    async fn drain(&mut self) -> Result<()> {
        while !self.flight.is_empty() {
            self.land_one().await?;
        }
        Ok(())
    }

    /// Waits until every flush submitted is answered.
    pub(crate) async fn drain_flushes(&mut self) -> Result<()> {
        while self.flushes > 0 {
            self.land_one().await?;
        }
        Ok(())
    }

    async fn land_one(&mut self) -> Result<()> {
        match self.flight.next().await {
            Some(landed) => self.settle(landed),
            None => Ok(()),
        }
    }

    fn settle(&mut self, landed: Landed) -> Result<()> {
        match landed {
            Landed::Flush { jobs, tally } => {
                self.flushes -= 1;
                let tally = tally?;
                self.stale += tally.stale;
                let first = self.saving + self.answered;
                if tally.gaps > 0
                    && let Some(last) = self.waiting.get_mut(first + jobs.saturating_sub(1))
                {
                    last.delivered.incomplete += tally.gaps;
                    warn_incomplete(&self.names, tally.gaps);
                }
                for waiting in self.waiting.iter_mut().skip(first).take(jobs) {
                    let stale = self.stale.min(waiting.delivered.written);
                    waiting.delivered.written -= stale;
                    waiting.delivered.stale += stale;
                    self.stale -= stale;
                }
                if self.chain.is_some() {
                    self.report(jobs);
                    return Ok(());
                }
                self.answered += jobs;
            }
            Landed::Progress(saved) => {
                saved?;
                let saved = std::mem::take(&mut self.saving);
                self.report(saved);
            }
        }
        self.save_progress();
        Ok(())
    }

    /// Tells the oldest batches that they are durable.
    fn report(&mut self, batches: usize) {
        for done in self.waiting.drain(..batches) {
            done.receipt.resolve(Ok(done.delivered));
        }
    }

    /// Begins to save how far the answered batches have come, unless a save is under way. They are reported when the
    /// server has answered, so that what is reported is never ahead of what `resume` finds.
    fn save_progress(&mut self) {
        if self.saving > 0 || self.answered == 0 {
            return;
        }
        self.saving = std::mem::take(&mut self.answered);
        let mut latest: Vec<&Reached> = Vec::new();
        for reached in self
            .waiting
            .iter()
            .take(self.saving)
            .filter_map(|waiting| waiting.reached.as_ref())
        {
            match latest
                .iter_mut()
                .find(|known| known.source == reached.source)
            {
                Some(known) => *known = reached,
                None => latest.push(reached),
            }
        }
        let latest: Vec<Reached> = latest.into_iter().cloned().collect();
        let (link, names) = (self.link.clone(), self.names.clone());
        let fence = self.limits.fence.clone();
        self.flight.push_back(Box::pin(async move {
            let saved = state::save_progress(&link, &names, fence.as_ref(), &latest).await;
            Landed::Progress(saved)
        }));
    }
}

/// Tells of rows that lack what they were to keep.
pub(crate) fn warn_incomplete(names: &Names, rows: u64) {
    tracing::warn!(
        sink = %names.sink,
        rows,
        "rows were written without their unchanged large columns, because Redis did not hold them; \
         load the tables anew, or set REPLICA IDENTITY FULL so that the source always sends them"
    );
}

/// Puts one row's write into `flush`, and says how many of its columns nobody has. A TRUNCATE puts nothing.
pub(crate) fn put(
    tables: &mut Tables,
    flush: &mut Flush,
    source: &Source,
    batch: &Batch,
    write: &Write<'_>,
    base: &Base,
) -> Result<(Delivered, usize)> {
    let schema = write.schema();
    let version = Version::new(source.epoch, batch.phase, write.position());
    if source.is_stale(schema, version) {
        let stale = Delivered {
            stale: 1,
            ..Delivered::default()
        };
        return Ok((stale, 0));
    }
    let table = tables.get(schema)?;
    flush.of(&batch.source, schema);
    let version = (version, write.position());
    let about = |error: Error| error.about(&batch.source, &schema.id, write.position());
    let (bytes, gaps) = match write {
        Write::Upsert { key, row, .. } => {
            let written = table.upsert(flush, key, row.row(batch), version, base);
            let written = written.map_err(about)?;
            (written.bytes, written.gaps)
        }
        Write::Delete { key, .. } => {
            table.delete(flush, key, version).map_err(about)?;
            (0, 0)
        }
        Write::Truncate { .. } => return Ok((Delivered::default(), 0)),
    };
    let delivered = Delivered {
        written: 1,
        stale: 0,
        incomplete: 0,
        bytes: bytes as u64,
    };
    Ok((delivered, gaps))
}

/// Ends the task when it is dropped, so that no writer outlives its sink.
pub(crate) struct Task(pub(crate) tokio::task::JoinHandle<()>);

impl Task {
    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Task(tokio::spawn(task.in_current_span()))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it panicked.
    pub(crate) async fn join(mut self) -> Result<()> {
        (&mut self.0).await.map_err(|cause| {
            Error::new(ErrorKind::Protocol, "the Redis writer broke down").source(cause)
        })
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

//! A pump: reads one source and sends its batches through the transforms to the lanes.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use lockstep_core::batch::{Batch, Phase};
use lockstep_core::error::{At, Policy};
use lockstep_core::feedback::Feedback;
use lockstep_core::folder::Folder;
use lockstep_core::memory::Budget;
use lockstep_core::position::{Lsn, Position, SourceInfo};
use lockstep_core::schema::TableId;
use lockstep_core::source::{Source, SourceContext, SourcePhase};
use lockstep_core::{Error, ErrorKind, Result};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::batches::{self, Rest};
use super::flow::Flow;
use super::inbox::{Entry, Renewal};
use super::lane_state::Announced;
use super::permit::Permit;
use super::source_state::{Desks, SourceShare};
use super::stitch::Door;
use crate::letters::Desk;
use crate::metrics::SourceMetrics;

/// How long the rest of a transaction is waited for when the pipeline stops.
const FINISH: Duration = Duration::from_secs(2);

/// What a pump is made from.
pub(super) struct Parts {
    /// Index of the source.
    pub index: usize,
    pub share: Arc<SourceShare>,
    pub pipeline: Arc<str>,
    pub folder: Folder,
    pub permit: Permit,
    pub budget: Budget,
    pub flow: Arc<Flow>,
    /// Where transactions of several databases are put together, if they are.
    pub stitch: Option<Door>,
    /// Where transforms put rows aside.
    pub desk: Arc<Desk>,
    pub metrics: SourceMetrics,
    /// The pipeline stops.
    pub draining: CancellationToken,
}

/// See the module's page.
pub(super) struct Pump {
    parts: Parts,
    /// The last position of the stream that was sent to the lanes. What a source sends again after it was opened anew is
    /// cut off here, before the transforms see it: every lane has it, durable or in flight.
    sent: Option<Position>,
    /// What the source followed when it was opened last.
    tables: BTreeSet<TableId>,
    /// The last mark that was sent, counted over all openings of the source, and the one before this opening's first.
    marks: u64,
    marks_before: u64,
    backoff: Backoff,
    /// The last problem that was logged.
    logged: Option<String>,
}

impl Pump {
    pub fn new(parts: Parts) -> Self {
        Pump {
            parts,
            sent: None,
            tables: BTreeSet::new(),
            marks: 0,
            marks_before: 0,
            backoff: Backoff::default(),
            logged: None,
        }
    }

    /// Runs until the source ends or the pipeline stops. Gives the source back, for its last confirmation.
    pub async fn run(mut self) -> (Option<Box<dyn Source>>, Result<()>) {
        let draining = self.parts.draining.clone();
        let place = format!("sources.{}", self.parts.share.name);
        loop {
            let opened = tokio::select! {
                biased;
                () = draining.cancelled() => return (None, Ok(())),
                opened = self.open() => opened,
            };
            let failed = match opened {
                Ok(mut source) => match self.read(source.as_mut()).await {
                    Ok(()) => return (Some(source), Ok(())),
                    Err(Failure::Source(error)) => error,
                    // What takes its batches has ended, and says why.
                    Err(Failure::Flow(error)) if error.kind() == ErrorKind::Stopping => {
                        return (Some(source), Ok(()));
                    }
                    // The source sends the batch again.
                    Err(Failure::Flow(error)) if error.kind().policy() == Policy::Retry => error,
                    Err(Failure::Flow(error)) => return (Some(source), Err(error)),
                    Err(Failure::Changed) => {
                        tracing::info!(source = %self.parts.share.name, "its section has changed; opened again");
                        if let Err(error) = source.close().await {
                            tracing::warn!(source = %self.parts.share.name, %error, "did not close in order");
                        }
                        continue;
                    }
                },
                Err(error) => error,
            };
            let retry = failed.kind().policy() == Policy::Retry;
            self.failed(&failed);
            if !retry {
                return (None, Err(failed.at(place)));
            }
            tokio::select! {
                biased;
                () = draining.cancelled() => return (None, Ok(())),
                () = tokio::time::sleep(self.backoff.next()) => {}
            }
        }
    }

    /// Opens the source, binds its tables all the way down, and sees whether it is the log it was.
    async fn open(&mut self) -> Result<Box<dyn Source>> {
        self.marks_before = self.marks;
        let parts = &self.parts;
        parts.permit.check()?;
        // Fresh for each opening: should the name now lead to another log, nothing of the old one is confirmed to it.
        let feedback = Feedback::default();
        let context = SourceContext {
            pipeline: Arc::clone(&parts.pipeline),
            name: Arc::clone(&parts.share.name),
            state: parts.folder.clone(),
            token: parts.permit.token(),
            feedback: feedback.clone(),
            budget: parts.budget.clone(),
            status: parts.share.status.clone(),
        };
        let source = parts.share.component().open(context).await?;
        let info = source.info();
        let tables: BTreeSet<TableId> = source
            .tables()
            .iter()
            .map(|schema| schema.id.clone())
            .collect();
        let reached = parts.flow.bind(source.tables()).await?;
        let compares = parts.flow.comparable(source.tables()).await;
        parts.flow.ready().await?;
        let announced: Vec<Announced> = reached
            .into_iter()
            .zip(compares)
            .map(|(tables, compares)| Announced {
                info: Arc::clone(&info),
                tables,
                compares,
            })
            .collect();
        match parts.share.info() {
            Some(before) if before.identity != info.identity => {
                self.change_over(&before, &info, announced).await?;
            }
            Some(_) if tables != self.tables => self.more_tables(announced),
            _ => {
                for (lane, announced) in parts.flow.lanes().zip(announced) {
                    lane.announce(parts.index, announced);
                }
            }
        }
        self.tables = tables;
        let parts = &self.parts;
        if let Some(door) = &parts.stitch {
            door.again().await?;
        }
        let desks = Desks {
            reloads: source.reloads(),
            checks: source.checks(),
            fences: source.fences(),
        };
        parts
            .share
            .opened(Arc::clone(&info), feedback, desks, self.marks);
        parts.share.status.update(|status| status.problem = None);
        self.backoff.opened();
        if self.logged.take().is_some() {
            tracing::info!(source = %parts.share.name, attempts = self.backoff.failures(), "open again");
        } else {
            tracing::info!(source = %parts.share.name, identity = %info.identity, "open");
        }
        Ok(source)
    }

    /// The source reads another log from now on, and copies its tables anew. Positions of the two mean nothing to each
    /// other: every lane first makes durable what it has of the old one, and then forgets how far that was.
    async fn change_over(
        &mut self,
        before: &SourceInfo,
        info: &SourceInfo,
        announced: Vec<Announced>,
    ) -> Result<()> {
        let parts = &self.parts;
        if let Some(door) = &parts.stitch {
            door.renew().await?;
        }
        tracing::warn!(
            source = %parts.share.name, before = %before.identity, now = %info.identity,
            "the source reads another log; what was read of the old one is written first"
        );
        parts.share.status.update(|status| {
            let waits = "waits until every sink has what was read of the log before";
            status.problem = Some(waits.to_owned());
        });
        let (done, mut all_done) = mpsc::channel(1);
        for (lane, announced) in parts.flow.lanes().zip(announced) {
            let done = done.clone();
            let renewal = Renewal {
                announced,
                forget: true,
                done,
            };
            lane.inbox.push(Entry::renewal(parts.index, renewal));
        }
        drop(done);
        // Nobody sends: it ends when the last lane has dropped its end.
        while all_done.recv().await.is_some() {}
        parts.share.forget();
        self.sent = None;
        Ok(())
    }

    /// The source follows other tables from now on: every sink is opened anew with them, behind what came before.
    fn more_tables(&self, announced: Vec<Announced>) {
        // Nobody waits for it: what is read from here on comes behind it.
        let (done, _) = mpsc::channel(1);
        for (lane, announced) in self.parts.flow.lanes().zip(announced) {
            let renewal = Renewal {
                announced,
                forget: false,
                done: done.clone(),
            };
            lane.inbox.push(Entry::renewal(self.parts.index, renewal));
        }
    }

    /// Reads until the source ends, fails, or the pipeline stops. It stops between two transactions if it can: the first
    /// part of one that has been written would come again, to sinks that do not keep their position with their data.
    async fn read(&mut self, source: &mut dyn Source) -> Result<(), Failure> {
        let draining = self.parts.draining.clone();
        let mut stop = pin!(async {
            draining.cancelled().await;
            tokio::time::sleep(FINISH).await;
        });
        let mut edge = Edge::default();
        loop {
            let inside = edge.is_inside();
            let batch = tokio::select! {
                biased;
                () = draining.cancelled(), if !inside => return Ok(()),
                () = &mut stop, if inside => return Ok(()),
                () = self.parts.share.reopen.notified(), if !inside => return Err(Failure::Changed),
                batch = source.next() => batch.map_err(Failure::Source)?,
            };
            let Some(batch) = batch else {
                return Ok(());
            };
            if !batch.changes().is_empty() {
                self.backoff.reset();
            }
            edge.pass(&batch);
            tokio::select! {
                biased;
                forwarded = self.forward(batch) => forwarded.map_err(Failure::Flow)?,
                // A transform waits for another server: the batch comes again at the next start.
                () = &mut stop => return Ok(()),
            }
            // A source that always has a batch ready must not starve the lanes on its worker thread.
            tokio::task::consume_budget().await;
        }
    }

    async fn forward(&mut self, mut batch: Batch) -> Result<()> {
        if let Some(mark) = &mut batch.mark {
            // Lanes may still hold marks of an earlier opening: these must not be taken for them.
            *mark += self.marks_before;
            self.marks = self.marks.max(*mark);
        }
        if let Some(branch) = &batch.branch {
            self.parts.metrics.ended(branch);
            if self.parts.stitch.is_none() {
                return Ok(());
            }
        }
        let batch = match self.sent {
            None => batch,
            Some(sent) => match batches::after(&batch, sent) {
                Rest::Whole => batch,
                Rest::Part(rest) => *rest,
                Rest::Nothing => batch.with_changes(Vec::new()),
            },
        };
        let is_counted = batch.phase != Phase::Check && !batches::is_early(&batch);
        if !batch.changes().is_empty() && is_counted {
            self.parts.metrics.received(&batch);
        }
        let last = batches::last_position(&batch);
        debug_assert!(batch.phase == Phase::Snapshot || last.is_none() || last > self.sent);
        let place = format!("from sources.{}", self.parts.share.name);
        self.parts.desk.room().await;
        if let Some(door) = &self.parts.stitch {
            // What comes again is known there.
            return door.send(batch).await.at(place);
        }
        self.parts.flow.send(batch).await.at(place)?;
        self.sent = last.or(self.sent);
        Ok(())
    }

    /// Shows a failure and logs it, unless it is the one that was logged last.
    fn failed(&mut self, error: &Error) {
        let text = error.to_string();
        self.parts.share.status.update(|status| {
            status.phase = SourcePhase::Waiting;
            status.problem = Some(text.clone());
        });
        let source = &self.parts.share.name;
        if self.logged.as_ref() == Some(&text) {
            tracing::debug!(%source, %error, attempt = self.backoff.failures(), "failed again");
        } else {
            tracing::warn!(%source, %error, "failed");
            self.logged = Some(text);
        }
    }
}

/// How far a source has been read: between two transactions, or inside one.
#[derive(Default)]
struct Edge {
    /// Commit record of the last transaction that came.
    commit: Lsn,
    /// Everything that ends up to here has come.
    through: Lsn,
}

impl Edge {
    fn pass(&mut self, batch: &Batch) {
        // What was written outside transactions has no end of its own.
        // What is prepared has none yet.
        let last = batch.transactions().last();
        let last = last.filter(|last| last.xid != 0 && !last.is_early());
        if let Some(last) = last.filter(|_| batch.phase == Phase::Stream) {
            self.commit = last.commit;
        }
        self.through = self.through.max(batch.through.unwrap_or_default());
    }

    /// A transaction ends behind its commit record, so one that has come as a whole is covered.
    fn is_inside(&self) -> bool {
        self.commit > Lsn::ZERO && self.through <= self.commit
    }
}

/// Where reading failed.
enum Failure {
    /// In the source: it may be opened again.
    Source(Error),
    /// Nowhere: its section of the file has changed.
    Changed,
    /// Behind it, in a transform: nothing of the batch has been sent on.
    Flow(Error),
}

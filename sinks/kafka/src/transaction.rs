//! Transactions: as small as the load allows, with the progress inside.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_core::batch::{Batch, Change};
use lockstep_core::position::{Position, SourceInfo};
use lockstep_core::progress::{Progress, Standing};
use lockstep_core::token::Token;
use lockstep_core::{Error, Result};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseRecord, Producer};

use crate::outlet::{Outlet, Pause, dropped};
use crate::progress;
use crate::reports::Ticket;

/// One blocking call; the sink may be dropped in between.
const CALL: Duration = Duration::from_secs(1);
/// One call to abort: reports are taken in between.
const ABORT: Duration = Duration::from_millis(20);
/// How long a commit is tried again before the sink starts over and reads what became of it.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(90);

/// An open transaction.
pub(crate) struct Transaction {
    pub(crate) since: Instant,
    pub(crate) records: u64,
    pub(crate) ticket: Ticket,
    /// The last change of each source in it, and what it stands beside.
    last: Vec<Last>,
}

struct Last {
    source: Arc<SourceInfo>,
    position: Position,
    /// It has not committed: see [`Batch::is_early`].
    early: bool,
    standing: Option<Arc<Standing>>,
}

/// Where progress goes.
pub(crate) struct Book {
    pub(crate) pipeline: Arc<str>,
    pub(crate) sink: Arc<str>,
    pub(crate) topic: String,
    /// Of the lease, where one decides who writes.
    pub(crate) token: Option<Token>,
}

/// A commit that did not succeed.
pub(crate) struct Uncommitted {
    pub(crate) error: Error,
    /// The transaction is open and may be aborted; otherwise only a new producer finds out what became of it.
    pub(crate) open: bool,
}

impl Transaction {
    pub(crate) fn begin(outlet: &Outlet) -> Result<Self> {
        outlet
            .producer
            .begin_transaction()
            .map_err(|error| outlet.cause("a transaction cannot begin", &error))?;
        Ok(Transaction {
            since: Instant::now(),
            records: 0,
            ticket: outlet.reports().open(),
            last: Vec::new(),
        })
    }

    /// Notes that a change of a batch is in, and all before it.
    pub(crate) fn note(&mut self, batch: &Batch, change: &Change) {
        let source = &batch.source;
        let same = |known: &Arc<SourceInfo>| Arc::ptr_eq(known, source) || known == source;
        let position = batch.position(change);
        match self.last.iter_mut().find(|last| same(&last.source)) {
            Some(last) => {
                (last.position, last.early) = (position, batch.is_early(change));
                let is_known = match (&last.standing, &batch.standing) {
                    (None, None) => true,
                    (Some(known), Some(standing)) => Arc::ptr_eq(known, standing),
                    _ => false,
                };
                if !is_known {
                    last.standing.clone_from(&batch.standing);
                }
            }
            None => self.last.push(Last {
                source: Arc::clone(source),
                position,
                early: batch.is_early(change),
                standing: batch.standing.clone(),
            }),
        }
    }

    /// Writes the progress, waits for all reports and commits.
    pub(crate) fn commit(self, outlet: &Outlet, book: &Book) -> Result<(), Uncommitted> {
        let open = |error| Uncommitted { error, open: true };
        self.write_progress(outlet, book).map_err(open)?;
        outlet.drain().map_err(open)?;
        let end = Instant::now() + COMMIT_TIMEOUT;
        let mut pause = Pause::new();
        loop {
            let error = match outlet.producer.commit_transaction(CALL) {
                Ok(()) => {
                    outlet.reports().close_all();
                    return Ok(());
                }
                Err(error) => error,
            };
            let again = match &error {
                KafkaError::Transaction(inner) => inner.is_retriable(),
                KafkaError::Flush(code) => *code == Code::OperationTimedOut,
                _ => false,
            };
            if !again || Instant::now() > end || outlet.shared.is_dropped() {
                let abortable =
                    matches!(&error, KafkaError::Transaction(inner) if inner.txn_requires_abort());
                let error = match outlet.shared.is_dropped() {
                    true => dropped(),
                    false => outlet.cause("the transaction was not committed", &error),
                };
                return Err(Uncommitted {
                    error,
                    open: abortable,
                });
            }
            outlet.pump();
            std::thread::sleep(pause.next());
        }
    }

    fn write_progress(&self, outlet: &Outlet, book: &Book) -> Result<()> {
        for last in &self.last {
            let source = &last.source;
            let reached = match &last.standing {
                Some(standing) if last.early => standing.with_early(last.position),
                Some(standing) => standing.with(last.position),
                None => Progress::from(last.position),
            };
            let key = progress::key(&book.pipeline, &book.sink, source);
            let value = progress::value(&book.pipeline, &book.sink, source, book.token, &reached);
            outlet.push(BaseRecord {
                topic: &book.topic,
                partition: Some(progress::PARTITION),
                payload: Some(value.as_slice()),
                key: Some(key.as_bytes()),
                timestamp: None,
                headers: None,
                delivery_opaque: self.ticket,
            })?;
            outlet.reports().produced(self.ticket, 1);
        }
        Ok(())
    }
}

/// Ends the open transaction without effect, so that consumers do not wait for its timeout. When that fails, the next
/// holder of the transactional id does it.
pub(crate) fn abort(outlet: &Outlet) {
    outlet.reports().close_all();
    if outlet.fatal().is_some() {
        return;
    }
    let end = Instant::now() + CALL * 2;
    loop {
        // It waits for the reports of what it throws away, and does not take them.
        let error = match outlet.producer.abort_transaction(ABORT) {
            Ok(()) => return,
            Err(error) => error,
        };
        let again = matches!(&error, KafkaError::Transaction(inner) if inner.is_retriable());
        if !again || Instant::now() > end {
            tracing::warn!(%error, "the transaction could not be aborted; the next start or its timeout does it");
            return;
        }
        // When this fails the call fails again.
        let _ = outlet.producer.flush(ABORT);
    }
}

//! The thread of a sink: takes batches, encodes them straight into librdkafka, answers receipts.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use lockstep_core::batch::{Batch, Change, Op, Phase};
use lockstep_core::durable::{Delivered, Receipt};
use lockstep_core::error::At;
use lockstep_core::refusal::reason;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::{Encoder, Record};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::Producer;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::config::KafkaConfig;
use crate::error::Failure;
use crate::gather::Gather;
use crate::outlet::{Outlet, Pause, dropped};
use crate::registrar::Registrar;
use crate::reports::Ticket;
use crate::topics::{self, Topics, Wanted};
use crate::transaction::{self, Book, Transaction, Uncommitted};

/// Reports are handled after so many changes.
const PUMP_EVERY: usize = 256;
/// How often an idle producer's log and errors are looked at.
const IDLE: Duration = Duration::from_secs(1);

/// What the thread is told.
pub(crate) enum Order {
    /// Batches that belong into one transaction; mostly it is one batch.
    Write {
        parts: Vec<(Arc<Batch>, Receipt)>,
        /// Given back when they are encoded.
        room: OwnedSemaphorePermit,
    },
    /// Everything before it is made durable; then the thread ends.
    Close(oneshot::Sender<Result<()>>),
}

/// A batch that was handed over and is not durable yet.
struct Awaiting {
    receipt: Receipt,
    delivered: Delivered,
}

/// How a batch becomes durable.
enum Mode {
    /// When its reports are in; the reports' oldest ticket is that of the front of `awaiting`.
    Plain,
    /// When the transaction that holds its last record is committed.
    Transactions {
        book: Book,
        open: Option<Transaction>,
        pace: Pace,
    },
}

/// How long a transaction stays open under load. Nothing is encoded while one is committed, so slow commits are made
/// rarer: they take a tenth of the time at most, as long as the interval does not grow beyond [`Pace::LONGEST`].
struct Pace {
    /// `commit_interval`.
    shortest: Duration,
    now: Duration,
}

impl Pace {
    /// In `commit_interval`s.
    const LONGEST: u32 = 10;
    /// Of a commit's own time.
    const SHARE: u32 = 9;

    fn new(shortest: Duration) -> Self {
        Pace {
            shortest,
            now: shortest,
        }
    }

    fn committed(&mut self, took: Duration) {
        let longest = self.shortest * Self::LONGEST;
        self.now = (took * Self::SHARE).clamp(self.shortest, longest);
    }
}

pub(crate) struct Worker {
    config: Arc<KafkaConfig>,
    outlet: Outlet,
    encoder: Encoder,
    topics: Topics,
    /// Where records have schemas.
    registrar: Option<Registrar>,
    mode: Mode,
    /// Where transactions of several databases are written as records of their own.
    gather: Option<Gather>,
    awaiting: VecDeque<Awaiting>,
}

impl Worker {
    /// A worker; transactional when it has a book for the progress.
    pub(crate) fn new(
        config: Arc<KafkaConfig>,
        outlet: Outlet,
        topics: Topics,
        registrar: Option<Registrar>,
        book: Option<Book>,
    ) -> Result<Self> {
        let pace = Pace::new(config.commit_interval.0);
        Ok(Worker {
            encoder: config.encoder()?,
            registrar,
            gather: config
                .transactions
                .as_ref()
                .map(|transactions| Gather::new(transactions.max_bytes.bytes())),
            config,
            outlet,
            topics,
            mode: book.map_or(Mode::Plain, |book| Mode::Transactions {
                book,
                open: None,
                pace,
            }),
            awaiting: VecDeque::new(),
        })
    }

    /// Works until told to close, until the sink is dropped, or until something fails.
    pub(crate) fn run(mut self, inbox: &Receiver<Order>) {
        let failure = match self.serve(inbox) {
            Ok(Some(done)) => {
                // Whoever closes may have gone.
                let _ = done.send(Ok(()));
                return;
            }
            Ok(None) => Failure::from(&dropped()),
            Err(error) => Failure::from(&error),
        };
        if failure.kind != ErrorKind::Stopping {
            tracing::warn!(error = failure.message, "the Kafka sink starts over");
        }
        self.outlet.shared.fail(&failure);
        self.outlet.shared.room.close();
        if let Mode::Transactions { open: Some(_), .. } = self.mode {
            transaction::abort(&self.outlet);
        }
        for waiting in self.awaiting.drain(..) {
            waiting.receipt.resolve(Err(failure.error()));
        }
        while let Ok(order) = inbox.try_recv() {
            match order {
                Order::Write { parts, .. } => {
                    for (_, receipt) in parts {
                        receipt.resolve(Err(failure.error()));
                    }
                }
                Order::Close(done) => drop(done.send(Err(failure.error()))),
            }
        }
    }

    /// `Ok(Some)`: asked to close, and done. `Ok(None)`: the sink is gone.
    fn serve(&mut self, inbox: &Receiver<Order>) -> Result<Option<oneshot::Sender<Result<()>>>> {
        let mut pause = Pause::new();
        loop {
            if self.outlet.shared.is_dropped() {
                return Ok(None);
            }
            let order = match inbox.try_recv() {
                Ok(order) => Some(order),
                Err(TryRecvError::Disconnected) => return Ok(None),
                Err(TryRecvError::Empty) => {
                    // Consumers wait at an open transaction: an idle one is committed at once.
                    self.commit()?;
                    self.settle()?;
                    let wait = match self.awaiting.is_empty() {
                        true => IDLE,
                        false => pause.next(),
                    };
                    match inbox.recv_timeout(wait) {
                        Ok(order) => Some(order),
                        Err(RecvTimeoutError::Timeout) => None,
                        Err(RecvTimeoutError::Disconnected) => return Ok(None),
                    }
                }
            };
            match order {
                Some(Order::Write { parts, room }) => {
                    pause = Pause::new();
                    self.take_together(parts)?;
                    drop(room);
                    self.commit_if_due()?;
                    self.settle()?;
                }
                Some(Order::Close(done)) => {
                    self.commit()?;
                    self.outlet.drain()?;
                    self.settle()?;
                    return Ok(Some(done));
                }
                None => {}
            }
        }
    }

    /// Encodes batches into librdkafka: several of them into one transaction.
    fn take_together(&mut self, parts: Vec<(Arc<Batch>, Receipt)>) -> Result<()> {
        let changes = parts.iter().map(|(batch, _)| batch.changes().len() as u64);
        self.make_room(changes.sum())?;
        let whole = parts.len() > 1 || parts.iter().any(|(batch, _)| self.gathers(batch));
        let mut failed = None;
        for (batch, receipt) in parts {
            let taken = match failed {
                None => self.take(&batch, whole),
                Some(_) => Ok(Delivered::default()),
            };
            // What was not taken is answered with the others.
            let delivered = taken.as_ref().copied().unwrap_or_default();
            self.awaiting.push_back(Awaiting { receipt, delivered });
            failed = failed.or_else(|| taken.err());
        }
        match failed {
            None => self.send_gathered(),
            Some(error) => Err(error),
        }
    }

    /// Whether something of a batch goes into a record of its transaction as well.
    fn gathers(&self, batch: &Batch) -> bool {
        let mut transactions = batch.transactions().iter();
        self.gather.is_some()
            && batch.phase == Phase::Stream
            && transactions.any(|transaction| transaction.global.is_some())
    }

    /// Hands the records of transactions over whose events have all been.
    fn send_gathered(&mut self) -> Result<()> {
        let gathered = self.gather.as_mut().map(Gather::finish);
        let records = gathered.unwrap_or_default();
        if let (
            Mode::Transactions {
                open: Some(open), ..
            },
            Some(to),
        ) = (&mut self.mode, &self.config.transactions)
        {
            for record in &records {
                self.outlet.send_whole(&to.topic, record, open.ticket)?;
                open.records += 1;
            }
        }
        Ok(())
    }

    /// Commits first where so many more changes would make a transaction too long.
    fn make_room(&mut self, changes: u64) -> Result<()> {
        let records = match &self.mode {
            Mode::Transactions {
                open: Some(open), ..
            } => open.records,
            _ => 0,
        };
        match records > 0 && records + changes > self.config.commit_records {
            true => self.commit(),
            false => Ok(()),
        }
    }

    /// Encodes a batch into librdkafka; with `whole` nothing is committed in the middle of it.
    fn take(&mut self, batch: &Batch, whole: bool) -> Result<Delivered> {
        let topics = self.topics_of(batch)?;
        self.register(batch, &topics)?;
        let mut ticket = match &mut self.mode {
            Mode::Plain => Some(self.outlet.reports().open()),
            Mode::Transactions { .. } => None,
        };
        let mut total = Delivered::default();
        for (index, change) in batch.changes().iter().enumerate() {
            if let Mode::Transactions { open, .. } = &mut self.mode {
                let open = match open {
                    Some(open) => open,
                    None => open.insert(Transaction::begin(&self.outlet)?),
                };
                ticket = Some(open.ticket);
            }
            let ticket = ticket.expect("plain mode opened one, transactions have one");
            let topic = &*topics[usize::from(change.schema)];
            let sent = match self.send(batch, change, topic, ticket) {
                Ok(sent) => sent,
                Err(error) => return Err(self.survey(batch, index, error)),
            };
            total += sent;
            self.note(batch, change, sent.written);
            if index % PUMP_EVERY == PUMP_EVERY - 1 {
                self.outlet.pump();
                self.outlet.healthy()?;
                // Two halves of a moved row share a position: progress between them would lose the second.
                let next = batch
                    .changes()
                    .get(index + 1)
                    .map(|next| batch.position(next));
                if !whole && next != Some(batch.position(change)) {
                    self.commit_if_due()?;
                }
            }
        }
        Ok(total)
    }

    /// Hands the records of one change over.
    fn send(
        &mut self,
        batch: &Batch,
        change: &Change,
        topic: &str,
        ticket: Ticket,
    ) -> Result<Delivered> {
        let outlet = &self.outlet;
        let mut sent = Delivered::default();
        let mut gather = self
            .gather
            .as_mut()
            .filter(|_| batch.phase == Phase::Stream)
            .zip(self.config.transactions.as_ref());
        let result = self.encoder.encode(batch, change, &mut |record| {
            if let Some((gather, to)) = &mut gather
                && let Some(part) = gather.add(batch, change, topic, &record)
            {
                outlet.send_whole(&to.topic, &part, ticket)?;
            }
            let bytes = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
            let copies = match record.op {
                // Whoever reads a partition has to learn that its rows are gone.
                Op::Truncate => {
                    let count = topics::partitions(outlet.producer.client(), topic)
                        .map_err(|failure| failure.error())?
                        .unwrap_or(1);
                    for partition in 0..count {
                        outlet.send(topic, Some(partition), &record, ticket)?;
                    }
                    count as u64
                }
                _ => {
                    outlet.send(topic, None, &record, ticket)?;
                    1
                }
            };
            sent.written += copies;
            sent.bytes += copies * bytes as u64;
            Ok(())
        });
        // Counted even when a later record of the change failed: what was handed over is reported.
        outlet.reports().produced(ticket, sent.written);
        match result {
            Ok(()) => Ok(sent),
            Err(error) => Err(error).at(format!(
                "change {} of table {}",
                batch.source.change_id(batch.position(change)),
                batch.schema(change).origin
            )),
        }
    }

    /// Adds to a refusal what else of the batch would be refused for the same causes: each refusal costs a new producer. What
    /// is at least as large as a record that is too large is so as well.
    fn survey(&mut self, batch: &Batch, index: usize, refused: Error) -> Error {
        if refused.refusals().is_empty() || refused.is_suspicion() {
            return refused;
        }
        let mut limit = None;
        if refused.reason() == Some(reason::TOO_LARGE) {
            let mut largest = 0;
            let measured = self
                .encoder
                .encode(batch, &batch.changes()[index], &mut |record| {
                    largest = largest.max(size(&record));
                    Ok(())
                });
            limit = measured.is_ok().then_some(largest);
        }
        self.encoder.survey(
            batch,
            &batch.changes()[index + 1..],
            refused,
            &mut |record| {
                let size = size(&record);
                match limit {
                    Some(limit) if size >= limit => Err(too_large(size, limit)),
                    _ => Ok(()),
                }
            },
        )
    }

    fn note(&mut self, batch: &Batch, change: &Change, records: u64) {
        if let Mode::Transactions {
            open: Some(open), ..
        } = &mut self.mode
        {
            open.records += records;
            // Rows of an initial copy come from several readers at once: their positions say nothing of each other.
            if batch.phase == Phase::Stream {
                open.note(batch, change);
            }
        }
    }

    fn commit_if_due(&mut self) -> Result<()> {
        let due = match &self.mode {
            Mode::Transactions {
                open: Some(open),
                pace,
                ..
            } => open.records >= self.config.commit_records || open.since.elapsed() >= pace.now,
            _ => false,
        };
        if due { self.commit() } else { Ok(()) }
    }

    /// Commits the open transaction, if there is one, and answers the receipts of all batches in it or before it.
    fn commit(&mut self) -> Result<()> {
        let Mode::Transactions { book, open, pace } = &mut self.mode else {
            return Ok(());
        };
        if let Some(transaction) = open.take() {
            let begun = Instant::now();
            if let Err(Uncommitted { error, open }) = transaction.commit(&self.outlet, book) {
                if open {
                    transaction::abort(&self.outlet);
                }
                return Err(error);
            }
            pace.committed(begun.elapsed());
        }
        for waiting in self.awaiting.drain(..) {
            waiting.receipt.resolve(Ok(waiting.delivered));
        }
        Ok(())
    }

    /// Without transactions: answers the receipts whose reports are in, in order.
    fn settle(&mut self) -> Result<()> {
        self.outlet.pump();
        self.outlet.healthy()?;
        if matches!(self.mode, Mode::Plain) {
            while !self.awaiting.is_empty() && self.outlet.reports().close_first() {
                if let Some(waiting) = self.awaiting.pop_front() {
                    waiting.receipt.resolve(Ok(waiting.delivered));
                }
            }
        }
        Ok(())
    }

    /// Registers the schemas of the batch that the registry was not asked for yet, where records have any.
    fn register(&mut self, batch: &Batch, topics: &[Arc<str>]) -> Result<()> {
        let Some(registrar) = &mut self.registrar else {
            return Ok(());
        };
        for (schema, topic) in batch.schemas().iter().zip(topics) {
            // No change has it.
            if topic.is_empty() {
                continue;
            }
            let place = || format!("table {}", schema.origin);
            let unregistered = self.encoder.unregistered(schema);
            if let Some(schemas) = unregistered.map_err(|error| error.at(place()))? {
                let ids = registrar.register(topic, &schemas, &self.outlet.shared);
                let ids = ids.map_err(|error| error.at(place()))?;
                self.encoder.register(schema, ids);
            }
        }
        Ok(())
    }

    /// The topic of each schema of the batch, created when it is new and missing. Nothing for those that no change has: a filter,
    /// or the source itself, has taken all of them.
    fn topics_of(&mut self, batch: &Batch) -> Result<Vec<Arc<str>>> {
        let mut names = Vec::with_capacity(batch.schemas().len());
        for (index, schema) in batch.schemas().iter().enumerate() {
            if let Some(topic) = self.topics.known(schema) {
                names.push(Arc::clone(&topic.name));
                continue;
            }
            let mut changes = batch.changes().iter();
            if !changes.any(|change| usize::from(change.schema) == index) {
                names.push(Arc::default());
                continue;
            }
            let name = self.topics.name(schema)?;
            let wanted = Wanted {
                name: &name,
                partitions: self.config.partitions,
                config: &[],
            };
            topics::ensure(self.outlet.producer.client(), &self.config, &[wanted])
                .map_err(|failure| failure.error())?;
            self.topics.learn(schema, Arc::clone(&name));
            names.push(name);
        }
        Ok(names)
    }
}

/// Bytes of a record as the client counts them, up to a constant per record and per header.
fn size(record: &Record<'_>) -> usize {
    let headers = record.headers.iter();
    let headers: usize = headers.map(|(name, value)| name.len() + value.len()).sum();
    record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + headers
}

fn too_large(size: usize, limit: usize) -> Error {
    let what = format!("a record of {size} bytes is too large: one of {limit} bytes was refused");
    let failure = Failure::of_code(what, Code::MessageSizeTooLarge, "message size too large");
    failure.error()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_commits_are_made_rarer_within_bounds() {
        let millis = Duration::from_millis;
        let mut pace = Pace::new(millis(100));
        for (took, interval) in [(1, 100), (20, 180), (500, 1000), (5, 100)] {
            pace.committed(millis(took));
            assert_eq!(pace.now, millis(interval), "{took} ms");
        }
    }
}

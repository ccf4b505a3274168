//! The task that turns batches into requests.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockstep_core::batch::{Batch, Phase};
use lockstep_core::durable::Receipt;
use lockstep_core::refusal::Refusals;
use lockstep_core::sidecar::{Positions, Sidecar};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::Encoder;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep_until};
use tracing::Instrument as _;

use crate::address::{Addresses, Target};
use crate::config::BatchConfig;
use crate::ledger::{Ledger, Mark};
use crate::request::{Bulk, Origin, Posted, Request};
use crate::schedule::Schedule;
use crate::send::{End, Sender};

/// How often the position is saved while batches keep coming.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Requests that may wait or be under way. Those of one key stand in line, and others are to find room beside them.
const ROOM: usize = 1024;
/// Bytes of their bodies, roughly.
const ROOM_BYTES: usize = 8 << 20;

/// What the writer is asked to do.
pub(crate) enum Command {
    Write(Arc<Batch>, Receipt),
    /// Make everything durable, save the position, and say so.
    Flush(oneshot::Sender<()>),
}

/// Where an error waits when no batch does.
pub(crate) type Fault = Arc<Mutex<Option<Error>>>;

/// The state of the task.
pub(crate) struct Writer {
    inbox: mpsc::Receiver<Command>,
    encoder: Encoder,
    outbox: Outbox,
    flights: Flights,
    positions: Saved,
    fault: Fault,
    /// The batch in hand: its number, and how many of its changes are encoded.
    current: Option<(Arc<Batch>, u64, usize)>,
    /// Once there is one, nothing more is encoded: what may go on of the rest does, and then all are told.
    refusals: Refusals,
    /// Who waits for a flush. Dropped last, so that the reason of a failure is there before the failure is heard of.
    asker: Option<oneshot::Sender<()>>,
}

impl Writer {
    pub(crate) fn new(
        inbox: mpsc::Receiver<Command>,
        encoder: Encoder,
        outbox: Outbox,
        flights: Flights,
        positions: Saved,
        fault: Fault,
    ) -> Self {
        Writer {
            inbox,
            encoder,
            outbox,
            flights,
            positions,
            fault,
            current: None,
            refusals: Refusals::default(),
            asker: None,
        }
    }

    /// Runs until something fails. A failure is reported to the oldest batch.
    pub(crate) async fn run(mut self) {
        let Err(error) = self.work().await else {
            return;
        };
        // What is under way may still be taken, and then need not be sent again; and nothing old is left to arrive later.
        self.flights.end();
        while let Some(landed) = self.flights.next().await {
            if let Ok((number, request, End::Taken)) = landed {
                self.outbox.taken(number, &request);
            }
        }
        self.settle();
        if let Err(other) = self.positions.save().await {
            tracing::warn!(error = %other, "the position is not saved");
        }
        if let Some(error) = self.outbox.ledger.fail(error) {
            tracing::warn!(%error, "the webhook sink stops");
            *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
        drop(self.asker);
    }

    async fn work(&mut self) -> Result<()> {
        loop {
            while self.may_encode() {
                if self.current.is_some() {
                    self.encode()?;
                    continue;
                }
                match self.inbox.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => break,
                }
            }
            self.launch();
            self.settle();
            if self.flights.is_empty() {
                if !self.refusals.is_empty() {
                    return std::mem::take(&mut self.refusals).finish();
                }
                if self.asker.is_some() && self.outbox.ledger.is_empty() {
                    self.positions.save().await?;
                    // The one who asked may be gone.
                    let _ = self.asker.take().map(|asker| asker.send(()));
                    continue;
                }
            }
            // One branch is always enabled: without a request under way, there is room for what comes.
            tokio::select! {
                biased;
                Some(landed) = self.flights.next() => self.landed(landed)?,
                command = self.inbox.recv(), if self.may_take() => match command {
                    Some(command) => self.obey(command),
                    None => return Ok(()),
                },
                () = sleep_until(self.positions.due), if self.positions.is_fresh => {
                    self.positions.save().await?;
                }
            }
        }
    }

    /// Whether there is to be more to send. With a flush to come, all before it has been encoded.
    fn may_encode(&self) -> bool {
        self.refusals.is_empty() && self.asker.is_none() && self.outbox.has_room()
    }

    fn may_take(&self) -> bool {
        self.current.is_none() && self.may_encode()
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Write(batch, receipt) => {
                let number = self.outbox.ledger.begin(receipt, mark(&batch));
                self.current = Some((batch, number, 0));
            }
            Command::Flush(done) => self.asker = Some(done),
        }
    }

    /// Encodes the batch in hand, as far as there is room.
    fn encode(&mut self) -> Result<()> {
        let Some((batch, number, begun)) = self.current.take() else {
            return Ok(());
        };
        for (index, change) in batch.changes().iter().enumerate().skip(begun) {
            if !self.outbox.has_room() {
                self.current = Some((batch, number, index));
                return Ok(());
            }
            let schema = batch.schema(change);
            let target = self.outbox.addresses.of(schema)?;
            let origin = Origin {
                batch: number,
                source: Arc::clone(&batch.source),
                table: schema.id.clone(),
                position: batch.position(change),
                bytes: 0,
            };
            let outbox = &mut self.outbox;
            let encoded = self.encoder.encode(&batch, change, &mut |record| {
                if let Some(posted) = Posted::new(&record) {
                    outbox.add(&target, posted, origin.clone());
                }
                Ok(())
            });
            if let Err(refused) = encoded {
                let id = batch.source.change_id(batch.position(change));
                let refused = refused.at(format!("change {id} of table {}", schema.origin));
                let rest = &batch.changes()[index + 1..];
                let all = self.encoder.survey(&batch, rest, refused, &mut |_| Ok(()));
                self.refuse(all)?;
                return Ok(());
            }
        }
        self.outbox.ledger.seal(number);
        Ok(())
    }

    /// Starts what may start.
    fn launch(&mut self) {
        while self.flights.has_room() {
            // What would wait for company otherwise goes as it is.
            if !self.outbox.schedule.is_ready() && self.refusals.is_empty() {
                self.outbox.close_bulks();
            }
            let Some((number, request)) = self.outbox.schedule.take() else {
                return;
            };
            self.flights.start(number, request);
        }
    }

    fn landed(&mut self, landed: Result<Landed>) -> Result<()> {
        match landed? {
            (number, request, End::Taken) => self.outbox.taken(number, &request),
            (_, _, End::Failed(error)) => self.refuse(error)?,
            (_, _, End::GivenUp) => {}
        }
        Ok(())
    }

    /// Gathers a refusal that names exactly what is refused. Requests that wait to be tried again are given up, those that wait for
    /// the refused one stay where they are, and the others go on.
    fn refuse(&mut self, error: Error) -> Result<()> {
        self.refusals.take::<()>(Err(error))?;
        self.flights.end();
        Ok(())
    }

    fn settle(&mut self) {
        let positions = &mut self.positions;
        self.outbox.ledger.settle(|mark| positions.note(mark));
    }
}

fn mark(batch: &Batch) -> Option<Mark> {
    // Rows of an initial copy come from several readers at once: their positions say nothing of each other.
    let last = batch
        .changes()
        .last()
        .filter(|_| batch.phase == Phase::Stream)?;
    Some((Arc::clone(&batch.source), batch.progress_at(last)))
}

/// What is to be sent.
pub(crate) struct Outbox {
    addresses: Addresses,
    /// `None`: a request for each record.
    batch: Option<BatchConfig>,
    /// An open array for each address.
    bulks: Vec<Bulk>,
    schedule: Schedule,
    ledger: Ledger,
}

impl Outbox {
    pub(crate) fn new(addresses: Addresses, batch: Option<BatchConfig>) -> Self {
        Outbox {
            addresses,
            batch,
            bulks: Vec::new(),
            schedule: Schedule::default(),
            ledger: Ledger::default(),
        }
    }

    fn has_room(&self) -> bool {
        let gathered: usize = self.bulks.iter().map(Bulk::bytes).sum();
        self.schedule.len() < ROOM && self.schedule.bytes() + gathered < ROOM_BYTES
    }

    fn add(&mut self, target: &Arc<Target>, record: Posted, mut origin: Origin) {
        origin.bytes = record.len() as u64;
        self.ledger.opened(origin.batch);
        let Some(limits) = &self.batch else {
            let request = record.alone(Arc::clone(target), origin);
            return self.schedule.add(request);
        };
        let (records, bytes) = (limits.records, limits.bytes.bytes());
        // All before a TRUNCATE is sent before it, wherever it goes.
        let is_barrier = record.is_barrier;
        if is_barrier {
            self.close_bulks();
        }
        let open = |bulk: &Bulk| bulk.target.url == target.url;
        let mut at = self.bulks.iter().position(open);
        if let Some(full) = at
            && self.bulks[full].bytes() + record.len() + 1 > bytes
        {
            self.close(full);
            at = None;
        }
        let at = match at {
            Some(at) => {
                self.bulks[at].push(record, origin);
                at
            }
            None => {
                self.bulks
                    .push(Bulk::new(Arc::clone(target), record, origin));
                self.bulks.len() - 1
            }
        };
        let bulk = &self.bulks[at];
        if is_barrier || bulk.records() >= records || bulk.bytes() >= bytes {
            self.close(at);
        }
    }

    fn close(&mut self, index: usize) {
        let bulk = self.bulks.remove(index);
        self.schedule.add(bulk.finish());
    }

    fn close_bulks(&mut self) {
        for bulk in self.bulks.drain(..) {
            self.schedule.add(bulk.finish());
        }
    }

    fn taken(&mut self, number: u64, request: &Request) {
        self.schedule.end(number);
        for origin in &request.records {
            self.ledger.answered(origin.batch, origin.bytes);
        }
    }
}

/// A request that has ended, with its number.
type Landed = (u64, Request, End);

/// Requests under way. Dropping it gives them up.
pub(crate) struct Flights {
    sender: Arc<Sender>,
    most: usize,
    tasks: JoinSet<Landed>,
    /// Whether none is tried more than once any more.
    ending: watch::Sender<bool>,
}

impl Flights {
    pub(crate) fn new(sender: Sender, most: usize) -> Self {
        Flights {
            sender: Arc::new(sender),
            most,
            tasks: JoinSet::new(),
            ending: watch::Sender::new(false),
        }
    }

    fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    fn has_room(&self) -> bool {
        self.tasks.len() < self.most
    }

    fn start(&mut self, number: u64, request: Request) {
        let (sender, ending) = (Arc::clone(&self.sender), self.ending.subscribe());
        let task = async move {
            let end = sender.send(number, &request, ending).await;
            (number, request, end)
        };
        self.tasks.spawn(task.in_current_span());
    }

    fn end(&self) {
        self.ending.send_replace(true);
    }

    /// The next request to end; `None` when none is under way. Cancel-safe.
    async fn next(&mut self) -> Option<Result<Landed>> {
        let landed = self.tasks.join_next().await?;
        Some(landed.map_err(|error| ended("a request", error)))
    }
}

/// How far each source is durable, and the file that says so to the next one who opens the sink.
pub(crate) struct Saved {
    file: Arc<Sidecar>,
    positions: Positions,
    /// Something has changed since it was saved.
    is_fresh: bool,
    due: Instant,
}

impl Saved {
    pub(crate) fn new(file: Sidecar, positions: Positions) -> Self {
        Saved {
            file: Arc::new(file),
            positions,
            is_fresh: false,
            due: Instant::now(),
        }
    }

    fn note(&mut self, (source, reached): Mark) {
        self.positions.note(&source, reached);
        self.is_fresh = true;
    }

    async fn save(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.is_fresh) {
            return Ok(());
        }
        self.due = Instant::now() + SAVE_EVERY;
        let (file, positions) = (Arc::clone(&self.file), self.positions.clone());
        spawn_blocking(move || file.save(&positions))
            .await
            .map_err(|error| ended("saving the position", error))?
    }
}

fn ended(what: &str, error: JoinError) -> Error {
    Error::new(ErrorKind::Abandoned, format!("{what} ended without a word")).source(error)
}

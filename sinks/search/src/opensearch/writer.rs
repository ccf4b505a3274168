//! The task that turns batches into bulk requests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockstep_core::batch::{Batch, Phase, Row};
use lockstep_core::durable::{Delivered, Receipt};
use lockstep_core::error::At;
use lockstep_core::position::Position;
use lockstep_core::refusal::{Refusals, reason};
use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::fold::{Write, fold};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::bulk::{Bulk, KeyHash, Origin, WriteDocument};
use super::client::Client;
use super::config::Config;
use super::epoch::{Epoch, Epochs, Version};
use super::flights::{Flights, Ledger, Mark};
use super::index::{Indexes, Target};
use super::progress::Progress;
use super::toast::{Held, Wanted, fetch};
use super::truncate::{remember, truncate};
use super::visible::{self, Visible};
use crate::document::{Incomplete, fields};
use crate::together::Together;

/// How often the position is stored while batches keep coming.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Bytes of documents to read at a time, roughly.
const FETCH_BYTES: usize = 4 << 20;
/// Documents to read at first.
const FIRST_FETCH: usize = 16;
/// Most documents to read at a time. How large they are is known only when they are here.
const FETCH_LIMIT: usize = 64;

/// What the writer is asked to do.
pub(super) enum Command {
    Write(Arc<Batch>, Receipt),
    /// Batches that belong together.
    Together(Vec<(Arc<Batch>, Receipt)>),
    /// Make everything durable, store the position, and say so.
    Flush(oneshot::Sender<()>),
}

/// Where an error waits when no batch does.
pub(super) type Fault = Arc<Mutex<Option<Error>>>;

/// The state of the task.
pub(super) struct Writer {
    client: Arc<Client>,
    config: Arc<Config>,
    inbox: mpsc::Receiver<Command>,
    /// The command that comes next: taken from the inbox already.
    next: Option<Command>,
    indexes: Indexes,
    epochs: Epochs,
    /// Of the source of the batch in hand.
    epoch: Epoch,
    bulk: Bulk,
    flights: Flights,
    ledger: Ledger,
    progress: Progress,
    progress_due: Instant,
    /// Where readers are told what is visible.
    visible: Option<Visible>,
    /// How many documents to read at a time.
    window: usize,
    /// Who waits for a flush. Dropped last, so that the reason of a failure is there before the failure is heard of.
    asker: Option<oneshot::Sender<()>>,
    fault: Fault,
}

impl Writer {
    pub(super) fn new(
        client: Arc<Client>,
        config: Arc<Config>,
        inbox: mpsc::Receiver<Command>,
        indexes: Indexes,
        (progress, visible): (Progress, Option<Visible>),
        fault: Fault,
    ) -> Self {
        Writer {
            flights: Flights::new(Arc::clone(&client), config.refresh),
            epochs: Epochs::new(Arc::clone(&client), &config),
            epoch: Epoch::default(),
            client,
            config,
            inbox,
            next: None,
            indexes,
            bulk: Bulk::default(),
            ledger: Ledger::default(),
            progress,
            progress_due: Instant::now() + PROGRESS_EVERY,
            visible,
            window: FIRST_FETCH,
            asker: None,
            fault,
        }
    }

    /// Runs until the inbox is closed and empty, or something fails. A failure is reported to the oldest batch.
    pub(super) async fn run(mut self) {
        let Err(mut error) = self.work().await else {
            return;
        };
        // What is under way may still land, and then need not be written again; and nothing old is left to land later.
        while let Some(landed) = self.flights.next().await {
            match landed {
                Ok(answers) => {
                    for answer in answers {
                        self.ledger
                            .answered(answer.batch, answer.items, answer.delivered);
                    }
                }
                Err(other) => error = joined(error, other),
            }
        }
        self.settle();
        let error = match &mut self.visible {
            Some(visible) => visible.fail(error),
            None => Some(error),
        };
        if let Some(error) = error.and_then(|error| self.ledger.fail(error)) {
            tracing::warn!(%error, "the search sink stops");
            *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
        drop(self.asker);
    }

    async fn work(&mut self) -> Result<()> {
        let mut open = true;
        loop {
            // All that waits goes into one request, as far as there is room.
            while open && !self.is_full() {
                match self.waiting() {
                    Ok(command) => self.obey(command).await?,
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => open = false,
                }
            }
            if !self.bulk.is_empty() && self.may_start() {
                self.launch().await?;
                continue;
            }
            if !open && self.flights.len() == 0 {
                self.progress.save().await?;
                return self.show().await;
            }
            let (show_due, may_show) = (self.show_due(), self.may_show());
            // One branch is always enabled: without a request under way the inbox is open and the bulk is empty.
            tokio::select! {
                biased;
                Some(landed) = self.flights.next() => self.landed(landed?),
                command = self.inbox.recv(), if open && !self.is_full() => match command {
                    Some(command) => self.obey(command).await?,
                    None => open = false,
                },
                shown = landed_show(self.visible.as_mut()), if self.visible.is_some() => shown?,
                () = tokio::time::sleep_until(show_due), if may_show => self.begin_show().await?,
                () = tokio::time::sleep_until(self.progress_due), if !self.progress.is_stored() => {
                    self.save_progress().await?;
                }
                else => return Ok(()),
            }
        }
    }

    async fn obey(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Write(batch, receipt) => self.write(batch, receipt).await,
            Command::Together(parts) => self.write_together(parts).await,
            Command::Flush(done) => {
                self.asker = Some(done);
                self.drain().await?;
                self.save_progress().await?;
                self.show().await?;
                if let Some(done) = self.asker.take() {
                    // The one who asked may be gone.
                    let _ = done.send(());
                }
                Ok(())
            }
        }
    }

    /// A command that has come.
    fn waiting(&mut self) -> Result<Command, mpsc::error::TryRecvError> {
        match self.next.take() {
            Some(command) => Ok(command),
            None => self.inbox.try_recv(),
        }
    }

    /// Writes a batch, with those that wait behind it.
    async fn write(&mut self, batch: Arc<Batch>, receipt: Receipt) -> Result<()> {
        // The first answers for all items: those behind it wait for it anyway.
        let first = self.ledger.begin(receipt, mark(&batch));
        let mut numbers = vec![first];
        let mut together = Together::new(batch);
        while let Ok(command) = self.waiting() {
            match command {
                Command::Write(batch, receipt) if together.takes(&batch) => {
                    numbers.push(self.ledger.begin(receipt, mark(&batch)));
                    together.push(batch);
                }
                other => {
                    self.next = Some(other);
                    break;
                }
            }
        }
        self.encode(&*together.join()?, first).await?;
        for number in numbers {
            self.ledger.seal(number);
        }
        self.settle();
        Ok(())
    }

    /// Writes batches that belong together: none of them is durable before all are.
    async fn write_together(&mut self, parts: Vec<(Arc<Batch>, Receipt)>) -> Result<()> {
        let count = parts.len();
        for (place, (batch, receipt)) in parts.into_iter().enumerate() {
            let number = self.ledger.begin(receipt, mark(&batch));
            if place + 1 < count {
                self.ledger.join(number);
            }
            self.encode(&batch, number).await?;
            self.ledger.seal(number);
        }
        self.settle();
        Ok(())
    }

    /// When readers are to be told next what is visible.
    fn show_due(&self) -> Instant {
        let due = self.visible.as_ref().map(Visible::due);
        due.unwrap_or_else(Instant::now)
    }

    fn may_show(&self) -> bool {
        self.visible.as_ref().is_some_and(Visible::may_begin)
    }

    /// Begins to make what is durable visible, and to tell so.
    async fn begin_show(&mut self) -> Result<()> {
        let Some(visible) = &mut self.visible else {
            return Ok(());
        };
        for (source, held) in self.progress.reached() {
            let epoch = self.epochs.of(source).await?;
            visible.reach(source, epoch, held);
        }
        visible.begin(&self.indexes, self.ledger.oldest());
        Ok(())
    }

    /// Makes everything that is durable visible, and waits for it.
    async fn show(&mut self) -> Result<()> {
        loop {
            if let Some(visible) = &mut self.visible
                && visible.is_under_way()
            {
                visible.landed().await?;
            }
            if !self.may_show() {
                return Ok(());
            }
            self.begin_show().await?;
        }
    }

    async fn save_progress(&mut self) -> Result<()> {
        self.progress_due = Instant::now() + PROGRESS_EVERY;
        self.progress.save().await
    }

    async fn encode(&mut self, batch: &Batch, number: u64) -> Result<()> {
        let parts = fold(batch)?;
        if parts.is_empty() {
            return Ok(());
        }
        self.epoch = self.epochs.of(&batch.source).await?;
        let mut first = true;
        for part in &parts {
            if let Some((schema, position)) = part.truncate() {
                self.truncate(batch.phase, schema, position, number).await?;
                first = false;
                continue;
            }
            for writes in part.rounds() {
                if !std::mem::take(&mut first) {
                    self.drain().await?;
                }
                self.add(batch, &writes, number).await?;
            }
        }
        Ok(())
    }

    /// Adds the writes of a round, in which no write reads what another one wrote before it.
    async fn add(&mut self, batch: &Batch, writes: &[&Write<'_>], number: u64) -> Result<()> {
        let mut held = HashMap::new();
        let mut refusals = Refusals::default();
        for (place, write) in writes.iter().enumerate() {
            let target = self.indexes.target(write.schema()).await?;
            let version = self.epoch.version(batch.phase, write.position())?;
            let origin = Origin {
                source: Arc::clone(&batch.source),
                schema: Arc::clone(write.schema()),
                position: write.position(),
            };
            match write {
                Write::Upsert {
                    key,
                    row,
                    missing_from: None,
                    ..
                } => {
                    let row = row.row(batch);
                    let mut write = |out: &mut Vec<u8>| target.documents.write(row, out);
                    let item = (number, origin);
                    let pushed = self.push(&target, key, version, item, Some(&mut write));
                    refusals.take(pushed.await)?;
                }
                Write::Upsert {
                    key,
                    row,
                    missing_from: Some(from),
                    ..
                } => {
                    if !held.contains_key(&place) {
                        held = self.fetch(batch.phase, &writes[place..], place).await?;
                    }
                    let found = held.remove(&place).unwrap_or(Held::Nowhere);
                    let row = row.row(batch);
                    let item = (number, origin);
                    let pushed = self.push_spliced(&target, (from, key), row, version, item, found);
                    refusals.take(pushed.await)?;
                }
                Write::Delete { key, .. } => {
                    let pushed = self.push(&target, key, version, (number, origin), None);
                    refusals.take(pushed.await)?;
                }
                // Alone in its part.
                Write::Truncate { .. } => {}
            }
        }
        refusals.finish()
    }

    /// Adds an item to the bulk, and starts the bulk when that fills it.
    async fn push(
        &mut self,
        target: &Target,
        id: &str,
        version: Version,
        (number, origin): (u64, Origin),
        write: Option<WriteDocument<'_>>,
    ) -> Result<()> {
        let key = KeyHash::of(&target.index, id);
        self.bulk.must_wait |= self.flights.has(key);
        let item = (number, Some(origin.clone()));
        let stamp = match &mut self.visible {
            Some(visible) => {
                visible.touch(&target.index, number);
                version.transaction()
            }
            None => None,
        };
        let added = match (write, stamp) {
            (Some(write), Some(stamp)) => {
                let mut stamped = |out: &mut Vec<u8>| {
                    write(out)?;
                    visible::stamp(stamp, out);
                    Ok::<(), Error>(())
                };
                let write: Option<WriteDocument<'_>> = Some(&mut stamped);
                self.bulk.add(target, key, id, version, item, write)
            }
            (write, _) => self.bulk.add(target, key, id, version, item, write),
        };
        added.map_err(|error| origin.of(error))?;
        self.ledger.opened(number);
        if self.is_full() {
            self.launch().await?;
        }
        Ok(())
    }

    async fn push_spliced(
        &mut self,
        target: &Target,
        (from, id): (&str, &str),
        row: Row<'_>,
        version: Version,
        (number, origin): (u64, Origin),
        held: Held,
    ) -> Result<()> {
        let source = match &held {
            Held::Found(source) => source.get(),
            Held::Nowhere => "{}",
            Held::Later => {
                let stale = Delivered {
                    stale: 1,
                    ..Delivered::default()
                };
                self.ledger.counted(number, stale);
                return Ok(());
            }
        };
        let mut document = Vec::new();
        let absent = target
            .documents
            .splice(row, &fields(source)?, &mut document)
            .map_err(|error| origin.of(error))?;
        if !absent.is_empty() {
            let place = format!(
                "an update left {} unchanged, and document {from} of index {} does not hold it",
                absent.join(", "),
                target.index
            );
            if self.config.incomplete == Incomplete::Error {
                let error = Error::new(ErrorKind::Refused, place).because(reason::INCOMPLETE).remedy(
                    "load the row with `lockstep snapshot FILE --table T`, then discard the letter; REPLICA IDENTITY FULL on the table keeps it from happening",
                );
                return Err(origin.of(error));
            }
            tracing::warn!("{place}: document {id} is written without it");
            let incomplete = Delivered {
                incomplete: 1,
                ..Delivered::default()
            };
            self.ledger.counted(number, incomplete);
        }
        let mut write = |out: &mut Vec<u8>| {
            out.extend_from_slice(&document);
            Ok(())
        };
        self.push(target, id, version, (number, origin), Some(&mut write))
            .await
    }

    /// Reads the documents that the next writes need. `writes` begins with one that does; its place in the round is
    /// `first`.
    async fn fetch(
        &mut self,
        phase: Phase,
        writes: &[&Write<'_>],
        first: usize,
    ) -> Result<HashMap<usize, Held>> {
        let mut wanted = Vec::new();
        let mut places = Vec::new();
        for (offset, write) in writes.iter().enumerate() {
            if wanted.len() == self.window {
                break;
            }
            if let Write::Upsert {
                missing_from: Some(from),
                missing_before,
                schema,
                key,
                position,
                ..
            } = write
            {
                places.push(first + offset);
                wanted.push(Wanted {
                    target: self.indexes.target(schema).await?,
                    from: from.clone(),
                    to: key.clone(),
                    version: self.epoch.version(phase, *position)?,
                    before: self.epoch.version(phase, *missing_before)?,
                });
            }
        }
        let under_way = wanted.iter().any(|want| {
            [&want.from, &want.to].into_iter().any(|id| {
                let key = KeyHash::of(&want.target.index, id);
                self.bulk.has(key) || self.flights.has(key)
            })
        });
        if under_way {
            self.drain().await?;
        }
        let progress_index = &self.config.progress_index;
        let (held, bytes) = fetch(&self.client, progress_index, &wanted).await?;
        let each = (bytes / wanted.len().max(1)).max(1);
        self.window = (FETCH_BYTES / each).clamp(1, FETCH_LIMIT);
        Ok(places.into_iter().zip(held).collect())
    }

    async fn truncate(
        &mut self,
        phase: Phase,
        schema: &Arc<TableSchema>,
        position: Position,
        number: u64,
    ) -> Result<()> {
        let target = self.indexes.target(schema).await?;
        let place = format!("index {}", target.index);
        if self.indexes.is_shared(&target.index) {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "TRUNCATE of {} cannot be carried out: the index holds rows of other tables too",
                    schema.origin
                ),
            )
            .remedy("route each table that is truncated to an index of its own")
            .at(place));
        }
        self.drain().await?;
        let version = self.epoch.version(phase, position)?;
        remember(&self.client, &self.config.progress_index, &target, version).await?;
        let delivered = truncate(&self.client, &target, version).await.at(place)?;
        if let Some(visible) = &mut self.visible {
            visible.touch(&target.index, number);
        }
        self.ledger.counted(number, delivered);
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.bulk.bytes() >= self.config.bulk_bytes.bytes()
            || self.bulk.len() >= self.config.bulk_documents
    }

    fn may_start(&self) -> bool {
        let under_way = self.flights.len();
        under_way < self.config.concurrency && (under_way == 0 || !self.bulk.must_wait)
    }

    /// Starts the bulk as soon as it may.
    async fn launch(&mut self) -> Result<()> {
        while !self.may_start() {
            self.land().await?;
        }
        if !self.bulk.is_empty() {
            self.flights.start(std::mem::take(&mut self.bulk));
        }
        Ok(())
    }

    /// Waits until everything added is acknowledged.
    async fn drain(&mut self) -> Result<()> {
        self.launch().await?;
        while self.flights.len() > 0 {
            self.land().await?;
        }
        Ok(())
    }

    async fn land(&mut self) -> Result<()> {
        if let Some(landed) = self.flights.next().await {
            self.landed(landed?);
        }
        Ok(())
    }

    fn landed(&mut self, answers: Vec<super::send::Answer>) {
        for answer in answers {
            self.ledger
                .answered(answer.batch, answer.items, answer.delivered);
        }
        self.settle();
    }

    fn settle(&mut self) {
        self.ledger.settle(|mark, receipt, delivered| {
            if let Some(mark) = mark {
                self.progress.advance(mark);
            }
            match &mut self.visible {
                Some(visible) => visible.hold(receipt, delivered),
                None => receipt.resolve(Ok(delivered)),
            }
        });
    }
}

/// What the showing under way has come to; pends while there is none.
async fn landed_show(visible: Option<&mut Visible>) -> Result<()> {
    match visible {
        Some(visible) => visible.landed().await,
        None => std::future::pending().await,
    }
}

/// Two refusals as one; else the first error.
fn joined(first: Error, other: Error) -> Error {
    let mut refusals = Refusals::default();
    let exact = [first.clone(), other]
        .into_iter()
        .all(|error| refusals.take::<()>(Err(error)).is_ok());
    match refusals.finish() {
        Err(both) if exact => both,
        _ => first,
    }
}

/// Positions of the initial copy are no positions of the stream, and never resumed from.
fn mark(batch: &Batch) -> Option<Mark> {
    let last = batch.changes().last()?;
    (batch.phase == Phase::Stream).then(|| Mark {
        source: Arc::clone(&batch.source),
        held: batch.progress_at(last),
    })
}

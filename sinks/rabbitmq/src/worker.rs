//! The task of a sink: takes batches, publishes their records, answers receipts.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::types::ShortString;
use lapin::{Channel, Event};
use lockstep_core::batch::{Batch, Change, Phase};
use lockstep_core::durable::{Delivered, Receipt};
use lockstep_core::error::At;
use lockstep_core::refusal::Refusals;
use lockstep_core::sink::Trouble;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::Encoder;
use lockstep_encode::plans::Plans;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::config::RabbitmqConfig;
use crate::error::dropped;
use crate::flight::{Flight, What};
use crate::holder::Holder;
use crate::link::{Events, Link, Plug};
use crate::message;
use crate::open::{Parts, progress_message};
use crate::progress::Book;
use crate::routes::{Route, Routes};
use crate::topology::Topology;

/// Confirms are read after so many changes.
const READ_EVERY: usize = 64;
/// How often a silent broker is looked at.
const TICK: Duration = Duration::from_secs(1);
/// A broker that confirms nothing for so long is told as trouble.
const QUIET: Duration = Duration::from_secs(5);
/// How long what is on its way may take to land when the sink is about to fail: what has landed is not written again.
const LAST_CALL: Duration = Duration::from_secs(5);
/// How long the last position may take. Without it some of what is there comes again.
const LAST_WORD: Duration = Duration::from_secs(10);

/// What the task is told.
pub(crate) enum Order {
    Write(Arc<Batch>, Receipt),
    /// The position is written as soon as it can be.
    Flush,
    /// Everything before it is made durable; then the task ends.
    Close(oneshot::Sender<Result<()>>),
}

/// A batch that was handed over and is not confirmed yet.
struct Awaiting {
    batch: Arc<Batch>,
    receipt: Receipt,
    delivered: Delivered,
    /// The number of the message behind its last one.
    end: u64,
}

pub(crate) struct Worker {
    in_flight: (usize, usize),
    encoder: Encoder,
    trouble: Trouble,
    link: Link,
    events: Events,
    holder: Holder,
    pub(crate) book: Book,
    routes: Routes,
    topology: Topology,
    /// Where tables go that are known to be there.
    known: Plans<Arc<Route>>,
    channel: Channel,
    flight: Flight,
    awaiting: VecDeque<Awaiting>,
    /// Why the broker takes nothing.
    blocked: Option<String>,
    is_told: bool,
}

impl Worker {
    pub(crate) fn new(config: &RabbitmqConfig, trouble: Trouble, parts: Parts) -> Self {
        let bytes = usize::try_from(config.in_flight_bytes.0).unwrap_or(usize::MAX);
        Worker {
            in_flight: (config.in_flight_messages as usize, bytes),
            encoder: Encoder::new(config.format.with_decimals(config.decimals)),
            trouble,
            link: parts.link,
            events: parts.events,
            holder: parts.holder,
            book: parts.book,
            routes: parts.routes,
            topology: parts.topology,
            known: parts.known,
            channel: parts.channel,
            flight: parts.flight,
            awaiting: VecDeque::new(),
            blocked: None,
            is_told: false,
        }
    }

    pub(crate) fn plug(&self) -> Arc<Plug> {
        Arc::clone(&self.link.plug)
    }

    /// Works until told to close, until the sink is dropped, or until something fails.
    pub(crate) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Order>,
        failure: Arc<OnceLock<Error>>,
    ) {
        let failed = match self.serve(&mut inbox).await {
            Ok(Some(done)) => {
                self.link.close().await;
                // Whoever closes may have gone.
                let _ = done.send(Ok(()));
                return;
            }
            Ok(None) => dropped(),
            Err(error) => self.last_call(error).await,
        };
        if failed.kind() != ErrorKind::Stopping {
            tracing::warn!(error = %failed, "the RabbitMQ sink starts over");
        }
        // It is known before the connection is gone: who waits for its end may look at once.
        let failed = failure.get_or_init(|| failed).clone();
        self.trouble.clear();
        drop(self.link);
        for waiting in self.awaiting.drain(..) {
            waiting.receipt.resolve(Err(failed.clone()));
        }
        inbox.close();
        while let Some(order) = inbox.recv().await {
            match order {
                Order::Write(_, receipt) => receipt.resolve(Err(failed.clone())),
                Order::Flush => {}
                Order::Close(done) => drop(done.send(Err(failed.clone()))),
            }
        }
    }

    /// `Ok(Some)`: asked to close, and done. `Ok(None)`: the sink is gone.
    async fn serve(
        &mut self,
        inbox: &mut mpsc::Receiver<Order>,
    ) -> Result<Option<oneshot::Sender<Result<()>>>> {
        loop {
            let order = tokio::select! {
                turned = self.turn() => {
                    turned?;
                    continue;
                }
                order = inbox.recv() => order,
            };
            match order {
                None => return Ok(None),
                Some(Order::Write(batch, receipt)) => self.write(batch, receipt).await?,
                Some(Order::Flush) => self.book.hurry(),
                Some(Order::Close(done)) => {
                    self.finish().await?;
                    return Ok(Some(done));
                }
            }
        }
    }

    /// Waits until something happens that is no order, and does what follows from it. Dropping it loses nothing.
    async fn turn(&mut self) -> Result<()> {
        let tick = Instant::now() + TICK;
        let due = self.book.due().filter(|_| self.blocked.is_none());
        tokio::select! {
            lost = self.holder.lost() => return Err(lost),
            event = self.events.next() => self.heard(event)?,
            landed = self.flight.landed() => landed?,
            () = tokio::time::sleep_until(due.unwrap_or(tick).min(tick)) => {}
        }
        if self.flight.has_returned() {
            return Err(came_back());
        }
        self.settle();
        self.tell();
        if self.book.due().is_some_and(|due| due <= Instant::now()) && self.blocked.is_none() {
            self.write_progress()?;
        }
        Ok(())
    }

    fn heard(&mut self, event: Option<Event>) -> Result<()> {
        match event {
            Some(Event::ConnectionBlocked(reason)) => {
                tracing::warn!(reason, "the broker takes no messages");
                self.blocked = Some(reason);
            }
            Some(Event::ConnectionUnblocked) => {
                tracing::info!("the broker takes messages again");
                self.blocked = None;
                self.flight.moved = Instant::now();
            }
            // Of a channel: whoever uses it learns of it. One that was to show what is not there has ended as it should.
            Some(Event::Error(error)) if error.is_amqp_soft_error() => {}
            Some(Event::Error(error)) => {
                return Err(self
                    .link
                    .failed("the connection to the broker has failed", &error));
            }
            Some(_) => {}
            None => return Err(dropped()),
        }
        Ok(())
    }

    /// Tells what stands in the way, and that nothing does any more.
    fn tell(&mut self) {
        let quiet = self.flight.moved.elapsed();
        let trouble = match &self.blocked {
            Some(reason) => Some(format!("the broker takes no messages: {reason}")),
            None if !self.flight.is_empty() && quiet > QUIET => Some(format!(
                "the broker has confirmed nothing for {} s; {} messages wait",
                quiet.as_secs(),
                self.flight.len()
            )),
            None => None,
        };
        match trouble {
            Some(trouble) => {
                self.trouble.report(trouble);
                self.is_told = true;
            }
            None if self.is_told => {
                self.trouble.clear();
                self.is_told = false;
            }
            None => {}
        }
    }

    /// Answers the receipts of batches whose messages are confirmed, in order.
    fn settle(&mut self) {
        let upto = self.flight.advance();
        self.settle_upto(upto);
    }

    fn settle_upto(&mut self, upto: u64) {
        while self
            .awaiting
            .front()
            .is_some_and(|waiting| waiting.end <= upto)
        {
            let Some(waiting) = self.awaiting.pop_front() else {
                return;
            };
            let batch = &waiting.batch;
            // Rows of a copy, and what is written again, say nothing of what else is there.
            if let (Phase::Stream, Some(last)) = (batch.phase, batch.changes().last()) {
                self.book.note(&batch.source, batch.progress_at(last));
            }
            waiting.receipt.resolve(Ok(waiting.delivered));
        }
    }

    async fn write(&mut self, batch: Arc<Batch>, receipt: Receipt) -> Result<()> {
        let taken = self.take(&batch).await;
        // What was not taken is answered with the others.
        let delivered = taken.as_ref().copied().unwrap_or_default();
        let end = match taken {
            Ok(_) => self.flight.next_number(),
            Err(_) => u64::MAX,
        };
        self.awaiting.push_back(Awaiting {
            batch,
            receipt,
            delivered,
            end,
        });
        taken?;
        self.flight.land_ready()?;
        if self.flight.has_returned() {
            return Err(came_back());
        }
        self.settle();
        Ok(())
    }

    async fn take(&mut self, batch: &Arc<Batch>) -> Result<Delivered> {
        let routes = self.routes_of(batch).await?;
        let mut total = Delivered::default();
        for (index, change) in batch.changes().iter().enumerate() {
            self.make_room().await?;
            if index % READ_EVERY == READ_EVERY - 1 {
                self.flight.land_ready()?;
                tokio::task::yield_now().await;
            }
            let route = &routes[usize::from(change.schema)];
            let sent = self.send(batch, index, change, route);
            total += sent.map_err(|refused| self.survey(batch, index, &routes, refused))?;
        }
        Ok(total)
    }

    /// Waits until there is room for one more.
    async fn make_room(&mut self) -> Result<()> {
        let (messages, bytes) = self.in_flight;
        while self.flight.len() >= messages || self.flight.bytes() >= bytes {
            self.turn().await?;
        }
        match self.flight.has_returned() {
            true => Err(came_back()),
            false => Ok(()),
        }
    }

    /// Hands the records of one change over.
    fn send(
        &mut self,
        batch: &Arc<Batch>,
        index: usize,
        change: &Change,
        route: &Route,
    ) -> Result<Delivered> {
        let (flight, channel) = (&mut self.flight, &self.channel);
        let schema = batch.schema(change);
        let mut sent = Delivered::default();
        let result = self.encoder.encode(batch, change, &mut |record| {
            let Some(message) = message::of_record(batch, change, &record)? else {
                return Ok(());
            };
            let key = route.key(batch, change, schema, record.op)?;
            sent.written += 1;
            sent.bytes += (record.key.map_or(0, <[u8]>::len) + message.body.len()) as u64;
            let what = What::Record {
                batch: Arc::clone(batch),
                change: index,
            };
            flight.publish(channel, &route.exchange, key, message, what)
        });
        result.map(|()| sent).at(format!(
            "change {} of table {}",
            batch.source.change_id(batch.position(change)),
            schema.origin
        ))
    }

    /// Adds to a refusal what else of the batch would be refused before it is sent.
    fn survey(
        &mut self,
        batch: &Batch,
        index: usize,
        routes: &[Arc<Route>],
        refused: Error,
    ) -> Error {
        if refused.refusals().is_empty() || refused.is_suspicion() {
            return refused;
        }
        let encoder = &mut self.encoder;
        let mut refusals = Refusals::default();
        for change in &batch.changes()[index + 1..] {
            let route = &routes[usize::from(change.schema)];
            let schema = batch.schema(change);
            let looked = encoder.encode(batch, change, &mut |record| {
                route.key(batch, change, schema, record.op)?;
                message::of_record(batch, change, &record).map(drop)
            });
            if let Err(other) = refusals.take(looked) {
                return other;
            }
        }
        match refusals.finish() {
            Ok(()) => refused,
            Err(more) => {
                let all = [refused.refusals(), more.refusals()].concat();
                refused.refusing(all)
            }
        }
    }

    /// Where the records of each schema of the batch go. Nothing for those that no change has: a filter, or the source itself, has
    /// taken all of them.
    async fn routes_of(&mut self, batch: &Batch) -> Result<Vec<Arc<Route>>> {
        let mut routes = Vec::with_capacity(batch.schemas().len());
        for (index, schema) in batch.schemas().iter().enumerate() {
            let mut changes = batch.changes().iter();
            let is_used = changes.any(|change| usize::from(change.schema) == index);
            if !is_used {
                routes.push(Arc::default());
                continue;
            }
            let mut fresh = false;
            let all = &self.routes;
            let route = self.known.get_or_try(schema, |schema| {
                fresh = true;
                all.of(schema).map(Arc::new)
            })?;
            let route = Arc::clone(route);
            if fresh {
                self.topology
                    .ensure(&self.link, schema, &route.exchange)
                    .await?;
            }
            routes.push(route);
        }
        Ok(routes)
    }

    fn write_progress(&mut self) -> Result<()> {
        let message = progress_message(&mut self.book);
        let (exchange, queue) = (ShortString::default(), self.book.queue.clone());
        self.flight
            .publish(&self.channel, &exchange, queue, message, What::Progress)
    }

    /// Makes everything durable, and writes the position.
    async fn finish(&mut self) -> Result<()> {
        while !self.flight.is_empty() {
            self.turn().await?;
        }
        self.settle();
        self.book.hurry();
        if self.book.due().is_none() {
            return Ok(());
        }
        let last = async {
            while self.book.due().is_some() || !self.flight.is_empty() {
                self.turn().await?;
            }
            Ok(())
        };
        match tokio::time::timeout(LAST_WORD, last).await {
            Ok(written) => written,
            Err(_) => {
                tracing::warn!(
                    "the position could not be written: some of what is there comes again"
                );
                Ok(())
            }
        }
    }

    /// Before the sink fails: lets land what is on its way, so that it need not be written again, and learns what else is refused.
    async fn last_call(&mut self, failed: Error) -> Error {
        if failed.kind() != ErrorKind::Refused {
            return failed;
        }
        let landing = async {
            while !self.flight.is_empty() {
                if self.flight.landed().await.is_err() {
                    return false;
                }
            }
            true
        };
        if !tokio::time::timeout(LAST_CALL, landing)
            .await
            .unwrap_or(false)
        {
            // What has not landed may have come back: who is named is named the next time.
            return match failed.refusals().is_empty() {
                true => self.flight.refusal().map_or(failed, |(_, error)| error),
                false => failed,
            };
        }
        let Some((first, returned)) = self.flight.refusal() else {
            self.settle();
            return failed;
        };
        self.settle_upto(first);
        let all = [failed.refusals(), returned.refusals()].concat();
        match returned.kind() {
            ErrorKind::Refused => returned.refusing(all),
            _ => returned,
        }
    }
}

/// Messages have come back; which, is known when all have landed.
fn came_back() -> Error {
    Error::new(ErrorKind::Refused, "messages have come back")
}

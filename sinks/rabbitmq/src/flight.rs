//! Messages on their way: each one is answered for, by a confirm, and before it by the message itself when no queue has taken it.
//!
//! The client hands a message that came back over with the next confirm, which need not be its own, but never with a later one than
//! that. So nothing is taken as done before all confirms that are there have been read, and what has come back is known by its
//! `message_id`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use lockstep_core::batch::Batch;
use lockstep_core::position::{Position, SourceInfo};
use lockstep_core::refusal::{Refusal, reason};
use lockstep_core::{Error, ErrorKind, Result};
use tokio::time::Instant;

use crate::error;
use crate::message::Message;

/// A message is not lost in an exchange without a queue: it comes back.
const MANDATORY: BasicPublishOptions = BasicPublishOptions {
    mandatory: true,
    immediate: false,
};

type Publishing = Pin<Box<dyn Future<Output = (u64, lapin::Result<Confirmation>)> + Send>>;

/// What a message is.
#[derive(Clone)]
pub(crate) enum What {
    /// The position.
    Progress,
    /// A record of a change of a batch.
    Record { batch: Arc<Batch>, change: usize },
}

struct Sent {
    what: What,
    exchange: ShortString,
    /// Of the body.
    length: usize,
    /// With what is beside it.
    bytes: usize,
    confirmed: bool,
}

/// A message that no queue has taken.
struct Returned {
    id: String,
    exchange: String,
    routing_key: String,
    text: String,
}

/// All that was sent and is not confirmed, in the order in which it was sent.
pub(crate) struct Flight {
    confirms: FuturesUnordered<Publishing>,
    window: VecDeque<Sent>,
    /// The number of the first in the window.
    first: u64,
    bytes: usize,
    returned: Vec<Returned>,
    /// When something was confirmed, or the first of what is in flight was sent.
    pub(crate) moved: Instant,
}

impl Flight {
    pub(crate) fn new() -> Self {
        Flight {
            confirms: FuturesUnordered::new(),
            window: VecDeque::new(),
            first: 0,
            bytes: 0,
            returned: Vec::new(),
            moved: Instant::now(),
        }
    }

    /// The number of the next message.
    pub(crate) fn next_number(&self) -> u64 {
        self.first + self.window.len() as u64
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.confirms.is_empty()
    }

    /// Messages that wait for their confirm.
    pub(crate) fn len(&self) -> usize {
        self.confirms.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether messages have come back.
    pub(crate) fn has_returned(&self) -> bool {
        !self.returned.is_empty()
    }

    /// Hands a message over: before those that are handed over after it.
    pub(crate) fn publish(
        &mut self,
        channel: &Channel,
        exchange: &ShortString,
        key: ShortString,
        message: Message,
        what: What,
    ) -> Result<()> {
        if self.confirms.is_empty() {
            self.moved = Instant::now();
        }
        let number = self.next_number();
        self.bytes += message.bytes;
        self.window.push_back(Sent {
            what,
            exchange: exchange.clone(),
            length: message.body.len(),
            bytes: message.bytes,
            confirmed: false,
        });
        let (channel, to) = (channel.clone(), exchange.clone());
        let mut publishing: Publishing = Box::pin(async move {
            let body = message.body;
            let properties = message.properties;
            let sent = channel.basic_publish(to, key, MANDATORY, &body, properties);
            let confirm = match sent.await {
                Ok(confirm) => confirm,
                Err(error) => return (number, Err(error)),
            };
            // It is with the broker: only its answer is still to come.
            drop(body);
            (number, confirm.await)
        });
        // The first poll puts it in the line.
        let mut context = Context::from_waker(Waker::noop());
        match publishing.as_mut().poll(&mut context) {
            Poll::Ready(landed) => {
                // A channel that has been closed: what it was closed for is told to those that were on their way.
                self.land_ready()?;
                self.land(landed)
            }
            Poll::Pending => {
                self.confirms.push(publishing);
                Ok(())
            }
        }
    }

    /// Waits for confirms, and reads all that are there. Pends for ever when nothing is on its way. Dropping it loses none.
    ///
    /// # Errors
    /// When a message was not taken, or the connection has failed.
    pub(crate) async fn landed(&mut self) -> Result<()> {
        let Some(first) = self.confirms.next().await else {
            return std::future::pending().await;
        };
        self.land(first)?;
        self.land_ready()
    }

    /// Reads all confirms that are there.
    ///
    /// # Errors
    /// As [`Flight::landed`].
    pub(crate) fn land_ready(&mut self) -> Result<()> {
        while let Some(Some(landed)) = self.confirms.next().now_or_never() {
            self.land(landed)?;
        }
        Ok(())
    }

    fn land(&mut self, (number, answer): (u64, lapin::Result<Confirmation>)) -> Result<()> {
        let at = number.checked_sub(self.first);
        let at = at.and_then(|at| usize::try_from(at).ok());
        let sent = at.and_then(|at| self.window.get_mut(at));
        let Some(sent) = sent.filter(|sent| !sent.confirmed) else {
            return Err(Error::new(
                ErrorKind::Protocol,
                "a message was confirmed that is not on its way",
            ));
        };
        sent.confirmed = true;
        self.bytes -= sent.bytes;
        self.moved = Instant::now();
        match answer {
            Ok(Confirmation::Ack(returned)) => {
                self.returned.extend(returned.map(Returned::from));
                Ok(())
            }
            Ok(Confirmation::Nack(returned)) => {
                self.returned.extend(returned.map(Returned::from));
                Err(not_taken(&sent.exchange))
            }
            Ok(Confirmation::NotRequested) => Err(Error::new(
                ErrorKind::Protocol,
                "the channel does not confirm what it takes",
            )),
            Err(failed) => {
                sent.confirmed = false;
                self.bytes += sent.bytes;
                Err(self.failed(&failed))
            }
        }
    }

    /// The connection or the channel has failed, or a message is too large.
    fn failed(&self, failed: &lapin::Error) -> Error {
        let error = error::of("messages cannot be written", failed);
        let Some(limit) = error::size_limit(failed) else {
            return error;
        };
        let mut refusals = Vec::new();
        for sent in self.window.iter().filter(|sent| !sent.confirmed) {
            let What::Record { batch, change } = &sent.what else {
                continue;
            };
            let length = sent.length;
            if length > limit {
                let message = format!(
                    "a message of {length} bytes is larger than the broker takes ({limit})"
                );
                refusals.extend(refusal(batch, *change, reason::TOO_LARGE, message));
            }
        }
        if refusals.is_empty() {
            return error;
        }
        refused("messages are larger than the broker takes", reason::TOO_LARGE)
            .remedy("raise `max_message_size` in rabbitmq.conf, or drop the large column with a `project` transform")
            .refusing(refusals)
    }

    /// How many of the first messages are confirmed; it forgets them. Nothing is forgotten once messages have come back.
    pub(crate) fn advance(&mut self) -> u64 {
        while self.returned.is_empty() && self.window.front().is_some_and(|sent| sent.confirmed) {
            self.window.pop_front();
            self.first += 1;
        }
        self.first
    }

    /// What has come back, as an error that names the changes; and the number of the first such message. Only when all that was on its
    /// way has landed.
    pub(crate) fn refusal(&self) -> Option<(u64, Error)> {
        let returned = self.returned.first()?;
        let mut places: HashMap<Position, Vec<usize>> = HashMap::new();
        for (at, sent) in self.window.iter().enumerate() {
            if let What::Record { batch, change } = &sent.what
                && let Some(change) = batch.changes().get(*change)
            {
                places.entry(batch.position(change)).or_default().push(at);
            }
        }
        let mut refusals: BTreeMap<usize, Refusal> = BTreeMap::new();
        for back in &self.returned {
            let Some((source, position)) = SourceInfo::parse_change_id(&back.id) else {
                // Of all that is sent only the position has no id.
                return Some((self.first, position_gone(back)));
            };
            let places = places.get(&position).into_iter().flatten();
            let mut is_known = false;
            for &at in places {
                let sent = &self.window[at];
                if let What::Record { batch, change } = &sent.what
                    && batch.source.identity == source
                    && sent.exchange.as_str() == back.exchange
                {
                    is_known = true;
                    let refusal = refusal(batch, *change, reason::UNROUTABLE, back.message());
                    refusals.extend(refusal.map(|refusal| (at, refusal)));
                }
            }
            if !is_known {
                let message = format!("a message came back that was not sent: {}", back.message());
                return Some((self.first, Error::new(ErrorKind::Protocol, message)));
            }
        }
        let first = refusals.keys().next().copied().unwrap_or_default();
        let mut named: Vec<Refusal> = Vec::with_capacity(refusals.len());
        for refusal in refusals.into_values() {
            // The two messages of a key change are of one change, and stand beside each other.
            let same = |last: &Refusal| {
                last.position == refusal.position
                    && last.table == refusal.table
                    && last.source == refusal.source
            };
            if !named.last().is_some_and(same) {
                named.push(refusal);
            }
        }
        let error = refused(&returned.message(), reason::UNROUTABLE)
            .remedy("bind a queue to the exchange for this routing key, or let lockstep make one by `declare`; or leave the table out by `inputs`")
            .refusing(named);
        Some((self.first + first as u64, error))
    }
}

impl Returned {
    fn message(&self) -> String {
        format!(
            "no queue takes what is published to exchange `{}` under routing key `{}` ({})",
            self.exchange, self.routing_key, self.text
        )
    }
}

impl From<BasicReturnMessage> for Returned {
    fn from(message: BasicReturnMessage) -> Self {
        let id = message.properties.message_id().as_ref();
        Returned {
            id: id.map_or_else(String::new, |id| id.as_str().to_owned()),
            exchange: message.exchange.as_str().to_owned(),
            routing_key: message.routing_key.as_str().to_owned(),
            text: message.reply_text.as_str().to_owned(),
        }
    }
}

fn refusal(batch: &Batch, change: usize, reason: &'static str, message: String) -> Option<Refusal> {
    let change = batch.changes().get(change)?;
    Some(Refusal {
        source: batch.source.identity.clone(),
        table: Some(batch.schema(change).id.clone()),
        position: batch.position(change),
        reason,
        message,
    })
}

fn refused(message: &str, reason: &'static str) -> Error {
    Error::new(ErrorKind::Refused, message).because(reason)
}

fn position_gone(back: &Returned) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!(
            "queue `{}`, which keeps the position, was deleted",
            back.routing_key
        ),
    )
    .remedy("leave it alone: without it what the source still has comes again")
}

fn not_taken(exchange: &ShortString) -> Error {
    Error::new(
        ErrorKind::Overloaded,
        format!("the broker has not taken (nack) a message for exchange `{exchange}`"),
    )
    .remedy("a queue is full and refuses more (`x-overflow` = reject-publish), or the broker could not store it: see its log")
}

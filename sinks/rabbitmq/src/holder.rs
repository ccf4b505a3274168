//! One holder at a time, by an exclusive queue.
//!
//! The broker gives such a queue to one connection, and takes it back with it: also when nothing is heard of it for two heartbeats. So
//! whoever has it knows that nobody else publishes by it, and whoever has lost it has no connection to publish by.
//!
//! The holder reads its queue: somebody who has a newer lease writes there that he is waiting, and the holder goes.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use lockstep_core::token::Token;
use lockstep_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::error::{is_locked, superseded};
use crate::link::Link;
use crate::message::persistent;
use crate::progress::Book;

/// The broker looks once in a heartbeat, and gives a connection up when it has heard nothing twice.
const HEARTBEATS: u32 = 3;
/// How often who waits says so.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// `lockstep.holder.<pipeline>.<sink>`
pub(crate) fn queue_name(pipeline: &str, sink: &str) -> Result<ShortString> {
    own_queue("holder", pipeline, sink)
}

/// The name of a queue of the sink's own.
pub(crate) fn own_queue(what: &str, pipeline: &str, sink: &str) -> Result<ShortString> {
    ShortString::try_new(format!("lockstep.{what}.{pipeline}.{sink}")).map_err(|_| {
        let message = "the names of pipeline and sink are too long for that of a queue";
        Error::new(ErrorKind::Config, message).remedy("make one of them shorter")
    })
}

/// The right to publish. It lasts as long as the connection.
pub(crate) struct Holder {
    name: ShortString,
    place: String,
    token: Option<Token>,
    asked: Consumer,
    _channel: Channel,
}

/// What somebody writes who waits.
#[derive(Serialize, Deserialize)]
struct Request {
    token: String,
}

impl Holder {
    /// Takes the queue; waits for a former holder that the broker may not have given up yet.
    ///
    /// # Errors
    /// Of kind `Busy`, when another one has it, or somebody newer has written the position.
    pub(crate) async fn take(link: &Link, name: ShortString, book: &Book) -> Result<Self> {
        let deadline = Instant::now() + link.heartbeat * HEARTBEATS;
        let mut pause = Duration::from_millis(2);
        let mut ask_at = Instant::now();
        loop {
            if let Some(channel) = declare(link, &name).await? {
                return Self::hold(link, channel, name, book.token).await;
            }
            if let Some(token) = book.token
                && Instant::now() >= ask_at
            {
                // The one that holds it, or held it last, may be newer.
                match book.written_by(link).await? {
                    Some(theirs) if theirs > token => return Err(superseded(theirs)),
                    _ => ask(link, &name, token).await?,
                }
                ask_at = Instant::now() + ASK_EVERY;
            }
            if Instant::now() > deadline {
                return Err(held_by_another(&name).at(&*link.place));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    async fn hold(
        link: &Link,
        channel: Channel,
        name: ShortString,
        token: Option<Token>,
    ) -> Result<Self> {
        let options = BasicConsumeOptions {
            no_ack: true,
            exclusive: true,
            ..BasicConsumeOptions::default()
        };
        let consumer = channel.basic_consume(
            name.clone(),
            ShortString::default(),
            options,
            FieldTable::default(),
        );
        let consumer = consumer.await;
        let asked = consumer
            .map_err(|error| link.failed(format!("queue `{name}` cannot be read"), &error))?;
        Ok(Holder {
            place: link.place.clone(),
            name,
            token,
            asked,
            _channel: channel,
        })
    }

    /// Waits until the right is lost, and says why.
    pub(crate) async fn lost(&mut self) -> Error {
        loop {
            match self.asked.next().await {
                Some(Ok(request)) => match self.newer(&request.data) {
                    Some(token) => return superseded(token),
                    None => continue,
                },
                Some(Err(error)) => {
                    let what = "the connection to the broker has failed";
                    return crate::error::of(what, &error).at(&*self.place);
                }
                None => {
                    let what = format!("queue `{}` was deleted", self.name);
                    return Error::new(ErrorKind::Unavailable, what)
                        .remedy("leave it alone: it shows who writes")
                        .at(&*self.place);
                }
            }
        }
    }

    /// The token of a request, if it is newer. Who has none cannot be asked to go: nobody knows who is newer.
    fn newer(&self, request: &[u8]) -> Option<Token> {
        let request: Request = serde_json::from_slice(request).ok()?;
        let theirs = Token(request.token.parse().ok()?);
        self.token.filter(|ours| theirs > *ours).map(|_| theirs)
    }
}

/// The channel that has declared the queue; `None` when another connection has it.
async fn declare(link: &Link, name: &ShortString) -> Result<Option<Channel>> {
    let channel = link.channel().await?;
    let options = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel.queue_declare(name.clone(), options, FieldTable::default());
    match declared.await {
        Ok(_) => Ok(Some(channel)),
        Err(error) if is_locked(&error) => Ok(None),
        Err(error) => Err(link.failed(format!("queue `{name}` cannot be had"), &error)),
    }
}

/// Lets the holder know that somebody newer waits. A holder that is frozen does not hear it: the broker gives it up in time.
async fn ask(link: &Link, name: &ShortString, token: Token) -> Result<()> {
    let request = Request {
        token: token.to_string(),
    };
    let body = serde_json::to_vec(&request).unwrap_or_default();
    let channel = link.channel().await?;
    let sent = channel.basic_publish(
        ShortString::default(),
        name.clone(),
        BasicPublishOptions::default(),
        &body,
        persistent(),
    );
    // Nobody confirms it, and nobody has to: it is said again.
    sent.await
        .map(drop)
        .map_err(|error| link.failed("the holder cannot be asked", &error))
}

fn held_by_another(name: &ShortString) -> Error {
    Error::new(
        ErrorKind::Busy,
        format!("another connection holds the queue `{name}`"),
    )
    .remedy("another lockstep with the same pipeline and sink name is running: stop it, or give one of them another name")
}

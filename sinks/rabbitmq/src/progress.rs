//! How far each source got: one message in a durable queue of length one, which a newer one pushes out.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::Channel;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicGetOptions, BasicRejectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lockstep_core::position::SourceInfo;
use lockstep_core::progress::Progress;
use lockstep_core::token::Token;
use lockstep_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::config::ProgressQueue;
use crate::error::{is_not_found, superseded};
use crate::holder::own_queue;
use crate::link::Link;

/// How long the message may be with somebody who looks at it. He puts it back at once; or the broker does, when he has gone.
const ELSEWHERE: Duration = Duration::from_secs(5);
/// Positions are written this often at most.
const INTERVAL: Duration = Duration::from_secs(1);

/// Where the position is kept, and what it is.
pub(crate) struct Book {
    /// `lockstep.progress.<pipeline>.<sink>`
    pub(crate) queue: ShortString,
    kind: ProgressQueue,
    pipeline: String,
    sink: String,
    /// Of the lease, where one decides who writes.
    pub(crate) token: Option<Token>,
    sources: BTreeMap<String, Progress>,
    /// There is something that was not written.
    dirty: bool,
    /// When it was written last.
    written: Option<Instant>,
}

/// The message.
#[derive(Serialize, Deserialize)]
struct Written {
    pipeline: String,
    sink: String,
    /// Of the lease that it was written by, as text: the number does not fit a double.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// By `source/system/timeline/database`, with `/` and `%` inside a part as `%2F` and `%25`.
    sources: BTreeMap<String, Progress>,
}

/// What was found.
enum Found {
    Written(Written),
    /// There was no queue.
    Nothing,
    /// There was one, and nothing in it.
    Empty,
}

/// The source's name is in it because two sources may read one database through two slots.
fn key(source: &SourceInfo) -> String {
    let part = |text: &str| text.replace('%', "%25").replace('/', "%2F");
    format!(
        "{}/{}/{}/{}",
        part(&source.name),
        source.identity.system,
        source.identity.branch(),
        part(&source.identity.database)
    )
}

impl Book {
    pub(crate) fn new(
        pipeline: &str,
        sink: &str,
        token: Option<Token>,
        kind: ProgressQueue,
    ) -> Result<Self> {
        Ok(Book {
            queue: own_queue("progress", pipeline, sink)?,
            kind,
            pipeline: pipeline.to_owned(),
            sink: sink.to_owned(),
            token,
            sources: BTreeMap::new(),
            dirty: false,
            written: None,
        })
    }

    /// What is there of a source.
    pub(crate) fn progress(&self, source: &SourceInfo) -> Option<Progress> {
        self.sources.get(&key(source)).cloned()
    }

    /// Notes that this much of a source is confirmed.
    pub(crate) fn note(&mut self, source: &SourceInfo, progress: Progress) {
        self.sources.insert(key(source), progress);
        self.dirty = true;
    }

    /// When it has to be written; `None` when there is nothing new.
    pub(crate) fn due(&self) -> Option<Instant> {
        let now = Instant::now();
        self.dirty
            .then(|| self.written.map_or(now, |written| written + INTERVAL))
    }

    /// Makes it due.
    pub(crate) fn hurry(&mut self) {
        self.written = None;
    }

    /// The message, which counts as written from now on: should it fail, so does the sink.
    pub(crate) fn write(&mut self) -> Vec<u8> {
        self.dirty = false;
        self.written = Some(Instant::now());
        let written = Written {
            pipeline: self.pipeline.clone(),
            sink: self.sink.clone(),
            token: self.token.map(|token| token.to_string()),
            sources: self.sources.clone(),
        };
        // Texts and numbers only: it can be written.
        serde_json::to_vec(&written).unwrap_or_default()
    }

    /// Learns what a former holder has written, and makes the queue where it is missing. Whether a message has to be written at once: the
    /// first one, or one with a new token.
    ///
    /// # Errors
    /// Of kind `Busy`, when somebody with a newer token has written.
    pub(crate) async fn read(&mut self, link: &Link) -> Result<bool> {
        let patience = Instant::now() + ELSEWHERE;
        let mut pause = Duration::from_millis(5);
        let written = loop {
            match self.look(link).await? {
                Found::Written(written) => break written,
                Found::Nothing => {
                    self.declare(link).await?;
                    return Ok(true);
                }
                Found::Empty if Instant::now() < patience => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(200));
                }
                Found::Empty => {
                    tracing::warn!(
                        queue = self.queue.as_str(),
                        "the queue of the position is empty: what the source still has comes again"
                    );
                    self.declare(link).await?;
                    return Ok(true);
                }
            }
        };
        let theirs = written.token();
        if let (Some(ours), Some(theirs)) = (self.token, theirs)
            && theirs > ours
        {
            return Err(superseded(theirs));
        }
        // It may be of another kind by now: that has to be told.
        self.declare(link).await?;
        self.sources = written.sources;
        Ok(self.token != theirs)
    }

    /// The token that the position was written by.
    pub(crate) async fn written_by(&self, link: &Link) -> Result<Option<Token>> {
        Ok(match self.look(link).await? {
            Found::Written(written) => written.token(),
            Found::Nothing | Found::Empty => None,
        })
    }

    /// Looks at the message, and puts it back.
    async fn look(&self, link: &Link) -> Result<Found> {
        let channel = link.channel().await?;
        let message = match self.get(&channel).await {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(Found::Empty),
            Err(error) if is_not_found(&error) => return Ok(Found::Nothing),
            Err(error) => {
                let what = format!("the position in queue `{}` cannot be read", self.queue);
                return Err(link.failed(what, &error));
            }
        };
        serde_json::from_slice(&message.data)
            .map(Found::Written)
            .map_err(|cause| self.not_progress(link).source(cause))
    }

    async fn get(&self, channel: &Channel) -> lapin::Result<Option<BasicGetMessage>> {
        let message = channel
            .basic_get(self.queue.clone(), BasicGetOptions::default())
            .await?;
        if let Some(message) = &message {
            message.reject(BasicRejectOptions { requeue: true }).await?;
        }
        Ok(message)
    }

    fn not_progress(&self, link: &Link) -> Error {
        Error::new(
            ErrorKind::Protocol,
            format!("what is in queue `{}` is no position", self.queue),
        )
        .remedy("let nothing else write to the queue; purge it to start from what the source still has (rabbitmqctl purge_queue)")
        .at(&*link.place)
    }

    async fn declare(&self, link: &Link) -> Result<()> {
        let channel = link.channel().await?;
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let declared = channel.queue_declare(self.queue.clone(), options, self.arguments());
        declared.await.map(drop).map_err(|error| {
            let what = format!("the queue of the position, `{}`, cannot be had", self.queue);
            link.failed(what, &error)
        })
    }

    fn arguments(&self) -> FieldTable {
        let kind = match self.kind {
            ProgressQueue::Classic => "classic",
            ProgressQueue::Quorum => "quorum",
        };
        let mut table = FieldTable::default();
        table.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        table.insert("x-max-length".into(), AMQPValue::LongInt(1));
        table.insert(
            "x-overflow".into(),
            AMQPValue::LongString("drop-head".into()),
        );
        table
    }
}

impl Written {
    fn token(&self) -> Option<Token> {
        self.token.as_ref()?.parse().ok().map(Token)
    }
}

#[cfg(test)]
mod tests {
    use lockstep_core::position::{Lsn, Position, SourceIdentity};

    use super::*;

    fn source() -> SourceInfo {
        SourceInfo {
            name: "a/b".into(),
            identity: SourceIdentity {
                system: u64::MAX,
                timeline: 3,
                incarnation: 0,
                database: "100%".into(),
            },
        }
    }

    #[test]
    fn keys_are_unambiguous() {
        assert_eq!(key(&source()), "a%2Fb/18446744073709551615/3/100%25");
    }

    #[test]
    fn what_is_noted_is_written_once_and_read_back() {
        let token = Some(Token(u64::MAX));
        let mut book = Book::new("p", "s", token, ProgressQueue::Classic).expect("a book");
        assert_eq!(book.queue.as_str(), "lockstep.progress.p.s");
        assert!(book.due().is_none());
        let at = |commit, ordinal| Position {
            commit: Lsn(commit),
            ordinal,
        };
        let progress = Progress::new(at(0x16_B374_D848, 7), [at(0x16_B374_D900, 1)]);
        book.note(&source(), progress.clone());
        assert!(book.due().is_some_and(|due| due <= Instant::now()));
        let written: Written = serde_json::from_slice(&book.write()).expect("JSON");
        assert_eq!(written.token(), token);
        assert_eq!(written.sources[&key(&source())], progress);
        assert!(book.due().is_none());
        book.note(&source(), progress);
        assert!(book.due().is_some_and(|due| due > Instant::now()));
        book.hurry();
        assert!(book.due().is_some_and(|due| due <= Instant::now()));
    }

    #[test]
    fn names_that_are_too_long_are_config_errors() {
        let error = Book::new(&"x".repeat(250), "s", None, ProgressQueue::Classic)
            .err()
            .expect("too long");
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}

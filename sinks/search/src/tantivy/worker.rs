//! The thread that owns the index writer, and decides when to commit.
//!
//! A commit costs milliseconds, whatever it covers. So one follows at once when nothing else waits, but commits take at
//! most a fifth of the time; under load one covers all that came in a `commit_interval`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lockstep_core::batch::Batch;
use lockstep_core::durable::{Delivered, Receipt};
use lockstep_core::{Error, Result};
use tokio::sync::{mpsc, oneshot};

use super::engine::Engine;
use crate::together::Together;

/// Pause after a commit, in units of what it took.
const PAUSE: u32 = 4;

/// What the worker is asked to do.
pub(super) enum Command {
    Write(Arc<Batch>, Receipt),
    /// These belong into one commit.
    Together(Vec<(Arc<Batch>, Receipt)>),
    /// Commit, and say so.
    Flush(oneshot::Sender<()>),
}

/// Where an error waits when no batch does.
pub(super) type Fault = Arc<Mutex<Option<Error>>>;

pub(super) struct Worker {
    engine: Engine,
    inbox: mpsc::Receiver<Command>,
    /// The command that comes next: taken from the inbox already.
    next: Option<Command>,
    fault: Fault,
    /// Bytes of documents that a commit may cover: what the engine has not indexed yet is in memory.
    most_bytes: usize,
    interval: Duration,
    waiting: Vec<(Receipt, Delivered)>,
    /// When the oldest batch that waits was taken.
    since: Instant,
    /// Before this no commit happens just because nothing else waits.
    pause_until: Instant,
}

/// What to do next.
enum Next {
    Command(Command),
    Commit,
    Close,
}

impl Worker {
    pub(super) fn new(
        engine: Engine,
        inbox: mpsc::Receiver<Command>,
        fault: Fault,
        most_bytes: usize,
        interval: Duration,
    ) -> Self {
        let now = Instant::now();
        Worker {
            engine,
            inbox,
            next: None,
            fault,
            most_bytes,
            interval,
            waiting: Vec::new(),
            since: now,
            pause_until: now,
        }
    }

    /// Runs until the inbox is closed, or something fails. What is not committed then is not durable.
    pub(super) async fn run(mut self) {
        let Err(error) = self.work().await else {
            return;
        };
        // Closed first: whoever hears of the error finds the lock of the index free.
        let Worker {
            engine,
            waiting,
            fault,
            inbox,
            ..
        } = self;
        drop(engine);
        match waiting.into_iter().next() {
            Some((receipt, _)) => receipt.resolve(Err(error)),
            None => {
                tracing::warn!(%error, "the search index stops");
                *fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        }
        drop(inbox);
    }

    async fn work(&mut self) -> Result<()> {
        loop {
            match self.next().await {
                Next::Command(Command::Write(batch, receipt)) => self.take(batch, receipt).await?,
                Next::Command(Command::Together(parts)) => self.take_together(parts)?,
                Next::Command(Command::Flush(done)) => {
                    self.commit()?;
                    // The one who asked may be gone.
                    let _ = done.send(());
                }
                Next::Commit => self.commit()?,
                Next::Close => return Ok(()),
            }
        }
    }

    async fn next(&mut self) -> Next {
        // A sink that was dropped is about to be opened again: what waits will come once more.
        if self.inbox.is_closed() {
            return Next::Close;
        }
        if self.is_due() {
            return Next::Commit;
        }
        match self.waiting_command() {
            Ok(command) => return Next::Command(command),
            Err(mpsc::error::TryRecvError::Disconnected) => return Next::Close,
            Err(mpsc::error::TryRecvError::Empty) => {}
        }
        let received = if self.waiting.is_empty() {
            self.inbox.recv().await
        } else {
            let deadline = self.pause_until.min(self.since + self.interval);
            match tokio::time::timeout_at(deadline.into(), self.inbox.recv()).await {
                Ok(received) => received,
                Err(_) => return Next::Commit,
            }
        };
        received.map_or(Next::Close, Next::Command)
    }

    fn is_due(&self) -> bool {
        !self.waiting.is_empty()
            && (self.since.elapsed() >= self.interval
                || self.engine.uncommitted_bytes() >= self.most_bytes)
    }

    /// A command that has come.
    fn waiting_command(&mut self) -> Result<Command, mpsc::error::TryRecvError> {
        match self.next.take() {
            Some(command) => Ok(command),
            None => self.inbox.try_recv(),
        }
    }

    /// Applies a batch, with those that wait behind it.
    async fn take(&mut self, batch: Arc<Batch>, receipt: Receipt) -> Result<()> {
        let taken = Instant::now();
        if self.waiting.is_empty() {
            self.since = taken;
        }
        let mut first = self.waiting.len();
        self.waiting.push((receipt, Delivered::default()));
        let mut together = Together::new(batch);
        while self.next.is_none()
            && let Ok(command) = self.inbox.try_recv()
        {
            self.gather(command, &mut together);
        }
        let mut batch = together.join()?;
        if first > 0 && self.engine.needs_commit(&batch)? {
            self.gather_in_pause(&mut together).await;
            batch = together.join()?;
            self.commit_first(first)?;
            first = 0;
            self.since = taken;
        }
        let delivered = self.engine.apply(&batch)?;
        self.waiting[first].1 = delivered;
        // Nothing to write, and nothing before it that waits: a batch that only moves the position, or a replay.
        if first == 0 && delivered.written == 0 {
            self.answer(self.waiting.len());
        }
        Ok(())
    }

    /// Applies batches that belong into one commit: those of one source as one batch, so that none of them needs a commit of
    /// another.
    fn take_together(&mut self, parts: Vec<(Arc<Batch>, Receipt)>) -> Result<()> {
        let mut joined: Vec<Together> = Vec::new();
        let mut receipts = Vec::with_capacity(parts.len());
        for (batch, receipt) in parts {
            receipts.push(receipt);
            match joined.last_mut() {
                Some(last) if last.is_of(&batch) => last.push(batch),
                _ => joined.push(Together::new(batch)),
            }
        }
        let mut needs_commit = false;
        let mut batches = Vec::with_capacity(joined.len());
        for together in &joined {
            let batch = together.join()?;
            needs_commit |= self.engine.needs_commit(&batch)?;
            batches.push(batch);
        }
        if needs_commit {
            self.commit()?;
        }
        if self.waiting.is_empty() {
            self.since = Instant::now();
        }
        let first = self.waiting.len();
        for receipt in receipts {
            self.waiting.push((receipt, Delivered::default()));
        }
        for batch in batches {
            let delivered = self.engine.apply(&batch)?;
            self.waiting[first].1 += delivered;
        }
        Ok(())
    }

    /// Puts a batch with those that are to be written together; anything else comes next.
    fn gather(&mut self, command: Command, together: &mut Together) {
        match command {
            Command::Write(batch, receipt) if together.takes(&batch) => {
                self.waiting.push((receipt, Delivered::default()));
                together.push(batch);
            }
            other => self.next = Some(other),
        }
    }

    /// A commit that is needed to go on keeps to its share of the time as others do: what comes until then goes along.
    async fn gather_in_pause(&mut self, together: &mut Together) {
        let deadline = self.pause_until.min(self.since + self.interval);
        while self.next.is_none()
            && let Ok(Some(command)) =
                tokio::time::timeout_at(deadline.into(), self.inbox.recv()).await
        {
            self.gather(command, together);
        }
    }

    fn commit(&mut self) -> Result<()> {
        match self.waiting.len() {
            0 => Ok(()),
            all => self.commit_first(all),
        }
    }

    /// Commits when only so many of those that wait have been applied.
    fn commit_first(&mut self, count: usize) -> Result<()> {
        let began = Instant::now();
        self.engine.commit()?;
        self.pause_until = Instant::now() + began.elapsed() * PAUSE;
        self.answer(count);
        Ok(())
    }

    fn answer(&mut self, count: usize) {
        for (receipt, delivered) in self.waiting.drain(..count) {
            receipt.resolve(Ok(delivered));
        }
    }
}

//! Follows the log: one thread, one connection, one growing block.
//!
//! Reads are coalesced while the stream is busy: the server sends each change by itself, and waking for each one costs
//! both sides more than the change. After a short read the thread naps; as soon as the socket runs dry, what there is
//! goes on. A stream that was idle is read at once, and a transaction that it then sends goes on with its commit.

mod early;
mod leaving;
mod replay;
mod report;
mod settle;
mod shape;

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use lockstep_core::batch::{Batch, Branch, Transaction};
use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_core::feedback::Feedback;
use lockstep_core::memory::Budget;
use lockstep_core::position::{Lsn, SourceIdentity, SourceInfo};
use lockstep_core::schema::TableSchema;
use lockstep_core::source::{SourcePhase, SourceStatus};
use lockstep_pg::error::{from_server, protocol};
use lockstep_pg::sql::{quote_ident, quote_literal};
use lockstep_pg::wire::target::Target;
use lockstep_pg::wire::{Connection, Mode, connection, frame};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::assemble::{Assembler, Step};
use crate::catalog::{Catalog, Described};
use crate::fence::Wanted;
use crate::ledger::{Ledger, Seen};
use crate::server::identify;
use crate::slot::{self, Slot};
use crate::streamed::{Committed, Streams};
use crate::types::TypeCache;

/// A batch goes on when its block has grown to this size, even while more is coming.
const BLOCK: usize = 512 * 1024;
/// Room made before each read.
const ROOM: usize = 64 * 1024;
/// A read this long is followed by another without a nap: the socket was full.
const LONG_READ: usize = 64 * 1024;
/// A batch goes on when its first byte has waited this long, even while more is coming.
const AGE: Duration = Duration::from_millis(5);
/// A stream that has not been silent for this long, since this long, is busy.
const SILENCE: Duration = Duration::from_millis(1);
/// How soon the server is asked again how far it is, while somebody waits for it.
const HURRY: Duration = Duration::from_millis(2);
/// How often housekeeping is done.
const TICK: Duration = Duration::from_millis(100);
/// How often it is done at least while the stream is busy.
const KEEP: Duration = Duration::from_millis(500);
/// How long the slot may stay in use after the connection that used it was given up: the server notices with what it sends
/// next.
const RELEASE: Duration = Duration::from_secs(60);
/// Between two tries meanwhile.
const RETRY: Duration = Duration::from_millis(100);

/// Everything the thread needs.
pub struct Stream {
    pub target: Target,
    pub source: Arc<SourceInfo>,
    pub slot: String,
    pub publication: String,
    /// Tables to carry, with their schemas as they are now; rows of others are dropped unread.
    pub tables: Vec<(Described, Arc<TableSchema>)>,
    pub types: TypeCache,
    /// Where what is handed on begins.
    pub from: Lsn,
    /// Where the server is asked to begin; it begins where the slot stands if that is further on.
    pub begins: Lsn,
    /// Who the server said it is when it was decided to begin here.
    pub server: SourceIdentity,
    /// Where it is recorded how far the stream has come.
    pub ledger: Ledger,
    pub status_interval: Duration,
    /// Nap between reads of a busy stream; zero reads eagerly.
    pub nap: Duration,
    /// Receive large transactions while they are in progress.
    pub streaming: bool,
    /// Receive transactions when they are prepared.
    pub two_phase: bool,
    /// Where these are kept.
    pub directory: PathBuf,
    pub batches: mpsc::Sender<Result<Batch>>,
    pub feedback: Feedback,
    pub budget: Budget,
    pub status: SourceStatus,
    /// How far somebody waits for the stream to come.
    pub wanted: Arc<Wanted>,
    /// The server shuts down.
    pub departs: CancellationToken,
    pub shutdown: CancellationToken,
}

impl Stream {
    /// Runs until shutdown or an error. Blocks its thread.
    ///
    /// # Errors
    /// By kind: `Unavailable` when the connection ended, `Busy` when the slot is in use, `Lost` when its log is gone.
    pub fn run(mut self) -> Result<()> {
        // The kernel's default slack of 50 µs would stretch the naps by a quarter. Without the right to change it the
        // naps are longer, no more.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1000));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| {
                Error::new(ErrorKind::Storage, "cannot start a runtime for the stream")
                    .source(error)
            })?;
        runtime.block_on(async {
            let shutdown = self.shutdown.clone();
            let mut release = Instant::now();
            let asked = self.streaming;
            loop {
                let receives = asked.then_some(self.streaming);
                self.status
                    .update(|state| state.receives_in_progress = receives);
                let opened = tokio::select! {
                    biased;
                    () = shutdown.cancelled() => None,
                    opened = self.open(release) => Some(opened?),
                };
                let Some((connection, slot)) = opened else {
                    let seen = Seen {
                        confirmed: self.feedback.confirmed(),
                        tellable: Lsn::ZERO,
                        received: self.from,
                        last: None,
                        publication: &self.publication,
                    };
                    return self.ledger.close(&seen).await;
                };
                let mut receiver = Receiver::new(self, connection, slot.confirmed);
                let ended = receiver.follow().await;
                if !receiver.gives_up_streaming {
                    return receiver.end(ended).await;
                }
                self = receiver.without_streaming(ended).await?;
                release = Instant::now() + RELEASE;
            }
        })
    }

    /// A slot that decodes prepared transactions sends them to everybody who reads it, and cannot be switched back before
    /// PostgreSQL 18.
    fn follow_slot(&mut self, slot: &Slot) {
        if slot.two_phase && !self.two_phase {
            let source = &*self.source.name;
            tracing::warn!(
                source,
                slot = self.slot,
                "decodes prepared transactions although `two_phase` is false: it was switched once"
            );
            self.two_phase = true;
        }
    }

    /// Connects and starts the stream; returns the slot as it was before, too. Until `release` the slot may be in use.
    async fn open(&mut self, release: Instant) -> Result<(Connection, Slot)> {
        loop {
            match self.open_once().await {
                Err(error) if error.kind() == ErrorKind::Busy && Instant::now() < release => {
                    tokio::time::sleep(RETRY).await;
                }
                opened => return opened,
            }
        }
    }

    async fn open_once(&mut self) -> Result<(Connection, Slot)> {
        let mut connection = Connection::open(&self.target, Mode::Replication).await?;
        let slot = self.require_unchanged(&mut connection).await?;
        self.follow_slot(&slot);
        self.ledger.begin(self.two_phase).await?;
        // The first start that asks for it switches the slot: what was prepared before comes when it commits.
        let protocol = match (self.two_phase, self.streaming) {
            (true, true) => "proto_version '3', two_phase 'on', streaming 'on'",
            (true, false) => "proto_version '3', two_phase 'on'",
            (false, true) => "proto_version '2', streaming 'on'",
            (false, false) => "proto_version '1'",
        };
        // The server begins where the slot stands, and goes on to where it is asked to begin: a client that asks for more than it
        // has confirmed would lose changes.
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {} ({protocol}, publication_names {}, messages 'true')",
            quote_ident(&self.slot),
            self.begins,
            quote_literal(&quote_ident(&self.publication)).trim_start(),
        );
        connection.begin_stream(&command).await?;
        Ok((connection, slot))
    }

    /// The address may lead to another server by now, and a copy takes long enough for anything to happen to the slot.
    /// Returns it.
    ///
    /// # Errors
    /// `Unavailable`: it has to be decided anew.
    async fn require_unchanged(&self, connection: &mut Connection) -> Result<Slot> {
        let changed = |what: String| {
            Err(Error::new(ErrorKind::Unavailable, what).remedy("it is looked at again"))
        };
        let server = identify(connection).await?;
        if server != self.server {
            return changed(format!(
                "the server was {} a moment ago, and is {server} now",
                self.server
            ));
        }
        match slot::read(connection, &self.slot).await? {
            Some(slot) if slot.invalid.is_none() && slot.confirmed <= self.from => Ok(slot),
            Some(_) => changed(format!(
                "the slot {} does not stand where it did a moment ago",
                self.slot
            )),
            None => changed(format!("the slot {} is not there any more", self.slot)),
        }
    }
}

struct Receiver {
    stream: Stream,
    connection: Connection,
    assembler: Assembler,
    catalog: Option<Catalog>,
    /// Transactions in progress and prepared ones, when they are received.
    streams: Option<Streams>,
    /// Where the slot stood when the stream began.
    stands: Lsn,
    /// The stream has to go on without them.
    gives_up_streaming: bool,
    block: Vec<u8>,
    parsed: usize,
    received: Lsn,
    reported: Lsn,
    reported_at: Instant,
    read_at: Instant,
    /// When the server was first asked for an answer that has not come yet.
    asked_at: Option<Instant>,
    /// When the first bytes came after the last silence.
    awake_at: Instant,
    /// When housekeeping was done last.
    kept_at: Instant,
    /// When the first byte of the batch was read.
    begun_at: Option<Instant>,
    /// What a server that shuts down waits for.
    waiting: Option<leaving::Waiting>,
    tick: tokio::time::Interval,
}

/// How far a scan of the block came.
enum Scanned {
    /// To its last complete frame.
    All,
    /// To a table in a shape that has to be looked up.
    Define(Described),
    /// The same, and what came last is to be taken in behind that.
    DefineFirst(Described),
    /// To a question for our position.
    Asked,
    /// To the commit of a transaction that was kept.
    Committed(Box<Committed>),
    /// To word of a two-phase commit.
    Told(Branch),
}

impl Receiver {
    fn new(stream: Stream, mut connection: Connection, stands: Lsn) -> Self {
        let mut block = Vec::with_capacity(BLOCK + ROOM);
        block.extend_from_slice(&connection.take_buffered());
        let mut assembler = Assembler::new(Arc::clone(&stream.source), stream.from);
        for (described, schema) in &stream.tables {
            assembler.define(described.clone(), Some(Arc::clone(schema)));
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        stream.status.update(|state| {
            state.phase = SourcePhase::Streaming;
            state.problem = None;
            state.heard_now();
            (state.in_progress, state.in_progress_bytes) = (0, 0);
            (state.in_doubt, state.in_doubt_since_ms, state.in_doubt_from) = (None, None, None);
        });
        let from = stream.from;
        let early = stream.streaming || stream.two_phase;
        let streams = early.then(|| Streams::new(&stream.directory));
        tracing::info!(source = &*stream.source.name, slot = stream.slot, from = %from, "streaming");
        Receiver {
            stream,
            connection,
            assembler,
            catalog: None,
            streams,
            stands,
            gives_up_streaming: false,
            block,
            parsed: 0,
            received: from,
            reported: Lsn::ZERO,
            reported_at: Instant::now(),
            read_at: Instant::now(),
            asked_at: None,
            awake_at: Instant::now(),
            kept_at: Instant::now(),
            begun_at: None,
            waiting: None,
            tick,
        }
    }

    async fn follow(&mut self) -> Result<()> {
        self.report().await?;
        self.parse().await?;
        loop {
            let shutdown = self.stream.shutdown.clone();
            let room = self.room();
            let is_wanted = self.is_wanted();
            let wanted = Arc::clone(&self.stream.wanted);
            // PRIORITY 1: stop when told to. 2: bytes. 3: who waits for a place of the log. 4: housekeeping, which a busy
            // stream gets in `take_in`.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Err(stopping()),
                read = self.connection.fill(&mut self.block, room) => {
                    let read = read?;
                    self.take_in(read).await?;
                }
                () = wanted.changed() => {
                    self.show_early().await?;
                    self.hurry().await?;
                }
                () = tokio::time::sleep(HURRY), if is_wanted => self.hurry().await?,
                _ = self.tick.tick() => {
                    self.housekeeping().await?;
                    self.is_answered()?;
                }
            }
        }
    }

    /// Whether somebody waits for a place of the log that has not been told to be passed.
    fn is_wanted(&self) -> bool {
        self.assembler.said() < self.stream.wanted.get()
    }

    /// Tells how far the stream has come, and asks the server how far it is where that is not enough.
    async fn hurry(&mut self) -> Result<()> {
        self.tell_passed().await?;
        match self.is_wanted() {
            true => self.ask().await,
            false => Ok(()),
        }
    }

    async fn tell_passed(&mut self) -> Result<()> {
        if !self.is_wanted() {
            return Ok(());
        }
        self.flush().await?;
        match self.assembler.progress() {
            Some(batch) => self.deliver(batch).await,
            None => Ok(()),
        }
    }

    /// Hands on word of a two-phase commit, behind what came before it.
    async fn tell(&mut self, branch: Branch) -> Result<()> {
        if let Some(batch) = self.cut() {
            self.hand_on(batch).await?;
        }
        let source = Arc::clone(&self.stream.source);
        self.hand_on(Batch::of_branch(source, branch)).await
    }

    /// Takes in a read that was waited for; on a busy stream, also what comes behind it.
    async fn take_in(&mut self, read: usize) -> Result<()> {
        let now = Instant::now();
        if now.duration_since(self.read_at) >= SILENCE {
            self.awake_at = now;
        }
        self.stream.status.heard();
        self.begun_at.get_or_insert(now);
        self.parse().await?;
        let busy = now.duration_since(self.awake_at) >= SILENCE;
        if busy && !self.stream.nap.is_zero() {
            self.read_on(read).await?;
        }
        self.read_at = Instant::now();
        self.asked_at = None;
        // In the middle of a transaction the rest is on its way: the server sends none before its commit. A flush that
        // had to wait has taken in more.
        while self.assembler.between_transactions() || self.is_due() {
            self.flush().await?;
            if !self.assembler.has_changes() {
                break;
            }
        }
        self.show_early().await?;
        self.tell_passed().await?;
        if self.kept_at.elapsed() >= KEEP {
            self.housekeeping().await?;
        }
        Ok(())
    }

    /// Reads with naps in between, until nothing came during one.
    async fn read_on(&mut self, mut read: usize) -> Result<()> {
        loop {
            if self.is_due() {
                self.flush().await?;
            }
            if read < LONG_READ {
                // The thread is this stream's own: sleeping it is the point.
                std::thread::sleep(self.stream.nap);
            }
            // Lets the runtime look at the socket.
            tokio::task::yield_now().await;
            let room = self.room();
            match self.connection.fill(&mut self.block, room).now_or_never() {
                Some(more) => read = more?,
                None => return Ok(()),
            }
            self.begun_at.get_or_insert_with(Instant::now);
            self.parse().await?;
            if self.kept_at.elapsed() >= KEEP || self.stream.shutdown.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// Whether the batch is long or old enough to go on.
    fn is_due(&self) -> bool {
        self.block.len() >= BLOCK || self.begun_at.is_some_and(|begun| begun.elapsed() >= AGE)
    }

    /// Room for the next read: the rest of a long frame, or the usual.
    fn room(&self) -> usize {
        let missing = frame::needed(&self.block, self.parsed).map_or(0, |needed| {
            (self.parsed + needed).saturating_sub(self.block.len())
        });
        missing.max(ROOM)
    }

    /// Takes in all complete frames of the block.
    async fn parse(&mut self) -> Result<()> {
        loop {
            match self.scan()? {
                Scanned::All => return Ok(()),
                Scanned::Define(described) | Scanned::DefineFirst(described) => {
                    self.define(described).await?;
                }
                Scanned::Asked => self.answer().await?,
                Scanned::Committed(committed) => self.replay(committed).await?,
                Scanned::Told(branch) => self.tell(branch).await?,
            }
        }
    }

    /// Takes in complete frames up to one that needs more than memory.
    fn scan(&mut self) -> Result<Scanned> {
        while let Some(found) = frame::next(&self.block, self.parsed)? {
            let scanned = match found.tag {
                b'd' => self.copy_data(found)?,
                b'E' => return Err(self.server_said(found)),
                // The server ends the stream (shutdown of the server).
                b'c' => {
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        "the server ended the stream",
                    ));
                }
                b'N' | b'S' | b'C' | b'Z' => Scanned::All,
                tag => {
                    return Err(protocol(format!(
                        "a message of type {:?} inside the stream",
                        char::from(tag)
                    )));
                }
            };
            if !matches!(scanned, Scanned::DefineFirst(_)) {
                self.parsed = found.end;
            }
            match scanned {
                Scanned::All => {}
                other => return Ok(other),
            }
        }
        Ok(Scanned::All)
    }

    fn copy_data(&mut self, found: frame::Frame) -> Result<Scanned> {
        let payload = &self.block[found.start..found.end];
        match payload.first() {
            // XLogData: start, end, send time; start is the change's own LSN, or 0 for descriptions.
            Some(b'w') if payload.len() >= 25 => {
                let lsn = Lsn(be64(&payload[1..9]));
                self.received = self.received.max(lsn);
                if let Some(taken) = self.keep_piece(found.start + 25, found.end, lsn)? {
                    return Ok(taken);
                }
                let step = self
                    .assembler
                    .take(&self.block, found.start + 25, found.end, lsn)?;
                if self.stream.ledger.expects()
                    && let Some(transaction) = self.assembler.current()
                {
                    self.stream.ledger.see(transaction)?;
                }
                Ok(match step {
                    Step::Taken => Scanned::All,
                    Step::Define(described) => Scanned::Define(described),
                    Step::DefineFirst(described) => Scanned::DefineFirst(described),
                })
            }
            Some(b'k') if let Some(answer) = keepalive(payload) => {
                let lsn = Lsn(be64(&payload[1..9]));
                self.received = self.received.max(lsn);
                self.assembler.keepalive(lsn);
                if self.assembler.between_transactions() {
                    self.stream.ledger.passed(lsn)?;
                }
                Ok(if answer { Scanned::Asked } else { Scanned::All })
            }
            _ => Err(protocol("a stream message of an unknown kind")),
        }
    }

    /// Hands on what has been assembled, and takes in what was read meanwhile.
    async fn flush(&mut self) -> Result<()> {
        match self.cut() {
            Some(batch) => self.deliver(batch).await,
            None => Ok(()),
        }
    }

    /// What has been assembled; the block starts anew with the bytes that are not a whole frame yet.
    fn cut(&mut self) -> Option<Batch> {
        let begun = self.begun_at.take();
        if !self.assembler.has_changes() {
            self.block.drain(..self.parsed);
            self.parsed = 0;
            return None;
        }
        if let Some(begun) = begun {
            self.assembler.received(begun);
        }
        let bytes = if self.parsed * 4 < BLOCK {
            // A short batch must not keep a long block alive.
            let bytes = Bytes::copy_from_slice(&self.block[..self.parsed]);
            self.block.drain(..self.parsed);
            bytes
        } else {
            let mut next = Vec::with_capacity(BLOCK + ROOM);
            next.extend_from_slice(&self.block[self.parsed..]);
            let mut full = std::mem::replace(&mut self.block, next);
            full.truncate(self.parsed);
            Bytes::from(full)
        };
        self.parsed = 0;
        Some(self.assembler.flush(bytes))
    }

    async fn deliver(&mut self, batch: Batch) -> Result<()> {
        self.hand_on(batch).await?;
        self.parse().await
    }

    /// Waits for room in the budget and in the channel.
    async fn hand_on(&mut self, batch: Batch) -> Result<()> {
        // What is written outside transactions has no commit that another log could lack, nor has what is prepared.
        let mut transactions = batch.transactions().iter();
        let has_commit = |one: &&Transaction| one.xid != 0 && !one.is_early();
        if let Some(last) = transactions.rfind(has_commit) {
            let received = self.received.max(last.commit);
            let Stream {
                ledger,
                publication,
                ..
            } = &mut self.stream;
            ledger.hand_on(received, last, publication);
        }
        let size = batch.size();
        let budget = self.stream.budget.clone();
        let sender = self.stream.batches.clone();
        self.alive_during(async move {
            let permit = budget.take(size).await;
            sender
                .send(Ok(batch.with_permit(permit)))
                .await
                .map_err(|_| stopping())
        })
        .await
    }

    /// Waits for `work` and keeps the connection alive meanwhile: reads on as far as the block goes, to see and answer
    /// the server's questions; once it is full, reports often, as questions may wait behind what is not read.
    async fn alive_during<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::pin!(work);
        let shutdown = self.stream.shutdown.clone();
        let mut looked_at = self.parsed;
        loop {
            let room = self.room();
            let reads = self.block.len() < BLOCK;
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = shutdown.cancelled() => return Err(stopping()),
                read = self.connection.fill(&mut self.block, room), if reads => {
                    read?;
                    self.read_at = Instant::now();
                    self.asked_at = None;
                    self.begun_at.get_or_insert(self.read_at);
                    self.stream.status.heard();
                    if self.is_asked(&mut looked_at)? {
                        self.answer().await?;
                    }
                }
                _ = self.tick.tick() => {
                    self.report_if_due().await?;
                    if !reads && self.reported_at.elapsed() >= report::REPORT_AFTER {
                        self.report().await?;
                    }
                    self.leave_if_idle()?;
                }
            }
        }
    }

    /// Whether a whole frame from `at` on asks for our position; moves `at` behind the last one. The frames are taken in
    /// later, in their order.
    fn is_asked(&mut self, at: &mut usize) -> Result<bool> {
        let mut asked = false;
        while let Some(found) = frame::next(&self.block, *at)? {
            *at = found.end;
            match found.tag {
                b'E' => return Err(self.server_said(found)),
                b'd' => asked |= keepalive(&self.block[found.start..found.end]) == Some(true),
                _ => {}
            }
        }
        Ok(asked)
    }

    async fn housekeeping(&mut self) -> Result<()> {
        self.kept_at = Instant::now();
        self.tell_in_progress();
        // A transaction whose rest does not come must not hold back its beginning.
        self.flush().await?;
        if let Some(batch) = self.assembler.progress() {
            self.deliver(batch).await?;
        }
        self.report_if_due().await?;
        self.leave_if_idle()
    }

    fn server_said(&mut self, found: frame::Frame) -> Error {
        let mut bytes = BytesMut::from(&self.block[found.start - frame::HEADER..found.end]);
        match postgres_protocol::message::backend::Message::parse(&mut bytes) {
            Ok(Some(postgres_protocol::message::backend::Message::ErrorResponse(body))) => {
                let error = connection::server_error(&body);
                // PostgreSQL 14 to 18 cannot decode a transaction in progress that changes a table's shape after a savepoint
                // that had done so was rolled back ("could not map filenode"), nor get past it; without streaming they can.
                self.gives_up_streaming |= self.stream.streaming && error.code.starts_with("XX");
                from_server("go on streaming", error)
            }
            _ => protocol("an error of the server cannot be read"),
        }
    }
}

/// Primary keepalive: how far the server has decoded, send time, and whether it wants an answer now, which is what this
/// returns.
fn keepalive(payload: &[u8]) -> Option<bool> {
    match payload {
        [b'k', rest @ ..] if rest.len() == 17 => Some(rest[16] == 1),
        _ => None,
    }
}

fn stopping() -> Error {
    Error::new(ErrorKind::Stopping, "the pipeline is stopping")
}

fn be64(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

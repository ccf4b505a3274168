//! Follows the log: one thread, one connection, one growing block.
//!
//! Reads are coalesced while the stream is busy: the server sends each change by itself, and waking for each one costs
//! both sides more than the change. After a short read the thread naps; as soon as the socket runs dry, what there is
//! goes on. A stream that was idle is read at once, and a transaction that it then sends goes on with its commit.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use lockstep_core::batch::Batch;
use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_core::feedback::Feedback;
use lockstep_core::memory::Budget;
use lockstep_core::position::{Lsn, SourceIdentity, SourceInfo};
use lockstep_core::schema::{TableId, TableSchema};
use lockstep_core::source::{SourcePhase, SourceStatus};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::assemble::{Assembler, Step, now_micros};
use crate::catalog::{Catalog, Described};
use crate::error::{from_server, protocol};
use crate::ledger::{Ledger, Seen};
use crate::pgoutput::EPOCH_MICROS;
use crate::server::identify;
use crate::slot;
use crate::sql::{quote_ident, quote_literal};
use crate::standing::lost;
use crate::types::TypeCache;
use crate::wire::target::Target;
use crate::wire::{Connection, Mode, connection, frame};

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
/// How often housekeeping is done.
const TICK: Duration = Duration::from_millis(100);
/// How often it is done at least while the stream is busy.
const KEEP: Duration = Duration::from_millis(500);
/// How soon a newly confirmed position is reported.
const REPORT_AFTER: Duration = Duration::from_secs(1);
/// How many status intervals a server may take for the answer that we ask for at each of them. By default that makes the
/// minute after which PostgreSQL's own subscriptions give up, too.
const UNANSWERED: u32 = 6;
/// How long the server may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// Everything the thread needs.
pub struct Stream {
    pub target: Target,
    pub source: Arc<SourceInfo>,
    pub slot: String,
    pub publication: String,
    /// Tables to carry, with their schemas as they are now; rows of others are dropped unread.
    pub tables: Vec<(Described, Arc<TableSchema>)>,
    pub types: TypeCache,
    /// Where the slot stands.
    pub from: Lsn,
    /// Who the server said it is when it was decided to begin here.
    pub server: SourceIdentity,
    /// Where it is recorded how far the stream has come.
    pub ledger: Ledger,
    pub status_interval: Duration,
    /// Nap between reads of a busy stream; zero reads eagerly.
    pub nap: Duration,
    pub batches: mpsc::Sender<Result<Batch>>,
    pub feedback: Feedback,
    pub budget: Budget,
    pub status: SourceStatus,
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
            let opened = tokio::select! {
                biased;
                () = shutdown.cancelled() => None,
                opened = self.open() => Some(opened?),
            };
            let Some(connection) = opened else {
                let seen = Seen {
                    confirmed: self.feedback.confirmed(),
                    received: self.from,
                    last: None,
                    publication: &self.publication,
                };
                return self.ledger.close(&seen).await;
            };
            let mut receiver = Receiver::new(self, connection);
            let ended = receiver.follow().await;
            receiver.end(ended).await
        })
    }

    async fn open(&self) -> Result<Connection> {
        let mut connection = Connection::open(&self.target, Mode::Replication).await?;
        self.require_unchanged(&mut connection).await?;
        // 0/0 lets the slot say where to begin: a client that asks for more than it confirmed would lose changes.
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {}, messages 'true')",
            quote_ident(&self.slot),
            quote_literal(&quote_ident(&self.publication)).trim_start(),
        );
        connection.begin_stream(&command).await?;
        Ok(connection)
    }

    /// The address may lead to another server by now, and a copy takes long enough for anything to happen to the slot.
    ///
    /// # Errors
    /// `Unavailable`: it has to be decided anew.
    async fn require_unchanged(&self, connection: &mut Connection) -> Result<()> {
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
            Some(slot) if slot.invalid.is_none() && slot.confirmed <= self.from => Ok(()),
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
    tick: tokio::time::Interval,
}

/// How far a scan of the block came.
enum Scanned {
    /// To its last complete frame.
    All,
    /// To a table in a shape that has to be looked up.
    Define(Described),
    /// To a question for our position.
    Asked,
}

impl Receiver {
    fn new(stream: Stream, mut connection: Connection) -> Self {
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
        });
        let from = stream.from;
        tracing::info!(source = &*stream.source.name, slot = stream.slot, from = %from, "streaming");
        Receiver {
            stream,
            connection,
            assembler,
            catalog: None,
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
            tick,
        }
    }

    async fn follow(&mut self) -> Result<()> {
        self.report().await?;
        self.parse().await?;
        loop {
            let shutdown = self.stream.shutdown.clone();
            let room = self.room();
            // PRIORITY 1: stop when told to. 2: bytes. 3: housekeeping, which a busy stream gets in `take_in`.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Err(stopping()),
                read = self.connection.fill(&mut self.block, room) => {
                    let read = read?;
                    self.take_in(read).await?;
                }
                _ = self.tick.tick() => {
                    self.housekeeping().await?;
                    self.is_answered()?;
                }
            }
        }
    }

    /// A connection can be dead without a sign of it: behind a proxy or a lost peer that nothing has told about. Here
    /// nothing waits to be read, so an answer that is missing has not come.
    fn is_answered(&self) -> Result<()> {
        let patience = self.stream.status_interval * UNANSWERED;
        match self.asked_at.map(|asked| asked.elapsed()) {
            Some(silence) if silence >= patience => Err(Error::new(
                ErrorKind::Unavailable,
                format!("no answer from the server for {} s", silence.as_secs()),
            )
            .remedy("look at the server and at what is between; the connection is made anew")),
            _ => Ok(()),
        }
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
                Scanned::Define(described) => self.define(described).await?,
                Scanned::Asked => self.report().await?,
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
            self.parsed = found.end;
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

    /// A table in a shape that is new to us. Tables are told apart by oid. One of ours under another name is an older
    /// state of it, from before a rename that we know of, or one that has been renamed since: then what `tables`,
    /// transforms and keys say of it does not hold any more, and a person must decide.
    async fn define(&mut self, described: Described) -> Result<()> {
        let tables = &self.stream.tables;
        let ours = tables
            .iter()
            .position(|(known, _)| known.relation == described.relation)
            // Another table of that name: created anew, or an earlier one.
            .or_else(|| {
                tables
                    .iter()
                    .position(|(known, _)| known.id == described.id)
            });
        let Some(ours) = ours else {
            self.assembler.define(described, None);
            return Ok(());
        };
        let known = tables[ours].0.clone();
        let id = known.id.clone();
        let look_up = look_up(
            self.catalog.take(),
            self.stream.target.clone(),
            Arc::clone(&self.stream.source.name),
            self.stream.types.clone(),
            described.clone(),
            known,
        );
        let (catalog, mut schema, is_now) = self.alive_during(look_up).await?;
        self.catalog = Some(catalog);
        let (known, last) = &mut self.stream.tables[ours];
        schema.version = last.version + 1;
        tracing::info!(
            source = &*self.stream.source.name,
            table = %id,
            columns = schema.columns.len(),
            version = schema.version,
            "the table has a new shape"
        );
        let schema = Arc::new(schema);
        *last = Arc::clone(&schema);
        // An earlier table of that name gives its place to nobody: what it is called later is another matter.
        if is_now {
            *known = Described {
                id,
                ..described.clone()
            };
        }
        self.assembler.define(described, Some(schema));
        Ok(())
    }

    /// Hands on what has been assembled; the block starts anew with the bytes that are not a whole frame yet.
    async fn flush(&mut self) -> Result<()> {
        let begun = self.begun_at.take();
        if !self.assembler.has_changes() {
            self.block.drain(..self.parsed);
            self.parsed = 0;
            return Ok(());
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
        let batch = self.assembler.flush(bytes);
        self.deliver(batch).await
    }

    /// Waits for room in the budget and in the channel, and takes in what was read meanwhile.
    async fn deliver(&mut self, batch: Batch) -> Result<()> {
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
        .await?;
        self.parse().await
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
                        self.report().await?;
                    }
                }
                _ = self.tick.tick() => {
                    self.report_if_due().await?;
                    if !reads && self.reported_at.elapsed() >= REPORT_AFTER {
                        self.report().await?;
                    }
                }
            }
        }
    }

    /// Whether a whole frame from `at` on asks for our position; moves `at` behind the last one. The frames are taken in
    /// later, in their order.
    fn is_asked(&self, at: &mut usize) -> Result<bool> {
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
        // A transaction whose rest does not come must not hold back its beginning.
        self.flush().await?;
        if let Some(batch) = self.assembler.progress() {
            self.deliver(batch).await?;
        }
        self.report_if_due().await
    }

    async fn report_if_due(&mut self) -> Result<()> {
        self.keep().await?;
        let since = self.reported_at.elapsed();
        let news = self.confirmed() > self.reported;
        if since >= self.stream.status_interval || (news && since >= REPORT_AFTER) {
            self.report().await?;
        }
        Ok(())
    }

    /// What may be confirmed to the server.
    fn confirmed(&self) -> Lsn {
        self.stream
            .ledger
            .tellable(self.stream.feedback.confirmed())
    }

    /// Puts on record how far the stream has come, now and then.
    async fn keep(&mut self) -> Result<()> {
        let Receiver {
            stream, assembler, ..
        } = self;
        let seen = Seen {
            confirmed: stream.feedback.confirmed(),
            received: self.received.max(assembler.through()),
            last: assembler.last(),
            publication: &stream.publication,
        };
        let before = stream.ledger.trouble().is_some();
        stream.ledger.keep(&seen).await?;
        let trouble = stream.ledger.trouble();
        if before != trouble.is_some() {
            let source = &*stream.source.name;
            match trouble {
                Some(error) => tracing::warn!(source, %error, "nothing is confirmed for now"),
                None => tracing::info!(source, "positions are on record again"),
            }
            let problem = trouble.map(Error::to_string);
            stream.status.update(|state| state.problem = problem);
        }
        Ok(())
    }

    /// Puts on record how far the stream came, or that it cannot be continued, and says goodbye where that is possible.
    async fn end(&mut self, ended: Result<()>) -> Result<()> {
        let Receiver {
            stream, assembler, ..
        } = self;
        match ended {
            Err(error) if error.kind() == ErrorKind::Lost => {
                let cause = error.to_string();
                let cause = cause.trim_start_matches("LS011 ");
                stream.ledger.lose(cause).await?;
                Err(lost(cause))
            }
            ended => {
                let seen = Seen {
                    confirmed: stream.feedback.confirmed(),
                    received: self.received.max(assembler.through()),
                    last: assembler.last(),
                    publication: &stream.publication,
                };
                stream.ledger.close(&seen).await?;
                match ended {
                    Err(error) if error.kind() == ErrorKind::Stopping => self.say_goodbye().await,
                    ended => ended,
                }
            }
        }
    }

    /// Sends a standby status update: written, flushed, applied, the time, and whether an answer is wanted. It is when
    /// the server has been silent for long: a dead one must not look like an idle one.
    async fn report(&mut self) -> Result<()> {
        let confirmed = self.confirmed();
        let silent = self.read_at.elapsed() >= self.stream.status_interval;
        let mut out = BytesMut::with_capacity(39);
        out.put_u8(b'd');
        out.put_u32(4 + 34);
        out.put_u8(b'r');
        out.put_u64(self.received.0.max(confirmed.0));
        out.put_u64(confirmed.0);
        out.put_u64(confirmed.0);
        out.put_i64(now_micros() - EPOCH_MICROS);
        out.put_u8(u8::from(silent));
        self.connection.send(&out).await?;
        if silent {
            self.asked_at.get_or_insert_with(Instant::now);
        }
        self.reported = confirmed;
        self.reported_at = Instant::now();
        let received = self.received;
        self.stream.status.update(|state| {
            state.received = received.0;
            state.confirmed = confirmed.0;
        });
        Ok(())
    }

    fn server_said(&self, found: frame::Frame) -> Error {
        let mut bytes = BytesMut::from(&self.block[found.start - frame::HEADER..found.end]);
        match postgres_protocol::message::backend::Message::parse(&mut bytes) {
            Ok(Some(postgres_protocol::message::backend::Message::ErrorResponse(body))) => {
                from_server("go on streaming", connection::server_error(&body))
            }
            _ => protocol("an error of the server cannot be read"),
        }
    }

    /// Reports the last confirmed position, ends the stream, and waits until the server has heard it.
    async fn say_goodbye(&mut self) -> Result<()> {
        self.report().await?;
        self.connection.send(&[b'c', 0, 0, 0, 4]).await?;
        let heard = async {
            loop {
                while let Some(found) = frame::next(&self.block, self.parsed)? {
                    self.parsed = found.end;
                    if found.tag == b'Z' || found.tag == b'C' {
                        return Ok(());
                    }
                }
                self.block.drain(..self.parsed);
                self.parsed = 0;
                let room = self.room();
                self.connection.fill(&mut self.block, room).await?;
            }
        };
        // A server that does not answer has the position or will get it at the next start: nothing is lost.
        let _: Result<Result<()>, _> = tokio::time::timeout(GOODBYE, heard).await;
        Ok(())
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

/// The schema of a table in a shape that is new to us, under the name of the one that we know; whether it is that one by now;
/// and the catalog that was asked.
///
/// # Errors
/// Of kind `Setup` when the table that we know has been renamed.
async fn look_up(
    catalog: Option<Catalog>,
    target: Target,
    source: Arc<str>,
    types: TypeCache,
    mut described: Described,
    known: Described,
) -> Result<(Catalog, TableSchema, bool)> {
    let open = catalog.filter(|catalog| !catalog.client().is_closed());
    let mut catalog = match open {
        Some(catalog) => catalog,
        None => Catalog::new(crate::sql::connect(&target).await?, source, types),
    };
    let at = |error: Error| error.at(format!("table {}", known.id));
    let is_known = known.relation == described.relation;
    let mut is_now = is_known;
    if described.id != known.id || !is_known {
        let now = catalog.name(described.relation).await.map_err(at)?;
        match now {
            Some(now) if is_known && now != known.id => return Err(at(renamed(&now))),
            // One that was dropped since is nobody's to decide about.
            now => is_now |= now.is_some_and(|now| now == known.id),
        }
        described.id = known.id.clone();
    }
    let schema = catalog.schema(&described).await.map_err(at)?;
    Ok((catalog, schema, is_now))
}

fn renamed(now: &TableId) -> Error {
    Error::new(ErrorKind::Setup, format!("was renamed to {now}; nothing behind that is confirmed")).remedy(format!(
        "rename it back, or put {now} in its place (in `tables`, transforms and inputs) and start again: rows from there on \
         go under the new name, and `lockstep snapshot FILE --table {now}` brings the others"
    ))
}

fn stopping() -> Error {
    Error::new(ErrorKind::Stopping, "the pipeline is stopping")
}

fn be64(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

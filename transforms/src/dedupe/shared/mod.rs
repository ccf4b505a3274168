//! The judge's memory in Redis, shared by replicas of the pipeline.
//!
//! | key | holds |
//! |---|---|
//! | `lockstep:dedupe:{<pipeline>/<transform>}:meta` | a hash: format, generation, number of writes, the logs, where the sweeper is |
//! | `…:claims` | a hash: digest of an idempotency key → history of claims |
//! | `…:rows` | a hash: digest of a row → history of standings; only rows that were ever held |
//!
//! The histories are the same bytes as on disk. A batch is one look-up of all its keys and rows, and one write of what it
//! has found out; the write compares each history with what was read, so two processes that work at once, or one that was
//! thought dead, never take each other's facts away: the one that comes second looks again. Facts carry positions, so both
//! judge alike (I5).
//!
//! Keys carry no TTL: their age is measured in commit time, which stands still while the pipeline does, and Redis' clock does
//! not. A sweeper walks over a few entries with every write.
//!
//! The server may lose what it has answered: by a restart without persistence, a failover, eviction. The store counts its
//! writes and its entries, so this is seen before the next verdict, and not taken for keys that were never there.

mod preflight;
mod record;
#[cfg(test)]
mod tests;
mod wire;
mod written;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use lockstep_core::position::SourceInfo;
use lockstep_core::transform::{StateSize, TransformContext};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_redis::{Command, Link, Node, Server};
use redis::Value;

use super::config::{OnLost, RedisStore};
use super::expiry::GRACE_MICROS;
use super::history::Moment;
use super::judge::{self, Case, Verdict, Window};
use super::notes::{Logs, Notes};
pub(super) use preflight::look;
use record::{Known, Record};
use wire::{Answer, Args, Keys, Meta, SCRIPTS};
use written::{Changed, collect, fill};

/// Changes with the layout of what is kept.
const FORMAT: u64 = 1;
/// Histories per write: a call blocks the server for a microsecond or two for each.
const PER_WRITE: usize = 2000;
/// Entries that the sweeper looks at for each that is written: a round over all of them takes half as many writes as there
/// are, so a third of them or so are spent at any time. One costs the server nearly as much as looking a key up and writing it.
const SWEPT_PER_WRITE: usize = 2;
/// How often a batch is judged anew at once when another process has written in between.
const ATTEMPTS: usize = 8;
/// How often the server is asked for the memory that the store takes.
const SIZE_EVERY: Duration = Duration::from_secs(10);

/// The memory.
pub(super) struct Shared {
    server: Server,
    on_lost: OnLost,
    keys: Keys,
    window: Window,
    record: Record,
    link: Option<Link>,
    /// As of the last answer; before the first, what the record says.
    known: Option<Known>,
    logs: Logs,
    /// Of `logs`.
    version: u64,
    notes: Notes,
    size: Option<StateSize>,
    bytes: Option<u64>,
    measured: Option<Instant>,
}

/// How an attempt at a batch ended.
enum Attempt {
    Done,
    /// Another process was quicker.
    Again,
}

impl Shared {
    /// Reads what this machine knows of the store; the server is reached by [`Shared::ready`].
    ///
    /// # Errors
    /// Of kind `Storage`.
    pub(super) fn open(
        config: &RedisStore,
        context: &TransformContext,
        window: Window,
    ) -> Result<Self> {
        let record = Record::open(&context.state)?;
        Ok(Shared {
            server: config.server(),
            on_lost: config.on_lost,
            keys: Keys::new(&context.pipeline, &context.name),
            window,
            known: record.kept().cloned(),
            record,
            link: None,
            logs: Logs::default(),
            version: 0,
            notes: Notes::default(),
            size: None,
            bytes: None,
            measured: None,
        })
    }

    /// Connects, unless it is connected, and sees whether the store is the one that was used before.
    ///
    /// # Errors
    /// Those of [`Link`]; kind `Lost` when the server has lost a part of the store.
    pub(super) async fn ready(&mut self) -> Result<()> {
        if self.link.is_some() {
            return Ok(());
        }
        let link = Link::open(&self.server).await?;
        let known = self.known.clone().unwrap_or_default();
        let adopt = u8::from(self.on_lost == OnLost::Continue);
        let args = Args::default()
            .text(known.generation)
            .text(known.writes)
            .text(new_generation())
            .text(FORMAT)
            .text(adopt);
        let reply =
            lockstep_redis::run(&link, 1, |_, how| self.keys.call(&SCRIPTS.open, how, &args));
        let reply = reply.await?.pop().unwrap_or(Value::Nil);
        let rest = self.done(wire::answer(&link, &SCRIPTS.open, reply)?)?;
        let mut rest = rest.into_iter();
        if let Some(Value::BulkString(why)) = rest.next()
            && !why.is_empty()
        {
            let why = String::from_utf8_lossy(&why);
            tracing::warn!(server = link.place(), %why, "the dedupe store has lost keys; repeats of them pass");
        }
        self.take_in(rest.next())?;
        self.link = Some(link);
        Ok(())
    }

    fn take_in(&mut self, meta: Option<Value>) -> Result<()> {
        let meta = Meta::read(meta).ok_or_else(|| wire::foreign(&self.keys))?;
        self.known = Some(Known {
            generation: meta.generation,
            writes: meta.writes,
        });
        (self.logs, self.version) = (meta.logs, meta.version);
        self.count(meta.claims, meta.rows);
        Ok(())
    }

    fn count(&mut self, keys: u64, held: u64) {
        let bytes = self.bytes;
        self.size = Some(StateSize { keys, held, bytes });
    }

    /// How much there is; `None` before the server has been reached.
    pub(super) fn size(&self) -> Option<StateSize> {
        self.size
    }

    /// Records how far the store has come, before positions are confirmed. Waits for the disk.
    ///
    /// # Errors
    /// Of kind `Storage`.
    pub(super) fn note(&mut self) -> Result<()> {
        match &self.known {
            Some(known) => self.record.keep(known),
            None => Ok(()),
        }
    }

    /// The number of the log that a source reads. A new one is written down at once, and the one before it is given up.
    ///
    /// # Errors
    /// As for [`Shared::ready`].
    pub(super) async fn log(&mut self, source: &SourceInfo) -> Result<u16> {
        self.ready().await?;
        if let Some(number) = self.logs.read_by(&source.name, &source.identity) {
            return Ok(number);
        }
        let args = self.args().text(&source.name).text(&source.identity);
        let answer = self.ask(&SCRIPTS.log, &args).await?;
        let rest = self.done(answer)?;
        self.take_in(rest.into_iter().next())?;
        let number = self.logs.read_by(&source.name, &source.identity);
        number.ok_or_else(|| wire::foreign(&self.keys))
    }

    /// See [`judge::all`]; what was found out is in the server when this returns.
    ///
    /// # Errors
    /// As for [`Shared::ready`]; kind `Busy` when other processes are always quicker.
    pub(super) async fn judge(
        &mut self,
        cases: &[Case],
        verdicts: &mut Vec<Verdict>,
    ) -> Result<()> {
        for _ in 0..ATTEMPTS {
            verdicts.clear();
            if let Attempt::Done = self.attempt(cases, verdicts).await? {
                return Ok(());
            }
        }
        let message = "another process works on the same changes";
        Err(Error::new(ErrorKind::Busy, message)
            .at(self.server.place())
            .remedy("give each pipeline a `name` of its own"))
    }

    async fn attempt(&mut self, cases: &[Case], verdicts: &mut Vec<Verdict>) -> Result<Attempt> {
        self.ready().await?;
        let mut moments = cases.iter().filter_map(Case::at);
        if moments.any(|at| !self.logs.counts(at.source)) {
            // The next attempt begins by saying which log it is.
            let message = "another replica reads another log of this source";
            return Err(Error::new(ErrorKind::Busy, message).at(self.server.place()));
        }
        self.notes.clear(0);
        for case in cases {
            if let Some(key) = case.key() {
                self.notes.claims.entry(key).or_default();
            }
            for row in case.rows().into_iter().flatten() {
                self.notes.rows.entry(row).or_default();
            }
        }
        if !self.notes.claims.is_empty() || !self.notes.rows.is_empty() {
            match self.fetch().await? {
                Attempt::Done => {}
                Attempt::Again => return Ok(Attempt::Again),
            }
        }
        judge::all(&mut self.notes, &self.window, cases, verdicts)?;
        match cases.iter().rev().find_map(Case::at) {
            Some(last) => self.write(last).await,
            None => Ok(Attempt::Done),
        }
    }

    /// Reads what is known of the keys and rows in the notes.
    async fn fetch(&mut self) -> Result<Attempt> {
        let (claims, rows) = (&self.notes.claims, &self.notes.rows);
        let args = self
            .args()
            .text(self.version)
            .text(claims.len())
            .digests(claims.keys())
            .digests(rows.keys());
        let mut rest = match self.ask(&SCRIPTS.look, &args).await? {
            Answer::Logs => {
                self.leave();
                return Ok(Attempt::Again);
            }
            answer => self.done(answer)?.into_iter(),
        };
        let mut numbers = || rest.next().as_ref().and_then(wire::number);
        let (Some(writes), Some(sequence)) = (numbers(), numbers()) else {
            return Err(wire::foreign(&self.keys));
        };
        let logs = &self.logs;
        let read = fill(&mut self.notes.claims, rest.next(), logs)
            .and_then(|()| fill(&mut self.notes.rows, rest.next(), logs));
        if read.is_none() {
            return Err(wire::foreign(&self.keys));
        }
        self.notes.sequence = sequence;
        if let Some(known) = &mut self.known {
            known.writes = writes;
        }
        Ok(Attempt::Done)
    }

    /// Writes what the notes have changed: keys first, so that a part of it, after a crash, is judged like none of it.
    async fn write(&mut self, last: &Moment) -> Result<Attempt> {
        let mut changed: Vec<Changed> = Vec::new();
        collect(&self.notes.claims, true, &mut changed);
        collect(&self.notes.rows, false, &mut changed);
        for part in changed.chunks(PER_WRITE) {
            let keys = part.iter().filter(|changed| changed.is_key).count();
            let oldest = part.iter().map(|changed| changed.since).min();
            let mut args = self
                .args()
                .text(self.version)
                .text(last.source)
                .text(last.micros)
                .text(self.notes.sequence)
                .text(oldest.unwrap_or(last.micros))
                .text(keys);
            for changed in part {
                args.push(&changed.digest.0);
                args.push(&changed.was);
                args.push(&changed.is);
            }
            let sweep = self.sweep(keys, part.len() - keys);
            let link = self.link()?;
            let calls = [(&SCRIPTS.write, &args), (&SCRIPTS.sweep, &sweep)];
            let replies = lockstep_redis::replies(&link, calls.len(), |index, how| {
                let (script, args) = calls[index];
                self.keys.call(script, how, args)
            });
            let mut replies = self.or_leave(replies.await)?.into_iter();
            let (written, swept) = (replies.next(), replies.next());
            let answer = wire::answer(&link, &SCRIPTS.write, written.unwrap_or(Value::Nil));
            let mut rest = match self.or_leave(answer)? {
                Answer::Conflict => return Ok(Attempt::Again),
                Answer::Logs => {
                    self.leave();
                    return Ok(Attempt::Again);
                }
                answer => self.done(answer)?.into_iter(),
            };
            let checked = link.check(&swept.unwrap_or(Value::Nil));
            self.or_leave(checked)?;
            let mut numbers = || rest.next().as_ref().and_then(wire::number);
            let (Some(writes), Some(keys), Some(held)) = (numbers(), numbers(), numbers()) else {
                return Err(wire::foreign(&self.keys));
            };
            if let Some(known) = &mut self.known {
                known.writes = writes;
            }
            self.count(keys, held);
        }
        self.measure().await?;
        Ok(Attempt::Done)
    }

    /// The sweeper's share when so many keys and rows are written.
    fn sweep(&self, keys: usize, rows: usize) -> Args {
        let age = self.window.micros.saturating_add(GRACE_MICROS);
        let outlived = self.window.outlived();
        let generation = self.known.as_ref().map(|known| &*known.generation);
        Args::default()
            .text(generation.unwrap_or_default())
            .text(age)
            .text(outlived.map_or_else(String::new, |keys| keys.to_string()))
            .text(keys * SWEPT_PER_WRITE)
            .text(rows * SWEPT_PER_WRITE)
    }

    /// Asks for the memory that the store takes, now and then. A server that does not tell is no error.
    async fn measure(&mut self) -> Result<()> {
        if self.measured.is_some_and(|at| at.elapsed() < SIZE_EVERY) {
            return Ok(());
        }
        let link = self.link()?;
        let asked = self.keys.histories().map(|key| {
            let mut cmd = redis::cmd("MEMORY");
            cmd.arg("USAGE").arg(key).arg("SAMPLES").arg(16);
            let node = Node::of_key(key);
            Command { cmd, node }
        });
        let replies = link.ask(asked.into()).await;
        let replies = self.or_leave(replies)?;
        let known = |reply: &Value| match reply {
            Value::Nil => Some(0),
            reply => wire::number(reply),
        };
        self.bytes = replies.iter().map(known).sum();
        self.measured = Some(Instant::now());
        if let Some(size) = self.size {
            self.count(size.keys, size.held);
        }
        Ok(())
    }

    /// The first two arguments of most calls.
    fn args(&self) -> Args {
        let known = self.known.clone().unwrap_or_default();
        Args::default().text(known.generation).text(known.writes)
    }

    async fn ask(&mut self, script: &lockstep_redis::Script, args: &Args) -> Result<Answer> {
        let link = self.link()?;
        let replies =
            lockstep_redis::replies(&link, 1, |_, how| self.keys.call(script, how, args)).await;
        let reply = self.or_leave(replies)?.pop().unwrap_or(Value::Nil);
        let answer = wire::answer(&link, script, reply);
        self.or_leave(answer)
    }

    fn link(&self) -> Result<Link> {
        let away = || Error::new(ErrorKind::Unavailable, "there is no connection");
        self.link.clone().ok_or_else(away)
    }

    /// After a failure, the store is opened anew: whatever server answers then is asked what it has.
    fn or_leave<T>(&mut self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.leave();
        }
        result
    }

    fn leave(&mut self) {
        self.link = None;
    }

    /// What a script returns when all is well.
    fn done(&mut self, answer: Answer) -> Result<Vec<Value>> {
        let place = self.server.place();
        let error = match answer {
            Answer::Done(rest) => return Ok(rest),
            Answer::Lost(why) => {
                self.leave();
                self.lost(&why)
            }
            Answer::Format(format) => Error::new(
                ErrorKind::Storage,
                format!(
                    "the dedupe store is of format {format}, and this version reads format {FORMAT}"
                ),
            )
            .remedy("run the version that wrote it, or give the pipeline another `name`"),
            Answer::Full => Error::new(
                ErrorKind::Storage,
                "the dedupe store has seen more than 65536 logs",
            )
            .remedy("delete its keys to begin with an empty memory"),
            Answer::Logs | Answer::Conflict => Error::new(
                ErrorKind::Protocol,
                "the dedupe store answers what was not asked",
            ),
        };
        Err(error.at(place))
    }

    fn lost(&self, why: &str) -> Error {
        let message = format!("the dedupe store has lost what it knew: {why}");
        if self.on_lost == OnLost::Continue {
            // Numbers of logs may be others now: the batch is judged from the beginning.
            return Error::new(ErrorKind::Unavailable, message)
                .remedy("nothing: it goes on with what is left, as `on_lost` says");
        }
        Error::new(ErrorKind::Lost, message).remedy(
            "restore the server's data; if only what was not confirmed yet is gone, a new start is enough. To go on without \
             it, write on_lost = \"continue\" in the store's section: repeats of lost keys then pass",
        )
    }
}

/// Not a secret, and needs no good randomness: it tells one empty store from the next.
fn new_generation() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

//! Writes on their way: put together in one buffer, sent as script calls of many keys.

mod step;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use lockstep_core::position::{Position, SourceInfo};
use lockstep_core::refusal::{Refusals, reason};
use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_redis::{Command, Link, Node, errors};
use redis::cluster_routing::Slot;

use crate::fence::Fence;
use crate::keys;
use crate::scripts::{self, Done, How, Script};
use crate::version::Version;
use crate::writer::Reached;

/// A flush goes out when it holds this much, however many batches that is.
pub(crate) const FULL_BYTES: usize = 256 << 10;
const FULL_WRITES: usize = 2048;
/// Words that one call may have at most: servers before 7.0 take 1,048,576, and a step holds up all other clients.
const STEP_WORDS: usize = 200_000;
/// Bytes that one call may have at most, for the same reason.
const STEP_BYTES: usize = 64 << 20;
/// Words of a write in a step beside its own: key, companion, script and version.
const STEP_WORDS_EACH: usize = 4;
/// The longest value a server takes unless `proto-max-bulk-len` says otherwise.
const MAX_VALUE: usize = 512 << 20;

/// How writes are grouped and how long they live.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Keys per call.
    pub(crate) keys: usize,
    /// Payload bytes per call.
    pub(crate) bytes: usize,
    /// How long rows live, in milliseconds; 0 is for ever.
    pub(crate) ttl: u64,
    /// How long tombstones live, in milliseconds.
    pub(crate) tombstone_ttl: u64,
    /// On a single server: the channel that is told which rows were written.
    pub(crate) notify: Option<String>,
    /// Where a lease decides who writes.
    pub(crate) fence: Option<Fence>,
}

impl Limits {
    /// As scripts take it.
    pub(crate) fn channel(&self) -> &str {
        self.notify.as_deref().unwrap_or_default()
    }
}

/// Writes that are sent together. Keys of one flush may repeat: scripts compare versions, so the order of calls does not
/// matter, and within a call it is the order of the writes.
#[derive(Default)]
pub(crate) struct Flush {
    bytes: Vec<u8>,
    /// Where words of writes are in `bytes`.
    words: Vec<Range<usize>>,
    writes: Vec<Write>,
    /// Where the writes come from; neighbours share an entry.
    origins: Vec<(Arc<SourceInfo>, Arc<TableSchema>)>,
    /// Batches whose last write is in here.
    pub(crate) jobs: usize,
    /// In a cluster: all of it is one step for each hash slot, see [`Flush::fits_a_step`].
    pub(crate) whole: bool,
    /// On a single server: what of sources is there when all of this is.
    reached: Vec<Reached>,
}

struct Write {
    script: Script,
    key: Range<usize>,
    version: Version,
    /// Index into `origins`, and the position of the change there.
    origin: usize,
    position: Position,
    /// Indices into `words`.
    args: Range<usize>,
    payload: usize,
}

impl Write {
    /// Bytes of its words in a call, roughly.
    fn bytes(&self) -> usize {
        2 * self.key.len() + 64 + self.payload
    }
}

/// What the server did with a flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Writes that were older than what the server holds.
    pub(crate) stale: u64,
    /// Rows that were to keep columns of a hash that is not there.
    pub(crate) gaps: u64,
}

impl Flush {
    pub(crate) fn is_empty(&self) -> bool {
        !self.has_effect() && self.jobs == 0
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= FULL_BYTES || self.writes.len() >= FULL_WRITES
    }

    /// Whether one call can carry all of it.
    pub(crate) fn fits_a_step(&self) -> bool {
        let words = self.words.len() + STEP_WORDS_EACH * self.writes.len();
        words <= STEP_WORDS && self.bytes.len() <= STEP_BYTES
    }

    /// Says which change the next writes come from, when it is not that of the last ones.
    pub(crate) fn of(&mut self, source: &Arc<SourceInfo>, table: &Arc<TableSchema>) {
        let same = |(known, schema): &(Arc<SourceInfo>, Arc<TableSchema>)| {
            Arc::ptr_eq(known, source) && Arc::ptr_eq(schema, table)
        };
        if !self.origins.last().is_some_and(same) {
            self.origins.push((Arc::clone(source), Arc::clone(table)));
        }
    }

    /// Begins a write of the change at `position`, of the table last named to [`Flush::of`]; `key` appends the key, `args` appends the words. Returns the payload's size.
    pub(crate) fn write(
        &mut self,
        script: Script,
        (version, position): (Version, Position),
        key: impl FnOnce(&mut Vec<u8>),
        args: impl FnOnce(&mut Words<'_>) -> Result<()>,
    ) -> Result<usize> {
        let start = self.bytes.len();
        key(&mut self.bytes);
        let key = start..self.bytes.len();
        let first = self.words.len();
        args(&mut Words(self))?;
        let payload = self.bytes.len() - key.end;
        if payload > MAX_VALUE {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "the row at {} takes {payload} bytes, more than the server's 512 MiB",
                    String::from_utf8_lossy(&self.bytes[key])
                ),
            )
            .because(reason::TOO_LARGE)
            .remedy("leave the large column out with a `project` transform"));
        }
        self.writes.push(Write {
            script,
            key,
            version,
            origin: self.origins.len().saturating_sub(1),
            position,
            args: first..self.words.len(),
            payload,
        });
        Ok(payload)
    }

    /// Sends everything and reads every reply.
    ///
    /// # Errors
    /// The first error of any call; others may have been carried out. A refusal names every change that is refused.
    pub(crate) async fn send(&self, link: &Link, limits: &Limits) -> Result<Tally> {
        if self.whole {
            return self.send_whole(link, limits).await;
        }
        let calls = self.calls(link.is_cluster(), limits);
        let mut tally = Tally::default();
        let mut refused = self.call(link, limits, &calls, &mut tally).await?;
        if refused.is_empty() {
            return Ok(tally);
        }
        // A call ends at the first key that the server refuses: each write by itself shows which those are. Versions make
        // it harmless that some are carried out twice.
        let alone: Vec<Call> = refused
            .drain(..)
            .flat_map(|(call, _)| calls[call].each())
            .collect();
        let mut refusals = Refusals::default();
        for (call, error) in self.call(link, limits, &alone, &mut tally).await? {
            let write = &self.writes[alone[call].writes[0]];
            refusals.take::<()>(Err(self.about(write, error)))?;
        }
        refusals.finish()?;
        Ok(tally)
    }

    /// Sends everything as one step for each hash slot.
    async fn send_whole(&self, link: &Link, limits: &Limits) -> Result<Tally> {
        let calls = self.steps(link.is_cluster());
        let build = |index: usize, how| self.command(&calls[index], how, limits);
        let replies = scripts::run(link, calls.len(), build).await?;
        let mut tally = Tally::default();
        let mut refusals = Refusals::default();
        for (call, reply) in calls.iter().zip(&replies) {
            match scripts::done(link, call.script, reply)? {
                Done::All(stale, gaps) => {
                    tally.stale += stale;
                    tally.gaps += gaps;
                }
                Done::Nothing(refused) => {
                    for write in refused.into_iter().filter_map(|at| call.writes.get(at)) {
                        let error = wrong_type(link.is_cluster()).at(link.place());
                        refusals.take::<()>(Err(self.about(&self.writes[*write], error)))?;
                    }
                }
                Done::NotNext { .. } => return Err(link.unexpected(call.script.name(), reply)),
            }
        }
        refusals.finish()?;
        Ok(tally)
    }

    /// All writes as one call; in a cluster, as one for each hash slot.
    fn steps(&self, cluster: bool) -> Vec<Call> {
        let mut steps: Vec<Call> = Vec::new();
        let mut open: HashMap<Option<Slot>, usize> = HashMap::new();
        for (index, write) in self.writes.iter().enumerate() {
            let slot = cluster.then(|| Slot::for_key(&self.bytes[write.key.clone()]));
            let at = *open.entry(slot).or_insert(steps.len());
            if at == steps.len() {
                steps.push(Call {
                    script: Script::Whole,
                    slot,
                    writes: Vec::new(),
                    payload: 0,
                });
            }
            steps[at].writes.push(index);
            steps[at].payload += write.payload;
        }
        steps
    }

    /// Makes the calls; gives those that the server refuses for good.
    async fn call(
        &self,
        link: &Link,
        limits: &Limits,
        calls: &[Call],
        tally: &mut Tally,
    ) -> Result<Vec<(usize, Error)>> {
        let replies = scripts::replies(link, calls.len(), |index, how| {
            self.command(&calls[index], how, limits)
        })
        .await?;
        let mut refused = Vec::new();
        for (index, (call, reply)) in calls.iter().zip(&replies).enumerate() {
            match link.check(reply) {
                Ok(()) => {
                    let (stale, gaps) = scripts::counts(link, call.script, reply)?;
                    tally.stale += stale;
                    tally.gaps += gaps;
                }
                Err(error) if error.kind() == ErrorKind::Refused => refused.push((index, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(refused)
    }

    /// The error is about this write.
    fn about(&self, write: &Write, error: Error) -> Error {
        let key = String::from_utf8_lossy(&self.bytes[write.key.clone()]);
        let error = error.at(format!("key {key}"));
        match self.origins.get(write.origin) {
            Some((source, schema)) => error.about(source, &schema.id, write.position),
            None => error,
        }
    }

    /// Groups the writes: one script per call and, in a cluster, one slot.
    fn calls(&self, cluster: bool, limits: &Limits) -> Vec<Call> {
        let mut calls: Vec<Call> = Vec::new();
        let mut open: HashMap<(Script, Option<Slot>), usize> = HashMap::new();
        for (index, write) in self.writes.iter().enumerate() {
            let slot = cluster.then(|| Slot::for_key(&self.bytes[write.key.clone()]));
            let at = *open.entry((write.script, slot)).or_insert(usize::MAX);
            if let Some(call) = calls.get_mut(at)
                && call.writes.len() < limits.keys
                && call.payload + write.payload <= limits.bytes
            {
                call.writes.push(index);
                call.payload += write.payload;
                continue;
            }
            open.insert((write.script, slot), calls.len());
            calls.push(Call {
                script: write.script,
                slot,
                writes: vec![index],
                payload: write.payload,
            });
        }
        calls
    }

    fn command(&self, call: &Call, how: How, limits: &Limits) -> Command {
        let writes = call.writes.iter().map(|&index| &self.writes[index]);
        let (mut words, mut bytes) = (1, 32);
        for write in writes.clone() {
            words += STEP_WORDS_EACH + write.args.len();
            bytes += write.bytes();
        }
        let fence = limits.fence.as_ref();
        let names = 2 * call.writes.len() + usize::from(fence.is_some());
        let mut cmd = call.script.call(how, fence.is_some(), names, words, bytes);
        let mut companion = Vec::with_capacity(64);
        for write in writes.clone() {
            let key = &self.bytes[write.key.clone()];
            companion.clear();
            keys::companion(key, &mut companion);
            cmd.arg(key).arg(&companion);
        }
        Fence::add_key(fence, &mut cmd, call.slot);
        match call.script {
            Script::Drop => cmd.arg(limits.tombstone_ttl),
            Script::Whole => cmd.arg(limits.ttl).arg(limits.tombstone_ttl),
            _ => cmd.arg(limits.ttl),
        };
        for write in writes {
            if call.script == Script::Whole {
                cmd.arg(write.script.word());
            }
            cmd.arg(write.version.as_bytes());
            for word in &self.words[write.args.clone()] {
                cmd.arg(&self.bytes[word.clone()]);
            }
        }
        Fence::add_token(fence, &mut cmd);
        Command {
            cmd,
            node: call.slot.map_or(Node::Any, Node::Serving),
        }
    }
}

/// The error that the server would answer with.
fn wrong_type(cluster: bool) -> Error {
    let said = "Operation against a key holding the wrong kind of value";
    errors::of_reply("WRONGTYPE", said, cluster)
}

/// One call of a script.
struct Call {
    script: Script,
    slot: Option<Slot>,
    writes: Vec<usize>,
    payload: usize,
}

impl Call {
    /// Each of its writes as a call of its own.
    fn each(&self) -> impl Iterator<Item = Call> + '_ {
        self.writes.iter().map(|&write| Call {
            script: self.script,
            slot: self.slot,
            writes: vec![write],
            payload: 0,
        })
    }
}

/// The words of one write.
pub(crate) struct Words<'a>(&'a mut Flush);

impl Words<'_> {
    /// Adds a word that `write` appends to the buffer. What `write` returns `false` for leaves no word.
    pub(crate) fn add(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Result<bool>) -> Result<bool> {
        let start = self.0.bytes.len();
        if !write(&mut self.0.bytes)? {
            self.0.bytes.truncate(start);
            return Ok(false);
        }
        self.0.words.push(start..self.0.bytes.len());
        Ok(true)
    }

    /// Adds `word` as it is.
    pub(crate) fn push(&mut self, word: &[u8]) {
        let start = self.0.bytes.len();
        self.0.bytes.extend_from_slice(word);
        self.0.words.push(start..self.0.bytes.len());
    }

    /// Holds the place of a number that is known only later.
    pub(crate) fn hold(&mut self) -> Held {
        self.0.words.push(0..0);
        Held(self.0.words.len() - 1)
    }

    /// Puts the number where its place was held.
    pub(crate) fn fill(&mut self, held: Held, number: usize) {
        let start = self.0.bytes.len();
        self.0
            .bytes
            .extend_from_slice(number.to_string().as_bytes());
        self.0.words[held.0] = start..self.0.bytes.len();
    }

    /// Takes the last word away.
    pub(crate) fn pop(&mut self) {
        if let Some(word) = self.0.words.pop()
            && word.end == self.0.bytes.len()
        {
            self.0.bytes.truncate(word.start);
        }
    }
}

/// A place held by [`Words::hold`].
pub(crate) struct Held(usize);

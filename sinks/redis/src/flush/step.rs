//! A flush as one step of a single server: rows, versions, and how far their sources have come.

use lockstep_core::refusal::Refusals;
use lockstep_core::{Error, Result};
use lockstep_redis::{Command, Link, Node};
use redis::Value;

use super::{Flush, Limits, STEP_WORDS_EACH, Tally, Write, wrong_type};
use crate::chain::{self, Place};
use crate::fence::Fence;
use crate::keys;
use crate::scripts::{self, Done, How, Script};
use crate::state::Names;
use crate::writer::Reached;

/// Words of a call beside rows and sources.
const WORDS_BESIDE: usize = 16;
/// Bytes of a source's words, and of the words beside, roughly.
const SOURCE_BYTES: usize = 192;
const BYTES_BESIDE: usize = 256;

impl Flush {
    /// What is there of a source when this flush is.
    pub(crate) fn reach(&mut self, reached: Reached) {
        let same = |known: &&mut Reached| known.source == reached.source;
        match self.reached.iter_mut().find(same) {
            Some(known) => *known = reached,
            None => self.reached.push(reached),
        }
    }

    /// Whether there is anything to tell the server.
    pub(crate) fn has_effect(&self) -> bool {
        !self.writes.is_empty() || !self.reached.is_empty()
    }

    /// How many writes it has.
    pub(crate) fn writes(&self) -> usize {
        self.writes.len()
    }

    /// Carries out all of it in one step, or nothing.
    ///
    /// # Errors
    /// A refusal names every change of the step that is refused; `Busy` when another writer has taken over, or has a newer token;
    /// the server's.
    pub(crate) async fn send_step(
        &self,
        link: &Link,
        limits: &Limits,
        names: &Names,
        mut place: Place,
    ) -> Result<Tally> {
        loop {
            let build = |_, how| self.step_command(how, limits, names, &place);
            let mut replies = scripts::run(link, 1, build).await?;
            let reply = replies.pop().unwrap_or(Value::Nil);
            match scripts::done(link, Script::Step, &reply)? {
                Done::All(stale, gaps) => {
                    place.carried_out();
                    return Ok(Tally { stale, gaps });
                }
                Done::Nothing(refused) => return Err(self.refused(link, &refused, &reply)),
                Done::NotNext { any } => {
                    if !place.may_come_again().await {
                        return Err(chain::broken(any).at(link.place()));
                    }
                }
            }
        }
    }

    /// The error that names these writes.
    fn refused(&self, link: &Link, refused: &[usize], reply: &Value) -> Error {
        let mut refusals = Refusals::default();
        let named = refused.iter().filter_map(|at| self.writes.get(*at));
        let named = named.map(|write| {
            let error = wrong_type(link.is_cluster()).at(link.place());
            refusals.take::<()>(Err(self.about(write, error)))
        });
        let named: Result<Vec<_>> = named.collect();
        match named.and_then(|_| refusals.finish()) {
            Ok(()) => link.unexpected(Script::Step.name(), reply),
            Err(error) => error,
        }
    }

    fn step_command(&self, how: How, limits: &Limits, names: &Names, place: &Place) -> Command {
        let fence = limits.fence.as_ref();
        let (rows, sources) = (self.writes.len(), self.reached.len());
        let words = self.words.len() + STEP_WORDS_EACH * rows + 2 * sources + WORDS_BESIDE;
        let of_writes: usize = self.writes.iter().map(Write::bytes).sum();
        let bytes = of_writes + SOURCE_BYTES * sources + BYTES_BESIDE;
        let count = 2 * rows + sources + 1 + usize::from(fence.is_some());
        let mut cmd = Script::Step.call(how, fence.is_some(), count, words, bytes);
        let mut companion = Vec::with_capacity(64);
        for write in &self.writes {
            let key = &self.bytes[write.key.clone()];
            companion.clear();
            keys::companion(key, &mut companion);
            cmd.arg(key).arg(&companion);
        }
        for reached in &self.reached {
            cmd.arg(keys::progress(
                &names.pipeline,
                &names.sink,
                &reached.source,
            ));
        }
        cmd.arg(&*place.key);
        Fence::add_key(fence, &mut cmd, None);
        cmd.arg(limits.ttl).arg(limits.tombstone_ttl);
        cmd.arg(&place.follows).arg(&place.name);
        cmd.arg(rows).arg(sources).arg(limits.channel());
        for reached in &self.reached {
            cmd.arg(reached.progress.to_hex());
        }
        for run in self.writes.chunk_by(|a, b| a.script == b.script) {
            cmd.arg(run[0].script.word()).arg(run.len());
            for write in run {
                cmd.arg(write.version.as_bytes());
                for word in &self.words[write.args.clone()] {
                    cmd.arg(&self.bytes[word.clone()]);
                }
            }
        }
        Fence::add_token(fence, &mut cmd);
        Command {
            cmd,
            node: Node::Any,
        }
    }
}

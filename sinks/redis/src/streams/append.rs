//! A step: entries that are appended in one call, with how far their sources have come.

use std::collections::HashMap;
use std::ops::Range;

use lockstep_core::batch::Op;
use lockstep_core::refusal::reason;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::{HEADER_ID, Record};
use lockstep_redis::{Command, Link, Node};
use redis::Value;

use crate::chain::{self, Place};
use crate::fence::Fence;
use crate::keys;
use crate::scripts::{self, Done, How, Script};
use crate::state::Names;
use crate::writer::Reached;

/// The longest value a server takes unless `proto-max-bulk-len` says otherwise.
const MAX_VALUE: usize = 512 << 20;
/// Words of a call beside those of entries, sources and streams.
const WORDS_BESIDE: usize = 16;
/// Bytes of a word beside its own, roughly.
const WORD_BYTES: usize = 16;

/// Entries on their way.
#[derive(Default)]
pub(super) struct Append {
    streams: Vec<String>,
    by_name: HashMap<String, usize>,
    bytes: Vec<u8>,
    /// Where words of entries are in `bytes`.
    words: Vec<Range<usize>>,
    entries: Vec<Entry>,
    reached: Vec<Reached>,
}

struct Entry {
    stream: usize,
    /// Indices into `words`.
    words: Range<usize>,
}

impl Append {
    pub(super) fn entries(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn has_effect(&self) -> bool {
        !self.entries.is_empty() || !self.reached.is_empty()
    }

    /// What is there of a source when this step is.
    pub(super) fn reach(&mut self, reached: Reached) {
        let same = |known: &&mut Reached| known.source == reached.source;
        match self.reached.iter_mut().find(same) {
            Some(known) => *known = reached,
            None => self.reached.push(reached),
        }
    }

    /// Adds an entry: `id`, `op`, `key` where there is one, `value`, and the headers. Bytes of it; none for a tombstone, which has a
    /// meaning for compacted topics only.
    ///
    /// # Errors
    /// Of kind `Refused` when the server would not take a value of that length.
    pub(super) fn add(&mut self, stream: &str, record: &Record<'_>) -> Result<usize> {
        let is_event = record.op == Op::Event;
        if record.value.is_none() && !is_event {
            return Ok(0);
        }
        let longest = record.value.map_or(0, <[u8]>::len);
        if longest > MAX_VALUE {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("the record takes {longest} bytes, more than the server's 512 MiB"),
            )
            .because(reason::TOO_LARGE)
            .remedy("leave the large column out with a `project` transform"));
        }
        let (from, first) = (self.bytes.len(), self.words.len());
        let headers = record.headers.iter();
        let id = headers.filter(|(name, _)| *name == HEADER_ID);
        for (_, id) in id.take(1) {
            self.field(b"lockstep.id", id);
        }
        self.field(b"op", record.op.letter().as_bytes());
        if let Some(key) = record.key {
            self.field(b"key", key);
        }
        if let Some(value) = record.value {
            self.field(b"value", value);
        }
        for (name, value) in record.headers.iter().filter(|(name, _)| *name != HEADER_ID) {
            self.field(name.as_bytes(), value);
        }
        let stream = self.stream(stream);
        self.entries.push(Entry {
            stream,
            words: first..self.words.len(),
        });
        Ok(self.bytes.len() - from)
    }

    fn field(&mut self, name: &[u8], value: &[u8]) {
        for word in [name, value] {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(word);
            self.words.push(start..self.bytes.len());
        }
    }

    fn stream(&mut self, name: &str) -> usize {
        if let Some(&index) = self.by_name.get(name) {
            return index;
        }
        self.streams.push(name.to_owned());
        self.by_name.insert(name.to_owned(), self.streams.len() - 1);
        self.streams.len() - 1
    }

    /// Carries out all of it in one step, or nothing.
    ///
    /// # Errors
    /// `Busy` when another writer has taken over, or has a newer token; `Setup` when a key is no stream; the server's.
    pub(super) async fn send(
        &self,
        link: &Link,
        names: &Names,
        fence: Option<&Fence>,
        most: Option<u64>,
        mut place: Place,
    ) -> Result<()> {
        loop {
            let build = |_, how| self.command(how, names, fence, most, &place);
            let mut replies = scripts::run(link, 1, build).await?;
            let reply = replies.pop().unwrap_or(Value::Nil);
            match scripts::done(link, Script::Append, &reply)? {
                Done::All(..) => {
                    place.carried_out();
                    return Ok(());
                }
                Done::Nothing(keys) => return Err(self.no_streams(&keys).at(link.place())),
                Done::NotNext { any } => {
                    if !place.may_come_again().await {
                        return Err(chain::broken(any).at(link.place()));
                    }
                }
            }
        }
    }

    fn no_streams(&self, places: &[usize]) -> Error {
        let named = places.iter().filter_map(|&place| self.streams.get(place));
        let named: Vec<_> = named.map(|name| format!("`{name}`")).collect();
        let named = named.join(", ");
        Error::new(
            ErrorKind::Setup,
            format!("{named}: there is something else than a stream"),
        )
        .remedy("name other streams with `stream`, or delete what is there")
    }

    fn command(
        &self,
        how: How,
        names: &Names,
        fence: Option<&Fence>,
        most: Option<u64>,
        place: &Place,
    ) -> Command {
        let (streams, sources) = (self.streams.len(), self.reached.len());
        let keys = streams + sources + 1 + usize::from(fence.is_some());
        let words = self.words.len() + 2 * self.entries.len() + keys + sources + WORDS_BESIDE;
        let bytes = self.bytes.len() + WORD_BYTES * words;
        let mut cmd = Script::Append.call(how, fence.is_some(), keys, words, bytes);
        for stream in &self.streams {
            cmd.arg(stream);
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
        cmd.arg(&place.follows).arg(&place.name);
        cmd.arg(streams).arg(sources).arg(self.entries.len());
        cmd.arg(most.unwrap_or(0));
        for reached in &self.reached {
            cmd.arg(reached.progress.to_hex());
        }
        for entry in &self.entries {
            cmd.arg(entry.stream + 1).arg(entry.words.len());
            for word in &self.words[entry.words.clone()] {
                cmd.arg(&self.bytes[word.clone()]);
            }
        }
        Fence::add_token(fence, &mut cmd);
        Command {
            cmd,
            node: Node::Any,
        }
    }
}

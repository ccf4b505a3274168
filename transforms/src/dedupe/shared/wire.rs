//! The scripts that work on a store in Redis, and what they answer.

use std::sync::LazyLock;

use lockstep_core::position::SourceIdentity;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_redis::{Command, How, Link, Node, Script};
use redis::Value;

use super::super::digest::Digest;
use super::super::notes::Logs;

/// The scripts.
pub(super) struct Scripts {
    pub(super) open: Script,
    pub(super) log: Script,
    pub(super) look: Script,
    pub(super) write: Script,
    pub(super) sweep: Script,
}

macro_rules! script {
    ($name:literal, $file:literal) => {
        Script::new(
            $name,
            concat!(
                include_str!("scripts/check.lua"),
                "\n",
                include_str!(concat!("scripts/", $file))
            ),
        )
    };
}

/// The scripts, made once.
pub(super) static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts {
    open: script!("the script that opens a dedupe store", "open.lua"),
    log: script!("the script that notes a log", "log.lua"),
    look: script!("the script that looks keys up", "look.lua"),
    write: script!("the script that remembers keys", "write.lua"),
    sweep: script!("the script that forgets keys", "sweep.lua"),
});

/// The keys of a store, which share a hash slot.
#[derive(Clone, Debug)]
pub(super) struct Keys([String; 3]);

impl Keys {
    pub(super) fn new(pipeline: &str, transform: &str) -> Self {
        let base = format!("lockstep:dedupe:{{{pipeline}/{transform}}}");
        Keys(["meta", "claims", "rows"].map(|part| format!("{base}:{part}")))
    }

    /// What the store knows of itself.
    pub(super) fn meta(&self) -> &str {
        &self.0[0]
    }

    /// The histories of keys, and of rows.
    pub(super) fn histories(&self) -> [&str; 2] {
        [&self.0[1], &self.0[2]]
    }

    /// A call of a script on them.
    pub(super) fn call(&self, script: &Script, how: How, args: &Args) -> Command {
        let room = args.bytes.len() + 3 * (self.0[0].len() + 8);
        let mut cmd = script.call(how, self.0.len(), args.ends.len() + self.0.len(), room);
        for key in &self.0 {
            cmd.arg(key);
        }
        args.each(|arg| {
            cmd.arg(arg);
        });
        Command {
            cmd,
            node: Node::of_key(&self.0[0]),
        }
    }
}

/// Arguments of a call, one behind the other in one buffer.
#[derive(Default)]
pub(super) struct Args {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Args {
    pub(super) fn text(mut self, text: impl std::fmt::Display) -> Self {
        self.bytes.extend_from_slice(text.to_string().as_bytes());
        self.ends.push(self.bytes.len());
        self
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
    }

    pub(super) fn digests<'a>(mut self, digests: impl Iterator<Item = &'a Digest>) -> Self {
        for digest in digests {
            self.push(&digest.0);
        }
        self
    }

    fn each<'a>(&'a self, mut take: impl FnMut(&'a [u8])) {
        let mut start = 0;
        for &end in &self.ends {
            take(&self.bytes[start..end]);
            start = end;
        }
    }
}

/// What a script says.
pub(super) enum Answer {
    /// It is done; the rest of the answer.
    Done(Vec<Value>),
    /// The server has lost a part of the store.
    Lost(String),
    /// The logs have changed since they were read.
    Logs,
    /// Another process has written the same histories since they were read.
    Conflict,
    /// The store has another layout.
    Format(String),
    /// There are too many logs.
    Full,
}

/// Reads an answer.
///
/// # Errors
/// What the server says, and an answer that no script gives.
pub(super) fn answer(link: &Link, script: &Script, reply: Value) -> Result<Answer> {
    link.check(&reply)?;
    let Value::Array(items) = reply else {
        return Err(link.unexpected(script.name(), &reply));
    };
    let mut rest = items.into_iter();
    let first = rest.next().and_then(text);
    let rest: Vec<Value> = rest.collect();
    let said = |rest: Vec<Value>| rest.into_iter().next().and_then(text).unwrap_or_default();
    match first.as_deref() {
        Some("ok") => Ok(Answer::Done(rest)),
        Some("lost") => Ok(Answer::Lost(said(rest))),
        Some("logs") => Ok(Answer::Logs),
        Some("conflict") => Ok(Answer::Conflict),
        Some("format") => Ok(Answer::Format(said(rest))),
        Some("full") => Ok(Answer::Full),
        _ => Err(link.unexpected(script.name(), &Value::Array(rest))),
    }
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// A number, as Lua or a hash sends it.
pub(super) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

/// What the store knows of itself.
#[derive(Debug, Default)]
pub(super) struct Meta {
    pub(super) generation: String,
    pub(super) writes: u64,
    /// Changes when `logs` does.
    pub(super) version: u64,
    pub(super) logs: Logs,
    pub(super) claims: u64,
    pub(super) rows: u64,
}

impl Meta {
    /// Reads a HGETALL; `None` when it is none of ours.
    pub(super) fn read(value: Option<Value>) -> Option<Self> {
        let Some(Value::Array(items)) = value else {
            return None;
        };
        let mut meta = Meta::default();
        let mut items = items.into_iter();
        while let (Some(field), Some(value)) = (items.next(), items.next()) {
            meta.take(&text(field)?, &text(value)?)?;
        }
        (!meta.generation.is_empty()).then_some(meta)
    }

    fn take(&mut self, field: &str, value: &str) -> Option<()> {
        match field.split_once(':') {
            None => match field {
                "generation" => value.clone_into(&mut self.generation),
                "writes" => self.writes = value.parse().ok()?,
                "logs" => self.version = value.parse().ok()?,
                "claims" => self.claims = value.parse().ok()?,
                "rows" => self.rows = value.parse().ok()?,
                _ => {}
            },
            Some(("source", identity)) => {
                let identity: SourceIdentity = identity.parse().ok()?;
                self.logs.numbers.insert(identity, value.parse().ok()?);
            }
            Some(("log", name)) => {
                self.logs
                    .current
                    .insert(name.to_owned(), value.parse().ok()?);
            }
            Some(("given", number)) => {
                self.logs.given_up.insert(number.parse().ok()?);
            }
            // Of the sweeper.
            Some(_) => {}
        }
        Some(())
    }
}

/// The error for a store that holds what lockstep did not write.
pub(super) fn foreign(keys: &Keys) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!("{} holds something that lockstep did not write", keys.meta()),
    )
    .remedy("delete the key, and those beside it, to begin with an empty memory: repeats of older keys then pass")
}

//! Server-side scripts, and calling them.

use lockstep_core::Result;
use redis::{Cmd, Value};

use crate::errors;
use crate::link::{Command, Link, Node};

/// A script.
#[derive(Debug)]
pub struct Script {
    name: &'static str,
    source: &'static str,
    /// The name that EVALSHA uses.
    sha: String,
}

impl Script {
    /// A script by its text; `name` is what messages call it: `the put script`.
    #[must_use]
    pub fn new(name: &'static str, source: &'static str) -> Self {
        Script {
            name,
            source,
            sha: redis::Script::new(source).get_hash().to_owned(),
        }
    }

    /// The name for messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its text.
    #[must_use]
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// Begins a call with `keys` keys; keys and arguments follow. `words` and `bytes` say how much room they need.
    #[must_use]
    pub fn call(&self, how: How, keys: usize, words: usize, bytes: usize) -> Cmd {
        let (command, script) = match how {
            How::ByName => ("EVALSHA", self.sha.as_str()),
            How::BySource => ("EVAL", self.source),
        };
        let mut cmd = Cmd::with_capacity(words + 3, bytes + script.len() + 16);
        cmd.arg(command).arg(script).arg(keys);
        cmd
    }
}

/// How a call names its script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By hash: the server has it in its cache.
    ByName,
    /// By its text, which also puts it into the cache.
    BySource,
}

/// Puts scripts into the server's cache, on every primary.
///
/// # Errors
/// By kind, naming the server.
pub async fn load(link: &Link, scripts: &[Script]) -> Result<()> {
    let loads = scripts.iter().map(|script| {
        let mut cmd = redis::cmd("SCRIPT");
        cmd.arg("LOAD").arg(script.source);
        Command {
            cmd,
            node: Node::Primaries,
        }
    });
    link.expect(loads.collect()).await.map(|_| ())
}

/// As [`replies`]; the first error reply of any is the error.
///
/// # Errors
/// By kind, naming the server.
pub async fn run(
    link: &Link,
    count: usize,
    build: impl Fn(usize, How) -> Command,
) -> Result<Vec<Value>> {
    let replies = replies(link, count, build).await?;
    replies.iter().try_for_each(|reply| link.check(reply))?;
    Ok(replies)
}

/// Makes `count` calls at once, which `build` puts together by their number, and returns their replies in order, errors
/// among them. A server that has lost a script (restart, failover, SCRIPT FLUSH) gets it again with
/// the call.
///
/// # Errors
/// When the connection fails or a reply stays out.
pub async fn replies(
    link: &Link,
    count: usize,
    build: impl Fn(usize, How) -> Command,
) -> Result<Vec<Value>> {
    let mut replies = link
        .ask((0..count).map(|index| build(index, How::ByName)).collect())
        .await?;
    let lost: Vec<usize> = (0..count)
        .filter(|&index| errors::is_no_script(&replies[index]))
        .collect();
    if !lost.is_empty() {
        let again = lost
            .iter()
            .map(|&index| build(index, How::BySource))
            .collect();
        for (&index, reply) in lost.iter().zip(link.ask(again).await?) {
            replies[index] = reply;
        }
    }
    Ok(replies)
}

/// One call of a script with one key.
///
/// # Errors
/// By kind, naming the server.
pub async fn run_on_key(link: &Link, script: &Script, key: &str, args: &[&[u8]]) -> Result<Value> {
    let build = |_, how| {
        let mut cmd = script.call(how, 1, args.len() + 1, 64);
        cmd.arg(key);
        for arg in args {
            cmd.arg(*arg);
        }
        Command {
            cmd,
            node: Node::of_key(key),
        }
    };
    let mut replies = run(link, 1, build).await?;
    Ok(replies.pop().expect("run returns a reply for each call"))
}

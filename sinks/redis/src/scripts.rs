//! The server-side scripts, and calling them.

use std::sync::LazyLock;

use lockstep_core::Result;
use redis::{Cmd, Value};

use crate::errors;
use crate::link::{Command, Link, Node};

/// A script of the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Script {
    /// Sets values.
    Put,
    /// Writes hashes.
    Hash,
    /// Deletes rows and leaves tombstones.
    Drop,
    /// Removes what a TRUNCATE covers.
    Clear,
    /// Raises the floor of a table.
    Floor,
    /// Answers with the epoch of an identity.
    Epoch,
}

struct Loaded {
    source: &'static str,
    /// The name that EVALSHA uses.
    sha: String,
}

impl Script {
    pub(crate) const ALL: [Script; 6] = [
        Script::Put,
        Script::Hash,
        Script::Drop,
        Script::Clear,
        Script::Floor,
        Script::Epoch,
    ];

    fn loaded(self) -> &'static Loaded {
        static LOADED: LazyLock<[Loaded; 6]> = LazyLock::new(|| {
            [
                include_str!("scripts/put.lua"),
                include_str!("scripts/hash.lua"),
                include_str!("scripts/drop.lua"),
                include_str!("scripts/clear.lua"),
                include_str!("scripts/floor.lua"),
                include_str!("scripts/epoch.lua"),
            ]
            .map(|source| Loaded {
                source,
                sha: redis::Script::new(source).get_hash().to_owned(),
            })
        });
        &LOADED[self as usize]
    }

    /// The name for messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Script::Put => "the put script",
            Script::Hash => "the hash script",
            Script::Drop => "the drop script",
            Script::Clear => "the clear script",
            Script::Floor => "the floor script",
            Script::Epoch => "the epoch script",
        }
    }

    /// Begins a call with `keys` keys; keys and arguments follow. `words` and `bytes` say how much room they need.
    pub(crate) fn call(self, how: How, keys: usize, words: usize, bytes: usize) -> Cmd {
        let loaded = self.loaded();
        let (command, script) = match how {
            How::ByName => ("EVALSHA", loaded.sha.as_str()),
            How::BySource => ("EVAL", loaded.source),
        };
        let mut cmd = Cmd::with_capacity(words + 3, bytes + script.len() + 16);
        cmd.arg(command).arg(script).arg(keys);
        cmd
    }
}

/// How a call names its script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// By hash: the server has it in its cache.
    ByName,
    /// By its text, which also puts it into the cache.
    BySource,
}

/// Puts the scripts into the server's cache, on every primary.
pub(crate) async fn load(link: &Link) -> Result<()> {
    let loads = Script::ALL.map(|script| {
        let mut cmd = redis::cmd("SCRIPT");
        cmd.arg("LOAD").arg(script.loaded().source);
        Command {
            cmd,
            node: Node::Primaries,
        }
    });
    link.expect(loads.into()).await.map(|_| ())
}

/// As [`replies`]; the first error reply of any is the error.
pub(crate) async fn run(
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
pub(crate) async fn replies(
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

/// The two counts that a script for rows answers with.
pub(crate) fn counts(link: &Link, script: Script, reply: &Value) -> Result<(u64, u64)> {
    match reply {
        Value::Array(counts) => match counts[..] {
            [Value::Int(first), Value::Int(second)] => {
                Ok((first.unsigned_abs(), second.unsigned_abs()))
            }
            _ => Err(link.unexpected(script.name(), reply)),
        },
        _ => Err(link.unexpected(script.name(), reply)),
    }
}

/// One call of a script with one key.
pub(crate) async fn run_on_key(
    link: &Link,
    script: Script,
    key: &str,
    args: &[&[u8]],
) -> Result<Value> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_compare_whole_versions() {
        let compared = format!("string.sub(old, 1, {})", crate::version::LENGTH);
        for script in [Script::Put, Script::Hash, Script::Drop, Script::Clear] {
            assert!(script.loaded().source.contains(&compared), "{script:?}");
        }
    }

    #[test]
    fn each_script_has_its_own_source() {
        let first_lines = Script::ALL.map(|script| script.loaded().source.lines().next());
        let distinct: std::collections::HashSet<_> = first_lines.iter().collect();
        assert_eq!(distinct.len(), Script::ALL.len());
    }
}

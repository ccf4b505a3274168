//! The server-side scripts, and calling them.

use std::sync::OnceLock;

use lockstep_core::Result;
use lockstep_redis::{Command, Link, Node};
pub(crate) use lockstep_redis::{How, replies, run};
use redis::cluster_routing::Slot;
use redis::{Cmd, Value};

use crate::fence::Fence;

/// A script of the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Script {
    /// Sets values.
    Put,
    /// Writes hashes.
    Hash,
    /// Deletes rows and leaves tombstones.
    Drop,
    /// All of what the three do, in one step.
    Whole,
    /// One step of a sink: rows of any kind, and how far their sources have come.
    Step,
    /// Takes the chain of steps over.
    Begin,
    /// Removes what a TRUNCATE covers.
    Clear,
    /// Raises the floor of a table.
    Floor,
    /// Answers with the epoch of an identity.
    Epoch,
    /// Notes how far sources have come.
    Save,
    /// Notes up to where everything is there, for readers of a cluster.
    Show,
    /// Raises the fence, and does nothing else.
    Raise,
    /// One step of a sink of streams: entries, and how far their sources have come.
    Append,
}

const COUNT: usize = 13;

type Loaded = [lockstep_redis::Script; COUNT];

/// The scripts in the order of [`Script`], as they are, and behind the fence.
macro_rules! sources {
    ($($name:literal, $file:literal;)*) => {
        const PLAIN: [(&str, &str); COUNT] = [$(($name, include_str!($file))),*];
        const FENCED: [(&str, &str); COUNT] =
            [$(($name, concat!(include_str!("scripts/fence.lua"), include_str!($file)))),*];
    };
}

sources! {
    "the put script", "scripts/put.lua";
    "the hash script", "scripts/hash.lua";
    "the drop script", "scripts/drop.lua";
    "the whole script", "scripts/whole.lua";
    "the step script", "scripts/step.lua";
    "the begin script", "scripts/begin.lua";
    "the clear script", "scripts/clear.lua";
    "the floor script", "scripts/floor.lua";
    "the epoch script", "scripts/epoch.lua";
    "the save script", "scripts/save.lua";
    "the show script", "scripts/show.lua";
    "the raise script", "scripts/raise.lua";
    "the append script", "scripts/append.lua";
}

impl Script {
    #[cfg(test)]
    const ALL: [Script; COUNT] = [
        Script::Put,
        Script::Hash,
        Script::Drop,
        Script::Whole,
        Script::Step,
        Script::Begin,
        Script::Clear,
        Script::Floor,
        Script::Epoch,
        Script::Save,
        Script::Show,
        Script::Raise,
        Script::Append,
    ];

    fn all(fenced: bool) -> &'static Loaded {
        let load = |sources: [(&'static str, &'static str); COUNT]| {
            sources.map(|(name, source)| lockstep_redis::Script::new(name, source))
        };
        static AS_THEY_ARE: OnceLock<Loaded> = OnceLock::new();
        static BEHIND_THE_FENCE: OnceLock<Loaded> = OnceLock::new();
        match fenced {
            false => AS_THEY_ARE.get_or_init(|| load(PLAIN)),
            true => BEHIND_THE_FENCE.get_or_init(|| load(FENCED)),
        }
    }

    fn loaded(self, fenced: bool) -> &'static lockstep_redis::Script {
        &Script::all(fenced)[self as usize]
    }

    /// The name for messages.
    pub(crate) fn name(self) -> &'static str {
        self.loaded(false).name()
    }

    /// What the scripts that do all of it call it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Script::Hash => "hash",
            Script::Drop => "drop",
            _ => "put",
        }
    }

    /// See [`lockstep_redis::Script::call`]. One that is fenced has the fence as one more key, the last, and the token as one more
    /// argument, the last.
    pub(crate) fn call(
        self,
        how: How,
        fenced: bool,
        keys: usize,
        words: usize,
        bytes: usize,
    ) -> Cmd {
        let more = if fenced { 2 } else { 0 };
        self.loaded(fenced)
            .call(how, keys, words + more, bytes + 32 * more)
    }
}

/// Puts the scripts into the server's cache, on every primary.
pub(crate) async fn load(link: &Link, fenced: bool) -> Result<()> {
    lockstep_redis::load(link, Script::all(fenced)).await
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

/// What the scripts have done that do all or nothing.
pub(crate) enum Done {
    /// Everything; the two counts are those of the other scripts.
    All(u64, u64),
    /// Nothing: these writes, by their number in the call from 0, cannot be carried out.
    Nothing(Vec<usize>),
    /// Nothing: the last step is not the one that this one follows.
    NotNext {
        /// Whether the server knows of any step.
        any: bool,
    },
}

/// The answer of a script that does all or nothing.
pub(crate) fn done(link: &Link, script: Script, reply: &Value) -> Result<Done> {
    let number = |value: &Value| match value {
        Value::Int(number) => usize::try_from(*number).ok(),
        _ => None,
    };
    if let Value::Array(items) = reply
        && let [Value::Int(-1), refused @ ..] = items.as_slice()
        && let Some(refused) = refused
            .iter()
            .map(|place| number(place)?.checked_sub(1))
            .collect()
    {
        return Ok(Done::Nothing(refused));
    }
    if let Value::Array(items) = reply
        && let [Value::Int(-2), Value::Int(any)] = items[..]
    {
        return Ok(Done::NotNext { any: any == 1 });
    }
    let (stale, gaps) = counts(link, script, reply)?;
    Ok(Done::All(stale, gaps))
}

/// One call of a script with one key.
pub(crate) async fn run_on_key(
    link: &Link,
    script: Script,
    fence: Option<&Fence>,
    key: &str,
    args: &[&[u8]],
) -> Result<Value> {
    let mut replies = run(link, 1, |_, how| {
        on_key(link, how, script, fence, key, args)
    })
    .await?;
    Ok(replies.pop().expect("run returns a reply for each call"))
}

/// The call of a script whose first argument says how many others there are. All keys are of one slot.
pub(crate) fn counted(
    link: &Link,
    how: How,
    script: Script,
    fence: Option<&Fence>,
    keys: &[&[u8]],
    words: &[&[u8]],
) -> Command {
    let count = keys.len() + usize::from(fence.is_some());
    let bytes = keys.iter().chain(words).map(|word| word.len() + 16).sum();
    let mut cmd = script.call(how, fence.is_some(), count, count + words.len() + 1, bytes);
    for key in keys {
        cmd.arg(*key);
    }
    let first = keys.first().copied().unwrap_or_default();
    let slot = link.is_cluster().then(|| Slot::for_key(first));
    Fence::add_key(fence, &mut cmd, slot);
    // A script that sets keys has one word for each.
    cmd.arg(words.len());
    for word in words {
        cmd.arg(*word);
    }
    Fence::add_token(fence, &mut cmd);
    Command {
        cmd,
        node: Node::of_key(first),
    }
}

/// The call of a script with one key.
pub(crate) fn on_key(
    link: &Link,
    how: How,
    script: Script,
    fence: Option<&Fence>,
    key: &str,
    args: &[&[u8]],
) -> Command {
    let keys = 1 + usize::from(fence.is_some());
    let bytes = args.iter().map(|arg| arg.len() + 16).sum::<usize>() + key.len();
    let mut cmd = script.call(how, fence.is_some(), keys, args.len() + 1, bytes);
    cmd.arg(key);
    let slot = link.is_cluster().then(|| Slot::for_key(key));
    Fence::add_key(fence, &mut cmd, slot);
    for arg in args {
        cmd.arg(*arg);
    }
    Fence::add_token(fence, &mut cmd);
    Command {
        cmd,
        node: Node::of_key(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_compare_whole_versions() {
        let compared = format!("sub(old, 1, {})", crate::version::LENGTH);
        for script in [
            Script::Put,
            Script::Hash,
            Script::Drop,
            Script::Whole,
            Script::Step,
            Script::Clear,
        ] {
            assert!(
                script.loaded(false).source().contains(&compared),
                "{script:?}"
            );
        }
    }

    #[test]
    fn each_script_has_its_own_source() {
        let first_lines = Script::ALL.map(|script| script.loaded(false).source().lines().next());
        let distinct: std::collections::HashSet<_> = first_lines.iter().collect();
        assert_eq!(distinct.len(), Script::ALL.len());
    }

    #[test]
    fn behind_the_fence_they_are_the_same() {
        for script in Script::ALL {
            let (plain, fenced) = (script.loaded(false).source(), script.loaded(true).source());
            let fence = fenced.strip_suffix(plain).expect("the same behind it");
            assert!(fence.contains("FENCED"), "{script:?}");
        }
    }
}

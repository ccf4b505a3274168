//! The server-side scripts, and calling them.

use std::sync::LazyLock;

use lockstep_core::Result;
use lockstep_redis::Link;
pub(crate) use lockstep_redis::{How, replies, run};
use redis::{Cmd, Value};

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
    /// Removes what a TRUNCATE covers.
    Clear,
    /// Raises the floor of a table.
    Floor,
    /// Answers with the epoch of an identity.
    Epoch,
}

impl Script {
    #[cfg(test)]
    const ALL: [Script; 7] = [
        Script::Put,
        Script::Hash,
        Script::Drop,
        Script::Whole,
        Script::Clear,
        Script::Floor,
        Script::Epoch,
    ];

    fn all() -> &'static [lockstep_redis::Script; 7] {
        static LOADED: LazyLock<[lockstep_redis::Script; 7]> = LazyLock::new(|| {
            [
                ("the put script", include_str!("scripts/put.lua")),
                ("the hash script", include_str!("scripts/hash.lua")),
                ("the drop script", include_str!("scripts/drop.lua")),
                ("the whole script", include_str!("scripts/whole.lua")),
                ("the clear script", include_str!("scripts/clear.lua")),
                ("the floor script", include_str!("scripts/floor.lua")),
                ("the epoch script", include_str!("scripts/epoch.lua")),
            ]
            .map(|(name, source)| lockstep_redis::Script::new(name, source))
        });
        &LOADED
    }

    fn loaded(self) -> &'static lockstep_redis::Script {
        &Script::all()[self as usize]
    }

    /// The name for messages.
    pub(crate) fn name(self) -> &'static str {
        self.loaded().name()
    }

    /// What the whole script calls it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Script::Hash => "hash",
            Script::Drop => "drop",
            _ => "put",
        }
    }

    /// See [`lockstep_redis::Script::call`].
    pub(crate) fn call(self, how: How, keys: usize, words: usize, bytes: usize) -> Cmd {
        self.loaded().call(how, keys, words, bytes)
    }
}

/// Puts the scripts into the server's cache, on every primary.
pub(crate) async fn load(link: &Link) -> Result<()> {
    lockstep_redis::load(link, Script::all()).await
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

/// What the whole script has done.
pub(crate) enum Done {
    /// Everything; the two counts are those of the other scripts.
    All(u64, u64),
    /// Nothing: these writes, by their number in the call from 0, cannot be carried out.
    Nothing(Vec<usize>),
}

/// The answer of the whole script.
pub(crate) fn done(link: &Link, reply: &Value) -> Result<Done> {
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
    let (stale, gaps) = counts(link, Script::Whole, reply)?;
    Ok(Done::All(stale, gaps))
}

/// One call of a script with one key.
pub(crate) async fn run_on_key(
    link: &Link,
    script: Script,
    key: &str,
    args: &[&[u8]],
) -> Result<Value> {
    lockstep_redis::run_on_key(link, script.loaded(), key, args).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_compare_whole_versions() {
        let compared = format!("string.sub(old, 1, {})", crate::version::LENGTH);
        for script in [
            Script::Put,
            Script::Hash,
            Script::Drop,
            Script::Whole,
            Script::Clear,
        ] {
            assert!(script.loaded().source().contains(&compared), "{script:?}");
        }
    }

    #[test]
    fn each_script_has_its_own_source() {
        let first_lines = Script::ALL.map(|script| script.loaded().source().lines().next());
        let distinct: std::collections::HashSet<_> = first_lines.iter().collect();
        assert_eq!(distinct.len(), Script::ALL.len());
    }
}

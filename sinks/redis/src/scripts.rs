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
    /// Removes what a TRUNCATE covers.
    Clear,
    /// Raises the floor of a table.
    Floor,
    /// Answers with the epoch of an identity.
    Epoch,
}

impl Script {
    #[cfg(test)]
    const ALL: [Script; 6] = [
        Script::Put,
        Script::Hash,
        Script::Drop,
        Script::Clear,
        Script::Floor,
        Script::Epoch,
    ];

    fn all() -> &'static [lockstep_redis::Script; 6] {
        static LOADED: LazyLock<[lockstep_redis::Script; 6]> = LazyLock::new(|| {
            [
                ("the put script", include_str!("scripts/put.lua")),
                ("the hash script", include_str!("scripts/hash.lua")),
                ("the drop script", include_str!("scripts/drop.lua")),
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
        for script in [Script::Put, Script::Hash, Script::Drop, Script::Clear] {
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

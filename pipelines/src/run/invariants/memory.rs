//! What is known of invariants over restarts: since when a key does not hold.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};

use lockstep_reconciler::invariants::{Invariant, InvariantReport, Kept};
use serde::{Deserialize, Serialize};

/// Of one invariant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// Of what it declares: what is known of another rule or query says nothing of this one.
    declared: u64,
    /// When the last evaluation began that found it to hold.
    pub verified_micros: Option<i64>,
    /// The keys that do not hold.
    pub keys: Vec<Kept>,
}

/// See the module's page.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    path: PathBuf,
    all: BTreeMap<String, Remembered>,
}

impl Memory {
    /// What earlier runs have left. One that cannot be read is left behind: deadlines begin anew then.
    pub fn open(path: PathBuf) -> Self {
        let read = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(std::io::Error::from),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        };
        let all = read.unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "what is known of invariants cannot be read, and begins anew");
            BTreeMap::new()
        });
        Memory { path, all }
    }

    /// Forgets those that are not declared any more, or declared otherwise.
    pub fn only<'a>(&mut self, declared: impl Iterator<Item = &'a Invariant>) {
        let declared: BTreeMap<&str, u64> = declared
            .map(|invariant| (&*invariant.name, digest(invariant)))
            .collect();
        self.all
            .retain(|name, known| declared.get(&**name) == Some(&known.declared));
        for (name, digest) in declared {
            self.all.entry(name.to_owned()).or_default().declared = digest;
        }
    }

    /// What is known of one.
    pub fn of(&self, invariant: &Invariant) -> Remembered {
        self.all.get(&*invariant.name).cloned().unwrap_or_default()
    }

    /// Takes in what an evaluation has found.
    pub fn remember(&mut self, invariant: &Invariant, report: &InvariantReport, keys: Vec<Kept>) {
        let known = self.all.entry(invariant.name.to_string()).or_default();
        known.keys = keys;
        if report.holds() {
            known.verified_micros = Some(report.began_micros);
        }
    }

    /// Writes it, whole or not at all.
    pub fn write(&self) -> std::io::Result<()> {
        let folder = self.path.parent().unwrap_or_else(|| Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer(&mut file, &self.all)?;
        file.flush()?;
        file.as_file().sync_data()?;
        file.persist(&self.path)?;
        Ok(())
    }
}

fn digest(invariant: &Invariant) -> u64 {
    let mut hasher = DefaultHasher::new();
    invariant.rule.as_str().hash(&mut hasher);
    (&invariant.key, invariant.for_each, &invariant.compare).hash(&mut hasher);
    for side in &invariant.sides {
        (&*side.source, &side.query).hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lockstep_reconciler::State;
    use lockstep_reconciler::invariants::{Rule, Side};

    use super::*;

    fn invariant(query: &str) -> Invariant {
        let side = Side {
            source: "shop".into(),
            query: query.to_owned(),
        };
        Invariant {
            name: "one".into(),
            rule: Rule::Unique,
            key: vec!["id".to_owned()],
            sides: vec![side],
            for_each: 0,
            compare: None,
            within: Duration::ZERO,
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn what_is_known_is_there_after_a_restart_and_not_of_another_query() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("invariants.json");
        let (one, other) = (invariant("SELECT 1"), invariant("SELECT 2"));
        let mut memory = Memory::open(path.clone());
        memory.only([&one].into_iter());
        let kept = Kept {
            key: vec!["7".to_owned()],
            since_micros: 5,
            unchanged_micros: 6,
            digest: u64::MAX,
            told: true,
        };
        let report = InvariantReport {
            state: State::Done,
            ..InvariantReport::new(&one, 9)
        };
        memory.remember(&one, &report, vec![kept.clone()]);
        memory.write().expect("written");

        let mut again = Memory::open(path.clone());
        again.only([&one].into_iter());
        assert_eq!(
            (again.of(&one).keys, again.of(&one).verified_micros),
            (vec![kept], Some(9))
        );
        let mut changed = Memory::open(path.clone());
        changed.only([&other].into_iter());
        assert_eq!(changed.of(&other).keys, vec![]);
        std::fs::write(&path, "{").expect("written");
        assert_eq!(Memory::open(path).of(&one), Remembered::default());
    }
}

//! The suite of checkpoints on a directory, on ones in memory, and on ones that break a promise each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use lockstep_conformance::checkpoint::{self, CheckpointsUnderTest};
use lockstep_core::folder::{Copies, Folder};
use lockstep_core::token::Token;
use lockstep_core::{Error, ErrorKind, Result};
use tempfile::TempDir;

/// A directory that stays where it is.
struct Directory(TempDir);

#[async_trait]
impl CheckpointsUnderTest for Directory {
    async fn open(&self, _: Token) -> Folder {
        self.0.path().into()
    }

    fn fences(&self) -> bool {
        false
    }
}

mod directory {
    use super::Directory;

    async fn make() -> Option<Directory> {
        Some(Directory(tempfile::tempdir().expect("a directory")))
    }

    lockstep_conformance::checkpoint_suite!(make);
}

/// What is broken of [`Memory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// Of a document only the first half is kept.
    Half,
    /// Every seventh write is answered and not done.
    Forgets,
    /// What is removed stays.
    Keeps,
    /// Whoever writes is as good as anybody.
    TakesAnybody,
}

#[derive(Debug, Default)]
struct Kept {
    token: Option<Token>,
    writes: u64,
    documents: BTreeMap<String, Vec<u8>>,
}

/// Copies in memory, and a fresh directory for whoever opens them.
struct Memory {
    broken: Broken,
    kept: Arc<Mutex<Kept>>,
    directories: Mutex<Vec<TempDir>>,
}

#[derive(Debug)]
struct Holder {
    broken: Broken,
    token: Token,
    kept: Arc<Mutex<Kept>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}

impl Memory {
    fn new(broken: Broken) -> Self {
        Memory {
            broken,
            kept: Arc::default(),
            directories: Mutex::default(),
        }
    }
}

impl Holder {
    fn kept(&self) -> Result<MutexGuard<'_, Kept>> {
        let kept = lock(&self.kept);
        if kept.token > Some(self.token) && self.broken != Broken::TakesAnybody {
            return Err(Error::new(ErrorKind::Busy, "somebody else has come"));
        }
        Ok(kept)
    }
}

impl Copies for Holder {
    fn put(&self, name: &str, content: &[u8]) -> Result<()> {
        let mut kept = self.kept()?;
        kept.writes += 1;
        if self.broken == Broken::Forgets && kept.writes % 7 == 0 {
            return Ok(());
        }
        let length = match self.broken {
            Broken::Half => content.len() / 2,
            _ => content.len(),
        };
        kept.documents
            .insert(name.to_owned(), content[..length].to_vec());
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<()> {
        let mut kept = self.kept()?;
        if self.broken != Broken::Keeps {
            kept.documents.remove(name);
        }
        Ok(())
    }
}

#[async_trait]
impl CheckpointsUnderTest for Memory {
    async fn open(&self, token: Token) -> Folder {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_owned();
        lock(&self.directories).push(directory);
        let mut kept = lock(&self.kept);
        kept.token = kept.token.max(Some(token));
        let documents = kept.documents.iter();
        checkpoint::lay_out(
            &path,
            documents.map(|(name, content)| (&**name, &**content)),
        );
        let holder = Holder {
            broken: self.broken,
            token,
            kept: Arc::clone(&self.kept),
        };
        Folder::with_copies(path, Arc::new(holder))
    }

    fn fences(&self) -> bool {
        true
    }
}

mod memory {
    use super::{Broken, Memory};

    async fn make() -> Option<Memory> {
        Some(Memory::new(Broken::Nothing))
    }

    lockstep_conformance::checkpoint_suite!(make);
}

/// The check panics on what breaks what it is about.
macro_rules! catches {
    ($($test:ident: $check:ident of what $broken:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            let memory = Memory::new(Broken::$broken);
            let checked = tokio::spawn(async move { checkpoint::$check(&memory).await }).await;
            let error = checked.expect_err("the check has found nothing");
            assert!(error.is_panic());
        }
    )*};
}

catches! {
    halves: who_comes_next_finds_what_was_written of what Half,
    removals: who_comes_next_finds_what_was_written of what Keeps,
    forgotten: who_comes_next_finds_what_was_written of what Forgets,
    anybody: who_has_been_followed_writes_nothing of what TakesAnybody,
}

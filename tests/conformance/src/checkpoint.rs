//! What everything promises that keeps checkpoints: what a source has to find again when it is opened, wherever that is.
//!
//! How far changes have come is the sinks' to know ([`lockstep_core::sink::Sink::resume`]); a source remembers copies under way, loads
//! that were asked for, and what it has told its server. It does so in documents of its [`Folder`].

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use lockstep_core::folder::{self, Folder};
use lockstep_core::token::Token;
use lockstep_core::{ErrorKind, Result};
use serde::ser::Error as _;
use serde::{Serialize, Serializer};

/// Where a source's documents are kept.
#[async_trait]
pub trait CheckpointsUnderTest: Send + Sync {
    /// Opens them for whoever comes next. Each time the same ones, and with a greater token.
    async fn open(&self, token: Token) -> Folder;

    /// Whether whoever opened them before may still write, and is refused. Else nobody is left when they are opened again.
    fn fences(&self) -> bool;
}

/// Makes a test of each check. `$make` is an async function that gives `Option<impl CheckpointsUnderTest>`: `None` where what it
/// needs is not there.
#[macro_export]
macro_rules! checkpoint_suite {
    ($make:path) => {
        $crate::checkpoint_suite!($make;
            who_comes_next_finds_what_was_written,
            a_document_is_there_as_a_whole,
            what_cannot_be_written_leaves_what_was_there,
            whoever_comes_next_finds_what_was_answered,
            who_has_been_followed_writes_nothing,
        );
    };
    ($make:path; $($check:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $check() {
            if let Some(under_test) = $make().await {
                $crate::checkpoint::$check(&under_test).await;
            }
        }
    )*};
}

const NAME: &str = "copy.json";

/// Writes documents into a fresh directory, as whoever takes over lays them out.
pub fn lay_out<'a>(directory: &Path, documents: impl IntoIterator<Item = (&'a str, &'a [u8])>) {
    for (name, content) in documents {
        folder::put(&directory.join(name), content).expect("laid out");
    }
}

/// Writes for whoever waits for it: on a thread that may block.
async fn replace(
    folder: &Folder,
    name: &'static str,
    content: impl Serialize + Send + 'static,
) -> Result<()> {
    let folder = folder.clone();
    let written = tokio::task::spawn_blocking(move || folder.replace(name, &content));
    written.await.expect("it does not panic")
}

async fn remove(folder: &Folder, name: &'static str) -> Result<()> {
    let folder = folder.clone();
    let removed = tokio::task::spawn_blocking(move || folder.remove(name));
    removed.await.expect("it does not panic")
}

/// The document that is there, as what it was written from.
fn found<T: serde::de::DeserializeOwned>(folder: &Folder, name: &str) -> Option<T> {
    let bytes = folder.read(name).expect("readable")?;
    Some(serde_json::from_slice(&bytes).expect("a whole document"))
}

/// Documents are found by their names, in the form that was written last; those that were removed are gone.
pub async fn who_comes_next_finds_what_was_written(under_test: &dyn CheckpointsUnderTest) {
    let first = under_test.open(Token(1)).await;
    assert_eq!(found::<u64>(&first, NAME), None, "nothing was written");
    let text = "naïve\u{0}\n".repeat(50_000);
    replace(&first, NAME, 1).await.expect("written");
    replace(&first, NAME, text.clone()).await.expect("replaced");
    replace(&first, "told.json", [7, 8]).await.expect("written");
    replace(&first, "gone.json", 1).await.expect("written");
    remove(&first, "gone.json").await.expect("removed");
    remove(&first, "never.json")
        .await
        .expect("nothing to remove");
    for (token, folder) in [(1, first), (2, under_test.open(Token(2)).await)] {
        assert_eq!(found(&folder, NAME), Some(text.clone()), "opening {token}");
        assert_eq!(found(&folder, "told.json"), Some([7, 8]), "opening {token}");
        assert_eq!(found::<u64>(&folder, "gone.json"), None, "opening {token}");
    }
    // The last word counts, whichever it is.
    for token in 3..20 {
        let folder = under_test.open(Token(token)).await;
        let before = found(&folder, "told.json");
        assert_eq!(before, Some([token + 4, token + 5]), "opening {token}");
        let told = replace(&folder, "told.json", [token + 5, token + 6]).await;
        told.expect("replaced");
    }
}

/// Whoever reads while it is replaced finds one or the other.
pub async fn a_document_is_there_as_a_whole(under_test: &dyn CheckpointsUnderTest) {
    const WORDS: usize = 20_000;
    let folder = under_test.open(Token(1)).await;
    replace(&folder, NAME, vec![0; WORDS])
        .await
        .expect("written");
    let over = Arc::new(AtomicBool::new(false));
    let reader = {
        let (folder, over) = (folder.clone(), Arc::clone(&over));
        tokio::task::spawn_blocking(move || {
            while !over.load(Ordering::Acquire) {
                let words: Vec<u64> = found(&folder, NAME).expect("it is never gone");
                assert!(words.len() == WORDS && words.iter().all(|word| *word == words[0]));
            }
        })
    };
    for number in 1..30_u64 {
        replace(&folder, NAME, vec![number; WORDS])
            .await
            .expect("replaced");
    }
    over.store(true, Ordering::Release);
    reader.await.expect("whole each time");
}

/// Something that is no document.
struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: Serializer>(&self, _: S) -> std::result::Result<S::Ok, S::Error> {
        Err(S::Error::custom("it cannot be written"))
    }
}

/// An error is an error, and no half of a write.
pub async fn what_cannot_be_written_leaves_what_was_there(under_test: &dyn CheckpointsUnderTest) {
    let first = under_test.open(Token(1)).await;
    replace(&first, NAME, 1).await.expect("written");
    let refused = replace(&first, NAME, (1, Unwritable)).await;
    assert!(refused.is_err());
    assert_eq!(found(&first, NAME), Some(1));
    drop(first);
    assert_eq!(found(&under_test.open(Token(2)).await, NAME), Some(1));
}

/// Whoever comes next, at any moment of the former's writing, finds what had been answered until then, or something newer.
pub async fn whoever_comes_next_finds_what_was_answered(under_test: &dyn CheckpointsUnderTest) {
    let mut next = 1;
    for round in 1..12 {
        let folder = under_test.open(Token(2 * round)).await;
        let answered = Arc::new(AtomicU64::new(0));
        let over = Arc::new(AtomicBool::new(false));
        let writer = tokio::task::spawn_blocking({
            let (answered, over) = (Arc::clone(&answered), Arc::clone(&over));
            move || {
                let mut numbers = next..;
                while !over.load(Ordering::Acquire)
                    && let Some(number) = numbers.next()
                    && folder.replace(NAME, &number).is_ok()
                {
                    answered.store(number, Ordering::Release);
                }
                numbers.start
            }
        });
        while answered.load(Ordering::Acquire) < next + round % 5 && !writer.is_finished() {
            tokio::task::yield_now().await;
        }
        // One that is fenced writes on until it is refused; any other is gone before somebody comes.
        over.store(!under_test.fences(), Ordering::Release);
        while !under_test.fences() && !writer.is_finished() {
            tokio::task::yield_now().await;
        }
        let at_least = answered.load(Ordering::Acquire);
        let there = found::<u64>(&under_test.open(Token(2 * round + 1)).await, NAME);
        assert!(
            there >= Some(at_least.max(next)),
            "{there:?}, and {at_least} was answered"
        );
        over.store(true, Ordering::Release);
        next = writer.await.expect("it does not panic");
    }
}

/// A process that was frozen when another one took over changes nothing when it wakes up.
pub async fn who_has_been_followed_writes_nothing(under_test: &dyn CheckpointsUnderTest) {
    if !under_test.fences() {
        return;
    }
    let former = under_test.open(Token(5)).await;
    replace(&former, NAME, 1).await.expect("written");
    let now = under_test.open(Token(7)).await;
    for refused in [
        replace(&former, NAME, 2).await,
        replace(&former, "new.json", 2).await,
        remove(&former, NAME).await,
    ] {
        assert_eq!(
            refused.expect_err("it has been followed").kind(),
            ErrorKind::Busy
        );
    }
    replace(&now, "told.json", 3).await.expect("written");
    let last = under_test.open(Token(8)).await;
    assert_eq!(found(&last, NAME), Some(1));
    assert_eq!(found(&last, "told.json"), Some(3));
    assert_eq!(found::<u64>(&last, "new.json"), None);
}

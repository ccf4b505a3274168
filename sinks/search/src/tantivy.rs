//! An embedded search index in a folder.
//!
//! **Guarantee.** Exactly once: the documents and the position they stand for are committed in one atomic step, so that
//! after any crash the index is the state of the source at its position, and goes on from exactly there.
//!
//! One index holds all tables, so that one commit covers them all. It can be searched ([`search`]) while it is written.

mod config;
mod engine;
mod erase;
mod inspect;
mod layout;
mod progress;
mod query;
mod sink;
mod worker;

pub use config::{Config, DEFAULT_COMMIT_INTERVAL, DEFAULT_MEMORY, MIN_MEMORY};
pub use query::{Hit, search};
pub use sink::Tantivy;

use ::tantivy::TantivyError;
use lockstep_core::{Error, ErrorKind};

/// Whether the disk is full. What the index's own threads met is told as text.
fn is_full(error: &TantivyError) -> bool {
    let kind = match error {
        TantivyError::IoError(error) => ErrorKind::of_storage(&**error),
        other => ErrorKind::of_storage(other),
    };
    let said = || error.to_string();
    kind == ErrorKind::Full
        || ["StorageFull", "No space left"]
            .iter()
            .any(|words| said().contains(words))
}

/// A failure of the index: always of the disk, or of what is on it.
fn storage(doing: &str, error: TantivyError) -> Error {
    let (kind, remedy) = match &error {
        TantivyError::LockFailure(..) => (
            ErrorKind::Busy,
            "another process writes this index: stop it, or give this sink another `path`",
        ),
        TantivyError::SchemaError(_) => (
            ErrorKind::Setup,
            "the folder holds an index of something else, or of another version of lockstep: choose another `path`, or remove it and load the tables again",
        ),
        error => (
            match error {
                _ if is_full(error) => ErrorKind::Full,
                // A thread of the index has ended, and why is not told: opened anew, the index says what is wrong.
                TantivyError::ErrorInThread(_) => ErrorKind::Abandoned,
                _ => ErrorKind::Storage,
            },
            "see that the disk has room and that the folder may be written; a damaged index must be removed and its tables loaded again",
        ),
    };
    Error::new(kind, format!("cannot {doing}"))
        .source(error)
        .remedy(remedy)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_may_pass_is_tried_again() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let killed = "An index writer was killed";
        let kind = |error| storage("commit", error).kind();
        assert_eq!(kind(TantivyError::IoError(Arc::new(full))), ErrorKind::Full);
        assert_eq!(
            kind(TantivyError::InternalError(
                "No space left on device".into()
            )),
            ErrorKind::Full
        );
        assert_eq!(
            kind(TantivyError::ErrorInThread(killed.into())),
            ErrorKind::Abandoned
        );
        assert_eq!(
            kind(TantivyError::InternalError("broken".into())),
            ErrorKind::Storage
        );
    }
}

//! What was read of the siblings of branches in doubt, kept for after a restart.
//!
//! A sibling that was rolled back, or committed and had nothing that could go on, waits for nobody: its source is confirmed past it, and does not tell of it
//! again. So what is known through it of a branch in doubt is on disk before that: until then, its source is not told how far all has gone on.
//! A sibling that has committed needs no note: it waits, and comes again.
//!
//! A note is of one branch by its place of the log, which comes again as long as it is in doubt. So there are never more of them than
//! branches in doubt, and one that has outlived its branch says nothing of another one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lockstep_core::batch::Prepared;
use lockstep_core::folder::Folder;
use lockstep_core::position::Lsn;
use lockstep_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// The document, in the folder of the source that has the branches in doubt.
const FILE: &str = "evidence.json";

/// How long a branch may stay in doubt before what is known of it is written: those whose coordinator is at work have ended by then.
const SETTLE: Duration = Duration::from_millis(50);

/// Until it is tried again, when it could not be written.
const AGAIN: Duration = Duration::from_secs(5);

/// What is known of a branch in doubt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    gid: String,
    /// Where it was prepared, as a number, and when.
    lsn: u64,
    prepared_micros: i64,
    /// Sources where others of its transaction have committed, and where they were rolled back.
    committed: BTreeSet<String>,
    rolled_back: BTreeSet<String>,
}

#[derive(Default, Serialize, Deserialize)]
struct Document {
    branches: Vec<Note>,
}

/// See the module's page.
pub(super) struct Notes {
    sources: Vec<OfSource>,
    /// Branches of which more is known than was written, or is being written, with the sources that have told it.
    fresh: BTreeMap<Branch, Tellers>,
    /// The sources that have told what is being written.
    writing: Tellers,
    writers: JoinSet<Written>,
    /// When it is looked whether something is to be written.
    due: Option<Instant>,
    /// It could not be written, and that was logged.
    has_failed: bool,
}

/// Sources that have told something, and a place before it in the log of each.
type Tellers = BTreeMap<usize, Lsn>;

/// A branch in doubt: its source, and where it was prepared.
type Branch = (usize, Lsn);

struct OfSource {
    name: Arc<str>,
    folder: Folder,
    notes: BTreeMap<Lsn, Note>,
    /// As the document has them.
    written: Vec<Note>,
}

/// What has come of writing the documents of some sources.
type Written = Vec<(usize, Vec<Note>, Result<()>)>;

impl Notes {
    /// Of the sources with these names and folders, as an earlier life has left them. A document that cannot be read says nothing.
    pub fn open(sources: Vec<(Arc<str>, Folder)>) -> Self {
        let sources = sources.into_iter().map(|(name, folder)| {
            let written = read(&folder).unwrap_or_else(|error| {
                tracing::warn!(source = %name, %error, "what was known of branches in doubt is lost");
                Vec::new()
            });
            let notes = written.iter().map(|note| (Lsn(note.lsn), note.clone()));
            OfSource {
                notes: notes.collect(),
                name,
                folder,
                written,
            }
        });
        Notes {
            sources: sources.collect(),
            fresh: BTreeMap::new(),
            writing: Tellers::new(),
            writers: JoinSet::new(),
            due: None,
            has_failed: false,
        }
    }

    /// What is known of a branch in doubt: sources where others of its transaction have committed, and where they were rolled back.
    pub fn of(&self, source: usize, prepared: &Prepared) -> Option<[&BTreeSet<String>; 2]> {
        let note = self.sources[source].notes.get(&prepared.lsn)?;
        let is_it = *note.gid == *prepared.gid && note.prepared_micros == prepared.micros;
        is_it.then_some([&note.committed, &note.rolled_back])
    }

    /// Notes what is known of a branch in doubt, since the source `teller` has told of one that ended, behind this place of its log.
    pub fn put(
        &mut self,
        (source, prepared): (usize, &Prepared),
        [committed, rolled_back]: [Vec<String>; 2],
        (teller, place): (usize, Lsn),
    ) {
        if committed.is_empty() && rolled_back.is_empty() {
            return;
        }
        let note = Note {
            gid: prepared.gid.to_string(),
            lsn: prepared.lsn.0,
            prepared_micros: prepared.micros,
            committed: committed.into_iter().collect(),
            rolled_back: rolled_back.into_iter().collect(),
        };
        let notes = &mut self.sources[source].notes;
        if notes.get(&prepared.lsn) == Some(&note) {
            return;
        }
        notes.insert(prepared.lsn, note);
        let tellers = self.fresh.entry((source, prepared.lsn)).or_default();
        add(tellers, teller, place);
        self.is_due();
    }

    /// A branch is not in doubt any more.
    pub fn ended(&mut self, source: usize, prepared: &Prepared) {
        if self.sources[source].notes.remove(&prepared.lsn).is_some() {
            self.fresh.remove(&(source, prepared.lsn));
            self.is_due();
        }
    }

    /// A source reads another log: what is in doubt there is something else, and what it has told does not count any more.
    pub fn forget(&mut self, source: usize) {
        let name = Arc::clone(&self.sources[source].name);
        self.fresh.retain(|(of, _), _| *of != source);
        self.sources[source].notes.clear();
        for of in &mut self.sources {
            for note in of.notes.values_mut() {
                note.committed.remove(&*name);
                note.rolled_back.remove(&*name);
            }
        }
        self.is_due();
    }

    /// How far a source may be told at most that all has gone on: something that it has told behind that waits to be written. `None`: nothing does.
    pub fn limit(&self, source: usize) -> Option<Lsn> {
        let waiting = self.fresh.values().chain([&self.writing]);
        let places = waiting.filter_map(|tellers| tellers.get(&source));
        places.min().copied()
    }

    /// Writes what is to be written, and returns when something has changed of [`Notes::limit`]. Pends while there is nothing to do.
    /// `is_there` says which branches may still be in doubt. Cancel-safe.
    pub async fn settle(&mut self, is_there: impl Fn(usize, Lsn) -> bool) {
        let due = self.due.filter(|_| self.writers.is_empty());
        tokio::select! {
            biased;
            Some(written) = self.writers.join_next() => {
                self.writing.clear();
                self.have_written(written.unwrap_or_else(|error| {
                    let message = "writing has failed unexpectedly";
                    let error = Error::new(ErrorKind::Storage, message).source(error);
                    vec![(0, self.sources[0].written.clone(), Err(error))]
                }));
            }
            () = until(due) => {
                self.due = None;
                self.write(is_there);
            }
        }
    }

    fn is_due(&mut self) {
        let soon = Instant::now() + SETTLE;
        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
    }

    fn write(&mut self, is_there: impl Fn(usize, Lsn) -> bool) {
        let mut documents = Vec::new();
        for (source, of) in self.sources.iter_mut().enumerate() {
            of.notes.retain(|lsn, _| is_there(source, *lsn));
            let notes: Vec<Note> = of.notes.values().cloned().collect();
            if notes != of.written {
                documents.push((source, of.folder.clone(), notes));
            }
        }
        self.writing.clear();
        for (teller, place) in std::mem::take(&mut self.fresh).into_values().flatten() {
            add(&mut self.writing, teller, place);
        }
        if documents.is_empty() {
            self.writing.clear();
            return;
        }
        self.writers.spawn_blocking(move || {
            let written = documents.into_iter().map(|(source, folder, branches)| {
                let document = Document { branches };
                let result = folder.replace(FILE, &document);
                (source, document.branches, result)
            });
            written.collect()
        });
    }

    /// What could not be written keeps nobody waiting: without it a person may have to decide after a restart, and nothing is lost.
    fn have_written(&mut self, written: Written) {
        let mut failed = None;
        for (source, notes, result) in written {
            match result {
                Ok(()) => self.sources[source].written = notes,
                Err(error) => {
                    failed = Some(error.at(format!("sources.{}", self.sources[source].name)))
                }
            }
        }
        if let Some(error) = &failed {
            self.due.get_or_insert_with(|| Instant::now() + AGAIN);
            if !self.has_failed {
                tracing::warn!(%error, "what was read of branches in doubt would not be known after a restart; it is tried again");
            }
        }
        self.has_failed = failed.is_some();
    }
}

fn add(tellers: &mut Tellers, teller: usize, place: Lsn) {
    let known = tellers.entry(teller).or_insert(place);
    *known = place.min(*known);
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn read(folder: &Folder) -> Result<Vec<Note>> {
    let unreadable = |error: std::io::Error| {
        let message = format!("{} cannot be read", folder.join(FILE).display());
        Error::new(ErrorKind::of_storage(&error), message).source(error)
    };
    let Some(bytes) = folder.read(FILE).map_err(unreadable)? else {
        return Ok(Vec::new());
    };
    let document: Document =
        serde_json::from_slice(&bytes).map_err(|error| unreadable(error.into()))?;
    Ok(document.branches)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(gid: &str, lsn: u64) -> Prepared {
        Prepared {
            gid: gid.into(),
            lsn: Lsn(lsn),
            micros: 7,
            marker: None,
        }
    }

    fn open(folder: &std::path::Path) -> Notes {
        let of = |name: &str| (name.into(), Folder::from(folder.join(name)));
        Notes::open(vec![of("orders"), of("inventory")])
    }

    fn rolled_back_in(source: &str) -> [Vec<String>; 2] {
        [Vec::new(), vec![source.to_owned()]]
    }

    /// Until nothing is to be written, with these branches in doubt.
    async fn settled(notes: &mut Notes, in_doubt: &[u64]) {
        while notes.due.is_some() || !notes.writers.is_empty() {
            notes.settle(|_, lsn| in_doubt.contains(&lsn.0)).await;
        }
    }

    #[tokio::test]
    async fn what_is_known_is_written_before_its_source_is_told_and_is_there_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut notes = open(folder.path());
        let one = prepared("g", 10);
        notes.put((1, &one), rolled_back_in("orders"), (0, Lsn(5)));
        assert_eq!(notes.limit(0), Some(Lsn(5)), "not on disk");
        assert_eq!(notes.limit(1), None, "it has told nothing");
        settled(&mut notes, &[10]).await;
        assert_eq!(notes.limit(0), None);

        let mut notes = open(folder.path());
        let expected = BTreeSet::from(["orders".to_owned()]);
        assert_eq!(notes.of(1, &one), Some([&BTreeSet::new(), &expected]));
        for other in [prepared("h", 10), prepared("g", 11)] {
            assert_eq!(notes.of(1, &other), None);
        }
        assert_eq!(notes.of(0, &one), None);
        let mut later = one.clone();
        later.micros = 8;
        assert_eq!(notes.of(1, &later), None, "another log has that place");

        // Told again, nothing is new; ended, nothing is left.
        notes.put((1, &one), rolled_back_in("orders"), (0, Lsn(5)));
        assert_eq!(notes.limit(0), None);
        notes.ended(1, &one);
        settled(&mut notes, &[]).await;
        assert!(read(&notes.sources[1].folder).expect("readable").is_empty());
    }

    #[tokio::test]
    async fn what_ends_at_once_is_never_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut notes = open(folder.path());
        let one = prepared("g", 10);
        notes.put((1, &one), rolled_back_in("orders"), (0, Lsn(5)));
        notes.ended(1, &one);
        assert_eq!(notes.limit(0), None);
        settled(&mut notes, &[]).await;
        assert!(!folder.path().join("inventory").join(FILE).exists());
    }

    #[tokio::test]
    async fn what_cannot_be_written_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut notes = open(folder.path());
        // No directory can be made in its place.
        std::fs::write(folder.path().join("inventory"), "").expect("written");
        notes.put(
            (1, &prepared("g", 10)),
            rolled_back_in("orders"),
            (0, Lsn(5)),
        );
        while !notes.has_failed {
            notes.settle(|_, _| true).await;
        }
        assert_eq!(notes.limit(0), None);
        std::fs::remove_file(folder.path().join("inventory")).expect("removed");
        settled(&mut notes, &[10]).await;
        assert!(!notes.has_failed);
        assert_eq!(open(folder.path()).sources[1].notes.len(), 1);
    }

    #[tokio::test]
    async fn another_log_and_branches_that_did_not_come_again_leave_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut notes = open(folder.path());
        notes.put(
            (1, &prepared("g", 10)),
            rolled_back_in("orders"),
            (0, Lsn(5)),
        );
        notes.put(
            (0, &prepared("h", 10)),
            rolled_back_in("inventory"),
            (1, Lsn(5)),
        );
        settled(&mut notes, &[10]).await;
        notes.forget(0);
        assert!(notes.sources[0].notes.is_empty());
        let known = notes.of(1, &prepared("g", 10));
        assert_eq!(known, Some([&BTreeSet::new(); 2]), "told by the log before");
        settled(&mut notes, &[]).await;
        for source in &open(folder.path()).sources {
            assert!(source.written.is_empty(), "{}", source.name);
        }
    }
}

//! Requests: taken, kept over restarts, reported on.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lockstep_core::folder::Folder;
use lockstep_core::source::{Notice, Reload, ReloadRequest, ReloadState, Reloads};
use lockstep_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// Requests that may wait.
const MOST: usize = 100;
/// Requests that have ended and are still told of.
const ENDED: usize = 20;

/// A request, and how far it has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) request: ReloadRequest,
    /// The key of the last row that is durable everywhere.
    #[serde(default)]
    pub(super) after: Option<Vec<String>>,
    /// The table has been emptied, where that was asked for.
    #[serde(default)]
    pub(super) emptied: bool,
    #[serde(default)]
    pub(super) rows: u64,
    #[serde(default)]
    pub(super) superseded: u64,
    /// Rows to be read once more, by key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    owed: Vec<Owed>,
    /// Nobody asked for it but lockstep itself, so it is never given up: rows would be missing, and nobody would know.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) own: bool,
    /// Why the last try failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Owed {
    key: Vec<String>,
    /// It came to be owed once more while it was being read.
    #[serde(skip)]
    again: bool,
}

/// What the file holds.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// Of the next request.
    next: u64,
    entries: VecDeque<Entry>,
}

impl Kept {
    /// The number that the request gets.
    fn push(&mut self, request: ReloadRequest, own: bool) -> u64 {
        let id = self.next;
        self.next += 1;
        self.entries.push_back(Entry {
            id,
            request,
            after: None,
            emptied: false,
            rows: 0,
            superseded: 0,
            owed: Vec::new(),
            own,
            problem: None,
        });
        id
    }
}

struct State {
    kept: Kept,
    /// The first entry is being carried out.
    running: bool,
    ended: VecDeque<Reload>,
}

/// The name of the document in the source's state directory.
const NAME: &str = "reloads.json";

/// See the module's page.
pub struct Desk {
    folder: Folder,
    /// Names of the tables that can be loaded.
    tables: Vec<String>,
    state: Mutex<State>,
    news: Arc<Notify>,
}

impl Desk {
    /// The desk of a source with this state directory.
    ///
    /// # Errors
    /// Of kind `Storage`, when the requests of earlier runs cannot be read.
    pub fn open(folder: &Folder, tables: Vec<String>) -> Result<Self> {
        let path = folder.join(NAME);
        let read = folder.read(NAME);
        let read = read.map_err(|error| storage(&path, "cannot be read").source(error))?;
        let kept = match read {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                storage(&path, "is damaged")
                    .source(error)
                    .remedy("remove it, and ask again for the tables that were to be loaded")
            })?,
            None => Kept::default(),
        };
        Ok(Desk {
            folder: folder.clone(),
            tables,
            state: Mutex::new(State {
                kept,
                running: false,
                ended: VecDeque::new(),
            }),
            news: Arc::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a request, safe against power loss.
    ///
    /// # Errors
    /// See [`Reloads::request`].
    pub fn take(&self, request: ReloadRequest) -> Result<u64> {
        self.take_within(request, MOST)
    }

    /// As [`Desk::take`], for one that nobody waits for an answer to: there may be any number.
    ///
    /// # Errors
    /// Of kind `Invalid` when it can never be carried out, else when it cannot be written.
    pub fn take_signal(&self, request: ReloadRequest) -> Result<u64> {
        self.take_within(request, usize::MAX)
    }

    fn take_within(&self, request: ReloadRequest, most: usize) -> Result<u64> {
        if !self.tables.contains(&request.table) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("there is no table {} to load", request.table),
            )
            .remedy(format!("choose one of {}", self.tables.join(", "))));
        }
        if request.truncate && request.condition.is_some() {
            return Err(Error::new(
                ErrorKind::Invalid,
                "`truncate` empties the whole table, and `where` would load a part of it",
            )
            .remedy("leave one of them out"));
        }
        let mut state = self.lock();
        if state.kept.entries.len() >= most {
            return Err(Error::new(
                ErrorKind::Overloaded,
                format!("{MOST} requests wait already"),
            )
            .remedy("wait until some are done"));
        }
        let id = state.kept.push(request, false);
        if let Err(error) = self.write(&state.kept) {
            state.kept.entries.pop_back();
            return Err(error);
        }
        self.news.notify_one();
        Ok(id)
    }

    /// Takes what an interrupted copy has left to do, safe against power loss; what has been taken already is not taken
    /// twice.
    ///
    /// # Errors
    /// Of kind `Storage`.
    pub fn take_rest(&self, rest: Vec<ReloadRequest>) -> Result<()> {
        let mut state = self.lock();
        for request in rest {
            let entries = &mut state.kept.entries;
            match entries.iter_mut().find(|entry| entry.request == request) {
                Some(entry) => entry.own = true,
                None => drop(state.kept.push(request, true)),
            }
        }
        self.write(&state.kept)?;
        self.news.notify_one();
        Ok(())
    }

    /// The next request to carry out; waits for one. For one caller. Cancel-safe.
    pub(super) async fn next(&self) -> Entry {
        loop {
            let first = {
                let mut state = self.lock();
                let first = state.kept.entries.front().cloned();
                state.running = first.is_some();
                first
            };
            match first {
                Some(entry) => return entry,
                None => self.news.notified().await,
            }
        }
    }

    /// The first request has come this far.
    pub(super) fn reached(&self, entry: &Entry) -> Result<()> {
        let mut state = self.lock();
        if let Some(first) = state
            .kept
            .entries
            .front_mut()
            .filter(|first| first.id == entry.id)
        {
            let owed = std::mem::take(&mut first.owed);
            first.clone_from(entry);
            (first.owed, first.problem) = (owed, None);
        }
        self.write(&state.kept)
    }

    /// Rows of the table that is being loaded have to be read once more, safe against power loss.
    ///
    /// # Errors
    /// When that cannot be written.
    pub(super) fn owe(&self, keys: Vec<Vec<String>>) -> Result<()> {
        let mut state = self.lock();
        let Some(first) = state.kept.entries.front_mut() else {
            return Ok(());
        };
        for key in keys {
            match first.owed.iter_mut().find(|owed| owed.key == key) {
                Some(owed) => owed.again = true,
                None => first.owed.push(Owed { key, again: false }),
            }
        }
        self.write(&state.kept)
    }

    /// A row that the first request has to read once more, which is done now.
    pub(super) fn owed(&self, entry: &Entry) -> Option<Vec<String>> {
        let mut state = self.lock();
        let first = state.kept.entries.front_mut();
        let owed = first
            .filter(|first| first.id == entry.id)?
            .owed
            .first_mut()?;
        owed.again = false;
        Some(owed.key.clone())
    }

    /// It is durable as it was read. False when it has come to be owed again meanwhile; then it is the last one.
    pub(super) fn paid(&self, entry: &Entry, key: &[String]) -> Result<bool> {
        let mut state = self.lock();
        let first = state.kept.entries.front_mut();
        let Some(first) = first.filter(|first| first.id == entry.id) else {
            return Ok(true);
        };
        let at = first.owed.iter().position(|owed| owed.key == key);
        let owed = at.map(|at| first.owed.remove(at));
        let again = owed.filter(|owed| owed.again);
        let is_paid = again.is_none();
        first.owed.extend(again);
        self.write(&state.kept)?;
        Ok(is_paid)
    }

    /// The first request has failed, and has its turn again behind the others.
    pub(super) fn postpone(&self, entry: &Entry, problem: &Error) -> Result<()> {
        let mut state = self.lock();
        let first = state
            .kept
            .entries
            .pop_front_if(|first| first.id == entry.id);
        if let Some(mut first) = first {
            first.problem = Some(problem.to_string());
            state.kept.entries.push_back(first);
        }
        state.running = false;
        self.write(&state.kept)
    }

    /// What lockstep itself has to load and cannot: rows are missing in sinks.
    pub fn notices(&self) -> Vec<Notice> {
        let state = self.lock();
        let stuck = state.kept.entries.iter().filter(|entry| entry.own);
        let told = stuck.filter_map(|entry| {
            let problem = entry.problem.as_ref()?;
            Some(Notice {
                subject: format!("table {}", entry.request.table),
                what: format!("is not loaded, and its rows are missing in the sinks: {problem}"),
                remedy: "mend what it names; it is tried again".to_owned(),
                gap: true,
            })
        });
        told.collect()
    }

    /// The first request has ended.
    pub(super) fn end(&self, entry: &Entry, problem: Option<&Error>) -> Result<()> {
        let mut state = self.lock();
        state.kept.entries.retain(|kept| kept.id != entry.id);
        state.running = false;
        if state.ended.len() == ENDED {
            state.ended.pop_front();
        }
        state.ended.push_back(Reload {
            problem: problem.map(ToString::to_string),
            ..entry.report(match problem {
                None => ReloadState::Done,
                Some(_) => ReloadState::Failed,
            })
        });
        self.write(&state.kept)
    }

    /// Writes it, whole or not at all.
    fn write(&self, kept: &Kept) -> Result<()> {
        self.folder.replace(NAME, kept)
    }
}

impl Entry {
    fn report(&self, state: ReloadState) -> Reload {
        Reload {
            id: self.id,
            request: self.request.clone(),
            state,
            rows: self.rows,
            superseded: self.superseded,
            problem: self.problem.clone(),
        }
    }
}

impl Reloads for Desk {
    fn request(&self, request: ReloadRequest) -> Result<u64> {
        self.take(request)
    }

    fn list(&self) -> Vec<Reload> {
        let state = self.lock();
        let open = state.kept.entries.iter().enumerate().map(|(at, entry)| {
            entry.report(match at == 0 && state.running {
                true => ReloadState::Running,
                false => ReloadState::Waiting,
            })
        });
        state.ended.iter().cloned().chain(open).collect()
    }
}

fn storage(path: &Path, what: &str) -> Error {
    Error::new(
        ErrorKind::Storage,
        format!("the file of reloads {} {what}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(table: &str) -> ReloadRequest {
        ReloadRequest {
            table: table.into(),
            condition: None,
            truncate: false,
        }
    }

    #[tokio::test]
    async fn requests_survive_and_are_carried_out_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = || {
            Desk::open(
                &folder.path().into(),
                vec!["public.a".into(), "public.b".into()],
            )
        };
        let desk = open().expect("opens");
        assert_eq!(desk.take(request("public.a")).expect("taken"), 0);
        assert_eq!(desk.take(request("public.b")).expect("taken"), 1);
        let error = desk.take(request("public.c")).expect_err("no such table");
        assert!(error.to_string().contains("public.a, public.b"), "{error}");
        let mut first = desk.next().await;
        first.after = Some(vec!["7".into()]);
        first.rows = 7;
        desk.reached(&first).expect("kept");
        drop(desk);

        let desk = open().expect("opens");
        let again = desk.next().await;
        assert_eq!(
            (again.id, again.rows, again.after),
            (0, 7, Some(vec!["7".into()]))
        );
        let states = |desk: &Desk| desk.list().iter().map(|one| one.state).collect::<Vec<_>>();
        assert_eq!(states(&desk), [ReloadState::Running, ReloadState::Waiting]);
        desk.end(&first, None).expect("kept");
        assert_eq!(desk.next().await.id, 1);
        assert_eq!(states(&desk), [ReloadState::Done, ReloadState::Running]);
        assert_eq!(desk.take(request("public.a")).expect("taken"), 2);
    }

    #[tokio::test]
    async fn what_lockstep_asked_for_itself_is_never_given_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = || {
            Desk::open(
                &folder.path().into(),
                vec!["public.a".into(), "public.b".into()],
            )
        };
        let desk = open().expect("opens");
        desk.take_rest(vec![request("public.a")]).expect("taken");
        desk.take(request("public.b")).expect("taken");
        let first = desk.next().await;
        assert!(first.own && desk.notices().is_empty());
        let error = Error::new(ErrorKind::Setup, "no right to read it");
        desk.postpone(&first, &error).expect("kept");
        assert_eq!(desk.next().await.request.table, "public.b");
        drop(desk);
        let desk = open().expect("opens");
        let told = desk.notices();
        assert!(told[0].gap && told[0].what.contains("no right"), "{told:?}");
        let second = desk.next().await;
        desk.end(&second, None).expect("kept");
        let mut again = desk.next().await;
        assert_eq!(again.request.table, "public.a");
        again.rows = 1;
        desk.reached(&again).expect("kept");
        assert!(desk.notices().is_empty(), "it goes on");
    }

    #[tokio::test]
    async fn rows_that_are_owed_survive_until_they_are_paid() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = || Desk::open(&folder.path().into(), vec!["public.a".into()]);
        let desk = open().expect("opens");
        desk.take(request("public.a")).expect("taken");
        let entry = desk.next().await;
        let key = |text: &str| vec![text.to_owned()];
        desk.owe(vec![key("1"), key("2")]).expect("kept");
        // How far the load is says nothing of them.
        desk.reached(&entry).expect("kept");
        drop(desk);
        let desk = open().expect("opens");
        assert_eq!(desk.owed(&entry), Some(key("1")));
        desk.owe(vec![key("1")]).expect("kept");
        assert!(
            !desk.paid(&entry, &key("1")).expect("kept"),
            "it was owed again"
        );
        for number in ["2", "1"] {
            assert_eq!(desk.owed(&entry), Some(key(number)));
            assert!(desk.paid(&entry, &key(number)).expect("kept"));
        }
        assert_eq!(desk.owed(&entry), None);
    }
}

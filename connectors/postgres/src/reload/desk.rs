//! Requests: taken, kept over restarts, reported on.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lockstep_core::source::{Reload, ReloadRequest, ReloadState, Reloads};
use lockstep_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::state;

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
    fn push(&mut self, request: ReloadRequest) -> u64 {
        let id = self.next;
        self.next += 1;
        self.entries.push_back(Entry {
            id,
            request,
            after: None,
            emptied: false,
            rows: 0,
            superseded: 0,
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

/// See the module's page.
pub struct Desk {
    path: PathBuf,
    /// Names of the tables that can be loaded.
    tables: Vec<String>,
    state: Mutex<State>,
    news: Arc<Notify>,
}

impl Desk {
    /// The desk of a source whose state is in `directory`.
    ///
    /// # Errors
    /// Of kind `Storage`, when the requests of earlier runs cannot be read.
    pub fn open(directory: &Path, tables: Vec<String>) -> Result<Self> {
        let path = directory.join("reloads.json");
        let kept = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                storage(&path, "is damaged")
                    .source(error)
                    .remedy("remove it, and ask again for the tables that were to be loaded")
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(storage(&path, "cannot be read").source(error)),
        };
        Ok(Desk {
            path,
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
        if state.kept.entries.len() >= MOST {
            return Err(Error::new(
                ErrorKind::Overloaded,
                format!("{MOST} requests wait already"),
            )
            .remedy("wait until some are done"));
        }
        let id = state.kept.push(request);
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
            let entries = &state.kept.entries;
            if entries.iter().any(|entry| entry.request == request) {
                continue;
            }
            state.kept.push(request);
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
            first.clone_from(entry);
        }
        self.write(&state.kept)
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
        state::replace(&self.path, kept).map_err(|error| {
            let kind = ErrorKind::of_storage(&error);
            failed(kind, &self.path, "cannot be written").source(error)
        })
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
            problem: None,
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
    failed(ErrorKind::Storage, path, what)
}

fn failed(kind: ErrorKind, path: &Path, what: &str) -> Error {
    Error::new(
        kind,
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
        let open = || Desk::open(folder.path(), vec!["public.a".into(), "public.b".into()]);
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
}

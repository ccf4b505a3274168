//! A transaction over several databases.

use std::sync::Arc;
use std::time::Instant;

use lockstep_core::error::At;
use lockstep_core::{Error, ErrorKind, Result};
use tokio_postgres::Client;

use super::finish::{End, Ended, Finishing, Pause, finish_all};
use super::log::{self, Written};
use super::measures::Counters;
use super::prepare::{self, Branch, Vote, Voted, prepare, roll_back};
use super::session::{self, Fate, Participant, Remembered, fate};
use super::{Inner, Point};

/// A transaction that is open in `N` databases.
///
/// Dropped, it is rolled back: its sessions are closed, nothing was prepared. Until a server notices that, which takes as long as
/// the statement that it works at, locks are kept.
#[must_use = "dropped, it is rolled back"]
pub struct Global<const N: usize> {
    inner: Arc<Inner>,
    id: String,
    begun: Instant,
    branches: Vec<Branch>,
}

/// What became of a transaction that was decided to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The name that its branches, its marker, and the log share.
    pub id: String,
    /// Databases that have not committed yet, the others have: they were not reached in time. They are tried again until they have,
    /// and by the next coordinator of this name should this process end before.
    pub behind: Vec<Arc<str>>,
    /// Databases whose branch is not there any more, and has not committed: somebody rolled it back by hand, or the server has lost
    /// it. What the others have committed needs a remedy of the business.
    pub astray: Vec<Arc<str>>,
}

impl Committed {
    /// Whether all databases have committed.
    #[must_use]
    pub fn is_everywhere(&self) -> bool {
        self.behind.is_empty() && self.astray.is_empty()
    }
}

impl<const N: usize> Global<N> {
    pub(super) fn new(
        inner: Arc<Inner>,
        id: String,
        begun: Instant,
        branches: Vec<Branch>,
    ) -> Self {
        Global {
            inner,
            id,
            begun,
            branches,
        }
    }

    /// The name that its branches, its marker, and the log share.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The sessions, in the order of the databases that were given to `begin`. A transaction is open in each; its end is the
    /// coordinator's.
    #[must_use]
    pub fn branches(&self) -> [&Client; N] {
        std::array::from_fn(|at| self.branches[at].session.client())
    }

    /// Commits in all databases, or in none.
    ///
    /// Returns when it is decided, and what is to commit has been told so once, or the time for that
    /// ([`Settings::patience`](super::Settings::patience)) is over. While the answer of the log to the decision is lost and the log
    /// cannot be reached, this pends: nobody knows.
    ///
    /// Not cancel-safe, in the sense that it goes on: dropping the future does not stop what has begun, it is decided in the background as
    /// if it were waited for. When the process ends instead, the next coordinator of this name commits what the log holds, and rolls back the
    /// rest.
    ///
    /// # Errors
    /// It is rolled back, everywhere; branches that cannot be reached are rolled back in the background. By kind: `Invalid`, the work
    /// is refused (a deferred constraint, a transaction that had failed before or was ended by hand); `Busy`, a newer
    /// coordinator has this one's name, or there was a conflict; `Unavailable`, a database was not reached; `Setup`, prepared transactions are
    /// disabled. With two kinds it is not known: `Stopping`, it is left to the next coordinator, since this one was closed meanwhile; and
    /// `Lost`, of a transaction of one database, which was restored or replaced before it could be asked.
    pub async fn commit(self) -> Result<Committed> {
        let Global {
            inner,
            id,
            begun,
            branches,
        } = self;
        let busy = inner.busy();
        let commit = Commit { inner, id, begun };
        let task = tokio::spawn(async move {
            let done = commit.run(branches).await;
            drop(busy);
            done
        });
        match task.await {
            Ok(done) => done,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(not_known("the runtime is shut down")),
        }
    }

    /// Rolls back in all databases, and gives their sessions back.
    pub async fn roll_back(self) {
        let branches = self.branches.into_iter();
        futures_util::future::join_all(branches.map(|branch| roll_back(branch.session))).await;
    }
}

struct Commit {
    inner: Arc<Inner>,
    id: String,
    begun: Instant,
}

/// What the log says.
enum Decided {
    Commit,
    RollBack(Error),
}

impl Commit {
    async fn run(&self, mut branches: Vec<Branch>) -> Result<Committed> {
        let counters = &self.inner.counters;
        let place = self.inner.log().name.clone();
        self.inner.reached(Point::Committing, &place).await;
        if branches.len() == 1
            && let Some(branch) = branches.pop()
        {
            return self.in_one_phase(branch).await;
        }
        let (decides, others): (Vec<Branch>, Vec<Branch>) = branches
            .into_iter()
            .partition(|branch| branch.remembered.gid.is_none());
        let decides = decides.into_iter().next();
        let voting = others
            .into_iter()
            .map(|branch| prepare(&self.inner, branch));
        let voted = futures_util::future::join_all(voting).await;
        if let Some(error) = first_error(&voted) {
            if let Some(branch) = decides {
                roll_back(branch.session).await;
            }
            return Err(self.abort(voted, error).await);
        }
        self.inner.reached(Point::AllPrepared, &place).await;
        match self.decide(decides, &voted).await? {
            Decided::RollBack(error) => Err(self.abort(voted, error).await),
            Decided::Commit => {
                counters.decided(self.begun.elapsed());
                self.inner.reached(Point::Decided, &place).await;
                Ok(self.finish(voted).await)
            }
        }
    }

    /// Writes the decision and commits it.
    ///
    /// # Errors
    /// `Stopping`: nobody knows.
    async fn decide(&self, decides: Option<Branch>, voted: &[Voted]) -> Result<Decided> {
        let inner = &self.inner;
        let own = match decides {
            Some(branch) => Ok(branch),
            None => self.begin_decision().await,
        };
        let Branch {
            participant,
            session,
            remembered,
        } = match own {
            Ok(branch) => branch,
            Err(error) => return Ok(Decided::RollBack(error)),
        };
        let branches: Vec<Remembered> = voted.iter().map(|one| one.remembered.clone()).collect();
        let written = log::write(&session, &self.id, inner.epoch, &remembered, &branches).await;
        let refused = match written {
            Written::Yes => None,
            Written::Fenced => Some(inner.fence()),
            Written::No(error) => Some(error.at("the decision log")),
        };
        if let Some(error) = refused {
            roll_back(session).await;
            return Ok(Decided::RollBack(error));
        }
        inner.reached(Point::Deciding, &participant.name).await;
        match session.run("commit the decision", "COMMIT").await {
            Ok(_) => {
                session.release();
                Ok(Decided::Commit)
            }
            Err(failure) => {
                drop(session);
                let error = failure.error.at("the decision log");
                self.ask(&participant, &remembered, error).await
            }
        }
    }

    async fn begin_decision(&self) -> Result<Branch> {
        let participant = self.inner.log().clone();
        let session = log::session(&participant, self.inner.settings.answer).await?;
        let remembered = session::begin(&session, &participant, None, None).await?;
        Ok(Branch {
            participant,
            session,
            remembered,
        })
    }

    /// Asks until it is known whether a transaction that commits in one phase has committed; `error` is why that is not known.
    async fn ask(
        &self,
        participant: &Participant,
        own: &Remembered,
        error: Error,
    ) -> Result<Decided> {
        let mut pause = Pause::default();
        loop {
            match self.ask_once(participant, own).await {
                Ok(Some(Ok(true))) => return Ok(Decided::Commit),
                Ok(Some(Ok(false))) => return Ok(Decided::RollBack(error)),
                Ok(Some(Err(lost))) => return Err(lost),
                Ok(None) => {}
                Err(error) => tracing::warn!(
                    database = %participant.name, transaction = self.id, %error,
                    "it is not known yet whether a transaction has committed; it is asked again"
                ),
            }
            if !pause.wait(&self.inner.closing).await {
                return Err(not_known("the coordinator is closed"));
            }
        }
    }

    async fn ask_once(
        &self,
        participant: &Participant,
        own: &Remembered,
    ) -> Result<Option<Result<bool>>> {
        let place = format!("database {}", participant.name);
        let session = participant.session(self.inner.settings.answer).await?;
        let known = match fate(&session, own).await.at(&place)? {
            Fate::Committed => Some(true),
            Fate::Aborted => Some(false),
            Fate::Prepared | Fate::Running => None,
            // The row came with the transaction, or did not.
            Fate::Unknown if participant.name == self.inner.log().name => {
                Some(log::holds(&session, &self.id).await.at(&place)?)
            }
            Fate::Unknown => return Ok(Some(Err(lost(&participant.name)))),
        };
        session.release();
        Ok(known.map(Ok))
    }

    async fn in_one_phase(&self, branch: Branch) -> Result<Committed> {
        let Branch {
            participant,
            session,
            remembered,
        } = branch;
        let counters = &self.inner.counters;
        let statements = format!("{}; COMMIT", prepare::CURRENT);
        let committed = match session.run("commit", &statements).await {
            Ok(answer) if answer.text(0) == remembered.xid.to_string() => {
                session.release();
                Ok(())
            }
            Ok(_) => Err(prepare::ended_by_itself(&participant.name)),
            Err(failure) if failure.refused => {
                roll_back(session).await;
                Err(failure.error.at(format!("database {}", participant.name)))
            }
            Err(failure) => {
                drop(session);
                match self.ask(&participant, &remembered, failure.error).await? {
                    Decided::Commit => Ok(()),
                    Decided::RollBack(error) => Err(error),
                }
            }
        };
        match committed {
            Ok(()) => {
                counters.decided(self.begun.elapsed());
                Ok(Committed {
                    id: self.id.clone(),
                    behind: Vec::new(),
                    astray: Vec::new(),
                })
            }
            Err(error) => {
                Counters::add(&counters.aborted);
                Err(error)
            }
        }
    }

    async fn finish(&self, voted: Vec<Voted>) -> Committed {
        let id = self.id.clone();
        let forget = move |inner: &Inner| inner.all_committed(id);
        let branches = voted.into_iter().map(|one| Finishing {
            participant: one.participant,
            branch: one.remembered,
            end: End::Commit,
            session: one.session,
        });
        let ends = finish_all(&self.inner, branches.collect(), forget).await;
        let with = |wanted: fn(Option<Ended>) -> bool| {
            let those = ends.iter().filter(|(_, end)| wanted(*end));
            those.map(|(name, _)| Arc::clone(name)).collect()
        };
        Committed {
            id: self.id.clone(),
            behind: with(|end| end.is_none()),
            astray: with(|end| matches!(end, Some(Ended::Otherwise | Ended::Lost))),
        }
    }

    /// Rolls back what is prepared, or may be.
    async fn abort(&self, voted: Vec<Voted>, error: Error) -> Error {
        Counters::add(&self.inner.counters.aborted);
        let branches = voted
            .into_iter()
            .filter(|one| !matches!(one.vote, Vote::Refused(_)))
            .map(|one| Finishing {
                participant: one.participant,
                branch: one.remembered,
                end: End::RollBack,
                session: one.session,
            });
        finish_all(&self.inner, branches.collect(), |_| {}).await;
        error
    }
}

/// Why the first of those that are not prepared is not.
fn first_error(voted: &[Voted]) -> Option<Error> {
    voted.iter().find_map(|one| match &one.vote {
        Vote::Prepared => None,
        Vote::Refused(error) | Vote::Unsure(error) => Some(error.clone()),
    })
}

fn lost(database: &str) -> Error {
    Error::new(
        ErrorKind::Lost,
        "the server was restored or replaced, and cannot tell whether the transaction has committed",
    )
    .remedy("look at the rows themselves")
    .at(format!("database {database}"))
}

fn not_known(why: &str) -> Error {
    Error::new(
        ErrorKind::Stopping,
        format!("{why} before it is known whether the transaction commits"),
    )
    .remedy("open a coordinator of this name: it commits what was decided, and rolls back the rest")
}

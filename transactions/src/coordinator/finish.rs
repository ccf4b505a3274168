//! The second phase: a branch is brought to its end, for as long as it takes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lockstep_core::Result;
use lockstep_core::error::At;
use tokio_util::sync::CancellationToken;

use super::measures::Counters;
use super::session::{Fate, Participant, Remembered, Session, fate};
use super::{Inner, Point, sql};

/// How a branch is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Commit,
    RollBack,
}

impl End {
    pub(super) fn statement(self, gid: &str) -> String {
        let verb = match self {
            End::Commit => "COMMIT",
            End::RollBack => "ROLLBACK",
        };
        format!("{verb} PREPARED {}", sql::quote(gid))
    }
}

/// How it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// As it should.
    Well,
    /// Otherwise: somebody decided by hand.
    Otherwise,
    /// It was to commit, and its server knows nothing of it any more.
    Lost,
}

/// A branch to be brought to its end.
pub(super) struct Finishing {
    pub(super) participant: Participant,
    pub(super) branch: Remembered,
    pub(super) end: End,
    /// Where it was prepared, and known to be.
    pub(super) session: Option<Session>,
}

impl Finishing {
    /// Tries until it has ended; `None` when the coordinator is closed before. Not cancel-safe in the sense that nobody tries any
    /// more; what it has done stays.
    pub(super) async fn finish(mut self, inner: &Inner) -> Option<Ended> {
        inner.counters.behind.fetch_add(1, Ordering::Relaxed);
        let ended = self.try_for_ever(inner).await;
        inner.counters.behind.fetch_sub(1, Ordering::Relaxed);
        if let Some(Ended::Otherwise | Ended::Lost) = ended {
            Counters::add(&inner.counters.heuristic);
            tracing::error!(
                database = %self.participant.name, gid = self.branch.gid, wanted = ?self.end, ended = ?ended,
                "a branch has not ended as was decided; its databases disagree"
            );
        }
        ended
    }

    async fn try_for_ever(&mut self, inner: &Inner) -> Option<Ended> {
        let mut pause = Pause::default();
        loop {
            match self.attempt(inner).await {
                Ok(Some(ended)) => return Some(ended),
                Ok(None) => {}
                Err(error) => tracing::warn!(
                    database = %self.participant.name, gid = self.branch.gid, %error,
                    "a branch cannot be brought to its end yet; it is tried again"
                ),
            }
            if !pause.wait(&inner.closing).await {
                return None;
            }
        }
    }

    /// One try; `None`: it has not ended yet.
    async fn attempt(&mut self, inner: &Inner) -> Result<Option<Ended>> {
        let place = format!("database {}", self.participant.name);
        let session = match self.session.take() {
            Some(session) => session,
            None => {
                let within = inner.settings.answer;
                let session = self.participant.session(within).await?;
                // Nobody knows what has come of the try before, nor, perhaps, whether it was ever prepared.
                let fate = fate(&session, &self.branch).await.at(&place)?;
                if fate != Fate::Prepared {
                    session.release();
                    return Ok(self.judge(fate));
                }
                session
            }
        };
        inner.reached(Point::Ending, &self.participant.name).await;
        let gid = self.branch.gid.as_deref().unwrap_or_default();
        let done = session
            .run("end the branch", &self.end.statement(gid))
            .await;
        match done {
            Ok(_) => {
                session.release();
                inner.reached(Point::Ended, &self.participant.name).await;
                Ok(Some(Ended::Well))
            }
            // Somebody else was faster.
            Err(failure)
                if failure
                    .state
                    .as_ref()
                    .is_some_and(|state| state.code() == "42704") =>
            {
                session.release();
                Ok(None)
            }
            Err(failure) => Err(failure.error).at(place),
        }
    }

    /// What the end of a branch that is not prepared means.
    fn judge(&self, fate: Fate) -> Option<Ended> {
        match (fate, self.end) {
            (Fate::Prepared | Fate::Running, _) => None,
            (Fate::Committed, End::Commit) | (Fate::Aborted, End::RollBack) => Some(Ended::Well),
            (Fate::Committed, End::RollBack) | (Fate::Aborted, End::Commit) => {
                Some(Ended::Otherwise)
            }
            (Fate::Unknown, End::Commit) => Some(Ended::Lost),
            // What is not there cannot commit.
            (Fate::Unknown, End::RollBack) => Some(Ended::Well),
        }
    }
}

/// Pauses that grow.
#[derive(Debug)]
pub(super) struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Pause(Duration::from_millis(20))
    }
}

impl Pause {
    const LONGEST: Duration = Duration::from_secs(5);

    /// `false`: the coordinator is closed.
    pub(super) async fn wait(&mut self, closing: &CancellationToken) -> bool {
        let pause = self.0;
        self.0 = (pause * 2).min(Self::LONGEST);
        tokio::select! {
            biased;
            () = closing.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }
}

/// Brings branches to their ends side by side, and returns when all have ended or `patience` is over; the others go on by
/// themselves. `all` runs when every one has ended well.
pub(super) async fn finish_all(
    inner: &Arc<Inner>,
    branches: Vec<Finishing>,
    all: impl FnOnce(&Inner) + Send + 'static,
) -> Vec<(Arc<str>, Option<Ended>)> {
    let mut ends: Vec<(Arc<str>, Option<Ended>)> = branches
        .iter()
        .map(|branch| (Arc::clone(&branch.participant.name), None))
        .collect();
    let (sender, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let patience = inner.settings.patience;
    let inner = Arc::clone(inner);
    let busy = inner.busy();
    tokio::spawn(async move {
        let finishing = branches.into_iter().enumerate().map(|(at, branch)| {
            let (sender, inner) = (sender.clone(), &inner);
            async move {
                let ended = branch.finish(inner).await;
                // Nobody may wait for it any more.
                let _ = sender.send((at, ended));
                ended
            }
        });
        let ends = futures_util::future::join_all(finishing).await;
        if ends.iter().all(|end| *end == Some(Ended::Well)) {
            all(&inner);
        }
        drop(busy);
    });
    let wait = async {
        while let Some((at, end)) = ended.recv().await {
            ends[at].1 = end;
        }
    };
    let _ = tokio::time::timeout(patience, wait).await;
    ends
}

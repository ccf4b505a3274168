//! The first phase.

use std::sync::Arc;
use std::time::Duration;

use lockstep_core::{Error, ErrorKind};

use super::session::{Participant, Remembered, Session};
use super::{Inner, Point, sql};

/// The number of the transaction that the session is in, if it is in one that has a number. Fails in one that has failed:
/// both PREPARE and COMMIT would roll it back, and report no error.
pub(super) const CURRENT: &str = "SELECT pg_catalog.pg_current_xact_id_if_assigned()::text";

/// A transaction that is open in a session.
pub(super) struct Branch {
    pub(super) participant: Participant,
    pub(super) session: Session,
    pub(super) remembered: Remembered,
}

/// A branch behind the first phase.
pub(super) struct Voted {
    pub(super) participant: Participant,
    pub(super) remembered: Remembered,
    /// In no transaction. `None` where the connection is gone.
    pub(super) session: Option<Session>,
    pub(super) vote: Vote,
}

pub(super) enum Vote {
    /// It is prepared.
    Prepared,
    /// It is not, and is rolled back.
    Refused(Error),
    /// It may be prepared, or be so in a moment: there was no answer.
    Unsure(Error),
}

/// Prepares a branch. Not cancel-safe: what is dropped in the middle may be prepared.
pub(super) async fn prepare(inner: &Inner, branch: Branch) -> Voted {
    let Branch {
        participant,
        session,
        remembered,
    } = branch;
    inner.reached(Point::Preparing, &participant.name).await;
    let gid = sql::quote(remembered.gid.as_deref().unwrap_or_default());
    let statements = format!("{CURRENT}; PREPARE TRANSACTION {gid}");
    let answer = session.run("prepare the transaction", &statements).await;
    let vote = match answer {
        Ok(answer) if answer.text(0) == remembered.xid.to_string() => Vote::Prepared,
        // What was begun has ended. Something else is prepared now, or nothing.
        Ok(_) => {
            let undo = format!("ROLLBACK PREPARED {gid}");
            let _ = session.run("roll back", &undo).await;
            Vote::Refused(ended_by_itself(&participant.name))
        }
        Err(failure) => {
            let error = failure.error.at(format!("database {}", participant.name));
            match failure.refused {
                true => Vote::Refused(error),
                false => Vote::Unsure(error),
            }
        }
    };
    let session = match &vote {
        Vote::Prepared => Some(session),
        Vote::Refused(_) => {
            roll_back(session).await;
            None
        }
        Vote::Unsure(_) => None,
    };
    if matches!(vote, Vote::Prepared) {
        inner.reached(Point::Prepared, &participant.name).await;
    }
    Voted {
        participant,
        remembered,
        session,
        vote,
    }
}

/// How long a rollback may take that only saves a connection.
const ROLLBACK: Duration = Duration::from_secs(1);

/// Ends a transaction that is open, and gives the session back where that works. Where it does not, the session is closed, and its
/// server rolls back.
pub(super) async fn roll_back(session: Session) {
    let done = sql::run(session.client(), "roll back", "ROLLBACK", ROLLBACK);
    if done.await.is_ok() {
        session.release();
    }
}

/// The work has ended the transaction that was begun for it.
pub(super) fn ended_by_itself(database: &Arc<str>) -> Error {
    Error::new(
        ErrorKind::Invalid,
        "the work has ended its transaction by itself",
    )
    .remedy("leave BEGIN, COMMIT, ROLLBACK and PREPARE TRANSACTION to the coordinator; savepoints are fine")
    .at(format!("database {database}"))
}

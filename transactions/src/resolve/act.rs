//! Doing what was decided.

use lockstep_core::query::{Ending, Finish, Queries, XactStatus};
use lockstep_core::{Error, Result};

use super::{Decision, Journal, Verdict};

/// What came of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// Somebody else was faster, and did the same.
    Already,
    /// Somebody else was faster, and did the opposite: the databases of the transaction disagree.
    Otherwise,
    /// It is not prepared any more, and its server does not know how it has ended.
    Gone,
    /// It is not prepared, and has not ended: its server works at it. Look again.
    Running,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Outcome; 5] = [
        Outcome::Done,
        Outcome::Already,
        Outcome::Otherwise,
        Outcome::Gone,
        Outcome::Running,
    ];

    /// The word for it in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Already => "already",
            Outcome::Otherwise => "otherwise",
            Outcome::Gone => "gone",
            Outcome::Running => "running",
        }
    }

    /// The words for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Already => "somebody else has done it",
            Outcome::Otherwise => "somebody else has done the opposite",
            Outcome::Gone => "it is not there any more, and its end is not known",
            Outcome::Running => "its server works at it",
        }
    }

    /// Whether it is as it should be.
    #[must_use]
    pub fn is_well(self) -> bool {
        matches!(self, Outcome::Done | Outcome::Already)
    }
}

/// Ends a branch as decided, and writes so to the journal, before and after. Does nothing about a decision to leave it alone, and
/// answers [`Outcome::Running`].
///
/// Not cancel-safe: dropped in the middle, the branch may have ended, and the journal says only that it was to.
///
/// # Errors
/// The server's: `Permission` says who may; the journal's, before anything is done.
pub async fn act(
    decision: &Decision,
    queries: &dyn Queries,
    journal: &mut Journal,
) -> Result<Outcome> {
    let ending = match decision.judged.verdict {
        Verdict::Commit => Ending::Commit,
        Verdict::RollBack => Ending::RollBack,
        Verdict::LeaveAlone => return Ok(Outcome::Running),
    };
    journal.note(decision, "begun", "")?;
    match end(decision, queries, ending).await {
        Ok(outcome) => {
            journal.note(decision, "ended", outcome.as_str())?;
            Ok(outcome)
        }
        Err(error) => {
            journal.note(decision, "failed", &error.to_string())?;
            Err(error.at(format!("sources.{}", decision.doubt.source)))
        }
    }
}

async fn end(decision: &Decision, queries: &dyn Queries, ending: Ending) -> Result<Outcome, Error> {
    let in_doubt = &decision.doubt.in_doubt;
    if queries.finish(in_doubt, ending).await? == Finish::Done {
        return Ok(Outcome::Done);
    }
    Ok(match (queries.xact_status(in_doubt.xid).await?, ending) {
        (XactStatus::Committed, Ending::Commit) | (XactStatus::RolledBack, Ending::RollBack) => {
            Outcome::Already
        }
        (XactStatus::Committed | XactStatus::RolledBack, _) => Outcome::Otherwise,
        (XactStatus::InProgress, _) => Outcome::Running,
        (XactStatus::Unknown, _) => Outcome::Gone,
    })
}

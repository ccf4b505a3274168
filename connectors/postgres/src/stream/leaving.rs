//! Lets a server go that shuts down.
//!
//! A fast shutdown ends all sessions, and then waits until whoever reads the log has confirmed the whole of it (`WalSndDone` in
//! PostgreSQL's `walsender.c`), without a limit. It would wait for ever for what cannot be confirmed: a sink that is away, a transaction
//! that is prepared, which nobody can end where nobody can log in. What is not confirmed stays in the slot, and comes again.

use std::time::{Duration, Instant};

use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_core::position::Lsn;

use super::Receiver;
use super::report::REPORT_AFTER;

/// A server that shuts down is kept waiting while positions are confirmed to it, and this long after the last one: it has been told then.
const PATIENCE: Duration = REPORT_AFTER.saturating_mul(2);

/// How far a server was that shuts down, when it was looked at last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    confirmed: Lsn,
    since: Instant,
}

impl Receiver {
    /// Answers a server that asks how far this is. One that shuts down asks again with each answer, as fast as both can: it is told
    /// what is new.
    pub(super) async fn answer(&mut self) -> Result<()> {
        match self.stream.departs.is_cancelled() && self.confirmed() <= self.reported {
            true => Ok(()),
            false => self.report().await,
        }
    }

    /// Ends the stream of a server that shuts down, once no more can be confirmed to it.
    ///
    /// # Errors
    /// `Unavailable` then.
    pub(super) fn leave_if_idle(&mut self) -> Result<()> {
        if !self.stream.departs.is_cancelled() {
            return Ok(());
        }
        let confirmed = self.confirmed();
        match self.waiting.filter(|waiting| waiting.confirmed == confirmed) {
            None => {
                let since = Instant::now();
                self.waiting = Some(Waiting { confirmed, since });
                Ok(())
            }
            Some(waiting) if waiting.since.elapsed() < PATIENCE => Ok(()),
            Some(_) => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "the server shuts down, and waits for what cannot be confirmed: the stream is ended at {confirmed}"
                ),
            )
            .remedy("what comes after it is in the slot, and is read when the server is back")),
        }
    }
}

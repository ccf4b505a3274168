//! What the state, the server and the slot say together: whether the stream can go on without a gap.

use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_core::position::SourceIdentity;

use crate::server::Server;
use crate::slot::{self, Slot};
use crate::state::{Copied, Reached, State};

/// Where a source stands before it does anything.
#[derive(Debug, PartialEq, Eq)]
pub enum Standing {
    /// Neither slot nor state: nothing has been read yet.
    New,
    /// A slot without a state: made for us, or the state was removed.
    Unknown(Slot),
    /// A copy that had not become durable.
    Interrupted {
        slot: Option<Slot>,
        /// Whose log the next copy is of.
        identity: SourceIdentity,
    },
    /// The stream goes on where it ended.
    Continues { slot: Slot, state: State },
    /// Changes between what was confirmed and what can be read are gone.
    Lost(Loss),
}

/// A log that cannot be continued.
#[derive(Debug, PartialEq, Eq)]
pub struct Loss {
    /// What happened.
    pub cause: String,
    /// The slot that is there now.
    pub slot: Option<Slot>,
    /// Whose log another copy is of: a new one where positions of the old one may come again.
    pub identity: SourceIdentity,
}

impl Loss {
    /// The error that stops the pipeline.
    pub fn error(&self) -> Error {
        lost(&self.cause)
    }
}

/// The error for a log that cannot be continued.
pub fn lost(cause: &str) -> Error {
    Error::new(
        ErrorKind::Lost,
        format!("{cause}; changes may be missing that cannot be read any more"),
    )
    .remedy(
        "set on_slot_lost = \"resync\" to empty the copies and copy the tables again, or bring back the slot, the server \
         or the state that belong together",
    )
}

/// Judges. `failover`: the slot should follow failovers.
///
/// # Errors
/// `Setup` for a slot that cannot be ours; `Busy` while it is in use, or while a standby has yet to be promoted.
pub fn judge(
    state: Option<&State>,
    name: &str,
    server: &Server,
    slot: Option<Slot>,
    failover: bool,
) -> Result<Standing> {
    if let Some(slot) = &slot {
        slot.require_ours(name, &server.identity.database, failover)?;
    }
    let Some(state) = state else {
        return without_state(name, server, slot);
    };
    let (cause, behind) = match compare(state, name, server) {
        Log::Same => return same_log(state, name, server, slot),
        Log::Behind(cause) => (cause, true),
        Log::Other(cause) => (cause, false),
    };
    // Positions of the log that was read may come again, with other records: it gets a name of its own.
    let identity = SourceIdentity {
        incarnation: state.identity.incarnation.saturating_add(1),
        ..server.identity.clone()
    };
    if behind && server.in_recovery {
        // A standby may receive the rest yet: only its promotion decides.
        return Err(standby(&cause));
    }
    let usable = slot.as_ref().is_none_or(|slot| slot.invalid.is_none());
    if behind && usable && state.copy == Copied::Running {
        slot.as_ref()
            .map_or(Ok(()), |slot| slot.require_free(name))?;
        return Ok(Standing::Interrupted { slot, identity });
    }
    Ok(Standing::Lost(Loss {
        cause,
        slot,
        identity,
    }))
}

fn without_state(name: &str, server: &Server, slot: Option<Slot>) -> Result<Standing> {
    let Some(slot) = slot else {
        return Ok(Standing::New);
    };
    if let Some(reason) = &slot.invalid {
        return Ok(Standing::Lost(Loss {
            cause: invalidated(name, reason),
            identity: server.identity.clone(),
            slot: Some(slot),
        }));
    }
    require_readable(&slot, name, server)?;
    Ok(Standing::Unknown(slot))
}

/// The server's log is the one that was read; what about the slot?
fn same_log(state: &State, name: &str, server: &Server, slot: Option<Slot>) -> Result<Standing> {
    let identity = state.identity.clone();
    let loss = |cause: String, slot: Option<Slot>| {
        Ok(Standing::Lost(Loss {
            cause,
            slot,
            identity: identity.clone(),
        }))
    };
    let Some(slot) = slot else {
        return match &state.copy {
            Copied::Running => Ok(Standing::Interrupted {
                slot: None,
                identity,
            }),
            _ if server.in_recovery => Err(standby(&format!("the slot {name} is not here"))),
            _ => loss(
                format!("the slot {name} is gone: somebody dropped it"),
                None,
            ),
        };
    };
    if let Some(reason) = &slot.invalid {
        return loss(invalidated(name, reason), Some(slot));
    }
    require_readable(&slot, name, server)?;
    if state.copy == Copied::Running {
        return Ok(Standing::Interrupted {
            slot: Some(slot),
            identity,
        });
    }
    if slot.two_phase && slot.may_be_altered && !state.two_phase {
        return loss(invalidated(name, slot::ALTERED), Some(slot));
    }
    match &state.reached {
        Some(reached) if slot.confirmed > reached.told() => loss(
            format!(
                "the slot {name} stands at {}, beyond {}, which is the last position that was confirmed from here: it was \
                 dropped and made again, or something else has read from it",
                slot.confirmed,
                reached.told()
            ),
            Some(slot),
        ),
        _ => Ok(Standing::Continues {
            state: State {
                reached: Some(went_on(state, server, &slot)),
                ..state.clone()
            },
            slot,
        }),
    }
}

/// What has been reached, on the timeline that the server is on now.
fn went_on(state: &State, server: &Server, slot: &Slot) -> Reached {
    let reached = state.reached.clone().unwrap_or_else(|| Reached {
        confirmed: slot.confirmed,
        ..Reached::default()
    });
    Reached {
        timeline: server.identity.timeline,
        ..reached
    }
}

/// The server's log, compared with the one that was read.
enum Log {
    /// It is the same, or goes on from where the other was read.
    Same,
    /// It parted from the other before the point up to where the other was read.
    Behind(String),
    /// It cannot be compared.
    Other(String),
}

/// Whether the server's log is a continuation of the one that was read.
fn compare(state: &State, name: &str, server: &Server) -> Log {
    let (was, is) = (&state.identity, &server.identity);
    if state.slot != name {
        return Log::Other(format!(
            "the log was read from the slot {}, and the slot is {name} now",
            state.slot
        ));
    }
    if was.system != is.system {
        return Log::Other(format!(
            "the server is another one: its system identifier is {}, and was {}",
            is.system, was.system
        ));
    }
    if was.database != is.database {
        return Log::Other(format!(
            "the database is {} now, and was {}",
            is.database, was.database
        ));
    }
    if let Copied::Lost { cause } = &state.copy {
        return Log::Other(cause.clone());
    }
    let unknown = Reached {
        timeline: was.timeline,
        ..Reached::default()
    };
    let known = state.reached.is_some();
    let reached = state.reached.as_ref().unwrap_or(&unknown);
    match server.shared_with(reached.timeline) {
        Some(shared) if shared >= reached.least() && (known || is.timeline == was.timeline) => {
            Log::Same
        }
        Some(shared) if is.timeline == reached.timeline => Log::Behind(format!(
            "the server's log ends at {shared}, and had been read up to {}: the server was restored to an earlier point, or \
             a standby that lags has taken its place",
            reached.least()
        )),
        Some(shared) => Log::Behind(format!(
            "the server went on from {shared} on timeline {}, and timeline {} had been read up to {}: a standby that lagged \
             was promoted, or the server was restored to an earlier point",
            is.timeline,
            reached.timeline,
            reached.least()
        )),
        None => Log::Behind(format!(
            "the server is on timeline {}, which does not descend from timeline {}, the one that was read",
            is.timeline, reached.timeline
        )),
    }
}

fn invalidated(name: &str, reason: &str) -> String {
    format!("the server has given up the slot {name} ({reason})")
}

/// Refuses a slot that somebody reads, and one that its primary still owns.
fn require_readable(slot: &Slot, name: &str, server: &Server) -> Result<()> {
    if slot.synced && server.in_recovery {
        return Err(standby(&format!(
            "the slot {name} is kept in step with the primary's"
        )));
    }
    slot.require_free(name)
}

fn standby(cause: &str) -> Error {
    Error::new(
        ErrorKind::Busy,
        format!("the server is a standby, or not done with its recovery; {cause}"),
    )
    .remedy("promote it, or name the primary in the URL; it is tried again")
}

#[cfg(test)]
mod tests;

//! Looks at the slot and at the tables every few seconds, for metrics and the status page, and warns before the server
//! gives the slot up.
//!
//! A failure is retried: the stream itself is what reports a server that is gone.

use std::sync::Arc;
use std::time::Duration;

use lockstep_core::error::{Error, Policy, Result};
use lockstep_core::schema::TableId;
use lockstep_core::source::{SourceContext, SourcePhase};
use lockstep_pg::error::sqlstate;
use lockstep_pg::sql;
use lockstep_pg::wire::target::Target;
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::horizons::Horizons;
use crate::lookout::Lookout;
use crate::reload::Desk;

/// How often.
const EVERY: Duration = Duration::from_secs(5);
/// One part in so many of what the slot may keep is left: somebody should look.
const LITTLE: u64 = 4;

/// SQLSTATE of a server that starts or shuts down.
const CANNOT_CONNECT_NOW: &str = "57P03";

const LOOK: &str = "SELECT pg_catalog.pg_wal_lsn_diff(here, restart_lsn)::int8, \
    pg_catalog.pg_wal_lsn_diff(here, '0/0')::int8, safe_wal_size, wal_status \
    FROM (SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
          ELSE pg_catalog.pg_current_wal_lsn() END AS here) w \
    LEFT JOIN pg_catalog.pg_replication_slots ON slot_name = $1";

/// What is watched, and who is told.
pub struct Watch {
    pub target: Target,
    pub slot: String,
    pub context: SourceContext,
    /// Of a table that is to be followed and is not, when the tables have been copied: the source has to be opened again for it.
    pub grown: mpsc::Sender<TableId>,
    pub desk: Arc<Desk>,
    pub horizons: Horizons,
    /// Cancelled when the server shuts down.
    pub departs: CancellationToken,
    pub lookout: Lookout,
}

/// Watches until it is aborted.
pub async fn run(watch: Watch) {
    let Watch {
        target,
        slot,
        context,
        grown,
        desk,
        horizons,
        departs,
        mut lookout,
    } = watch;
    let mut tick = tokio::time::interval(EVERY);
    let mut session: Option<Session> = None;
    let mut had_one = false;
    let mut warned = None;
    let mut checkpoints = true;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = ended(&mut session) => session = None,
        }
        let looked = async {
            let open = match session.take().filter(|session| !session.client.is_closed()) {
                Some(open) => open,
                None => Session::open(&target, had_one, &departs).await?,
            };
            let seen = Seen::look(&open.client, &slot).await?;
            let sight = lookout.look(&open.client).await;
            if checkpoints {
                checkpoints = may_ask_again(horizons.ask(&open.client).await, &context);
            }
            session = Some(open);
            had_one = true;
            Ok::<_, Error>((seen, sight))
        };
        match looked.await {
            Ok((seen, sight)) => {
                let warning = seen.warning(&slot);
                if let Some((_, text)) = &warning
                    && warned < warning.as_ref().map(|(level, _)| *level)
                {
                    tracing::warn!(source = &*context.name, "{text}");
                }
                warned = warning.as_ref().map(|(level, _)| *level);
                context.status.update(|state| {
                    state.retained_bytes = seen.retained;
                    state.safe_bytes = seen.safe;
                    state.server = seen.here;
                    state.warning = warning.map(|(_, text)| text);
                });
                match sight {
                    Ok(sight) => {
                        let mut streams = false;
                        context.status.update(|state| {
                            streams = state.phase == SourcePhase::Streaming;
                            state.notices = sight.notices;
                            state.notices.extend(desk.notices());
                        });
                        // The one who is told ends this.
                        if let Some(table) = sight.grown.filter(|_| streams) {
                            drop(grown.try_send(table));
                        }
                    }
                    Err(error) => {
                        tracing::debug!(source = &*context.name, %error, "cannot look at the tables");
                    }
                }
            }
            Err(error) => {
                tracing::debug!(source = &*context.name, %error, "cannot look at the slot");
            }
        }
        if horizons.is_due() {
            let horizons = horizons.clone();
            // A failure has been told.
            let _ = tokio::task::spawn_blocking(move || horizons.save()).await;
        }
    }
}

/// A session that is kept open between looks: its end tells at once that something is the matter.
struct Session {
    client: Client,
    /// Answered by being dropped, when the session has ended.
    end: oneshot::Receiver<()>,
}

impl Session {
    /// Where there was a session before, and a stream goes on meanwhile, a server that lets nobody in is one that shuts down: one that
    /// starts has no stream yet.
    async fn open(target: &Target, had_one: bool, departs: &CancellationToken) -> Result<Self> {
        let (held, end) = oneshot::channel::<()>();
        let opened = sql::connect_to_listen(target, move |_| {
            let _held = &held;
        });
        match opened.await {
            Ok(client) => Ok(Session { client, end }),
            Err(error) => {
                if had_one && sqlstate(&error) == Some(CANNOT_CONNECT_NOW) {
                    departs.cancel();
                }
                Err(error)
            }
        }
    }
}

/// Pends until the session has ended, for ever where there is none. Cancel-safe.
async fn ended(session: &mut Option<Session>) {
    match session {
        // An error is the answer.
        Some(session) => drop((&mut session.end).await),
        None => std::future::pending().await,
    }
}

/// Whether the server is to be asked for its last checkpoint again: who may not ask fills its log with refusals.
fn may_ask_again(asked: Result<()>, context: &SourceContext) -> bool {
    let Err(error) = asked else {
        return true;
    };
    tracing::debug!(source = &*context.name, %error, "cannot look at the last checkpoint");
    error.kind().policy() == Policy::Retry
}

/// What is to be said of a slot that the server may give up.
///
/// # Errors
/// When the server cannot be asked.
pub async fn warning(client: &Client, slot: &str) -> Result<Option<String>> {
    let seen = Seen::look(client, slot).await?;
    Ok(seen.warning(slot).map(|(_, text)| text))
}

/// How urgent a warning is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Soon,
    Next,
}

/// What the server shows of the slot.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Log that it keeps.
    retained: Option<u64>,
    /// Log that may still be written; `None` without a limit.
    safe: Option<u64>,
    /// Where the log ends.
    here: u64,
    /// `unreserved`: the next checkpoint may remove what the slot needs.
    at_risk: bool,
}

impl Seen {
    async fn look(client: &Client, slot: &str) -> Result<Self> {
        let row = sql::query_one(client, "look at the slot", LOOK, &[&slot]).await?;
        // Past the limit it is negative.
        let bytes = |at: usize| {
            let bytes = row.get::<_, Option<i64>>(at);
            bytes.map(|bytes| u64::try_from(bytes).unwrap_or(0))
        };
        Ok(Seen {
            retained: bytes(0),
            here: bytes(1).unwrap_or(0),
            safe: bytes(2),
            at_risk: row.get::<_, Option<&str>>(3) == Some("unreserved"),
        })
    }

    fn warning(&self, slot: &str) -> Option<(Level, String)> {
        let kept = self.retained.unwrap_or(0) >> 20;
        if self.at_risk {
            return Some((
                Level::Next,
                format!(
                    "the slot {slot} keeps {kept} MiB of log, more than max_slot_wal_keep_size: the server may give it up \
                     at its next checkpoint; raise the limit now, or make the slowest sink faster"
                ),
            ));
        }
        let safe = self.safe?;
        let limit = safe.saturating_add(self.retained.unwrap_or(0));
        (safe <= limit / LITTLE).then(|| {
            (
                Level::Soon,
                format!(
                    "the slot {slot} keeps {kept} MiB of log, and after {} MiB more the server may give it up; see which \
                     sink lags, or raise max_slot_wal_keep_size",
                    safe >> 20
                ),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(retained: u64, safe: Option<u64>, at_risk: bool) -> Seen {
        Seen {
            retained: Some(retained << 20),
            safe: safe.map(|bytes| bytes << 20),
            here: 0,
            at_risk,
        }
    }

    #[test]
    fn a_warning_comes_before_the_end() {
        let level = |seen: Seen| seen.warning("s").map(|(level, _)| level);
        assert_eq!(level(seen(1000, None, false)), None, "no limit");
        assert_eq!(level(seen(74, Some(26), false)), None);
        assert_eq!(level(seen(75, Some(25), false)), Some(Level::Soon));
        assert_eq!(level(seen(100, Some(0), false)), Some(Level::Soon));
        assert_eq!(level(seen(120, Some(0), true)), Some(Level::Next));
        let (_, text) = seen(75, Some(25), false).warning("s").expect("a warning");
        assert!(
            text.contains("75 MiB") && text.contains("25 MiB more"),
            "{text}"
        );
    }
}

//! A connection can be dead without a sign of it, behind a proxy or a peer that nothing has told about, and a statement can be
//! silent for long while the server is at work: it waits for a lock, or finds nothing to send. The server knows which, and is
//! asked on another connection.

use std::time::Duration;

use lockstep_core::error::Result;

use super::connection::TextRow;
use super::target::Target;
use super::{Connection, Mode};

/// After so long without a byte the server is asked.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// What was on its way when it was asked arrives within this time.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// Whom to ask for what.
#[derive(Debug)]
pub(super) struct Attended {
    target: Target,
    /// Of the session, also where a pooler is in between.
    pid: String,
}

impl Attended {
    /// For this connection, after login.
    pub(super) async fn of(connection: &mut Connection, target: &Target) -> Result<Self> {
        let ask = "SELECT pg_catalog.pg_backend_pid()::text";
        let rows = connection.query("ask who serves us", ask).await?;
        Ok(Attended {
            target: target.clone(),
            pid: first(rows).unwrap_or_default(),
        })
    }

    /// Whether the server does nothing for us any more, or has sent it in vain. False also when that cannot be found out.
    pub(super) async fn is_lost(&self) -> bool {
        let Ok(asked) = tokio::time::timeout(SILENCE, self.is_at_work()).await else {
            return false;
        };
        asked.is_ok_and(|at_work| !at_work)
    }

    async fn is_at_work(&self) -> Result<bool> {
        let mut other = Connection::open_unattended(&self.target, Mode::Sql).await?;
        // `ClientWrite`: it waits for us to read, and we do. `disabled`: without `track_activities` nothing is known.
        let ask = format!(
            "SELECT coalesce(state, 'disabled') IN ('active', 'disabled') AND wait_event IS DISTINCT FROM 'ClientWrite' \
             FROM pg_catalog.pg_stat_activity WHERE pid::text = '{}'",
            self.pid
        );
        let rows = other.query("look at our session", &ask).await?;
        other.terminate().await;
        Ok(first(rows).as_deref() == Some("t"))
    }
}

fn first(rows: Vec<TextRow>) -> Option<String> {
    rows.into_iter().flatten().next().flatten()
}

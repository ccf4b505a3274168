//! A session of a participant, and a transaction in it.

use std::sync::Arc;
use std::time::Duration;

use lockstep_core::error::At;
use lockstep_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::database::{Database, Lent};
use super::sql::{self, Answer, Failure};

/// A database by the name that the log knows it by.
#[derive(Clone)]
pub(super) struct Participant {
    pub(super) name: Arc<str>,
    pub(super) database: Arc<dyn Database>,
}

/// What is closed unless it is released: whoever gives up in the middle leaves nobody a transaction that is open.
pub(super) struct Session {
    lent: Option<Box<dyn Lent>>,
    within: Duration,
}

impl Participant {
    /// A session of it.
    ///
    /// # Errors
    /// The database's; `Unavailable` when there is none in time.
    pub(super) async fn session(&self, within: Duration) -> Result<Session> {
        let place = || format!("database {}", self.name);
        let lent = tokio::time::timeout(within, self.database.session()).await;
        let lent = lent.map_err(|_| {
            let message = format!("no session for {} ms", within.as_millis());
            Error::new(ErrorKind::Unavailable, message).at(place())
        })?;
        Ok(Session {
            lent: Some(lent.at(place())?),
            within,
        })
    }
}

impl Session {
    pub(super) fn client(&self) -> &Client {
        match &self.lent {
            Some(lent) => lent.client(),
            None => unreachable!("only `release` and `drop` take it"),
        }
    }

    /// See [`sql::run`].
    pub(super) async fn run(&self, doing: &str, sql: &str) -> Result<Answer, Failure> {
        sql::run(self.client(), doing, sql, self.within).await
    }

    /// It is in no transaction: it may go back.
    pub(super) fn release(mut self) {
        drop(self.lent.take());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(lent) = self.lent.take() {
            lent.discard();
        }
    }
}

/// Which transaction of which server, so that its end can be asked for later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// The participant.
    pub(super) database: Arc<str>,
    /// What it is prepared as; `None`: it commits with the decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gid: Option<String>,
    /// The number of the transaction.
    pub(super) xid: u64,
    /// The server's system identifier.
    pub(super) system: u64,
    /// The timeline that it was on.
    pub(super) timeline: u32,
}

/// System identifier and timeline.
const WHERE: &str = "(SELECT system_identifier::text FROM pg_catalog.pg_control_system()), \
     ('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))::bit(32)::int4::text";

/// Begins a transaction that says what it is a branch of.
///
/// # Errors
/// The server's.
pub(super) async fn begin(
    session: &Session,
    participant: &Participant,
    gid: Option<String>,
    marker: Option<&str>,
) -> Result<Remembered> {
    let mark = marker.map_or_else(String::new, |content| {
        let (prefix, content) = (sql::quote(crate::marker::PREFIX), sql::quote(content));
        format!("; SELECT pg_catalog.pg_logical_emit_message(true, {prefix}, {content})")
    });
    // Asking for its number gives it one.
    let begin = format!("BEGIN; SELECT pg_catalog.pg_current_xact_id()::text, {WHERE}{mark}");
    let answer = session
        .run("begin a transaction", &begin)
        .await
        .map_err(|failure| failure.error.at(format!("database {}", participant.name)))?;
    Ok(Remembered {
        database: Arc::clone(&participant.name),
        gid,
        xid: answer.number(0)?,
        system: answer.number(1)?,
        timeline: answer.number(2)?,
    })
}

/// How a transaction has ended, as far as its server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It committed.
    Committed,
    /// It was rolled back.
    Aborted,
    /// It is prepared.
    Prepared,
    /// The server works at it.
    Running,
    /// The server has forgotten, or never knew: it was restored, or took over from another one and lacks the end of its log.
    Unknown,
}

/// Asks how a transaction has ended, one that nobody works at any more.
///
/// A number says nothing on another timeline, where it may have been given again; there a transaction is known only while it is
/// prepared.
///
/// # Errors
/// The server's; `Setup` when it is another server.
pub(super) async fn fate(session: &Session, branch: &Remembered) -> Result<Fate> {
    let gid = sql::quote(branch.gid.as_deref().unwrap_or_default());
    let xid = branch.xid;
    let ask = format!(
        "SELECT {WHERE}, (SELECT count(*) FROM pg_catalog.pg_prepared_xacts \
         WHERE gid = {gid} AND transaction::text = '{low}' AND database = current_database())::text",
        low = xid as u32
    );
    let there = session.run("look for the transaction", &ask).await?;
    let (system, timeline): (u64, u32) = (there.number(0)?, there.number(1)?);
    if system != branch.system {
        let message = format!(
            "it is another server: its system identifier is {system}, not {}",
            branch.system
        );
        return Err(Error::new(ErrorKind::Setup, message)
            .remedy("connect to the server on which the transaction was prepared"));
    }
    if there.text(2) != "0" {
        return Ok(Fate::Prepared);
    }
    if timeline != branch.timeline {
        return Ok(Fate::Unknown);
    }
    let ask = format!("SELECT pg_catalog.pg_xact_status('{xid}'::xid8)");
    match session
        .run("ask for the end of the transaction", &ask)
        .await
    {
        Ok(answer) => match answer.text(0) {
            "committed" => Ok(Fate::Committed),
            "aborted" => Ok(Fate::Aborted),
            "in progress" => {
                end_if_left(session, xid).await;
                Ok(Fate::Running)
            }
            // Too long ago.
            _ => Ok(Fate::Unknown),
        },
        // "transaction ID is in the future": the server has lost it.
        Err(failure)
            if failure
                .state
                .as_ref()
                .is_some_and(|state| state.code() == "22023") =>
        {
            Ok(Fate::Unknown)
        }
        Err(failure) => Err(failure.error),
    }
}

/// Ends the session of a transaction that waits for a statement. Its connection broke without a word: ours is closed, and the
/// server would wait for hours, locks and all.
async fn end_if_left(session: &Session, xid: u64) {
    let end = format!(
        "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE backend_xid::text = '{low}' \
         AND datname = current_database() AND state LIKE 'idle in transaction%'",
        low = xid as u32
    );
    if let Err(failure) = session.run("end a session that is left", &end).await {
        tracing::warn!(error = %failure.error, "a session that waits for nobody is left to its server");
    }
}

//! Leases in a table of a PostgreSQL database: nothing to run beside the database that is there anyway.
//!
//! A lease is a row of `lockstep.lease`: who has it, its token, and when it runs out by the server's clock. One conditional
//! `INSERT … ON CONFLICT DO UPDATE` takes it, one conditional `UPDATE` prolongs it, another lets go and notifies those who
//! wait. Each is a transaction of its own, by one unnamed statement, and leaves nothing in the session. Only notifications need
//! one: behind a pooler in transaction mode they do not arrive, and those who wait look three times in a lease's time.
//!
//! **Why a row and not a session's advisory lock.** An advisory lock belongs to a session, and a session is no holder. A pooler
//! in transaction mode gives the session, and with it the lock, to another client after each transaction. Where a connection
//! is half open, as after the client's machine has lost its power, the server keeps session and lock until TCP gives up: two
//! hours and more by Linux' keepalive defaults. The client of a broken connection, in turn, does not know that the server has
//! long given the lock to somebody else. A row runs out by itself, and both sides know when. And an advisory lock has no token:
//! one would be needed beside it.
//!
//! **What it promises.** One holder at a time, and tokens that only grow, through restarts and crashes of the server: the
//! statements wait for the disk even where `synchronous_commit` is `off`. The upper half of a token is the server's timeline,
//! which grows with each failover and each recovery of a backup. So tokens grow even if an asynchronous standby takes over that
//! has not got the last rows.
//!
//! **What it does not.** After such a failover a holder of the old primary can be right, by its own clock, for the rest of its
//! time beside a new one: the new one has the greater token. The server's clock decides when a lease has run out: set forward,
//! it lets leases run out early; set back, late. A database whose rows are restored by hand, or a table that is dropped, begins
//! again with small tokens of the same timeline.
//!
//! A standby is refused, since nothing can be taken there.

mod statements;

use std::time::Duration;

use async_trait::async_trait;
use lockstep_core::config::Secret;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_pg::error::{from_sql, protocol};
use lockstep_pg::sql;
use lockstep_pg::wire::target::Target;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use crate::config::default_ttl;
use crate::name;
use crate::provider::{Attempt, Candidate, Provider, Renewal, Token};
use statements::{CREATE, LISTEN, LOOK, RELEASE, RENEW, STANDBY, TAKE};

/// Leases in a PostgreSQL database.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresLeases {
    /// `postgres://user:password@host:port/database?sslmode=…`, as for a source. It must lead to the primary. The table
    /// `lockstep.lease` is made when it is missing and that is permitted.
    pub url: Secret,
    /// The password, when it is not part of the URL.
    #[serde(default)]
    pub password: Option<Secret>,
    /// How long a lease lasts unless it is renewed. Default: `10s`.
    #[serde(default = "default_ttl")]
    pub ttl: lockstep_core::config::Duration,
}

impl PostgresLeases {
    /// Where leases are kept, for [`Leases::new`](crate::Leases::new). Does no I/O.
    ///
    /// # Errors
    /// Of kind `Config` when the URL cannot be read.
    pub fn provider(&self) -> Result<Postgres> {
        let mut target = Target::parse(self.url.reveal()).map_err(|error| error.at("url"))?;
        if let Some(password) = &self.password {
            target.password = Some(password.clone());
        }
        Ok(Postgres {
            target,
            ttl: self.ttl.0,
        })
    }
}

/// The provider.
#[derive(Clone, Debug)]
pub struct Postgres {
    target: Target,
    ttl: Duration,
}

impl Provider for Postgres {
    fn candidate(&self, name: &str, holder: &str) -> Result<Box<dyn Candidate>> {
        Ok(Box::new(Contender {
            provider: self.clone(),
            name: name.to_owned(),
            holder: name::unique(holder)?,
            token: None,
            session: None,
        }))
    }

    fn place(&self) -> String {
        self.target.label()
    }
}

/// One who wants a row to be its own.
struct Contender {
    provider: Postgres,
    name: String,
    /// In the row: this candidate and no other.
    holder: String,
    token: Option<i64>,
    /// Missing after anything failed, or was given up on the way.
    session: Option<Session>,
}

/// A connection that listens.
struct Session {
    client: Client,
    /// Something when the lease was let go; its end is the connection's.
    freed: mpsc::Receiver<()>,
}

type Typed<'a> = [(&'a (dyn ToSql + Sync), Type)];

impl Session {
    async fn open(target: &Target, name: &str) -> Result<Self> {
        let (free, freed) = mpsc::channel(1);
        let name = name.to_owned();
        let hear = move |notification: tokio_postgres::Notification| {
            if notification.payload() == name {
                // One that waits to be taken says as much as two.
                let _ = free.try_send(());
            }
        };
        let client = sql::connect_to_listen(target, hear).await?;
        let doing = "ask whether the server is a standby";
        let row = client.query_typed_one(STANDBY, &[]).await;
        let standby: bool = column(&row.map_err(|error| from_sql(doing, error))?, 0)?;
        if standby {
            return Err(Error::new(
                ErrorKind::Setup,
                "the server is a standby: leases are kept on the primary",
            )
            .remedy("name the primary in the URL, or a name that moves with it"));
        }
        let listening = client.batch_execute(LISTEN).await;
        listening.map_err(|error| from_sql("listen for leases that are let go", error))?;
        Ok(Session { client, freed })
    }

    /// Makes the table when it is missing.
    async fn take(&self, parameters: &Typed<'_>) -> Result<Option<Row>> {
        let failed = match self.client.query_typed_opt(TAKE, parameters).await {
            Ok(row) => return Ok(row),
            Err(error) if is_missing(&error) => error,
            Err(error) => return Err(refused(error)),
        };
        tracing::debug!(error = %failed, "the table of leases is made");
        let made = sql::change(&self.client, "make the table of leases", CREATE).await;
        match self.client.query_typed_opt(TAKE, parameters).await {
            Ok(row) => Ok(row),
            // Somebody else may have made it in the same moment: only if it is still not there does it matter why.
            Err(error) if is_missing(&error) => {
                let error = made.err().unwrap_or_else(|| refused(error));
                Err(error.remedy(format!(
                    "let somebody who may run: {CREATE} GRANT USAGE ON SCHEMA lockstep TO the_user; \
                     GRANT SELECT, INSERT, UPDATE ON lockstep.lease TO the_user;"
                )))
            }
            Err(error) => Err(refused(error)),
        }
    }
}

fn is_missing(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::UNDEFINED_TABLE)
        || error.code() == Some(&SqlState::INVALID_SCHEMA_NAME)
}

fn refused(error: tokio_postgres::Error) -> Error {
    let error = from_sql("use the table of leases", error);
    match error.kind() {
        ErrorKind::Permission => error.remedy(
            "GRANT USAGE ON SCHEMA lockstep TO the_user; GRANT SELECT, INSERT, UPDATE ON lockstep.lease TO the_user",
        ),
        _ => error,
    }
}

fn column<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, at: usize) -> Result<T> {
    row.try_get(at)
        .map_err(|error| protocol("an answer of the server cannot be read").source(error))
}

impl Contender {
    /// Taken out: a future that is dropped on the way drops the connection, and with it the answer nobody has read.
    async fn session(&mut self) -> Result<Session> {
        match self.session.take() {
            Some(session) if !session.client.is_closed() => Ok(session),
            _ => Session::open(&self.provider.target, &self.name).await,
        }
    }

    fn milliseconds(&self) -> i64 {
        i64::try_from(self.provider.ttl.as_millis()).unwrap_or(i64::MAX)
    }
}

#[async_trait]
impl Candidate for Contender {
    async fn attempt(&mut self) -> Result<Attempt> {
        let session = self.session().await?;
        let ttl = self.milliseconds();
        let parameters: &Typed<'_> = &[
            (&self.name, Type::TEXT),
            (&self.holder, Type::TEXT),
            (&ttl, Type::INT8),
        ];
        let attempt = match session.take(parameters).await? {
            Some(row) => {
                let token: i64 = column(&row, 0)?;
                self.token = Some(token);
                let number = u64::try_from(token);
                let number = number.map_err(|_| protocol("a token is negative"))?;
                Attempt::Taken {
                    token: Token(number),
                    granted: self.provider.ttl,
                }
            }
            None => {
                let name: &Typed<'_> = &[(&self.name, Type::TEXT)];
                let looked = session.client.query_typed_opt(LOOK, name).await;
                let left = match looked.map_err(refused)? {
                    Some(row) => column::<i64>(&row, 0)?,
                    None => 0,
                };
                let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
                Attempt::Refused { left: Some(left) }
            }
        };
        self.session = Some(session);
        Ok(attempt)
    }

    async fn wait(&mut self, limit: Duration) -> Result<()> {
        let Some(session) = &mut self.session else {
            return Ok(());
        };
        if let Ok(None) = tokio::time::timeout(limit, session.freed.recv()).await {
            // The connection has ended: the next attempt makes another.
            self.session = None;
        }
        Ok(())
    }

    async fn renew(&mut self) -> Result<Renewal> {
        let Some(token) = self.token else {
            return Ok(Renewal::Lost);
        };
        let session = self.session().await?;
        let ttl = self.milliseconds();
        let parameters: &Typed<'_> = &[
            (&self.name, Type::TEXT),
            (&self.holder, Type::TEXT),
            (&ttl, Type::INT8),
            (&token, Type::INT8),
        ];
        let renewed = session.client.query_typed_opt(RENEW, parameters).await;
        let renewed = renewed.map_err(refused)?;
        self.session = Some(session);
        Ok(match renewed {
            Some(_) => Renewal::Prolonged(self.provider.ttl),
            None => Renewal::Lost,
        })
    }

    async fn release(&mut self) -> Result<()> {
        let Some(token) = self.token else {
            return Ok(());
        };
        let session = self.session().await?;
        let parameters: &Typed<'_> = &[
            (&self.name, Type::TEXT),
            (&self.holder, Type::TEXT),
            (&token, Type::INT8),
        ];
        let released = session.client.query_typed(RELEASE, parameters).await;
        released.map_err(refused)?;
        self.token = None;
        Ok(())
    }
}

//! Carries out the requests to load tables again.

use std::sync::Arc;
use std::time::Duration;

use lockstep_core::error::{At, Policy};
use lockstep_core::feedback::Feedback;
use lockstep_core::memory::Budget;
use lockstep_core::schema::TableSchema;
use lockstep_core::source::{CheckRequest, Checked};
use lockstep_core::trace::{TARGET, Traced, count};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_pg::error::protocol;
use lockstep_pg::sql::{self, quote_ident};
use lockstep_pg::wire::target::Target;
use lockstep_pg::wire::{Connection, Mode};
use tracing::field::Empty;

use super::Merge;
use super::check::Asked;
use super::desk::{Desk, Entry};
use super::load::{LOADING, Load, snapshot};
use crate::catalog::Published;
use crate::horizons::Horizons;
use crate::throttle::Throttle;
use crate::visible::Visible;

/// Between two looks at what cannot be waited for.
pub(super) const LOOK: Duration = Duration::from_millis(20);
/// Before another try.
const PAUSE: Duration = Duration::from_secs(2);
/// How long a table is watched after rows of it were compared.
const IDLE: Duration = Duration::from_secs(5);
/// Before the next try of what a person has to mend.
const OWN_PAUSE: Duration = Duration::from_secs(10);

/// What chunks may hold, besides the budget of all batches: see [`super::load`].
pub fn budget() -> Budget {
    Budget::new(LOADING)
}

/// Everything the reader needs.
pub struct Reader {
    pub pipeline: Arc<str>,
    pub source: Arc<str>,
    pub target: Target,
    pub publication: String,
    pub tables: Vec<(Published, Arc<TableSchema>)>,
    pub desk: Arc<Desk>,
    pub merge: Merge,
    pub feedback: Feedback,
    /// Of its own.
    pub budget: Budget,
    pub throttle: Arc<Throttle>,
    pub horizons: Horizons,
}

impl Reader {
    /// Carries out requests until it is dropped. What fails for now is tried again; what fails for good is reported.
    pub async fn run(self, mut asked: Asked) {
        let before = loop {
            match self.running().await {
                Ok(before) => break before,
                Err(error) => tracing::warn!(%error, "cannot get ready to load tables again"),
            }
            tokio::time::sleep(PAUSE).await;
        };
        // The table that rows were compared of last: most times more of it follow.
        let mut session: Option<Load<'_>> = None;
        loop {
            let ask = tokio::select! {
                biased;
                mut entry = self.desk.next() => {
                    self.rest(&mut session).await;
                    self.carry_out(&mut entry, &before).await;
                    // One that fails again and again keeps nobody from comparing.
                    match asked.waiting() {
                        Some(ask) => ask,
                        None => continue,
                    }
                }
                ask = asked.next() => ask,
                () = tokio::time::sleep(IDLE), if session.is_some() => {
                    self.rest(&mut session).await;
                    continue;
                }
            };
            let checked = self.check(&ask.request, &before, &mut session).await;
            if checked.is_err() {
                self.rest(&mut session).await;
            }
            // Whoever asked may have gone.
            let _ = ask.answer.send(checked);
        }
    }

    /// Ends the comparing of a table.
    async fn rest(&self, session: &mut Option<Load<'_>>) {
        if let Some(load) = session.take() {
            self.merge.lock().rest();
            load.end().await;
        }
    }

    async fn carry_out(&self, entry: &mut Entry, before: &Visible) {
        let table = entry.request.table.clone();
        let trace = Traced::new(tracing::info_span!(
            target: TARGET, parent: None, "load", otel.kind = "client",
            pipeline = &*self.pipeline, source = &*self.source, table, id = count(entry.id),
            rows = Empty, superseded = Empty, outcome = Empty, error = Empty, otel.status_code = Empty,
        ));
        let loaded = self.load(entry, before).await;
        trace.span().record("rows", count(entry.rows));
        trace.span().record("superseded", count(entry.superseded));
        match &loaded {
            Ok(()) => trace.ended("durable"),
            Err(error) => trace.failed(error),
        }
        self.merge.lock().rest();
        let ended = match loaded {
            Ok(()) => {
                tracing::info!(table, rows = entry.rows, "the table is loaded again");
                self.desk.end(entry, None)
            }
            Err(error) if error.kind().policy() == Policy::Retry => {
                tracing::warn!(table, %error, "loading the table again goes on in a moment");
                tokio::time::sleep(PAUSE).await;
                Ok(())
            }
            Err(error) if entry.own => {
                tracing::error!(table, %error, "the table cannot be loaded, and its rows are missing; it is tried again");
                let postponed = self.desk.postpone(entry, &error);
                tokio::time::sleep(OWN_PAUSE).await;
                postponed
            }
            Err(error) => {
                tracing::error!(table, %error, "the table cannot be loaded again");
                self.desk.end(entry, Some(&error))
            }
        };
        if let Err(error) = ended {
            tracing::error!(%error, "the requests to load tables cannot be kept");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The transactions that run now. One of them may have been committed and streamed to an earlier connection of ours,
    /// and not be seen by snapshots yet: chunks wait for all of them.
    async fn running(&self) -> Result<Visible> {
        let mut connection = Connection::open(&self.target, Mode::Sql).await?;
        let visible = snapshot(&mut connection).await?;
        connection.terminate().await;
        Ok(visible)
    }

    async fn load(&self, entry: &mut Entry, before: &Visible) -> Result<()> {
        let table = entry.request.table.clone();
        let (published, at_open) = self.table(&table)?;
        let condition = entry.request.condition.clone();
        let work = async {
            let from = self.origin(published, condition.as_deref()).await?;
            let load = Load::begin(self, from, published, at_open, before, false, None).await?;
            load.finish(entry).await
        };
        work.await.at(format!("table {table}"))
    }

    /// Sends rows to be compared, in the session that there is if it is of this table.
    async fn check<'a>(
        &'a self,
        request: &CheckRequest,
        before: &'a Visible,
        session: &mut Option<Load<'a>>,
    ) -> Result<Checked> {
        let place = format!("table {}", request.table);
        let (published, at_open) = self.table(&request.table)?;
        let work = async {
            let condition = request.condition.as_deref();
            let goes_on = session
                .as_ref()
                .is_some_and(|load| load.goes_on(at_open, condition));
            if !goes_on {
                self.rest(session).await;
                let from = self.origin(published, condition).await?;
                let load =
                    Load::begin(self, from, published, at_open, before, true, condition).await?;
                *session = Some(load);
            }
            match session {
                Some(load) => load.check(request).await,
                None => Err(protocol("there is no session to compare rows in")),
            }
        };
        work.await.at(place)
    }

    /// A table that can be read by its key.
    fn table(&self, name: &str) -> Result<(&Published, &Arc<TableSchema>)> {
        let found = self
            .tables
            .iter()
            .find(|(published, _)| published.id.to_string() == name);
        let Some((published, at_open)) = found else {
            let message = format!("there is no table {name}");
            return Err(Error::new(ErrorKind::Invalid, message));
        };
        if at_open.key.is_empty() {
            return Err(Error::new(ErrorKind::Setup, "has no key to read it by")
                .remedy("give it a primary key")
                .at(format!("table {name}")));
        }
        Ok((published, at_open))
    }

    /// `FROM` of the chunks; the condition is tried before it becomes part of a COPY.
    async fn origin(&self, published: &Published, condition: Option<&str>) -> Result<String> {
        let client = sql::connect(&self.target).await?;
        let kind = "SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = $1";
        let doing = "look the table up";
        let row = sql::query_opt(&client, doing, kind, &[&published.relation]).await?;
        let partitioned = row.ok_or_else(|| {
            Error::new(ErrorKind::Setup, "is not there any more").remedy("restart the pipeline")
        })?;
        let only = if partitioned.get::<_, bool>(0) {
            ""
        } else {
            "ONLY "
        };
        let id = &published.id;
        let from = format!(
            "{only}{}.{}",
            quote_ident(&id.schema),
            quote_ident(&id.name)
        );
        if let Some(condition) = condition {
            let statement = format!("SELECT FROM {from} WHERE ({condition}\n)");
            let tried = sql::in_time("try the condition", client.prepare(&statement)).await;
            tried.map_err(|error| match error.kind().policy() {
                Policy::Retry => error,
                _ => Error::new(ErrorKind::Invalid, "the server does not understand `where`")
                    .source(error)
                    .remedy("write a condition as it would stand after WHERE"),
            })?;
        }
        Ok(from)
    }
}

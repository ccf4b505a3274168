//! What coordinators' own tables say, where they are in a database that can be asked. What is not in them says nothing: a coordinator
//! that has not begun to write looks the same as one that has forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lockstep_core::error::At;
use lockstep_core::query::{Queries, QuerySession, Question, Row};
use lockstep_core::{Error, ErrorKind, Result};

use super::{Doubt, Epoch, Judged, OwnLog, Rule, Verdict};
use crate::gid::{Dialect, Manager, Xid};

/// How long one question may take.
const ANSWER: Duration = Duration::from_secs(30);

/// What databases could tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consulted {
    /// Decision logs of lockstep's coordinators.
    pub logs: Vec<OwnLog>,
    /// What managers' tables say, by gid.
    pub managers: BTreeMap<String, Judged>,
    /// What was asked and what was not to be read, for people.
    pub notes: Vec<String>,
}

/// A coordinator's table.
struct Adaptor {
    /// Whose names it knows.
    dialect: Dialect,
    table: &'static str,
    /// Yields `key` and `status`.
    query: &'static str,
    /// What the table calls the transaction of a branch.
    key: fn(&Doubt) -> Option<String>,
    /// What a status means.
    verdict: fn(&str) -> Verdict,
}

const ADAPTORS: [Adaptor; 3] = [DTM, SEATA, CITUS];

/// `dtm`: `prepared` while it can still be given up, `submitted` when it is to commit.
const DTM: Adaptor = Adaptor {
    dialect: Dialect::Dtm,
    table: "dtm.trans_global",
    query: "SELECT gid AS key, status FROM dtm.trans_global",
    key: |doubt| Some(doubt.branch.global().to_owned()),
    verdict: |status| match status {
        "submitted" | "succeed" => Verdict::Commit,
        "aborting" | "failed" => Verdict::RollBack,
        _ => Verdict::LeaveAlone,
    },
};

/// Seata's server, with its store in a database. The numbers are those of `GlobalStatus`.
const SEATA: Adaptor = Adaptor {
    dialect: Dialect::Xa(Manager::Seata),
    table: "public.global_table",
    query: "SELECT xid AS key, status FROM public.global_table",
    key: |doubt| String::from_utf8(Xid::parse(&doubt.in_doubt.gid)?.global).ok(),
    verdict: |status| match status {
        // Committing, retrying, asynchronously; committed; out of tries.
        "2" | "3" | "8" | "9" | "16" => Verdict::Commit,
        // Rolling back, retrying, after a timeout; rolled back; out of tries.
        "4" | "5" | "6" | "7" | "11" | "13" | "17" => Verdict::RollBack,
        _ => Verdict::LeaveAlone,
    },
};

/// Citus: a worker's branch is to commit if its coordinator has a row for it.
const CITUS: Adaptor = Adaptor {
    dialect: Dialect::Citus,
    table: "pg_catalog.pg_dist_transaction",
    query: "SELECT gid AS key, 'committed' AS status FROM pg_catalog.pg_dist_transaction",
    key: |doubt| Some(doubt.in_doubt.gid.clone()),
    verdict: |_| Verdict::Commit,
};

/// Asks databases, by the names of their sources, what they know about branches: the decision log (in `log`, or wherever it is), and the
/// tables of other coordinators. A table that may not be read, or is not what it should be, is noted, and says nothing.
///
/// # Errors
/// When a database cannot be reached.
pub async fn consult(
    databases: &[(Arc<str>, Arc<dyn Queries>)],
    log: Option<&str>,
    doubts: &[Doubt],
) -> Result<Consulted> {
    let mut consulted = Consulted::default();
    let ours = with_keys(doubts, &Dialect::Xa(Manager::Lockstep), |doubt| {
        Some(doubt.branch.global().to_owned())
    });
    for (name, queries) in databases {
        let place = || format!("sources.{name}");
        if !ours.is_empty() && log.is_none_or(|log| log == &**name) {
            let read = own_log(&**queries, &ours).await;
            consulted
                .take("the decision log", read, name, |logs, log| {
                    logs.logs.extend(log)
                })
                .at(place())?;
        }
        for adaptor in &ADAPTORS {
            let wanted = with_keys(doubts, &adaptor.dialect, adaptor.key);
            if wanted.is_empty() {
                continue;
            }
            let read = adaptor.ask(&**queries, &wanted).await;
            consulted
                .take(adaptor.table, read, name, |all, said| {
                    for (gid, judged) in said.into_iter().flatten() {
                        all.managers.insert(gid, judged);
                    }
                })
                .at(place())?;
        }
    }
    Ok(consulted)
}

impl Consulted {
    fn take<T>(
        &mut self,
        what: &str,
        read: Result<Option<T>>,
        name: &str,
        keep: impl FnOnce(&mut Self, Option<T>),
    ) -> Result<()> {
        match read {
            Ok(read) => {
                if read.is_some() {
                    self.notes.push(format!("{what} was read in {name}"));
                }
                keep(self, read);
                Ok(())
            }
            Err(error) if is_passed_over(&error) => {
                self.notes
                    .push(format!("{what} cannot be read in {name}: {error}"));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether the table is the matter, and not the database.
fn is_passed_over(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Config | ErrorKind::Permission | ErrorKind::Setup
    )
}

/// Keys in a coordinator's table with the gids that they are for.
type Wanted = BTreeMap<String, BTreeSet<String>>;

fn with_keys(doubts: &[Doubt], dialect: &Dialect, key: fn(&Doubt) -> Option<String>) -> Wanted {
    let mut wanted = Wanted::new();
    for doubt in doubts
        .iter()
        .filter(|doubt| doubt.branch.dialect() == dialect)
    {
        if let Some(key) = key(doubt) {
            wanted
                .entry(key)
                .or_default()
                .insert(doubt.in_doubt.gid.clone());
        }
    }
    wanted
}

impl Adaptor {
    /// What the table says, by gid; `None` where there is no such table.
    async fn ask(
        &self,
        queries: &dyn Queries,
        wanted: &Wanted,
    ) -> Result<Option<Vec<(String, Judged)>>> {
        let mut session = queries.open(ANSWER).await?;
        if !is_there(&mut *session, self.table).await? {
            return Ok(None);
        }
        let rows = read(&mut *session, self.query, "key", Some(wanted)).await?;
        let mut said = Vec::new();
        for row in rows {
            let [Some(key), Some(status)] = &row[..] else {
                continue;
            };
            let verdict = (self.verdict)(status);
            let table = self.table;
            let why = match verdict {
                Verdict::LeaveAlone => {
                    format!("{table} has it with status {status}: it is not decided")
                }
                _ => format!("{table} has it with status {status}"),
            };
            let rule = match verdict {
                Verdict::LeaveAlone => Rule::None,
                _ => Rule::Manager,
            };
            for gid in wanted.get(key).into_iter().flatten() {
                said.push((gid.clone(), Judged::new(verdict, rule, why.clone())));
            }
        }
        Ok(Some(said))
    }
}

/// The decision log, in one snapshot; `None` where there is none.
async fn own_log(queries: &dyn Queries, wanted: &Wanted) -> Result<Option<OwnLog>> {
    let mut session = queries.open(ANSWER).await?;
    if !is_there(&mut *session, "lockstep.gtx_log").await? {
        return Ok(None);
    }
    let ids = read(
        &mut *session,
        "SELECT id FROM lockstep.gtx_identity",
        "id",
        None,
    )
    .await?;
    let id = ids.first().and_then(|row| number::<i64>(row, 0));
    let Some(id) = id else {
        return Ok(None);
    };
    let mut log = OwnLog {
        id: id.cast_unsigned(),
        ..OwnLog::default()
    };
    let decided = "SELECT gtrid FROM lockstep.gtx_log";
    for row in read(&mut *session, decided, "gtrid", Some(wanted)).await? {
        log.decided.extend(row.into_iter().next().flatten());
    }
    let epochs = "SELECT epoch, coordinator, closed IS NOT NULL AS closed FROM lockstep.gtx_epoch";
    for row in read(&mut *session, epochs, "epoch", None).await? {
        let text = |at: usize| row.get(at).cloned().flatten().unwrap_or_default();
        if let Some(epoch) = number(&row, 0) {
            let one = Epoch {
                coordinator: text(1),
                is_closed: text(2) == "true",
            };
            log.epochs.insert(epoch, one);
        }
    }
    Ok(Some(log))
}

fn number<N: std::str::FromStr>(row: &Row, column: usize) -> Option<N> {
    row.get(column)?.as_deref()?.parse().ok()
}

async fn is_there(session: &mut dyn QuerySession, table: &str) -> Result<bool> {
    let query = format!("SELECT pg_catalog.to_regclass('{table}') IS NOT NULL AS there");
    let rows = read(session, &query, "there", None).await?;
    Ok(rows.first().and_then(|row| row.first()?.as_deref()) == Some("true"))
}

async fn read(
    session: &mut dyn QuerySession,
    query: &str,
    key: &str,
    only: Option<&Wanted>,
) -> Result<Vec<Row>> {
    let only: Option<Vec<Vec<String>>> =
        only.map(|wanted| wanted.keys().map(|key| vec![key.clone()]).collect());
    let question = Question {
        query,
        key: &[key.to_owned()],
        only: only.as_deref(),
    };
    session.begin(&question).await?;
    let mut all = Vec::new();
    loop {
        let rows = session.next().await?;
        if rows.is_empty() {
            return Ok(all);
        }
        all.extend(rows);
    }
}

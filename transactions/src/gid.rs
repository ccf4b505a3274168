//! Which branches belong together, from what their coordinators call them.
//!
//! PostgreSQL knows a prepared transaction by a name of up to 199 bytes, its *gid*, and makes nothing of it. Every
//! coordinator puts in it what all branches of a transaction share, and what tells them apart, in its own way: a
//! [`Dialect`]. What is shared, written as text, is the *global* id: branches of equal global ids are one transaction, in
//! whichever databases they are.
//!
//! | dialect | gid | global id |
//! |---|---|---|
//! | the XA triple, by pgjdbc and psycopg | `formatId_base64(gtrid)_base64(bqual)` | `formatId_base64(gtrid)` |
//! | DTM | `gid-branch`: the gid as DTM draws it, 22 characters; the branch one to ten pairs of digits | `gid` |
//! | Npgsql (System.Transactions) | `GUID/pid` | `GUID` |
//! | Citus | `citus_group_pid_number_connection` | `citus_group_pid_number` |
//! | a subscriber of logical replication | `pg_gid_subscription_xid` | all of it: a copy, and no branch of anything |
//! | SQLAlchemy | `_sa_` and 32 hexadecimal digits | all of it: drawn anew for each connection |
//! | anything else | | all of it: whoever writes the same name in two databases means one transaction |
//!
//! A [`Pattern`] of the user goes before all of them; who gives DTM gids of his own needs one, as `order-17` may be
//! anybody's. Telling two branches apart that belong together is a loss; taking two that do not for one is worse. The layouts are those of the programs' sources (pgjdbc
//! `RecoveredXid`, psycopg `Xid`, dtm `dtmimp`, Npgsql `NpgsqlPromotableSinglePhaseNotification`, Citus
//! `remote_transaction.c`, PostgreSQL `worker.c`).

mod own;
mod pattern;
mod xa;

use std::fmt;

pub use own::Own;
pub use pattern::Pattern;
pub use xa::{Manager, Xid};

/// The longest gid, in bytes (`GIDSIZE` of PostgreSQL is 200, with the end of the string).
pub const MOST_BYTES: usize = 199;

/// The words for all who write gids: what [`Dialect::as_str`] gives.
pub const MANAGERS: [&str; 16] = [
    "lockstep",
    "narayana",
    "atomikos",
    "bitronix",
    "seata",
    "flink",
    "websphere",
    "weblogic",
    "geronimo",
    "xa",
    "dtm",
    "npgsql",
    "citus",
    "subscriber",
    "sqlalchemy",
    "plain",
];

/// A branch of a transaction, as its coordinator calls it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Branch {
    dialect: Dialect,
    global: String,
    qualifier: String,
}

/// Who wrote a gid, as far as its form tells.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// The XA triple.
    Xa(Manager),
    /// DTM (`dtm-labs/dtm`).
    Dtm,
    /// Npgsql, for System.Transactions.
    Npgsql,
    /// Citus, for its own distributed transactions.
    Citus,
    /// A subscriber of PostgreSQL's logical replication.
    Subscriber,
    /// SQLAlchemy with `twophase=True`.
    SqlAlchemy,
    /// The user's pattern.
    Pattern,
    /// No form that is known.
    Plain,
}

impl Branch {
    /// Reads a gid. Every text is one: what has no known form stands for itself.
    #[must_use]
    pub fn parse(gid: &str) -> Self {
        // Prefixes first: an XA triple begins with a number, so none of them is one.
        citus(gid)
            .or_else(|| subscriber(gid))
            .or_else(|| sqlalchemy(gid))
            .or_else(|| Xid::parse(gid).map(|xid| xid.branch()))
            .or_else(|| npgsql(gid))
            .or_else(|| dtm(gid))
            .unwrap_or_else(|| whole(Dialect::Plain, gid))
    }

    /// As [`Branch::parse`], with a pattern that goes first.
    #[must_use]
    pub fn parse_with(gid: &str, pattern: Option<&Pattern>) -> Self {
        let own = pattern.and_then(|pattern| pattern.read(gid));
        own.unwrap_or_else(|| Branch::parse(gid))
    }

    /// Who wrote it.
    #[must_use]
    pub fn dialect(&self) -> &Dialect {
        &self.dialect
    }

    /// What all branches of the transaction share.
    #[must_use]
    pub fn global(&self) -> &str {
        &self.global
    }

    /// What is equal for the branches of one transaction, and for no others: ids of two dialects are never those of one, and a
    /// branch that can have no siblings, of the source `of`, is alone.
    #[must_use]
    pub fn key(&self, of: &str) -> String {
        if self.may_have_siblings() {
            format!("{}:{}", self.dialect, self.global)
        } else {
            format!("{}:{of}:{}:{}", self.dialect, self.global, self.qualifier)
        }
    }

    /// What tells this branch from the others; empty where the name has no such part.
    #[must_use]
    pub fn qualifier(&self) -> &str {
        &self.qualifier
    }

    /// Whether others can belong to it.
    #[must_use]
    pub fn may_have_siblings(&self) -> bool {
        match &self.dialect {
            Dialect::Xa(manager) => manager.shares_global_ids(),
            Dialect::Subscriber | Dialect::SqlAlchemy => false,
            Dialect::Dtm | Dialect::Npgsql | Dialect::Citus | Dialect::Pattern | Dialect::Plain => {
                true
            }
        }
    }
}

impl Dialect {
    /// Whether its coordinator gives no global id twice, in as long as anybody remembers: they are drawn at random, or count up with what
    /// names the coordinator and when it was started.
    #[must_use]
    pub fn names_once(&self) -> bool {
        match self {
            Dialect::Xa(manager) => *manager != Manager::Other && manager.shares_global_ids(),
            Dialect::Dtm | Dialect::Npgsql => true,
            Dialect::Citus
            | Dialect::Subscriber
            | Dialect::SqlAlchemy
            | Dialect::Pattern
            | Dialect::Plain => false,
        }
    }

    /// The word for it in settings and metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Dialect::Xa(manager) => manager.as_str(),
            Dialect::Dtm => "dtm",
            Dialect::Npgsql => "npgsql",
            Dialect::Citus => "citus",
            Dialect::Subscriber => "subscriber",
            Dialect::SqlAlchemy => "sqlalchemy",
            Dialect::Pattern => "pattern",
            Dialect::Plain => "plain",
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn whole(dialect: Dialect, gid: &str) -> Branch {
    Branch {
        dialect,
        global: gid.to_owned(),
        qualifier: String::new(),
    }
}

fn split(dialect: Dialect, (global, qualifier): (&str, &str)) -> Branch {
    Branch {
        dialect,
        global: global.to_owned(),
        qualifier: qualifier.to_owned(),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_signed(text: &str) -> bool {
    is_number(text.strip_prefix('-').unwrap_or(text))
}

/// `citus_<group>_<pid>_<transaction number>_<connection number>`
fn citus(gid: &str) -> Option<Branch> {
    let numbers = gid.strip_prefix("citus_")?;
    let parts: Vec<&str> = numbers.split('_').collect();
    let is_one = parts.len() == 4 && parts.iter().all(|part| is_signed(part));
    is_one
        .then(|| gid.rsplit_once('_'))
        .flatten()
        .map(|parts| split(Dialect::Citus, parts))
}

/// `pg_gid_<subscription>_<xid>`
fn subscriber(gid: &str) -> Option<Branch> {
    let (subscription, xid) = gid.strip_prefix("pg_gid_")?.split_once('_')?;
    (is_number(subscription) && is_number(xid)).then(|| whole(Dialect::Subscriber, gid))
}

/// `_sa_` and a UUID without hyphens.
fn sqlalchemy(gid: &str) -> Option<Branch> {
    let drawn = gid.strip_prefix("_sa_")?;
    let is_one = drawn.len() == 32 && drawn.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_one.then(|| whole(Dialect::SqlAlchemy, gid))
}

/// `<GUID of the distributed transaction>/<pid of the session>`
fn npgsql(gid: &str) -> Option<Branch> {
    let (guid, pid) = gid.split_once('/')?;
    let hyphens = [8, 13, 18, 23];
    let is_guid = guid.len() == 36
        && guid.bytes().enumerate().all(|(at, byte)| match byte {
            b'-' => hyphens.contains(&at),
            byte => byte.is_ascii_hexdigit() && !hyphens.contains(&at),
        });
    (is_guid && is_number(pid)).then(|| split(Dialect::Npgsql, (guid, pid)))
}

/// `<gid>-<branch>`; the branch has two digits for each level of nesting, at most ten levels. The gid is a UUID in base 57.
fn dtm(gid: &str) -> Option<Branch> {
    let (global, branch) = gid.rsplit_once('-')?;
    let is_branch = is_number(branch) && branch.len() % 2 == 0 && branch.len() <= 20;
    let is_drawn = |byte: u8| byte.is_ascii_alphanumeric() && !b"01IOl".contains(&byte);
    let is_gid = global.len() == 22 && global.bytes().all(is_drawn);
    (is_branch && is_gid).then(|| split(Dialect::Dtm, (global, branch)))
}

#[cfg(test)]
mod tests;

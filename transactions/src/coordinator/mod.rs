//! A coordinator of two-phase commits, for programs that change several databases at once.
//!
//! ```no_run
//! use lockstep_transactions::coordinator::{Coordinator, Direct};
//! use tokio_postgres::NoTls;
//!
//! # async fn buy() -> Result<(), Box<dyn std::error::Error>> {
//! let coordinator = Coordinator::builder("shop-1")
//!     .database("orders", Direct::new("host=db1 user=shop dbname=orders".parse()?, NoTls))
//!     .database("inventory", Direct::new("host=db2 user=shop dbname=inventory".parse()?, NoTls))
//!     .log("orders")
//!     .open()
//!     .await?;
//!
//! let purchase = coordinator.begin(["orders", "inventory"]).await?;
//! let [orders, inventory] = purchase.branches();
//! let row = orders.query_one("INSERT INTO orders (sku) VALUES ('A-1') RETURNING id", &[]).await?;
//! let id: i64 = row.get(0);
//! inventory.execute("UPDATE stock SET reserved = reserved + 1, last_order = $1 WHERE sku = 'A-1'", &[&id]).await?;
//! let committed = purchase.commit().await?;
//! assert!(committed.is_everywhere());
//! # Ok(())
//! # }
//! ```
//!
//! **What is promised.** All databases of a transaction commit, or none, whoever crashes when. It is *presumed abort*: what the log
//! does not hold is rolled back. The one point where it is decided is the commit of a row of the log.
//!
//! **Two forms**, of which the cheaper one is taken by itself. Where the log is in one of the transaction's databases, only the
//! others are prepared; that one commits in one phase, its work and the decision together: a PREPARE less, and no write besides. Else
//! all are prepared, and the decision is a transaction of its own. With one database alone it is a plain COMMIT.
//!
//! **Who may decide.** [`Builder::open`] draws an *epoch*, and closes the one before of its name. The row of a decision is written
//! only while its epoch is open, under a lock that whoever closes it waits for. So when an epoch is closed, all its decisions are in the log, and what is prepared
//! under it and is not in the log never will be. That, and no clock, is why the next coordinator may roll it
//! back. Give each process a name of its own, which it keeps across restarts (the name of a pod of a StatefulSet): two at a time with
//! one name fence each other.
//!
//! **Deadlocks between databases** are seen by none of them. Lock rows in the same order everywhere, the databases in one order
//! too, and set `lock_timeout`.
//!
//! Each branch says in a [marker](crate::marker) what it is a branch of, so that downstream the branches are one event, whichever
//! form was used.

mod database;
mod finish;
mod global;
mod log;
mod measures;
mod prepare;
mod recover;
mod session;
mod sql;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lockstep_core::error::{At, Policy};
use lockstep_core::{Error, ErrorKind, Result};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use database::{Database, Direct, Lent};
pub use global::{Committed, Global};
pub use log::SCHEMA;
pub use measures::Measures;

use crate::gid::Own;
use measures::Counters;
use prepare::Branch;
use session::Participant;

/// How long `commit()` waits for databases to end their branches once it is decided, when the settings do not say: a round trip
/// takes milliseconds, and who waits for longer waits for a server that is away.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(2);

/// How long a statement of the protocol may take, when the settings do not say. Prepare and commit wait for the disk, and for
/// synchronous standbys.
pub const DEFAULT_ANSWER: Duration = Duration::from_secs(30);

/// How often what earlier coordinators left behind is looked for, when the settings do not say.
pub const DEFAULT_RECOVER_EVERY: Duration = Duration::from_secs(5);

/// How long decisions are kept in the log at least, when the settings do not say. A standby that takes over may lack the end of its
/// primary's log, and have prepared what had committed there: it has to ask.
pub const DEFAULT_KEEP_LOG: Duration = Duration::from_secs(600);

/// What to do about `max_prepared_transactions = 0`.
const NO_PREPARED: &str = "ALTER SYSTEM SET max_prepared_transactions = 100 (at least max_connections is a good number), then restart the server";

/// Times of a coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long `commit()` waits for databases to end their branches once it is decided. Default [`DEFAULT_PATIENCE`].
    pub patience: Duration,
    /// How long a session, or the answer to a statement of the protocol, may take, before a connection is given up. Default
    /// [`DEFAULT_ANSWER`]. Not for the statements of the work.
    pub answer: Duration,
    /// How often what earlier coordinators left behind is looked for. Default [`DEFAULT_RECOVER_EVERY`].
    pub recover_every: Duration,
    /// How long decisions are kept in the log at least. Default [`DEFAULT_KEEP_LOG`].
    pub keep_log: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            patience: DEFAULT_PATIENCE,
            answer: DEFAULT_ANSWER,
            recover_every: DEFAULT_RECOVER_EVERY,
            keep_log: DEFAULT_KEEP_LOG,
        }
    }
}

/// A place in the course of a transaction. Each is reached with the name of the database it is about; the log's, where it is about all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Point {
    /// `commit()` was called; nothing is prepared.
    Committing,
    /// A branch is about to be prepared.
    Preparing,
    /// A branch is prepared.
    Prepared,
    /// All are that are to be.
    AllPrepared,
    /// The decision is written, and about to be committed.
    Deciding,
    /// The decision is durable.
    Decided,
    /// A branch is about to be committed, or rolled back.
    Ending,
    /// That is done.
    Ended,
}

/// Sees transactions on their way, for tracing, and for tests that let something happen at a place.
#[async_trait]
pub trait Onlooker: Send + Sync + 'static {
    /// A transaction has reached a place. It goes on when this returns.
    async fn reached(&self, point: Point, database: &str);
}

/// Makes a [`Coordinator`].
#[must_use = "nothing is opened before `open`"]
pub struct Builder {
    name: String,
    databases: Vec<Participant>,
    log: Option<String>,
    settings: Settings,
    onlooker: Option<Arc<dyn Onlooker>>,
}

/// See the module's page. Dropped, it stops working in the background; what is left to do is left to the next one of its name.
pub struct Coordinator {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    databases: Vec<Participant>,
    log: usize,
    log_id: u64,
    epoch: u32,
    settings: Settings,
    onlooker: Option<Arc<dyn Onlooker>>,
    counters: Counters,
    random: SystemRandom,
    /// A newer coordinator has this one's name.
    fenced: AtomicBool,
    closing: CancellationToken,
    /// Transactions that are being ended.
    under_way: watch::Sender<usize>,
    /// Decisions that may be taken out of the log when they are old enough, the oldest first.
    all_committed: Mutex<Vec<(String, Instant)>>,
}

impl Builder {
    /// Adds a database, by a name that the log keeps: it must mean the same one for ever.
    pub fn database(mut self, name: &str, database: impl Database) -> Self {
        self.databases.push(Participant {
            name: name.into(),
            database: Arc::new(database),
        });
        self
    }

    /// The database that the decision log is in. One that most transactions change anyway is the cheapest.
    pub fn log(mut self, name: &str) -> Self {
        self.log = Some(name.to_owned());
        self
    }

    /// Other times.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Somebody who sees transactions on their way.
    pub fn onlooker(mut self, onlooker: impl Onlooker) -> Self {
        self.onlooker = Some(Arc::new(onlooker));
        self
    }

    /// Opens it: makes the log's tables where they are missing ([`SCHEMA`]), takes over from the coordinator of its name, ends what
    /// that one has left behind in the databases that can be reached, and goes on to look for more in the background.
    ///
    /// Cancel-safe: an epoch that was opened and is not used is closed by the next one.
    ///
    /// # Errors
    /// `Config` when the log is none of the databases, or two have one name; `Setup` when a database that is to prepare
    /// transactions does not allow it; those of the log's database. Another one that cannot be reached for now is none.
    pub async fn open(self) -> Result<Coordinator> {
        let log = self.log_index()?;
        for (at, participant) in self.databases.iter().enumerate() {
            if at != log {
                tolerate(check(participant, self.settings.answer).await)?;
            }
        }
        let session = log::session(&self.databases[log], self.settings.answer).await?;
        let (log_id, epoch) = log::open(&session, &self.name)
            .await
            .at("the decision log")?;
        session.release();
        let inner = Arc::new(Inner {
            name: self.name,
            databases: self.databases,
            log,
            log_id,
            epoch,
            settings: self.settings,
            onlooker: self.onlooker,
            counters: Counters::default(),
            random: SystemRandom::new(),
            fenced: AtomicBool::new(false),
            closing: CancellationToken::new(),
            under_way: watch::Sender::new(0),
            all_committed: Mutex::default(),
        });
        let coordinator = Coordinator { inner };
        recover::pass(&coordinator.inner).await;
        tokio::spawn(recover::again_and_again(Arc::clone(&coordinator.inner)));
        Ok(coordinator)
    }

    fn log_index(&self) -> Result<usize> {
        let mut names = BTreeSet::new();
        for participant in &self.databases {
            if !names.insert(&participant.name) {
                let message = format!("two databases have the name `{}`", participant.name);
                return Err(Error::new(ErrorKind::Config, message));
            }
        }
        let log = self.log.as_deref().unwrap_or_default();
        find(&self.databases, log).map_err(|error| error.at("the decision log"))
    }
}

impl Coordinator {
    /// A coordinator's name is for the log: one at a time has it.
    pub fn builder(name: &str) -> Builder {
        Builder {
            name: name.to_owned(),
            databases: Vec::new(),
            log: None,
            settings: Settings::default(),
            onlooker: None,
        }
    }

    /// Begins a transaction in databases, each once. Cancel-safe: what is open then is closed.
    ///
    /// # Errors
    /// `Config` when a name is not known, or comes twice; `Busy` when a newer coordinator has this one's name; those of the
    /// databases.
    pub async fn begin<const N: usize>(&self, databases: [&str; N]) -> Result<Global<N>> {
        let begun = Instant::now();
        let inner = &self.inner;
        if inner.fenced.load(Ordering::Acquire) {
            return Err(inner.fence());
        }
        let mut chosen = Vec::with_capacity(N);
        for name in databases {
            let at = find(&inner.databases, name)?;
            if chosen.contains(&at) {
                let message = format!("`{name}` is named twice");
                return Err(Error::new(ErrorKind::Config, message)
                    .remedy("a transaction has one branch in a database"));
            }
            chosen.push(at);
        }
        let first = inner.draw(N)?;
        let branches = chosen.iter().enumerate().map(|(index, &at)| {
            let branch = u16::try_from(index + 1).unwrap_or(u16::MAX);
            inner.begin(at, Own { branch, ..first })
        });
        let branches = futures_util::future::try_join_all(branches).await?;
        Counters::add(&inner.counters.begun);
        Ok(Global::new(
            Arc::clone(inner),
            first.global(),
            begun,
            branches,
        ))
    }

    /// The epoch that it was opened with.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.inner.epoch
    }

    /// What it has done so far.
    #[must_use]
    pub fn measures(&self) -> Measures {
        self.inner.counters.now()
    }

    /// Returns when nothing is under way: every transaction that was decided has ended in all its databases. Cancel-safe.
    pub async fn settled(&self) {
        let mut under_way = self.inner.under_way.subscribe();
        // The sender is ours.
        let _ = under_way.wait_for(|under_way| *under_way == 0).await;
    }
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator")
            .field("name", &self.inner.name)
            .field("epoch", &self.inner.epoch)
            .finish_non_exhaustive()
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.inner.closing.cancel();
    }
}

impl Inner {
    fn log(&self) -> &Participant {
        &self.databases[self.log]
    }

    async fn reached(&self, point: Point, database: &str) {
        if let Some(onlooker) = &self.onlooker {
            onlooker.reached(point, database).await;
        }
    }

    /// A new transaction's id, as its first branch has it.
    fn draw(&self, branches: usize) -> Result<Own> {
        let branches = u16::try_from(branches)
            .ok()
            .filter(|&branches| branches > 0);
        let branches = branches.ok_or_else(|| {
            Error::new(
                ErrorKind::Config,
                "a transaction has one branch at least, and 65535 at most",
            )
        })?;
        let mut drawn = [0; 12];
        let filled = self.random.fill(&mut drawn);
        filled.map_err(|_| Error::new(ErrorKind::Storage, "the system gives no random numbers"))?;
        Ok(Own {
            epoch: self.epoch,
            drawn,
            branch: 1,
            branches,
            log: self.log_id,
        })
    }

    async fn begin(&self, at: usize, own: Own) -> Result<Branch> {
        let participant = self.databases[at].clone();
        let session = participant.session(self.settings.answer).await?;
        let is_alone = own.branches == 1;
        let gid = (!is_alone && at != self.log).then(|| own.to_string());
        let marker = (!is_alone).then(|| {
            let (global, of, branch) = (own.global(), own.branches, own.branch);
            format!(r#"{{"g": "{global}", "n": {of}, "b": {branch}}}"#)
        });
        let remembered = session::begin(&session, &participant, gid, marker.as_deref()).await?;
        Ok(Branch {
            participant,
            session,
            remembered,
        })
    }

    /// Notes that a newer coordinator has this one's name, and says so.
    fn fence(&self) -> Error {
        self.fenced.store(true, Ordering::Release);
        let message = format!(
            "a newer coordinator named `{}` has taken over from this one, of epoch {}",
            self.name, self.epoch
        );
        Error::new(ErrorKind::Busy, message)
            .remedy("give each process a name of its own; open this coordinator again to take over from the other one")
    }

    /// Keeps [`Coordinator::settled`] waiting for as long as it is held.
    fn busy(self: &Arc<Self>) -> Busy {
        self.under_way.send_modify(|under_way| *under_way += 1);
        Busy(Arc::clone(self))
    }

    /// All branches of a transaction have committed.
    fn all_committed(&self, id: String) {
        self.done().push((id, Instant::now()));
    }

    fn done(&self) -> std::sync::MutexGuard<'_, Vec<(String, Instant)>> {
        self.all_committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

struct Busy(Arc<Inner>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.under_way.send_modify(|under_way| *under_way -= 1);
    }
}

fn find(databases: &[Participant], name: &str) -> Result<usize> {
    let at = databases
        .iter()
        .position(|participant| &*participant.name == name);
    at.ok_or_else(|| {
        let names: Vec<&str> = databases.iter().map(|one| &*one.name).collect();
        Error::new(
            ErrorKind::Config,
            format!("there is no database named `{name}`"),
        )
        .remedy(format!(
            "name one of those that the coordinator was given: {}",
            names.join(", ")
        ))
    })
}

/// A database that is away for a while keeps nobody from opening: what is begun in others can go on.
fn tolerate(checked: Result<()>) -> Result<()> {
    match checked {
        Err(error) if error.kind().policy() == Policy::Retry => {
            tracing::warn!(%error, "a database cannot be looked at");
            Ok(())
        }
        checked => checked,
    }
}

/// Looks whether a database can prepare transactions.
async fn check(participant: &Participant, within: Duration) -> Result<()> {
    let session = participant.session(within).await?;
    let ask = "SELECT pg_catalog.current_setting('max_prepared_transactions')";
    let most = session
        .run("look whether transactions can be prepared", ask)
        .await;
    let place = format!("database {}", participant.name);
    if most.map_err(Error::from).at(&place)?.text(0) == "0" {
        let message = "the server prepares no transactions: max_prepared_transactions is 0";
        return Err(Error::new(ErrorKind::Setup, message)
            .remedy(NO_PREPARED)
            .at(place));
    }
    session.release();
    Ok(())
}

//! Programs that buy in two databases, each by a transaction manager of its own: real ones, with real gids and real logs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::Host;

use crate::component::{Component, dir};
use crate::error::{Context, Error};
use crate::java;
use crate::process::{End, Launch, Process};
use crate::scratch::{Scratch, unique};
use crate::wait::poll_until;

/// How long one may take to start and to end what its predecessor has left. Atomikos waits for three seconds by itself.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Who commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// Narayana, for Java.
    Narayana,
    /// Atomikos, for Java.
    Atomikos,
    /// The two-phase commit of psycopg 3, for Python, with decisions in the table `decided` of the first database.
    Psycopg,
}

impl Manager {
    /// All of them.
    pub const ALL: [Manager; 3] = [Manager::Narayana, Manager::Atomikos, Manager::Psycopg];

    fn as_str(self) -> &'static str {
        match self {
            Manager::Narayana => "narayana",
            Manager::Atomikos => "atomikos",
            Manager::Psycopg => "psycopg",
        }
    }
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a purchase is: statements in two databases, in which `{id}` is its number.
#[derive(Clone, Copy, Debug)]
pub struct Purchase<'a> {
    /// The URL of the first database.
    pub orders: &'a str,
    /// What is done there.
    pub order: &'a str,
    /// The URL of the second.
    pub inventory: &'a str,
    /// What is done there.
    pub reserve: &'a str,
}

/// How many are bought, and how.
#[derive(Clone, Debug)]
pub struct Run {
    /// The number of the first.
    pub first: u64,
    /// How many.
    pub purchases: u64,
    /// Who buy at a time.
    pub threads: u32,
    /// Purchases a second; `None`: as many as go.
    pub rate: Option<f64>,
    /// Where the process ends by itself, as by `kill -9`.
    pub dies: Option<Dies>,
}

impl Default for Run {
    /// One thread that buys nothing: what an earlier run has left is ended.
    fn default() -> Self {
        Run {
            first: 1,
            purchases: 0,
            threads: 1,
            rate: None,
            dies: None,
        }
    }
}

/// A place to die at. Each purchase has two calls of each kind, the first database first.
#[derive(Clone, Copy, Debug)]
pub enum Dies {
    /// When this many branches have been prepared.
    BehindPrepare(u32),
    /// When this many are about to be committed.
    BeforeCommit(u32),
}

impl fmt::Display for Dies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dies::BehindPrepare(count) => write!(f, "prepare:{count}"),
            Dies::BeforeCommit(count) => write!(f, "commit:{count}"),
        }
    }
}

/// A program that buys by a manager, and is started again and again with the same name and the same log.
#[derive(Debug)]
pub struct Shop {
    manager: Manager,
    name: String,
    arguments: Vec<String>,
    scratch: Scratch,
    process: Option<Process>,
}

impl Shop {
    /// One that does not run yet.
    ///
    /// # Panics
    /// When a URL is none, or no temporary folder can be made.
    pub fn new(manager: Manager, purchase: &Purchase<'_>) -> Self {
        let scratch = Scratch::new("shop").unwrap_or_else(|error| panic!("{error}"));
        // No name begins with another one. Narayana takes up to 28 bytes.
        let name = unique("shop") + "-";
        let log = scratch
            .make_dir("decisions")
            .unwrap_or_else(|error| panic!("{error}"));
        let arguments = arguments(manager, &name, purchase, &log);
        Shop {
            manager,
            name,
            arguments,
            scratch,
            process: None,
        }
    }

    /// What its transactions have in their names.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts it, and waits until it has ended what its last run has left.
    ///
    /// # Panics
    /// When it cannot be started, or does not come so far; with the end of its log.
    pub async fn start(&mut self, run: &Run) {
        self.try_start(run)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
    }

    async fn try_start(&mut self, run: &Run) -> Result<(), Error> {
        self.kill();
        let process = Process::start(self.launch(run)?)?;
        let process = self.process.insert(process);
        let open = async || {
            // It may have ended, as one does that has nothing to buy: then its log is whole.
            let has_ended = process.exited().is_some();
            let log = self.scratch.read("log");
            let is_open = log.lines().any(|line| line == "open");
            (is_open || has_ended).then_some(is_open).ok_or(log)
        };
        match poll_until(START_DEADLINE, open).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.failure("it ended at once")),
            Err(_) => Err(self.failure("it is not open in time")),
        }
    }

    /// Starts it, and waits for its end.
    ///
    /// # Panics
    /// As [`Shop::start`], and when it does not end in time.
    pub async fn run(&mut self, run: &Run, deadline: Duration) -> Ended {
        self.start(run).await;
        self.ended(deadline).await
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it has not been started, or does not end in time.
    pub async fn ended(&mut self, deadline: Duration) -> Ended {
        let process = self.process.take().expect("it has been started");
        let exited = poll_until(deadline, async || process.exited()).await;
        let status = exited.unwrap_or_else(|_| panic!("{}", self.failure("it does not end")));
        let log = self.scratch.read("log");
        let told = log.lines().find_map(|line| {
            let (bought, failed) = line.strip_prefix("bought=")?.split_once(" failed=")?;
            Some((bought.parse().ok()?, failed.parse().ok()?))
        });
        match told {
            Some((bought, failed)) => Ended::Done { bought, failed },
            None => Ended::Died(format!("{status}: {log}")),
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// What it has told since its last start.
    pub fn log(&self) -> String {
        self.scratch.read("log")
    }

    fn failure(&self, cause: &str) -> Error {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        Error::new(format!(
            "the shop of {}: {cause}; the end of its log:\n{tail}",
            self.manager
        ))
    }

    fn launch(&self, run: &Run) -> Result<Launch, Error> {
        if !Component::Managers.is_installed() {
            return Err(Component::Managers.missing());
        }
        let mut arguments = self.arguments.clone();
        arguments.push(format!("first={}", run.first));
        arguments.push(format!("purchases={}", run.purchases));
        arguments.push(format!("threads={}", run.threads));
        arguments.extend(run.rate.map(|rate| format!("rate={rate}")));
        arguments.extend(run.dies.map(|dies| format!("die={dies}")));
        let arguments = arguments.into_iter().map(Into::into);
        if self.manager != Manager::Psycopg {
            let arguments: Vec<_> = arguments.collect();
            let jvm = ["-Xmx256m", "-XX:TieredStopAtLevel=1"];
            return java::launch(Component::Managers, &self.scratch, &jvm, "Shop", &arguments);
        }
        // -s: nothing that a user has installed. The folder of the program, in which psycopg is, is the first to be looked in.
        let python = ["-s".into(), shop_py().into()];
        Ok(Launch {
            name: "shop.py".into(),
            program: python_program(),
            args: python.into_iter().chain(arguments).collect(),
            dir: self.scratch.path().into(),
            end: End::Kill,
        })
    }
}

/// What the program of a manager is told in each of its runs. The log is a folder.
fn arguments(manager: Manager, name: &str, purchase: &Purchase<'_>, log: &Path) -> Vec<String> {
    let url = |url: &str| match manager {
        Manager::Psycopg => url.to_owned(),
        _ => jdbc(url),
    };
    let mut arguments = vec![
        format!("name={name}"),
        format!("orders={}", url(purchase.orders)),
        format!("order={}", purchase.order),
        format!("inventory={}", url(purchase.inventory)),
        format!("reserve={}", purchase.reserve),
    ];
    if manager != Manager::Psycopg {
        arguments.push(format!("manager={manager}"));
        arguments.push(format!("log={}", log.display()));
    }
    arguments
}

/// The program that buys by a manager, for those who start it, kill it and start it again themselves: always under this name, with its
/// log in this folder, and with what `Shop.java` and `shop.py` say they can be told besides. Without that it ends what its last run has left, and
/// then itself.
///
/// # Panics
/// When it is not installed, or a URL is none.
pub fn program(manager: Manager, name: &str, purchase: &Purchase<'_>, log: &Path) -> Command {
    assert!(
        Component::Managers.is_installed(),
        "{}",
        Component::Managers.missing()
    );
    let mut command = match manager {
        Manager::Psycopg => {
            let mut python = Command::new(python_program());
            python.arg("-s").arg(shop_py());
            python
        }
        Manager::Narayana | Manager::Atomikos => {
            let mut java = java();
            java.args(["-XX:-UsePerfData", "Shop"]);
            java
        }
    };
    command.args(arguments(manager, name, purchase, log));
    command
}

fn shop_py() -> PathBuf {
    dir().join("psycopg/shop.py")
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It has bought what it should.
    Done {
        /// Purchases of which the manager said that they are committed.
        bought: u64,
        /// The others.
        failed: u64,
    },
    /// By a signal or a failure; its status and log.
    Died(String),
}

/// Java, with the managers and the driver in its class path.
///
/// # Panics
/// When there is none.
pub fn java() -> Command {
    let mut command = Command::new(java::program().expect("Java is installed"));
    command.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    command.arg("-cp").arg(dir().join("managers/libs/*"));
    command
}

/// Python, with psycopg.
pub fn python() -> Command {
    let mut command = Command::new(python_program());
    command.arg("-s").env("PYTHONPATH", dir().join("psycopg"));
    command
}

/// The system's own, where there is one: another may be in a folder that servers cannot enter. `tests/kit/install` repeats this rule.
fn python_program() -> PathBuf {
    let system = PathBuf::from("/usr/bin/python3");
    if system.exists() {
        system
    } else {
        "python3".into()
    }
}

/// A URL as Java's driver reads it.
///
/// # Panics
/// When it is none.
pub fn jdbc(url: &str) -> String {
    let config: Config = url
        .parse()
        .context(|| url.to_owned())
        .unwrap_or_else(|error| panic!("{error}"));
    let host = match config.get_hosts() {
        [Host::Tcp(host), ..] => host.as_str(),
        _ => "127.0.0.1",
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let database = config.get_dbname().unwrap_or("postgres");
    let user = config.get_user().unwrap_or("postgres");
    let password = config.get_password().map(String::from_utf8_lossy);
    let password = password.map(|password| format!("&password={password}"));
    format!(
        "jdbc:postgresql://{host}:{port}/{database}?user={user}{}",
        password.unwrap_or_default()
    )
}

//! Those who buy, as processes of their own, so that killing one is what it is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lockstep_kit::Component;
use lockstep_kit::managers::{self, Manager, Purchase};
use lockstep_kit::random::Random;

use super::shop::Shop;
use super::tally::Tally;
use crate::program::Program;

/// How a buyer buys. All are started, killed and started again in the same way, and write the same rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// lockstep's coordinator, in its cheaper form.
    Marked,
    /// lockstep's coordinator, with its log in a database of its own.
    Full,
    /// Plain SQL, with markers.
    Plain,
    /// Plain SQL, in the names of an XA manager.
    Xa,
    /// No transaction of two databases at all.
    Local,
    /// Narayana, in Java.
    Narayana,
    /// Atomikos, in Java.
    Atomikos,
    /// The two-phase commit of psycopg, in Python.
    Psycopg,
}

/// All of them. A buyer's number is its place here.
pub const KINDS: [Kind; 8] = [
    Kind::Marked,
    Kind::Full,
    Kind::Plain,
    Kind::Xa,
    Kind::Local,
    Kind::Narayana,
    Kind::Atomikos,
    Kind::Psycopg,
];

/// The part of all purchases that each real manager is asked for, and how many that are in a second at most: its log is its own, on the
/// same disk as everything else, and its process needs a second or more to come back.
pub const MANAGER_SHARE: f64 = 0.05;
/// See [`MANAGER_SHARE`].
pub const MANAGER_MOST: f64 = 50.0;

/// Threads of a manager that buy.
const MANAGER_THREADS: u64 = 4;
/// Seconds between two looks of a manager for what it has left behind, and two of its tallies.
const MANAGER_LOOK: u64 = 1;
/// One purchase of a manager in so many is given up.
const GIVES_UP: u64 = 20;

/// The numbers of purchases: the buyer's, the run's, the worker's, and that of the turn, of so many bits each behind the first.
const BITS_OF_RUN: u32 = 12;
const BITS_OF_WORKER: u32 = 4;
const BITS_OF_TURN: u32 = 24;

impl Kind {
    /// As people are told, and the program.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Marked => "marked",
            Kind::Full => "full",
            Kind::Plain => "plain",
            Kind::Xa => "xa",
            Kind::Local => "local",
            Kind::Narayana => "narayana",
            Kind::Atomikos => "atomikos",
            Kind::Psycopg => "psycopg",
        }
    }

    /// Whose program buys; `None` where it is `lockstep-buyer`.
    fn manager(self) -> Option<Manager> {
        match self {
            Kind::Narayana => Some(Manager::Narayana),
            Kind::Atomikos => Some(Manager::Atomikos),
            Kind::Psycopg => Some(Manager::Psycopg),
            Kind::Marked | Kind::Full | Kind::Plain | Kind::Xa | Kind::Local => None,
        }
    }

    /// Whether it can buy here: real managers need what the kit installs.
    pub fn is_there(self) -> bool {
        self.manager().is_none() || Component::Managers.is_installed()
    }

    /// Whether its process ends by itself what it has left behind: what lockstep's coordinator has left behind in the cheaper form is for
    /// `lockstep transactions resolve`, which finds its log in a source.
    pub fn ends_its_own(self) -> bool {
        !matches!(self, Kind::Marked | Kind::Local)
    }
}

/// Whose purchase has this number.
pub fn kind_of(number: u64) -> Option<Kind> {
    let buyer = number >> (BITS_OF_RUN + BITS_OF_WORKER + BITS_OF_TURN);
    KINDS.get(buyer as usize).copied()
}

/// A buyer that is killed and started again.
#[derive(Debug)]
pub struct Buyer {
    /// How it buys.
    pub kind: Kind,
    number: u64,
    /// What all its runs begin with. A run that is told nothing more and is of a manager ends what is left behind, and then itself.
    program: PathBuf,
    words: Vec<String>,
    rate: f64,
    folder: PathBuf,
    process: Option<Program>,
    runs: u64,
    /// How often it was killed.
    pub kills: u64,
    /// What its runs have told that are over.
    tally: Tally,
}

/// A buyer of each kind that can buy here, not started yet, with its share of so many purchases per second. Beside them a quarter as many
/// transactions of one database.
pub fn of_all_kinds(purchases: u64, shop: &Shop, folder: &Path) -> Vec<Buyer> {
    let all = purchases as f64;
    let there = KINDS.iter().filter(|kind| kind.is_there());
    let managers = there.filter(|kind| kind.manager().is_some()).count() as f64;
    let of_manager = (all * MANAGER_SHARE).min(MANAGER_MOST);
    let ours = KINDS.iter().filter(|kind| kind.manager().is_none());
    let ours = ours.filter(|kind| **kind != Kind::Local).count() as f64;
    let new = |(number, kind): (u64, Kind)| {
        let rate = match kind {
            Kind::Local => all / 4.0,
            _ if kind.manager().is_some() => of_manager,
            _ => (all - managers * of_manager) / ours,
        };
        kind.is_there()
            .then(|| Buyer::new(kind, number, shop, rate, folder))
    };
    (0..).zip(KINDS).filter_map(new).collect()
}

/// A purchase takes about 20 ms where there is time, and much longer where a row is locked.
fn workers(rate: f64) -> u64 {
    ((rate / 15.0).ceil() as u64).clamp(4, 15)
}

/// The command that all runs of `lockstep-buyer` begin with.
fn ours(kind: Kind, number: u64, shop: &Shop, rate: f64) -> Command {
    let mut command = Command::new(&shop.buyer);
    let words = [
        ("--kind", kind.name()),
        ("--number", &number.to_string()),
        ("--rate", &rate.to_string()),
        ("--workers", &workers(rate).to_string()),
        ("--articles", &shop.articles.to_string()),
        ("--orders", shop.orders.url()),
        ("--inventory", shop.inventory.url()),
        ("--decisions", shop.decisions.url()),
    ];
    for (name, value) in words {
        command.args([name, value]);
    }
    command
}

/// The same of a manager's program, with the same rows: what is bought follows from the number. Who waits for a row that a purchase in
/// doubt has locked tries another one soon.
fn theirs(manager: Manager, number: u64, shop: &Shop, folder: &Path) -> Command {
    let article = format!("1 + {{id}} * 7919 % 100003 % {}", shop.articles);
    let quantity = "1 + {id} % 3";
    let patience = "SET LOCAL lock_timeout = '1s'";
    let purchase = Purchase {
        orders: shop.orders.url(),
        order: &format!(
            "{patience}; INSERT INTO orders (id, article, quantity) VALUES ({{id}}, {article}, {quantity})"
        ),
        inventory: shop.inventory.url(),
        reserve: &format!(
            "{patience}; INSERT INTO reservations (id, article, quantity) VALUES ({{id}}, {article}, {quantity}); \
             UPDATE stock SET sold = sold + {quantity}, version = version + 1 WHERE id = {article}"
        ),
    };
    let log = folder.join(format!("{manager}-{number}.decisions"));
    std::fs::create_dir_all(&log).expect("the folder can be written");
    managers::program(manager, &format!("{manager}-{number}-"), &purchase, &log)
}

impl Buyer {
    fn new(kind: Kind, number: u64, shop: &Shop, rate: f64, folder: &Path) -> Self {
        let command = match kind.manager() {
            None => ours(kind, number, shop, rate),
            Some(manager) => theirs(manager, number, shop, folder),
        };
        let words = command.get_args();
        Buyer {
            kind,
            number,
            program: command.get_program().into(),
            words: words
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
            rate,
            folder: folder.to_owned(),
            process: None,
            runs: 0,
            kills: 0,
            tally: Tally::default(),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.words);
        command
    }

    /// Starts its next run.
    pub fn start(&mut self) {
        let mut command = self.command();
        let run = self.runs;
        if self.kind.manager().is_some() {
            let first = (self.number << BITS_OF_RUN | run) << (BITS_OF_WORKER + BITS_OF_TURN);
            command.args([
                format!("first={first}"),
                format!("purchases={}", 1_u64 << BITS_OF_TURN),
                format!("threads={MANAGER_THREADS}"),
                format!("rate={}", self.rate),
                format!("gives_up={GIVES_UP}"),
                format!("look={MANAGER_LOOK}"),
            ]);
        } else {
            command.args(["--run", &run.to_string()]);
        }
        self.runs += 1;
        let folder = self.folder.join(format!(
            "{}-{}.{}",
            self.kind.name(),
            self.number,
            self.runs
        ));
        std::fs::create_dir_all(&folder).expect("the folder can be written");
        let mut process = Program::new("buyer", &command, folder);
        process.start();
        self.process = Some(process);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
            self.tally.merge(&Tally::last_of(&process.log()));
            self.kills += 1;
        }
    }

    /// Whether it has told of a purchase.
    pub fn has_bought(&self) -> bool {
        let now = self.process.as_ref();
        self.tally.bought > 0
            || now.is_some_and(|process| Tally::last_of(&process.log()).bought > 0)
    }

    /// What it has told until it was killed last.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Why it does not run any more, if it has ended by itself.
    pub fn ended(&mut self) -> Option<String> {
        let process = self.process.as_mut()?;
        (!process.runs()).then(|| format!("buyer {}: {}", self.kind.name(), process.tail(5)))
    }

    /// Lets it end what its runs have left behind; it may take several times.
    ///
    /// # Errors
    /// What it says when it fails, or that it does not end in time.
    pub async fn end(&self, deadline: Duration) -> Result<(), String> {
        let mut command = tokio::process::Command::from(self.command());
        if self.kind.manager().is_none() {
            command.arg("--end");
        }
        command.kill_on_drop(true);
        let name = self.kind.name();
        let output = tokio::time::timeout(deadline, command.output()).await;
        let output = output.map_err(|_| format!("buyer {name} does not end"))?;
        let output = output.map_err(|error| format!("buyer {name}: {error}"))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!(
                "buyer {name}: {}",
                String::from_utf8_lossy(&output.stderr)
            )),
        }
    }
}

/// One of them that runs, at random.
pub fn pick<'a>(buyers: &'a mut [Buyer], random: &mut Random) -> Option<&'a mut Buyer> {
    let mut running: Vec<&mut Buyer> = buyers
        .iter_mut()
        .filter(|buyer| buyer.process.is_some())
        .collect();
    match running.len() {
        0 => None,
        count => Some(running.swap_remove(random.below(count as u64) as usize)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_say_who_has_bought() {
        let number = (7_u64 << 12 | 3) << 28 | 5;
        assert_eq!(kind_of(number), Some(Kind::Psycopg));
        assert_eq!(kind_of(0), Some(Kind::Marked));
        assert_eq!(kind_of(63 << 40), None);
    }
}

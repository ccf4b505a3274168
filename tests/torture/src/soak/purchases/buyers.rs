//! Those who buy, as processes of their own, so that killing one is what it is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lockstep_kit::random::Random;

use super::shop::Shop;
use crate::program::Program;

/// How a buyer buys. A program of a coordinator's own makes another kind: it is started, killed and started again as these are, takes
/// the same words, and has the kind's share of the purchases.
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
}

/// All of them.
pub const KINDS: [Kind; 5] = [Kind::Marked, Kind::Full, Kind::Plain, Kind::Xa, Kind::Local];

impl Kind {
    /// As the program is told.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Marked => "marked",
            Kind::Full => "full",
            Kind::Plain => "plain",
            Kind::Xa => "xa",
            Kind::Local => "local",
        }
    }

    /// Whether its process ends by itself what it has left behind: what lockstep's coordinator has left behind in the cheaper form is for
    /// `lockstep transactions resolve`, which finds its log in a source.
    pub fn ends_its_own(self) -> bool {
        !matches!(self, Kind::Marked | Kind::Local)
    }
}

/// A buyer that is killed and started again.
#[derive(Debug)]
pub struct Buyer {
    /// How it buys.
    pub kind: Kind,
    number: usize,
    words: Vec<String>,
    program: PathBuf,
    folder: PathBuf,
    process: Option<Program>,
    runs: u64,
    /// How often it was killed.
    pub kills: u64,
}

/// A purchase takes about 20 ms where there is time, and much longer where a row is locked.
fn workers(rate: f64) -> u64 {
    ((rate / 15.0).ceil() as u64).clamp(4, 15)
}

impl Buyer {
    /// Not started yet.
    pub fn new(kind: Kind, number: usize, shop: &Shop, rate: f64, folder: &Path) -> Self {
        let words = [
            ("--kind", kind.name().to_owned()),
            ("--number", number.to_string()),
            ("--rate", rate.to_string()),
            ("--workers", workers(rate).to_string()),
            ("--articles", shop.articles.to_string()),
            ("--orders", shop.orders.url().to_owned()),
            ("--inventory", shop.inventory.url().to_owned()),
            ("--decisions", shop.decisions.url().to_owned()),
        ];
        Buyer {
            kind,
            number,
            words: words
                .into_iter()
                .flat_map(|(name, value)| [name.to_owned(), value])
                .collect(),
            program: shop.buyer.clone(),
            folder: folder.to_owned(),
            process: None,
            runs: 0,
            kills: 0,
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
        command.args(["--run", &self.runs.to_string()]);
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
            self.kills += 1;
        }
    }

    /// Why it does not run any more, if it has ended by itself.
    pub fn ended(&mut self) -> Option<String> {
        let process = self.process.as_mut()?;
        (!process.runs()).then(|| format!("buyer {}: {}", self.kind.name(), process.tail(5)))
    }

    /// Lets it end what its runs have left behind; it may take several times.
    pub async fn end(&mut self, deadline: Duration) -> Result<(), String> {
        let mut command = tokio::process::Command::from(self.command());
        command.arg("--end").kill_on_drop(true);
        let output = tokio::time::timeout(deadline, command.output()).await;
        let output = output.map_err(|_| format!("buyer {} does not end", self.kind.name()))?;
        let output = output.map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
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

//! `lockstep-buyer`: buys across two databases in the way of one kind of coordinator, until it is killed. Started again, it ends first
//! what its earlier runs have left behind.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command talks to its terminal"
)]

mod by_hand;
mod coordinated;
mod local;
mod tally;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use lockstep_kit::random::Random;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_postgres::{Client, Config, NoTls};

use by_hand::{ByHand, Form};
use coordinated::Coordinated;
use local::Local;
use tally::Tally;

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Buys across two databases until it is killed.
#[derive(Clone, Debug, Parser)]
#[command(name = "lockstep-buyer")]
struct Options {
    /// How it buys.
    #[arg(long, value_enum)]
    kind: Kind,
    /// Its number among the buyers, which it keeps.
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..64))]
    number: u64,
    /// How often it has been started before.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..4_096))]
    run: u64,
    /// Purchases per second.
    #[arg(long, default_value_t = 10.0)]
    rate: f64,
    /// Purchases at the same time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..16))]
    workers: u64,
    /// Articles on sale.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    articles: u64,
    /// The database of orders.
    #[arg(long, value_name = "URL")]
    orders: String,
    /// The database of stock.
    #[arg(long, value_name = "URL")]
    inventory: String,
    /// The database that has the decision log of transactions in the full form.
    #[arg(long, value_name = "URL")]
    decisions: String,
    /// Decides which articles are bought.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Buys nothing: ends what earlier runs have left behind, and then itself.
    #[arg(long)]
    end: bool,
}

/// Whose way of committing it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// lockstep's coordinator, its log in the orders database: that one is not prepared.
    Marked,
    /// lockstep's coordinator, its log in a third database: both are prepared.
    Full,
    /// Plain SQL: one is prepared, and the other decides; both say what they are branches of.
    Plain,
    /// Plain SQL in the names of an XA manager, as pgjdbc writes them: both are prepared.
    Xa,
    /// A change in each database, without anything between them.
    Local,
}

/// Between two tries to reach a database: dozens of workers try, and each try is a process of the server that is just recovering.
const AGAIN: Duration = Duration::from_millis(500);
/// How long one that decides by hand looks for what it has left behind in between: a PREPARE of a process that was killed may come late.
const LOOK_BEHIND: Duration = Duration::from_secs(2);
/// Between two tallies on the standard output.
const TELL: Duration = Duration::from_secs(1);
/// Once in so many steps, whoever buys takes his time, up to so many milliseconds: a kill is to find purchases half-way.
const DAWDLES: u64 = 20;
const MOST_MILLIS: u64 = 50;
/// One purchase in so many is given up.
const GIVES_UP: u64 = 20;
/// Numbers of purchases begin with the buyer's, the run's and the worker's, and are whole as doubles.
const BITS_OF_TURN: u32 = 24;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    match options.end {
        true => end(&options).await,
        false => buy(&options).await,
    }
}

async fn end(options: &Options) -> ExitCode {
    let ended = match options.kind {
        Kind::Marked | Kind::Full => Coordinated::open(options).await.end().await,
        Kind::Plain => by_hand::end(options, Form::Marked).await,
        Kind::Xa => by_hand::end(options, Form::Xa).await,
        Kind::Local => Ok(()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lockstep-buyer: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn buy(options: &Options) -> ExitCode {
    let mut seed = Random::seeded(options.seed ^ (options.number << 32) ^ (options.run << 16));
    let mut workers = JoinSet::new();
    let tally = Arc::new(Tally::default());
    tokio::spawn(tell(Arc::clone(&tally)));
    let coordinated = match options.kind {
        Kind::Marked | Kind::Full => Some(Coordinated::open(options).await),
        _ => None,
    };
    for worker in 0..options.workers {
        let (options, random) = (options.clone(), seed.fork());
        let (coordinated, tally) = (coordinated.clone(), Arc::clone(&tally));
        workers.spawn(async move {
            let buyer = match (options.kind, coordinated) {
                (Kind::Plain, _) => {
                    Buyer::ByHand(ByHand::open(&options, Form::Marked, worker).await)
                }
                (Kind::Xa, _) => Buyer::ByHand(ByHand::open(&options, Form::Xa, worker).await),
                (_, Some(coordinated)) => Buyer::Coordinated(coordinated),
                (_, None) => Buyer::Local(Local::open(&options).await),
            };
            work(buyer, &options, worker, random, &tally).await;
        });
    }
    // They go on until the process is killed, or one of them has a mistake in it.
    workers.join_next().await;
    eprintln!("lockstep-buyer: a worker has ended");
    ExitCode::FAILURE
}

async fn tell(tally: Arc<Tally>) {
    loop {
        sleep(TELL).await;
        println!("{tally}");
    }
}

/// Between two steps of a purchase.
async fn dawdle(random: &mut Random) {
    if random.once_in(DAWDLES) {
        sleep(random.millis(0, MOST_MILLIS)).await;
    }
}

enum Buyer {
    Coordinated(Coordinated),
    ByHand(ByHand),
    Local(Local),
}

async fn work(mut buyer: Buyer, options: &Options, worker: u64, mut random: Random, tally: &Tally) {
    let mut due = interval(Duration::from_secs_f64(
        options.workers as f64 / options.rate.max(0.001),
    ));
    due.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for turn in 0..1_u64 << BITS_OF_TURN {
        due.tick().await;
        let number = ((options.number << 12 | options.run) << 4 | worker) << BITS_OF_TURN | turn;
        let purchase = Purchase {
            number,
            article: 1 + random.below(options.articles),
            quantity: 1 + random.below(3),
            gives_up: random.once_in(GIVES_UP),
        };
        let began = Instant::now();
        let bought = match &mut buyer {
            Buyer::Coordinated(coordinated) => coordinated.buy(&purchase).await,
            Buyer::ByHand(by_hand) => by_hand.buy(&purchase, &mut random).await,
            Buyer::Local(local) => local.visit(&purchase).await,
        };
        match &bought {
            Ok(()) if purchase.gives_up && options.kind != Kind::Local => tally.gave_up(),
            Ok(()) => tally.bought(began.elapsed()),
            Err(_) => tally.failed(),
        }
        if let Err(error) = bought {
            // Databases are restarted, and rows are locked by what others have left behind.
            eprintln!("{number}: {error}");
            match &mut buyer {
                Buyer::Coordinated(_) => sleep(AGAIN).await,
                Buyer::ByHand(by_hand) => by_hand.open_again(options).await,
                Buyer::Local(local) => *local = Local::open(options).await,
            }
        }
    }
}

/// What is bought.
struct Purchase {
    number: u64,
    article: u64,
    quantity: u64,
    /// Everything is done, and then rolled back.
    gives_up: bool,
}

impl Purchase {
    fn order(&self) -> String {
        let Purchase {
            number,
            article,
            quantity,
            ..
        } = self;
        format!(
            "INSERT INTO orders (id, article, quantity) VALUES ({number}, {article}, {quantity})"
        )
    }

    fn reserve(&self) -> String {
        let Purchase {
            number,
            article,
            quantity,
            ..
        } = self;
        format!(
            "INSERT INTO reservations (id, article, quantity) VALUES ({number}, {article}, {quantity}); \
             UPDATE stock SET sold = sold + {quantity}, version = version + 1 WHERE id = {article}"
        )
    }
}

/// Who waits for a row that a purchase in doubt has locked tries another one soon.
fn config(url: &str) -> Result<Config> {
    let mut config: Config = url.parse()?;
    config
        .options("-c lock_timeout=1000")
        .connect_timeout(Duration::from_secs(5));
    Ok(config)
}

async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = config(url)?.connect(NoTls).await?;
    // Its error shows up in the client's next call.
    tokio::spawn(connection);
    Ok(client)
}

/// Connects to a database that may be away for now.
async fn reach(url: &str) -> Client {
    loop {
        match connect(url).await {
            Ok(client) => return client,
            Err(error) => eprintln!("{error}"),
        }
        sleep(AGAIN).await;
    }
}

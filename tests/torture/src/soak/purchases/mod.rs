//! Purchases over two clusters under load, while everything is killed at random, and readers of the sinks that look all the time: no
//! purchase is seen in part, lost, or twice.

pub mod buyers;
pub mod cache;
pub mod histogram;
pub mod index;
pub mod measures;
pub mod report;
pub mod shop;
pub mod tally;
pub mod topic;
pub mod violations;
pub mod whole;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::try_join_all;
use lockstep_kit::random::Random;
use tokio::time::{Instant, sleep};

use crate::lockstep::Lockstep;
use buyers::Buyer;
use cache::Cache;
use index::Search;
use measures::Measures;
use report::Report;
use shop::{NAME, Shop};
use topic::Topic;
use violations::Violations;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// Purchases per second, all kinds together; beside them a quarter as many transactions of one database.
    pub purchases: u64,
    /// For how long.
    pub lasts: Duration,
    /// The mean time between two things that are broken.
    pub pause: Duration,
    /// Articles: the fewer, the more purchases wait for each other.
    pub articles: u64,
    /// More lines for the section of the `stitch`.
    pub stitch: String,
    /// Between two evaluations of each invariant, as in the pipeline file.
    pub invariants_every: String,
    /// Decides what is bought, and what is broken when.
    pub seed: u64,
    /// Says how it goes every so often.
    pub tell_every: Option<Duration>,
}

/// How long a program may take to start, or servers to answer.
const START: Duration = Duration::from_secs(60);
/// How long it may take until all that was bought has arrived.
const DRAIN: Duration = Duration::from_secs(300);
/// How long it may take until nothing is in doubt any more, with everybody at work who ends it.
const IN_DOUBT: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// Between two tries of those who end what is in doubt.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// What is broken.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Buyer,
    Lockstep,
    Cluster,
}

/// Buyers are killed most often, and every kind of fault comes in the first few.
const FAULTS: [Fault; 8] = [
    Fault::Buyer,
    Fault::Cluster,
    Fault::Lockstep,
    Fault::Buyer,
    Fault::Buyer,
    Fault::Lockstep,
    Fault::Buyer,
    Fault::Cluster,
];

/// The program that buys: beside `lockstep`, or beside the folder of this test program.
///
/// # Errors
/// When there is none.
pub fn buyer() -> std::io::Result<PathBuf> {
    let this = std::env::current_exe()?;
    let folders = this.ancestors().skip(1).take(2);
    let found = folders
        .map(|folder| folder.join("lockstep-buyer"))
        .find(|program| program.is_file());
    found.ok_or_else(|| {
        std::io::Error::other("no `lockstep-buyer` is there: cargo build -p lockstep-buyer")
    })
}

struct Soak<'a> {
    shop: &'a Shop,
    program: &'a Path,
    options: &'a Options,
    lockstep: Lockstep,
    buyers: Vec<Buyer>,
    random: Random,
    measures: Measures,
    violations: Violations,
    report: Report,
}

/// Does all of it, in this folder.
///
/// # Errors
/// When it could not be done. What lockstep did wrong is in the report.
pub async fn run(
    options: &Options,
    shop: &Shop,
    program: &Path,
    folder: &Path,
) -> Result<Report, String> {
    let file = folder.join("pipeline.toml");
    let text = shop.pipeline(folder, &options.invariants_every, &options.stitch);
    std::fs::write(&file, text).map_err(|error| error.to_string())?;
    let violations = Violations::default();
    let topic = Topic::follow(shop.kafka.bootstrap(), NAME, &violations);
    let mut soak = Soak {
        shop,
        program,
        options,
        lockstep: Lockstep::new(program, folder.to_owned(), None, None),
        buyers: buyers::of_all_kinds(options.purchases, shop, folder),
        random: Random::seeded(options.seed),
        measures: Measures::default(),
        violations: violations.clone(),
        report: Report::default(),
    };
    soak.start().await?;
    let cache = Cache::watch(
        shop.redis.url(),
        NAME,
        shop.articles,
        topic.shared(),
        &violations,
    );
    let search = Search::watch(&shop::index(folder), &violations);
    soak.buyers.iter_mut().for_each(Buyer::start);
    soak.load(&topic).await?;
    soak.end_buying().await?;
    soak.resolve(&file).await?;
    soak.drain().await?;

    let kept = shop.kept().await;
    let whole = topic.end().await?;
    soak.report.cache = cache.end().await?;
    soak.report.search = search.end().await?;
    let cached = cache::read(shop.redis.url(), NAME, shop.articles).await?;
    soak.report.compare(&kept, &whole, &cached, &violations);
    soak.report.records = whole.records;
    soak.report.in_topic = whole.purchases() as u64;
    soak.report.half_in_topic = whole.half_seen;
    soak.report.skew = whole.skew;
    let ended = soak.lockstep.program.terminate(DRAIN).await;
    if !ended.is_some_and(|status| status.success()) {
        let tail = soak.lockstep.program.tail(20);
        violations.add(format!("lockstep ended with {ended:?}:\n{tail}"));
    }
    soak.measures.ended();
    let mut report = soak.report;
    report.bought(&kept, &soak.buyers, &violations);
    report.hold = soak.measures.hold();
    report.decided = soak.measures.decided();
    report.managers = soak.measures.managers();
    report.outcomes = soak.measures.outcomes();
    report.evaluations = soak.measures.evaluations();
    report.most_in_doubt = soak.measures.most_in_doubt;
    report.violations = violations;
    Ok(report)
}

impl Soak<'_> {
    async fn start(&mut self) -> Result<(), String> {
        self.lockstep.program.start();
        // Rows that are copied are not purchases: the slots are there before the first of them.
        let end = Instant::now() + START;
        while !self
            .lockstep
            .get("/readyz")
            .await
            .is_ok_and(|body| body.trim() == "ready")
        {
            if !self.lockstep.program.runs() || Instant::now() > end {
                return Err(format!(
                    "lockstep is not ready:\n{}",
                    self.lockstep.program.tail(20)
                ));
            }
            sleep(LOOK).await;
        }
        for (source, end) in self.shop.ends().await {
            self.arrived(source, &end, START).await?;
        }
        Ok(())
    }

    async fn arrived(&mut self, source: &str, end: &str, within: Duration) -> Result<(), String> {
        let arrived = self.lockstep.visible(source, end, within).await;
        arrived.map_err(|seen| {
            let tail = self.lockstep.program.tail(20);
            format!("not everything of {source} has arrived: {seen}\n{tail}")
        })
    }

    /// Lets the buyers buy, and breaks things.
    async fn load(&mut self, topic: &Topic) -> Result<(), String> {
        let began = Instant::now();
        let end = began + self.options.lasts;
        let mut told = began;
        let mut fault_at = began + self.pause();
        // Some need seconds to begin.
        while Instant::now() < end
            || (Instant::now() < end + START && !self.buyers.iter().all(Buyer::has_bought))
        {
            sleep(LOOK).await;
            self.look().await?;
            if Instant::now() > fault_at {
                self.fault().await;
                fault_at = Instant::now() + self.pause();
            }
            if self
                .options
                .tell_every
                .is_some_and(|every| told.elapsed() > every)
            {
                told = Instant::now();
                self.report.purchases = topic.whole().purchases() as u64;
                self.tell(began, end);
            }
        }
        self.report.lasted = began.elapsed();
        Ok(())
    }

    #[allow(
        clippy::print_stdout,
        reason = "who waits for half an hour wants to know how it goes"
    )]
    fn tell(&self, began: Instant, end: Instant) {
        let purchases = self.report.purchases;
        println!(
            "{} s left, {purchases} purchases in the topic, {:.0}/s, {} faults, {} violations, {} MB",
            end.saturating_duration_since(Instant::now()).as_secs(),
            purchases as f64 / began.elapsed().as_secs_f64(),
            self.report.faults(),
            self.violations.count(),
            self.lockstep.program.resident_kib().unwrap_or_default() / 1_000,
        );
    }

    /// Between two faults: between a quarter of the mean and almost twice as much.
    fn pause(&mut self) -> Duration {
        let mean = self.options.pause.as_millis() as u64;
        self.random.millis(mean / 4, mean * 7 / 4)
    }

    async fn look(&mut self) -> Result<(), String> {
        if !self.lockstep.program.runs() {
            let tail = self.lockstep.program.tail(40);
            return Err(format!("lockstep has ended by itself:\n{tail}"));
        }
        if let Some(why) = self.buyers.iter_mut().find_map(Buyer::ended) {
            return Err(why);
        }
        self.measure().await;
        Ok(())
    }

    async fn measure(&mut self) {
        // It may not listen yet.
        if let Ok(text) = self.lockstep.get("/metrics").await {
            self.measures.take(&text, &self.violations);
        }
    }

    async fn fault(&mut self) {
        let number = self.report.faults() as usize;
        let fault = match FAULTS.get(number) {
            Some(fault) => *fault,
            None => *self.random.pick(&FAULTS),
        };
        match fault {
            Fault::Buyer => {
                let wait = self.random.millis(0, 1_000);
                if let Some(buyer) = buyers::pick(&mut self.buyers, &mut self.random) {
                    buyer.kill();
                    sleep(wait).await;
                    buyer.start();
                }
                self.report.faulted_buyers += 1;
            }
            Fault::Lockstep => {
                self.measure().await;
                self.lockstep.program.kill();
                self.measures.ended();
                sleep(self.random.millis(0, 1_000)).await;
                self.lockstep.program.start();
                self.report.lockstep_kills += 1;
            }
            Fault::Cluster => {
                let cluster = self.random.pick(&self.shop.clusters);
                match self.random.below(2) {
                    0 => cluster.kill_all(),
                    _ => cluster.stop_immediately().await,
                }
                sleep(self.random.millis(0, 1_000)).await;
                cluster.restart().await;
                self.report.restarts += 1;
            }
        }
    }

    /// Kills all who buy, in the midst of it.
    async fn end_buying(&mut self) -> Result<(), String> {
        self.measure().await;
        self.buyers.iter_mut().for_each(Buyer::kill);
        self.report.left_behind = self.shop.prepared().await.len() as u64;
        Ok(())
    }

    /// Lets everybody end what is in doubt who can: the recovery of each kind, and for lockstep's coordinator the resolver.
    async fn resolve(&mut self, file: &Path) -> Result<(), String> {
        // A person knows that those processes do not come back.
        let close = "UPDATE lockstep.gtx_epoch SET closed = now() WHERE closed IS NULL";
        self.shop.orders.execute(close).await;
        let end = Instant::now() + IN_DOUBT;
        loop {
            let ending = self.buyers.iter().filter(|buyer| buyer.kind.ends_its_own());
            try_join_all(ending.map(|buyer| buyer.end(START))).await?;
            self.resolver(file).await?;
            let left = self.shop.prepared().await;
            if left.is_empty() {
                break;
            }
            if Instant::now() > end {
                self.report.in_doubt = left.len() as u64;
                for gid in left {
                    self.violations.add(format!("{gid} stays in doubt"));
                }
                break;
            }
            sleep(TRY_AGAIN).await;
        }
        // Without a journal it has done nothing.
        let journal = file.with_file_name("state").join("transactions.jsonl");
        let journal = std::fs::read_to_string(journal).unwrap_or_default();
        let ended = journal
            .lines()
            .filter(|line| line.contains(r#""state":"ended""#));
        self.report.resolved = ended.count() as u64;
        Ok(())
    }

    /// `lockstep transactions resolve --apply`. Its exit code is 1 while something is left; what is, is looked at elsewhere.
    async fn resolver(&self, file: &Path) -> Result<(), String> {
        let mut command = tokio::process::Command::new(self.program);
        command
            .args(["transactions", "resolve", "--apply"])
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let ended = command.status().await;
        ended.map(drop).map_err(|error| error.to_string())
    }

    /// Waits until all has arrived, and until every invariant has been found to hold.
    async fn drain(&mut self) -> Result<(), String> {
        let began = Instant::now();
        for (source, end) in self.shop.ends().await {
            self.arrived(source, &end, DRAIN).await?;
        }
        self.report.drained = began.elapsed();
        let is_settled = |text: &str| {
            let zero = |metric: &str| {
                let lines = text.lines().filter(|line| line.starts_with(metric));
                let values: Vec<&str> = lines.filter_map(|line| line.rsplit(' ').next()).collect();
                !values.is_empty() && values.iter().all(|value| *value == "0")
            };
            zero("lockstep_invariant_undecided{")
                && zero("lockstep_invariant_in_doubt{")
                && zero("lockstep_invariant_violations{")
                && zero("lockstep_source_in_doubt_transactions{")
                && zero("lockstep_stitch_waiting_transactions{")
        };
        let end = Instant::now() + DRAIN;
        loop {
            let text = self.lockstep.get("/metrics").await.unwrap_or_default();
            self.measures.take(&text, &self.violations);
            if is_settled(&text) {
                return Ok(());
            }
            if Instant::now() > end {
                let lines = text.lines().filter(|line| {
                    line.starts_with("lockstep_invariant_") || line.contains("_in_doubt_")
                });
                let lines: Vec<&str> = lines.collect();
                self.violations
                    .add(format!("does not settle: {}", lines.join(", ")));
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }
}

//! What it costs to let the branches of a transaction go on together: purchases over two clusters, with `stitch` and without.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockstep_core::position::Lsn;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::redis::{Redis, RedisOptions};
use lockstep_kit::{Component, unique};
use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::Client;

use crate::pipeline::{Held, Hold, Pipeline};
use crate::report::median;
use crate::{Result, machine};

/// For `--only`.
pub const NAME: &str = "stitch/lockstep > file, redis";

/// Purchases that are drained.
const DRAINED: u64 = 20_000;
/// Purchases a second beside those that are measured.
const RATE: u64 = 200;
/// Purchases measured in a run.
const SAMPLES: u64 = 1_000;
/// Who buys at the same time.
const BUYERS: u64 = 4;
/// One that takes longer is lost.
const LOST: Duration = Duration::from_secs(30);
/// Between the end of one measurement and the next.
const PAUSE: Duration = Duration::from_millis(5);
/// Between the two commits of a coordinator that is not next to its databases.
const SLOW: Duration = Duration::from_millis(20);
/// The first that can decode two-phase commits.
const LEAST: u16 = 15;

const ORDERS: &str = "CREATE TABLE orders (id bigint PRIMARY KEY, note text); CREATE PUBLICATION bench FOR TABLE orders";
const INVENTORY: &str = "CREATE TABLE reservations (id bigint PRIMARY KEY, note text); CREATE PUBLICATION bench FOR TABLE reservations";

/// How the branches of a transaction go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Each by itself.
    Off,
    /// All together, when all have committed.
    Complete,
    /// All together, when one has committed.
    Decision,
}

const WAYS: [Way; 3] = [Way::Off, Way::Complete, Way::Decision];

impl Way {
    /// The section of the transform; nothing where there is none.
    fn section(self) -> &'static str {
        match self {
            Way::Off => "",
            Way::Complete => {
                "[transforms.whole]\ntype = \"stitch\"\ninputs = [\"orders\", \"inventory\"]\n"
            }
            Way::Decision => {
                "[transforms.whole]\ntype = \"stitch\"\ninputs = [\"orders\", \"inventory\"]\nmode = \"decision\"\n"
            }
        }
    }

    fn inputs(self) -> &'static str {
        match self {
            Way::Off => "[\"orders\", \"inventory\"]",
            Way::Complete | Way::Decision => "[\"whole\"]",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Off => "off",
            Way::Complete => "complete",
            Way::Decision => "decision",
        })
    }
}

/// What one run of one way showed.
struct Sample {
    way: Way,
    /// Purchases per second, of those that were in the log when it began.
    drained: f64,
    peak_kib: u64,
    /// Purchases per second that the load really made beside the measured ones.
    rate: f64,
    /// From the answer to the last COMMIT PREPARED until both rows are in Redis, sorted.
    times: Vec<Duration>,
    /// From the answer to the first COMMIT PREPARED, where the second comes [`SLOW`] later, sorted.
    slow: Vec<Duration>,
    /// How long branches were held back meanwhile: mean, median and p99 in milliseconds.
    hold: Option<[f64; 3]>,
    /// The same of how long they would have been, had all gone on as soon as their branches were known.
    decided: Option<[f64; 3]>,
}

/// Measures and prints.
///
/// # Errors
/// When a server or the pipeline does not start, or something does not arrive.
pub async fn print(postgres: u16, runs: u32, quick: bool) -> Result<()> {
    if !Component::Redis.is_installed() {
        println!("NOT RUN: {NAME}: no Redis here: run tests/kit/install redis");
        return Ok(());
    }
    if postgres < LEAST {
        println!("NOT RUN: {NAME}: PostgreSQL {postgres} does not decode two-phase commits");
        return Ok(());
    }
    let options = PostgresOptions::new(postgres).set("max_prepared_transactions", "200");
    let servers = [
        Postgres::try_start(options.clone()).await?,
        Postgres::try_start(options).await?,
    ];
    let redis = Redis::try_start(RedisOptions::default()).await?;
    let size = if quick { 10 } else { 1 };
    let mut all = Vec::new();
    for number in 1..=runs {
        let run = Run::load(&servers, DRAINED / size).await?;
        for way in machine::shuffled(&WAYS) {
            let sample = run.sample(way, &redis, SAMPLES / size).await?;
            eprintln!(
                "  run {number} stitch {way}: drained at {:.0} purchases/s, {} MB; at {:.0}/s p50 {:.2} ms, p99 {:.2} ms, slow p50 {:.2} ms, p99 {:.2} ms, held {:?} ms, by the decision {:?} ms",
                sample.drained,
                sample.peak_kib / 1_000,
                sample.rate,
                millis(&sample.times, 50.0),
                millis(&sample.times, 99.0),
                millis(&sample.slow, 50.0),
                millis(&sample.slow, 99.0),
                sample.hold,
                sample.decided
            );
            all.push(sample);
        }
    }
    println!(
        "\n| stitch, PostgreSQL {} | drained, purchases/s | × off | peak RSS MB | purchases/s | last commit to visible, p50 ms | p99 ms | most ms | first commit to visible, 20 ms between the two, p50 ms | p99 ms | held back, mean ms | p50 ms | p99 ms | by the decision, mean ms | p50 ms | p99 ms |",
        servers[0].version()
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for way in WAYS {
        println!("{}", row(way, &all));
    }
    Ok(())
}

fn row(way: Way, all: &[Sample]) -> String {
    let of = |way: Way| all.iter().filter(move |sample| sample.way == way);
    let middle = |figure: &dyn Fn(&Sample) -> f64| median(of(way).map(figure).collect());
    // Both ways ran once in each run.
    let ratios = of(way).zip(of(Way::Off));
    let ratio = median(ratios.map(|(own, off)| own.drained / off.drained).collect());
    let most = of(way).map(|sample| millis(&sample.times, 100.0));
    let held = |figures: fn(&Sample) -> Option<[f64; 3]>, at: usize| {
        let held: Vec<f64> = of(way)
            .filter_map(|sample| Some(figures(sample)?[at]))
            .collect();
        match held.is_empty() {
            true => "–".to_owned(),
            false => format!("{:.2}", median(held)),
        }
    };
    format!(
        "| {way} | {:.0} | {ratio:.2} | {:.0} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {} | {} | {} | {} | {} |",
        middle(&|sample| sample.drained),
        middle(&|sample| sample.peak_kib as f64 * 1024.0 / 1e6),
        middle(&|sample| sample.rate),
        middle(&|sample| millis(&sample.times, 50.0)),
        middle(&|sample| millis(&sample.times, 99.0)),
        most.fold(0.0, f64::max),
        middle(&|sample| millis(&sample.slow, 50.0)),
        middle(&|sample| millis(&sample.slow, 99.0)),
        held(|sample| sample.hold, 0),
        held(|sample| sample.hold, 1),
        held(|sample| sample.hold, 2),
        held(|sample| sample.decided, 0),
        held(|sample| sample.decided, 1),
        held(|sample| sample.decided, 2),
    )
}

fn millis(times: &[Duration], of_hundred: f64) -> f64 {
    let last = times.len().saturating_sub(1);
    let at = (last as f64 * of_hundred / 100.0).round() as usize;
    times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// The mean, the median and p99 in milliseconds; `None` of nothing.
fn figures(held: &Held) -> Option<[f64; 3]> {
    let count = held.hold.last().map(|(_, count)| *count)?;
    let mean = held.seconds * 1e3 / count as f64;
    Some([
        mean,
        quantile(&held.hold, 0.5)?,
        quantile(&held.hold, 0.99)?,
    ])
}

/// The time in milliseconds that a part of all was not held longer than, by linear interpolation within its bucket.
fn quantile(hold: &Hold, part: f64) -> Option<f64> {
    let total = hold.last().map(|(_, count)| *count)?;
    let rank = part * total as f64;
    let (mut below, mut lower) = (0.0, 0.0);
    for &(bound, count) in hold {
        let count = count as f64;
        // Of what is beyond all bounds, the last one is all that is known.
        let upper = if bound == f64::MAX { lower } else { bound };
        if total > 0 && count >= rank {
            let share = if count > below {
                (rank - below) / (count - below)
            } else {
                1.0
            };
            return Some((lower + (upper - lower) * share) * 1e3);
        }
        (below, lower) = (count, upper);
    }
    None
}

/// Two databases, with purchases in their logs that nobody has read yet.
struct Run {
    orders: Database,
    inventory: Database,
    name: String,
    purchases: u64,
    ends: Vec<(String, Lsn)>,
}

impl Run {
    /// Makes the slots of all ways, and then the log.
    async fn load(servers: &[Postgres; 2], purchases: u64) -> Result<Self> {
        let run = Run {
            orders: servers[0].database("orders").await,
            inventory: servers[1].database("inventory").await,
            name: unique("stitch").replace('-', "_"),
            purchases,
            ends: Vec::new(),
        };
        run.orders.execute(ORDERS).await;
        run.inventory.execute(INVENTORY).await;
        for way in WAYS {
            for (of, database) in run.databases() {
                let slot = run.slot(way, of);
                let make = format!(
                    "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput', false, true)"
                );
                database.execute(&make).await;
            }
        }
        eprintln!("loading {purchases} purchases over two clusters");
        let next = Arc::new(AtomicU64::new(0));
        let mut buyers = JoinSet::new();
        for _ in 0..BUYERS {
            let (buyer, next) = (Buyer::new(&run).await, Arc::clone(&next));
            buyers.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= purchases {
                        return Result::<()>::Ok(());
                    }
                    buyer.buy(number).await?;
                }
            });
        }
        while let Some(ended) = buyers.join_next().await {
            ended??;
        }
        let mut ends = Vec::new();
        for (of, database) in run.databases() {
            let end = database.value("SELECT pg_current_wal_insert_lsn()").await;
            ends.push((of.to_owned(), end.ok_or("no position")?.parse()?));
        }
        Ok(Run { ends, ..run })
    }

    fn databases(&self) -> [(&'static str, &Database); 2] {
        [("orders", &self.orders), ("inventory", &self.inventory)]
    }

    fn slot(&self, way: Way, of: &str) -> String {
        format!("{}_{of}_{way}", self.name)
    }

    /// The file of a pipeline that reads the slots of a way.
    fn pipeline(&self, way: Way, folder: &Path, sink: &str) -> String {
        let source = |of: &str, database: &Database, table: &str| {
            format!(
                "[sources.{of}]\ntype = \"postgres\"\nurl = \"{}?sslmode=disable\"\ntables = [\"public.{table}\"]\n\
                 slot = \"{}\"\npublication = \"bench\"\nsnapshot = \"never\"\ntwo_phase = true\n",
                database.url(),
                self.slot(way, of)
            )
        };
        format!(
            "name = \"bench\"\n[state]\ndir = \"{}\"\n{}{}{}[sinks.out]\ninputs = {}\n{sink}",
            folder.join("state").display(),
            source("orders", &self.orders, "orders"),
            source("inventory", &self.inventory, "reservations"),
            way.section(),
            way.inputs(),
        )
    }

    async fn sample(&self, way: Way, redis: &Redis, samples: u64) -> Result<Sample> {
        let folder = std::env::temp_dir().join(unique("lockstep-benches"));
        std::fs::create_dir_all(&folder)?;
        let sampled = self.sample_in(way, redis, samples, &folder).await;
        std::fs::remove_dir_all(&folder)?;
        sampled
    }

    async fn sample_in(
        &self,
        way: Way,
        redis: &Redis,
        samples: u64,
        folder: &Path,
    ) -> Result<Sample> {
        let begun = Instant::now();
        let files = format!(
            "type = \"file\"\npath = \"{}/{{table}}.jsonl\"\n",
            folder.display()
        );
        let file = self.pipeline(way, folder, &files);
        let mut pipeline = Pipeline::start_file(&file, folder).await?;
        pipeline.durable(self.ends.clone()).await?;
        let drained = self.purchases as f64 / begun.elapsed().as_secs_f64();
        let peak_kib = pipeline.peak_kib();
        pipeline.end().await?;

        let prefix = unique("stitch");
        let cache = format!(
            "type = \"redis\"\nurl = \"{}\"\nkey = \"{prefix}:{{table}}:{{key}}\"\n",
            redis.url()
        );
        let folder = &folder.join("cache");
        std::fs::create_dir_all(folder)?;
        let file = self.pipeline(way, folder, &cache);
        let mut pipeline = Pipeline::start_file(&file, folder).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let load = tokio::spawn(load(Buyer::new(self).await, way, Arc::clone(&stop)));
        let measured = self.measure(way, redis, &prefix, samples).await;
        stop.store(true, Ordering::Relaxed);
        let rate = load.await??;
        let [hold, decided] = pipeline.hold().await?;
        pipeline.end().await?;
        let (mut times, mut slow) = measured?;
        times.sort_unstable();
        slow.sort_unstable();
        Ok(Sample {
            way,
            drained,
            peak_kib,
            rate,
            times,
            slow,
            hold: figures(&hold),
            decided: figures(&decided),
        })
    }

    /// From the last commit of a purchase until both its rows are there, and from the first, where the last comes late.
    async fn measure(
        &self,
        way: Way,
        redis: &Redis,
        prefix: &str,
        samples: u64,
    ) -> Result<(Vec<Duration>, Vec<Duration>)> {
        let client = redis::Client::open(redis.url())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let buyer = Buyer::new(self).await;
        let (mut times, mut slow) = (Vec::new(), Vec::new());
        for sample in 0..samples {
            let number = first(way, 1) + sample;
            buyer.buy(number).await?;
            times.push(until_there(&mut connection, prefix, number).await?);
            tokio::time::sleep(PAUSE).await;
        }
        for sample in 0..samples / 4 {
            let number = first(way, 3) + sample;
            buyer.prepare(number).await?;
            buyer.commit(&buyer.orders, number).await?;
            let late = async {
                tokio::time::sleep(SLOW).await;
                buyer.commit(&buyer.inventory, number).await
            };
            let there = until_there(&mut connection, prefix, number);
            slow.push(tokio::try_join!(there, late)?.0);
            tokio::time::sleep(PAUSE).await;
        }
        Ok((times, slow))
    }
}

/// The first number of purchases that nobody else makes.
fn first(way: Way, who: u64) -> u64 {
    (1 + who + 10 * way as u64) << 32
}

/// How long it takes from now until both rows of a purchase are there.
async fn until_there(
    connection: &mut MultiplexedConnection,
    prefix: &str,
    number: u64,
) -> Result<Duration> {
    let begun = Instant::now();
    while there(connection, prefix, number).await? < 2 {
        if begun.elapsed() > LOST {
            return Err(format!("purchase {number} has not come within {LOST:?}").into());
        }
    }
    Ok(begun.elapsed())
}

async fn there(connection: &mut MultiplexedConnection, prefix: &str, number: u64) -> Result<u64> {
    let there = redis::cmd("EXISTS")
        .arg(format!("{prefix}:orders:{number}"))
        .arg(format!("{prefix}:reservations:{number}"))
        .query_async(connection)
        .await?;
    Ok(there)
}

/// Buys at a steady rate until told to stop, and says at which.
async fn load(buyer: Buyer, way: Way, stop: Arc<AtomicBool>) -> Result<f64> {
    let mut beat = interval(Duration::from_secs(1) / u32::try_from(RATE)?);
    beat.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (begun, mut made) = (Instant::now(), 0_u64);
    while !stop.load(Ordering::Relaxed) {
        beat.tick().await;
        buyer.buy(first(way, 2) + made).await?;
        made += 1;
    }
    Ok(made as f64 / begun.elapsed().as_secs_f64())
}

/// Prepares in both databases, and commits in both.
struct Buyer {
    orders: Client,
    inventory: Client,
    name: String,
}

impl Buyer {
    async fn new(run: &Run) -> Self {
        Buyer {
            orders: run.orders.client().await,
            inventory: run.inventory.client().await,
            name: run.name.clone(),
        }
    }

    async fn buy(&self, number: u64) -> Result<()> {
        self.prepare(number).await?;
        self.commit(&self.orders, number).await?;
        self.commit(&self.inventory, number).await
    }

    fn gid(&self, number: u64) -> String {
        format!("{} {number}", self.name)
    }

    async fn prepare(&self, number: u64) -> Result<()> {
        let gid = self.gid(number);
        let prepare = |table: &str| {
            format!(
                "BEGIN; INSERT INTO {table} VALUES ({number}, md5('{number}')); PREPARE TRANSACTION '{gid}'"
            )
        };
        self.orders.batch_execute(&prepare("orders")).await?;
        self.inventory
            .batch_execute(&prepare("reservations"))
            .await?;
        Ok(())
    }

    async fn commit(&self, database: &Client, number: u64) -> Result<()> {
        let commit = format!("COMMIT PREPARED '{}'", self.gid(number));
        database.batch_execute(&commit).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_lies_within_its_bucket() {
        let hold = vec![(0.001, 50), (0.002, 100), (f64::MAX, 100)];
        assert_eq!(quantile(&hold, 0.5), Some(1.0));
        assert_eq!(quantile(&hold, 0.75), Some(1.5));
        assert_eq!(quantile(&Hold::new(), 0.5), None);
        assert_eq!(quantile(&vec![(0.001, 0), (f64::MAX, 0)], 0.5), None);
    }

    #[test]
    fn a_row_is_of_medians_and_paired_ratios() {
        let sample = |way, drained, hold| Sample {
            way,
            drained,
            peak_kib: 1_000_000,
            rate: 200.0,
            times: vec![Duration::from_millis(2)],
            slow: vec![Duration::from_millis(21)],
            hold,
            decided: hold.map(|hold| hold.map(|millis| millis / 4.0)),
        };
        let all = [
            sample(Way::Off, 100.0, None),
            sample(Way::Complete, 80.0, Some([2.0, 1.0, 5.0])),
            sample(Way::Off, 10.0, None),
            sample(Way::Complete, 8.0, Some([3.0, 2.0, 6.0])),
        ];
        assert_eq!(
            row(Way::Complete, &all),
            "| complete | 44 | 0.80 | 1024 | 200 | 2.00 | 2.00 | 2.00 | 21.00 | 21.00 | 2.50 | 1.50 | 5.50 | 0.62 | 0.38 | 1.38 |"
        );
        assert!(row(Way::Off, &all).ends_with("| – | – | – | – | – | – |"));
    }
}

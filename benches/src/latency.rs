//! How long after its commit a row can be read from Redis, while another thousand changes a second go the same way.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lockstep_kit::Component;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::redis::{Redis, RedisOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::Client;

use crate::Result;
use crate::pipeline::Pipeline;
use crate::report::median;

/// For `--only`.
pub const NAME: &str = "latency/lockstep > redis";

/// Changes per second beside the rows that are measured.
const RATE: u32 = 1_000;
/// Rows measured in a run.
const SAMPLES: usize = 2_000;
/// Between the end of one measurement and the next.
const PAUSE: Duration = Duration::from_millis(5);
/// A row that takes longer is lost.
const LOST: Duration = Duration::from_secs(30);
/// Rows that the load updates.
const LOADED: u64 = 10_000;

const TABLES: &str = "CREATE TABLE load (id int PRIMARY KEY, version bigint, note text);
    INSERT INTO load SELECT n, 0, repeat('x', 100) FROM generate_series(1, 10000) n;
    CREATE TABLE probe (id int PRIMARY KEY, at timestamptz)";

/// What one run showed.
struct Sample {
    /// Changes per second that the load really made.
    rate: f64,
    /// From the answer to COMMIT to the first EXISTS that says so, sorted.
    times: Vec<Duration>,
    /// Of the pipeline's process.
    peak_kib: u64,
}

impl Sample {
    fn millis(&self, of_hundred: f64) -> f64 {
        let last = self.times.len().saturating_sub(1);
        let at = (last as f64 * of_hundred / 100.0).round() as usize;
        self.times
            .get(at)
            .map_or(0.0, |time| time.as_secs_f64() * 1e3)
    }
}

/// Measures and prints.
///
/// # Errors
/// When a server or the pipeline does not start, or a row does not arrive.
pub async fn print(postgres: u16, runs: u32, quick: bool) -> Result<()> {
    if !Component::Redis.is_installed() {
        println!("NOT RUN: {NAME}: no Redis here: run tests/kit/install redis");
        return Ok(());
    }
    let samples = if quick { SAMPLES / 10 } else { SAMPLES };
    let server = Postgres::try_start(PostgresOptions::new(postgres)).await?;
    let mut all = Vec::new();
    for number in 1..=runs {
        let sample = run(&server, samples).await?;
        eprintln!(
            "  run {number} {NAME}: {:.0} changes/s, p50 {:.2} ms, p99 {:.2} ms, most {:.2} ms",
            sample.rate,
            sample.millis(50.0),
            sample.millis(99.0),
            sample.millis(100.0)
        );
        all.push(sample);
    }
    let middle = |figure: &dyn Fn(&Sample) -> f64| median(all.iter().map(figure).collect());
    let most = all.iter().map(|sample| sample.millis(100.0));
    println!(
        "\n| idle-to-visible in Redis | changes/s | p50 ms | p99 ms | most ms | peak RSS MB |"
    );
    println!("|---|--:|--:|--:|--:|--:|");
    println!(
        "| PostgreSQL {}, {samples} rows a run | {:.0} | {:.2} | {:.2} | {:.2} | {:.0} |",
        server.version(),
        middle(&|sample| sample.rate),
        middle(&|sample| sample.millis(50.0)),
        middle(&|sample| sample.millis(99.0)),
        most.fold(0.0, f64::max),
        middle(&|sample| sample.peak_kib as f64 * 1024.0 / 1e6),
    );
    Ok(())
}

async fn run(server: &Postgres, samples: usize) -> Result<Sample> {
    let database = server.database("latency").await;
    database.execute(TABLES).await;
    let redis = Redis::try_start(RedisOptions::default()).await?;
    let folder = std::env::temp_dir().join(lockstep_kit::unique("lockstep-benches"));
    std::fs::create_dir_all(&folder)?;
    let measured = measure(&database, &redis, &folder, samples).await;
    std::fs::remove_dir_all(&folder)?;
    measured
}

async fn measure(
    database: &Database,
    redis: &Redis,
    folder: &Path,
    samples: usize,
) -> Result<Sample> {
    let pipeline = Pipeline::start(database, &["load", "probe"], redis, folder).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(load(database.client().await, Arc::clone(&stop)));
    let client = database.client().await;
    let insert = client
        .prepare("INSERT INTO probe VALUES ($1, now())")
        .await?;
    let mut asker = Asker::connect(redis.address()).await?;
    let mut times = Vec::with_capacity(samples);
    for id in 0..i32::try_from(samples)? {
        client.execute(&insert, &[&id]).await?;
        // The commit has been answered.
        let committed = Instant::now();
        let key = format!("bench:probe:{id}");
        while !asker.exists(&key).await? {
            if committed.elapsed() > LOST {
                return Err(format!("{key} has not come within {LOST:?}").into());
            }
        }
        times.push(committed.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
    stop.store(true, Ordering::Relaxed);
    let rate = load.await??;
    times.sort_unstable();
    let peak_kib = pipeline.peak_kib();
    pipeline.end().await?;
    Ok(Sample {
        rate,
        times,
        peak_kib,
    })
}

/// Updates at a steady rate until told to stop, and says at which.
async fn load(client: Client, stop: Arc<AtomicBool>) -> Result<f64> {
    let update = "UPDATE load SET version = version + 1 WHERE id = $1";
    let update = client.prepare(update).await?;
    let mut beat = interval(Duration::from_secs(1) / RATE);
    beat.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (begun, mut made) = (Instant::now(), 0_u64);
    while !stop.load(Ordering::Relaxed) {
        beat.tick().await;
        let id = i32::try_from(made % LOADED)? + 1;
        client.execute(&update, &[&id]).await?;
        made += 1;
    }
    Ok(made as f64 / begun.elapsed().as_secs_f64())
}

/// One connection that asks whether a key exists, again and again.
struct Asker(TcpStream);

impl Asker {
    async fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Asker(stream))
    }

    async fn exists(&mut self, key: &str) -> Result<bool> {
        let request = format!("*2\r\n$6\r\nEXISTS\r\n${}\r\n{key}\r\n", key.len());
        self.0.write_all(request.as_bytes()).await?;
        let mut answer = [0; 4];
        self.0.read_exact(&mut answer).await?;
        Ok(&answer == b":1\r\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let sample = Sample {
            rate: 1.0,
            times: (1..=101).map(Duration::from_millis).collect(),
            peak_kib: 0,
        };
        let of = |percent| sample.millis(percent);
        assert_eq!(
            (of(0.0), of(50.0), of(99.0), of(100.0)),
            (1.0, 51.0, 100.0, 101.0)
        );
    }
}

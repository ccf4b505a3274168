//! How long after its commit a row can be read from Redis, at a steady load. Measured, not judged:
//!
//! ```sh
//! cargo build --release -p lockstep
//! cargo test --release -p lockstep-e2e --test it -- --ignored --nocapture latency
//! ```

use std::time::{Duration, Instant};

use lockstep_e2e::Setup;
use lockstep_kit::Component::{Postgres as NeedsPostgres, Redis as NeedsRedis};
use lockstep_kit::postgres::Postgres;
use lockstep_kit::redis::{Redis, RedisOptions};
use lockstep_kit::{require, unique};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::support::{cache, source};

/// Changes per second beside the rows that are measured.
const RATE: u64 = 1_000;
/// Rows measured.
const SAMPLES: usize = 2_000;
/// Between the end of one measurement and the next.
const PAUSE: Duration = Duration::from_millis(5);

/// One connection that asks whether a key exists, again and again.
struct Asker(TcpStream);

impl Asker {
    async fn exists(&mut self, key: &str) -> bool {
        let request = format!("*2\r\n$6\r\nEXISTS\r\n${}\r\n{key}\r\n", key.len());
        self.0
            .write_all(request.as_bytes())
            .await
            .expect("Redis listens");
        let mut answer = [0; 4];
        self.0.read_exact(&mut answer).await.expect("Redis answers");
        &answer == b":1\r\n"
    }
}

fn percentile(sorted: &[Duration], of_hundred: f64) -> Duration {
    let at = (sorted.len() as f64 * of_hundred / 100.0) as usize;
    sorted[at.min(sorted.len() - 1)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, for a release build on a quiet machine"]
async fn latency_from_commit_to_redis_at_a_thousand_changes_per_second() {
    require!(NeedsPostgres(17), NeedsRedis);
    let database = Postgres::shared(17).await.database("latency").await;
    database
        .execute(
            "CREATE TABLE load (id int PRIMARY KEY, version bigint, note text);
             INSERT INTO load SELECT n, 0, repeat('x', 100) FROM generate_series(1, 10000) n;
             CREATE TABLE probe (id int PRIMARY KEY, at timestamptz)",
        )
        .await;
    let redis = Redis::start(RedisOptions::default()).await;
    let name = unique("latency");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["load", "probe"]) + &cache(redis.url(), &name)
    });
    let mut pipeline = setup.start_ready().await;
    pipeline.wait_streaming("shop").await;

    let stop = CancellationToken::new();
    let load = {
        let (client, stop) = (database.client().await, stop.clone());
        tokio::spawn(async move {
            let update = client
                .prepare("UPDATE load SET version = version + 1 WHERE id = $1")
                .await
                .expect("the table");
            let mut beat = interval(Duration::from_secs(1) / RATE as u32);
            beat.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let (begun, mut made) = (Instant::now(), 0_u64);
            while !stop.is_cancelled() {
                beat.tick().await;
                client
                    .execute(&update, &[&((made % 10_000) as i32 + 1)])
                    .await
                    .expect("an update");
                made += 1;
            }
            made as f64 / begun.elapsed().as_secs_f64()
        })
    };
    let client = database.client().await;
    let insert = client
        .prepare("INSERT INTO probe VALUES ($1, now())")
        .await
        .expect("the table");
    let mut asker = Asker(
        TcpStream::connect(redis.address())
            .await
            .expect("Redis listens"),
    );
    asker.0.set_nodelay(true).expect("an open socket");
    let mut times = Vec::with_capacity(SAMPLES);
    for id in 0..SAMPLES as i32 {
        client.execute(&insert, &[&id]).await.expect("an insert");
        // The commit has been answered.
        let committed = Instant::now();
        let key = format!("{name}:probe:{id}");
        while !asker.exists(&key).await {
            assert!(
                committed.elapsed() < Duration::from_secs(30),
                "{key} does not come"
            );
        }
        times.push(committed.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
    stop.cancel();
    let rate = load.await.expect("the load");
    times.sort_unstable();
    println!(
        "{SAMPLES} rows at {rate:.0} changes/s: p50 {:.2?}, p90 {:.2?}, p99 {:.2?}, p99.9 {:.2?}, most {:.2?}; peak {:.1} MiB",
        percentile(&times, 50.0),
        percentile(&times, 90.0),
        percentile(&times, 99.0),
        percentile(&times, 99.9),
        times[times.len() - 1],
        pipeline.peak_resident() as f64 / 1048576.0,
    );
    assert!(pipeline.terminate(Duration::from_secs(60)).await.success());
}

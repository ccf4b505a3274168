//! SIGTERM: what was read is written, then exit code 0, and nothing comes again.

use std::time::Duration;

use lockstep::demo::compare::Rules;
use lockstep_e2e::copies::Compare;
use lockstep_e2e::work::{self, Arrived, Work};
use lockstep_e2e::{Random, Setup, topics};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, Postgres as NeedsPostgres, Redis as NeedsRedis,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::postgres::Postgres;
use lockstep_kit::redis::{Redis, RedisOptions};
use lockstep_kit::{require, require_own, unique};
use rustix::process::Signal;

use crate::support::{cache, end_of_log, events, source, tables};

/// The default of `shutdown_timeout`, and a little for a busy machine.
const DRAIN: Duration = Duration::from_secs(35);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_pipeline_goes_on_without_repeating_or_missing_anything() {
    require!(NeedsPostgres(17), NeedsKafka, NeedsRedis);
    let mut random = Random::from_environment();
    let (postgres, kafka, redis) =
        tokio::join!(Postgres::shared(17), Kafka::shared(), Redis::shared());
    let database = postgres.database("shop").await;
    work::create(&database, 500, 50).await;
    let name = unique("drain");
    // Without transactions nothing but the order of the drain itself keeps records from coming twice.
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["ledger", "counters", "items"])
            + &events(kafka.bootstrap(), &name, "exactly_once = false")
            + &cache(redis.url(), &name)
    });
    let mut pipeline = setup.start_ready().await;
    pipeline
        .until(DRAIN, "the copy to be durable", async |pipeline| {
            pipeline
                .log()
                .contains("the copy is durable")
                .then_some(())
                .ok_or_else(String::new)
        })
        .await;
    let begin = work::look(&database).await;
    let writers = Work::start(&database, random.below(1_000)).await;
    for _ in 0..4 {
        pipeline.wait_ready().await;
        tokio::time::sleep(random.millis(300, 1_200)).await;
        let status = pipeline.terminate(DRAIN).await;
        assert!(status.success(), "{status}");
        pipeline = setup.start();
    }
    writers.stop().await;
    let end = work::look(&database).await;
    pipeline.wait_visible("shop", &end.lsn, DRAIN).await;
    assert!(pipeline.terminate(DRAIN).await.success());

    let read =
        async |table: &str| topics::read(kafka.bootstrap(), &format!("{name}.{table}")).await;
    let arrived = Arrived {
        ledger: read("ledger").await,
        counters: read("counters").await,
        items: read("items").await,
    };
    arrived.assert_exactly_once(&begin, &end);
    assert!(
        arrived.counters.len() > 200,
        "there was no load: {}",
        arrived.counters.len()
    );
    let compare = Compare {
        source: "shop",
        url: database.url(),
        publication: "lockstep",
        tables: tables(),
        rules: Rules::default(),
    };
    compare.assert_equal(&setup).await;
}

#[tokio::test]
async fn a_sink_that_is_down_holds_the_drain_no_longer_than_the_timeout_and_nothing_is_lost() {
    require!(NeedsPostgres(17));
    require_own!(NeedsRedis);
    let database = Postgres::shared(17).await.database("shop").await;
    let redis = Redis::start(RedisOptions {
        append_only: true,
        ..RedisOptions::default()
    })
    .await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await;
    let name = unique("drain");
    let setup = Setup::new(&name, |_| {
        "shutdown_timeout = \"2s\"\n".to_owned()
            + &source(database.url(), &name, &["t"])
            + &cache(redis.url(), &name)
    });
    let mut pipeline = setup.start_ready().await;
    redis.kill();
    database
        .execute("INSERT INTO t SELECT generate_series(1, 1000)")
        .await;
    pipeline.wait_unready(&["sinks.cache"]).await;
    pipeline.signal(Signal::TERM);
    let ended = pipeline.ends().await;
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert!(
        ended
            .stderr
            .contains("stopped before everything was durable"),
        "{}",
        ended.stderr
    );
    assert!(
        !ended.stderr.contains("everything received is durable"),
        "{}",
        ended.stderr
    );

    redis.restart().await;
    let mut pipeline = setup.start_ready().await;
    pipeline
        .wait_visible("shop", &end_of_log(&database).await, DRAIN)
        .await;
    assert!(pipeline.terminate(DRAIN).await.success());
    let tables = vec!["public.t".to_owned()];
    let compare = Compare {
        source: "shop",
        url: database.url(),
        publication: "lockstep",
        tables,
        rules: Rules::default(),
    };
    compare.assert_equal(&setup).await;
}

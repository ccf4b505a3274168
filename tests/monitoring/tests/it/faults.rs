//! One source and one sink, and the faults that the shop has no room for.

use std::time::{Duration, Instant};

use lockstep_core::metrics;
use lockstep_e2e::Setup;
use lockstep_e2e::child::PATIENCE;
use lockstep_kit::Component::{
    Postgres as NeedsPostgres, Prometheus as Needs, Redis as NeedsRedis,
};
use lockstep_kit::postgres::{Postgres, PostgresOptions};
use lockstep_kit::proxy::Proxy;
use lockstep_kit::redis::{Redis, RedisOptions};
use lockstep_kit::{require, require_own, unique, wait_for};

use crate::lab::Lab;

/// What fires here.
pub const FIRED: &[&str] = &[
    "LockstepSinkErrors",
    "LockstepSinkSetBack",
    "LockstepSlotNearlyLost",
    "LockstepSourceGaps",
    "LockstepSourceStalled",
];

/// What is there only while tables are copied, and when a transform has failed.
const HERE: [&str; 4] = [
    metrics::SNAPSHOT_ESTIMATED_ROWS.name,
    metrics::SNAPSHOT_ROWS_PER_SECOND.name,
    metrics::SNAPSHOT_REMAINING_SECONDS.name,
    metrics::TRANSFORM_ERRORS.name,
];

/// Whether a query has its data here, and not in the shop.
pub fn is_for(expr: &str) -> bool {
    HERE.iter().any(|metric| expr.contains(metric))
}

const BALLAST: &str = "INSERT INTO aside.ballast VALUES (repeat('x', 50000))";

/// A publication of somebody's own, which is not altered.
const TABLES: &str = "\
    CREATE TABLE t (id int PRIMARY KEY, note text, once text) WITH (autovacuum_enabled = off);
    INSERT INTO t SELECT n, repeat('x', 200) FROM generate_series(1, 100000) n;
    CREATE TABLE u (id int PRIMARY KEY);
    INSERT INTO u SELECT generate_series(1, 1000);
    ANALYZE;
    CREATE PUBLICATION lockstep FOR TABLE t, u;
    CREATE SCHEMA aside;
    CREATE TABLE aside.ballast (note text);
    ALTER TABLE aside.ballast ALTER note SET STORAGE EXTERNAL";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_other_fault_has_its_alert() {
    require!(Needs);
    require_own!(NeedsPostgres(17), NeedsRedis);
    let limited = PostgresOptions::new(17).set("max_slot_wal_keep_size", "64MB");
    let durable = RedisOptions {
        append_only: true,
        ..RedisOptions::default()
    };
    let (server, cache, keys) = tokio::join!(
        Postgres::start(limited),
        Redis::start(RedisOptions::default()),
        Redis::start(durable)
    );
    let database = server.database("shop").await;
    database.execute(TABLES).await;
    let proxy = Proxy::start(cache.address()).await;
    let name = unique("faults");
    let setup = Setup::new(&name, |_| {
        format!(
            "memory = \"8MiB\"\n\
             [sources.shop]\ntype = \"postgres\"\nurl = \"{}\"\nslot = \"{name}\"\ntables = [\"public.*\"]\n\
             [transforms.once]\ntype = \"dedupe\"\ninputs = [\"shop\"]\nkey = [\"once\"]\n\
             [transforms.once.store]\ntype = \"redis\"\nurl = \"{}\"\n\
             [sinks.cache]\ntype = \"redis\"\ninputs = [\"once\"]\nurl = \"redis://{}\"\nkey = \"{{table}}:{{key}}\"\nresponse_timeout = \"60s\"\n",
            database.url(),
            keys.url(),
            proxy.address(),
        )
    });
    let mut lab = Lab::start(&name).await;
    lab.wanted.retain(|expr, _| is_for(expr));
    // The sink is down: the copy comes to the end of the memory, and stays a copy.
    proxy.refuse(true).await;
    let mut pipeline = setup.start();
    lab.scrape(&mut pipeline).await;
    let of_transforms = |expr: &str| expr.contains(metrics::TRANSFORM_ERRORS.name);
    lab.fills("a copy has its panels", |expr, _| of_transforms(expr))
        .await;
    proxy.refuse(false).await;
    pipeline.wait_streaming("shop").await;
    pipeline.wait_ready().await;

    // The memory of keys is away.
    keys.kill();
    database
        .execute("INSERT INTO t VALUES (-1, 'x', 'once')")
        .await;
    lab.fills("a transform that fails is shown", |_, _| false)
        .await;
    keys.restart().await;
    pipeline.wait_ready().await;

    // A table that is not published any more, and a link that breaks again and again.
    database
        .execute("DROP TABLE u; CREATE TABLE u (id int PRIMARY KEY)")
        .await;
    let began = Instant::now();
    let cutting = async {
        for id in 200_000.. {
            proxy.cut();
            let insert = format!("INSERT INTO t VALUES ({id}, 'x')");
            database.execute(&insert).await;
            assert!(began.elapsed() < Duration::from_secs(120));
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    };
    let expected = [
        ("LockstepSinkErrors", "sink", "cache"),
        ("LockstepSourceGaps", "source", "shop"),
    ];
    tokio::select! {
        () = lab.fire(&expected) => {}
        () = cutting => {}
    }
    database
        .execute("ALTER PUBLICATION lockstep ADD TABLE u")
        .await;
    lab.end(&["LockstepSourceGaps"]).await;

    // A link that takes everything and brings nothing, while the server goes on to write.
    proxy.black_hole(true);
    let began = Instant::now();
    let writing = async {
        for id in 300_000.. {
            let insert = format!("INSERT INTO t VALUES ({id}, 'x'); {BALLAST}");
            database.execute(&insert).await;
            assert!(began.elapsed() < Duration::from_secs(120));
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        () = lab.fire(&[("LockstepSourceStalled", "source", "shop")]) => {}
        () = writing => {}
    }
    // A segment each, until little is left; the server gives the slot up at a checkpoint only, and makes none here.
    let left = format!(
        "{0} / ({0} + {1})",
        metrics::SLOT_SAFE_BYTES.name,
        metrics::SLOT_RETAINED_BYTES.name
    );
    while let Some(before) = lab.value(&left).await
        && before >= 0.25
    {
        database.execute(BALLAST).await;
        database.execute("SELECT pg_switch_wal()").await;
        // The pipeline looks every five seconds.
        wait_for(PATIENCE, "the slot to have less", async || {
            let now = lab.value(&left).await;
            now.is_some_and(|now| now < before)
        })
        .await;
    }
    lab.fire(&[("LockstepSlotNearlyLost", "source", "shop")])
        .await;

    // The server comes back without what it had confirmed.
    cache.kill();
    proxy.black_hole(false);
    proxy.cut();
    cache.restart().await;
    lab.fire(&[("LockstepSinkSetBack", "sink", "cache")]).await;
    lab.end(&["LockstepSourceStalled"]).await;
    assert_eq!(lab.fired(), FIRED);
}

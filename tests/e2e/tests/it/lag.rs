//! What has nothing to do with a purchase that waits for a database passes by it.

use std::collections::BTreeSet;

use lockstep_e2e::topics::{self, Record};
use lockstep_e2e::{Pipeline, Setup};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, Postgres as NeedsPostgres, Redis as NeedsRedis,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::redis::Redis;
use lockstep_kit::{require, require_own, unique, wait_for};

use crate::matrix::{end, in_doubt, prepare};
use crate::reconcile::equal;
use crate::stitch::{CATCH_UP, Shop, row};

/// Visits of one customer each, from `from` on.
async fn visit(shop: &Shop, from: u64, count: u64) {
    for id in from..from + count {
        let visit = format!("INSERT INTO visits VALUES ({id})");
        shop.orders.execute(&visit).await;
    }
}

fn visits(records: &[Record]) -> BTreeSet<u64> {
    let rows = records
        .iter()
        .map(row)
        .filter(|(table, _)| table == "visits");
    rows.map(|(_, id)| id).collect()
}

/// Until these are in Kafka; returns all that is there then.
async fn seen(kafka: &Kafka, topic: &str, expected: u64) -> Vec<Record> {
    wait_for(CATCH_UP, "the visits to be seen", async || {
        let records = topics::read(kafka.bootstrap(), topic).await;
        let seen = visits(&records);
        match seen == (1..=expected).collect() {
            true => Ok(records),
            false => Err(format!("{seen:?}")),
        }
    })
    .await
}

async fn passed(pipeline: &mut Pipeline) -> u64 {
    let (_, metrics) = pipeline.get("/metrics").await.expect("metrics");
    let name = "lockstep_stitch_passed_total{stitch=\"whole\"} ";
    let value = metrics.lines().find_map(|line| line.strip_prefix(name));
    value.expect("a counter").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_other_rows_passes_by_what_waits_over_a_crash_and_once() {
    require!(NeedsKafka, NeedsRedis);
    require_own!(NeedsPostgres(16), NeedsPostgres(17));
    let shop = Shop::open().await;
    let (kafka, redis) = (Kafka::shared().await, Redis::shared().await);
    let name = unique("lag");
    let setup = Setup::new(&name, |_| {
        let sections = shop.pipeline(&name, kafka.bootstrap());
        let lag = "type = \"stitch\"\nlag_max = \"500ms\"\n";
        sections.replace("type = \"stitch\"\n", lag)
            + &format!(
                "[sinks.cache]\ntype = \"redis\"\ninputs = [\"whole\"]\nurl = \"{}\"\nkey = \"{name}:{{table}}:{{key}}\"\n",
                redis.url()
            )
    });
    let mut pipeline = shop.start(&setup).await;

    // A purchase that is left between its two commits, and behind it what has nothing to do with it, and what has.
    prepare(&shop, 1).await;
    in_doubt(&mut pipeline, 1).await;
    end(&shop.orders, "COMMIT", "buy 1").await;
    visit(&shop, 1, 40).await;
    shop.orders.execute("DELETE FROM orders WHERE id = 1").await;
    visit(&shop, 41, 40).await;
    let records = seen(kafka, &name, 80).await;
    let of_purchase = |records: &[Record]| {
        let rows = records
            .iter()
            .filter(|record| !["r", ""].contains(&record.op()))
            .map(row);
        rows.filter(|(table, _)| table != "visits").count()
    };
    assert_eq!(
        of_purchase(&records),
        0,
        "nothing of the purchase, and nothing of its row"
    );
    assert!(passed(&mut pipeline).await >= 80);
    // Another one, of both databases and of other rows, passes as a whole. The stock of the first article is held.
    let other = |database: &str| format!("BEGIN; {database}; PREPARE TRANSACTION 'buy 2'");
    shop.orders
        .execute(&other("INSERT INTO orders VALUES (2)"))
        .await;
    let reserve =
        "INSERT INTO reservations VALUES (2); UPDATE stock SET sold = sold + 1 WHERE id = 2";
    shop.inventory.execute(&other(reserve)).await;
    for database in [&shop.orders, &shop.inventory] {
        end(database, "COMMIT", "buy 2").await;
    }
    wait_for(CATCH_UP, "the other purchase to be seen", async || {
        let records = topics::read(kafka.bootstrap(), &name).await;
        let found = of_purchase(&records);
        (found == 3).then_some(()).ok_or(found)
    })
    .await;

    // What has passed is known behind a crash.
    pipeline.kill9();
    // These come all at once.
    visit(&shop, 81, 20).await;
    let pipeline = setup.start_ready().await;
    seen(kafka, &name, 100).await;
    pipeline.kill9();
    let mut pipeline = setup.start_ready().await;
    visit(&shop, 101, 1).await;
    let records = seen(kafka, &name, 101).await;
    assert_eq!(of_purchase(&records), 3);
    assert_eq!(topics::repeated(&records), Vec::<String>::new());

    // A database that is down is passed by, too.
    shop.servers[1].stop_immediately().await;
    visit(&shop, 102, 9).await;
    seen(kafka, &name, 110).await;
    shop.servers[1].restart().await;
    end(&shop.inventory, "COMMIT", "buy 1").await;
    shop.caught_up(&mut pipeline).await;
    equal(&setup, &mut pipeline, &[]).await;
    pipeline
        .until(CATCH_UP, "the order to be kept again", async |pipeline| {
            let log = pipeline.log();
            let is_told = log.contains("everything goes on in its order again");
            is_told.then_some(()).ok_or(log)
        })
        .await;
    assert!(pipeline.terminate(CATCH_UP).await.success());

    let records = topics::read(kafka.bootstrap(), &name).await;
    assert_eq!(topics::repeated(&records), Vec::<String>::new());
    assert_eq!(visits(&records), (1..=110).collect());
    let rows: Vec<(String, String)> = records
        .iter()
        .filter(|record| !["r", ""].contains(&record.op()) && row(record).0 != "visits")
        .map(|record| (record.op().to_owned(), row(record).0))
        .collect();
    let mut first = rows[..3].to_vec();
    first.sort();
    let whole = [("c", "orders"), ("c", "reservations"), ("u", "stock")];
    let whole = whole.map(|(op, table)| (op.to_owned(), table.to_owned()));
    assert_eq!(first, whole, "the other one");
    let mut second = rows[3..6].to_vec();
    second.sort();
    assert_eq!(second, whole, "the one that waited");
    assert_eq!(
        rows[6..],
        [("d".to_owned(), "orders".to_owned())],
        "and what has its row"
    );
}

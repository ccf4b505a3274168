//! The rows of the failure matrix that are about the pipeline: it dies between the steps of a purchase, and a slot is lost while one is in
//! doubt. The other rows are tests of the coordinator.

use std::collections::BTreeSet;
use std::time::Duration;

use lockstep_e2e::{Pipeline, Setup, topics};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, Postgres as NeedsPostgres, Redis as NeedsRedis,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::postgres::{Database, PostgresOptions};
use lockstep_kit::redis::Redis;
use lockstep_kit::{require, require_own, unique, wait_for};

use crate::reconcile::equal;
use crate::stitch::{Shop, assert_each_is_one_record, assert_whole, look};
use crate::support::end_of_log;

const CATCH_UP: Duration = Duration::from_secs(120);

/// Prepares both branches of a purchase.
pub async fn prepare(shop: &Shop, id: u64) {
    let order = format!("BEGIN; INSERT INTO orders VALUES ({id}); PREPARE TRANSACTION 'buy {id}'");
    shop.orders.execute(&order).await;
    let reservation = format!(
        "BEGIN; INSERT INTO reservations VALUES ({id}); UPDATE stock SET sold = sold + 1 WHERE id = 1; \
         PREPARE TRANSACTION 'buy {id}'"
    );
    shop.inventory.execute(&reservation).await;
}

pub async fn end(database: &Database, word: &str, name: &str) {
    database.execute(&format!("{word} PREPARED '{name}'")).await;
}

/// Until as many transactions are in doubt in both databases, as far as is read.
pub async fn in_doubt(pipeline: &mut Pipeline, count: u64) {
    pipeline
        .until(CATCH_UP, "what is in doubt to be read", async |pipeline| {
            let sources = pipeline.status().await["sources"].clone();
            let of = |name: &str| sources[name]["in_doubt"] == count;
            let is_read = of("orders") && of("inventory");
            is_read.then_some(()).ok_or_else(|| sources.to_string())
        })
        .await;
}

/// Until so many transactions wait for others.
async fn waits(pipeline: &mut Pipeline, count: u64) {
    let gauge = format!("lockstep_stitch_waiting_transactions{{stitch=\"whole\"}} {count}\n");
    pipeline
        .until(CATCH_UP, &gauge, async |pipeline| {
            let metrics = pipeline.get("/metrics").await;
            let (_, metrics) = metrics.map_err(|error| error.to_string())?;
            metrics.contains(&gauge).then_some(()).ok_or(metrics)
        })
        .await;
}

/// Whether nothing behind a place of the log is confirmed.
async fn is_unconfirmed(database: &Database, slot: &str, place: &str) -> bool {
    let ask = format!(
        "SELECT confirmed_flush_lsn <= '{place}' FROM pg_replication_slots WHERE slot_name = '{slot}'"
    );
    database.value(&ask).await.as_deref() == Some("t")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_15_a_pipeline_that_dies_on_the_way_writes_each_purchase_once() {
    require!(NeedsKafka);
    require_own!(NeedsPostgres(16), NeedsPostgres(17));
    let shop = Shop::open_on([16, 17].map(PostgresOptions::new)).await;
    let kafka = Kafka::shared().await;
    let name = unique("row_15");
    let setup = Setup::new(&name, |_| shop.pipeline(&name, kafka.bootstrap()));
    let mut pipeline = shop.start(&setup).await;

    // Between PREPARE and COMMIT PREPARED.
    prepare(&shop, 1).await;
    in_doubt(&mut pipeline, 1).await;
    pipeline.kill9();
    for database in [&shop.orders, &shop.inventory] {
        end(database, "COMMIT", "buy 1").await;
    }
    let mut pipeline = setup.start_ready().await;
    shop.caught_up(&mut pipeline).await;

    // Between the two COMMIT PREPARED.
    prepare(&shop, 2).await;
    in_doubt(&mut pipeline, 1).await;
    end(&shop.orders, "COMMIT", "buy 2").await;
    waits(&mut pipeline, 1).await;
    pipeline.kill9();
    end(&shop.inventory, "COMMIT", "buy 2").await;
    let mut pipeline = setup.start_ready().await;
    shop.caught_up(&mut pipeline).await;

    // When the sink has it, and the sources have not heard of that: one that is in doubt before it keeps them from it.
    let before = "BEGIN; INSERT INTO visits VALUES (9); PREPARE TRANSACTION 'before'";
    shop.orders.execute(before).await;
    let before = "BEGIN; INSERT INTO reservations VALUES (9); PREPARE TRANSACTION 'before'";
    shop.inventory.execute(before).await;
    in_doubt(&mut pipeline, 1).await;
    let places = [
        end_of_log(&shop.orders).await,
        end_of_log(&shop.inventory).await,
    ];
    prepare(&shop, 3).await;
    for database in [&shop.orders, &shop.inventory] {
        end(database, "COMMIT", "buy 3").await;
    }
    shop.caught_up(&mut pipeline).await;
    pipeline.kill9();
    let whole = topics::read(kafka.bootstrap(), &format!("{name}.gtx")).await;
    assert_eq!(whole.len(), 3, "the sink has it");
    for (database, of, place) in [
        (&shop.orders, "orders", &places[0]),
        (&shop.inventory, "inventory", &places[1]),
    ] {
        let slot = format!("{name}_{of}");
        assert!(is_unconfirmed(database, &slot, place).await, "{of}");
    }
    let mut pipeline = setup.start_ready().await;
    in_doubt(&mut pipeline, 1).await;
    for database in [&shop.orders, &shop.inventory] {
        end(database, "ROLLBACK", "before").await;
    }
    shop.caught_up(&mut pipeline).await;
    assert!(pipeline.terminate(CATCH_UP).await.success());

    let bought = shop.bought().await;
    assert_eq!(bought, BTreeSet::from([1, 2, 3]));
    let records = topics::read(kafka.bootstrap(), &name).await;
    assert_whole(&records, &bought);
    let whole = topics::read(kafka.bootstrap(), &format!("{name}.gtx")).await;
    assert_eq!(whole.len(), 3, "one record each");
    assert_each_is_one_record(&whole, &records, &bought);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_16_a_slot_that_is_lost_while_in_doubt_waits_for_the_end_and_copies_again() {
    require!(NeedsRedis);
    require_own!(NeedsPostgres(16), NeedsPostgres(17));
    let short = PostgresOptions::new(17).set("max_slot_wal_keep_size", "1MB");
    let shop = Shop::open_on([PostgresOptions::new(16), short]).await;
    let redis = Redis::shared().await;
    let name = unique("row_16");
    let setup = Setup::new(&name, |_| {
        let resync = "two_phase = true\non_slot_lost = \"resync\"\n";
        shop.sources(&name).replace("two_phase = true\n", resync)
            + &format!(
                "[sinks.cache]\ntype = \"redis\"\ninputs = [\"whole\"]\nurl = \"{}\"\nkey = \"{name}:{{table}}:{{key}}\"\n",
                redis.url()
            )
    });
    let mut pipeline = shop.start(&setup).await;
    prepare(&shop, 1).await;
    for database in [&shop.orders, &shop.inventory] {
        end(database, "COMMIT", "buy 1").await;
    }
    shop.caught_up(&mut pipeline).await;
    // So that it does not come again, and wait once more for the other database.
    let end_of_first = end_of_log(&shop.orders).await;
    shop.orders.execute("INSERT INTO visits VALUES (1)").await;
    let slot = format!("{name}_orders");
    wait_for(CATCH_UP, "the first one to be confirmed", async || {
        let is_open = is_unconfirmed(&shop.orders, &slot, &end_of_first).await;
        (!is_open)
            .then_some(())
            .ok_or_else(|| "it is not".to_owned())
    })
    .await;
    prepare(&shop, 2).await;
    in_doubt(&mut pipeline, 1).await;
    pipeline.kill9();

    // What is in doubt keeps the slot where it is, and the server may keep no more than so much.
    let lost =
        format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{name}_inventory'");
    wait_for(CATCH_UP, "the slot to be lost", async || {
        let write = "CREATE TABLE filler (); DROP TABLE filler; SELECT pg_switch_wal()";
        shop.servers[1].execute(write).await;
        shop.servers[1].execute("CHECKPOINT").await;
        match shop.inventory.value(&lost).await.as_deref() {
            Some("lost") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    end(&shop.orders, "COMMIT", "buy 2").await;

    // No slot can be made before it is decided: it is named, nobody guesses, and nothing of it is seen.
    let mut pipeline = setup.start();
    let told = pipeline.wait_unready(&["sources.inventory", "buy 2"]).await;
    println!("{told}");
    waits(&mut pipeline, 1).await;
    assert_eq!(look(redis, &name).await, BTreeSet::from([1]));
    let file = setup.file().display().to_string();
    let url = pipeline.url().await;
    let decide = [
        "transactions",
        "resolve",
        &file,
        "--url",
        &url,
        "--gid",
        "buy 2",
        "--commit",
        "--apply",
    ];
    let ended = setup.lockstep_with(&decide, &[]).await;
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    pipeline.wait_ready().await;
    shop.caught_up(&mut pipeline).await;
    let bought = BTreeSet::from([1, 2]);
    assert_eq!(shop.bought().await, bought);
    assert_eq!(look(redis, &name).await, bought);
    equal(&setup, &mut pipeline, &[]).await;
    assert!(pipeline.terminate(CATCH_UP).await.success());
}

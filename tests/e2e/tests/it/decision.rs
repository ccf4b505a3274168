//! Purchases go on once they have committed in one of two databases, with what is prepared in the other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep_e2e::topics;
use lockstep_e2e::{Pipeline, Random, Setup};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, Postgres as NeedsPostgres, Redis as NeedsRedis,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::redis::Redis;
use lockstep_kit::{require, require_own, unique, wait_for};

use crate::matrix::{end, in_doubt, prepare};
use crate::reconcile::{equal, reconcile};
use crate::stitch::{
    BUYERS, CATCH_UP, PURCHASES, Shop, assert_each_is_one_record, assert_whole, look, row,
};

const DECISION: &str = "type = \"stitch\"\nmode = \"decision\"\n";

/// The sections of a pipeline whose purchases wait for one commit.
fn by_decision(sections: &str) -> String {
    sections.replace("type = \"stitch\"\n", DECISION)
}

fn cache(redis: &Redis, name: &str) -> String {
    format!(
        "[sinks.cache]\ntype = \"redis\"\ninputs = [\"whole\"]\nurl = \"{}\"\nkey = \"{name}:{{table}}:{{key}}\"\n",
        redis.url()
    )
}

/// How many purchases have gone on in this way.
async fn count(pipeline: &mut Pipeline, outcome: &str) -> u64 {
    let (_, metrics) = pipeline.get("/metrics").await.expect("metrics");
    let label = format!("outcome=\"{outcome}\"");
    let lines = metrics.lines().filter(|line| {
        line.starts_with("lockstep_stitch_transactions_total{") && line.contains(&label)
    });
    let numbers = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    numbers.sum()
}

async fn is_seen(redis: &Redis, name: &str, purchases: &[u64]) {
    let expected: BTreeSet<u64> = purchases.iter().copied().collect();
    wait_for(CATCH_UP, "the purchases to be seen", async || {
        let seen = look(redis, name).await;
        (seen == expected)
            .then_some(())
            .ok_or_else(|| format!("{seen:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_leave_every_purchase_whole_once_and_in_order_by_decision() {
    require!(NeedsKafka, NeedsRedis);
    require_own!(NeedsPostgres(16), NeedsPostgres(17));
    let mut random = Random::from_environment();
    let shop = Shop::open().await;
    let (kafka, redis) = (Kafka::shared().await, Redis::shared().await);
    let name = unique("decision");
    let setup = Setup::new(&name, |_| {
        by_decision(&shop.pipeline(&name, kafka.bootstrap())) + &cache(redis, &name)
    });
    let pipeline = shop.start(&setup).await;
    let done = Arc::new(AtomicBool::new(false));
    let (stop, prefix) = (Arc::clone(&done), name.clone());
    let reader = tokio::spawn(async move {
        let mut seen = BTreeSet::new();
        while !stop.load(Ordering::Acquire) {
            seen.insert(look(redis, &prefix).await.len());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        seen
    });
    let mut pipeline = shop.buy_under_kills(&setup, pipeline, &mut random).await;
    let last = BUYERS * PURCHASES + 1;
    prepare(&shop, last).await;
    end(&shop.orders, "COMMIT", &format!("buy {last}")).await;
    pipeline
        .until(
            CATCH_UP,
            "one to go on by its first commit",
            async |pipeline| {
                let early = count(pipeline, "early").await;
                (early > 0).then_some(()).ok_or_else(|| pipeline.log())
            },
        )
        .await;
    end(&shop.inventory, "COMMIT", &format!("buy {last}")).await;
    shop.caught_up(&mut pipeline).await;
    done.store(true, Ordering::Release);
    let seen = reader.await.expect("every look finds wholes");
    assert!(seen.len() > 10, "{seen:?}");
    equal(&setup, &mut pipeline, &[]).await;
    assert!(pipeline.terminate(CATCH_UP).await.success());

    let records = topics::read(kafka.bootstrap(), &name).await;
    let bought = shop.bought().await;
    assert_whole(&records, &bought);
    let whole = topics::read(kafka.bootstrap(), &format!("{name}.gtx")).await;
    assert_each_is_one_record(&whole, &records, &bought);
    assert_eq!(look(redis, &name).await, bought);
}

/// The coordinator is gone between its two commits, for as long as it takes: the purchase is seen, stays so over a crash, is no drift, and its
/// second commit adds nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_between_two_commits_is_seen_once() {
    require!(NeedsKafka, NeedsRedis);
    require_own!(NeedsPostgres(16), NeedsPostgres(17));
    let shop = Shop::open().await;
    let (kafka, redis) = (Kafka::shared().await, Redis::shared().await);
    let name = unique("between");
    let setup = Setup::new(&name, |_| {
        by_decision(&shop.pipeline(&name, kafka.bootstrap())) + &cache(redis, &name)
    });
    let mut pipeline = shop.start(&setup).await;
    prepare(&shop, 1).await;
    in_doubt(&mut pipeline, 1).await;
    assert!(look(redis, &name).await.is_empty(), "nothing is decided");
    end(&shop.orders, "COMMIT", "buy 1").await;
    is_seen(redis, &name, &[1]).await;
    let all = async || {
        let records = topics::read(kafka.bootstrap(), &name).await;
        let rows = records.iter().filter(|record| record.op() != "r");
        let mut rows: Vec<(String, u64)> = rows.map(row).collect();
        rows.sort();
        rows
    };
    let both =
        [("orders", 1), ("reservations", 1), ("stock", 1)].map(|(of, id)| (of.to_owned(), id));
    wait_for(CATCH_UP, "all of it in Kafka", async || {
        let rows = all().await;
        (rows == both)
            .then_some(())
            .ok_or_else(|| format!("{rows:?}"))
    })
    .await;
    assert_eq!(count(&mut pipeline, "early").await, 1);
    // Both databases are used, beside it.
    shop.inventory
        .execute("UPDATE stock SET seen = seen + 1 WHERE id = 2")
        .await;
    shop.orders.execute("INSERT INTO visits VALUES (7)").await;
    shop.caught_up(&mut pipeline).await;
    // So it is behind a crash, when the other database does not tell of its commit any more.
    shop.orders.execute("INSERT INTO visits VALUES (8)").await;
    shop.caught_up(&mut pipeline).await;
    pipeline.kill9();
    let mut pipeline = setup.start_ready().await;
    shop.inventory
        .execute("UPDATE stock SET seen = seen + 1 WHERE id = 3")
        .await;
    shop.caught_up(&mut pipeline).await;
    assert_eq!(look(redis, &name).await, BTreeSet::from([1]));

    // Who knows of one commit may end the other branch.
    let file = setup.file().display().to_string();
    let url = pipeline.url().await;
    let resolve = ["transactions", "resolve", &file, "--url", &url, "--apply"];
    let ended = setup.lockstep_with(&resolve, &[]).await;
    println!("{}", ended.stdout);
    let left = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()";
    if shop.inventory.value(left).await.as_deref() != Some("0") {
        end(&shop.inventory, "COMMIT", "buy 1").await;
    }
    shop.inventory
        .execute("UPDATE stock SET seen = seen + 1 WHERE id = 1")
        .await;
    shop.caught_up(&mut pipeline).await;
    let stock = redis.command(&["GET", &format!("{name}:stock:1")]).await;
    assert!(format!("{stock:?}").contains("seen"), "{stock:?}");
    equal(&setup, &mut pipeline, &[]).await;
    assert!(pipeline.terminate(CATCH_UP).await.success());
    let rows = all().await;
    let of = |table: &str| rows.iter().filter(|(of, _)| of == table).count();
    assert_eq!(
        [of("orders"), of("reservations"), of("stock")],
        [1, 1, 4],
        "{rows:?}"
    );
}

/// Somebody rolls back what has gone on: that is told, and mended by a comparison.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_rolled_back_when_it_was_seen_is_told_and_mended() {
    require!(NeedsRedis);
    require_own!(NeedsPostgres(16), NeedsPostgres(17));
    let shop = Shop::open().await;
    let redis = Redis::shared().await;
    let name = unique("undone");
    let sources = shop.sources(&name);
    let setup = Setup::new(&name, |_| {
        sources.replace(
            "type = \"stitch\"\n",
            "type = \"stitch\"\nhold_max = \"300ms\"\n",
        ) + &cache(redis, &name)
    });
    let mut pipeline = shop.start(&setup).await;
    // In time, nothing goes on early.
    prepare(&shop, 1).await;
    for database in [&shop.orders, &shop.inventory] {
        end(database, "COMMIT", "buy 1").await;
    }
    is_seen(redis, &name, &[1]).await;
    assert_eq!(count(&mut pipeline, "whole").await, 1);
    prepare(&shop, 2).await;
    end(&shop.orders, "COMMIT", "buy 2").await;
    is_seen(redis, &name, &[1, 2]).await;
    assert_eq!(count(&mut pipeline, "early").await, 1);
    end(&shop.inventory, "ROLLBACK", "buy 2").await;
    shop.caught_up(&mut pipeline).await;
    pipeline
        .until(CATCH_UP, "that it was undone", async |pipeline| {
            let mixed = count(pipeline, "mixed").await;
            (mixed == 1).then_some(()).ok_or_else(|| pipeline.log())
        })
        .await;
    assert!(
        pipeline.log().contains("rolled back by hand"),
        "{}",
        pipeline.log()
    );
    let (code, report) = reconcile(&setup, &mut pipeline, &["--repair"]).await;
    println!("{code:?} {report:#}");
    equal(&setup, &mut pipeline, &[]).await;
    let gone = redis
        .command(&["EXISTS", &format!("{name}:reservations:2")])
        .await;
    assert!(format!("{gone:?}").contains('0'), "{gone:?}");
    assert!(pipeline.terminate(CATCH_UP).await.success());
}

/// Who would take what comes again for something else is told before the start.
#[tokio::test]
async fn what_cannot_go_on_early_is_refused() {
    let check = async |stitch: &str, more: &str| {
        let setup = Setup::new("early", |_| {
            let section = |of: &str| {
                crate::support::source("postgres://nobody@127.0.0.1/none", "none", &["t"])
                    .replace("sources.shop", &format!("sources.{of}"))
                    + "two_phase = true\n"
            };
            section("orders")
                + &section("inventory")
                + "[transforms.whole]\ntype = \"stitch\"\ninputs = [\"orders\", \"inventory\"]\n"
                + stitch
                + more
        });
        let ended = setup.lockstep("check", &["--offline"]).await;
        (ended.code(), format!("{}{}", ended.stdout, ended.stderr))
    };
    let kafka = |more: &str| {
        format!(
            "[sinks.events]\ntype = \"kafka\"\ninputs = [\"whole\"]\nbrokers = \"127.0.0.1:1\"\ntopic = \"t\"\n{more}"
        )
    };
    let dedupe = "[transforms.once]\ntype = \"dedupe\"\ninputs = [\"whole\"]\nkey = [\"id\"]\n\
        [sinks.cache]\ntype = \"redis\"\ninputs = [\"once\"]\nurl = \"redis://127.0.0.1:1\"\n";
    let early = "mode = \"decision\"\n";
    let (code, told) = check(early, &kafka("exactly_once = true\n")).await;
    assert_eq!(code, Some(0), "{told}");
    let (code, told) = check("", &kafka("exactly_once = false\n")).await;
    assert_eq!(code, Some(0), "{told}");
    for (stitch, more, parts) in [
        (
            early,
            kafka("exactly_once = false\n"),
            ["sinks.events", "could not tell that it has them"],
        ),
        (
            "hold_max = \"2s\"\n",
            dedupe.to_owned(),
            ["transforms.once", "take them for repeats"],
        ),
        (
            "mode = \"decision\"\nhold_max = \"2s\"\n",
            kafka(""),
            ["transforms.whole", "`hold_max`"],
        ),
    ] {
        let (code, told) = check(stitch, &more).await;
        assert_eq!(code, Some(2), "{told}");
        for part in parts {
            assert!(told.contains(part), "{part}: {told}");
        }
    }
}

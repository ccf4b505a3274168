//! `kill -9` at random moments, under load, during the initial copy too; then everything has arrived, once.

use std::time::{Duration, Instant};

use lockstep::demo::compare::Rules;
use lockstep::demo::load::{Load, LoadOptions, Rate};
use lockstep::demo::shop::{INVENTORY_TABLES, ORDERS_TABLES, Shop, ShopOptions};
use lockstep_e2e::copies::Compare;
use lockstep_e2e::topics;
use lockstep_e2e::work::{self, Arrived, Work};
use lockstep_e2e::{Pipeline, Random, Setup};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, OpenSearch as NeedsOpenSearch, Postgres as NeedsPostgres,
    Redis as NeedsRedis,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::opensearch::OpenSearch;
use lockstep_kit::postgres::{Postgres, PostgresOptions};
use lockstep_kit::redis::Redis;
use lockstep_kit::{require, require_own, unique};

use crate::support::{end_of_log, events, list, source, tables};

/// From the last kill to everything being there.
const CATCH_UP: Duration = Duration::from_secs(120);

/// Kills it at a random moment of its initial copy: after it has begun, and before the stream, if it still lasts then.
async fn kill_while_copying(mut pipeline: Pipeline, random: &mut Random) {
    pipeline
        .until(CATCH_UP, "the copy to begin", async |pipeline| {
            let sources = pipeline.status().await["sources"].clone();
            let phases: Vec<_> = sources
                .as_object()
                .into_iter()
                .flatten()
                .map(|(_, source)| &source["phase"])
                .collect();
            let begun = phases
                .iter()
                .any(|phase| **phase == "snapshot" || **phase == "streaming");
            begun.then_some(()).ok_or_else(|| format!("{phases:?}"))
        })
        .await;
    tokio::time::sleep(random.millis(0, 700)).await;
    pipeline.kill9();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_kills_under_load_leave_kafka_redis_and_tantivy_right() {
    require!(NeedsPostgres(15), NeedsPostgres(17), NeedsKafka, NeedsRedis);
    let mut random = Random::from_environment();
    let (orders, inventory) = tokio::join!(
        async { Postgres::shared(15).await.database("orders").await },
        async { Postgres::shared(17).await.database("inventory").await },
    );
    let (kafka, redis) = tokio::join!(Kafka::shared(), Redis::shared());
    let options = ShopOptions {
        customers: 300,
        products: 150,
        orders: 1_500,
        seed: random.below(1_000),
    };
    let shop = Shop::create(orders.url(), inventory.url(), options)
        .await
        .expect("the shop");
    work::create(&orders, 6_000, 500).await;

    let name = unique("kills");
    let of_orders: Vec<String> = ORDERS_TABLES
        .iter()
        .map(|table| format!("public.{table}"))
        .chain(tables())
        .collect();
    let of_inventory: Vec<String> = INVENTORY_TABLES
        .iter()
        .map(|table| format!("public.{table}"))
        .collect();
    let setup = Setup::new(&name, |folder| {
        format!(
            r#"
[sources.orders]
type = "postgres"
url = "{orders_url}"
slot = "{name}_o"
tables = {orders_tables}

[sources.inventory]
type = "postgres"
url = "{inventory_url}"
slot = "{name}_i"
tables = {inventory_tables}

[transforms.once]
type = "dedupe"
inputs = ["orders", "inventory"]
key = ["idempotency_key"]
window = "24h"

[sinks.events]
type = "kafka"
inputs = ["once"]
brokers = "{kafka}"
topic = "{name}.{{source}}.{{table}}"
progress_topic = "{name}.progress"
partitions = 3
exactly_once = true

[sinks.cache]
type = "redis"
inputs = ["once"]
url = "{redis}"
key = "{name}:{{source}}:{{table}}:{{key}}"

[sinks.search]
type = "tantivy"
inputs = ["once"]
path = "{folder}/index"
"#,
            orders_url = orders.url(),
            inventory_url = inventory.url(),
            orders_tables = list(&of_orders),
            inventory_tables = list(&of_inventory),
            kafka = kafka.bootstrap(),
            redis = redis.url(),
            folder = folder.display(),
        )
    });

    let writers = Work::start(&orders, random.below(1_000)).await;
    let load = LoadOptions {
        rate: Rate::Changes(200.0),
        connections: 2,
        schema_change: Some(Duration::from_secs(12)),
        seed: random.below(1_000),
        ..LoadOptions::default()
    };
    let load = Load::start(&shop, load).await.expect("the load");

    let first = setup.start();
    work::slot_exists(&orders, &format!("{name}_o")).await;
    let begin = work::look(&orders).await;
    let started = Instant::now();
    kill_while_copying(first, &mut random).await;
    for _ in 0..2 {
        kill_while_copying(setup.start(), &mut random).await;
    }
    let mut pipeline = setup.start();
    pipeline
        .until(CATCH_UP, "both copies to be durable", async |pipeline| {
            let durable = pipeline
                .log()
                .matches("the copy is durable in every sink")
                .count();
            (durable == 2)
                .then_some(())
                .ok_or_else(|| format!("{durable} are"))
        })
        .await;
    for _ in 0..17 {
        tokio::time::sleep(random.millis(400, 1_800)).await;
        pipeline.kill9();
        pipeline = setup.start();
    }
    println!("20 kills in {:?}", started.elapsed());

    let report = load.stop().await.expect("the load");
    writers.stop().await;
    let end = work::look(&orders).await;
    let stopped = Instant::now();
    pipeline.wait_visible("orders", &end.lsn, CATCH_UP).await;
    pipeline
        .wait_visible("inventory", &report.inventory_end.to_string(), CATCH_UP)
        .await;
    println!("caught up in {:?}", stopped.elapsed());
    assert!(pipeline.terminate(CATCH_UP).await.success());

    let rules = lockstep::demo::pipeline::rules();
    let copies = [
        ("orders", orders.url(), of_orders),
        ("inventory", inventory.url(), of_inventory),
    ];
    let mut suppressed = 0;
    for (source, url, tables) in copies {
        let compare = Compare {
            source,
            url,
            publication: "lockstep",
            tables,
            rules: rules.clone(),
        };
        suppressed += compare
            .assert_equal(&setup)
            .await
            .iter()
            .map(|one| one.suppressed)
            .sum::<u64>();
    }
    assert!(suppressed > 0, "the load has repeated payments");

    let read =
        async |table: &str| topics::read(kafka.bootstrap(), &format!("{name}.{table}")).await;
    let arrived = Arrived {
        ledger: read("orders.ledger").await,
        counters: read("orders.counters").await,
        items: read("orders.items").await,
    };
    arrived.assert_exactly_once(&begin, &end);
    let mut changes = arrived.ledger.len() + arrived.counters.len() + arrived.items.len();
    let shop_tables = ORDERS_TABLES.iter().map(|table| ("orders", table));
    for (source, table) in
        shop_tables.chain(INVENTORY_TABLES.iter().map(|table| ("inventory", table)))
    {
        let records = read(&format!("{source}.{table}")).await;
        changes += records.len();
        assert_eq!(
            topics::repeated(&records),
            Vec::<String>::new(),
            "{source}.{table}"
        );
    }
    let recopied = arrived
        .ledger
        .iter()
        .filter(|record| record.op() == "r")
        .count();
    println!(
        "{changes} records; {recopied} rows of ledger copied, {} of them there are",
        begin.ledger.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_kills_of_the_stream_leave_opensearch_redis_tantivy_and_files_right() {
    require!(NeedsPostgres(17), NeedsOpenSearch, NeedsRedis);
    let mut random = Random::from_environment();
    let (postgres, search, redis) =
        tokio::join!(Postgres::shared(17), OpenSearch::shared(), Redis::shared());
    let database = postgres.database("shop").await;
    work::create(&database, 3_000, 300).await;
    let name = unique("kills");
    let setup = Setup::new(&name, |folder| {
        format!(
            r#"
[sources.shop]
type = "postgres"
url = "{url}"
slot = "{name}"
tables = {tables}

[sinks.search]
type = "opensearch"
inputs = ["shop"]
url = "{search}"
index = "{name}-{{source}}-{{table}}"

[sinks.cache]
type = "redis"
inputs = ["shop"]
url = "{redis}"
key = "{name}:{{table}}:{{key}}"

[sinks.embedded]
type = "tantivy"
inputs = ["shop"]
path = "{folder}/index"

[sinks.files]
type = "file"
inputs = ["shop"]
path = "{folder}/{{table}}.jsonl"
"#,
            url = database.url(),
            tables = list(&tables()),
            search = search.url(),
            redis = redis.url(),
            folder = folder.display(),
        )
    });
    let mut pipeline = setup.start();
    work::slot_exists(&database, &name).await;
    let begin = work::look(&database).await;
    pipeline
        .until(CATCH_UP, "the copy to be durable", async |pipeline| {
            pipeline
                .log()
                .contains("the copy is durable")
                .then_some(())
                .ok_or_else(String::new)
        })
        .await;
    let writers = Work::start(&database, random.below(1_000)).await;
    for _ in 0..8 {
        tokio::time::sleep(random.millis(400, 2_000)).await;
        pipeline.kill9();
        pipeline = setup.start();
    }
    writers.stop().await;
    let end = work::look(&database).await;
    pipeline.wait_visible("shop", &end.lsn, CATCH_UP).await;
    assert!(pipeline.terminate(CATCH_UP).await.success());

    let compare = Compare {
        source: "shop",
        url: database.url(),
        publication: "lockstep",
        tables: tables(),
        rules: Rules::default(),
    };
    compare.assert_equal(&setup).await;
    let read = |table: &str| topics::read_file(&setup.folder().join(format!("{table}.jsonl")));
    let arrived = Arrived {
        ledger: read("ledger"),
        counters: read("counters"),
        items: read("items"),
    };
    arrived.assert_exactly_once(&begin, &end);
    assert!(
        arrived.counters.len() > 300,
        "there was no load: {}",
        arrived.counters.len()
    );
    assert!(
        arrived
            .ledger
            .iter()
            .filter(|record| record.op() == "r")
            .count()
            == begin.ledger.len(),
        "copied once"
    );
}

/// Until the beginning of a transaction that is still open has come.
async fn wait_in_progress(pipeline: &mut Pipeline, bytes: u64) {
    pipeline
        .until(CATCH_UP, "a transaction in progress", async |pipeline| {
            let source = pipeline.status().await["sources"]["shop"].clone();
            let kept = source["in_progress_bytes"].as_u64().unwrap_or(0);
            (source["in_progress"] == 1 && kept >= bytes)
                .then_some(())
                .ok_or_else(|| format!("{} bytes of {}", kept, source["in_progress"]))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_while_a_transaction_is_in_progress_lose_and_double_nothing() {
    require!(NeedsKafka);
    require_own!(NeedsPostgres(17));
    const ROWS: u64 = 120_000;
    let insert = |from: u64, to: u64| {
        format!("INSERT INTO t SELECT n, repeat('x', 100) FROM generate_series({from}, {to}) n")
    };
    let mut random = Random::from_environment();
    let server = Postgres::start(PostgresOptions::new(17)).await;
    let database = server.database("shop").await;
    let set = format!(
        "ALTER DATABASE \"{}\" SET logical_decoding_work_mem = '1MB'",
        database.name()
    );
    database.execute(&set).await;
    database
        .execute("CREATE TABLE t (id bigint PRIMARY KEY, note text)")
        .await;
    let kafka = Kafka::shared().await;
    let name = unique("progress");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"])
            + "streaming = \"on\"\n"
            + &events(kafka.bootstrap(), &name, "")
    });
    let mut pipeline = setup.start_ready().await;
    pipeline.wait_streaming("shop").await;
    let open = database.client().await;
    open.batch_execute("BEGIN").await.expect("begun");
    for part in 0..3 {
        // Beyond what is kept in memory: there are files.
        let from = part * 40_000;
        let sql = insert(from + 1, from + 40_000);
        open.batch_execute(&sql).await.expect("inserted");
        // What is rolled back comes again, too.
        let sql = format!(
            "SAVEPOINT a; {}; ROLLBACK TO a",
            insert(ROWS + 1, ROWS + 9_000)
        );
        open.batch_execute(&sql).await.expect("rolled back");
        wait_in_progress(&mut pipeline, 5_000_000 * (part + 1)).await;
        tokio::time::sleep(random.millis(0, 50)).await;
        pipeline.kill9();
        pipeline = setup.start();
    }
    wait_in_progress(&mut pipeline, 15_000_000).await;
    open.batch_execute("COMMIT").await.expect("committed");
    // Now and then while it goes on.
    for _ in 0..3 {
        tokio::time::sleep(random.millis(0, 1_000)).await;
        pipeline.kill9();
        pipeline = setup.start();
    }
    let end = end_of_log(&database).await;
    pipeline.wait_visible("shop", &end, CATCH_UP).await;
    pipeline
        .until(CATCH_UP, "nothing to be in progress", async |pipeline| {
            let source = pipeline.status().await["sources"]["shop"].clone();
            let kept = source["in_progress_bytes"].to_string();
            (kept == "0").then_some(()).ok_or(kept)
        })
        .await;
    assert!(pipeline.terminate(CATCH_UP).await.success());
    let topic = format!("{name}.t");
    let wrong = topics::not_once(kafka.bootstrap(), &topic, ROWS, CATCH_UP).await;
    assert_eq!(wrong, None);
    // Nothing of the killed is left behind.
    let folder = setup.state().join("sources").join("shop");
    for entry in std::fs::read_dir(folder).expect("the source's state") {
        let entry = entry.expect("an entry");
        let length = entry.metadata().expect("metadata").len();
        assert!(
            length < 100_000,
            "{:?} has {length} bytes",
            entry.file_name()
        );
    }
}

//! The shipped pipeline files run: only addresses and names that other tests share are set from outside.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lockstep_core::metrics;
use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::{Pipeline, Setup, topics};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, OpenSearch as NeedsOpenSearch, Postgres as NeedsPostgres,
    Redis as NeedsRedis, Registry as NeedsRegistry,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::opensearch::OpenSearch;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::redis::{Redis, RedisOptions, Reply};
use lockstep_kit::registry::Registry;
use lockstep_kit::{require, require_own, unique};
use serde_json::Value;

use crate::support::end_of_log;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/examples")
}

#[test]
fn each_example_has_a_test_here() {
    let there_are = std::fs::read_dir(folder()).expect("the examples");
    let there_are: BTreeSet<String> = there_are
        .map(|entry| entry.expect("an entry").file_name().display().to_string())
        .collect();
    let tested = [
        "cache-and-search.toml",
        "expressions.toml",
        "kafka-avro.toml",
        "kafka-only.toml",
        "shop.toml",
    ];
    assert_eq!(there_are, tested.map(str::to_owned).into());
}

/// An example and what is set from outside.
struct Example {
    setup: Setup,
    file: String,
    name: String,
    environment: Vec<(String, String)>,
}

impl Example {
    fn new(file: &str) -> Self {
        let name = unique("example");
        let setup = Setup::new(&name, |_| String::new());
        let file = folder().join(file).display().to_string();
        let state = setup.state().display().to_string();
        let mut example = Example {
            setup,
            file,
            environment: Vec::new(),
            name: name.clone(),
        };
        example.set("LOCKSTEP__NAME", &name);
        example.set("LOCKSTEP__ADMIN__LISTEN", "127.0.0.1:0");
        example.set("LOCKSTEP__STATE__DIR", &state);
        example
    }

    fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.into(), value.into()));
    }

    fn source(&mut self, name: &str, database: &Database) {
        let section = format!("LOCKSTEP__SOURCES__{}", name.to_uppercase());
        self.set(&format!("{section}__URL"), database.url());
        let slot = format!("{}_{name}", self.name);
        self.set(&format!("{section}__SLOT"), &slot);
    }

    fn topics(&mut self, kafka: &Kafka) {
        self.set("LOCKSTEP__SINKS__EVENTS__BROKERS", kafka.bootstrap());
        let topic = format!("{}.{{source}}.{{schema}}.{{table}}", self.name);
        self.set("LOCKSTEP__SINKS__EVENTS__TOPIC", &topic);
    }

    fn environment(&self) -> Vec<(&str, &str)> {
        let pairs = self.environment.iter();
        pairs.map(|(name, value)| (&**name, &**value)).collect()
    }

    /// Checks it against the servers, then runs it.
    async fn run(&self) -> Pipeline {
        let environment = self.environment();
        let words = ["check", &self.file];
        let check = self.setup.lockstep_with(&words, &environment).await;
        assert_eq!(check.code(), Some(0), "{check:?}");
        let mut pipeline = self.setup.spawn(&["run", &self.file], &environment);
        pipeline.wait_ready().await;
        pipeline
    }

    /// The records of a table's topic.
    async fn records(&self, kafka: &Kafka, table: &str) -> Vec<topics::Record> {
        topics::read(kafka.bootstrap(), &format!("{}.{table}", self.name)).await
    }
}

async fn ask(redis: &Redis, words: &[&str]) -> Reply {
    redis.command(words).await.expect("Redis answers")
}

fn value(reply: Reply) -> String {
    match reply {
        Reply::Text(text) => text,
        other => panic!("{other:?}"),
    }
}

async fn stop(pipeline: Pipeline) {
    let status = pipeline.terminate(PATIENCE).await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn kafka_only() {
    require!(NeedsPostgres(17), NeedsKafka);
    let database = Postgres::shared(17).await.database("orders").await;
    database
        .execute(
            "CREATE TABLE orders (id int PRIMARY KEY, customer text);
             CREATE TABLE order_items (order_id int, line int, sku text, PRIMARY KEY (order_id, line));
             INSERT INTO orders VALUES (1, 'Ada')",
        )
        .await;
    let kafka = Kafka::shared().await;
    let mut example = Example::new("kafka-only.toml");
    example.source("orders", &database);
    example.topics(kafka);
    let mut pipeline = example.run().await;
    database
        .execute("INSERT INTO order_items VALUES (1, 1, 'SKU-1')")
        .await;
    let end = end_of_log(&database).await;
    pipeline.wait_visible("orders", &end, PATIENCE).await;
    let orders = example.records(kafka, "orders.public.orders").await;
    assert_eq!((orders.len(), orders[0].op()), (1, "r"), "{orders:?}");
    let items = example.records(kafka, "orders.public.order_items").await;
    assert_eq!((items.len(), items[0].op()), (1, "c"), "{items:?}");
    assert_eq!(items[0].value["after"]["sku"], "SKU-1");
    stop(pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_avro() {
    require!(NeedsPostgres(17), NeedsKafka, NeedsRegistry);
    let database = Postgres::shared(17).await.database("orders").await;
    database
        .execute(
            "CREATE TABLE orders (id int PRIMARY KEY, customer text);
             CREATE TABLE order_items (order_id int, line int, sku text, PRIMARY KEY (order_id, line));
             INSERT INTO orders VALUES (1, 'Ada')",
        )
        .await;
    let (kafka, registry) = tokio::join!(Kafka::shared(), Registry::shared());
    let mut example = Example::new("kafka-avro.toml");
    example.source("orders", &database);
    example.topics(kafka);
    example.set("LOCKSTEP__SINKS__EVENTS__REGISTRY__URL", registry.url());
    let mut pipeline = example.run().await;
    database
        .execute("INSERT INTO order_items VALUES (1, 1, 'SKU-1')")
        .await;
    let end = end_of_log(&database).await;
    pipeline.wait_visible("orders", &end, PATIENCE).await;
    for table in ["orders", "order_items"] {
        let topic = format!("{}.orders.public.{table}", example.name);
        let records = topics::read_raw(kafka.bootstrap(), &topic).await;
        assert_eq!(records.len(), 1, "{records:?}");
        for part in ["key", "value"] {
            let path = format!("/subjects/{topic}-{part}/versions/latest");
            assert_eq!(registry.ask("GET", &path, "").await.0, 200, "{path}");
        }
    }
    stop(pipeline).await;
}

#[tokio::test]
async fn cache_and_search() {
    require!(NeedsPostgres(17));
    require_own!(NeedsRedis);
    let database = Postgres::shared(17).await.database("shop").await;
    database
        .execute(
            "CREATE TABLE products (id int PRIMARY KEY, title text);
             CREATE TABLE payments (id int PRIMARY KEY, card_number text, email text);
             INSERT INTO products VALUES (1, 'a teapot')",
        )
        .await;
    let redis = Redis::start(RedisOptions::default()).await;
    let mut example = Example::new("cache-and-search.toml");
    example.source("shop", &database);
    let index = example.setup.folder().join("index").display().to_string();
    example.set("LOCKSTEP__SINKS__CACHE__URL", redis.url());
    example.set("LOCKSTEP__SINKS__SEARCH__PATH", &index);
    example.set("MASK_SALT", "0123456789abcdef0123456789abcdef");
    let mut pipeline = example.run().await;
    database
        .execute("INSERT INTO payments VALUES (1, '4000 0000 0000 0002', 'ada@example.com')")
        .await;
    let end = end_of_log(&database).await;
    pipeline.wait_visible("shop", &end, PATIENCE).await;

    let title = ask(&redis, &["HGET", "shop:products:1", "title"]).await;
    assert_eq!(value(title), "a teapot");
    let payment = ask(
        &redis,
        &["HMGET", "shop:payments:1", "card_number", "email"],
    )
    .await;
    let payment = format!("{payment:?}");
    assert!(
        !payment.contains("4000") && !payment.contains("ada@"),
        "{payment}"
    );
    assert_eq!(
        ask(&redis, &["HLEN", "shop:payments:1"]).await,
        Reply::Integer(3)
    );
    let search = ["search", &index, "teapot"];
    let found = example.setup.lockstep_with(&search, &[]).await;
    assert_eq!(found.code(), Some(0), "{found:?}");
    assert!(found.stdout.contains("1 found"), "{}", found.stdout);
    stop(pipeline).await;
}

/// A row that an UPDATE moves out of the filter goes, one that it makes large moves, and what is there then is what a comparison
/// makes of the rows by the same expressions.
#[tokio::test]
async fn expressions() {
    require!(NeedsPostgres(17));
    require_own!(NeedsRedis);
    let database = Postgres::shared(17).await.database("shop").await;
    database
        .execute(
            "CREATE TABLE orders (id int PRIMARY KEY, customer text, status text, net numeric(10,2), placed timestamptz);
             ALTER TABLE orders REPLICA IDENTITY FULL;
             INSERT INTO orders VALUES (1, 'Ada', 'paid', 100, '2026-11-23 04:05:06+00'), (2, NULL, 'paid', 999.90, '2025-01-01'),
                                       (3, 'Bo', 'paid', 5, '2025-01-01'), (4, 'Cy', 'paid', 20, '2025-01-01')",
        )
        .await;
    let redis = Redis::start(RedisOptions::default()).await;
    let mut example = Example::new("expressions.toml");
    example.source("shop", &database);
    example.set("LOCKSTEP__SINKS__CACHE__URL", redis.url());
    let tested = example
        .setup
        .lockstep_with(&["test", &example.file], &example.environment())
        .await;
    assert_eq!(tested.code(), Some(0), "{tested:?}");
    assert!(tested.stdout.ends_with("3 tests ok\n"), "{tested:?}");
    let mut pipeline = example.run().await;
    database
        .execute(
            "UPDATE orders SET status = 'cancelled' WHERE id = 4;
             UPDATE orders SET net = 2000 WHERE id = 1;
             UPDATE orders SET net = 12.34 WHERE id = 3",
        )
        .await;
    let end = end_of_log(&database).await;
    pipeline.wait_visible("shop", &end, PATIENCE).await;
    for (key, there) in [
        ("orders:1", 0),
        ("orders_large:1", 1),
        ("orders_large:2", 1),
        ("orders:3", 1),
        ("orders:4", 0),
    ] {
        let held = ask(&redis, &["EXISTS", key]).await;
        assert_eq!(held, Reply::Integer(there), "{key}");
    }
    let row = value(ask(&redis, &["GET", "orders_large:1"]).await);
    let row: Value = serde_json::from_str(&row).expect("JSON");
    let gross: f64 = row["gross"]
        .to_string()
        .trim_matches('"')
        .parse()
        .expect("a number");
    assert!((gross - 2380.0).abs() < 1e-9, "{row}");
    assert_eq!(row["customer"], "ada");
    assert_eq!(row["placed_in"], 2026);
    let url = pipeline.url().await;
    let words = [
        "reconcile",
        &example.file,
        "--url",
        &url,
        "--format",
        "json",
    ];
    let reconcile = async || {
        let child = example.setup.spawn(&words, &example.environment());
        child.ends_within(4 * PATIENCE).await
    };
    let equal = reconcile().await;
    assert_eq!(equal.code(), Some(0), "{equal:?}");
    let report: Value = serde_json::from_str(&equal.stdout).expect("JSON");
    assert_eq!(
        report["reports"][0]["sinks"]["cache"]["compared"], 3,
        "{report:#}"
    );
    // It looks at what the expressions make.
    let ruined = serde_json::json!({"id": 3, "customer": "bo", "status": "paid", "net": "12.34", "gross": "1"});
    ask(&redis, &["SET", "orders:3", &ruined.to_string()]).await;
    let differs = reconcile().await;
    assert_eq!(differs.code(), Some(3), "{differs:?}");
    stop(pipeline).await;
}

#[tokio::test]
async fn shop() {
    require!(
        NeedsPostgres(16),
        NeedsPostgres(17),
        NeedsKafka,
        NeedsOpenSearch
    );
    require_own!(NeedsRedis);
    let (orders, inventory) = (Postgres::shared(16).await, Postgres::shared(17).await);
    let orders = orders.database("orders").await;
    let inventory = inventory.database("inventory").await;
    orders
        .execute(
            "CREATE TABLE orders (id int PRIMARY KEY, customer text, status text NOT NULL DEFAULT 'paid');
             CREATE TABLE order_items (order_id int, line int, sku text, quantity int NOT NULL DEFAULT 1, PRIMARY KEY (order_id, line));
             CREATE TABLE payments (id int PRIMARY KEY, order_id int NOT NULL DEFAULT 1, idempotency_key text, amount numeric,
                                    status text NOT NULL DEFAULT 'captured');
             CREATE TABLE refunds (id int PRIMARY KEY, payment_id int, idempotency_key text, amount numeric);
             INSERT INTO orders VALUES (1, 'Ada'); INSERT INTO payments VALUES (1, 1, 'once', 9.90)",
        )
        .await;
    inventory
        .execute(
            "CREATE TABLE stock (sku text PRIMARY KEY, warehouse text NOT NULL DEFAULT 'AMS', on_hand int,
                                 reserved int NOT NULL DEFAULT 0);
             CREATE TABLE reservations (id int PRIMARY KEY, order_id int NOT NULL DEFAULT 1, sku text,
                                        quantity int NOT NULL DEFAULT 1);
             INSERT INTO stock (sku, on_hand) VALUES ('SKU-1', 7)",
        )
        .await;
    let (kafka, opensearch) = tokio::join!(Kafka::shared(), OpenSearch::shared());
    let redis = Redis::start(RedisOptions::default()).await;
    let mut example = Example::new("shop.toml");
    example.source("orders", &orders);
    example.source("inventory", &inventory);
    example.topics(kafka);
    example.set("LOCKSTEP__SINKS__CACHE__URL", redis.url());
    example.set("LOCKSTEP__SINKS__SEARCH__URL", opensearch.url());
    let index = format!("{}-{{source}}-{{table}}", example.name);
    example.set("LOCKSTEP__SINKS__SEARCH__INDEX", &index);
    let mut pipeline = example.run().await;
    pipeline.wait_streaming("orders").await;
    // Sent again: not a second payment.
    orders
        .execute("INSERT INTO payments VALUES (2, 1, 'once', 9.90), (3, 1, 'another', 1)")
        .await;
    inventory
        .execute("INSERT INTO reservations VALUES (1, 1, 'SKU-1')")
        .await;
    for (source, database) in [("orders", &orders), ("inventory", &inventory)] {
        let end = end_of_log(database).await;
        pipeline.wait_visible(source, &end, PATIENCE).await;
    }

    let payments = example.records(kafka, "orders.public.payments").await;
    assert_eq!(payments.len(), 2, "{payments:?}");
    let reservations = example
        .records(kafka, "inventory.public.reservations")
        .await;
    assert_eq!(reservations.len(), 1, "{reservations:?}");
    for (key, there) in [
        ("orders:orders:1", 1),
        ("orders:payments:1", 1),
        ("orders:payments:2", 0),
        ("orders:payments:3", 1),
        ("inventory:stock:SKU-1", 1),
        ("inventory:reservations:1", 1),
    ] {
        let held = ask(&redis, &["EXISTS", key]).await;
        assert_eq!(held, Reply::Integer(there), "{key}");
    }
    for (table, documents) in [("orders", 1), ("payments", 2)] {
        let index = format!("/{}-orders-{table}", example.name);
        let refresh = format!("{index}/_refresh");
        let refreshed = opensearch.request("POST", &refresh, "").await;
        refreshed.expect("OpenSearch answers");
        let count = format!("{index}/_count");
        let counted = opensearch.request("GET", &count, "").await;
        let (code, body) = counted.expect("OpenSearch answers");
        let expected = format!("\"count\":{documents},");
        assert!(code == 200 && body.contains(&expected), "{table}: {body}");
    }
    pipeline
        .until(PATIENCE, "all invariants to hold", async |pipeline| {
            let (_, metrics) = pipeline.get("/metrics").await.map_err(|e| e.to_string())?;
            let verified = metrics::INVARIANT_VERIFIED.name;
            let there = metrics.lines().filter(|line| line.starts_with(verified));
            (there.count() == 5).then_some(()).ok_or(metrics)
        })
        .await;
    stop(pipeline).await;
}

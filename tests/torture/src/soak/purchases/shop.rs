//! The servers, the databases, and the pipeline that has them as sources.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use lockstep_kit::kafka::{Kafka, KafkaOptions};
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::redis::{Redis, RedisOptions};

/// The topic, and what keys begin with.
pub const NAME: &str = "shop";
/// Two versions that can decode two-phase commits.
const VERSIONS: [u16; 2] = [16, 17];
/// Rows that are read by invariants row by row: one in so many.
const SAMPLED: u64 = 16;
/// Units of each article.
const STOCK: u64 = 1_000_000_000;

/// Two clusters with their databases, and a server for each sink.
#[derive(Debug)]
pub struct Shop {
    /// Dropped before their servers.
    pub orders: Database,
    /// On the other cluster.
    pub inventory: Database,
    /// For decisions of transactions in the full form; on the first cluster.
    pub decisions: Database,
    /// The clusters: of orders and decisions, and of inventory.
    pub clusters: [Postgres; 2],
    /// Exactly once, one partition.
    pub kafka: Kafka,
    /// The cache.
    pub redis: Redis,
    /// The program that buys.
    pub buyer: PathBuf,
    /// How many there are.
    pub articles: u64,
}

/// What the databases hold in the end.
#[derive(Debug)]
pub struct Kept {
    /// Numbers of orders, reservations and visits.
    pub numbers: [HashSet<u64>; 3],
    /// How often each article has changed.
    pub versions: HashMap<u64, u64>,
}

impl Shop {
    /// Starts the servers and makes the tables.
    ///
    /// # Panics
    /// When a server is not installed or does not start.
    pub async fn open(buyer: PathBuf, articles: u64) -> Self {
        let [first, second] = VERSIONS.map(|version| {
            let options = PostgresOptions::new(version)
                .set("max_prepared_transactions", "200")
                .set("max_wal_size", "4GB")
                // What a crash makes it read again.
                .set("checkpoint_timeout", "1min");
            Postgres::start(options)
        });
        let (first, second, kafka, redis) = tokio::join!(
            first,
            second,
            Kafka::start(KafkaOptions::default()),
            Redis::start(RedisOptions::default())
        );
        let shop = Shop {
            orders: first.database("orders").await,
            inventory: second.database("inventory").await,
            decisions: first.database("decisions").await,
            clusters: [first, second],
            kafka,
            redis,
            buyer,
            articles,
        };
        let bought = "(id bigint PRIMARY KEY, article bigint NOT NULL, quantity bigint NOT NULL)";
        shop.orders
            .execute(&format!(
                "CREATE TABLE orders {bought}; CREATE TABLE visits (id bigint PRIMARY KEY); \
                 CREATE TABLE decided_by_hand (name text PRIMARY KEY, commits boolean NOT NULL)"
            ))
            .await;
        shop.inventory
            .execute(&format!(
                "CREATE TABLE reservations {bought}; \
                 CREATE TABLE stock (id bigint PRIMARY KEY, sold bigint NOT NULL, version bigint NOT NULL) WITH (fillfactor = 50); \
                 INSERT INTO stock SELECT n, 0, 0 FROM generate_series(1, {articles}::bigint) n"
            ))
            .await;
        shop.inventory.execute("VACUUM ANALYZE stock").await;
        shop
    }

    /// Which versions these are, for people.
    ///
    /// # Panics
    /// When a server does not answer.
    pub async fn versions(&self) -> String {
        format!(
            "PostgreSQL {} and {}, Kafka {}, Redis {}",
            self.clusters[0].version(),
            self.clusters[1].version(),
            lockstep_kit::kafka::installed_version().unwrap_or_default(),
            self.redis.version().await.expect("Redis answers"),
        )
    }

    /// The pipeline file: everything as it is by default, but for what is looked at more often, and `stitch`, lines for that section.
    pub fn pipeline(&self, folder: &Path, invariants_every: &str, stitch: &str) -> String {
        let place = folder.display();
        format!(
            r#"name = "{NAME}"

[admin]
listen = "127.0.0.1:0"

[state]
dir = "{place}/state"

[sources.orders]
type = "postgres"
url = "{orders}"
tables = ["public.orders", "public.visits"]
two_phase = true

[sources.inventory]
type = "postgres"
url = "{inventory}"
tables = ["public.reservations", "public.stock"]
two_phase = true

[transforms.whole]
type = "stitch"
inputs = ["orders", "inventory"]
{stitch}

[sinks.events]
type = "kafka"
inputs = ["whole"]
brokers = "{kafka}"
topic = "{NAME}"
partitions = 1
exactly_once = true

[sinks.cache]
type = "redis"
inputs = ["whole"]
url = "{redis}"
key = "{NAME}:{{table}}:{{key}}"

[sinks.search]
type = "tantivy"
inputs = ["whole:orders.public.orders", "whole:inventory.public.reservations"]
path = "{index}"

[transactions]
resolve = ["lockstep"]
safety_interval = "0s"

[reconcile]
when_asked = true
{invariants}"#,
            orders = self.orders.url(),
            inventory = self.inventory.url(),
            kafka = self.kafka.bootstrap(),
            redis = self.redis.url(),
            index = index(folder).display(),
            invariants = invariants(invariants_every),
        )
    }

    /// Gids of what is prepared, on both clusters.
    ///
    /// # Panics
    /// When a server does not answer.
    pub async fn prepared(&self) -> Vec<String> {
        let mut all = Vec::new();
        for cluster in &self.clusters {
            let ask = "SELECT string_agg(gid, ' ') FROM pg_prepared_xacts";
            let gids = cluster.value(ask).await.unwrap_or_default();
            all.extend(gids.split_whitespace().map(str::to_owned));
        }
        all
    }

    /// Where the logs end: of orders, of inventory.
    ///
    /// # Panics
    /// When a server does not answer.
    pub async fn ends(&self) -> [(&'static str, String); 2] {
        let ask = "SELECT pg_current_wal_insert_lsn()";
        let end = async |database: &Database| database.value(ask).await.expect("a place");
        [
            ("orders", end(&self.orders).await),
            ("inventory", end(&self.inventory).await),
        ]
    }

    /// What is in the tables.
    ///
    /// # Panics
    /// When a server does not answer.
    pub async fn kept(&self) -> Kept {
        let numbers = async |database: &Database, table: &str| -> HashSet<u64> {
            let ask = format!("SELECT id FROM {table}");
            let rows = database.client().await.query(&ask, &[]).await;
            let rows = rows.expect("rows");
            rows.iter()
                .map(|row| row.get::<_, i64>(0).cast_unsigned())
                .collect()
        };
        let numbers = [
            numbers(&self.orders, "orders").await,
            numbers(&self.inventory, "reservations").await,
            numbers(&self.orders, "visits").await,
        ];
        let client = self.inventory.client().await;
        let rows = client.query("SELECT id, version FROM stock", &[]).await;
        let version = |row: &tokio_postgres::Row| {
            let (id, version): (i64, i64) = (row.get(0), row.get(1));
            (id.cast_unsigned(), version.cast_unsigned())
        };
        Kept {
            numbers,
            versions: rows.expect("rows").iter().map(version).collect(),
        }
    }
}

/// Where the embedded index is.
pub fn index(folder: &Path) -> PathBuf {
    folder.join("index")
}

/// One of each rule that has two databases, and one that does not: what holds whenever all of a purchase is looked at, or nothing.
fn invariants(every: &str) -> String {
    let all = format!("WHERE id % {SAMPLED} = 0");
    let by_article = |table: &str| {
        format!("SELECT article, sum(quantity) AS quantity FROM {table} GROUP BY article")
    };
    let sold = "SELECT id AS article, sold AS quantity FROM stock".to_owned();
    let row = |table: &str| format!("SELECT id, article, quantity FROM {table} {all}");
    let one = |name: &str, rule: &str, key: &str, more: &str, queries: &[(&str, &str)]| {
        let queries: String = queries
            .iter()
            .map(|(source, query)| format!("{source} = \"{query}\"\n"))
            .collect();
        format!(
            "\n[[reconcile.invariants]]\nname = \"{name}\"\nrule = \"{rule}\"\nkey = [\"{key}\"]\nevery = \"{every}\"\n{more}\
             [reconcile.invariants.queries]\n{queries}"
        )
    };
    [
        one(
            "orders-are-reserved",
            "subset",
            "id",
            "for_each = \"orders\"\n",
            &[
                ("orders", &row("orders")),
                ("inventory", &row("reservations")),
            ],
        ),
        one(
            "reservations-have-orders",
            "exists_within",
            "id",
            "for_each = \"inventory\"\nwithin = \"1s\"\n",
            &[
                ("inventory", &format!("SELECT id FROM reservations {all}")),
                ("orders", &format!("SELECT id FROM orders {all}")),
            ],
        ),
        one(
            "sold-is-ordered",
            "sum_equal",
            "article",
            "",
            &[("orders", &by_article("orders")), ("inventory", &sold)],
        ),
        one(
            "no-more-ordered-than-reserved",
            "at_most",
            "article",
            "for_each = \"orders\"\n",
            &[
                ("orders", &by_article("orders")),
                ("inventory", &by_article("reservations")),
            ],
        ),
        one(
            "stock-is-there",
            "non_negative",
            "article",
            "",
            &[(
                "inventory",
                &format!("SELECT id AS article, {STOCK} - sold AS free FROM stock"),
            )],
        ),
    ]
    .concat()
}

//! Purchases of real transaction managers over two servers: Narayana, Atomikos, psycopg 3. They are killed while they buy, and end by
//! themselves what they have left.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_e2e::topics::{self, Record};
use lockstep_e2e::{Random, Setup};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, Managers as NeedsManagers, Postgres as NeedsPostgres,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::managers::{Dies, Ended, Manager, Purchase, Run, Shop};
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::{require, require_own, unique, wait_for};
use lockstep_transactions::gid::{Branch, Xid};
use serde_json::Value;

use crate::support::{end_of_log, files, source};

const CATCH_UP: Duration = Duration::from_secs(120);
/// How often each manager is killed while it buys.
const KILLS: u64 = 2;
/// More than are bought between two kills.
const MANY: u64 = 100_000;
/// What each buys at the end.
const LAST: u64 = 50;
/// Articles of each manager: few, so that its purchases wait for each other.
const ARTICLES: u64 = 3;

/// The word for a manager in names of transactions.
fn dialect(manager: Manager) -> &'static str {
    match manager {
        Manager::Narayana => "narayana",
        Manager::Atomikos => "atomikos",
        Manager::Psycopg => "xa",
    }
}

/// The names of what a shop has prepared in a database.
async fn left(database: &Database, shop: &Shop) -> Vec<String> {
    let all = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()";
    let rows = database.client().await.query(all, &[]).await.expect("rows");
    let gids = rows.iter().map(|row| row.get::<_, String>(0));
    gids.filter(|gid| is_of(gid, shop)).collect()
}

/// Whether a shop has named a branch so.
fn is_of(gid: &str, shop: &Shop) -> bool {
    let xid = Xid::parse(gid).unwrap_or_else(|| panic!("{gid}"));
    let name = shop.name().as_bytes();
    xid.global.windows(name.len()).any(|part| part == name)
}

struct Market {
    orders: Database,
    inventory: Database,
    _servers: [Postgres; 2],
}

impl Market {
    async fn open() -> Self {
        let [first, second] =
            [16, 17].map(|version| Postgres::start(PostgresOptions::new(version)));
        let servers = [first.await, second.await];
        let orders = servers[0].database("orders").await;
        let inventory = servers[1].database("inventory").await;
        orders
            .execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
            .await;
        let articles = Manager::ALL.len() as u64 * ARTICLES;
        let tables = format!(
            "CREATE TABLE reservations (id bigint PRIMARY KEY); \
             CREATE TABLE stock (id bigint PRIMARY KEY, sold bigint NOT NULL); \
             INSERT INTO stock SELECT n, 0 FROM generate_series(0, {articles} - 1) n"
        );
        inventory.execute(&tables).await;
        Market {
            orders,
            inventory,
            _servers: servers,
        }
    }

    /// One that buys for each manager, with articles of its own: what a killed one has locked is in nobody else's way.
    fn shops(&self) -> [(u64, Manager, Shop); 3] {
        let mut at = 0;
        Manager::ALL.map(|manager| {
            let first = at * ARTICLES;
            at += 1;
            let reserve = format!(
                "INSERT INTO reservations VALUES ({{id}}); \
                 UPDATE stock SET sold = sold + 1 WHERE id = {first} + {{id}} % {ARTICLES}"
            );
            let purchase = Purchase {
                orders: self.orders.url(),
                order: "INSERT INTO orders VALUES ({id})",
                inventory: self.inventory.url(),
                reserve: &reserve,
            };
            (at, manager, Shop::new(manager, &purchase))
        })
    }

    /// Buys, is killed, and begins again; at the end, what it should buy is bought, and nothing is left.
    async fn buy(&self, number: u64, manager: Manager, mut shop: Shop, mut random: Random) {
        for life in 0..=KILLS {
            let first = (number * 10 + life) * MANY;
            let run = |purchases| Run {
                first,
                purchases,
                threads: 4,
                ..Run::default()
            };
            if life == KILLS {
                let ended = shop.run(&run(LAST), CATCH_UP).await;
                let Ended::Done { bought, failed } = ended else {
                    panic!("{manager}: {ended:?}");
                };
                // On a busy machine, Atomikos gives up what takes more than three seconds.
                assert_eq!(bought + failed, LAST, "{manager}");
                let there = self.numbers(&self.orders, "orders").await;
                let there = there.range(first..first + MANY).count() as u64;
                assert_eq!(there, bought, "{manager}: {}", shop.log());
                assert!(bought > 0, "{manager}: {}", shop.log());
                break;
            }
            shop.start(&run(MANY)).await;
            let enough = 20 + random.below(40);
            let ask = format!("SELECT count(*) >= {enough} FROM orders WHERE id >= {first}");
            let ask = format!("{ask} AND id < {first} + {MANY}");
            wait_for(CATCH_UP, format!("{manager} to buy"), async || {
                let is_enough = self.orders.value(&ask).await;
                (is_enough.as_deref() == Some("t"))
                    .then_some(())
                    .ok_or_else(|| shop.log())
            })
            .await;
            shop.kill();
            let orders = left(&self.orders, &shop).await.len();
            let inventory = left(&self.inventory, &shop).await.len();
            println!("{manager} has left {orders} and {inventory} branches");
        }
        // A server may have prepared what a killed one had sent only when its successor had looked.
        let ended = shop.run(&Run::default(), CATCH_UP).await;
        assert!(matches!(ended, Ended::Done { .. }), "{manager}: {ended:?}");
    }

    /// The numbers of purchases in a table.
    async fn numbers(&self, database: &Database, table: &str) -> BTreeSet<u64> {
        let ask = format!("SELECT coalesce(string_agg(id::text, ' '), '') FROM {table}");
        let text = database.value(&ask).await.expect("a text");
        let numbers = text.split_whitespace().map(str::parse);
        numbers.collect::<Result<_, _>>().expect("numbers")
    }

    /// What was bought, which both databases must agree about.
    async fn bought(&self) -> BTreeSet<u64> {
        let orders = self.numbers(&self.orders, "orders").await;
        let reservations = self.numbers(&self.inventory, "reservations").await;
        assert_eq!(orders, reservations, "the databases agree");
        let sold = self.inventory.value("SELECT sum(sold) FROM stock").await;
        assert_eq!(sold, Some(orders.len().to_string()));
        orders
    }
}

/// What a record is about: its table and number.
fn row(record: &Record) -> (&str, u64) {
    let table = record.value["source"]["table"].as_str().unwrap_or_default();
    let id = record.value["after"]["id"].as_u64();
    (table, id.unwrap_or_default())
}

/// Each purchase stands together, in one transaction of Kafka, once, under the name that its manager gave it. Returns their numbers.
fn whole(records: &[Record]) -> BTreeSet<u64> {
    let stream: Vec<&Record> = records.iter().filter(|record| record.op() != "r").collect();
    assert_eq!(topics::repeated(records), Vec::<String>::new());
    let (mut seen, mut names) = (BTreeSet::new(), BTreeMap::new());
    for unit in stream.chunk_by(|a, b| a.global == b.global) {
        let Some((global, branches)) = &unit[0].global else {
            panic!("{:?} is no part of a purchase", unit[0]);
        };
        assert_eq!(*branches, 2, "{global}");
        // The end of a transaction of Kafka takes an offset: between these there is none.
        let is_one = |pair: &[&Record]| pair[0].offset + 1 == pair[1].offset;
        assert!(
            unit.windows(2).all(is_one),
            "{global} in several transactions"
        );
        let mut rows: Vec<(&str, u64)> = unit.iter().map(|record| row(record)).collect();
        rows.sort_unstable();
        let [("orders", id), ("reservations", reserved), ("stock", _)] = rows[..] else {
            panic!("{global}: {rows:?}");
        };
        assert_eq!(id, reserved, "{global}");
        assert!(seen.insert(id), "{id} is in two places");
        // Who has the number has given the name.
        let manager = Manager::ALL[(id / MANY / 10 - 1) as usize];
        let word = global.split(':').next().unwrap_or_default();
        assert_eq!(word, dialect(manager), "{global} of {manager}");
        *names.entry(word).or_insert(0) += 1;
    }
    println!("whole: {names:?}");
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purchases_of_killed_managers_arrive_whole() {
    require!(NeedsKafka);
    require_own!(NeedsPostgres(16), NeedsPostgres(17), NeedsManagers);
    let mut random = Random::from_environment();
    let market = Market::open().await;
    let kafka = Kafka::shared().await;
    let name = unique("managers");
    let setup = Setup::new(&name, |_| {
        let section = |of: &str, database: &Database, tables: &[&str]| {
            let section = source(database.url(), &format!("{name}_{of}"), tables);
            section.replace("sources.shop", &format!("sources.{of}")) + "two_phase = true\n"
        };
        section("orders", &market.orders, &["orders"])
            + &section("inventory", &market.inventory, &["stock", "reservations"])
            + "[transforms.whole]\ntype = \"stitch\"\ninputs = [\"orders\", \"inventory\"]\n"
            + &format!(
                "[sinks.events]\ntype = \"kafka\"\ninputs = [\"whole\"]\nbrokers = \"{}\"\ntopic = \"{name}\"\n\
                 partitions = 1\ncommit_records = 1\nprogress_topic = \"{name}.progress\"\nexactly_once = true\n",
                kafka.bootstrap()
            )
    });
    let mut pipeline = setup.start_ready().await;
    pipeline.wait_streaming("orders").await;
    pipeline.wait_streaming("inventory").await;
    let shops = market.shops();
    let buying =
        shops.map(|(number, manager, shop)| market.buy(number, manager, shop, random.fork()));
    futures_util::future::join_all(buying).await;
    let bought = market.bought().await;
    let left = "SELECT count(*) FROM pg_prepared_xacts";
    for (name, database) in [("orders", &market.orders), ("inventory", &market.inventory)] {
        assert_eq!(database.value(left).await.as_deref(), Some("0"), "{name}");
        let end = end_of_log(database).await;
        pipeline.wait_visible(name, &end, CATCH_UP).await;
    }
    assert!(pipeline.terminate(CATCH_UP).await.success());
    let records = topics::read(kafka.bootstrap(), &name).await;
    assert_eq!(whole(&records), bought);
}

/// A market, and the pipeline file that `lockstep transactions` reads. It does not run.
struct Doubts {
    market: Market,
    setup: Setup,
}

impl Doubts {
    async fn open() -> Self {
        let market = Market::open().await;
        let name = unique("doubts");
        let setup = Setup::new(&name, |folder| {
            let source = |of: &str, database: &Database, table| {
                let text = source(database.url(), &name, &[table]);
                text.replace("sources.shop", &format!("sources.{of}"))
            };
            source("orders", &market.orders, "orders")
                + &source("inventory", &market.inventory, "stock")
                + &files(folder).replace("[\"shop\"]", "[\"orders\", \"inventory\"]")
                + "[transactions]\nresolve = [\"narayana\", \"atomikos\", \"xa\"]\nsafety_interval = \"0s\"\n"
        });
        Doubts { market, setup }
    }

    /// What a subcommand of `lockstep transactions` tells.
    async fn ask(&self, command: &str, more: &[&str]) -> Value {
        let file = self.setup.file().display().to_string();
        let arguments = [
            &["transactions", command, &file, "--format", "json"][..],
            more,
        ]
        .concat();
        let ended = self.setup.lockstep_with(&arguments, &[]).await;
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"))
    }

    /// Each manager has left one purchase with branches there; they are known for its, and not decided by anybody else.
    async fn are_left(&self, shops: &[(u64, Manager, Shop)], places: &[&str]) {
        let list = self.ask("list", &[]).await;
        let list = list.as_array().expect("a list");
        assert_eq!(list.len(), shops.len(), "{list:?}");
        for (_, manager, shop) in shops {
            let is_its = |one: &&Value| {
                one["branches"][0]["gid"]
                    .as_str()
                    .is_some_and(|gid| is_of(gid, shop))
            };
            let one = list
                .iter()
                .find(is_its)
                .unwrap_or_else(|| panic!("{manager}: {list:?}"));
            assert_eq!(one["dialect"], dialect(*manager));
            let branches = one["branches"].as_array().expect("branches");
            let mut sources: Vec<&Value> =
                branches.iter().map(|branch| &branch["source"]).collect();
            sources.sort_by_key(|source| source.to_string());
            assert_eq!(sources, places, "{manager}");
            let qualifiers = branches.iter().map(|branch| branch["branch"].to_string());
            assert_eq!(qualifiers.collect::<BTreeSet<_>>().len(), branches.len());
            for branch in branches {
                let gid = branch["gid"].as_str().expect("a gid");
                assert_eq!(Branch::parse(gid).dialect().as_str(), dialect(*manager));
            }
        }
        let told = self.ask("resolve", &["--apply"]).await;
        let told = told["branches"].as_array().expect("branches");
        assert_eq!(told.len(), shops.len() * places.len(), "{told:?}");
        for branch in told {
            let parts = [&branch["action"], &branch["rule"]];
            assert_eq!(parts, ["leave alone", "none"], "{branch}");
        }
        assert_eq!(&self.ask("list", &[]).await, &Value::from(list.clone()));
    }

    /// How many of the purchases with these numbers are in orders, and in the reservations.
    async fn holds(&self, first: u64) -> [usize; 2] {
        let market = &self.market;
        let orders = market.numbers(&market.orders, "orders").await;
        let reservations = market.numbers(&market.inventory, "reservations").await;
        [orders, reservations].map(|numbers| numbers.range(first..first + 10).count())
    }
}

/// One thread buys, and its process ends at a place.
async fn die(shops: &mut [(u64, Manager, Shop)], first: u64, dies: Dies) {
    let dying = shops.iter_mut().map(async |(number, manager, shop)| {
        let run = Run {
            first: *number * MANY + first,
            purchases: 10,
            dies: Some(dies),
            ..Run::default()
        };
        let ended = shop.run(&run, CATCH_UP).await;
        assert!(matches!(ended, Ended::Died(_)), "{manager}: {ended:?}");
    });
    futures_util::future::join_all(dying).await;
}

/// The next process of each name ends what the last one has left.
async fn come_back(shops: &mut [(u64, Manager, Shop)]) {
    let ending = shops.iter_mut().map(async |(_, manager, shop)| {
        let ended = shop.run(&Run::default(), CATCH_UP).await;
        assert!(matches!(ended, Ended::Done { .. }), "{manager}: {ended:?}");
    });
    futures_util::future::join_all(ending).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_manager_leaves_is_its_own_to_decide() {
    require_own!(NeedsPostgres(16), NeedsPostgres(17), NeedsManagers);
    let doubts = Doubts::open().await;
    let mut shops = doubts.market.shops();
    // The second purchase is prepared in both, and nobody has decided.
    die(&mut shops, 0, Dies::BehindPrepare(4)).await;
    doubts.are_left(&shops, &["inventory", "orders"]).await;
    come_back(&mut shops).await;
    for (number, manager, _) in &shops {
        assert_eq!(doubts.holds(number * MANY).await, [1, 1], "{manager}");
    }
    // It is decided, and has committed in orders.
    die(&mut shops, 10, Dies::BeforeCommit(4)).await;
    doubts.are_left(&shops, &["inventory"]).await;
    for (number, manager, _) in &shops {
        assert_eq!(doubts.holds(number * MANY + 10).await, [2, 1], "{manager}");
    }
    come_back(&mut shops).await;
    for (number, manager, _) in &shops {
        assert_eq!(doubts.holds(number * MANY + 10).await, [2, 2], "{manager}");
    }
    assert_eq!(doubts.ask("list", &[]).await, Value::Array(Vec::new()));
}

//! Purchases that are two-phase commits over two databases: whatever is read of them is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep_e2e::topics::{self, Record};
use lockstep_e2e::{Pipeline, Random, Setup};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, OpenSearch as NeedsOpenSearch, Postgres as NeedsPostgres,
    Redis as NeedsRedis,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::opensearch::OpenSearch;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::redis::{Redis, Reply};
use lockstep_kit::{require, require_own, unique};
use serde_json::{Value, json};

use crate::support::{end_of_log, source};

pub const CATCH_UP: Duration = Duration::from_secs(120);
/// Who buys at a time.
pub const BUYERS: u64 = 4;
/// How often each of them does.
pub const PURCHASES: u64 = 250;
/// Articles: few, so that purchases wait for each other.
const ARTICLES: u64 = 5;

/// Two databases of two servers.
pub struct Shop {
    pub orders: Database,
    pub inventory: Database,
    pub servers: [Postgres; 2],
}

impl Shop {
    pub async fn open() -> Self {
        Self::open_on([16, 17].map(PostgresOptions::new)).await
    }

    pub async fn open_on(servers: [PostgresOptions; 2]) -> Self {
        let [first, second] = servers.map(Postgres::start);
        let servers = [first.await, second.await];
        let orders = servers[0].database("orders").await;
        let inventory = servers[1].database("inventory").await;
        orders
            .execute("CREATE TABLE orders (id bigint PRIMARY KEY); CREATE TABLE visits (id bigint PRIMARY KEY)")
            .await;
        let tables = "CREATE TABLE stock (id bigint PRIMARY KEY, sold bigint NOT NULL, seen bigint NOT NULL); \
             CREATE TABLE reservations (id bigint PRIMARY KEY)";
        inventory.execute(tables).await;
        let articles =
            format!("INSERT INTO stock SELECT n, 0, 0 FROM generate_series(1, {ARTICLES}) n");
        inventory.execute(&articles).await;
        Shop {
            orders,
            inventory,
            servers,
        }
    }

    /// The part of a pipeline before its sinks, which read `whole`.
    pub fn sources(&self, name: &str) -> String {
        let section = |of: &str, database: &Database, tables: &[&str]| {
            let slot = format!("{name}_{of}");
            let section = source(database.url(), &slot, tables);
            section.replace("sources.shop", &format!("sources.{of}")) + "two_phase = true\n"
        };
        section("orders", &self.orders, &["orders", "visits"])
            + &section("inventory", &self.inventory, &["stock", "reservations"])
            + "[transforms.whole]\ntype = \"stitch\"\ninputs = [\"orders\", \"inventory\"]\n"
    }

    /// A pipeline with everything in one partition, so that the order in which it went on can be read.
    pub fn pipeline(&self, name: &str, brokers: &str) -> String {
        self.sources(name)
            + &format!(
                "[sinks.events]\ntype = \"kafka\"\ninputs = [\"whole\"]\nbrokers = \"{brokers}\"\n\
                 topic = \"{name}\"\npartitions = 1\ncommit_records = 1\nprogress_topic = \"{name}.progress\"\nexactly_once = true\n\
                 transactions = {{ topic = \"{name}.gtx\" }}\n"
            )
    }

    /// One of those who buy. Some give up, some only look.
    async fn buy(&self, buyer: u64, mut random: Random) {
        let (orders, inventory) = (self.orders.client().await, self.inventory.client().await);
        let run = async |client: &tokio_postgres::Client, sql: String| {
            let done = client.batch_execute(&sql).await;
            done.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        };
        for turn in 0..PURCHASES {
            let id = buyer * PURCHASES + turn + 1;
            let article = random.below(ARTICLES) + 1;
            if random.below(4) == 0 {
                run(&orders, format!("INSERT INTO visits VALUES ({id})")).await;
                let seen = format!("UPDATE stock SET seen = seen + 1 WHERE id = {article}");
                run(&inventory, seen).await;
                continue;
            }
            if random.below(4) == 0 {
                // Decided by the commit of one of them, which has no name but what it says.
                let says = format!(
                    "SELECT pg_logical_emit_message(true, 'gtx', '{{\"g\": \"marked {id}\"}}')"
                );
                let reserve = format!(
                    "BEGIN; {says}; INSERT INTO reservations VALUES ({id}); \
                     UPDATE stock SET sold = sold + 1 WHERE id = {article}; PREPARE TRANSACTION 'b {id}'"
                );
                run(&inventory, reserve).await;
                let order = format!("BEGIN; {says}; INSERT INTO orders VALUES ({id}); COMMIT");
                run(&orders, order).await;
                run(&inventory, format!("COMMIT PREPARED 'b {id}'")).await;
                continue;
            }
            run(
                &orders,
                format!("BEGIN; INSERT INTO orders VALUES ({id}); PREPARE TRANSACTION 'buy {id}'"),
            )
            .await;
            run(
                &inventory,
                format!(
                    "BEGIN; INSERT INTO reservations VALUES ({id}); \
                     UPDATE stock SET sold = sold + 1 WHERE id = {article}; PREPARE TRANSACTION 'buy {id}'"
                ),
            )
            .await;
            let word = match random.below(10) {
                0 => "ROLLBACK",
                _ => "COMMIT",
            };
            let end = format!("{word} PREPARED 'buy {id}'");
            let mut both = [&orders, &inventory];
            if random.below(2) == 0 {
                both.reverse();
            }
            run(both[0], end.clone()).await;
            tokio::time::sleep(random.millis(0, 5)).await;
            run(both[1], end).await;
        }
    }

    /// Its pipeline, as soon as both databases are followed and the initial copies are durable: one that is made again is of two
    /// moments.
    pub async fn start(&self, setup: &Setup) -> Pipeline {
        let mut pipeline = setup.start_ready().await;
        pipeline.wait_streaming("orders").await;
        pipeline.wait_streaming("inventory").await;
        self.caught_up(&mut pipeline).await;
        // The sinks have them, and the sources have that on record.
        let are_known = async |pipeline: &mut Pipeline| {
            let log = pipeline.log();
            let known = log.matches("the copy is durable in every sink").count();
            (known == 2).then_some(()).ok_or(log)
        };
        pipeline
            .until(CATCH_UP, "the copies to be durable", are_known)
            .await;
        pipeline
    }

    /// All buy, while the pipeline is killed again and again; returns it when it has caught up.
    pub async fn buy_under_kills(
        &self,
        setup: &Setup,
        mut pipeline: Pipeline,
        random: &mut Random,
    ) -> Pipeline {
        let buyers = (0..BUYERS).map(|buyer| self.buy(buyer, random.fork()));
        let mut buying = std::pin::pin!(futures_util::future::join_all(buyers));
        loop {
            tokio::select! {
                _ = &mut buying => break,
                () = tokio::time::sleep(random.millis(500, 2_500)) => {
                    pipeline.kill9();
                    pipeline = setup.start();
                }
            }
        }
        self.caught_up(&mut pipeline).await;
        pipeline
    }

    pub async fn caught_up(&self, pipeline: &mut Pipeline) {
        for (name, database) in [("orders", &self.orders), ("inventory", &self.inventory)] {
            let end = end_of_log(database).await;
            pipeline.wait_visible(name, &end, CATCH_UP).await;
        }
    }

    /// Numbers of what was bought, as the databases have them.
    pub async fn bought(&self) -> BTreeSet<u64> {
        let ask = "SELECT coalesce(string_agg(id::text, ' '), '') FROM";
        let orders = self.orders.value(&format!("{ask} orders")).await;
        let reserved = self.inventory.value(&format!("{ask} reservations")).await;
        let numbers = |text: Option<String>| -> BTreeSet<u64> {
            let text = text.expect("a text");
            text.split_whitespace()
                .map(|number| number.parse().expect("a number"))
                .collect()
        };
        let (orders, reserved) = (numbers(orders), numbers(reserved));
        assert_eq!(orders, reserved, "the databases agree");
        orders
    }
}

/// What a record is about: its table and number.
pub fn row(record: &Record) -> (String, u64) {
    let table = record.value["source"]["table"].as_str().unwrap_or_default();
    let id = record.value["after"]["id"].as_u64();
    (table.to_owned(), id.unwrap_or_default())
}

/// Everything of a purchase stands together, with all its branches, once; and what belongs to one row is in its order.
pub fn assert_whole(records: &[Record], bought: &BTreeSet<u64>) {
    let stream: Vec<&Record> = records.iter().filter(|record| record.op() != "r").collect();
    assert_eq!(topics::repeated(records), Vec::<String>::new());
    let mut seen = BTreeSet::new();
    let together = |a: &&Record, b: &&Record| a.global.is_some() && a.global == b.global;
    for unit in stream.chunk_by(together) {
        let Some((global, branches)) = &unit[0].global else {
            continue;
        };
        assert_eq!(*branches, 2, "{global}");
        let id = global
            .strip_prefix("plain:buy ")
            .or_else(|| global.strip_prefix("marked "))
            .and_then(|id| id.parse().ok());
        let id: u64 = id.unwrap_or_else(|| panic!("{global}"));
        assert!(seen.insert(id), "{global} is in two places");
        // The end of a transaction of Kafka takes an offset: between these there is none.
        let is_one = |pair: &[&Record]| pair[0].offset + 1 == pair[1].offset;
        assert!(
            unit.windows(2).all(is_one),
            "{global} in several transactions"
        );
        let rows = unit.iter().filter(|record| record.op() != "m");
        let mut tables: Vec<String> = rows.map(|record| row(record).0).collect();
        tables.sort();
        assert_eq!(tables, ["orders", "reservations", "stock"], "{global}");
    }
    assert_eq!(&seen, bought);
    // The counters of an article only grow.
    let mut counters: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for record in stream.iter().filter(|record| row(record).0 == "stock") {
        let after = &record.value["after"];
        let number = |name: &str| after[name].as_u64().expect("a number");
        let now = (number("sold"), number("seen"));
        let before = counters.insert(number("id"), now).unwrap_or_default();
        assert_eq!(
            now.0 + now.1,
            before.0 + before.1 + 1,
            "{after} behind {before:?}"
        );
    }
}

/// Whoever reads the transactions alone finds each purchase once, with all that it did, as the topics of the tables have it.
pub fn assert_each_is_one_record(records: &[Record], events: &[Record], bought: &BTreeSet<u64>) {
    let mut written: BTreeMap<(String, String), &Record> = BTreeMap::new();
    for event in events.iter().filter(|event| event.op() != "r") {
        written.insert((event.id.clone(), event.op().to_owned()), event);
    }
    let mut seen = BTreeSet::new();
    for record in records {
        let whole = &record.value;
        assert_eq!(
            (&whole["complete"], &whole["count"]),
            (&true.into(), &2.into()),
            "{whole}"
        );
        assert_eq!(
            record.global.as_ref().map(|(id, _)| &**id),
            whole["id"].as_str()
        );
        assert_eq!(record.key["id"], whole["id"]);
        let (mut tables, mut ids, mut sources) = (Vec::new(), BTreeSet::new(), Vec::new());
        for branch in whole["branches"].as_array().expect("branches") {
            sources.push(branch["source"].as_str().expect("a name").to_owned());
            for event in branch["events"].as_array().expect("events") {
                let value = &event["value"];
                let of = (event["id"].as_str(), value["op"].as_str());
                let of = (
                    of.0.expect("an id").to_owned(),
                    of.1.expect("an op").to_owned(),
                );
                if of.1 == "m" {
                    // Its topic is another one.
                    continue;
                }
                let beside = written[&of];
                assert_eq!((&beside.key, &beside.value), (&event["key"], value));
                let table = value["source"]["table"].as_str().unwrap_or_default();
                tables.push(table.to_owned());
                let is_stock = table == "stock";
                ids.extend(value["after"]["id"].as_u64().filter(|_| !is_stock));
            }
        }
        tables.sort();
        sources.sort();
        assert_eq!(tables, ["orders", "reservations", "stock"], "{whole}");
        assert_eq!(sources, ["inventory", "orders"], "{whole}");
        assert_eq!(ids.len(), 1, "{whole}");
        assert!(ids.iter().all(|id| seen.insert(*id)), "twice: {whole}");
    }
    assert_eq!(&seen, bought);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_leave_every_purchase_whole_once_and_in_order() {
    require!(NeedsKafka);
    require_own!(NeedsPostgres(16), NeedsPostgres(17));
    let mut random = Random::from_environment();
    let shop = Shop::open().await;
    let kafka = Kafka::shared().await;
    let name = unique("stitch");
    let setup = Setup::new(&name, |_| shop.pipeline(&name, kafka.bootstrap()));
    let pipeline = shop.start(&setup).await;
    let mut pipeline = shop.buy_under_kills(&setup, pipeline, &mut random).await;

    // One that has committed in one database, and not in the other, is not seen; nor what may have seen it.
    let last = BUYERS * PURCHASES + 1;
    let prepare = |rows: &str| format!("BEGIN; {rows}; PREPARE TRANSACTION 'buy {last}'");
    let order = prepare(&format!("INSERT INTO orders VALUES ({last})"));
    shop.orders.execute(&order).await;
    let reservation = prepare(&format!(
        "INSERT INTO reservations VALUES ({last}); UPDATE stock SET sold = sold + 1 WHERE id = 1"
    ));
    shop.inventory.execute(&reservation).await;
    let commit = format!("COMMIT PREPARED 'buy {last}'");
    shop.orders.execute(&commit).await;
    shop.orders
        .execute(&format!("INSERT INTO visits VALUES ({last})"))
        .await;
    shop.inventory
        .execute("UPDATE stock SET seen = seen + 1 WHERE id = 2")
        .await;
    let end = end_of_log(&shop.inventory).await;
    pipeline.wait_visible("inventory", &end, CATCH_UP).await;
    let records = topics::read(kafka.bootstrap(), &name).await;
    assert!(
        records.iter().all(|record| row(record).1 != last),
        "too early"
    );
    let waiting = "lockstep_stitch_waiting_transactions{stitch=\"whole\"} 2";
    pipeline
        .until(CATCH_UP, "what waits to be told", async |pipeline| {
            let (_, metrics) = pipeline
                .get("/metrics")
                .await
                .map_err(|error| error.to_string())?;
            metrics.contains(waiting).then_some(()).ok_or(metrics)
        })
        .await;
    shop.inventory.execute(&commit).await;
    shop.caught_up(&mut pipeline).await;
    assert!(pipeline.terminate(CATCH_UP).await.success());

    let records = topics::read(kafka.bootstrap(), &name).await;
    let bought = shop.bought().await;
    assert_whole(&records, &bought);
    let whole = topics::read(kafka.bootstrap(), &format!("{name}.gtx")).await;
    assert_each_is_one_record(&whole, &records, &bought);
    let visits = records.iter().filter(|record| row(record).0 == "visits");
    let visits: BTreeSet<u64> = visits.map(|record| row(record).1).collect();
    let count = shop.orders.value("SELECT count(*) FROM visits").await;
    assert_eq!(Some(visits.len().to_string()), count);
}

/// What is in a cache of the shop at one look: numbers of orders and of reservations, and how much has been sold.
const LOOK: &str = r"
local function ids(pattern)
  local found = {}
  for i, key in ipairs(redis.call('KEYS', pattern)) do found[i] = string.match(key, '%d+$') end
  table.sort(found)
  return table.concat(found, ' ')
end
local sold = 0
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. ':stock:*')) do
  sold = sold + cjson.decode(redis.call('GET', key)).sold
end
return {ids(ARGV[1] .. ':orders:*'), ids(ARGV[1] .. ':reservations:*'), tostring(sold)}";

/// Looks once, and returns the numbers of purchases.
pub async fn look(redis: &Redis, prefix: &str) -> BTreeSet<u64> {
    let reply = redis.command(&["EVAL", LOOK, "0", prefix]).await;
    let Ok(Reply::List(parts)) = reply else {
        panic!("{reply:?}");
    };
    let [
        Reply::Text(orders),
        Reply::Text(reserved),
        Reply::Text(sold),
    ] = parts.as_slice()
    else {
        panic!("{parts:?}");
    };
    assert_eq!(orders, reserved, "orders and reservations");
    let ids = orders.split_whitespace();
    let bought: BTreeSet<u64> = ids.map(|id| id.parse().expect("a number")).collect();
    assert_eq!(*sold, bought.len().to_string(), "what was sold");
    bought
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_has_every_purchase_whole_at_every_look() {
    require!(NeedsRedis);
    require_own!(NeedsPostgres(16), NeedsPostgres(17));
    let mut random = Random::from_environment();
    let shop = Shop::open().await;
    let redis = Redis::shared().await;
    let name = unique("stitch");
    let setup = Setup::new(&name, |_| {
        shop.sources(&name)
            + &format!(
                "[sinks.cache]\ntype = \"redis\"\ninputs = [\"whole\"]\nurl = \"{}\"\nkey = \"{name}:{{table}}:{{key}}\"\n",
                redis.url()
            )
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
    let pipeline = shop.buy_under_kills(&setup, pipeline, &mut random).await;
    done.store(true, Ordering::Release);
    let seen = reader.await.expect("every look finds wholes");
    assert!(seen.len() > 10, "{seen:?}");
    assert!(pipeline.terminate(CATCH_UP).await.success());
    assert_eq!(look(redis, &name).await, shop.bought().await);
}

/// Looks at the indexes of a shop as their documentation says, and returns the numbers of purchases; `None` before there is
/// anything to see.
async fn find(server: &OpenSearch, name: &str) -> Option<BTreeSet<u64>> {
    let ask = async |method, path: String, body: String| {
        let (status, body) = server
            .request(method, &path, &body)
            .await
            .expect("an answer");
        // Not there yet, or an index that is being made.
        assert!([200, 404, 503].contains(&status), "{path}: {body}");
        (status == 200).then(|| serde_json::from_str::<Value>(&body).expect("JSON"))
    };
    let told = format!("/{name}-progress/_doc/visible_epoch:{name}:search");
    let told = ask("GET", told, String::new()).await?;
    let query = json!({"query": told["_source"]["filter"], "size": 10_000}).to_string();
    let [orders, reserved, stock] = ["orders", "reservations", "stock"];
    let path = format!(
        "/{name}-{orders},{name}-{reserved},{name}-{stock}/_search?allow_partial_search_results=false"
    );
    let found = ask("POST", path, query).await?;
    let hits = found["hits"]["hits"].as_array().expect("hits");
    let of = |table: &str| {
        let index = format!("{name}-{table}");
        let ours = hits.iter().filter(move |hit| hit["_index"] == index);
        ours.map(|hit| &hit["_source"])
    };
    let ids = |table| -> BTreeSet<u64> {
        let ids = of(table).map(|row| row["id"].as_u64().expect("a number"));
        ids.collect()
    };
    let bought = ids(orders);
    assert_eq!(bought, ids(reserved), "orders and reservations");
    // One that is being changed is missing.
    if of(stock).count() as u64 == ARTICLES {
        let sold = of(stock).map(|row| row["sold"].as_u64().expect("a number"));
        assert_eq!(sold.sum::<u64>(), bought.len() as u64, "what was sold");
    }
    Some(bought)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_has_every_purchase_whole_at_every_search() {
    require!(NeedsOpenSearch);
    require_own!(NeedsPostgres(16), NeedsPostgres(17));
    let mut random = Random::from_environment();
    let shop = Shop::open().await;
    let server = OpenSearch::shared().await;
    let name = unique("stitch");
    let setup = Setup::new(&name, |_| {
        shop.sources(&name)
            + &format!(
                "[sinks.search]\ntype = \"opensearch\"\ninputs = [\"whole\"]\nurl = \"{}\"\nindex = \"{name}-{{table}}\"\n\
                 progress_index = \"{name}-progress\"\ngtx_epoch = true\nvisible_every = \"50ms\"\n",
                server.url()
            )
    });
    let pipeline = shop.start(&setup).await;
    let done = Arc::new(AtomicBool::new(false));
    let (stop, of) = (Arc::clone(&done), name.clone());
    let reader = tokio::spawn(async move {
        let mut seen = BTreeSet::new();
        while !stop.load(Ordering::Acquire) {
            seen.extend(find(server, &of).await.map(|bought| bought.len()));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        seen
    });
    let pipeline = shop.buy_under_kills(&setup, pipeline, &mut random).await;
    done.store(true, Ordering::Release);
    let seen = reader.await.expect("every search finds wholes");
    assert!(seen.len() > 2, "{seen:?}");
    assert!(pipeline.terminate(CATCH_UP).await.success());
    assert_eq!(find(server, &name).await, Some(shop.bought().await));
}

/// A mistake in where it stands is told with the way out of it.
#[tokio::test]
async fn what_passes_by_a_stitch_is_told() {
    let setup = Setup::new("passes-by", |folder| {
        let section = |of: &str| {
            source("postgres://nobody@127.0.0.1/none", "none", &["t"])
                .replace("sources.shop", &format!("sources.{of}"))
        };
        section("orders")
            + &section("inventory")
            + "[transforms.whole]\ntype = \"stitch\"\ninputs = [\"orders:public.t\", \"inventory\"]\n"
            + &format!(
                "[sinks.files]\ntype = \"file\"\ninputs = [\"whole\", \"inventory\"]\npath = \"{}/all\"\n",
                folder.display()
            )
    });
    let ended = setup.lockstep("check", &["--offline"]).await;
    assert_eq!(ended.code(), Some(2));
    let told = format!("{}{}", ended.stdout, ended.stderr);
    for part in ["reads sources, and all of them", "passes by `whole`"] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

/// Branches that nobody would tell of are told before the start, not missed behind it.
#[tokio::test]
async fn a_stitch_of_sources_that_tell_of_no_branches_is_refused() {
    let check = async |orders: &str, stitch: &str| {
        let setup = Setup::new("no-branches", |folder| {
            let section = |of: &str, more: &str| {
                source("postgres://nobody@127.0.0.1/none", "none", &["t"])
                    .replace("sources.shop", &format!("sources.{of}"))
                    + more
            };
            section("orders", orders)
                + &section("inventory", "two_phase = true\n")
                + "[transforms.whole]\ntype = \"stitch\"\ninputs = [\"orders\", \"inventory\"]\n"
                + stitch
                + &format!(
                    "[sinks.files]\ntype = \"file\"\ninputs = [\"whole\"]\npath = \"{}/all\"\n",
                    folder.display()
                )
        });
        let ended = setup.lockstep("check", &["--offline"]).await;
        (ended.code(), format!("{}{}", ended.stdout, ended.stderr))
    };
    let (code, told) = check("two_phase = true\n", "").await;
    assert_eq!(code, Some(0), "{told}");
    let (code, told) = check("", "one_phase = [\"orders\"]\n").await;
    assert_eq!(code, Some(0), "{told}");
    for (orders, stitch, parts) in [
        (
            "",
            "",
            &[
                "sources.orders.two_phase",
                "set `two_phase = true`",
                "one_phase = [\"orders\"]",
            ][..],
        ),
        ("two_phase = false\n", "", &["sources.orders.two_phase"]),
        (
            "two_phase = true\n",
            "one_phase = [\"order\"]\n",
            &["transforms.whole.one_phase[0]", "did you mean `orders`?"],
        ),
        (
            "",
            "one_phase = [\"orders\", \"inventory\"]\n",
            &["transforms.whole.one_phase", "nothing is prepared"],
        ),
    ] {
        let (code, told) = check(orders, stitch).await;
        assert_eq!(code, Some(2), "{told}");
        assert!(!told.contains("sources.inventory"), "{told}");
        for part in parts {
            assert!(told.contains(part), "{part}: {told}");
        }
    }
}

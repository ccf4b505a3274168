//! A shop with all that a pipeline can have, two processes that are ready to run it, and a Prometheus: every panel has data, and
//! each fault its alert.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::{Pipeline, Setup};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, Postgres as NeedsPostgres, Prometheus as Needs, Redis as NeedsRedis,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::redis::{Redis, RedisOptions, Reply};
use lockstep_kit::{require, require_own, unique};
use tokio::task::JoinHandle;

use crate::faults;
use crate::lab::Lab;

/// What fires here.
pub const FIRED: &[&str] = &[
    "LockstepDeadLetters",
    "LockstepDrift",
    "LockstepInDoubt",
    "LockstepInDoubtRetention",
    "LockstepInvariantNotVerified",
    "LockstepInvariantViolated",
    "LockstepLeaseUnsteady",
    "LockstepNotRunning",
    "LockstepNotVerified",
    "LockstepSinkDown",
    "LockstepSinkFenced",
    "LockstepSinkLag",
    "LockstepSlotRetention",
    "LockstepSourceDown",
    "LockstepSourceLag",
    "LockstepStandbyMissing",
    "LockstepTransactionMixed",
    "LockstepTwoHolders",
];

const ORDERS: &str = "\
    CREATE TABLE orders (id bigint PRIMARY KEY, customer text, status text NOT NULL DEFAULT 'paid');
    CREATE TABLE payments (id bigint PRIMARY KEY, order_id bigint, idempotency_key text, amount numeric);
    CREATE TABLE audit (id bigint PRIMARY KEY, amount numeric);
    CREATE TABLE ballast (note text);
    ALTER TABLE ballast ALTER note SET STORAGE EXTERNAL;
    INSERT INTO orders SELECT n, 'Ada' FROM generate_series(100001, 100500) n;
    INSERT INTO audit VALUES (1, 1)";

const INVENTORY: &str = "\
    CREATE TABLE reservations (id bigint PRIMARY KEY, order_id bigint, sku text);
    CREATE TABLE ballast (note text);
    ALTER TABLE ballast ALTER note SET STORAGE EXTERNAL;
    INSERT INTO reservations SELECT n, n, 'SKU-1' FROM generate_series(100001, 100500) n";

const BALLAST: &str = "INSERT INTO ballast VALUES (repeat('x', 200000))";

/// A branch of a transaction, named as pgjdbc names those of Narayana.
fn gid(number: u32, branch: &str) -> String {
    format!("131077_{number:04}_{branch}")
}

struct Shop {
    orders_server: Postgres,
    inventory_server: Postgres,
    orders: Database,
    inventory: Database,
    leases: Database,
    redis: Redis,
}

impl Shop {
    async fn open() -> Self {
        let server = |major| {
            let options = PostgresOptions::new(major);
            Postgres::start(options.set("max_slot_wal_keep_size", "10GB"))
        };
        let durable = RedisOptions {
            append_only: true,
            ..RedisOptions::default()
        };
        let (orders_server, inventory_server, redis) =
            tokio::join!(server(16), server(17), Redis::start(durable));
        let orders = orders_server.database("orders").await;
        let inventory = inventory_server.database("inventory").await;
        let leases = orders_server.database("leases").await;
        orders.execute(ORDERS).await;
        inventory.execute(INVENTORY).await;
        Shop {
            orders_server,
            inventory_server,
            orders,
            inventory,
            leases,
            redis,
        }
    }

    /// The pipeline file of a process that asks this database for the lease, and has slots with these names.
    fn setup(&self, name: &str, slots: &str, leases: &str, brokers: &str) -> Setup {
        let setup = Setup::new(name, |_| String::new());
        let source = |of: &str, database: &Database, tables: &str| {
            format!(
                "[sources.{of}]\ntype = \"postgres\"\nurl = \"{}\"\nslot = \"{slots}_{of}\"\ntables = {tables}\ntwo_phase = true\nstreaming = \"on\"\n",
                database.url()
            )
        };
        let orders = source(
            "orders",
            &self.orders,
            "[\"public.orders\", \"public.payments\"]",
        );
        let inventory = source("inventory", &self.inventory, "[\"public.reservations\"]");
        let state = setup.state();
        setup.write(&format!(
            r#"name = "{name}"
[admin]
listen = "127.0.0.1:0"
[state]
dir = "{state}"
shared = true
[lease]
type = "postgres"
url = "{leases}"
ttl = "4s"
{orders}{inventory}
[transforms.whole]
type = "stitch"
inputs = ["orders", "inventory"]
[transforms.once]
type = "dedupe"
inputs = ["whole"]
key = ["idempotency_key"]
[sinks.events]
type = "kafka"
inputs = ["once"]
brokers = "{brokers}"
topic = "{name}.{{source}}.{{table}}"
progress_topic = "{name}.progress"
exactly_once = true
properties = {{ "message.max.bytes" = "50000" }}
[sinks.cache]
type = "redis"
inputs = ["once"]
url = "{redis}"
key = "{{source}}:{{table}}:{{key}}"
value = "hash"
[sinks.search]
type = "tantivy"
inputs = ["once"]
path = "{index}"
[transactions]
resolve = ["narayana"]
every = "1s"
safety_interval = "0s"
[reconcile]
every = "1s"
[[reconcile.invariants]]
name = "reservations-have-orders"
rule = "exists_within"
for_each = "inventory"
key = ["order_id"]
within = "1s"
queries = {{ orders = "SELECT id AS order_id FROM orders", inventory = "SELECT order_id, sku FROM reservations" }}
[[reconcile.invariants]]
name = "nothing-below-zero"
rule = "non_negative"
key = ["id"]
queries = {{ orders = "SELECT id, amount FROM audit" }}
"#,
            state = state.display(),
            redis = self.redis.url(),
            index = setup.folder().join("index").display(),
        ));
        setup
    }

    /// Buys ten times a second until it is dropped: each purchase is one two-phase commit, and pays twice with one key.
    async fn buyers(&self) -> Buyers {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = [self.orders.client().await, self.inventory.client().await];
        let stopped = Arc::clone(&stop);
        let buying = tokio::spawn(async move {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                number += 1;
                let work = [
                    format!(
                        "INSERT INTO orders VALUES ({number}, 'Grace'); \
                         INSERT INTO payments VALUES ({number}, {number}, 'key {number}', 1), (-{number}, {number}, 'key {number}', 1); \
                         UPDATE orders SET status = 'shipped' WHERE id = {number} - 3; DELETE FROM payments WHERE id = {number} - 9"
                    ),
                    format!("INSERT INTO reservations VALUES ({number}, {number}, 'SKU-1')"),
                ];
                for (step, (work, branch)) in [
                    ("PREPARE", (&work[0], "AQ==")),
                    ("PREPARE", (&work[1], "Ag==")),
                    ("COMMIT", (&work[0], "AQ==")),
                    ("COMMIT", (&work[1], "Ag==")),
                ] {
                    let client = &clients[usize::from(branch == "Ag==")];
                    let gid = gid(number, branch);
                    let sql = match step {
                        "PREPARE" => format!("BEGIN; {work}; PREPARE TRANSACTION '{gid}'"),
                        _ => format!("COMMIT PREPARED '{gid}'"),
                    };
                    let done = client.batch_execute(&sql).await;
                    done.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Buyers { stop, buying }
    }

    /// Prepares the branches of one more transaction.
    async fn prepare(&self, number: u32) {
        for (database, branch, work) in [
            (
                &self.orders,
                "AQ==",
                format!("INSERT INTO orders VALUES ({number}, 'Alan')"),
            ),
            (
                &self.inventory,
                "Ag==",
                format!("INSERT INTO reservations VALUES ({number}, {number}, 'SKU-2')"),
            ),
        ] {
            let gid = gid(number, branch);
            database
                .execute(&format!("BEGIN; {work}; PREPARE TRANSACTION '{gid}'"))
                .await;
        }
    }

    /// Two hundred kilobytes of log of a table that nobody copies.
    async fn write_log(&self) {
        for database in [&self.orders, &self.inventory] {
            database.execute(BALLAST).await;
        }
    }
}

/// Names a folder into which the dashboards of the healthy pipeline are drawn, of a minute and a half.
const PICTURES_VARIABLE: &str = "LOCKSTEP_TEST_PICTURES";

async fn draw(lab: &Lab) {
    if let Some(folder) = std::env::var_os(PICTURES_VARIABLE) {
        let time = Duration::from_secs(90);
        let begun = SystemTime::now();
        tokio::time::sleep(time).await;
        lab.draw(Path::new(&folder), begun).await;
    }
}

struct Buyers {
    stop: Arc<AtomicBool>,
    buying: JoinHandle<()>,
}

impl Buyers {
    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.buying.await.expect("they have bought");
    }
}

async fn stands_by(pipeline: &mut Pipeline) {
    pipeline
        .until(PATIENCE, "a standby", async |pipeline| {
            match pipeline.get("/readyz").await {
                Ok((200, body)) if body.contains("take over") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
}

async fn runs(pipeline: &mut Pipeline) {
    pipeline
        .until(
            PATIENCE,
            "the pipeline to be run",
            async |pipeline| match pipeline.get("/readyz").await {
                Ok((200, body)) if body == "ready\n" => Ok(()),
                other => Err(format!("{other:?}")),
            },
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_panel_has_data_and_each_fault_its_alert() {
    require!(Needs, NeedsKafka);
    require_own!(NeedsPostgres(16), NeedsPostgres(17), NeedsRedis);
    let (shop, kafka) = tokio::join!(Shop::open(), Kafka::shared());
    let name = unique("shop");
    let setup = shop.setup(&name, &name, shop.leases.url(), kafka.bootstrap());
    let mut lab = Lab::start("shop").await;
    let mut holder = setup.start();
    runs(&mut holder).await;
    for (source, database) in [("orders", &shop.orders), ("inventory", &shop.inventory)] {
        let end = database.value("SELECT pg_current_wal_flush_lsn()").await;
        let end = end.expect("an LSN");
        holder.wait_visible(source, &end, PATIENCE).await;
    }
    let mut standby = setup.start();
    stands_by(&mut standby).await;
    lab.scrape(&mut holder).await;
    lab.scrape(&mut standby).await;
    let buyers = shop.buyers().await;
    lab.fills("a healthy pipeline fills its panels", |expr, wanted| {
        wanted.may_be_empty || faults::is_for(expr)
    })
    .await;
    let empty: Vec<_> = lab.wanted.values().map(|wanted| &wanted.panel).collect();
    println!("empty in a healthy pipeline: {empty:#?}");
    // In a hurry a first comparison of a table may seem late.
    lab.calm().await;
    draw(&lab).await;

    wrong_data(&shop, &mut lab, standby).await;
    in_doubt(&shop, &mut lab, &setup, &mut holder).await;
    buyers.stop().await;
    servers_away(&shop, &mut lab, &mut holder).await;
    let last = takeovers(&mut lab, &setup, holder).await;
    two_writers(&shop, &mut lab, &name, kafka).await;
    last.kill9();
    lab.fire(&[("LockstepNotRunning", "severity", "critical")])
        .await;

    lab.fills("all other panels have had data", |expr, _| {
        faults::is_for(expr)
    })
    .await;
    assert_eq!(lab.fired(), FIRED);
}

/// Copies, databases and rows that are not as they should be, while others go on to buy; and nobody stands by any more.
async fn wrong_data(shop: &Shop, lab: &mut Lab, standby: Pipeline) {
    standby.kill9();
    let ask = async |words: &[&str]| shop.redis.command(words).await.expect("Redis answers");
    let altered = ask(&["HSET", "orders:orders:100001", "customer", "Eve"]).await;
    assert_eq!(altered, Reply::Integer(0), "the row was there");
    // Larger than a record may be.
    shop.orders
        .execute("INSERT INTO orders VALUES (900001, repeat('Ada', 30000))")
        .await;
    shop.inventory
        .execute("INSERT INTO reservations VALUES (900002, 900002, 'SKU-1')")
        .await;
    shop.prepare(9001).await;
    shop.orders
        .execute(&format!("COMMIT PREPARED '{}'", gid(9001, "AQ==")))
        .await;
    shop.inventory
        .execute(&format!("ROLLBACK PREPARED '{}'", gid(9001, "Ag==")))
        .await;
    shop.orders
        .execute("ALTER TABLE audit RENAME amount TO total")
        .await;
    lab.fire(&[
        ("LockstepStandbyMissing", "severity", "warning"),
        ("LockstepDrift", "table", "public.orders"),
        ("LockstepDeadLetters", "place", "sinks.events"),
        (
            "LockstepInvariantViolated",
            "invariant",
            "reservations-have-orders",
        ),
        (
            "LockstepInvariantNotVerified",
            "invariant",
            "nothing-below-zero",
        ),
        ("LockstepTransactionMixed", "stitch", "whole"),
    ])
    .await;
    shop.orders
        .execute("ALTER TABLE audit RENAME total TO amount")
        .await;
}

/// A coordinator that has left both its branches behind, until a person decides.
async fn in_doubt(shop: &Shop, lab: &mut Lab, setup: &Setup, holder: &mut Pipeline) {
    shop.prepare(9002).await;
    shop.write_log().await;
    lab.fire(&[
        ("LockstepInDoubt", "source", "orders"),
        ("LockstepInDoubtRetention", "source", "inventory"),
    ])
    .await;
    let (file, url) = (setup.file().display().to_string(), holder.url().await);
    for branch in ["AQ==", "Ag=="] {
        let gid = gid(9002, branch);
        let words = ["transactions", "resolve", &file, "--apply", "--gid", &gid];
        let words = [&words[..], &["--commit", "--url", &url]].concat();
        let ended = setup.lockstep_with(&words, &[]).await;
        assert_eq!(ended.code(), Some(0), "{ended:?}");
    }
    lab.end(&["LockstepInDoubt", "LockstepInDoubtRetention"])
        .await;
}

/// A sink's server is away, and then a source's.
async fn servers_away(shop: &Shop, lab: &mut Lab, holder: &mut Pipeline) {
    shop.redis.kill();
    shop.orders
        .execute("INSERT INTO orders VALUES (900003, 'Ada')")
        .await;
    shop.write_log().await;
    for _ in 0..3 {
        // Each takes the rest of a segment.
        shop.orders.execute("SELECT pg_switch_wal()").await;
        shop.orders.execute(BALLAST).await;
    }
    lab.fire(&[
        ("LockstepSinkDown", "sink", "cache"),
        ("LockstepSinkLag", "sink", "cache"),
        ("LockstepSourceLag", "source", "orders"),
        ("LockstepSlotRetention", "source", "orders"),
        ("LockstepNotVerified", "sink", "cache"),
    ])
    .await;
    shop.redis.restart().await;
    shop.inventory_server.stop_immediately().await;
    lab.fire(&[("LockstepSourceDown", "source", "inventory")])
        .await;
    shop.inventory_server.restart().await;
    runs(holder).await;
    lab.end(&["LockstepSinkDown", "LockstepSourceDown", "LockstepSinkLag"])
        .await;
}

/// A process of the same name that asks somebody else for the lease.
async fn two_writers(shop: &Shop, lab: &mut Lab, name: &str, kafka: &Kafka) {
    let elsewhere = shop.orders_server.database("elsewhere").await;
    let slots = unique("second");
    let setup = shop.setup(name, &slots, elsewhere.url(), kafka.bootstrap());
    let mut second = setup.start();
    lab.scrape(&mut second).await;
    lab.fire(&[
        ("LockstepTwoHolders", "severity", "critical"),
        ("LockstepSinkFenced", "severity", "critical"),
    ])
    .await;
    let address = second.address().await;
    second.kill9();
    lab.forget(address);
}

/// One process after the other takes over, until the last one.
async fn takeovers(lab: &mut Lab, setup: &Setup, mut first: Pipeline) -> Pipeline {
    let changes = "changes((max by (job, pipeline) (lockstep_lease_token))[60s:1s])";
    for takeover in 1..=2 {
        let mut next = setup.start();
        lab.scrape(&mut next).await;
        let address = first.address().await;
        first.kill9();
        lab.forget(address);
        runs(&mut next).await;
        // A holder that nobody has scraped is none to those who look at it.
        lab.sees(&format!("{changes} >= {takeover}")).await;
        first = next;
    }
    lab.fire(&[("LockstepLeaseUnsteady", "severity", "warning")])
        .await;
    first
}

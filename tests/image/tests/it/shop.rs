//! The stack's pipeline file and the commands of its services, on real servers: only addresses, and names that other tests share, are set
//! from outside.

use std::path::Path;

use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::{Pipeline, Setup};
use lockstep_image::{Stack, image};
use lockstep_kit::Component::{
    Containers, Kafka as NeedsKafka, OpenSearch as NeedsOpenSearch, Postgres as NeedsPostgres,
    Redis as NeedsRedis,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::opensearch::OpenSearch;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::redis::{Redis, RedisOptions};
use lockstep_kit::{require, require_own, unique};
use rustix::process::Signal;

/// Purchases that are waited for.
const PURCHASES: u64 = 15;

/// A smaller shop than the stack's.
const SMALL: [&str; 2] = ["--orders=200", "--products=40"];

/// Services whose processes run here.
struct Shop {
    stack: Stack,
    setup: Setup,
    /// Instead of the addresses that the stack has.
    addresses: Vec<(String, String)>,
}

impl Shop {
    fn new(
        orders: &Database,
        inventory: &Database,
        redis: &Redis,
        kafka: &Kafka,
        search: &OpenSearch,
    ) -> Self {
        let name = unique("stack");
        let setup = Setup::new(&name, |_| String::new());
        let addresses = [
            ("LOCKSTEP_DEMO_ORDERS_URL", orders.url().to_owned()),
            ("LOCKSTEP_DEMO_INVENTORY_URL", inventory.url().to_owned()),
            ("LOCKSTEP__NAME", name.clone()),
            ("LOCKSTEP__ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
            ("LOCKSTEP__STATE__DIR", setup.state().display().to_string()),
            ("LOCKSTEP__SOURCES__ORDERS__URL", orders.url().to_owned()),
            ("LOCKSTEP__SOURCES__ORDERS__SLOT", format!("{name}_orders")),
            (
                "LOCKSTEP__SOURCES__INVENTORY__URL",
                inventory.url().to_owned(),
            ),
            (
                "LOCKSTEP__SOURCES__INVENTORY__SLOT",
                format!("{name}_inventory"),
            ),
            (
                "LOCKSTEP__SINKS__EVENTS__BROKERS",
                kafka.bootstrap().to_owned(),
            ),
            (
                "LOCKSTEP__SINKS__EVENTS__TOPIC",
                format!("{name}.{{source}}.{{schema}}.{{table}}"),
            ),
            ("LOCKSTEP__SINKS__CACHE__URL", redis.url().to_owned()),
            ("LOCKSTEP__SINKS__SEARCH__URL", search.url().to_owned()),
            (
                "LOCKSTEP__SINKS__SEARCH__INDEX",
                format!("{name}-{{source}}-{{table}}"),
            ),
        ];
        let addresses = addresses.map(|(name, value)| (name.to_owned(), value));
        Shop {
            stack: Stack::shipped(),
            setup,
            addresses: addresses.into(),
        }
    }

    /// Starts words in a service's place, with its environment.
    fn start(&self, service: &str, words: &[&str]) -> Pipeline {
        let service = self.stack.service(service);
        let seen: Vec<String> = words
            .iter()
            .map(|word| match service.sees(Path::new(word)) {
                Some(path) => path.display().to_string(),
                None => (*word).to_owned(),
            })
            .collect();
        let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
        let mut environment: Vec<(&str, &str)> = service.environment().into_iter().collect();
        let set = self.addresses.iter();
        environment.extend(set.map(|(name, value)| (&**name, &**value)));
        self.setup.spawn(&seen, &environment)
    }

    /// Starts a service's own command.
    fn service(&self, service: &str, more: &[&str]) -> Pipeline {
        let command = self.stack.service(service).command();
        self.start(service, &[&command, more].concat())
    }
}

async fn count(database: &Database, table: &str) -> u64 {
    let counted = database
        .value(&format!("SELECT count(*) FROM {table}"))
        .await;
    counted.expect("a number").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_shop_and_every_copy_is_equal() {
    require!(
        Containers,
        NeedsPostgres(15),
        NeedsPostgres(17),
        NeedsKafka,
        NeedsOpenSearch
    );
    require_own!(NeedsRedis);
    let (orders, inventory) = tokio::join!(Postgres::shared(15), Postgres::shared(17));
    let (orders, inventory) = (
        orders.database("orders").await,
        inventory.database("inventory").await,
    );
    let redis = Redis::start(RedisOptions::default()).await;
    let (kafka, search) = tokio::join!(Kafka::shared(), OpenSearch::shared());
    let mut shop = Shop::new(&orders, &inventory, &redis, kafka, search);

    for told in [
        "The shop's two databases are filled.",
        "The shop is there already.",
    ] {
        let ended = shop.service("fill", &SMALL).ends().await;
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        assert_eq!(ended.stdout.trim(), told);
    }
    let first = count(&orders, "orders").await;
    assert_eq!(first, 200);

    let mut pipeline = shop.service("lockstep", &[]);
    pipeline.wait_ready().await;
    let url = pipeline.url().await;
    shop.addresses.push(("LOCKSTEP_ADMIN_URL".to_owned(), url));
    let image = image();
    let check = image["Healthcheck"]["Test"].as_array().expect("words");
    let check: Vec<&str> = check
        .iter()
        .skip(2)
        .filter_map(|word| word.as_str())
        .collect();
    let well = shop.start("lockstep", &check).ends().await;
    assert_eq!(well.code(), Some(0), "{well:?}");

    let mut shoppers = shop.service("shoppers", &[]);
    shoppers
        .until(PATIENCE, "purchases", async |_| {
            let more = count(&orders, "orders").await - first;
            (more >= PURCHASES)
                .then_some(())
                .ok_or_else(|| format!("{more} orders"))
        })
        .await;
    shoppers.signal(Signal::TERM);
    let ended = shoppers.ends().await;
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.contains(" purchases, "), "{ended:?}");

    let reconcile = ["reconcile", "/etc/lockstep/shop.toml"];
    let equal = shop.start("lockstep", &reconcile).ends().await;
    assert_eq!(equal.code(), Some(0), "{equal:?}");
    // And a copy that is not is seen.
    let sku = inventory.value("SELECT sku FROM products LIMIT 1").await;
    let key = format!("inventory:products:{}", sku.expect("a product"));
    let set = redis.command(&["SET", &key, "{}"]).await;
    set.unwrap_or_else(|error| panic!("{key}: {error}"));
    let differs = shop.start("lockstep", &reconcile).ends().await;
    assert_eq!(differs.code(), Some(3), "{differs:?}");

    let status = pipeline.terminate(PATIENCE).await;
    assert!(status.success(), "{status}");
    let late = shop.start("lockstep", &check).ends().await;
    assert_eq!(late.code(), Some(1), "{late:?}");
}

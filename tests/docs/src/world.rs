//! The servers that a page's commands meet, and the folder they run in: new for each page.

use std::fs;
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use lockstep_kit::kafka::{Kafka, KafkaOptions};
use lockstep_kit::opensearch::{OpenSearch, OpenSearchOptions, Product};
use lockstep_kit::postgres::{Postgres, PostgresOptions};
use lockstep_kit::redis::{Redis, RedisOptions};
use tempfile::TempDir;

use crate::page::{Block, Page};
use crate::{program, root, shell};

/// What the databases `shop` and `orders` hold, unless a page makes tables of its own.
pub const SHOP: &str = include_str!("shop.sql");

/// The most that a page's commands may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// Folders of the machine, which no command of a page may touch.
const MACHINE: [&str; 5] = ["/etc/", "/usr/", "/var/", "/opt/", "/srv/"];

/// Servers and a folder.
pub struct World {
    folder: TempDir,
    /// What stands on pages, and the same here.
    addresses: Vec<(&'static str, String)>,
    admin: String,
    sql: String,
    psql: String,
    _servers: (
        Postgres,
        Option<Postgres>,
        Option<Redis>,
        Option<Kafka>,
        Option<OpenSearch>,
    ),
}

impl World {
    /// What a page needs: by the addresses that stand on it.
    pub async fn of(page: &Page, runs: fn(&Block) -> bool) -> Self {
        let text: String = page
            .blocks
            .iter()
            .filter(|block| runs(block))
            .map(|block| &*block.text)
            .collect();
        let makes_file = text.contains("lockstep init");
        let asks = |address: &str| text.contains(address);
        let orders = Postgres::start(PostgresOptions::new(15)).await;
        let inventory = match asks(":5433/") || asks("-- in inventory") {
            true => Some(Postgres::start(PostgresOptions::new(17)).await),
            false => None,
        };
        let redis = match asks(":6379") || !makes_file {
            true => Some(Redis::start(RedisOptions::default()).await),
            false => None,
        };
        let kafka = match asks(":9092") {
            true => Some(Kafka::start(KafkaOptions::default()).await),
            false => None,
        };
        let search = match asks(":9200") {
            true => Some(OpenSearch::start(OpenSearchOptions::of(Product::OpenSearch)).await),
            false => None,
        };
        let tables = !text.contains("CREATE TABLE ");
        let of = |server: &Postgres, database: &str| {
            let (url, _) = server
                .url()
                .rsplit_once('/')
                .expect("a URL with a database");
            format!("{url}/{database}")
        };
        for (server, database, sql) in [
            (Some(&orders), "shop", SHOP),
            (Some(&orders), "orders", SHOP),
            (
                inventory.as_ref(),
                "inventory",
                include_str!("inventory.sql"),
            ),
        ] {
            let Some(server) = server else { continue };
            server.execute(&format!("CREATE DATABASE {database}")).await;
            if tables {
                psql(server, &of(server, database), sql);
            }
        }
        let mut addresses = vec![
            ("postgres://shop@127.0.0.1:5432/shop", of(&orders, "shop")),
            (
                "postgres://shop@127.0.0.1:5432/orders",
                of(&orders, "orders"),
            ),
            (
                "postgres://lockstep@127.0.0.1:5432/shop",
                of(&orders, "shop"),
            ),
            (
                "postgres://lockstep@127.0.0.1:5432/orders",
                of(&orders, "orders"),
            ),
        ];
        if let Some(inventory) = &inventory {
            for there in [
                "postgres://shop@127.0.0.1:5433/inventory",
                "postgres://lockstep@127.0.0.1:5433/inventory",
            ] {
                addresses.push((there, of(inventory, "inventory")));
            }
        }
        addresses.extend(
            redis
                .as_ref()
                .map(|redis| ("127.0.0.1:6379", redis.address().to_owned())),
        );
        addresses.extend(
            kafka
                .as_ref()
                .map(|kafka| ("127.0.0.1:9092", kafka.bootstrap().to_owned())),
        );
        let search_address = search.as_ref().map(|search| {
            search
                .url()
                .trim_start_matches("http://")
                .trim_end_matches('/')
                .to_owned()
        });
        addresses.extend(search_address.map(|address| ("127.0.0.1:9200", address)));
        let admin = free_address();
        addresses.push(("127.0.0.1:9187", admin.clone()));
        // Words that stand for what a reader has.
        addresses.push((" FILE", " shop.toml".to_owned()));
        addresses.push(("search PATH QUERY", "search index A-1".to_owned()));
        let world = World {
            sql: of(
                &orders,
                if text.contains("5432/shop") {
                    "shop"
                } else {
                    "orders"
                },
            ),
            psql: orders.bin_dir().join("psql").display().to_string(),
            folder: tempfile::tempdir().expect("a folder"),
            addresses,
            admin,
            _servers: (orders, inventory, redis, kafka, search),
        };
        if !makes_file {
            let file = world.here(include_str!("shop.toml"));
            fs::write(world.folder.path().join("shop.toml"), file).expect("written");
        }
        let rules = root().join("deploy/prometheus/rules.yaml");
        fs::copy(rules, world.folder.path().join("rules.yaml")).expect("the rules");
        world
    }

    /// A text of a page with the addresses that are here.
    fn here(&self, text: &str) -> String {
        self.addresses
            .iter()
            .fold(text.to_owned(), |text, (there, here)| {
                text.replace(there, here)
            })
    }

    /// A text whose paths of the machine are in the folder instead, with folders for them.
    fn away(&self, text: &str) -> String {
        let folder = self.folder.path();
        let of_the_machine = |word: &str| MACHINE.iter().any(|begin| word.starts_with(begin));
        let mut words: Vec<&str> = text.split([' ', '\n', '"', '\'', '=']).collect();
        words.retain(|word| of_the_machine(word));
        words.sort_unstable_by_key(|word| std::cmp::Reverse(word.len()));
        words.dedup();
        words.iter().fold(text.to_owned(), |text, word| {
            let there = folder.join(word.trim_start_matches('/'));
            fs::create_dir_all(there.parent().unwrap_or(folder)).expect("a folder");
            text.replace(&format!(" {word}"), &format!(" {}", there.display()))
        })
    }

    fn address(&self, there: &str) -> &str {
        let found = self.addresses.iter().find(|(one, _)| *one == there);
        found.map_or("", |(_, here)| here)
    }

    /// Runs a page's commands.
    ///
    /// # Errors
    /// What they have said, when one of them failed.
    pub async fn run(&self, page: &Page, runs: fn(&Block) -> bool) -> Result<(), String> {
        let folder = self.folder.path();
        let script = self.away(&self.here(&shell::program(page, runs)));
        let path = folder.join("page.sh");
        fs::write(&path, script).expect("written");
        let log = fs::File::create(folder.join("page.log")).expect("a file");
        let mut child = tokio::process::Command::new("bash")
            .arg(&path)
            .current_dir(folder)
            .env("LOCKSTEP", program())
            .env("PSQL", &self.psql)
            .env("SQL_URL", &self.sql)
            .env(
                "SHOP_URL",
                self.address("postgres://shop@127.0.0.1:5432/shop"),
            )
            .env(
                "ORDERS_URL",
                self.address("postgres://shop@127.0.0.1:5432/orders"),
            )
            .env(
                "INVENTORY_URL",
                self.address("postgres://shop@127.0.0.1:5433/inventory"),
            )
            .env("LOCKSTEP_ADMIN_URL", format!("http://{}", self.admin))
            .env("LOCKSTEP__ADMIN__LISTEN", &self.admin)
            .env("HOME", folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("bash");
        let ended = tokio::time::timeout(DEADLINE, child.wait()).await;
        let said = fs::read_to_string(folder.join("page.log")).unwrap_or_default();
        match ended {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(_) => Err(said),
            Err(_) => Err(format!(
                "{said}\n{}: not ended after {DEADLINE:?}",
                page.name
            )),
        }
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

fn psql(server: &Postgres, url: &str, sql: &str) {
    let output = std::process::Command::new(server.bin_dir().join("psql"))
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql, url])
        .output()
        .expect("psql");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

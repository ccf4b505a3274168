//! The guide of `docs/two-phase-commit.md` does what it says: its blocks are run from the page itself.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use lockstep_kit::Component::{Managers as NeedsManagers, Postgres as Needs};
use lockstep_kit::managers;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_transactions::coordinator::{Coordinator, Direct};
use lockstep_transactions::gid::Xid;
use tokio_postgres::NoTls;

use crate::support::{DEADLINE, gids};

const PAGE: &str = include_str!("../../../docs/two-phase-commit.md");

/// The blocks of a language between two headings.
fn blocks(language: &str, from: &str, to: &str) -> Vec<&'static str> {
    let section = PAGE.split(from).nth(1).expect(from);
    let section = section.split(to).next().expect(to);
    let fence = format!("```{language}\n");
    let blocks = section.split(&*fence).skip(1);
    blocks
        .map(|rest| rest.split("```").next().unwrap_or_default())
        .collect()
}

struct Shop {
    orders: Database,
    inventory: Database,
}

impl Shop {
    async fn open() -> Self {
        let shop = Shop {
            orders: Postgres::shared(15).await.database("orders").await,
            inventory: Postgres::shared(17).await.database("inventory").await,
        };
        let tables = blocks("sql", "## Buy across two databases", "### With Rust");
        assert_eq!(tables.len(), 2);
        shop.run(&tables).await;
        shop
    }

    /// Each in the database that its first line names.
    async fn run(&self, blocks: &[&str]) {
        for block in blocks {
            let (place, sql) = block.split_once('\n').expect("a line");
            match place {
                "-- in orders" => self.orders.execute(sql).await,
                "-- in inventory" => self.inventory.execute(sql).await,
                other => panic!("{other}"),
            }
        }
    }

    /// Orders, and what is left in stock.
    async fn holds(&self) -> (String, String) {
        let orders = self.orders.value("SELECT count(*) FROM orders").await;
        let free = self.inventory.value("SELECT free FROM stock").await;
        (orders.expect("a count"), free.expect("a number"))
    }

    /// What the table of decisions says.
    async fn decided(&self, gid: &str) -> String {
        let ask = format!("SELECT committed::text FROM decided WHERE gid = '{gid}'");
        self.orders.value(&ask).await.expect("a decision")
    }

    /// What a process that was killed has left in `inventory`.
    async fn left(&self, xid: &Xid, work: &str) {
        let prepare = format!("BEGIN; {work}; PREPARE TRANSACTION '{xid}'");
        self.inventory.execute(&prepare).await;
    }

    /// That one order has come, and nothing is prepared any more.
    async fn has_sold_one(&self) {
        assert_eq!(self.holds().await, holds("1", "9"));
        let last = self.inventory.value("SELECT last_order FROM stock").await;
        assert_eq!(last.as_deref(), Some("1"));
        for database in [&self.orders, &self.inventory] {
            assert_eq!(gids(database).await, Vec::<String>::new());
        }
    }
}

fn holds(orders: &str, free: &str) -> (String, String) {
    (orders.to_owned(), free.to_owned())
}

type Any = Box<dyn std::error::Error>;

async fn buy(
    orders_url: &str,
    inventory_url: &str,
) -> Result<lockstep_transactions::coordinator::Committed, Any> {
    // The block of the page:
    let coordinator = Coordinator::builder("shop-1")
        .database("orders", Direct::new(orders_url.parse()?, NoTls))
        .database("inventory", Direct::new(inventory_url.parse()?, NoTls))
        .log("orders")
        .open()
        .await?;

    let purchase = coordinator.begin(["orders", "inventory"]).await?;
    let [orders, inventory] = purchase.branches();
    let order = orders
        .query_one("INSERT INTO orders (sku) VALUES ('A-1') RETURNING id", &[])
        .await?;
    let id: i64 = order.get("id");
    inventory
        .execute(
            "UPDATE stock SET free = free - 1, last_order = $1 WHERE sku = 'A-1'",
            &[&id],
        )
        .await?;
    let committed = purchase.commit().await?;
    // Its end.
    Ok(committed)
}

#[tokio::test]
async fn with_rust() {
    let here = include_str!("guide.rs");
    let code = here
        .split("    // The block of the page:\n")
        .nth(1)
        .expect("the block");
    let code = code.split("    // Its end.").next().expect("its end");
    let code: Vec<&str> = code
        .lines()
        .map(|line| line.strip_prefix("    ").unwrap_or(line))
        .collect();
    let page = blocks("rust", "### With Rust", "### With Java");
    assert_eq!(page.len(), 1);
    assert_eq!(
        page[0].lines().collect::<Vec<_>>(),
        code,
        "the page has what is run here"
    );
    lockstep_kit::require!(Needs(15), Needs(17));
    let shop = Shop::open().await;
    let bought = buy(shop.orders.url(), shop.inventory.url())
        .await
        .expect("buys");
    assert!(bought.is_everywhere());
    shop.has_sold_one().await;
}

/// Writes the only block of a section into a file, and runs the command with it and these URLs.
async fn run_page(mut command: Command, code: &[&str], file: &str, urls: [&str; 2]) {
    assert_eq!(code.len(), 1);
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join(file), code[0]).expect("a file");
    command.arg(file).args(urls).current_dir(folder.path());
    let mut command = tokio::process::Command::from(command);
    let ended = command.kill_on_drop(true).output();
    let ended = tokio::time::timeout(DEADLINE, ended).await;
    let ended = ended.expect("it ends in time").expect("it starts");
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{}: {told}", ended.status);
}

/// Bytes that no other run has.
fn drawn() -> [u8; 8] {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = since.expect("a time").as_nanos() as u64;
    nanos.to_be_bytes()
}

#[tokio::test]
async fn with_java() {
    lockstep_kit::require!(Needs(15), Needs(17), NeedsManagers);
    let shop = Shop::open().await;
    // Undecided, and in the way of what is bought: an id as Narayana draws it, with the name of its node behind.
    let id = [&[0xff; 20][..], &drawn()].concat();
    let left = Xid {
        format: 131_077,
        global: [&id, &b"shop-1"[..]].concat(),
        branch: [&id, &[0; 8][..]].concat(),
    };
    shop.left(&left, "UPDATE stock SET free = 0").await;
    let code = blocks("java", "### With Java", "### With plain SQL");
    let mut java = managers::java();
    // It would look for twenty seconds.
    java.arg("-DRecoveryEnvironmentBean.recoveryBackoffPeriod=1")
        .arg("-DJTAEnvironmentBean.orphanSafetyInterval=1");
    let urls = [&shop.orders, &shop.inventory].map(|database| managers::jdbc(database.url()));
    run_page(java, &code, "Buy.java", urls.each_ref().map(String::as_str)).await;
    shop.has_sold_one().await;
}

#[tokio::test]
async fn with_python() {
    lockstep_kit::require!(Needs(15), Needs(17), NeedsManagers);
    let shop = Shop::open().await;
    let sql = blocks("sql", "### With plain SQL", "### With Python");
    shop.run(&sql[..1]).await;
    // One undecided, in the way of what is bought, and one decided.
    let left = |word: &str| Xid {
        format: 5250,
        global: format!("shop-1/{word}-{:x}", u64::from_be_bytes(drawn())).into_bytes(),
        branch: b"inventory".to_vec(),
    };
    shop.left(&left("undecided"), "UPDATE stock SET free = 0")
        .await;
    shop.inventory
        .execute("CREATE TABLE notes (note text)")
        .await;
    let decided = left("decided");
    shop.left(&decided, "INSERT INTO notes VALUES ('decided')")
        .await;
    let gid = String::from_utf8(decided.global).expect("a text");
    let decide = format!("INSERT INTO decided (gid, committed) VALUES ('{gid}', true)");
    shop.orders.execute(&decide).await;
    let code = blocks("python", "### With Python", "## What is left behind");
    let urls = [shop.orders.url(), shop.inventory.url()];
    run_page(managers::python(), &code, "buy.py", urls).await;
    shop.has_sold_one().await;
    let notes = shop.inventory.value("SELECT count(*) FROM notes").await;
    assert_eq!(notes.as_deref(), Some("1"));
}

#[tokio::test]
async fn with_plain_sql() {
    lockstep_kit::require!(Needs(15), Needs(17));
    let shop = Shop::open().await;
    let all = blocks("sql", "### With plain SQL", "### With Python");
    let [log, prepare, decide, commit, left, take] = all[..] else {
        panic!("{all:?}");
    };
    // On servers that others use, too.
    let own = shop.inventory.name();
    let unique = |block: &str| block.replace("purchase-", &format!("{own}-"));
    let [prepare, decide, commit, take] = [prepare, decide, commit, take].map(unique);
    shop.run(&[log, &prepare]).await;
    assert_eq!(gids(&shop.inventory).await, [format!("{own}-17")]);
    shop.run(&[left, &decide, &commit]).await;
    assert!(gids(&shop.inventory).await.is_empty());
    assert_eq!(shop.holds().await, holds("1", "9"));
    // One that nobody has decided, when somebody recovers; and again, since that one may have crashed.
    shop.run(&[&prepare.replace("-17", "-18"), &take, &take])
        .await;
    assert_eq!(shop.decided(&format!("{own}-18")).await, "false");
    // The one that was decided stays so.
    shop.run(&[&take.replace("-18", "-17")]).await;
    assert_eq!(shop.decided(&format!("{own}-17")).await, "true");
    let late = shop.orders.client().await;
    let late = late.batch_execute(&decide.replace("-17", "-18")).await;
    let error = late.expect_err("it is too late");
    assert_eq!(error.code().map(|code| code.code()), Some("23505"));
    let roll_back = format!("ROLLBACK PREPARED '{own}-18'");
    shop.inventory.execute(&roll_back).await;
    assert_eq!(shop.holds().await, holds("1", "9"));
}

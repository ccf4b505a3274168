//! The guide of `docs/two-phase-commit.md` does what it says: its blocks are run from the page itself.

use lockstep_kit::Component::Postgres as Needs;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_transactions::coordinator::{Coordinator, Direct};
use tokio_postgres::NoTls;

use crate::support::gids;

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
    let page = blocks("rust", "### With Rust", "### With plain SQL");
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
    assert_eq!(shop.holds().await, holds("1", "9"));
    let last = shop.inventory.value("SELECT last_order FROM stock").await;
    assert_eq!(last.as_deref(), Some("1"));
}

#[tokio::test]
async fn with_plain_sql() {
    lockstep_kit::require!(Needs(15), Needs(17));
    let shop = Shop::open().await;
    let all = blocks("sql", "### With plain SQL", "## What is left behind");
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
    // One that nobody has decided, when somebody recovers.
    shop.run(&[&prepare.replace("-17", "-18"), &take]).await;
    let late = shop.orders.client().await;
    let late = late.batch_execute(&decide.replace("-17", "-18")).await;
    let error = late.expect_err("it is too late");
    assert_eq!(error.code().map(|code| code.code()), Some("23505"));
    let roll_back = format!("ROLLBACK PREPARED '{own}-18'");
    shop.inventory.execute(&roll_back).await;
    assert_eq!(shop.holds().await, holds("1", "9"));
}

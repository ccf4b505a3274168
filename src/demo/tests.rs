//! The shop on a real PostgreSQL.

use std::time::Duration;

use lockstep_kit::Component;
use lockstep_kit::postgres::{Database, Postgres};
use tokio_postgres::Client;

use super::load::{Event, Import, Load, LoadOptions, LoadReport, Rate, Table};
use super::shop::{INVENTORY_TABLES, ORDERS_TABLES, Shop, ShopOptions};

mod compare;

pub(super) const MAJOR: u16 = 15;

const SMALL: ShopOptions = ShopOptions {
    customers: 50,
    products: 60,
    orders: 300,
    seed: 7,
};

pub(super) struct Databases {
    pub(super) orders: Database,
    pub(super) inventory: Database,
}

pub(super) async fn databases() -> Databases {
    let server = Postgres::shared(MAJOR).await;
    Databases {
        orders: server.database("shop_orders").await,
        inventory: server.database("shop_inventory").await,
    }
}

pub(super) async fn small_shop(databases: &Databases) -> Shop {
    Shop::create(databases.orders.url(), databases.inventory.url(), SMALL)
        .await
        .expect("the shop is made")
}

async fn number(client: &Client, sql: &str) -> i64 {
    let row = client.query_one(sql, &[]).await;
    row.unwrap_or_else(|error| panic!("{error:?} in {sql}"))
        .get(0)
}

/// The promises of the two SQL files and of the load.
async fn assert_consistent(databases: &Databases) {
    let orders = databases.orders.client().await;
    let inventory = databases.inventory.client().await;
    let stock_off = "SELECT count(*) FROM stock s
        LEFT JOIN (SELECT sku, warehouse, sum(on_hand_delta) h, sum(reserved_delta) r FROM stock_movements GROUP BY 1, 2) m
            USING (sku, warehouse)
        LEFT JOIN (SELECT sku, warehouse, sum(quantity) q FROM reservations WHERE state = 'held' GROUP BY 1, 2) r
            USING (sku, warehouse)
        WHERE s.on_hand <> m.h OR s.reserved <> m.r OR s.reserved <> coalesce(r.q, 0)";
    assert_eq!(
        number(&inventory, stock_off).await,
        0,
        "stock that is not the sum of its movements"
    );
    let incomplete = "SELECT count(*) FROM orders o WHERE status = 'pending'
        OR NOT EXISTS (SELECT FROM order_items i WHERE i.order_id = o.id)
        OR NOT EXISTS (SELECT FROM payments p WHERE p.order_id = o.id)";
    assert_eq!(
        number(&orders, incomplete).await,
        0,
        "orders without items or payment"
    );
    let touched = "SELECT count(*) FROM payments p WHERE status <> 'captured'
        AND 1 < (SELECT count(*) FROM payments d WHERE d.idempotency_key = p.idempotency_key)";
    assert_eq!(
        number(&orders, touched).await,
        0,
        "payments sent twice and then changed"
    );
    // An order holds reservations exactly while its goods are under way, in the other database.
    let ids = |sql: &'static str, client: Client| async move {
        let rows = client.query(sql, &[]).await.expect("ids");
        rows.iter()
            .map(|row| row.get::<_, String>(0))
            .collect::<Vec<_>>()
    };
    let under_way =
        "SELECT id::text FROM orders WHERE status IN ('paid', 'packed', 'shipped') ORDER BY 1";
    let reserved = "SELECT DISTINCT order_id::text FROM reservations ORDER BY 1";
    assert_eq!(ids(under_way, orders).await, ids(reserved, inventory).await);
}

async fn shop_for_a_while(shop: &Shop, changed_before: bool) -> LoadReport {
    let options = LoadOptions {
        rate: Rate::Unlimited,
        connections: 3,
        duration: None,
        import: Some(Import {
            after: Duration::ZERO,
            rows: 2_000,
        }),
        schema_change: Some(Duration::ZERO),
        seed: 1,
    };
    let load = Load::start(shop, options).await.expect("the load starts");
    let all_kinds = || {
        let counts = load.counts();
        let mut missing: Vec<_> = Event::ALL
            .iter()
            .filter(|&&event| counts.event(event) == 0)
            .collect();
        missing.retain(|&&event| event != Event::SchemaChange || !changed_before);
        let rare_enough =
            counts.event(Event::RetriedRefund) >= 2 && counts.event(Event::Purchase) >= 200;
        if missing.is_empty() && rare_enough {
            Ok(())
        } else {
            Err(format!("{missing:?} of {counts:?}"))
        }
    };
    lockstep_kit::wait_for(
        Duration::from_secs(120),
        "every kind of event",
        async || all_kinds(),
    )
    .await;
    load.stop().await.expect("the load ends in order")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_does_everything_and_leaves_consistent_data() {
    lockstep_kit::require!(Component::Postgres(MAJOR));
    let databases = databases().await;
    let shop = small_shop(&databases).await;
    assert_consistent(&databases).await;
    let before = rows_per_table(&databases).await;

    let report = shop_for_a_while(&shop, false).await;
    assert_consistent(&databases).await;
    let counts = &report.counts;
    // What it says it did is what the tables show.
    for ((&table, before), after) in
        std::iter::zip(Table::ALL, &before).zip(rows_per_table(&databases).await)
    {
        let changes = counts.table(table);
        let expected = before + changes.inserts as i64 - changes.deletes as i64;
        assert_eq!(after, expected, "{}: {changes:?}", table.as_str());
    }
    assert_eq!(counts.event(Event::ImportedRow), 2_000);
    let of_both = [
        Event::Purchase,
        Event::Shipped,
        Event::Delivered,
        Event::Cancelled,
    ];
    assert_eq!(
        report.both.committed,
        of_both.map(|event| counts.event(event)).iter().sum::<u64>(),
        "what changes both databases is one transaction"
    );
    assert!(counts.table(Table::Products).updates > 0);
    let orders = databases.orders.client().await;
    let copies = "SELECT count(*) - count(DISTINCT idempotency_key) FROM payments";
    assert_eq!(
        number(&orders, copies).await as u64,
        counts.event(Event::RetriedPayment)
    );
    let copies = "SELECT count(*) - count(DISTINCT idempotency_key) FROM refunds";
    assert_eq!(
        number(&orders, copies).await as u64,
        counts.event(Event::RetriedRefund)
    );
    assert!(
        number(&orders, "SELECT count(gift_note) FROM orders").await > 0,
        "gift notes are written"
    );
    let toasted = "SELECT count(*) FROM carts WHERE pg_column_size(note) > 2500";
    assert!(
        number(&orders, toasted).await > 0,
        "some notes are too long for their row"
    );
    assert!(report.orders_end > lockstep_core::position::Lsn::ZERO);

    // A second load on the same shop finds its way: no key is made twice, no order is shipped twice.
    let again = Shop::open(
        databases.orders.url(),
        databases.inventory.url(),
        SMALL.customers,
    )
    .await;
    shop_for_a_while(&again.expect("the shop is open"), true).await;
    assert_consistent(&databases).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_keeps_its_rate_and_its_duration() {
    lockstep_kit::require!(Component::Postgres(MAJOR));
    let databases = databases().await;
    let shop = small_shop(&databases).await;
    let options = LoadOptions {
        rate: Rate::Changes(600.0),
        connections: 2,
        duration: Some(Duration::from_secs(3)),
        ..LoadOptions::default()
    };
    let load = Load::start(&shop, options).await.expect("the load starts");
    load.finished().await;
    let report = load.stop().await.expect("the load ends in order");
    let per_second = report.counts.changes() as f64 / report.elapsed.as_secs_f64();
    assert!(
        (400.0..720.0).contains(&per_second),
        "{per_second} changes a second"
    );
}

#[tokio::test]
async fn the_same_seed_fills_the_same_shop() {
    lockstep_kit::require!(Component::Postgres(MAJOR));
    let digest = async |databases: &Databases| {
        let client = databases.orders.client().await;
        let sql = "SELECT md5(string_agg(md5(o::text), '' ORDER BY id)) FROM orders o";
        client
            .query_one(sql, &[])
            .await
            .expect("digest")
            .get::<_, String>(0)
    };
    let (one, other) = (databases().await, databases().await);
    small_shop(&one).await;
    small_shop(&other).await;
    assert_eq!(digest(&one).await, digest(&other).await);
}

#[tokio::test]
async fn a_database_that_is_not_empty_is_left_alone() {
    lockstep_kit::require!(Component::Postgres(MAJOR));
    let databases = databases().await;
    databases
        .orders
        .execute("CREATE TABLE payments (mine int)")
        .await;
    let made = Shop::create(databases.orders.url(), databases.inventory.url(), SMALL).await;
    let error = made.expect_err("it is not empty").to_string();
    assert!(
        error.contains("already exists") && error.contains("database of its own"),
        "{error}"
    );
    let client = databases.orders.client().await;
    assert_eq!(
        number(
            &client,
            "SELECT count(*) FROM pg_class WHERE relname = 'orders'"
        )
        .await,
        0
    );
}

#[tokio::test]
async fn a_missing_database_is_created() {
    lockstep_kit::require!(Component::Postgres(MAJOR));
    let server = Postgres::shared(MAJOR).await;
    let databases = databases().await;
    let name = lockstep_kit::unique("shop_new");
    let url = databases
        .orders
        .url()
        .replace(databases.orders.name(), &name);
    Shop::create(&url, databases.inventory.url(), SMALL)
        .await
        .expect("the shop is made");
    server
        .execute(&format!("DROP DATABASE {name} WITH (FORCE)"))
        .await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let url = "postgres://someone:secret@127.0.0.1:1/orders";
    let error = Shop::open(url, url, 1)
        .await
        .expect_err("nobody listens")
        .to_string();
    assert!(error.contains("127.0.0.1:1/orders"), "{error}");
    assert!(!error.contains("secret"), "{error}");
}

/// In the order of [`Table::ALL`].
async fn rows_per_table(databases: &Databases) -> Vec<i64> {
    let orders = databases.orders.client().await;
    let inventory = databases.inventory.client().await;
    let mut rows = Vec::new();
    for (client, tables) in [(&orders, ORDERS_TABLES), (&inventory, INVENTORY_TABLES)] {
        for table in tables {
            rows.push(number(client, &format!("SELECT count(*) FROM {table}")).await);
        }
    }
    rows
}

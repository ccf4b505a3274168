//! The shop's two databases: made, filled, opened.

use std::iter;

use lockstep_core::config::Secret;
use lockstep_core::error::At as _;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_transactions::coordinator::{Coordinator, Direct};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

use super::goods::{self, WAREHOUSES};
use super::random::{Random, Uuid};
use super::rows::{Row, Rows, copy, failed, text};

/// Tables of the orders database, parents first.
pub const ORDERS_TABLES: &[&str] = &["carts", "orders", "order_items", "payments", "refunds"];
/// Tables of the inventory database, parents first.
pub const INVENTORY_TABLES: &[&str] = &["products", "stock", "reservations", "stock_movements"];

/// Enough to see faces again, few enough that a customer buys more than once.
pub const DEFAULT_CUSTOMERS: u64 = 5_000;
/// A shop of middling size.
pub const DEFAULT_PRODUCTS: u64 = 2_000;
/// With items, payments and reservations about 100,000 rows: an initial copy that one can watch.
pub const DEFAULT_ORDERS: u64 = 20_000;

/// Units of each product in each warehouse on the first day. Sales may go below zero: this shop sells on order.
const FIRST_STOCK: u64 = 500;

/// How big the shop is on its first day.
#[derive(Clone, Copy, Debug)]
pub struct ShopOptions {
    /// Customers, who have no table of their own.
    pub customers: u64,
    /// Products on sale. At least 1.
    pub products: u64,
    /// Orders of the past, of which one in seven is still to be shipped.
    pub orders: u64,
    /// The same seed fills the shop with the same rows.
    pub seed: u64,
}

impl Default for ShopOptions {
    fn default() -> Self {
        ShopOptions {
            customers: DEFAULT_CUSTOMERS,
            products: DEFAULT_PRODUCTS,
            orders: DEFAULT_ORDERS,
            seed: 1,
        }
    }
}

/// A shop that is there.
#[derive(Clone, Debug)]
pub struct Shop {
    orders_url: Secret,
    inventory_url: Secret,
    pub(super) customers: u64,
    pub(super) products: u64,
}

impl Shop {
    /// Makes the tables and fills them by `COPY`. A database that does not exist is created; one that holds any of the
    /// shop's tables is left alone.
    ///
    /// # Errors
    /// `Config` for options or a URL that make no sense, `Setup` when the tables are there already, and whatever the
    /// servers report.
    pub async fn create(
        orders_url: &str,
        inventory_url: &str,
        options: ShopOptions,
    ) -> Result<Self> {
        if options.products == 0 || options.customers == 0 {
            return Err(Error::new(
                ErrorKind::Config,
                "a shop needs at least one product and one customer",
            ));
        }
        let shop = Shop {
            orders_url: Secret::new(orders_url),
            inventory_url: Secret::new(inventory_url),
            customers: options.customers,
            products: options.products,
        };
        let past = Past::of(options);
        for url in [&shop.orders_url, &shop.inventory_url] {
            ensure_database(url).await?;
        }
        tokio::try_join!(
            async {
                let client = shop.orders_client().await?;
                make(&client, include_str!("sql/orders.sql")).await?;
                past.fill_orders(&client).await?;
                settle(&client).await
            },
            async {
                let client = shop.inventory_client().await?;
                make(&client, include_str!("sql/inventory.sql")).await?;
                past.fill_inventory(&client).await?;
                settle(&client).await
            },
        )?;
        Ok(shop)
    }

    /// Whether both databases hold the shop's tables. A database that does not exist is created.
    ///
    /// # Errors
    /// When a database cannot be reached.
    pub async fn is_made(orders_url: &str, inventory_url: &str) -> Result<bool> {
        let mut made = true;
        for (url, tables) in [
            (orders_url, ORDERS_TABLES),
            (inventory_url, INVENTORY_TABLES),
        ] {
            let url = Secret::new(url);
            ensure_database(&url).await?;
            let sql = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tablename = ANY($1)";
            let counted = connect(&url).await?.query_one(sql, &[&tables]).await;
            let counted: i64 = counted
                .map_err(|error| failed("looking for the shop's tables", error))?
                .get(0);
            made &= counted.unsigned_abs() == tables.len() as u64;
        }
        Ok(made)
    }

    /// A shop that [`Shop::create`] made earlier, in this process or another.
    ///
    /// # Errors
    /// When the databases cannot be reached or hold no shop.
    pub async fn open(orders_url: &str, inventory_url: &str, customers: u64) -> Result<Self> {
        let mut shop = Shop {
            orders_url: Secret::new(orders_url),
            inventory_url: Secret::new(inventory_url),
            customers: customers.max(1),
            products: 0,
        };
        let count = "SELECT count(*) FROM products WHERE sku LIKE 'SKU-%'";
        let row = shop.inventory_client().await?.query_one(count, &[]).await;
        let products: i64 = row
            .map_err(|error| failed("counting the products", error))?
            .get(0);
        shop.products = products.unsigned_abs();
        if shop.products == 0 {
            return Err(Error::new(
                ErrorKind::Setup,
                "the inventory database holds no shop",
            ));
        }
        Ok(shop)
    }

    /// A new connection to the orders database.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn orders_client(&self) -> Result<Client> {
        connect(&self.orders_url).await.at("orders database")
    }

    /// A new connection to the inventory database.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn inventory_client(&self) -> Result<Client> {
        connect(&self.inventory_url).await.at("inventory database")
    }

    /// Who commits purchases in both databases. The decisions are in the orders database, which is so not prepared.
    ///
    /// # Errors
    /// When a database cannot be had, or the inventory's does not prepare transactions.
    pub async fn coordinator(&self) -> Result<Coordinator> {
        let direct = |url: &Secret| Ok::<_, Error>(Direct::new(config(url)?, NoTls));
        Coordinator::builder("demo")
            .database("orders", direct(&self.orders_url)?)
            .database("inventory", direct(&self.inventory_url)?)
            .log("orders")
            .open()
            .await
    }

    /// URL of the orders database.
    #[must_use]
    pub fn orders_url(&self) -> &Secret {
        &self.orders_url
    }

    /// URL of the inventory database.
    #[must_use]
    pub fn inventory_url(&self) -> &Secret {
        &self.inventory_url
    }
}

fn config(url: &Secret) -> Result<Config> {
    url.reveal()
        .parse()
        .map_err(|error: tokio_postgres::Error| {
            Error::new(ErrorKind::Config, "this is not the URL of a database")
                .source(error)
                .remedy("write it as postgres://user:password@host:5432/database")
        })
}

/// Connects without TLS: the demo's servers are on this machine.
pub(super) async fn connect(url: &Secret) -> Result<Client> {
    connect_to(config(url)?, url)
        .await?
        .map_err(|error| failed_to_connect(url, error))
}

async fn connect_to(config: Config, url: &Secret) -> Result<Result<Client, tokio_postgres::Error>> {
    if config.get_ssl_mode() == tokio_postgres::config::SslMode::Require {
        let message = format!(
            "the demo's shop does not speak TLS, which {} asks for",
            url.redacted_url()
        );
        return Err(Error::new(ErrorKind::Config, message)
            .remedy("use sslmode=disable and a server on this machine"));
    }
    Ok(config.connect(NoTls).await.map(|(client, connection)| {
        // A failure of the connection reaches every call of the client too.
        tokio::spawn(connection);
        client
    }))
}

fn failed_to_connect(url: &Secret, error: tokio_postgres::Error) -> Error {
    failed(format!("connecting to {}", url.redacted_url()), error)
}

/// Creates the database that `url` names when the server has none of that name.
async fn ensure_database(url: &Secret) -> Result<()> {
    let mut config = config(url)?;
    let Err(error) = connect_to(config.clone(), url).await? else {
        return Ok(());
    };
    let name = config.get_dbname().map(str::to_owned);
    let (true, Some(name)) = (error.code() == Some(&SqlState::INVALID_CATALOG_NAME), name) else {
        return Err(failed_to_connect(url, error));
    };
    config.dbname("postgres");
    let client = connect_to(config, url).await?;
    let client = client.map_err(|error| failed_to_connect(url, error))?;
    let create = format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\""));
    let created = client.batch_execute(&create).await;
    created.map_err(|error| failed(format!("creating the database {name}"), error))
}

async fn make(client: &Client, sql: &str) -> Result<()> {
    let made = client.batch_execute(&format!("BEGIN;{sql};COMMIT")).await;
    made.map_err(|error| {
        failed("making the shop's tables", error)
            .remedy("give the demo a database of its own; it never drops or changes what it finds")
    })
}

/// Leaves statistics (the initial copy estimates its rows by them) and a visibility map behind.
async fn settle(client: &Client) -> Result<()> {
    let vacuumed = client.batch_execute("VACUUM ANALYZE").await;
    vacuumed.map_err(|error| failed("VACUUM ANALYZE", error))
}

/// The rows of the first day.
struct Past {
    options: ShopOptions,
    orders: Rows,
    items: Rows,
    payments: Rows,
    reservations: Rows,
    /// Reserved units by product and warehouse.
    reserved: Vec<[u64; WAREHOUSES.len()]>,
}

impl Past {
    fn of(options: ShopOptions) -> Self {
        let mut random = Random::new(&[options.seed, 0x9a57]);
        let mut past = Past {
            options,
            orders: Rows::new("orders", &[]),
            items: Rows::new("order_items", &[]),
            payments: Rows::new("payments", goods::PAYMENT_COLUMNS),
            reservations: Rows::new("reservations", RESERVATION_COLUMNS),
            reserved: vec![[0; WAREHOUSES.len()]; options.products as usize],
        };
        for _ in 0..options.orders {
            past.add_order(&mut random);
        }
        past
    }

    fn add_order(&mut self, random: &mut Random) {
        let status = match random.below(100) {
            0..15 => "paid",
            15..20 => "cancelled",
            _ => "delivered",
        };
        let customer = goods::customer(random.below(self.options.customers) + 1);
        let lines = goods::lines(random, self.options.products);
        let id = random.uuid();
        let mut purchase = goods::purchase(random, id, None, status, &customer, &lines);
        let placed = goods::past(random);
        purchase.order.add_column("placed_at", || placed.clone());
        purchase.order.add_column("updated_at", || placed.clone());
        self.payments
            .rows
            .push(goods::payment(random, id, purchase.total));
        take(&mut self.orders, purchase.order);
        take(&mut self.items, purchase.items);
        if status == "paid" {
            for line in &lines {
                self.reserved[line.product as usize][line.warehouse] += line.quantity;
                self.reservations.rows.push(reservation(random, id, line));
            }
        }
    }

    async fn fill_orders(&self, client: &Client) -> Result<()> {
        let mut random = Random::new(&[self.options.seed, 0xca27]);
        let carts = (0..self.options.orders / 10 + 1).map(|_| {
            let id = random.uuid();
            let guest = random.chance(60);
            let customer = (!guest).then(|| random.below(self.options.customers) + 1);
            let lines = goods::lines(&mut random, self.options.products);
            goods::cart(&mut random, id, customer, &lines)
        });
        copy(client, "carts", goods::CART_COLUMNS, carts).await?;
        copy_all(client, &self.orders).await?;
        copy_all(client, &self.items).await?;
        copy_all(client, &self.payments).await
    }

    async fn fill_inventory(&self, client: &Client) -> Result<()> {
        let mut random = Random::new(&[self.options.seed, 0x900d]);
        let products = (0..self.options.products).map(|number| {
            let good = goods::good(number);
            goods::product(&mut random, &good.sku, &good.title, good.cents)
        });
        copy(client, "products", goods::PRODUCT_COLUMNS, products).await?;
        let columns = &["sku", "warehouse", "on_hand", "reserved"];
        let stock = self.places().map(|(sku, warehouse, reserved)| {
            vec![
                text(sku),
                text(warehouse),
                text(FIRST_STOCK),
                text(reserved),
            ]
        });
        copy(client, "stock", columns, stock).await?;
        copy_all(client, &self.reservations).await?;
        let columns = &[
            "sku",
            "warehouse",
            "on_hand_delta",
            "reserved_delta",
            "reason",
        ];
        let movements = self.places().map(|(sku, warehouse, reserved)| {
            vec![
                text(sku),
                text(warehouse),
                text(FIRST_STOCK),
                text(reserved),
                text("opening"),
            ]
        });
        copy(client, "stock_movements", columns, movements).await?;
        Ok(())
    }

    /// Product, warehouse and reserved units of every row of `stock`.
    fn places(&self) -> impl Iterator<Item = (String, &'static str, u64)> {
        self.reserved
            .iter()
            .enumerate()
            .flat_map(|(product, reserved)| {
                iter::zip(WAREHOUSES, reserved).map(move |(&warehouse, &reserved)| {
                    (goods::sku(product as u64), warehouse, reserved)
                })
            })
    }
}

/// Columns of [`reservation`].
pub(super) const RESERVATION_COLUMNS: &[&str] =
    &["id", "order_id", "sku", "warehouse", "quantity", "hold_for"];

/// A row of `reservations`, held.
pub(super) fn reservation(random: &mut Random, order: Uuid, line: &goods::Line) -> Row {
    vec![
        text(random.uuid()),
        text(order),
        text(goods::sku(line.product)),
        text(WAREHOUSES[line.warehouse]),
        text(line.quantity),
        text(random.pick(&["30 minutes", "1 day 02:00:00", "1 mon"])),
    ]
}

/// Moves the rows of `from`, which has the same columns in every call, into `all`.
fn take(all: &mut Rows, from: Rows) {
    all.columns = from.columns;
    all.rows.extend(from.rows);
}

async fn copy_all(client: &Client, rows: &Rows) -> Result<()> {
    if !rows.rows.is_empty() {
        copy(client, rows.table, &rows.columns, rows.rows.iter().cloned()).await?;
    }
    Ok(())
}

//! A load that shops at a chosen rate.

mod counts;
mod fulfilment;
mod pace;
mod script;
mod shopper;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep_core::batch::Op;
use lockstep_core::config::Secret;
use lockstep_core::error::At as _;
use lockstep_core::position::Lsn;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_transactions::coordinator::Measures;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use self::counts::Counters;
pub use self::counts::{Counts, Event, Table, TableCounts};
use self::pace::Pace;
pub use self::pace::Rate;
use self::shopper::{Cart, Shared, Shopper, Stage};
use super::goods;
use super::random::{Random, Uuid};
use super::rows::{copy, failed};
use super::shop::{Shop, connect};

/// Enough to keep a server of two cores busy.
pub const DEFAULT_CONNECTIONS: usize = 4;

/// The column that the schema change adds to `orders`.
pub const ADDED_COLUMN: &str = "gift_note";

/// How to shop.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// How fast.
    pub rate: Rate,
    /// Shoppers at the same time, each with one connection to either database. At least 1.
    pub connections: usize,
    /// How long; `None`: until stopped.
    pub duration: Option<Duration>,
    /// One big import into `products`.
    pub import: Option<Import>,
    /// When to add the column `gift_note` to `orders`, which orders then fill. A shop that has it keeps it.
    pub schema_change: Option<Duration>,
    /// The same seed on the same shop gives the same shoppers. What they do still interleaves as it happens.
    pub seed: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            rate: Rate::Changes(1_000.0),
            connections: DEFAULT_CONNECTIONS,
            duration: None,
            import: None,
            schema_change: None,
            seed: 1,
        }
    }
}

/// A price list that arrives by one `COPY`, in one transaction.
#[derive(Clone, Copy, Debug)]
pub struct Import {
    /// After the start of the load.
    pub after: Duration,
    /// Products.
    pub rows: u64,
}

/// What starts a load.
#[derive(Debug)]
pub struct Load;

/// A load at work. Dropping it cuts it short, perhaps with branches in doubt; [`LoadHandle::stop`] does not.
#[derive(Debug)]
pub struct LoadHandle {
    shop: Shop,
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: JoinSet<Result<()>>,
    started: Instant,
}

/// What a load did.
#[derive(Clone, Debug)]
pub struct LoadReport {
    /// Everything that committed.
    pub counts: Counts,
    /// What its coordinator measured of what changed both databases.
    pub both: Measures,
    /// From the first visit to the end of the last.
    pub elapsed: Duration,
    /// End of the orders database's log, behind everything that the load did.
    pub orders_end: Lsn,
    /// End of the inventory database's log.
    pub inventory_end: Lsn,
}

impl Load {
    /// Connects and begins. The shop may have been loaded before.
    ///
    /// # Errors
    /// `Config` for a rate that is no rate, and whatever the servers report.
    pub async fn start(shop: &Shop, options: LoadOptions) -> Result<LoadHandle> {
        check(&options)?;
        let orders = shop.orders_client().await?;
        let run = one_number(&orders, "SELECT nextval('load_runs')")
            .await?
            .unsigned_abs();
        let gift_notes = "SELECT count(*) FROM pg_attribute
                          WHERE attrelid = 'orders'::regclass AND attname = 'gift_note' AND NOT attisdropped";
        let gift_notes = one_number(&orders, gift_notes).await? > 0;
        let mut shoppers = Vec::new();
        let shared = Arc::new(Shared {
            counters: Counters::default(),
            coordinator: shop.coordinator().await?,
            pace: Pace::new(options.rate),
            gift_notes: AtomicBool::new(gift_notes),
            customers: shop.customers,
            products: shop.products,
        });
        for number in 0..options.connections.max(1) {
            shoppers.push(Shopper {
                random: Random::new(&[options.seed, run, number as u64]),
                orders_db: shop.orders_client().await?,
                inventory_db: shop.inventory_client().await?,
                shared: Arc::clone(&shared),
                carts: Vec::new(),
                orders: Vec::new(),
            });
        }
        hand_out(&orders, &mut shoppers).await?;
        let mut handle = LoadHandle {
            shop: shop.clone(),
            shared,
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
            started: Instant::now(),
        };
        handle.spawn_all(shoppers, options, run);
        Ok(handle)
    }
}

impl LoadHandle {
    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.counters.get()
    }

    /// As [`LoadHandle::counts`], for others to call.
    pub fn counter(&self) -> impl Fn() -> Counts + Send + Sync + Clone + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.counters.get()
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits until the duration is over or something failed; for ever without a duration. Then call
    /// [`LoadHandle::stop`]. Cancel-safe.
    pub async fn finished(&self) {
        self.stop.cancelled().await;
    }

    /// Lets every shopper, a running import and a running schema change come to their end, so that the two databases agree,
    /// and reports.
    ///
    /// # Errors
    /// The first error that any of them met.
    pub async fn stop(mut self) -> Result<LoadReport> {
        self.stop.cancel();
        let mut outcome = Ok(());
        while let Some(joined) = self.tasks.join_next().await {
            let ended = joined.unwrap_or_else(|error| {
                Err(
                    Error::new(ErrorKind::Abandoned, "a task of the load ended early")
                        .source(error),
                )
            });
            outcome = outcome.and(ended);
        }
        outcome.at("load")?;
        let coordinator = &self.shared.coordinator;
        coordinator.settled().await;
        Ok(LoadReport {
            counts: self.counts(),
            both: coordinator.measures(),
            elapsed: self.started.elapsed(),
            orders_end: log_end(self.shop.orders_url()).await?,
            inventory_end: log_end(self.shop.inventory_url()).await?,
        })
    }

    fn spawn_all(&mut self, shoppers: Vec<Shopper>, options: LoadOptions, run: u64) {
        for shopper in shoppers {
            let stop = self.stop.clone();
            self.spawn(shopper.shop(stop));
        }
        let (shop, shared) = (self.shop.clone(), Arc::clone(&self.shared));
        if let Some(import) = options.import {
            let (shop, shared) = (shop.clone(), Arc::clone(&shared));
            self.spawn_later(
                import.after,
                import_products(shop, shared, import.rows, options.seed, run),
            );
        }
        let done = shared.gift_notes.load(Ordering::Acquire);
        if let Some(after) = options.schema_change.filter(|_| !done) {
            self.spawn_later(after, add_gift_note(shop, shared));
        }
        if let Some(duration) = options.duration {
            let stop = self.stop.clone();
            self.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(duration) => stop.cancel(),
                }
                Ok(())
            });
        }
    }

    /// Runs `task` after a while, unless the load is stopped before.
    fn spawn_later(
        &mut self,
        after: Duration,
        task: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        let stop = self.stop.clone();
        self.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => Ok(()),
                () = tokio::time::sleep(after) => task.await,
            }
        });
    }

    /// An error of one task ends all.
    fn spawn(&mut self, task: impl Future<Output = Result<()>> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let outcome = task.await;
            if outcome.is_err() {
                stop.cancel();
            }
            outcome
        });
    }
}

fn check(options: &LoadOptions) -> Result<()> {
    match options.rate {
        Rate::Purchases(rate) | Rate::Changes(rate) if !(rate.is_finite() && rate > 0.0) => {
            let message = format!("a load cannot run at {rate} per second");
            Err(Error::new(ErrorKind::Config, message).remedy("choose a rate above 0"))
        }
        Rate::Purchases(_) | Rate::Changes(_) | Rate::Unlimited => Ok(()),
    }
}

/// Deals open carts and unfinished orders to the shoppers.
async fn hand_out(orders: &Client, shoppers: &mut [Shopper]) -> Result<()> {
    let doing = |error| failed("reading the shop's open orders", error);
    let sql =
        "SELECT id::text, customer_id FROM carts WHERE status = 'open' ORDER BY id LIMIT 2000";
    let count = shoppers.len();
    for (number, row) in orders
        .query(sql, &[])
        .await
        .map_err(doing)?
        .iter()
        .enumerate()
    {
        if let Some(id) = Uuid::parse(row.get(0)) {
            let customer: Option<i64> = row.get(1);
            let customer = customer.map(i64::unsigned_abs);
            shoppers[number % count].carts.push(Cart { id, customer });
        }
    }
    let sql = "SELECT id::text, status::text FROM orders o
               WHERE status NOT IN ('pending', 'cancelled') AND NOT EXISTS (SELECT FROM refunds r WHERE r.order_id = o.id)
               ORDER BY number DESC LIMIT 20000";
    for (number, row) in orders
        .query(sql, &[])
        .await
        .map_err(doing)?
        .iter()
        .enumerate()
    {
        if let (Some(id), Some(stage)) = (Uuid::parse(row.get(0)), Stage::parse(row.get(1))) {
            shoppers[number % count].orders.push((id, stage));
        }
    }
    Ok(())
}

async fn import_products(
    shop: Shop,
    shared: Arc<Shared>,
    rows: u64,
    seed: u64,
    run: u64,
) -> Result<()> {
    let client = shop.inventory_client().await?;
    let mut random = Random::new(&[seed, run, 0x1339]);
    let products = (0..rows).map(|number| {
        let good = goods::good(shop.products + number);
        goods::product(
            &mut random,
            &format!("IMP-{run:04}-{number:07}"),
            &good.title,
            good.cents,
        )
    });
    let copied = copy(&client, "products", goods::PRODUCT_COLUMNS, products).await?;
    shared
        .counters
        .add_changes(Table::Products, Op::Insert, copied);
    shared.counters.add_event(Event::ImportedRow, copied);
    shared.counters.add_event(Event::Transaction, 1);
    Ok(())
}

async fn add_gift_note(shop: Shop, shared: Arc<Shared>) -> Result<()> {
    let client = shop.orders_client().await?;
    let sql = format!("ALTER TABLE orders ADD COLUMN IF NOT EXISTS {ADDED_COLUMN} text");
    let added = client.batch_execute(&sql).await;
    added.map_err(|error| failed("adding a column to orders", error))?;
    shared.gift_notes.store(true, Ordering::Release);
    shared.counters.add_event(Event::SchemaChange, 1);
    Ok(())
}

/// The end of what a server's log holds on disk.
async fn log_end(url: &Secret) -> Result<Lsn> {
    let row = connect(url)
        .await?
        .query_one("SELECT pg_current_wal_flush_lsn()::text", &[])
        .await;
    let row = row.map_err(|error| failed("asking for the end of the log", error))?;
    row.get::<_, &str>(0).parse()
}

async fn one_number(client: &Client, sql: &str) -> Result<i64> {
    let row = client
        .query_one(sql, &[])
        .await
        .map_err(|error| failed(sql, error))?;
    Ok(row.get(0))
}

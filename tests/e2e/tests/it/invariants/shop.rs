//! A shop that writes into two databases by two-phase commit, as it should.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_e2e::Random;
use lockstep_kit::postgres::{Database, Postgres};
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

const ORDERS: &str = "CREATE TABLE orders (id uuid PRIMARY KEY, status text NOT NULL);
    CREATE TABLE order_items (order_id uuid REFERENCES orders, sku text, quantity int NOT NULL, PRIMARY KEY (order_id, sku));
    CREATE TABLE payments (id uuid PRIMARY KEY, order_id uuid NOT NULL, idempotency_key text NOT NULL, amount numeric(12,2) NOT NULL,
                           status text NOT NULL DEFAULT 'captured');
    CREATE TABLE refunds (id uuid PRIMARY KEY, payment_id uuid NOT NULL, idempotency_key text NOT NULL, amount numeric(12,2) NOT NULL)";
const INVENTORY: &str = "CREATE TABLE stock (sku text, warehouse text, on_hand int NOT NULL, reserved int NOT NULL DEFAULT 0,
                        PRIMARY KEY (sku, warehouse));
    CREATE TABLE reservations (id uuid PRIMARY KEY, order_id uuid NOT NULL, sku text NOT NULL, warehouse text NOT NULL, quantity int NOT NULL);
    CREATE INDEX ON reservations (order_id);
    INSERT INTO stock SELECT 'SKU-' || n, 'AMS', 1000000 FROM generate_series(1, 20) n;
    INSERT INTO stock VALUES ('SKU-HAND', 'AMS', 1000000)";

/// Products that shoppers buy.
const PRODUCTS: u64 = 20;
/// Orders that a shopper has open before it sends one out.
const OPEN: usize = 40;

/// The two databases.
pub struct Shop {
    pub orders: Database,
    pub inventory: Database,
    numbers: Arc<AtomicU64>,
}

/// What shoppers did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Global transactions that were committed.
    pub global: u64,
    /// Those that were prepared in both databases, and rolled back.
    pub aborted: u64,
}

/// Shoppers at work.
pub struct Shoppers {
    tasks: JoinSet<Counts>,
    stop: CancellationToken,
}

impl Shoppers {
    /// Lets each come to the end of what it does.
    pub async fn stop(mut self) -> Counts {
        self.stop.cancel();
        let mut all = Counts::default();
        while let Some(ended) = self.tasks.join_next().await {
            let counts = ended.expect("no shopper has failed");
            all.global += counts.global;
            all.aborted += counts.aborted;
        }
        all
    }
}

/// Statements of an order: `quantity` for 10.00 each.
fn place(order: &str, lines: &[(String, u64)]) -> [String; 2] {
    let all: u64 = lines.iter().map(|(_, quantity)| quantity).sum();
    let mut orders = format!("INSERT INTO orders VALUES ('{order}', 'paid');");
    // In one order: nobody waits for anybody in a circle.
    let mut inventory = String::new();
    for (at, (sku, quantity)) in lines.iter().enumerate() {
        orders += &format!("INSERT INTO order_items VALUES ('{order}', '{sku}', {quantity});");
        inventory +=
            &format!("UPDATE stock SET reserved = reserved + {quantity} WHERE sku = '{sku}';");
        let id = match at {
            0 => format!("'{order}'"),
            _ => "gen_random_uuid()".to_owned(),
        };
        inventory += &format!(
            "INSERT INTO reservations VALUES ({id}, '{order}', '{sku}', 'AMS', {quantity});"
        );
    }
    orders += &format!(
        "INSERT INTO payments VALUES ('{order}', '{order}', 'pay-{order}', {});",
        all * 10
    );
    [orders, inventory]
}

impl Shop {
    pub async fn create(orders: &Postgres, inventory: &Postgres) -> Self {
        let shop = Shop {
            orders: orders.database("orders").await,
            inventory: inventory.database("inventory").await,
            numbers: Arc::new(AtomicU64::new(1_000)),
        };
        shop.orders.execute(ORDERS).await;
        shop.inventory.execute(INVENTORY).await;
        shop
    }

    /// An order of one line, committed in both databases.
    pub async fn place(&self, order: &str, sku: &str, quantity: u64) {
        let number = format!("hand-{order}");
        self.prepare(order, sku, quantity, &number).await;
        self.inventory
            .execute(&format!("COMMIT PREPARED 'gtx-{number}-inventory'"))
            .await;
        self.orders
            .execute(&format!("COMMIT PREPARED 'gtx-{number}-orders'"))
            .await;
    }

    /// The same, prepared in both.
    pub async fn prepare(&self, order: &str, sku: &str, quantity: u64, number: &str) {
        let [orders, inventory] = place(order, &[(sku.to_owned(), quantity)]);
        let prepare = |work: &str, name: &str| {
            format!("BEGIN; {work} PREPARE TRANSACTION 'gtx-{number}-{name}'")
        };
        self.orders.execute(&prepare(&orders, "orders")).await;
        self.inventory
            .execute(&prepare(&inventory, "inventory"))
            .await;
    }

    pub async fn open(&self, shoppers: u64, mut random: Random) -> Shoppers {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for _ in 0..shoppers {
            let shopper = Shopper {
                databases: [self.orders.client().await, self.inventory.client().await],
                names: [
                    self.orders.name().to_owned(),
                    self.inventory.name().to_owned(),
                ],
                numbers: Arc::clone(&self.numbers),
                random: random.fork(),
                open: Vec::new(),
                counts: Counts::default(),
            };
            tasks.spawn(shopper.shop(stop.clone()));
        }
        Shoppers { tasks, stop }
    }
}

struct Shopper {
    /// Orders, inventory.
    databases: [Client; 2],
    /// Gids are unique on a server, which others use, too.
    names: [String; 2],
    numbers: Arc<AtomicU64>,
    random: Random,
    /// Orders that are not sent out, with their lines.
    open: Vec<(String, Vec<(String, u64)>)>,
    counts: Counts,
}

impl Shopper {
    async fn shop(mut self, stop: CancellationToken) -> Counts {
        while !stop.is_cancelled() {
            if self.open.len() < OPEN || self.random.below(2) == 0 {
                self.buy().await;
            } else {
                self.close().await;
            }
        }
        self.counts
    }

    async fn buy(&mut self) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let order = format!("00000000-0000-0000-0001-{number:012}");
        let mut lines: Vec<(String, u64)> = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            let sku = format!("SKU-{}", 1 + self.random.below(PRODUCTS));
            if lines.iter().all(|(known, _)| *known != sku) {
                lines.push((sku, 1 + self.random.below(4)));
            }
        }
        lines.sort();
        if self.both(place(&order, &lines)).await {
            self.open.push((order, lines));
        }
    }

    /// An order is delivered, or cancelled; now and then one is paid back, or paid a second time by mistake.
    async fn close(&mut self) {
        let at = self.random.below(self.open.len() as u64) as usize;
        let (order, lines) = self.open.swap_remove(at);
        let is_cancelled = self.random.below(4) == 0;
        let status = if is_cancelled {
            "cancelled"
        } else {
            "delivered"
        };
        let mut orders = format!("UPDATE orders SET status = '{status}' WHERE id = '{order}';");
        match (is_cancelled, self.random.below(5)) {
            (true, _) => {
                orders +=
                    &format!("UPDATE payments SET status = 'voided' WHERE order_id = '{order}';")
            }
            (false, 0) => {
                let refund = format!(
                    "INSERT INTO refunds SELECT gen_random_uuid(), id, 'ref-{order}', amount FROM payments WHERE id = '{order}';"
                );
                // Sent again.
                orders += &refund.repeat(2);
            }
            (false, 1) => {
                orders += &format!(
                    "INSERT INTO payments SELECT gen_random_uuid(), order_id, idempotency_key, amount FROM payments WHERE id = '{order}';"
                );
            }
            _ => {}
        }
        let mut inventory = format!("DELETE FROM reservations WHERE order_id = '{order}';");
        for (sku, quantity) in &lines {
            let gone = if is_cancelled { 0 } else { *quantity };
            inventory += &format!(
                "UPDATE stock SET on_hand = on_hand - {gone}, reserved = reserved - {quantity} WHERE sku = '{sku}';"
            );
        }
        if !self.both([orders, inventory]).await {
            self.open.push((order, lines));
        }
    }

    /// Does both or none, in two phases; whether both.
    async fn both(&mut self, work: [String; 2]) -> bool {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let gids = [0, 1].map(|side: usize| format!("gtx-{number}-{}", self.names[side]));
        let mut order = [0, 1];
        self.random.shuffle(&mut order);
        for side in order {
            let prepare = format!("BEGIN; {} PREPARE TRANSACTION '{}'", work[side], gids[side]);
            self.run(side, &prepare).await;
        }
        let commits = self.random.below(10) > 0;
        let word = if commits { "COMMIT" } else { "ROLLBACK" };
        self.random.shuffle(&mut order);
        self.run(order[0], &format!("{word} PREPARED '{}'", gids[order[0]]))
            .await;
        // A coordinator has other things to do as well.
        if self.random.below(4) == 0 {
            let pause = Duration::from_millis(self.random.below(60));
            tokio::time::sleep(pause).await;
        }
        self.run(order[1], &format!("{word} PREPARED '{}'", gids[order[1]]))
            .await;
        self.counts.global += u64::from(commits);
        self.counts.aborted += u64::from(!commits);
        commits
    }

    async fn run(&self, side: usize, sql: &str) {
        let ran = self.databases[side].batch_execute(sql).await;
        ran.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
}

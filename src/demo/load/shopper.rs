//! One shopper with a connection to each database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_core::Result;
use lockstep_core::batch::Op;
use lockstep_core::error::At as _;
use lockstep_transactions::coordinator::Coordinator;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::super::goods::{self, Line, WAREHOUSES};
use super::super::random::{Random, Uuid};
use super::super::rows::{Row, Rows, quote, text};
use super::super::shop::{RESERVATION_COLUMNS, reservation};
use super::ADDED_COLUMN;
use super::counts::{Counters, Event, Table};
use super::fulfilment::set_status;
use super::pace::Pace;
use super::script::Script;

/// Orders and carts that one shopper keeps in mind; more only make the process grow.
const MEMORY: usize = 20_000;

/// Open carts of one shopper from which on old ones are deleted before any are edited.
const MANY_CARTS: usize = 1_000;

/// What all shoppers of a load share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) counters: Counters,
    /// For what changes both databases.
    pub(super) coordinator: Coordinator,
    pub(super) pace: Pace,
    /// Whether `orders` has the column `gift_note`.
    pub(super) gift_notes: AtomicBool,
    pub(super) customers: u64,
    pub(super) products: u64,
}

/// How far an order is. What is delivered can still be refunded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Paid,
    Packed,
    Shipped,
    Delivered,
}

impl Stage {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "paid" => Some(Stage::Paid),
            "packed" => Some(Stage::Packed),
            "shipped" => Some(Stage::Shipped),
            "delivered" => Some(Stage::Delivered),
            _ => None,
        }
    }
}

/// An open cart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cart {
    pub(super) id: Uuid,
    /// `None`: a guest's.
    pub(super) customer: Option<u64>,
}

/// Orders and carts belong to one shopper each, so shoppers meet only at the shelves: they lock stock rows ordered by
/// key, and never wait for each other in a circle.
pub(super) struct Shopper {
    pub(super) random: Random,
    pub(super) orders_db: Client,
    pub(super) inventory_db: Client,
    pub(super) shared: Arc<Shared>,
    pub(super) carts: Vec<Cart>,
    pub(super) orders: Vec<(Uuid, Stage)>,
}

impl Shopper {
    /// Shops until told to stop; always ends between two visits.
    pub(super) async fn shop(mut self, stop: CancellationToken) -> Result<()> {
        while self.shared.pace.turn(&stop).await {
            let changes = self.visit().await?;
            self.shared.pace.settle(changes);
        }
        Ok(())
    }

    /// One purchase and what else goes on in a shop meanwhile. Returns the number of changes.
    async fn visit(&mut self) -> Result<u64> {
        let mut changes = 0;
        for _ in 0..self.random.below(4) {
            changes += self.browse().await?;
        }
        changes += self.check_out().await?;
        for _ in 0..3 {
            changes += self.fulfil().await?;
        }
        if self.random.chance(5) {
            changes += self.cancel().await?;
        }
        if self.random.chance(4) {
            changes += self.refund().await?;
        }
        if self.random.chance(20) {
            changes += self.reprice().await?;
        }
        if self.random.chance(8) {
            changes += self.restock().await?;
        }
        Ok(changes)
    }

    async fn browse(&mut self) -> Result<u64> {
        if self.carts.len() < 3 || self.random.chance(45) {
            return self.new_cart().await;
        }
        if self.carts.len() > MANY_CARTS || self.random.chance(8) {
            return self.delete_carts().await;
        }
        let index = self.random.index(self.carts.len());
        if self.carts[index].customer.is_none() && self.random.chance(30) {
            return self.merge_cart(index).await;
        }
        let mut script = Script::new();
        self.edit_cart(&mut script, self.carts[index].id);
        script.event(Event::CartEdit);
        self.commit_orders(script).await
    }

    async fn new_cart(&mut self) -> Result<u64> {
        let id = self.random.uuid();
        let customer = self.random.chance(40).then(|| self.some_customer());
        let lines = self.some_lines();
        let row = goods::cart(&mut self.random, id, customer, &lines);
        let mut script = Script::new();
        script.insert(Table::Carts, &Rows::one("carts", goods::CART_COLUMNS, row));
        script.event(Event::CartEdit);
        if self.random.chance(3) {
            // Made, filled and given up within one transaction.
            self.edit_cart(&mut script, id);
            script.change(
                Table::Carts,
                Op::Delete,
                &format!("DELETE FROM carts WHERE id = '{id}'"),
            );
            script.event(Event::CartDeleted);
        } else {
            self.carts.push(Cart { id, customer });
        }
        self.commit_orders(script).await
    }

    /// Changes the lines; a long note stays as it is.
    fn edit_cart(&mut self, script: &mut Script, id: Uuid) {
        let lines = quote(goods::lines_json(&self.some_lines()));
        let sql = format!("UPDATE carts SET lines = {lines}, updated_at = now() WHERE id = '{id}'");
        script.change(Table::Carts, Op::Update, &sql);
    }

    /// A guest signs in: the cart gets the customer's key.
    async fn merge_cart(&mut self, index: usize) -> Result<u64> {
        let (id, customer) = (self.random.uuid(), self.some_customer());
        let guest = std::mem::replace(
            &mut self.carts[index],
            Cart {
                id,
                customer: Some(customer),
            },
        );
        let sql = format!(
            "UPDATE carts SET id = '{id}', customer_id = {customer}, updated_at = now() WHERE id = '{}'",
            guest.id
        );
        let mut script = Script::new();
        script.change(Table::Carts, Op::Update, &sql);
        if self.random.chance(50) {
            self.edit_cart(&mut script, id);
        }
        script.event(Event::CartMerged);
        self.commit_orders(script).await
    }

    /// Old carts go, a few at a time.
    async fn delete_carts(&mut self) -> Result<u64> {
        let count = self.random.between(1, 3).min(self.carts.len() as u64) as usize;
        let mut script = Script::new();
        let ids: Vec<String> = (0..count)
            .map(|_| {
                let index = self.random.index(self.carts.len());
                format!("'{}'", self.carts.swap_remove(index).id)
            })
            .collect();
        for _ in &ids {
            script.event(Event::CartDeleted);
        }
        let sql = format!("DELETE FROM carts WHERE id IN ({})", ids.join(", "));
        script.change(Table::Carts, Op::Delete, &sql);
        self.commit_orders(script).await
    }

    /// Places the order and reserves the goods, in one transaction over both databases; then perhaps pays again.
    async fn check_out(&mut self) -> Result<u64> {
        let cart = (!self.carts.is_empty()).then(|| {
            let index = self.random.index(self.carts.len());
            self.carts.swap_remove(index)
        });
        let customer = cart.and_then(|cart| cart.customer);
        let customer = goods::customer(customer.unwrap_or_else(|| self.some_customer()));
        let (order, lines) = (self.random.uuid(), self.some_lines());
        let mut purchase = goods::purchase(
            &mut self.random,
            order,
            cart.map(|cart| cart.id),
            "pending",
            &customer,
            &lines,
        );
        if self.shared.gift_notes.load(Ordering::Acquire) {
            let note = self
                .random
                .chance(30)
                .then(|| goods::prose(&mut self.random, 60));
            purchase.order.add_column(ADDED_COLUMN, || note.clone());
        }
        if self.random.chance(1) {
            self.abandon(&purchase).await?;
            purchase.order.rows[0][0] = text(order);
        }
        let mut script = Script::branch();
        script.insert(Table::Orders, &purchase.order);
        script.insert(Table::OrderItems, &purchase.items);
        let payment = self.payment(order, purchase.total);
        if self.random.chance(3) {
            script.run("SAVEPOINT payment");
            script.run(&payment.insert());
            script.run("ROLLBACK TO payment");
            script.event(Event::DeclinedPayment);
        }
        script.insert(Table::Payments, &payment);
        set_status(&mut script, order, "paid");
        if let Some(Cart { id, .. }) = cart {
            let lines = quote(goods::lines_json(&lines));
            let sql = format!(
                "UPDATE carts SET status = 'checked_out', lines = {lines}, updated_at = now() WHERE id = '{id}'"
            );
            script.change(Table::Carts, Op::Update, &sql);
        }
        script.event(Event::Purchase);
        let reservation = self.reserve(order, &lines);
        let mut changes = self.commit_both(script, reservation).await?;

        // Strictly after the commit of the attempt before.
        let attempts = match self.random.below(100) {
            0 => 2,
            1..5 => 1,
            _ => 0,
        };
        for _ in 0..attempts {
            let mut script = Script::new();
            script.insert(Table::Payments, &self.payment(order, purchase.total));
            script.event(Event::RetriedPayment);
            changes += self.commit_orders(script).await?;
        }
        self.orders.push((order, Stage::Paid));
        if self.orders.len() > MEMORY {
            let index = self.random.index(self.orders.len());
            self.orders.swap_remove(index);
        }
        Ok(changes)
    }

    fn payment(&mut self, order: Uuid, cents: u64) -> Rows {
        let row = goods::payment(&mut self.random, order, cents);
        Rows::one("payments", goods::PAYMENT_COLUMNS, row)
    }

    /// An order that is written and rolled back.
    async fn abandon(&mut self, purchase: &goods::Purchase) -> Result<()> {
        let mut script = Script::new();
        script.run(&purchase.order.insert());
        script.run(&purchase.items.insert());
        script.event(Event::Abandoned);
        script
            .roll_back(&self.orders_db, &self.shared.counters)
            .await
    }

    fn reserve(&mut self, order: Uuid, lines: &[Line]) -> Script {
        let places: Vec<String> = lines
            .iter()
            .map(|line| {
                let warehouse = WAREHOUSES[line.warehouse];
                format!(
                    "('{}', '{warehouse}', {})",
                    goods::sku(line.product),
                    line.quantity
                )
            })
            .collect();
        let places = format!(
            "(VALUES {}) AS v (sku, warehouse, quantity)",
            places.join(", ")
        );
        let rows: Vec<Row> = lines
            .iter()
            .map(|line| reservation(&mut self.random, order, line))
            .collect();
        let mut reservations = Rows::new("reservations", RESERVATION_COLUMNS);
        reservations.rows = rows;

        let mut script = Script::branch();
        script.run(&format!(
            "SELECT 1 FROM stock s JOIN {places} USING (sku, warehouse) ORDER BY s.sku, s.warehouse FOR UPDATE OF s"
        ));
        script.insert(Table::Reservations, &reservations);
        script.change(
            Table::Stock,
            Op::Update,
            &format!(
                "UPDATE stock s SET reserved = s.reserved + v.quantity, updated_at = now() FROM {places}
                 WHERE s.sku = v.sku AND s.warehouse = v.warehouse"
            ),
        );
        script.change(
            Table::StockMovements,
            Op::Insert,
            &format!(
                "INSERT INTO stock_movements (sku, warehouse, on_hand_delta, reserved_delta, reason, order_id)
                 SELECT sku, warehouse, 0, quantity, 'reserved', '{order}'::uuid FROM {places}"
            ),
        );
        script
    }

    /// Commits in both databases, or in none. All shoppers come to the orders first: nobody who has the shelves waits for anything.
    pub(super) async fn commit_both(&self, orders: Script, inventory: Script) -> Result<u64> {
        let Shared {
            counters,
            coordinator,
            ..
        } = &*self.shared;
        let both = coordinator.begin(["orders", "inventory"]).await?;
        let [orders_db, inventory_db] = both.branches();
        let orders = orders.work(orders_db).await.at("orders database")?;
        let inventory = inventory
            .work(inventory_db)
            .await
            .at("inventory database")?;
        both.commit().await?;
        Ok(orders.committed(counters) + inventory.committed(counters))
    }

    /// The index of an order at one of these stages, found by a few random looks.
    pub(super) fn find(&mut self, stages: &[Stage]) -> Option<usize> {
        let looks = if self.orders.is_empty() { 0 } else { 30 };
        (0..looks)
            .map(|_| self.random.index(self.orders.len()))
            .find(|&index| stages.contains(&self.orders[index].1))
    }

    pub(super) fn some_customer(&mut self) -> u64 {
        self.random.below(self.shared.customers) + 1
    }

    pub(super) fn some_lines(&mut self) -> Vec<Line> {
        goods::lines(&mut self.random, self.shared.products)
    }

    pub(super) async fn commit_orders(&self, script: Script) -> Result<u64> {
        script.commit(&self.orders_db, &self.shared.counters).await
    }

    pub(super) async fn commit_inventory(&self, script: Script) -> Result<u64> {
        script
            .commit(&self.inventory_db, &self.shared.counters)
            .await
    }
}

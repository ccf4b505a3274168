//! What becomes of an order, and of the shelves.

use lockstep_core::Result;
use lockstep_core::batch::Op;

use super::super::goods::{self, WAREHOUSES};
use super::super::random::Uuid;
use super::super::rows::quote;
use super::counts::{Event, Table};
use super::script::Script;
use super::shopper::{Shopper, Stage};

impl Shopper {
    /// Takes an older order one step further. What moves goods is one transaction over both databases.
    pub(super) async fn fulfil(&mut self) -> Result<u64> {
        let Some(index) = self.find(&[Stage::Paid, Stage::Packed, Stage::Shipped]) else {
            return Ok(0);
        };
        let (order, stage) = self.orders[index];
        let (next, changes) = match stage {
            Stage::Paid => {
                let mut script = Script::new();
                set_status(&mut script, order, "packed");
                script.event(Event::Packed);
                (Stage::Packed, self.commit_orders(script).await?)
            }
            Stage::Packed => {
                let mut script = Script::branch();
                set_status(&mut script, order, "shipped");
                script.event(Event::Shipped);
                let goods = release(order, "shipped");
                (Stage::Shipped, self.commit_both(script, goods).await?)
            }
            Stage::Shipped | Stage::Delivered => {
                let mut script = Script::branch();
                set_status(&mut script, order, "delivered");
                script.event(Event::Delivered);
                let mut done = Script::branch();
                let sql = format!(
                    "DELETE FROM reservations WHERE order_id = '{order}' AND state = 'shipped'"
                );
                done.change(Table::Reservations, Op::Delete, &sql);
                (Stage::Delivered, self.commit_both(script, done).await?)
            }
        };
        self.orders[index].1 = next;
        Ok(changes)
    }

    /// Gives an order up, and its goods back to the shelf, in one transaction over both databases.
    pub(super) async fn cancel(&mut self) -> Result<u64> {
        let Some(index) = self.find(&[Stage::Paid, Stage::Packed]) else {
            return Ok(0);
        };
        let (order, _) = self.orders.swap_remove(index);
        let mut script = Script::branch();
        set_status(&mut script, order, "cancelled");
        settle_payment(&mut script, order, "voided");
        script.event(Event::Cancelled);
        self.commit_both(script, release(order, "cancelled")).await
    }

    pub(super) async fn refund(&mut self) -> Result<u64> {
        let Some(index) = self.find(&[Stage::Delivered]) else {
            return Ok(0);
        };
        let (order, _) = self.orders.swap_remove(index);
        let reason = self
            .random
            .chance(80)
            .then(|| goods::prose(&mut self.random, 50));
        let reason = reason.map_or_else(|| "NULL".into(), quote);
        let mut script = Script::new();
        self.add_refund(&mut script, order, &reason);
        settle_payment(&mut script, order, "refunded");
        script.event(Event::Refund);
        let mut changes = self.commit_orders(script).await?;
        if self.random.chance(20) {
            let mut script = Script::new();
            self.add_refund(&mut script, order, &reason);
            script.event(Event::RetriedRefund);
            changes += self.commit_orders(script).await?;
        }
        Ok(changes)
    }

    fn add_refund(&mut self, script: &mut Script, order: Uuid, reason: &str) {
        let id = self.random.uuid();
        let sql = format!(
            "INSERT INTO refunds (id, payment_id, order_id, idempotency_key, amount, reason)
             SELECT '{id}'::uuid, id, order_id, 'ref_{order}', amount, {reason} FROM payments
             WHERE order_id = '{order}' ORDER BY seq LIMIT 1"
        );
        script.change(Table::Refunds, Op::Insert, &sql);
    }

    /// A new price. The description, long or not, stays as it is; now and then it gets a word more.
    pub(super) async fn reprice(&mut self) -> Result<u64> {
        let sku = goods::sku(self.random.popular(self.shared.products));
        let percent = self.random.between(80, 125);
        let more = if self.random.chance(10) {
            ", description = coalesce(description, '') || ' ✓'"
        } else {
            ""
        };
        let sql = format!(
            "UPDATE products SET price = round(price * {percent} / 100, 2) + 0.01, updated_at = now(){more} WHERE sku = '{sku}'"
        );
        let mut script = Script::new();
        script.change(Table::Products, Op::Update, &sql);
        script.event(Event::Repriced);
        self.commit_inventory(script).await
    }

    pub(super) async fn restock(&mut self) -> Result<u64> {
        let sku = goods::sku(self.random.popular(self.shared.products));
        let warehouse = self.random.pick(WAREHOUSES);
        let units = self.random.between(10, 200);
        let mut script = Script::new();
        script.change(
            Table::Stock,
            Op::Update,
            &format!(
                "UPDATE stock SET on_hand = on_hand + {units}, updated_at = now()
                 WHERE sku = '{sku}' AND warehouse = '{warehouse}'"
            ),
        );
        script.change(
            Table::StockMovements,
            Op::Insert,
            &format!(
                "INSERT INTO stock_movements (sku, warehouse, on_hand_delta, reserved_delta, reason)
                 VALUES ('{sku}', '{warehouse}', {units}, 0, 'received')"
            ),
        );
        script.event(Event::Restocked);
        self.commit_inventory(script).await
    }
}

/// Ends the held reservations of an order: `shipped` takes the goods from the shelf, `cancelled` leaves them there.
fn release(order: Uuid, reason: &str) -> Script {
    let held = format!("r.order_id = '{order}' AND r.state = 'held'");
    let gone = if reason == "shipped" {
        "r.quantity"
    } else {
        "0"
    };
    let mut script = Script::branch();
    script.run(&format!(
        "SELECT 1 FROM stock s JOIN reservations r USING (sku, warehouse) WHERE {held}
         ORDER BY s.sku, s.warehouse FOR UPDATE OF s"
    ));
    script.change(
        Table::Stock,
        Op::Update,
        &format!(
            "UPDATE stock s SET on_hand = s.on_hand - {gone}, reserved = s.reserved - r.quantity, updated_at = now()
             FROM reservations r WHERE {held} AND s.sku = r.sku AND s.warehouse = r.warehouse"
        ),
    );
    script.change(
        Table::StockMovements,
        Op::Insert,
        &format!(
            "INSERT INTO stock_movements (sku, warehouse, on_hand_delta, reserved_delta, reason, order_id)
             SELECT r.sku, r.warehouse, -{gone}, -r.quantity, '{reason}', r.order_id FROM reservations r WHERE {held}"
        ),
    );
    if reason == "shipped" {
        let sql = format!("UPDATE reservations r SET state = 'shipped' WHERE {held}");
        script.change(Table::Reservations, Op::Update, &sql);
    } else {
        let sql = format!("DELETE FROM reservations r WHERE {held}");
        script.change(Table::Reservations, Op::Delete, &sql);
    }
    script
}

pub(super) fn set_status(script: &mut Script, order: Uuid, status: &str) {
    let sql =
        format!("UPDATE orders SET status = '{status}', updated_at = now() WHERE id = '{order}'");
    script.change(Table::Orders, Op::Update, &sql);
}

/// A payment that was sent more than once is never changed: which of its attempts a consumer keeps must not matter.
fn settle_payment(script: &mut Script, order: Uuid, status: &str) {
    let sql = format!(
        "UPDATE payments SET status = '{status}' WHERE order_id = '{order}'
         AND (SELECT count(*) FROM payments WHERE order_id = '{order}') = 1"
    );
    script.change(Table::Payments, Op::Update, &sql);
}

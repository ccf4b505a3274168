//! What the load did, counted from what the servers answered.

use std::sync::atomic::{AtomicU64, Ordering};

use lockstep_core::batch::Op;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:expr,)* } -> $type:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// All of them, in order.
            pub const ALL: &[$name] = &[$($name::$variant,)*];

            fn word(self) -> $type {
                match self { $($name::$variant => $word,)* }
            }
        }
    };
}

words! {
    /// The tables of the shop.
    Table {
        /// `orders.carts`
        Carts = "carts",
        /// `orders.orders`
        Orders = "orders",
        /// `orders.order_items`
        OrderItems = "order_items",
        /// `orders.payments`
        Payments = "payments",
        /// `orders.refunds`
        Refunds = "refunds",
        /// `inventory.products`
        Products = "products",
        /// `inventory.stock`
        Stock = "stock",
        /// `inventory.reservations`
        Reservations = "reservations",
        /// `inventory.stock_movements`
        StockMovements = "stock_movements",
    } -> &'static str
}

words! {
    /// What happens in the shop.
    Event {
        /// An order with its items, its payment and its reservations.
        Purchase = ["purchase", "purchases"],
        /// A payment that came a second or third time with the same idempotency key.
        RetriedPayment = ["payment sent again", "payments sent again"],
        /// A payment refused inside its transaction (a savepoint rolled back), then accepted.
        DeclinedPayment = ["payment declined first", "payments declined first"],
        /// An order given up before its commit; nothing of it reaches the log's readers.
        Abandoned = ["order rolled back", "orders rolled back"],
        /// An order packed.
        Packed = ["order packed", "orders packed"],
        /// An order shipped, its goods off the shelf.
        Shipped = ["order shipped", "orders shipped"],
        /// An order delivered, its reservations deleted.
        Delivered = ["order delivered", "orders delivered"],
        /// An order cancelled, its reservations deleted.
        Cancelled = ["order cancelled", "orders cancelled"],
        /// A refund.
        Refund = ["refund", "refunds"],
        /// A refund that came again with the same idempotency key.
        RetriedRefund = ["refund sent again", "refunds sent again"],
        /// A cart created or changed.
        CartEdit = ["cart edited", "carts edited"],
        /// A guest's cart that got another primary key.
        CartMerged = ["cart given another key", "carts given another key"],
        /// A cart deleted.
        CartDeleted = ["cart deleted", "carts deleted"],
        /// A new price; the long description stays as it is.
        Repriced = ["price changed", "prices changed"],
        /// Goods received.
        Restocked = ["restock", "restocks"],
        /// A row of the import by COPY.
        ImportedRow = ["row imported by COPY", "rows imported by COPY"],
        /// A column added in mid-stream.
        SchemaChange = ["schema change", "schema changes"],
        /// A transaction that committed.
        Transaction = ["transaction", "transactions"],
    } -> [&'static str; 2]
}

impl Event {
    /// For people, after the number of times: `1 refund`, `2 refunds`.
    #[must_use]
    pub fn label(self, times: u64) -> &'static str {
        let [one, many] = self.word();
        if times == 1 { one } else { many }
    }
}

impl Table {
    /// Its name, without schema.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.word()
    }

    /// Which of the two databases it lies in, as the demo's pipeline file names it.
    #[must_use]
    pub fn source(self) -> &'static str {
        match self {
            Table::Carts | Table::Orders | Table::OrderItems | Table::Payments | Table::Refunds => {
                "orders"
            }
            Table::Products | Table::Stock | Table::Reservations | Table::StockMovements => {
                "inventory"
            }
        }
    }
}

/// The changes of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableCounts {
    /// Rows inserted.
    pub inserts: u64,
    /// Rows updated.
    pub updates: u64,
    /// Rows deleted.
    pub deletes: u64,
}

impl TableCounts {
    /// All of them.
    #[must_use]
    pub fn total(self) -> u64 {
        self.inserts + self.updates + self.deletes
    }
}

/// What was done up to a moment. Only what has committed counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    tables: [TableCounts; Table::ALL.len()],
    events: [u64; Event::ALL.len()],
}

impl Counts {
    /// Changes of a table.
    #[must_use]
    pub fn table(&self, table: Table) -> TableCounts {
        self.tables[table as usize]
    }

    /// How often something happened.
    #[must_use]
    pub fn event(&self, event: Event) -> u64 {
        self.events[event as usize]
    }

    /// Changes of all tables.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.tables.iter().map(|table| table.total()).sum()
    }
}

/// [`Counts`] in the making.
#[derive(Debug, Default)]
pub(super) struct Counters {
    tables: [[AtomicU64; 3]; Table::ALL.len()],
    events: [AtomicU64; Event::ALL.len()],
}

impl Counters {
    pub(super) fn add_changes(&self, table: Table, op: Op, rows: u64) {
        let slot = match op {
            Op::Insert => 0,
            Op::Update => 1,
            Op::Delete => 2,
            Op::Read | Op::Truncate | Op::Message | Op::Event => return,
        };
        self.tables[table as usize][slot].fetch_add(rows, Ordering::Relaxed);
    }

    pub(super) fn add_event(&self, event: Event, times: u64) {
        self.events[event as usize].fetch_add(times, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            tables: self
                .tables
                .each_ref()
                .map(|[inserts, updates, deletes]| TableCounts {
                    inserts: read(inserts),
                    updates: read(updates),
                    deletes: read(deletes),
                }),
            events: self.events.each_ref().map(read),
        }
    }
}

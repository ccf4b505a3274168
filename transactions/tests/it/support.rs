//! A shop in two databases, and purchases that change both.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lockstep_core::Result;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::wait_for;
use lockstep_transactions::coordinator::{
    Builder, Committed, Coordinator, Direct, Onlooker, Point, Settings,
};
use lockstep_transactions::gid::{Own, Xid};
use tokio::sync::{Notify, watch};
use tokio_postgres::{Config, NoTls};

/// How long a test waits for something that should happen soon.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The name of every coordinator here: databases are the tests' own.
pub const NAME: &str = "shop";

/// Where the log is, and so which form a transaction takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// In `orders`, whose branch commits with the decision.
    Marked,
    /// In a database of its own: both branches are prepared.
    Full,
}

impl Form {
    pub const BOTH: [Form; 2] = [Form::Marked, Form::Full];

    pub fn log(self) -> &'static str {
        match self {
            Form::Marked => "orders",
            Form::Full => "decisions",
        }
    }
}

/// `orders` and `decisions` on PostgreSQL 15, `inventory` on 17.
pub struct Shop {
    pub orders: Database,
    pub inventory: Database,
    pub decisions: Database,
}

impl Shop {
    /// On the servers that tests share.
    pub async fn open() -> Self {
        Self::on(Postgres::shared(15).await, Postgres::shared(17).await).await
    }

    pub async fn on(first: &Postgres, second: &Postgres) -> Self {
        let shop = Shop {
            orders: first.database("orders").await,
            inventory: second.database("inventory").await,
            decisions: first.database("decisions").await,
        };
        for database in [&shop.orders, &shop.inventory] {
            let tables = "CREATE TABLE t (id bigint PRIMARY KEY, note text); \
                CREATE TABLE late (id bigint UNIQUE DEFERRABLE INITIALLY DEFERRED)";
            database.execute(tables).await;
        }
        shop
    }

    /// A coordinator of the three, its times short.
    pub fn coordinator(&self, form: Form) -> Builder {
        let inventory = self.inventory.url();
        self.through(form, self.orders.url(), inventory)
    }

    /// The same, with other ways to two of the databases.
    pub fn through(&self, form: Form, orders: &str, inventory: &str) -> Builder {
        builder([orders, inventory, self.decisions.url()], form)
    }

    /// The ids of the rows in `orders` and in `inventory`.
    pub async fn rows(&self) -> [String; 2] {
        let ids = "SELECT coalesce(string_agg(id::text, ',' ORDER BY id), '') FROM t";
        let (orders, inventory) = (
            self.orders.value(ids).await,
            self.inventory.value(ids).await,
        );
        [orders, inventory].map(Option::unwrap_or_default)
    }

    /// How many transactions are prepared in `orders` and in `inventory`.
    pub async fn prepared(&self) -> [usize; 2] {
        [
            gids(&self.orders).await.len(),
            gids(&self.inventory).await.len(),
        ]
    }

    /// Waits until nothing is prepared, and tells the rows.
    pub async fn settle(&self) -> [String; 2] {
        wait_for(DEADLINE, "nothing to be prepared", async || {
            let prepared = self.prepared().await;
            (prepared == [0, 0]).then_some(()).ok_or(prepared)
        })
        .await;
        self.rows().await
    }

    pub fn log(&self, form: Form) -> &Database {
        match form {
            Form::Marked => &self.orders,
            Form::Full => &self.decisions,
        }
    }

    /// Decisions in the log.
    pub async fn decisions(&self, form: Form) -> String {
        let count = "SELECT count(*) FROM lockstep.gtx_log";
        self.log(form).value(count).await.expect("a count")
    }

    /// What the coordinator calls a branch of a transaction.
    pub async fn gid(&self, form: Form, id: &str, branch: u16) -> String {
        let log = self.log(form).value("SELECT id FROM lockstep.gtx_identity");
        let log: i64 = log.await.expect("an id").parse().expect("a number");
        // Any qualifier will do to read the rest.
        let xid = Xid::parse(&format!("{id}_AQ==")).expect("an id");
        let (epoch, drawn) = xid.global.split_first_chunk().expect("an epoch");
        let own = Own {
            epoch: u32::from_be_bytes(*epoch),
            drawn: drawn.try_into().expect("12 bytes"),
            branch,
            branches: 2,
            log: log.cast_unsigned(),
        };
        own.to_string()
    }
}

/// By the URLs of `orders`, `inventory` and `decisions`.
pub fn builder(urls: [&str; 3], form: Form) -> Builder {
    let direct = |url: &str| Direct::new(url.parse::<Config>().expect("a URL"), NoTls);
    Coordinator::builder(NAME)
        .database("orders", direct(urls[0]))
        .database("inventory", direct(urls[1]))
        .database("decisions", direct(urls[2]))
        .log(form.log())
        .settings(Settings {
            patience: DEADLINE,
            recover_every: Duration::from_millis(50),
            ..Settings::default()
        })
}

/// What is prepared in a database.
pub async fn gids(database: &Database) -> Vec<String> {
    let all = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY gid";
    let rows = database.client().await.query(all, &[]).await.expect("rows");
    rows.iter().map(|row| row.get(0)).collect()
}

/// Buys, with a row of this id in both databases.
pub async fn buy(coordinator: &Coordinator, id: i64) -> Result<Committed> {
    let purchase = coordinator.begin(["orders", "inventory"]).await?;
    for client in purchase.branches() {
        let insert = format!("INSERT INTO t VALUES ({id}, 'bought')");
        client.batch_execute(&insert).await.expect("inserts");
    }
    purchase.commit().await
}

/// Rows of a purchase that is in both databases, or in none.
pub fn both(id: &str) -> [String; 2] {
    [id, id].map(str::to_owned)
}

/// Something that happens when a place is reached, the first time. The transaction waits until it has.
#[derive(Clone, Default)]
pub struct Happens(Arc<Mutex<Stops>>);

type Stops = HashMap<(Point, String), Arc<Stop>>;

/// A transaction that has come to a place, and waits.
pub struct Stop {
    reached: watch::Sender<bool>,
    go_on: Notify,
}

impl Happens {
    /// Everything that reaches the place waits for [`Stop::go_on`].
    pub fn stop_at(&self, point: Point, database: &str) -> Arc<Stop> {
        let stop = Arc::new(Stop {
            reached: watch::Sender::new(false),
            go_on: Notify::new(),
        });
        let place = (point, database.to_owned());
        self.0
            .lock()
            .expect("a lock")
            .insert(place, Arc::clone(&stop));
        stop
    }
}

impl Stop {
    /// Waits until a transaction has come here.
    pub async fn reached(&self) {
        let mut reached = self.reached.subscribe();
        let came = reached.wait_for(|reached| *reached);
        let came = tokio::time::timeout(DEADLINE, came).await;
        came.expect("reached in time").expect("not dropped");
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.go_on.notify_one();
    }
}

#[async_trait]
impl Onlooker for Happens {
    async fn reached(&self, point: Point, database: &str) {
        let stop = self
            .0
            .lock()
            .expect("a lock")
            .remove(&(point, database.to_owned()));
        if let Some(stop) = stop {
            stop.reached.send_replace(true);
            stop.go_on.notified().await;
        }
    }
}

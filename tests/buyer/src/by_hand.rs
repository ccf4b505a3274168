//! Two-phase commits by plain SQL, and their recovery.
//!
//! The decision is a row of `decided_by_hand`, which says how it was decided: who recovers takes the place of those that are not, so that
//! nobody else can decide them any more, and whoever recovers after him reads what he wrote.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lockstep_kit::random::Random;
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::{LOOK_BEHIND, Options, Purchase, Result, dawdle, reach};

/// The format of Bitronix' ids: a manager that is known, and buys nothing itself beside this.
const FORMAT: i32 = 1_114_926_712;

/// Which of the two forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `orders` commits with the decision, `inventory` is prepared.
    Marked,
    /// Both are prepared, by the names of an XA manager.
    Xa,
}

/// One worker with its sessions. It has one purchase at a time, so nothing else of its name is prepared between two of them.
pub(crate) struct ByHand {
    form: Form,
    /// What its transactions' names begin with.
    prefix: String,
    orders: Client,
    inventory: Client,
    looked: Instant,
}

fn prefix(options: &Options) -> String {
    format!("shop-{}-", options.number)
}

impl ByHand {
    pub(crate) async fn open(options: &Options, form: Form, worker: u64) -> Self {
        let mut opened = ByHand {
            form,
            prefix: format!("{}{worker}-", prefix(options)),
            orders: reach(&options.orders).await,
            inventory: reach(&options.inventory).await,
            looked: Instant::now(),
        };
        opened.end_mine(options).await;
        opened
    }

    /// With new sessions, after something has gone wrong with the old ones.
    pub(crate) async fn open_again(&mut self, options: &Options) {
        self.orders = reach(&options.orders).await;
        self.inventory = reach(&options.inventory).await;
        self.end_mine(options).await;
    }

    /// Ends what is prepared in this worker's name.
    async fn end_mine(&mut self, options: &Options) {
        while let Err(error) = self.try_end().await {
            eprintln!("{}: {error}", self.prefix);
            self.orders = reach(&options.orders).await;
            self.inventory = reach(&options.inventory).await;
        }
    }

    async fn try_end(&mut self) -> Result<()> {
        self.looked = Instant::now();
        end_all(&self.orders, &self.inventory, self.form, &self.prefix).await
    }

    pub(crate) async fn buy(&mut self, purchase: &Purchase, random: &mut Random) -> Result<()> {
        if self.looked.elapsed() > LOOK_BEHIND {
            self.try_end().await?;
        }
        let name = format!("{}{}", self.prefix, purchase.number);
        match self.form {
            Form::Marked => self.marked(purchase, &name, random).await,
            Form::Xa => self.prepared(purchase, &name, random).await,
        }
    }

    async fn marked(&self, purchase: &Purchase, name: &str, random: &mut Random) -> Result<()> {
        let says = |branch: u32| {
            let content = format!(r#"{{"g": "{name}", "n": 2, "b": {branch}}}"#);
            format!("SELECT pg_logical_emit_message(true, 'gtx', '{content}')")
        };
        let reserve = format!(
            "BEGIN; {}; {}; PREPARE TRANSACTION '{name}'",
            says(2),
            purchase.reserve()
        );
        self.inventory.batch_execute(&reserve).await?;
        dawdle(random).await;
        if purchase.gives_up {
            let rollback = format!("ROLLBACK PREPARED '{name}'");
            return Ok(self.inventory.batch_execute(&rollback).await?);
        }
        let order = format!(
            "BEGIN; {}; {}; INSERT INTO decided_by_hand (name, commits) VALUES ('{name}', true); COMMIT",
            says(1),
            purchase.order()
        );
        self.orders.batch_execute(&order).await?;
        dawdle(random).await;
        let commit = format!("COMMIT PREPARED '{name}'");
        Ok(self.inventory.batch_execute(&commit).await?)
    }

    async fn prepared(&self, purchase: &Purchase, name: &str, random: &mut Random) -> Result<()> {
        let prepare = |work: &str, of: &str| {
            format!("BEGIN; {work}; PREPARE TRANSACTION '{}'", gid(name, of))
        };
        let order = prepare(&purchase.order(), "orders");
        self.orders.batch_execute(&order).await?;
        dawdle(random).await;
        let reserve = prepare(&purchase.reserve(), "inventory");
        self.inventory.batch_execute(&reserve).await?;
        dawdle(random).await;
        let word = match purchase.gives_up {
            true => "ROLLBACK",
            false => {
                let decide = "INSERT INTO decided_by_hand (name, commits) VALUES ($1, true)";
                self.orders.execute(decide, &[&name]).await?;
                "COMMIT"
            }
        };
        let mut both = [(&self.orders, "orders"), (&self.inventory, "inventory")];
        random.shuffle(&mut both);
        for (client, of) in both {
            dawdle(random).await;
            let end = format!("{word} PREPARED '{}'", gid(name, of));
            client.batch_execute(&end).await?;
        }
        Ok(())
    }
}

/// As pgjdbc writes an XA id.
fn gid(global: &str, branch: &str) -> String {
    let (global, branch) = (STANDARD.encode(global), STANDARD.encode(branch));
    format!("{FORMAT}_{global}_{branch}")
}

/// What [`gid`] was made from first.
fn global(gid: &str) -> Option<String> {
    let rest = gid.strip_prefix(&format!("{FORMAT}_"))?;
    let (global, _) = rest.split_once('_')?;
    String::from_utf8(STANDARD.decode(global).ok()?).ok()
}

/// Ends what all workers of a buyer have left behind.
pub(crate) async fn end(options: &Options, form: Form) -> Result<()> {
    let orders = reach(&options.orders).await;
    let inventory = reach(&options.inventory).await;
    end_all(&orders, &inventory, form, &prefix(options)).await
}

/// Ends what is prepared under names that begin so.
async fn end_all(orders: &Client, inventory: &Client, form: Form, prefix: &str) -> Result<()> {
    for client in [orders, inventory] {
        let all = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()";
        for row in client.query(all, &[]).await? {
            let gid: &str = row.get(0);
            let name = match form {
                Form::Marked => Some(gid.to_owned()),
                Form::Xa => global(gid),
            };
            let Some(name) = name.filter(|name| name.starts_with(prefix)) else {
                continue;
            };
            // Waits for a decision that is under way.
            let take = "INSERT INTO decided_by_hand (name, commits) VALUES ($1, false) ON CONFLICT DO NOTHING";
            orders.execute(take, &[&name]).await?;
            let ask = "SELECT commits FROM decided_by_hand WHERE name = $1";
            let word = match orders.query_one(ask, &[&name]).await?.get(0) {
                true => "COMMIT",
                false => "ROLLBACK",
            };
            client
                .batch_execute(&format!("{word} PREPARED '{gid}'"))
                .await?;
        }
    }
    Ok(())
}

//! By the coordinator of `lockstep-transactions`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use lockstep_core::Result as CoreResult;
use lockstep_kit::random::Random;
use lockstep_transactions::coordinator::{Coordinator, Direct, Onlooker, Point, Settings};
use tokio::time::sleep;
use tokio_postgres::NoTls;

use crate::{AGAIN, Kind, Options, Purchase, Result, config, dawdle};

/// All workers of the process share one.
#[derive(Clone)]
pub(crate) struct Coordinated(Arc<Coordinator>);

impl Coordinated {
    /// Opens it as soon as the database of its log can be reached: what the one before has left behind is ended.
    pub(crate) async fn open(options: &Options) -> Self {
        loop {
            match open(options).await {
                Ok(coordinator) => return Coordinated(Arc::new(coordinator)),
                Err(error) => eprintln!("{error}"),
            }
            sleep(AGAIN).await;
        }
    }

    pub(crate) async fn buy(&self, purchase: &Purchase) -> Result<()> {
        let global = self.0.begin(["orders", "inventory"]).await?;
        let [orders, inventory] = global.branches();
        orders.batch_execute(&purchase.order()).await?;
        inventory.batch_execute(&purchase.reserve()).await?;
        if purchase.gives_up {
            // One that is only dropped takes its sessions along.
            global.roll_back().await;
            return Ok(());
        }
        global.commit().await?;
        Ok(())
    }

    /// Returns when what was left behind has ended. It was looked for when this was opened.
    pub(crate) async fn end(&self) -> Result<()> {
        self.0.settled().await;
        Ok(())
    }
}

async fn open(options: &Options) -> CoreResult<Coordinator> {
    let direct = |url: &str| {
        let config = config(url).expect("clients have connected by the same URL before");
        Direct::new(config, NoTls)
    };
    let log = match options.kind {
        Kind::Full => "decisions",
        _ => "orders",
    };
    Coordinator::builder(&format!("buyer-{}", options.number))
        .database("orders", direct(&options.orders))
        .database("inventory", direct(&options.inventory))
        .database("decisions", direct(&options.decisions))
        .log(log)
        .onlooker(Dawdles(Mutex::new(Random::seeded(
            options.seed ^ options.run,
        ))))
        .settings(Settings {
            recover_every: Duration::from_secs(1),
            ..Settings::default()
        })
        .open()
        .await
}

/// Lets a transaction wait where it is.
struct Dawdles(Mutex<Random>);

#[async_trait]
impl Onlooker for Dawdles {
    async fn reached(&self, _: Point, _: &str) {
        let mut random = {
            let mut random = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            random.fork()
        };
        dawdle(&mut random).await;
    }
}

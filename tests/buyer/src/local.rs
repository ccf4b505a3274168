//! Transactions of one database.

use tokio_postgres::Client;

use crate::{Options, Purchase, Result, reach};

/// One that only looks.
pub(crate) struct Local {
    orders: Client,
    inventory: Client,
}

impl Local {
    pub(crate) async fn open(options: &Options) -> Self {
        Local {
            orders: reach(&options.orders).await,
            inventory: reach(&options.inventory).await,
        }
    }

    pub(crate) async fn visit(&mut self, purchase: &Purchase) -> Result<()> {
        let visit = format!("INSERT INTO visits (id) VALUES ({})", purchase.number);
        self.orders.batch_execute(&visit).await?;
        let seen = format!(
            "UPDATE stock SET version = version + 1 WHERE id = {}",
            purchase.article
        );
        self.inventory.batch_execute(&seen).await?;
        Ok(())
    }
}

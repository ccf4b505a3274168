//! Where the log ends, for those who wait until it has been read up to there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use lockstep_core::error::Result;
use lockstep_core::position::Lsn;
use lockstep_core::source::Fences;
use tokio::sync::{Mutex, Notify};
use tokio_postgres::Client;

use lockstep_pg::sql;
use lockstep_pg::wire::target::Target;

/// What is not flushed is of no transaction whose PREPARE or COMMIT has been answered.
const ASK: &str =
    "SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_flush_lsn(), '0/0')::int8";

/// How far somebody waits for the stream to come.
#[derive(Debug, Default)]
pub struct Wanted {
    lsn: AtomicU64,
    changed: Notify,
}

impl Wanted {
    /// The furthest place that anybody waits for.
    pub fn get(&self) -> Lsn {
        Lsn(self.lsn.load(Ordering::Acquire))
    }

    /// Pends until somebody waits for a place. For one reader. Cancel-safe.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn want(&self, lsn: Lsn) {
        self.lsn.fetch_max(lsn.0, Ordering::AcqRel);
        self.changed.notify_one();
    }
}

/// Asks the server, over a connection of its own.
pub struct Fence {
    target: Target,
    client: Mutex<Option<Client>>,
    wanted: Arc<Wanted>,
}

impl Fence {
    /// `wanted` is what the stream looks at.
    pub fn new(target: Target, wanted: Arc<Wanted>) -> Self {
        Fence {
            target,
            client: Mutex::new(None),
            wanted,
        }
    }
}

#[async_trait]
impl Fences for Fence {
    async fn fence(&self) -> Result<Lsn> {
        let mut open = self.client.lock().await;
        let client = match open.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => sql::connect(&self.target).await?,
        };
        let row = sql::query_one(&client, "ask where the log ends", ASK, &[]).await?;
        // Not put back when the question failed, or was given up: the next one has a connection of its own.
        *open = Some(client);
        let lsn = Lsn(row.get::<_, i64>(0) as u64);
        self.wanted.want(lsn);
        Ok(lsn)
    }
}

//! Where the log ends, for those who wait until it has been read up to there; and what is prepared, for those who do not wait for its commit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as Lock, PoisonError};

use async_trait::async_trait;
use lockstep_core::batch::Prepared;
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

/// Whether a branch is prepared still. What the server has sent of one may have been rolled back while it was decoded, and then is not all of it.
/// One of its name that was prepared at another time is another one: coordinators try again under the name of what they gave up.
const LISTS: &str = "SELECT 1 FROM pg_catalog.pg_prepared_xacts \
    WHERE gid = $1 AND database = pg_catalog.current_database() \
    AND (extract(epoch FROM prepared) * 1000000)::int8 = $2";

/// How far somebody waits for the stream to come, and what he asks it for.
#[derive(Debug, Default)]
pub struct Wanted {
    lsn: AtomicU64,
    /// Branches whose rows are asked for, by where they were prepared.
    early: Lock<Vec<Lsn>>,
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

    /// Branches whose rows are asked for, once each.
    pub fn early(&self) -> Vec<Lsn> {
        std::mem::take(&mut *self.early.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn want_early(&self, lsn: Lsn) {
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        if !early.contains(&lsn) {
            early.push(lsn);
        }
        drop(early);
        self.changed.notify_one();
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

    async fn client(&self, open: &mut Option<Client>) -> Result<Client> {
        match open.take().filter(|client| !client.is_closed()) {
            Some(client) => Ok(client),
            None => sql::connect(&self.target).await,
        }
    }
}

#[async_trait]
impl Fences for Fence {
    async fn fence(&self) -> Result<Lsn> {
        let mut open = self.client.lock().await;
        let client = self.client(&mut open).await?;
        let row = sql::query_one(&client, "ask where the log ends", ASK, &[]).await?;
        // Not put back when the question failed, or was given up: the next one has a connection of its own.
        *open = Some(client);
        let lsn = Lsn(row.get::<_, i64>(0) as u64);
        self.wanted.want(lsn);
        Ok(lsn)
    }

    async fn early(&self, prepared: &Arc<Prepared>) -> Result<bool> {
        let mut open = self.client.lock().await;
        let client = self.client(&mut open).await?;
        let doing = "ask whether a branch is prepared still";
        let rows = sql::query(&client, doing, LISTS, &[&&*prepared.gid, &prepared.micros]).await?;
        *open = Some(client);
        if rows.is_empty() {
            return Ok(false);
        }
        self.wanted.want_early(prepared.lsn);
        Ok(true)
    }
}

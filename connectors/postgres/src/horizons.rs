//! Places of the log that rows were written behind, by the numbers of the transactions that wrote them.
//!
//! A snapshot shows which transaction wrote a row last (`xmin`), and not where in the log it was committed. A *horizon* is a
//! place of the log and a number of a transaction, of which is certain: that transaction, and each with a higher number, got its
//! number when the log had reached the place. What it wrote lies behind the place then, and its commit behind that. Two things
//! make horizons:
//!
//! - A fence ([`crate::reload`]). What has passed in the stream before it is committed the log had reached, and the place where the
//!   stream began. The fence's number is given after, and higher ones later still: numbers are given in order.
//! - A checkpoint of the server. `CreateCheckPoint` in PostgreSQL's `xlog.c` fixes the redo pointer first, and reads the
//!   next number to be given afterwards; `pg_control_checkpoint()` tells both of the last one, on standbys too.
//!
//! What a snapshot calls `xmax` makes none: a transaction below it, and some above, may have been committed in the log long before
//! snapshots see that.
//!
//! Of two places the later tells more; but any horizon stays true for as long as the log goes on, so some can be forgotten at will.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lockstep_core::error::Result;
use lockstep_core::folder::Folder;
use lockstep_core::position::{Lsn, SourceIdentity};
use lockstep_pg::error::protocol;
use lockstep_pg::sql;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

/// Horizons that are kept.
const MOST: usize = 1_000;
/// The shortest time between two writes: what is lost of it by a crash makes reports say less, and not wrong.
const WRITE_EVERY: Duration = Duration::from_secs(60);

const CHECKPOINT: &str = "SELECT pg_catalog.pg_wal_lsn_diff(redo_lsn, '0/0')::int8, next_xid \
    FROM pg_catalog.pg_control_checkpoint()";

/// Transactions with this number or a higher one got it when the log had reached this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(Lsn, u64)", into = "(Lsn, u64)")]
pub struct Horizon {
    pub reached: Lsn,
    pub xid: u64,
}

impl From<(Lsn, u64)> for Horizon {
    fn from((reached, xid): (Lsn, u64)) -> Self {
        Horizon { reached, xid }
    }
}

impl From<Horizon> for (Lsn, u64) {
    fn from(horizon: Horizon) -> Self {
        (horizon.reached, horizon.xid)
    }
}

/// What is known of one log: places and numbers both ascend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known(Vec<Horizon>);

impl Known {
    /// False when it says nothing that the others do not.
    fn note(&mut self, new: Horizon) -> bool {
        let all = &mut self.0;
        let later = all.partition_point(|known| known.reached < new.reached);
        if all.get(later).is_some_and(|known| known.xid <= new.xid) {
            return false;
        }
        // Those between say less than the new one.
        let from = all.partition_point(|known| known.xid < new.xid);
        let to = all.partition_point(|known| known.reached <= new.reached);
        all.splice(from..to, [new]);
        self.thin();
        true
    }

    /// Forgets those whose neighbours are close for how far back they are: what is old need not be known as exactly as
    /// what is recent.
    fn thin(&mut self) {
        while self.0.len() > MOST {
            let end = self.0.last().map_or(0, |last| last.reached.0);
            let share = |around: &[Horizon]| match around {
                [before, this, next] => {
                    let gap = next.reached.0 - before.reached.0;
                    gap as f64 / (end - this.reached.0) as f64
                }
                _ => f64::INFINITY,
            };
            let shares = self.0.windows(3).map(share).enumerate();
            let least = shares.min_by(|(_, a), (_, b)| a.total_cmp(b));
            match least {
                Some((before, _)) => drop(self.0.remove(before + 1)),
                None => return,
            }
        }
    }

    fn behind(&self, xid: u64) -> Option<Lsn> {
        let above = self.0.partition_point(|known| known.xid <= xid);
        let last = self.0.get(above.checked_sub(1)?)?;
        Some(last.reached)
    }
}

/// The file's content.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    /// Whose log, as the sinks know it.
    identity: SourceIdentity,
    horizons: Vec<Horizon>,
}

/// The name of the document in the source's state directory.
const NAME: &str = "horizons.json";

/// The horizons of a source's log, kept in its state directory. Clones share them.
#[derive(Clone, Default)]
pub struct Horizons(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    /// Where they are kept, and whose they are; nowhere by default.
    place: Option<(Folder, SourceIdentity)>,
    known: Known,
    /// Some are not on disk.
    news: bool,
    written_at: Option<Instant>,
}

impl Horizons {
    /// What is on disk of this log. Only what lies within what was `received` of it counts: that far it is proven to be the one
    /// that was read before ([ADR 9](../../../docs/adr/0009-lost-slots.md)), even where another server goes on with it now.
    /// What cannot be read is forgotten.
    pub fn open(folder: &Folder, identity: &SourceIdentity, received: Lsn) -> Self {
        let path = folder.join(NAME);
        let known = match read(folder) {
            Ok(Some(stored)) if stored.identity == *identity => {
                let mut known = Known::default();
                let shared = stored.horizons.into_iter();
                for horizon in shared.filter(|horizon| horizon.reached <= received) {
                    known.note(horizon);
                }
                known
            }
            Ok(Some(stored)) => {
                tracing::info!(path = %path.display(), former = %stored.identity, "horizons of another log are forgotten");
                Known::default()
            }
            Ok(None) => Known::default(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "horizons cannot be read, and are forgotten");
                Known::default()
            }
        };
        Horizons(Arc::new(Mutex::new(Kept {
            place: Some((folder.clone(), identity.clone())),
            known,
            news: false,
            written_at: None,
        })))
    }

    /// Takes one in.
    pub fn note(&self, horizon: Horizon) {
        let kept = &mut *self.lock();
        kept.news |= kept.known.note(horizon);
    }

    /// The latest place known that the log had reached when a transaction got its number.
    pub fn behind(&self, xid: u64) -> Option<Lsn> {
        self.lock().known.behind(xid)
    }

    /// Takes in the server's last checkpoint.
    ///
    /// # Errors
    /// The server's: the function may be withdrawn from who is not a superuser.
    pub async fn ask(&self, client: &Client) -> Result<()> {
        let row = sql::query_one(client, "look at the last checkpoint", CHECKPOINT, &[]).await?;
        let (redo, next): (i64, &str) = (row.get(0), row.get(1));
        let horizon = checkpoint(redo, next);
        self.note(horizon.ok_or_else(|| protocol(format!("`{next}` is not the next xid")))?);
        Ok(())
    }

    /// Whether there are some that should be on disk by now.
    pub fn is_due(&self) -> bool {
        let kept = self.lock();
        let recently = kept.written_at.is_some_and(|at| at.elapsed() < WRITE_EVERY);
        kept.news && !recently
    }

    /// Writes those that are not on disk. Blocks. A failure is told, and tried again with the next ones.
    pub fn save(&self) {
        let (folder, stored) = {
            let kept = &mut *self.lock();
            let Some((folder, identity)) = kept.place.as_ref().filter(|_| kept.news) else {
                return;
            };
            let stored = Stored {
                identity: identity.clone(),
                horizons: kept.known.0.clone(),
            };
            let folder = folder.clone();
            (kept.news, kept.written_at) = (false, Some(Instant::now()));
            (folder, stored)
        };
        if let Err(error) = folder.replace(NAME, &stored) {
            tracing::warn!(%error, "horizons cannot be kept for now");
            self.lock().news = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(folder: &Folder) -> std::io::Result<Option<Stored>> {
    let bytes = folder.read(NAME)?;
    Ok(bytes
        .map(|bytes| serde_json::from_slice(&bytes))
        .transpose()?)
}

/// Of the redo pointer, and of `epoch:xid`.
fn checkpoint(redo: i64, next: &str) -> Option<Horizon> {
    let (epoch, xid) = next.split_once(':')?;
    let (epoch, xid): (u32, u32) = (epoch.parse().ok()?, xid.parse().ok()?);
    Some(Horizon {
        reached: Lsn(u64::try_from(redo).ok()?),
        xid: u64::from(epoch) << 32 | u64::from(xid),
    })
}

#[cfg(test)]
mod tests;

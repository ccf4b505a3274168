//! Savepoints that were rolled back without a word of it.
//!
//! A server that reads a part of a transaction again, behind a restart, keeps it on disk up to the confirmed position. When it
//! streams the transaction then, it forgets that it has sent what its subtransactions had on disk, and sends no Stream Abort for
//! those that are rolled back (`ReorderBufferTruncateTXN` marks a subtransaction as streamed by what it has in memory;
//! PostgreSQL 14 to 18). So the commit is not the last word: what became of each is asked.

use std::sync::Arc;

use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_pg::sql;

use super::Receiver;
use crate::catalog::Catalog;
use crate::streamed::Committed;

/// Those that were rolled back, and those that are too old to be known. Ids have 32 bits in the stream: the nearest to the
/// next one is meant.
const ASK: &str = "\
SELECT x, status IS NULL FROM unnest($1::int8[]) x, \
LATERAL (SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::int8) s(next), \
LATERAL (SELECT pg_catalog.pg_xact_status((next - (next - x) % 4294967296)::text::xid8)) t(status) \
WHERE status IS DISTINCT FROM 'committed' AND status IS DISTINCT FROM 'in progress'";

impl Receiver {
    /// Passes over what was rolled back of a transaction that has committed.
    ///
    /// # Errors
    /// When the server cannot be asked, or does not know any more: then streaming is given up, and the server sends the
    /// transaction without what was rolled back.
    pub(super) async fn settle(&mut self, committed: &mut Committed) -> Result<()> {
        let xid = committed.head.xid;
        let pieces = committed.pieces();
        for part in pieces.parts() {
            let kept = pieces.kept(part);
            if kept.is_empty() {
                continue;
            }
            for (subxid, is_unknown) in self.rolled_back(kept).await? {
                if is_unknown {
                    self.gives_up_streaming = true;
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        format!(
                            "it is not known any more whether a savepoint of transaction {xid} was rolled back"
                        ),
                    ));
                }
                tracing::debug!(xid, subxid, "was rolled back, and nothing was said of it");
                pieces
                    .roll_back(subxid)
                    .inspect_err(|_| self.gives_up_streaming = true)?;
            }
        }
        Ok(())
    }

    async fn rolled_back(&mut self, ids: Vec<u32>) -> Result<Vec<(u32, bool)>> {
        let open = self.catalog.take();
        let (target, types) = (self.stream.target.clone(), self.stream.types.clone());
        let source = Arc::clone(&self.stream.source.name);
        let ask = async move {
            let catalog = match open.filter(|catalog| !catalog.client().is_closed()) {
                Some(catalog) => catalog,
                None => Catalog::new(sql::connect(&target).await?, source, types),
            };
            let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
            let doing = "ask what became of savepoints";
            let rows = sql::query(catalog.client(), doing, ASK, &[&ids]).await?;
            let rows = rows
                .iter()
                .map(|row| (row.get::<_, i64>(0) as u32, row.get(1)));
            let rows: Vec<(u32, bool)> = rows.collect();
            Ok((catalog, rows))
        };
        let (catalog, rows) = self.alive_during(ask).await?;
        self.catalog = Some(catalog);
        Ok(rows)
    }
}

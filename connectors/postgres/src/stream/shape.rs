//! Tables that come in a shape that is new to us.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_core::schema::{TableId, TableSchema};

use super::Receiver;
use crate::catalog::{Catalog, Described};

/// How long a transaction may be on disk and not visible.
const UNSEEN: Duration = Duration::from_secs(10);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(5);

impl Receiver {
    /// A table in a shape that is new to us. Tables are told apart by oid. One of ours under another name is an older
    /// state of it, from before a rename that we know of, or one that has been renamed since: then what `tables`,
    /// transforms and keys say of it does not hold any more, and a person must decide.
    pub(super) async fn define(&mut self, described: Described) -> Result<()> {
        let Some(ours) = self.ours(&described) else {
            self.assembler.define(described, None);
            return Ok(());
        };
        let known = self.stream.tables[ours].0.clone();
        let id = known.id.clone();
        // Descriptions come inside the transaction that they are for.
        let xid = self.assembler.current().map(|transaction| transaction.xid);
        let open = self.catalog.take();
        let (target, types) = (self.stream.target.clone(), self.stream.types.clone());
        let source = Arc::clone(&self.stream.source.name);
        let new = described.clone();
        let look_up = async move {
            let mut catalog = match open.filter(|catalog| !catalog.client().is_closed()) {
                Some(catalog) => catalog,
                None => Catalog::new(lockstep_pg::sql::connect(&target).await?, source, types),
            };
            if let Some(xid) = xid {
                until_visible(&catalog, xid).await?;
            }
            let (schema, is_now) = look_up(&mut catalog, new, known).await?;
            Ok((catalog, schema, is_now))
        };
        let (catalog, mut schema, is_now) = self.alive_during(look_up).await?;
        self.catalog = Some(catalog);
        let (known, last) = &mut self.stream.tables[ours];
        schema.version = last.version + 1;
        tracing::info!(
            source = &*self.stream.source.name,
            table = %id,
            columns = schema.columns.len(),
            version = schema.version,
            "the table has a new shape"
        );
        let schema = Arc::new(schema);
        *last = Arc::clone(&schema);
        // An earlier table of that name gives its place to nobody: what it is called later is another matter.
        if is_now {
            *known = Described {
                id,
                ..described.clone()
            };
        }
        self.assembler.define(described, Some(schema));
        Ok(())
    }

    /// Which of the tables to carry it is.
    pub(super) fn ours(&self, described: &Described) -> Option<usize> {
        let tables = &self.stream.tables;
        let mut known = tables.iter().map(|(known, _)| known);
        let same = known.position(|known| known.relation == described.relation);
        // Another table of that name: created anew, or an earlier one.
        same.or_else(|| {
            tables
                .iter()
                .position(|(known, _)| known.id == described.id)
        })
    }
}

/// Waits until others see what the transaction has done to the catalog: it is streamed once its commit is on disk, and is
/// visible a moment later. A synchronous standby makes that moment long.
///
/// # Errors
/// `Unavailable` when it takes too long.
async fn until_visible(catalog: &Catalog, xid: u32) -> Result<()> {
    let end = Instant::now() + UNSEEN;
    while !catalog.sees(xid).await? {
        if Instant::now() >= end {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "transaction {xid} has been sent and is not visible for {} s",
                    UNSEEN.as_secs()
                ),
            )
            .remedy("see synchronous_standby_names for what it waits for; it is tried again"));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// The schema of a table in a shape that is new to us, under the name of the one that we know, and whether it is that one by
/// now.
///
/// # Errors
/// Of kind `Setup` when the table that we know has been renamed.
async fn look_up(
    catalog: &mut Catalog,
    mut described: Described,
    known: Described,
) -> Result<(TableSchema, bool)> {
    let at = |error: Error| error.at(format!("table {}", known.id));
    let is_known = known.relation == described.relation;
    let mut is_now = is_known;
    if described.id != known.id || !is_known {
        let now = catalog.name(described.relation).await.map_err(at)?;
        match now {
            Some(now) if is_known && now != known.id => return Err(at(renamed(&now))),
            // One that was dropped since is nobody's to decide about.
            now => is_now |= now.is_some_and(|now| now == known.id),
        }
        described.id = known.id.clone();
    }
    let schema = catalog.schema(&described).await.map_err(at)?;
    Ok((schema, is_now))
}

fn renamed(now: &TableId) -> Error {
    Error::new(ErrorKind::Setup, format!("was renamed to {now}; nothing behind that is confirmed")).remedy(format!(
        "rename it back, or put {now} in its place (in `tables`, transforms and inputs) and start again: rows from there on \
         go under the new name, and `lockstep snapshot FILE --table {now}` brings the others"
    ))
}

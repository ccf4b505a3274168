//! Rows that sinks are to be compared with: read as chunks of a load are, fenced as they are, and sent to be compared.

use std::collections::HashSet;
use std::sync::Arc;

use lockstep_core::batch::{Batch, BatchBuilder, Cell, CellRef, Change, OldImage, Op, Phase};
use lockstep_core::position::{Lsn, SourceInfo};
use lockstep_core::schema::TableSchema;
use lockstep_core::source::{CheckRequest, CheckRows, Checked, Checks, Purpose};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_pg::error::protocol;
use tokio::sync::{mpsc, oneshot};

/// Keys that one request may name.
pub const MOST_KEYS: usize = 1_000;

/// A request, and who waits for the answer.
pub(super) struct Ask {
    pub(super) request: CheckRequest,
    pub(super) answer: oneshot::Sender<Result<Checked>>,
}

/// Takes requests to the reader, one at a time.
pub struct Counter(mpsc::Sender<Ask>);

/// The reader's end of a [`Counter`].
pub struct Asked(mpsc::Receiver<Ask>);

/// Both ends.
pub fn counter() -> (Counter, Asked) {
    let (sender, receiver) = mpsc::channel(1);
    (Counter(sender), Asked(receiver))
}

impl Asked {
    /// A request that has come.
    pub(super) fn waiting(&mut self) -> Option<Ask> {
        self.0.try_recv().ok()
    }

    /// The next request; pends for ever once nobody can ask any more. Cancel-safe.
    pub(super) async fn next(&mut self) -> Ask {
        match self.0.recv().await {
            Some(ask) => ask,
            None => std::future::pending().await,
        }
    }
}

#[async_trait::async_trait]
impl Checks for Counter {
    async fn check(&self, request: CheckRequest) -> Result<Checked> {
        if let CheckRows::Keys(keys) | CheckRows::Absent(keys) = &request.rows
            && keys.len() > MOST_KEYS
        {
            let message = format!("{} keys at a time, and {MOST_KEYS} at most", keys.len());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let (answer, answered) = oneshot::channel();
        let ask = Ask { request, answer };
        self.0.send(ask).await.map_err(|_| interrupted())?;
        answered.await.map_err(|_| interrupted())?
    }
}

fn interrupted() -> Error {
    Error::new(ErrorKind::Unavailable, "the stream was interrupted")
}

/// What a chunk is for, besides its rows.
pub(super) struct Wanted {
    /// Of the batch.
    pub(super) number: u64,
    /// What becomes of the rows.
    pub(super) purpose: Purpose,
    /// Keys that were asked for by name.
    pub(super) keys: Vec<Vec<String>>,
    /// See [`Checked::changed_after`], of each row that was read; empty when that was not asked for.
    pub(super) changed_after: Vec<Option<Lsn>>,
    /// Whether rows that are there are left out.
    pub(super) only_absent: bool,
    /// Whether all rows there are were read: if not, it is not known which of the keys have none.
    pub(super) whole: bool,
}

/// The batch of a check, and what is told of it.
pub(super) struct Made {
    pub(super) batch: Option<Batch>,
    pub(super) checked: Checked,
}

impl Wanted {
    /// Makes the batch out of the rows that were found. `is_steady` says of a key whether nothing that the snapshot does not
    /// see has passed of it.
    ///
    /// # Errors
    /// Of kind `Protocol` when a key is no text.
    pub(super) fn make(
        &self,
        rows: Batch,
        schema: &Arc<TableSchema>,
        is_steady: impl Fn(&[String]) -> bool,
    ) -> Result<Made> {
        let fence = rows.transactions().first();
        let fence = fence.map_or(Lsn::ZERO, |fence| fence.commit);
        let mut checked = Checked {
            fence,
            ..Checked::default()
        };
        let mut found: Vec<Vec<String>> = Vec::with_capacity(rows.changes().len());
        for change in rows.changes() {
            found.push(key_of(&rows, change)?);
        }
        checked.next = found.last().filter(|_| !self.whole).cloned();
        let batch = match self.keys.is_empty() {
            true => steady(&rows, found, &mut checked, is_steady),
            false => self.asked_for(rows, &found, schema, &mut checked, is_steady)?,
        };
        let batch = Some(batch).filter(|batch| !batch.changes().is_empty());
        Ok(Made {
            batch: batch.map(|mut batch| {
                batch.phase = match self.purpose {
                    Purpose::Compare => Phase::Check,
                    Purpose::Repair => Phase::Snapshot,
                };
                batch.check = Some(self.number);
                batch
            }),
            checked,
        })
    }

    /// The rows that were asked for by their keys, and that there are none with the others.
    fn asked_for(
        &self,
        rows: Batch,
        found: &[Vec<String>],
        schema: &Arc<TableSchema>,
        checked: &mut Checked,
        is_steady: impl Fn(&[String]) -> bool,
    ) -> Result<Batch> {
        let there: HashSet<&Vec<String>> = found.iter().collect();
        let absent = self.keys.iter().filter(|key| !there.contains(key));
        let mut absent: Vec<&Vec<String>> = absent.collect();
        if !self.whole {
            checked.unsteady.extend(absent.drain(..).cloned());
        }
        let mut picked: Vec<(usize, Change)> = Vec::new();
        let tells = !self.changed_after.is_empty();
        let mut take = |part: usize, change: &Change, key: &Vec<String>, after: Option<Lsn>| {
            if !is_steady(key) {
                checked.unsteady.push(key.clone());
                return;
            }
            checked.keys.push(key.clone());
            if tells {
                checked.changed_after.push(after);
            }
            let ordinal = checked.keys.len() as u64;
            picked.push((part, change.at(ordinal)));
        };
        let absent_rows = absent_of(&rows, &absent, schema)?;
        if !self.only_absent {
            let after = self.changed_after.iter().copied();
            let after = after.chain(std::iter::repeat(None));
            for ((change, key), after) in rows.changes().iter().zip(found).zip(after) {
                take(0, change, key, after);
            }
        }
        for (change, key) in absent_rows.changes().iter().zip(absent) {
            take(1, change, key, None);
        }
        let parts = [Arc::new(rows), Arc::new(absent_rows)];
        let joined = Batch::join(&parts, &picked)?;
        joined.ok_or_else(|| protocol("two batches have made none"))
    }
}

/// All rows that were found, but for those that are not steady.
fn steady(
    rows: &Batch,
    found: Vec<Vec<String>>,
    checked: &mut Checked,
    is_steady: impl Fn(&[String]) -> bool,
) -> Batch {
    let mut kept = Vec::with_capacity(found.len());
    for (change, key) in rows.changes().iter().zip(found) {
        if is_steady(&key) {
            checked.keys.push(key);
            kept.push(change.at(checked.keys.len() as u64));
        } else {
            checked.unsteady.push(key);
        }
    }
    rows.with_changes(kept)
}

fn key_of(batch: &Batch, change: &Change) -> Result<Vec<String>> {
    let row = batch.new_row(change);
    let text = |column| match row?.get(column) {
        CellRef::Text(bytes) => String::from_utf8(bytes.to_vec()).ok(),
        _ => None,
    };
    let key: Option<Vec<String>> = batch.schema(change).key_columns().map(text).collect();
    key.ok_or_else(|| protocol("a key column of a copy is no text"))
}

/// That no row has these keys, beside rows that were found.
fn absent_of(rows: &Batch, keys: &[&Vec<String>], schema: &Arc<TableSchema>) -> Result<Batch> {
    let mut builder = BatchBuilder::new();
    let mut block = Vec::new();
    if let Some(transaction) = rows.transactions().first() {
        builder.begin(transaction.clone());
    }
    let index = builder.schema(schema);
    for key in keys {
        if key.len() != schema.key.len() {
            let message = format!("a key of {} values, not {}", key.len(), schema.key.len());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let start = builder.cells().len();
        builder
            .cells()
            .resize(start + usize::from(schema.width), Cell::NULL);
        for (column, value) in schema.key_columns().zip(*key) {
            let offset = block.len();
            block.extend_from_slice(value.as_bytes());
            builder.cells()[start + usize::from(column.slot)] =
                Cell::text(offset as u32, value.len() as u32);
        }
        let lsn = rows
            .transactions()
            .first()
            .map_or(Lsn::ZERO, |transaction| transaction.commit);
        builder.push(
            Op::Delete,
            index,
            0,
            lsn,
            Some((OldImage::Key, start)),
            None,
        );
    }
    let source: &Arc<SourceInfo> = &rows.source;
    Ok(builder.finish(Arc::clone(source), Phase::Check, None, block.into()))
}

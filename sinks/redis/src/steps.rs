//! On a single server a batch becomes steps: what a step brings, and how far its source has come with it, is there at once.
//!
//! A batch is cut into parts that the server carries out in a few milliseconds, each with the position of its own last change: so
//! what is there is at any moment exactly what the position says. A TRUNCATE alone is none of it. It is found key by key, and the
//! position follows when all are gone.

use std::collections::VecDeque;
use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::batch::{Batch, Phase};
use lockstep_core::durable::Delivered;
use lockstep_core::refusal::Refusals;
use lockstep_encode::fold::{Part, fold, is_independent};

use crate::flush::FULL_BYTES;
use crate::rows::Base;
use crate::together::is_one_step;
use crate::writer::{Promised, Reached, Waiting, Writer, put};

/// Changes that a step has at most, unless they belong together: at some 5 µs each it holds up other clients for 3 ms.
pub(crate) const STEP_CHANGES: usize = 512;

impl Writer {
    /// Whether the current flush is to go out.
    pub(crate) fn is_full(&self) -> bool {
        let steps = self.chain.is_some();
        self.current.is_full() || steps && self.current.writes() >= STEP_CHANGES
    }

    /// Puts a batch into the current step and into further ones.
    pub(crate) async fn take_in_steps(&mut self, (batch, receipt): Promised) -> Result<()> {
        self.waiting.push_back(Waiting::new(receipt, None));
        self.put_in_steps(&batch, 1).await
    }

    /// The same for a batch that waits already, as the last but so many.
    pub(crate) async fn put_in_steps(
        &mut self,
        batch: &Arc<Batch>,
        from_last: usize,
    ) -> Result<()> {
        let mut todo = cut(batch);
        while let Some(slice) = todo.pop_front() {
            let parts = fold(&slice)?;
            let changes = slice.changes();
            if !is_one_step(&parts) && changes.len() > 1 {
                // It would need what it changes itself, or empty a table. Of its halves only one does.
                let (front, back) = changes.split_at(changes.len() / 2);
                for half in [back, front] {
                    todo.push_front(Arc::new(slice.with_changes(half.to_vec())));
                }
                continue;
            }
            let delivered = self.put_slice(&slice, &parts).await?;
            let at = self.waiting.len() - from_last;
            self.waiting[at].delivered += delivered;
            self.reach(&slice).await?;
        }
        self.current.jobs += 1;
        Ok(())
    }

    /// Notes in the current step that all of a part is there with it.
    pub(crate) async fn reach(&mut self, batch: &Batch) -> Result<()> {
        if let Some(reached) = self.reached_by(batch).await? {
            self.current.reach(reached);
        }
        Ok(())
    }

    /// How far its source has come when a batch is there; nothing for what is not of the stream.
    pub(crate) async fn reached_by(&mut self, batch: &Batch) -> Result<Option<Reached>> {
        let last = batch.changes().last();
        Ok(match last.filter(|_| batch.phase == Phase::Stream) {
            None => None,
            Some(last) => Some(Reached {
                source: Arc::clone(&batch.source),
                epoch: self.source_of(batch).await?.epoch,
                progress: batch.progress_at(last),
            }),
        })
    }

    async fn put_slice(&mut self, slice: &Batch, parts: &[Part<'_>]) -> Result<Delivered> {
        if is_independent(parts) {
            let writes = parts.first().map_or(&[][..], Part::writes);
            if self.current.writes() + writes.len() > STEP_CHANGES || self.current.is_full() {
                self.submit().await?;
            }
            let source = self
                .sources
                .get(&self.link, &self.names, &slice.source)
                .await?;
            let (mut delivered, mut refusals) = (Delivered::default(), Refusals::default());
            let (tables, flush) = (&mut self.tables, &mut self.current);
            for write in writes {
                let put = put(tables, flush, source, slice, write, &Base::Whole);
                delivered += refusals.take(put)?.unwrap_or_default().0;
            }
            refusals.finish()?;
            return Ok(delivered);
        }
        let mut delivered = Delivered::default();
        for part in parts {
            // What it keeps, or removes, may still be on its way.
            self.submit().await?;
            self.drain_flushes().await?;
            if let Some((schema, position)) = part.truncate() {
                delivered += self.truncate(slice, schema, position).await?;
                continue;
            }
            let mut refusals = Refusals::default();
            delivered += self.put_step(slice, part.writes(), &mut refusals).await?;
            refusals.finish()?;
        }
        Ok(delivered)
    }
}

/// A batch in parts that are not too much for a step, in order.
fn cut(batch: &Arc<Batch>) -> VecDeque<Arc<Batch>> {
    let changes = batch.changes();
    let each = (batch.size() / changes.len().max(1)).max(1);
    let most = (FULL_BYTES / each).clamp(1, STEP_CHANGES);
    if changes.len() <= most {
        let whole = (!changes.is_empty()).then(|| Arc::clone(batch));
        return whole.into_iter().collect();
    }
    let parts = changes.chunks(most).map(<[_]>::to_vec);
    parts
        .map(|part| Arc::new(batch.with_changes(part)))
        .collect()
}

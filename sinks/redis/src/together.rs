//! Branches of a transaction of several databases: one flush, which the server carries out in one step.
//!
//! What waited with them in the same flush is in the step as well, plain batches and other transactions: it costs one call for
//! all. What cannot be one step is written one batch behind the other: a TRUNCATE, which walks over the keyspace; rows that
//! move in circles; more than a call can carry; and in a cluster, where there is a step for each hash slot at most, rows that
//! keep what they had.

use std::sync::Arc;

use lockstep_core::batch::{Batch, Change, Phase};
use lockstep_core::durable::Delivered;
use lockstep_core::refusal::Refusals;
use lockstep_core::{Error, Result};
use lockstep_encode::fold::{Part, Write, fold, is_independent};

use crate::careful::{AT_ONCE, base_of};
use crate::flush::{FULL_BYTES, Flush};
use crate::writer::{Promised, Writer};

/// What a transaction has of one source.
struct Share {
    batch: Arc<Batch>,
    /// How many of the parts are in it.
    parts: usize,
}

impl Writer {
    /// Puts what belongs together into the current flush, which becomes one step.
    pub(crate) async fn take_together(&mut self, parts: Vec<Promised>) -> Result<()> {
        let shares = by_source(&parts)?;
        let mut refusals = Refusals::default();
        let mut folded = Vec::with_capacity(shares.len());
        for share in &shares {
            folded.extend(refusals.take(fold(&share.batch))?);
        }
        refusals.finish()?;
        let keeps = !folded.iter().all(|parts| is_independent(parts));
        if keeps && self.link.is_cluster() || !folded.iter().all(|parts| is_one_step(parts)) {
            tracing::debug!(sink = %self.names.sink, "a transaction of several databases is written branch by branch");
            for promised in parts {
                self.take(promised).await?;
            }
            return Ok(());
        }
        let bytes: usize = parts.iter().map(|(batch, _)| batch.size()).sum();
        if keeps || bytes > FULL_BYTES {
            self.submit().await?;
        }
        if keeps {
            // What it keeps may still be on its way.
            self.drain_flushes().await?;
        }
        let (mut last, jobs) = (self.waiting.len(), parts.len());
        let mut batches = Vec::with_capacity(jobs);
        for (batch, receipt) in parts {
            self.await_answers(&batch, receipt).await?;
            batches.push(batch);
        }
        let mut refusals = Refusals::default();
        for (share, parts) in shares.iter().zip(&folded) {
            last += share.parts;
            let writes = parts.first().map_or(&[][..], Part::writes);
            let delivered = self.put_step(&share.batch, writes, &mut refusals).await?;
            self.waiting[last - 1].delivered += delivered;
        }
        refusals.finish()?;
        let fits = self.current.fits_a_step();
        if !fits {
            tracing::warn!(
                sink = %self.names.sink, bytes,
                "a transaction of several databases is too large for one step of Redis: its branches become visible one behind the other"
            );
        }
        if self.chain.is_none() {
            self.current.jobs += jobs;
            self.current.whole = fits;
            return Ok(());
        }
        if fits {
            for batch in &batches {
                self.reach(batch).await?;
            }
            self.current.jobs += jobs;
            return Ok(());
        }
        // It is larger than what may wait, so nothing else is in it.
        self.current = Flush::default();
        let mine = self.waiting.len() - jobs;
        for waiting in self.waiting.iter_mut().skip(mine) {
            waiting.delivered = Delivered::default();
        }
        for (at, batch) in batches.iter().enumerate() {
            self.put_in_steps(batch, jobs - at).await?;
        }
        Ok(())
    }

    /// Puts writes into the current flush, whatever its size.
    pub(crate) async fn put_step(
        &mut self,
        batch: &Batch,
        writes: &[Write<'_>],
        refusals: &mut Refusals,
    ) -> Result<Delivered> {
        let mut delivered = Delivered::default();
        // On its own, as the writer looks for what rows keep meanwhile; an error ends both.
        let mut flush = std::mem::take(&mut self.current);
        for some in writes.chunks(AT_ONCE) {
            let some: Vec<&Write<'_>> = some.iter().collect();
            let mut bases = self.read_bases(batch, &some).await?.into_iter();
            for write in some {
                let Some(base) = base_of(write, &mut bases) else {
                    delivered.stale += 1;
                    continue;
                };
                let put = self.put_one(batch, write, &base, &mut flush).await;
                if let Some((done, gaps)) = refusals.take(put)? {
                    delivered += done;
                    delivered.incomplete += u64::from(gaps > 0);
                }
            }
        }
        if delivered.incomplete > 0 {
            crate::writer::warn_incomplete(&self.names, delivered.incomplete);
        }
        self.current = flush;
        Ok(delivered)
    }
}

/// Whether what a share is folded to needs nothing that it changes itself.
pub(crate) fn is_one_step(parts: &[Part<'_>]) -> bool {
    match parts {
        [] => true,
        [part] => part.truncate().is_none(),
        _ => false,
    }
}

/// The parts, those of one source as one.
fn by_source(parts: &[Promised]) -> Result<Vec<Share>> {
    let of_one = |(a, _): &Promised, (b, _): &Promised| {
        a.source == b.source && a.phase == Phase::Stream && b.phase == Phase::Stream
    };
    let shares = parts.chunk_by(of_one).map(|parts| {
        let batches: Vec<Arc<Batch>> = parts.iter().map(|(batch, _)| Arc::clone(batch)).collect();
        let picked: Vec<(usize, Change)> = batches
            .iter()
            .enumerate()
            .flat_map(|(at, batch)| batch.changes().iter().map(move |change| (at, *change)))
            .collect();
        let joined = match batches.len() {
            1 => None,
            _ => Batch::join(&batches, &picked)?,
        };
        Ok::<_, Error>(Share {
            batch: joined.map_or_else(|| Arc::clone(&batches[0]), Arc::new),
            parts: batches.len(),
        })
    });
    shares.collect()
}

//! The task that owns the writing: takes batches, cuts them into steps, and has them answered one after the other.

use std::collections::VecDeque;
use std::sync::Arc;

use lockstep_core::batch::{Batch, Change, Phase};
use lockstep_core::durable::{Delivered, Receipt};
use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, Result};
use lockstep_encode::envelope::Encoder;
use lockstep_encode::plans::Plans;
use lockstep_redis::Link;
use tokio::sync::mpsc;

use super::append::Append;
use super::config::Templates;
use crate::chain::Chain;
use crate::fence::Fence;
use crate::state::Names;
use crate::writer::{Fate, Job, Promised, Reached};

/// A step goes out when it holds this much, so that it does not hold up others for more than a few milliseconds.
const FULL_BYTES: usize = 256 << 10;
const FULL_ENTRIES: usize = 512;

pub(super) struct Writer {
    pub(super) link: Link,
    pub(super) names: Names,
    pub(super) fence: Option<Fence>,
    pub(super) max_length: Option<u64>,
    pub(super) chain: Chain,
    pub(super) encoder: Encoder,
    pub(super) templates: Templates,
    pub(super) streams: Plans<String>,
    pub(super) fate: Fate,
}

/// Batches that are answered with the step at hand.
type Waiting = VecDeque<(Receipt, Delivered)>;

impl Writer {
    /// Runs until the sender is gone and everything is reported, or until the first error. The error goes to the oldest
    /// batch that is not reported; the receipts of the others are dropped, which reports them as not written.
    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut waiting = Waiting::new();
        let ended = self.work(&mut jobs, &mut waiting).await;
        if let Err(error) = ended {
            self.fate.set(&error);
            if let Some((receipt, _)) = waiting.pop_front() {
                receipt.resolve(Err(error));
            }
        }
    }

    async fn work(&mut self, jobs: &mut mpsc::Receiver<Job>, waiting: &mut Waiting) -> Result<()> {
        let mut step = Append::default();
        while let Some(job) = jobs.recv().await {
            self.take(job, &mut step, waiting).await?;
            // What waits already goes along, as far as there is room.
            while !is_full(&step) {
                match jobs.try_recv() {
                    Ok(job) => self.take(job, &mut step, waiting).await?,
                    Err(_) => break,
                }
            }
            self.send(&mut step, waiting).await?;
        }
        Ok(())
    }

    async fn take(&mut self, job: Job, step: &mut Append, waiting: &mut Waiting) -> Result<()> {
        match job {
            Job::One((batch, receipt)) => {
                waiting.push_back((receipt, Delivered::default()));
                self.put(&batch, step, waiting).await
            }
            Job::Together(parts) => self.take_together(parts, step, waiting).await,
        }
    }

    /// All of them in one step, with nothing else if that is too much for it.
    async fn take_together(
        &mut self,
        parts: Vec<Promised>,
        step: &mut Append,
        waiting: &mut Waiting,
    ) -> Result<()> {
        self.send(step, waiting).await?;
        let first = waiting.len();
        let mut batches = Vec::with_capacity(parts.len());
        for (batch, receipt) in parts {
            waiting.push_back((receipt, Delivered::default()));
            batches.push(batch);
        }
        for (at, batch) in batches.iter().enumerate() {
            let delivered = self.append(batch, batch.changes(), step)?;
            waiting[first + at].1 += delivered;
            reach(step, batch, batch.changes().last());
        }
        self.send(step, waiting).await
    }

    /// Puts a batch into the step, and into further ones where it is too much for one.
    async fn put(
        &mut self,
        batch: &Arc<Batch>,
        step: &mut Append,
        waiting: &mut Waiting,
    ) -> Result<()> {
        let changes = batch.changes();
        let mut from = 0;
        while from < changes.len() {
            let upto = (from + FULL_ENTRIES).min(changes.len());
            let slice = &changes[from..upto];
            let delivered = self.append(batch, slice, step)?;
            if let Some((_, total)) = waiting.back_mut() {
                *total += delivered;
            }
            reach(step, batch, slice.last());
            from = upto;
            if from < changes.len() && is_full(step) {
                self.send_part(step).await?;
            }
        }
        Ok(())
    }

    /// Encodes changes, which are the batch's last or followed by others of it.
    fn append(
        &mut self,
        batch: &Batch,
        changes: &[Change],
        step: &mut Append,
    ) -> Result<Delivered> {
        let mut total = Delivered::default();
        for (index, change) in changes.iter().enumerate() {
            let stream = stream(&mut self.streams, &self.templates, batch.schema(change));
            let encoded = self.encoder.encode(batch, change, &mut |record| {
                let bytes = step.add(stream, &record)?;
                if bytes > 0 {
                    total.written += 1;
                    total.bytes += bytes as u64;
                }
                Ok(())
            });
            if let Err(refused) = encoded {
                return Err(self.all_refused(batch, change, &changes[index + 1..], refused));
            }
        }
        Ok(total)
    }

    /// The refusal with all others of the batch.
    fn all_refused(
        &mut self,
        batch: &Batch,
        change: &Change,
        rest: &[Change],
        refused: Error,
    ) -> Error {
        let change = batch.source.change_id(batch.position(change));
        let refused = refused.at(format!("change {change}"));
        let mut scratch = Append::default();
        let mut try_out = |record: lockstep_encode::envelope::Record<'_>| {
            let tried = scratch.add("", &record).map(drop);
            scratch = Append::default();
            tried
        };
        self.encoder.survey(batch, rest, refused, &mut try_out)
    }

    /// A part of what the last of `waiting` is about: it is answered with the rest.
    async fn send_part(&mut self, step: &mut Append) -> Result<()> {
        let step = std::mem::take(step);
        let place = self.chain.next();
        let fence = self.fence.as_ref();
        step.send(&self.link, &self.names, fence, self.max_length, place)
            .await
    }

    async fn send(&mut self, step: &mut Append, waiting: &mut Waiting) -> Result<()> {
        if step.has_effect() {
            self.send_part(step).await?;
        }
        for (receipt, delivered) in waiting.drain(..) {
            receipt.resolve(Ok(delivered));
        }
        Ok(())
    }
}

fn is_full(step: &Append) -> bool {
    step.bytes() >= FULL_BYTES || step.entries() >= FULL_ENTRIES
}

/// Rows of an initial copy come from several readers at once: their positions say nothing of each other.
fn reach(step: &mut Append, batch: &Batch, last: Option<&Change>) {
    if let (Phase::Stream, Some(last)) = (batch.phase, last) {
        step.reach(Reached {
            source: Arc::clone(&batch.source),
            epoch: 0,
            progress: batch.progress_at(last),
        });
    }
}

fn stream<'a>(
    known: &'a mut Plans<String>,
    templates: &Templates,
    schema: &Arc<TableSchema>,
) -> &'a str {
    known.get(schema, |schema| match schema.destination() {
        Some(destination) => destination.to_owned(),
        None if schema.id.name.is_empty() => templates.message.render(schema, |_| None),
        None => templates.table.render(schema, |_| None),
    })
}

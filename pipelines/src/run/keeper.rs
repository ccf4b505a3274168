//! The keeper: tells sources what every sink has made durable.

use std::sync::Arc;
use std::time::Duration;

use lockstep_core::error::Policy;
use lockstep_core::position::Lsn;
use lockstep_core::sink::Trouble;
use lockstep_core::trace::Traced;
use lockstep_core::{Error, ErrorKind, Result};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::lane_state::LaneState;
use super::node::Node;
use super::source_state::SourceShare;
use super::traces;
use crate::letters::Desk;

/// The shortest time between two confirmations. Persisting transforms may cost a disk flush each; nobody waits for a
/// confirmation, it only lets the server drop log.
const CONFIRM_EVERY: Duration = Duration::from_millis(100);

/// See the module's page.
#[derive(Clone)]
pub(super) struct Keeper {
    pub pipeline: Arc<str>,
    pub sources: Vec<Arc<SourceShare>>,
    pub lanes: Vec<Arc<LaneState>>,
    pub nodes: Vec<Arc<Node>>,
    pub dead_letters: Arc<Desk>,
    /// Woken by lanes when something became durable.
    pub wake: Arc<Notify>,
    /// Why nothing can be confirmed at the moment.
    pub trouble: Trouble,
}

impl Keeper {
    /// Confirms, again and again, until told to stop.
    ///
    /// # Errors
    /// When state cannot be made safe, and only a person can mend it; nothing is confirmed then.
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        let mut backoff = Backoff::default();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = self.wake.notified() => {}
            }
            let pause = match self.confirm().await {
                Ok(()) => {
                    if self.trouble.get().is_some() {
                        tracing::info!("positions are confirmed again");
                        self.trouble.clear();
                    }
                    backoff.reset();
                    CONFIRM_EVERY
                }
                Err(error) if error.kind().policy() == Policy::Retry => {
                    if self.trouble.get().is_none() {
                        tracing::warn!(%error, "positions cannot be confirmed for now");
                    }
                    self.trouble.report(error.to_string());
                    self.wake.notify_one();
                    backoff.next()
                }
                Err(error) => return Err(error),
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Confirms what every sink has made durable, after the transforms that saw it have been made safe (I1, I5).
    pub async fn confirm(&self) -> Result<()> {
        // Read before persisting: what becomes durable meanwhile waits for the next round.
        let reached: Vec<(&SourceShare, u64, Lsn)> = (0..self.sources.len())
            .filter_map(|index| {
                let source = &*self.sources[index];
                // Before the position: see `SourceShare::confirm`.
                let generation = source.generation();
                Some((source, generation, self.reached(index)?))
            })
            .filter(|(source, _, lsn)| *lsn > source.confirmed())
            .collect();
        let marks: Vec<(&SourceShare, u64)> = (0..self.sources.len())
            .map(|index| (&*self.sources[index], self.mark(index)))
            .filter(|(source, mark)| *mark > source.marked())
            .collect();
        if reached.is_empty() && marks.is_empty() {
            return Ok(());
        }
        let traces = reached.iter();
        let traces: Vec<Traced> = traces
            .map(|(source, _, lsn)| traces::confirm(&self.pipeline, &source.name, *lsn))
            .collect();
        if let Err(error) = self.persist().await {
            traces.into_iter().for_each(|trace| trace.failed(&error));
            return Err(error);
        }
        for (source, mark) in marks {
            source.confirm_mark(mark);
        }
        for ((source, generation, lsn), trace) in reached.into_iter().zip(traces) {
            source.confirm(generation, lsn);
            trace.ended("confirmed");
        }
        Ok(())
    }

    /// The least of what the sinks of a source have made durable; `None` while one of them has no answer.
    fn reached(&self, source: usize) -> Option<Lsn> {
        let mut least = None;
        for lane in self
            .lanes
            .iter()
            .filter(|lane| lane.sources.contains(&source))
        {
            let through = lane.through(source)?;
            least = Some(least.map_or(through, |least: Lsn| least.min(through)));
        }
        least
    }

    /// The last mark of a source before which all is durable in every one of its sinks.
    fn mark(&self, source: usize) -> u64 {
        let lanes = self.lanes.iter();
        let lanes = lanes.filter(|lane| lane.sources.contains(&source));
        lanes
            .map(|lane| lane.mark(source))
            .min()
            .unwrap_or_default()
    }

    async fn persist(&self) -> Result<()> {
        if !self.dead_letters.is_dirty() && !self.nodes.iter().any(|node| node.is_dirty()) {
            return Ok(());
        }
        let (nodes, dead_letters) = (self.nodes.clone(), Arc::clone(&self.dead_letters));
        let persisted = tokio::task::spawn_blocking(move || {
            dead_letters.persist()?;
            nodes.iter().try_for_each(|node| node.persist())
        });
        persisted.await.unwrap_or_else(|error| {
            Err(Error::new(
                ErrorKind::Protocol,
                "making transforms safe has failed unexpectedly",
            )
            .source(error))
        })
    }
}

//! Compares rows with what the sink holds, at a place of the stream where it stands still.

use std::pin::pin;

use lockstep_core::Result;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::Sink;
use lockstep_reconciler::Outcome;
use tokio::time::Instant;

use super::super::checks::{self, Check};
use super::{Lane, Parts, front};

impl Lane {
    /// Compares what is asked for: all before it is durable, and nothing behind it has been written. What the sink says
    /// to it is no reason to open it anew.
    pub(super) async fn check(&mut self) {
        let Some(mut entry) = self.checks.pop_front() else {
            return;
        };
        let Some(check) = entry.check.take() else {
            return;
        };
        let abort = self.parts.abort.clone();
        let outcome = tokio::select! {
            biased;
            // Whoever asked hears it from the desk's end.
            () = abort.cancelled() => return,
            outcome = self.compared(&check) => outcome,
        };
        let outcome = outcome.unwrap_or_else(|error| {
            self.parts.state.inspectors.forget();
            Outcome::Failed(error)
        });
        let desk = &self.parts.checks;
        desk.answer(check.number, &self.parts.state.name, outcome);
        self.parts.state.view().moved = Instant::now();
        self.advance(&entry);
    }

    pub(super) async fn compared(&mut self, check: &Check) -> Result<Outcome> {
        if let Some(error) = &check.failed {
            return Err(error.clone());
        }
        let Some(batch) = &check.batch else {
            return Ok(Outcome::Compared {
                rows: 0,
                different: Vec::new(),
            });
        };
        let Parts {
            state,
            component,
            aside,
            ..
        } = &self.parts;
        let Some(context) = state.context() else {
            return Ok(Outcome::Unreadable);
        };
        let tables = context.tables.clone();
        let opened = state.inspectors.get(component.as_ref(), context).await?;
        let Some(inspector) = opened else {
            return Ok(Outcome::Unreadable);
        };
        let is_alone = |table: &TableSchema| checks::is_alone(&tables, table);
        let mut inspector = inspector.lock().await;
        checks::compare(inspector.as_mut(), batch, aside, is_alone).await
    }

    /// Hurries the sink, and waits until all is durable that has been written to it. False when time is up.
    pub(super) async fn settle_all(&mut self, sink: &mut dyn Sink) -> Result<bool> {
        let abort = self.parts.abort.clone();
        {
            let mut flush = pin!(sink.flush());
            loop {
                tokio::select! {
                    biased;
                    delivered = front(&mut self.pending) => self.settle(delivered?),
                    () = abort.cancelled() => return Ok(false),
                    flushed = &mut flush => break flushed?,
                }
            }
        }
        while !self.pending.is_empty() {
            tokio::select! {
                biased;
                delivered = front(&mut self.pending) => self.settle(delivered?),
                () = abort.cancelled() => return Ok(false),
            }
        }
        Ok(true)
    }
}

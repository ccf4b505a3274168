//! Opens the sink, and finds out what it holds already.

use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::progress::Progress;
use lockstep_core::sink::{Sink, SinkContext};
use tokio::time::Instant;

use super::Lane;
use crate::status::SinkPhase;

impl Lane {
    /// Opens the sink and asks how far it is. `None` when the pipeline stops before every source has been open.
    pub(super) async fn open(&mut self) -> Result<Option<Box<dyn Sink>>> {
        let state = &self.parts.state;
        let announced = tokio::select! {
            biased;
            announced = state.announced() => announced,
            () = self.parts.draining.cancelled() => return Ok(None),
        };
        let context = SinkContext {
            pipeline: Arc::clone(&self.parts.pipeline),
            name: Arc::clone(&state.name),
            state: self.parts.directory.clone(),
            sources: announced
                .values()
                .map(|source| Arc::clone(&source.info))
                .collect(),
            tables: announced
                .values()
                .flat_map(|source| source.tables.iter().cloned())
                .collect(),
            trouble: state.trouble.clone(),
            token: self.parts.permit.token(),
        };
        state.trouble.clear();
        self.parts.permit.check()?;
        let mut sink = self.parts.component.open(context.clone()).await?;
        state.opened(context);
        self.resume.clear();
        for (index, source) in announced {
            let info = &source.info;
            self.logs
                .insert(Arc::clone(&info.name), info.identity.clone());
            let held = sink.resume(&source.info).await?;
            if let Some(before) = self.set_back(index, held.as_ref()) {
                let held = held
                    .as_ref()
                    .map_or_else(|| "nothing".to_owned(), |held| held.to_string());
                tracing::warn!(
                    sink = %state.name, source = %source.info.name, held, %before,
                    "the sink can prove less than it could before: it has lost what it had confirmed; load the tables again"
                );
                self.parts.metrics.set_back();
            }
            self.early.opened(index, held.as_ref());
            self.proved.remove(&index);
            self.proved.extend(held.clone().map(|held| (index, held)));
            self.resume.extend(held.map(|held| (index, held)));
        }
        state.holds(&self.resume);
        let mut view = state.view();
        view.phase = SinkPhase::Running;
        view.problem = None;
        view.moved = Instant::now();
        drop(view);
        self.backoff.opened();
        if std::mem::take(&mut self.after_aside) {
            tracing::debug!(sink = %state.name, "open again without the rows that were put aside");
        } else if self.logged.take().is_some() {
            tracing::info!(sink = %state.name, attempts = self.backoff.failures(), "open again");
        } else {
            tracing::info!(sink = %state.name, "open");
        }
        Ok(Some(sink))
    }

    /// What the sink has been known to hold of a source, when it tells less now. One that never tells holds what it holds.
    pub(super) fn set_back(&self, source: usize, held: Option<&Progress>) -> Option<Progress> {
        let proved = self.proved.get(&source);
        let confirmed = self.durable.get(&source);
        let confirmed = confirmed.filter(|_| self.parts.component.resumes_exactly());
        let before = match (held, proved, confirmed) {
            (_, Some(proved), Some(confirmed)) => proved.with(confirmed),
            (_, Some(one), None) | (Some(_), None, Some(one)) => one.clone(),
            (None, None, _) | (Some(_), None, None) => return None,
        };
        let covers = held.is_some_and(|held| held.covers(&before));
        (!covers).then_some(before)
    }
}

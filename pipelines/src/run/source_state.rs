//! What is known about one source, shared between its pump, the keeper and whoever asks.

use std::sync::{Arc, Mutex};

use lockstep_core::feedback::Feedback;
use lockstep_core::position::{Lsn, SourceInfo};
use lockstep_core::source::{Checks, Fences, Reloads, SourceStatus, TableProgress};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::copying::Copying;
use super::lock;
use crate::registry::SourceComponent;

/// See the module's page.
pub(super) struct SourceShare {
    /// Name in the pipeline file.
    pub name: Arc<str>,
    /// What the source says about itself.
    pub status: SourceStatus,
    component: Mutex<Arc<dyn SourceComponent>>,
    /// Its section of the file has changed: it is to be opened again.
    pub reopen: Notify,
    inner: Mutex<Inner>,
    copying: Mutex<Copying>,
}

#[derive(Default)]
struct Inner {
    info: Option<Arc<SourceInfo>>,
    confirmed: Lsn,
    /// The last mark that has been confirmed, counted over all openings of the source.
    marked: u64,
    /// How many marks earlier openings have sent.
    marks_before: u64,
    /// How many logs came before the one that is read.
    generation: u64,
    /// Of the source that is open now.
    feedback: Option<Feedback>,
    desks: Desks,
}

/// Where an open source takes requests.
#[derive(Clone, Default)]
pub(super) struct Desks {
    pub reloads: Option<Arc<dyn Reloads>>,
    pub checks: Option<Arc<dyn Checks>>,
    pub fences: Option<Arc<dyn Fences>>,
}

impl SourceShare {
    pub fn new(name: Arc<str>, component: Arc<dyn SourceComponent>) -> Self {
        SourceShare {
            name,
            component: Mutex::new(component),
            reopen: Notify::new(),
            status: SourceStatus::default(),
            inner: Mutex::default(),
            copying: Mutex::new(Copying::new(Instant::now())),
        }
    }

    /// What opens it.
    pub fn component(&self) -> Arc<dyn SourceComponent> {
        Arc::clone(&lock(&self.component))
    }

    /// From now on it is opened by another section of the file.
    pub fn replace(&self, component: Arc<dyn SourceComponent>) {
        *lock(&self.component) = component;
        self.reopen.notify_one();
    }

    /// Whose log it is, once it has been open.
    pub fn info(&self) -> Option<Arc<SourceInfo>> {
        lock(&self.inner).info.clone()
    }

    /// A source has been opened and proved to be the same log as before. Only now does its feedback learn what has been
    /// confirmed: positions of one log mean nothing in another.
    pub fn opened(
        &self,
        info: Arc<SourceInfo>,
        feedback: Feedback,
        desks: Desks,
        marks_before: u64,
    ) {
        let mut inner = lock(&self.inner);
        feedback.confirm(inner.confirmed);
        inner.marks_before = marks_before;
        inner.info = Some(info);
        inner.feedback = Some(feedback);
        inner.desks = desks;
    }

    /// Where rows to compare come from; `None` before the source has been open, or where it cannot.
    pub fn checks(&self) -> Option<Arc<dyn Checks>> {
        lock(&self.inner).desks.checks.clone()
    }

    /// Who tells where its log ends; `None` before the source has been open, or where it cannot.
    pub fn fences(&self) -> Option<Arc<dyn Fences>> {
        lock(&self.inner).desks.fences.clone()
    }

    /// Where requests to load tables again go; `None` before the source has been open, or where it cannot.
    pub fn reloads(&self) -> Option<Arc<dyn Reloads>> {
        lock(&self.inner).desks.reloads.clone()
    }

    /// The source reads another log: nothing has been confirmed of it.
    pub fn forget(&self) {
        let mut inner = lock(&self.inner);
        *inner = Inner {
            generation: inner.generation + 1,
            marked: inner.marked,
            marks_before: inner.marks_before,
            ..Inner::default()
        };
    }

    /// Which log positions are of, for [`SourceShare::confirm`].
    pub fn generation(&self) -> u64 {
        lock(&self.inner).generation
    }

    /// Everything up to `lsn` is durable in every sink, and the transforms are persisted; unless the source reads another
    /// log by now.
    pub fn confirm(&self, generation: u64, lsn: Lsn) {
        let mut inner = lock(&self.inner);
        if inner.generation != generation {
            return;
        }
        inner.confirmed = inner.confirmed.max(lsn);
        if let Some(feedback) = &inner.feedback {
            feedback.confirm(lsn);
        }
    }

    /// Everything before `mark`, counted over all openings, is durable in every sink.
    pub fn confirm_mark(&self, mark: u64) {
        let mut inner = lock(&self.inner);
        inner.marked = inner.marked.max(mark);
        // What an earlier opening sent means nothing to this one.
        if let Some(feedback) = &inner.feedback
            && let Some(own) = mark.checked_sub(inner.marks_before)
        {
            feedback.confirm_mark(own);
        }
    }

    /// The last mark that has been confirmed, counted over all openings.
    pub fn marked(&self) -> u64 {
        lock(&self.inner).marked
    }

    /// Rows per second of the initial copy, which is this far; `None` when it is too early to tell.
    pub fn copy_rate(&self, tables: &[TableProgress]) -> Option<f64> {
        lock(&self.copying).rate(Instant::now(), tables)
    }

    /// What has been confirmed by this process.
    pub fn confirmed(&self) -> Lsn {
        lock(&self.inner).confirmed
    }
}

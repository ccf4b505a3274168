//! One transform, shared by the pumps of all sources that reach it.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex as SyncMutex};

use lockstep_core::batch::Batch;
use lockstep_core::error::{At, Policy};
use lockstep_core::schema::TableSchema;
use lockstep_core::transform::{Comparable, StateSize, Transform};
use lockstep_core::{Error, ErrorKind, Result};
use prometheus::IntCounterVec;
use tokio::sync::Mutex;

use super::backoff::Backoff;
use super::{batches, lock};

/// Schema versions remembered as bound. A pipeline that sees more has schemas made per row; those that nobody else
/// holds are forgotten and would be bound again.
const MAX_BOUND: usize = 4096;

/// See the module's page.
pub(super) struct Node {
    name: Arc<str>,
    /// An asynchronous mutex: while `persist` waits for the disk on its blocking thread, or one pump for a server, others
    /// wait without holding up their worker thread.
    state: Mutex<State>,
    /// Whether batches went through since the last persist.
    dirty: AtomicBool,
    duplicates: AtomicU64,
    size: SyncMutex<Option<StateSize>>,
    /// What it waits for.
    problem: SyncMutex<Option<String>>,
    /// By name and code.
    errors: IntCounterVec,
}

struct State {
    transform: Box<dyn Transform>,
    /// Sources whose tables have not been bound yet.
    awaited: BTreeSet<usize>,
    /// By address; the `Arc` is held, so an address means one schema.
    bound: HashMap<usize, Arc<TableSchema>>,
}

impl Node {
    pub fn new(
        name: Arc<str>,
        transform: Box<dyn Transform>,
        sources: BTreeSet<usize>,
        errors: IntCounterVec,
    ) -> Self {
        Node {
            name,
            size: SyncMutex::new(transform.size()),
            problem: SyncMutex::default(),
            errors,
            state: Mutex::new(State {
                transform,
                awaited: sources,
                bound: HashMap::new(),
            }),
            dirty: AtomicBool::new(false),
            duplicates: AtomicU64::new(0),
        }
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// How often rows met an earlier idempotency key.
    pub fn duplicates(&self) -> u64 {
        self.duplicates.load(Ordering::Relaxed)
    }

    /// How much it remembers, as of its last persist.
    pub fn size(&self) -> Option<StateSize> {
        *lock(&self.size)
    }

    /// What it waits for, when it waits.
    pub fn problem(&self) -> Option<String> {
        lock(&self.problem).clone()
    }

    /// Binds a table that is going to come and says what it looks like behind this node.
    pub async fn bind(&self, schema: &Arc<TableSchema>) -> Result<Option<Arc<TableSchema>>> {
        let mut state = self.state.lock().await;
        state.bind(schema).at(self.place())?;
        Ok(state.transform.output(schema))
    }

    /// What a table that has been bound looks like behind this node, and how far it can be compared there.
    pub async fn look(&self, schema: &Arc<TableSchema>) -> (Option<Arc<TableSchema>>, Comparable) {
        let state = self.state.lock().await;
        let transform = &state.transform;
        (transform.output(schema), transform.comparable(schema))
    }

    /// All tables of a source have been bound.
    pub async fn bound(&self, source: usize) -> Result<()> {
        let mut state = self.state.lock().await;
        if state.awaited.remove(&source) && state.awaited.is_empty() {
            state.transform.complete().at(self.place())?;
        }
        Ok(())
    }

    /// Waits until the transform has what it needs elsewhere.
    pub async fn ready(&self) -> Result<()> {
        let mut waiting = Waiting::new(self);
        loop {
            let ready = self.state.lock().await.transform.ready().await;
            match ready {
                Ok(()) => {
                    waiting.over();
                    return Ok(());
                }
                Err(error) => waiting.after(error).await?,
            }
        }
    }

    /// Sends a batch with changes through the transform, again and again while that fails for reasons that may pass. When
    /// the future is dropped, the batch has not gone through.
    pub async fn apply(&self, batch: Arc<Batch>) -> Result<Arc<Batch>> {
        let (through, changes, schemas) =
            (batch.through, batch.changes().len(), batch.schemas().len());
        let mut waiting = Waiting::new(self);
        let batch = loop {
            match self.try_apply(Arc::clone(&batch)).await {
                Ok(batch) => break batch,
                // The lock is free meanwhile: what is durable goes on being confirmed.
                Err(error) => waiting.after(error).await?,
            }
        };
        waiting.over();
        if batch.through != through {
            // Confirming what a transform made up would lose changes (I1).
            let message = "the transform changed how far a batch reaches";
            return Err(Error::new(ErrorKind::Protocol, message).at(self.place()));
        }
        let same = batch.changes().len() == changes && batch.schemas().len() == schemas;
        Ok(if same {
            batch
        } else {
            Arc::new(batches::hide_unused_schemas(batches::owned(batch)))
        })
    }

    async fn try_apply(&self, batch: Arc<Batch>) -> Result<Arc<Batch>> {
        let mut state = self.state.lock().await;
        for schema in batch.schemas() {
            state.bind(schema)?;
        }
        self.dirty.store(true, Ordering::Release);
        let applied = state.transform.apply(batch).await;
        self.duplicates
            .store(state.transform.duplicates(), Ordering::Relaxed);
        applied
    }

    /// Makes the state safe against power loss. Waits for the disk: for a blocking thread.
    pub fn persist(&self) -> Result<()> {
        if !self.is_dirty() {
            return Ok(());
        }
        let mut state = self.state.blocking_lock();
        state.transform.persist().at(self.place())?;
        // Not before: whoever sees it clean confirms. Batches mark it under the lock.
        self.dirty.store(false, Ordering::Release);
        *lock(&self.size) = state.transform.size();
        Ok(())
    }

    /// Whether [`Node::persist`] has something to do.
    pub fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    fn place(&self) -> String {
        format!("transforms.{}", self.name)
    }
}

/// Attempts of one pump, with the pauses between them. What is reported lasts until it is dropped.
struct Waiting<'a> {
    node: &'a Node,
    backoff: Backoff,
    /// What was logged last.
    logged: Option<String>,
}

impl<'a> Waiting<'a> {
    fn new(node: &'a Node) -> Self {
        Waiting {
            node,
            backoff: Backoff::default(),
            logged: None,
        }
    }

    /// Pauses after an error that may pass, and gives back any other.
    async fn after(&mut self, error: Error) -> Result<()> {
        if error.kind().policy() == Policy::Stop {
            return Err(error.at(self.node.place()));
        }
        let (name, text) = (&self.node.name, error.to_string());
        let labels = &[&**name, error.kind().code()];
        self.node.errors.with_label_values(labels).inc();
        *lock(&self.node.problem) = Some(text.clone());
        if self.logged.as_ref() == Some(&text) {
            let attempt = self.backoff.failures();
            tracing::debug!(transform = %name, %error, attempt, "failed again");
        } else {
            tracing::warn!(transform = %name, %error, "failed; batches wait");
            self.logged = Some(text);
        }
        tokio::time::sleep(self.backoff.next()).await;
        Ok(())
    }
}

impl Waiting<'_> {
    /// It works.
    fn over(self) {
        if self.logged.is_some() {
            let attempts = self.backoff.failures();
            tracing::info!(transform = %self.node.name, attempts, "goes on");
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.logged.is_some() {
            *lock(&self.node.problem) = None;
        }
    }
}

impl State {
    fn bind(&mut self, schema: &Arc<TableSchema>) -> Result<()> {
        let address = Arc::as_ptr(schema) as usize;
        if self.bound.contains_key(&address) {
            return Ok(());
        }
        self.transform
            .bind(schema)
            .at(format!("table {}", schema.origin))?;
        if self.bound.len() >= MAX_BOUND {
            self.bound.retain(|_, schema| Arc::strong_count(schema) > 1);
        }
        self.bound.insert(address, Arc::clone(schema));
        Ok(())
    }
}

//! One transform, shared by the pumps of all sources that reach it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lockstep_core::batch::Batch;
use lockstep_core::error::At;
use lockstep_core::schema::TableSchema;
use lockstep_core::transform::Transform;
use lockstep_core::{Error, ErrorKind, Result};
use tokio::sync::Mutex;

use super::batches;

/// Schema versions remembered as bound. A pipeline that sees more has schemas made per row; those that nobody else
/// holds are forgotten and would be bound again.
const MAX_BOUND: usize = 4096;

/// See the module's page.
pub(super) struct Node {
    name: Arc<str>,
    /// An asynchronous mutex, held over a synchronous call: while `persist` waits for the disk on its blocking thread,
    /// pumps wait without holding up their worker thread.
    state: Mutex<State>,
    /// Whether batches went through since the last persist.
    dirty: AtomicBool,
    duplicates: AtomicU64,
}

struct State {
    transform: Box<dyn Transform>,
    /// Sources whose tables have not been bound yet.
    awaited: BTreeSet<usize>,
    /// By address; the `Arc` is held, so an address means one schema.
    bound: HashMap<usize, Arc<TableSchema>>,
}

impl Node {
    pub fn new(name: Arc<str>, transform: Box<dyn Transform>, sources: BTreeSet<usize>) -> Self {
        Node {
            name,
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

    /// Binds a table that is going to come and says what it looks like behind this node.
    pub async fn bind(&self, schema: &Arc<TableSchema>) -> Result<Option<Arc<TableSchema>>> {
        let mut state = self.state.lock().await;
        state.bind(schema).at(self.place())?;
        Ok(state.transform.output(schema))
    }

    /// All tables of a source have been bound.
    pub async fn bound(&self, source: usize) -> Result<()> {
        let mut state = self.state.lock().await;
        if state.awaited.remove(&source) && state.awaited.is_empty() {
            state.transform.complete().at(self.place())?;
        }
        Ok(())
    }

    /// Sends a batch with changes through the transform.
    pub async fn apply(&self, batch: Arc<Batch>) -> Result<Batch> {
        let mut state = self.state.lock().await;
        for schema in batch.schemas() {
            state.bind(schema).at(self.place())?;
        }
        self.dirty.store(true, Ordering::Release);
        let (through, changes, schemas) =
            (batch.through, batch.changes().len(), batch.schemas().len());
        let batch = state
            .transform
            .apply(batches::owned(batch))
            .at(self.place())?;
        self.duplicates
            .store(state.transform.duplicates(), Ordering::Relaxed);
        if batch.through != through {
            // Confirming what a transform made up would lose changes (I1).
            let message = "the transform changed how far a batch reaches";
            return Err(Error::new(ErrorKind::Protocol, message).at(self.place()));
        }
        let same = batch.changes().len() == changes && batch.schemas().len() == schemas;
        Ok(if same {
            batch
        } else {
            batches::hide_unused_schemas(batch)
        })
    }

    /// Makes the state safe against power loss. Waits for the disk: for a blocking thread.
    pub fn persist(&self) -> Result<()> {
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let persisted = self.state.blocking_lock().transform.persist();
        if persisted.is_err() {
            self.dirty.store(true, Ordering::Release);
        }
        persisted.at(self.place())
    }

    /// Whether [`Node::persist`] has something to do.
    pub fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    fn place(&self) -> String {
        format!("transforms.{}", self.name)
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

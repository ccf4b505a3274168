//! A sink whose store outlives it, with a script of faults.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use lockstep_core::batch::{Batch, CellRef, Op, Phase, Row};
use lockstep_core::check::Finding;
use lockstep_core::durable::{Delivered, Durable, Receipt};
use lockstep_core::position::{Position, SourceInfo};
use lockstep_core::progress::Progress;
use lockstep_core::refusal::{Refusals, reason};
use lockstep_core::sink::{Sink, SinkContext, SinkFactory};
use lockstep_core::{Error, ErrorKind, Result};
use tokio::sync::{Notify, mpsc};

use super::{Config, Ends, LogRow, error, find};

static STORES: LazyLock<Ends<Store>> = LazyLock::new(Mutex::default);

/// What happens to one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It works.
    None,
    /// `write` fails and takes nothing.
    Reject(ErrorKind),
    /// The same, because somebody newer writes there.
    Fenced,
    /// The work is done, the answer is an error: a lost response.
    FailAfterWrite(ErrorKind),
    /// The work is not done and nobody answers.
    DropReceipt,
    /// The work is done, and nobody answers while the sink is open.
    Mute,
    /// The answer comes when the store is released.
    Hold,
    /// The work takes a while.
    Slow(u64),
}

/// A change as a sink holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub source: String,
    pub phase: Phase,
    pub position: Position,
    pub table: String,
    /// Of the new row, else of the old one; empty for a TRUNCATE.
    pub key: String,
    pub op: Op,
    /// The key it had before, when that was sent.
    pub old_key: Option<String>,
    /// The new row, without NULLs and what was left unchanged.
    pub row: Option<BTreeMap<String, String>>,
}

/// What a memory sink writes to; it outlives the sink.
pub struct Store {
    state: Mutex<StoreState>,
    released: Notify,
}

pub struct StoreState {
    /// All writes, in order.
    pub held: Vec<Held>,
    /// By source and identity: what is there, kept together with the data.
    pub progress: HashMap<String, Progress>,
    /// Whether `resume` tells the progress.
    pub proves: bool,
    pub faults: VecDeque<Fault>,
    pub open_faults: VecDeque<ErrorKind>,
    pub opened: usize,
    pub flushed: usize,
    pub closed: usize,
    pub holding: bool,
    /// Keys that are refused for good.
    pub poison: BTreeSet<u64>,
    /// The refusal names all changes of the batch, and not which of them it is about.
    pub vague: bool,
    /// Longer texts than this are refused.
    pub longest: usize,
    /// The kind of the errors of `poison`.
    pub poison_kind: ErrorKind,
    /// Writes handed over, and taken by `write`.
    pub taken: usize,
    pub tables: Vec<String>,
}

impl Store {
    pub fn new(script: &str) -> Arc<Store> {
        let store = Arc::new(Store {
            state: Mutex::new(StoreState {
                held: Vec::new(),
                progress: HashMap::new(),
                proves: true,
                faults: VecDeque::new(),
                open_faults: VecDeque::new(),
                opened: 0,
                flushed: 0,
                closed: 0,
                holding: true,
                poison: BTreeSet::new(),
                vague: false,
                longest: usize::MAX,
                poison_kind: ErrorKind::Refused,
                taken: 0,
                tables: Vec::new(),
            }),
            released: Notify::new(),
        });
        STORES
            .lock()
            .unwrap()
            .insert(script.to_owned(), Arc::clone(&store));
        store
    }

    pub fn state(&self) -> MutexGuard<'_, StoreState> {
        self.state.lock().unwrap()
    }

    /// Lets held answers go, now and later.
    pub fn release(&self) {
        self.state().holding = false;
        self.released.notify_waiters();
    }

    /// The changes of the stream of one source, as they were written.
    pub fn stream(&self, source: &str) -> Vec<(Position, LogRow)> {
        let state = self.state();
        let held = state
            .held
            .iter()
            .filter(|held| held.source == source && held.phase == Phase::Stream);
        held.map(|held| {
            let table: &'static str = held.table.clone().leak();
            let key = held.key.parse().expect("a number");
            (held.position, LogRow { table, key })
        })
        .collect()
    }

    /// The keys that are held, in the order of their writes, of all phases.
    pub fn keys(&self) -> Vec<u64> {
        let state = self.state();
        let keys = state.held.iter().map(|held| held.key.parse());
        keys.collect::<std::result::Result<_, _>>()
            .expect("numbers")
    }

    /// What the sink would say to a batch.
    fn refuse(&self, batch: &Batch) -> Result<()> {
        let state = self.state();
        if state.poison.is_empty() {
            return only_text(batch, state.longest);
        }
        let mut refusals = Refusals::default();
        let mut all = Vec::new();
        for change in batch.changes() {
            let schema = batch.schema(change);
            let row = batch.new_row(change).expect("a row");
            let key = row.get(&schema.columns[1]).text().expect("text");
            let key: u64 = std::str::from_utf8(key).unwrap().parse().unwrap();
            let refused = Error::new(state.poison_kind, format!("{key} is poison"))
                .because(reason::MAPPING)
                .about(&batch.source, &schema.id, batch.position(change));
            all.extend_from_slice(refused.refusals());
            if state.poison.contains(&key) {
                refusals.take::<()>(Err(refused))?;
            }
        }
        match refusals.finish() {
            Err(error) if state.vague => Err(error.suspecting(all)),
            other => other,
        }
    }

    fn apply(&self, batch: &Batch) -> Delivered {
        let mut state = self.state();
        let source = batch.source.name.to_string();
        for change in batch.changes() {
            let schema = batch.schema(change);
            let text = |cell: CellRef<'_>| {
                let text = cell.text()?.to_vec();
                Some(String::from_utf8(text).expect("looked at before"))
            };
            let key_of = |row: Row<'_>| {
                let column = schema.key_columns().next().expect("a key");
                text(row.get(column)).expect("a key is text")
            };
            let values = |row: Row<'_>| {
                let columns = schema.columns.iter();
                let values =
                    columns.map(|column| Some((column.name.to_string(), text(row.get(column))?)));
                values.flatten().collect()
            };
            let (old, new) = (batch.old_row(change), batch.new_row(change));
            let old_key = old.map(key_of);
            let position = batch.position(change);
            if batch.phase == Phase::Stream {
                state
                    .progress
                    .insert(key(&batch.source), batch.progress_at(change));
            }
            state.held.push(Held {
                source: source.clone(),
                phase: batch.phase,
                position,
                table: schema.origin.name.to_string(),
                key: new
                    .map(key_of)
                    .or_else(|| old_key.clone())
                    .unwrap_or_default(),
                op: change.op,
                old_key,
                row: new.map(values),
            });
        }
        Delivered {
            written: batch.changes().len() as u64,
            stale: 0,
            incomplete: 0,
            bytes: batch.size() as u64,
        }
    }
}

/// Refuses rows with bytes that are no text, or with a text that is too long.
fn only_text(batch: &Batch, longest: usize) -> Result<()> {
    let mut refusals = Refusals::default();
    for change in batch.changes() {
        let schema = batch.schema(change);
        let is_text = |row: Row<'_>| {
            let mut cells = schema
                .columns
                .iter()
                .filter_map(|column| row.get(column).text());
            cells.all(|bytes| bytes.len() <= longest && std::str::from_utf8(bytes).is_ok())
        };
        if !batch.new_row(change).is_none_or(is_text) {
            let error = Error::new(ErrorKind::Refused, "no text").because(reason::ENCODING);
            let position = batch.position(change);
            refusals.take::<()>(Err(error.about(&batch.source, &schema.id, position)))?;
        }
    }
    refusals.finish()
}

/// What positions are kept under.
fn key(source: &SourceInfo) -> String {
    format!("{} {}", source.name, source.identity)
}

type Work = (Arc<Batch>, Fault, Receipt);

/// Writes to a [`Store`] through a worker that can be dropped at any moment.
pub struct MemorySink {
    store: Arc<Store>,
    work: mpsc::Sender<Work>,
    worker: tokio::task::JoinHandle<()>,
}

impl Drop for MemorySink {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

#[async_trait]
impl SinkFactory for MemorySink {
    const KIND: &'static str = "memory";
    type Config = Config;

    fn validate(_: &Config) -> Result<()> {
        Ok(())
    }

    async fn open(config: &Config, context: SinkContext) -> Result<Box<dyn Sink>> {
        let store = find(&STORES, &config.script);
        {
            let mut state = store.state();
            if let Some(kind) = state.open_faults.pop_front() {
                return Err(error(kind));
            }
            state.opened += 1;
            state.tables = context
                .tables
                .iter()
                .map(|table| table.id.to_string())
                .collect();
        }
        let (work, inbox) = mpsc::channel(4);
        let worker = tokio::spawn(work_off(Arc::clone(&store), inbox));
        Ok(Box::new(MemorySink {
            store,
            work,
            worker,
        }))
    }

    async fn preflight(_: &Config, _: &str, _: &str) -> Vec<Finding> {
        vec![Finding::fail("reachable", "no", "start it")]
    }
}

/// [`MemorySink`] as one that holds rows.
pub struct RowSink;

#[async_trait]
impl SinkFactory for RowSink {
    const KIND: &'static str = "rows";
    type Config = Config;

    fn validate(_: &Config) -> Result<()> {
        Ok(())
    }

    async fn open(config: &Config, context: SinkContext) -> Result<Box<dyn Sink>> {
        MemorySink::open(config, context).await
    }

    async fn preflight(_: &Config, _: &str, _: &str) -> Vec<Finding> {
        Vec::new()
    }

    fn keeps_rows() -> bool {
        true
    }
}

async fn work_off(store: Arc<Store>, mut inbox: mpsc::Receiver<Work>) {
    let mut unanswered = Vec::new();
    while let Some((batch, fault, receipt)) = inbox.recv().await {
        if let Err(error) = store.refuse(&batch) {
            return receipt.resolve(Err(error));
        }
        match fault {
            Fault::None | Fault::Reject(_) | Fault::Fenced => {
                receipt.resolve(Ok(store.apply(&batch)))
            }
            Fault::FailAfterWrite(kind) => {
                store.apply(&batch);
                receipt.resolve(Err(error(kind)));
                return;
            }
            Fault::DropReceipt => return,
            Fault::Mute => {
                store.apply(&batch);
                unanswered.push(receipt);
            }
            Fault::Hold => {
                loop {
                    let released = store.released.notified();
                    if !store.state().holding {
                        break;
                    }
                    released.await;
                }
                receipt.resolve(Ok(store.apply(&batch)));
            }
            Fault::Slow(millis) => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                receipt.resolve(Ok(store.apply(&batch)));
            }
        }
    }
}

#[async_trait]
impl Sink for MemorySink {
    async fn resume(&mut self, source: &SourceInfo) -> Result<Option<Progress>> {
        let state = self.store.state();
        Ok(state
            .progress
            .get(&key(source))
            .cloned()
            .filter(|_| state.proves))
    }

    async fn write(&mut self, batch: Arc<Batch>) -> Result<Durable> {
        let fault = self.store.state().faults.pop_front().unwrap_or(Fault::None);
        match fault {
            Fault::Reject(kind) => return Err(error(kind)),
            Fault::Fenced => return Err(error(ErrorKind::Busy).because(reason::FENCED)),
            _ => {}
        }
        let (durable, receipt) = Durable::later();
        let gone = self.work.send((batch, fault, receipt)).await.is_err();
        if gone {
            return Err(error(ErrorKind::Unavailable));
        }
        self.store.state().taken += 1;
        Ok(durable)
    }

    async fn flush(&mut self) -> Result<()> {
        self.store.state().flushed += 1;
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.store.state().closed += 1;
        Ok(())
    }
}

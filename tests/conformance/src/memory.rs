//! A sink in memory that keeps every promise, or breaks one of them: the proof that the suite of sinks can fail.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use lockstep_core::batch::{Batch, CellRef, Change, Op, Phase, Row as BatchRow};
use lockstep_core::durable::{Delivered, Durable, Receipt};
use lockstep_core::position::{Position, SourceIdentity, SourceInfo};
use lockstep_core::progress::Progress as Holds;
use lockstep_core::refusal::{Refusals, reason};
use lockstep_core::schema::{TableId, TableSchema};
use lockstep_core::sink::{Sink, SinkContext};
use lockstep_core::token::Token;
use lockstep_core::{Error, ErrorKind, Result};
use tokio::sync::mpsc;

use crate::history::Row;
use crate::sink::{Event, Held, Progress, Rows, SinkUnderTest};

/// What it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Nothing.
    Nothing,
    /// The position moves before the data is there.
    ProgressAhead,
    /// The position is not kept.
    ForgetsProgress,
    /// Positions are kept by name, whatever log they are of.
    MixesLogs,
    /// Receipts are answered before the data is there.
    EarlyReceipts,
    /// Receipts are never answered once it is dropped.
    SilentReceipts,
    /// What an update left alone becomes NULL.
    MakesUpValues,
    /// A TRUNCATE empties all tables.
    TruncatesAll,
    /// The old row of a key change stays.
    KeepsOldKeys,
    /// Tables are not told apart.
    MixesTables,
    /// Older writes land.
    TakesOlder,
    /// Rows that cannot be written are left out without a word.
    SkipsPoison,
    /// Another row is blamed.
    BlamesAnother,
    /// Rows of a copy move the position.
    CopyIsProgress,
    /// A change is written a second time after a crash.
    Doubles,
    /// What went on ahead of something else counts as everything before it.
    ForgetsAhead,
    /// What went on before it committed is not noted.
    ForgetsEarly,
    /// What belongs together is written one after the other.
    WritesApart,
    /// Whoever has an older token writes all the same.
    TakesAnyToken,
}

/// A sink in memory on a store that outlives it.
#[derive(Clone, Debug)]
pub struct MemorySink {
    store: Arc<Mutex<Store>>,
    /// Held while what belongs together is written.
    step: Arc<Mutex<()>>,
    /// Held by the one that is open.
    alive: Arc<tokio::sync::Mutex<()>>,
    broken: Broken,
    is_queue: bool,
}

#[derive(Debug, Default)]
struct Store {
    rows: HashMap<TableId, BTreeMap<String, (Row, Position)>>,
    /// Deleted keys, and when.
    gone: HashMap<(TableId, String), Position>,
    emptied: HashMap<TableId, Position>,
    events: Vec<(TableId, Event)>,
    progress: HashMap<(String, Option<SourceIdentity>), Holds>,
    /// The greatest token seen.
    fence: Option<Token>,
}

impl MemorySink {
    /// One row per key.
    #[must_use]
    pub fn of_rows(broken: Broken) -> Self {
        MemorySink {
            store: Arc::default(),
            step: Arc::default(),
            alive: Arc::default(),
            broken,
            is_queue: false,
        }
    }

    /// Every change.
    #[must_use]
    pub fn of_events(broken: Broken) -> Self {
        MemorySink {
            is_queue: true,
            ..Self::of_rows(broken)
        }
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_step(&self) -> MutexGuard<'_, ()> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, source: &SourceInfo) -> (String, Option<SourceIdentity>) {
        let log = (self.broken != Broken::MixesLogs).then(|| source.identity.clone());
        (source.name.to_string(), log)
    }

    fn advance(&self, batch: &Batch) {
        let counts = batch.phase == Phase::Stream
            || batch.phase == Phase::Snapshot && self.broken == Broken::CopyIsProgress;
        if let Some(last) = batch.changes().last()
            && counts
            && self.broken != Broken::ForgetsProgress
        {
            let name = self.name(&batch.source);
            let held = batch.progress_at(last);
            let held = match self.broken {
                Broken::ForgetsAhead => held.last().into(),
                Broken::ForgetsEarly => Holds::new(held.upto(), held.ahead().iter().copied()),
                _ => held,
            };
            self.lock().progress.insert(name, held);
        }
    }

    /// Refuses an older token than the greatest seen.
    fn pass(&self, token: Option<Token>) -> Result<()> {
        let mut store = self.lock();
        if token < store.fence && self.broken != Broken::TakesAnyToken {
            let older = Error::new(ErrorKind::Busy, "a newer token has been seen");
            return Err(older.because(reason::FENCED));
        }
        store.fence = store.fence.max(token);
        Ok(())
    }

    fn check(&self, batch: &Batch) -> Result<()> {
        let mut refusals = Refusals::default();
        for change in batch.changes() {
            let mut position = batch.position(change);
            if is_writable(batch, change) || self.broken == Broken::SkipsPoison {
                continue;
            }
            if self.broken == Broken::BlamesAnother {
                position.ordinal += 1;
            }
            let error = Error::new(ErrorKind::Refused, "no text").because(reason::ENCODING);
            refusals.take::<()>(Err(error.about(
                &batch.source,
                &batch.schema(change).id,
                position,
            )))?;
        }
        refusals.finish()
    }

    fn apply(&self, batch: &Batch) -> Delivered {
        let mut delivered = Delivered::default();
        for change in batch.changes() {
            if change.op != Op::Message && is_writable(batch, change) {
                delivered.written += 1;
                match self.is_queue {
                    true => self.append(batch, change),
                    false => self.write(batch, change),
                }
            }
        }
        delivered
    }

    fn append(&self, batch: &Batch, change: &Change) {
        let schema = batch.schema(change);
        let id = batch.source.change_id(batch.position(change));
        let (old, new) = (
            key(batch, schema, batch.old_row(change)),
            key(batch, schema, batch.new_row(change)),
        );
        let event = |op, key: &Row, row: Option<Row>| Event {
            id: id.clone(),
            op,
            key: key.clone(),
            row,
        };
        let row = batch.new_row(change).map(|row| values(schema, row));
        let mut store = self.lock();
        let mut tell = |event| store.events.push((schema.id.clone(), event));
        match (change.op, old, new) {
            (Op::Truncate, ..) => tell(event('t', &Row::new(), None)),
            (Op::Delete, Some(old), _) => tell(event('d', &old, None)),
            (Op::Update, Some(old), Some(new)) if old != new => {
                tell(event('d', &old, None));
                tell(event('c', &new, row));
            }
            (Op::Update, _, Some(new)) => tell(event('u', &new, row)),
            (Op::Read, _, Some(new)) => tell(event('r', &new, row)),
            (_, _, Some(new)) => tell(event('c', &new, row)),
            _ => {}
        }
    }

    fn write(&self, batch: &Batch, change: &Change) {
        let schema = batch.schema(change);
        let mut table = schema.id.clone();
        if self.broken == Broken::MixesTables {
            table = TableId::new("public", "all");
        }
        let position = batch.position(change);
        let text = |row: Option<BatchRow<'_>>| {
            let key: Option<Row> = key(batch, schema, row);
            key.map(|key| key.into_values().collect::<Vec<_>>().join(":"))
        };
        let (old, new) = (text(batch.old_row(change)), text(batch.new_row(change)));
        let mut store = self.lock();
        let store = &mut *store;
        if change.op == Op::Truncate {
            for (name, rows) in &mut store.rows {
                if *name == table || self.broken == Broken::TruncatesAll {
                    rows.retain(|_, (_, at)| *at > position);
                }
            }
            let floor = store.emptied.entry(table).or_default();
            *floor = position.max(*floor);
            return;
        }
        let takes_older = self.broken == Broken::TakesOlder;
        let rows = store.rows.entry(table.clone()).or_default();
        let floor = store.emptied.get(&table).copied().unwrap_or_default();
        let is_newer = |rows: &BTreeMap<String, (Row, Position)>,
                        gone: &HashMap<(TableId, String), Position>,
                        key: &str| {
            let held = rows.get(key).map(|(_, at)| *at);
            let gone = gone.get(&(table.clone(), key.to_owned())).copied();
            takes_older || held.max(gone).max(Some(floor)) <= Some(position)
        };
        let before = old
            .as_ref()
            .or(new.as_ref())
            .and_then(|key| rows.get(key))
            .cloned();
        if let Some(old) = old.filter(|old| Some(old) != new.as_ref())
            && is_newer(rows, &store.gone, &old)
            && !(self.broken == Broken::KeepsOldKeys && change.op == Op::Update)
        {
            rows.remove(&old);
            store.gone.insert((table.clone(), old), position);
        }
        let (Some(new), Some(row)) = (new, batch.new_row(change)) else {
            return;
        };
        if is_newer(rows, &store.gone, &new) {
            let mut all = values(schema, row);
            // A replay finds the values where the change has put them.
            let before = before.or_else(|| rows.get(&new).cloned());
            for column in &schema.columns {
                let kept = before.as_ref().and_then(|(row, _)| row.get(&*column.name));
                if let Some(kept) = kept
                    && row.get(column) == CellRef::Unchanged
                    && self.broken != Broken::MakesUpValues
                {
                    all.insert(column.name.to_string(), kept.clone());
                }
            }
            rows.insert(new, (all, position));
        }
    }
}

fn is_writable(batch: &Batch, change: &Change) -> bool {
    let schema = batch.schema(change);
    let rows = [batch.old_row(change), batch.new_row(change)];
    rows.into_iter().flatten().all(|row| {
        let mut columns = schema.columns.iter();
        columns.all(|column| match row.get(column) {
            CellRef::Text(bytes) => std::str::from_utf8(bytes).is_ok(),
            CellRef::Null | CellRef::Unchanged | CellRef::Binary(_) => true,
        })
    })
}

fn text(cell: CellRef<'_>) -> Option<String> {
    cell.text()
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

fn values(schema: &TableSchema, row: BatchRow<'_>) -> Row {
    let columns = schema.columns.iter();
    columns
        .filter_map(|column| Some((column.name.to_string(), text(row.get(column))?)))
        .collect()
}

fn key(_: &Batch, schema: &TableSchema, row: Option<BatchRow<'_>>) -> Option<Row> {
    let columns = schema.key_columns();
    let row = row?;
    columns
        .map(|column| Some((column.name.to_string(), text(row.get(column))?)))
        .collect()
}

#[async_trait]
impl SinkUnderTest for MemorySink {
    async fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        let token = context.token;
        self.pass(token)?;
        let (work, mut inbox) = mpsc::channel::<Vec<(Arc<Batch>, Receipt)>>(16);
        let memory = self.clone();
        // An earlier one may be at work until it sees that it was dropped; a token keeps one out that is not dropped.
        let alive = match token {
            None => Some(Arc::clone(&self.alive).lock_owned().await),
            Some(_) => None,
        };
        let worker = tokio::spawn(async move {
            let _alive = alive;
            let mut first = true;
            while let Some(parts) = inbox.recv().await {
                if parts.len() > 1 && memory.broken != Broken::WritesApart {
                    // A moment at which it may be dropped.
                    tokio::time::sleep(std::time::Duration::from_micros(200)).await;
                    let _step = memory.begin_step();
                    for (batch, receipt) in parts {
                        let delivered = memory.apply(&batch);
                        memory.advance(&batch);
                        receipt.resolve(Ok(delivered));
                    }
                    continue;
                }
                for (batch, receipt) in parts {
                    if memory.broken == Broken::ProgressAhead {
                        memory.advance(&batch);
                        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
                    }
                    // A moment at which it may be dropped.
                    tokio::time::sleep(std::time::Duration::from_micros(200)).await;
                    if let Err(error) = memory.pass(token).and_then(|()| memory.check(&batch)) {
                        return receipt.resolve(Err(error));
                    }
                    if memory.broken == Broken::EarlyReceipts {
                        receipt.resolve(Ok(Delivered::default()));
                        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                        memory.apply(&batch);
                        memory.advance(&batch);
                        continue;
                    }
                    let delivered = memory.apply(&batch);
                    if memory.broken == Broken::Doubles && std::mem::take(&mut first) {
                        memory.apply(&batch);
                    }
                    memory.advance(&batch);
                    receipt.resolve(Ok(delivered));
                }
            }
        });
        Ok(Box::new(Open {
            memory: self.clone(),
            work,
            worker,
            silent: Vec::new(),
        }))
    }

    async fn held(&self, table: &Arc<TableSchema>) -> Held {
        let store = self.lock();
        if self.is_queue {
            let events = store.events.iter().filter(|(id, _)| *id == table.id);
            return Held::Events(events.map(|(_, event)| event.clone()).collect());
        }
        let name = match self.broken {
            Broken::MixesTables => TableId::new("public", "all"),
            _ => table.id.clone(),
        };
        let rows = store.rows.get(&name).into_iter().flatten();
        Held::Rows(
            rows.map(|(key, (row, _))| (key.clone(), row.clone()))
                .collect(),
        )
    }

    fn progress(&self) -> Progress {
        Progress::Atomic
    }

    fn is_fenced(&self) -> bool {
        true
    }

    fn shows_whole(&self) -> bool {
        !self.is_queue
    }

    async fn look(&self, tables: &[&Arc<TableSchema>], _: &[String]) -> Option<Vec<Rows>> {
        let _step = self.begin_step();
        let store = self.lock();
        let of = |table: &&Arc<TableSchema>| {
            let rows = store.rows.get(&table.id).into_iter().flatten();
            rows.map(|(key, (row, _))| (key.clone(), row.clone()))
                .collect()
        };
        Some(tables.iter().map(of).collect())
    }
}

struct Open {
    memory: MemorySink,
    work: mpsc::Sender<Vec<(Arc<Batch>, Receipt)>>,
    worker: tokio::task::JoinHandle<()>,
    silent: Vec<Receipt>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.abort();
        if self.memory.broken == Broken::SilentReceipts {
            std::mem::forget(std::mem::take(&mut self.silent));
        }
    }
}

#[async_trait]
impl Sink for Open {
    async fn resume(&mut self, source: &SourceInfo) -> Result<Option<Holds>> {
        let name = self.memory.name(source);
        Ok(self.memory.lock().progress.get(&name).cloned())
    }

    async fn write(&mut self, batch: Arc<Batch>) -> Result<Durable> {
        let (durable, receipt) = Durable::later();
        if self.memory.broken == Broken::SilentReceipts
            && !self.work.is_closed()
            && self.silent.len() < 3
        {
            self.silent.push(receipt);
            return Ok(durable);
        }
        let gone = self.work.send(vec![(batch, receipt)]).await.is_err();
        match gone {
            true => Err(Error::new(ErrorKind::Abandoned, "the sink has failed")),
            false => Ok(durable),
        }
    }

    async fn write_together(&mut self, batches: Vec<Arc<Batch>>) -> Result<Vec<Durable>> {
        let (mut all, mut parts) = (Vec::new(), Vec::new());
        for batch in batches {
            let (durable, receipt) = Durable::later();
            all.push(durable);
            parts.push((batch, receipt));
        }
        let gone = self.work.send(parts).await.is_err();
        match gone {
            true => Err(Error::new(ErrorKind::Abandoned, "the sink has failed")),
            false => Ok(all),
        }
    }

    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        let (work, _) = mpsc::channel(1);
        self.work = work;
        (&mut self.worker)
            .await
            .map_err(|error| Error::new(ErrorKind::Abandoned, "the sink has failed").source(error))
    }
}

//! A queue that takes dead letters: any sink, usually a Kafka topic. Each letter is a row of a table `dead_letters`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::batch::{Batch, BatchBuilder, Cell, Op, Phase, Transaction};
use lockstep_core::error::{At, Policy};
use lockstep_core::position::SourceInfo;
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};
use lockstep_core::sink::{Sink, SinkContext, Trouble};
use lockstep_core::{Error, ErrorKind, Result};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument as _;

use super::letter::{Letter, Record};
use crate::registry::SinkComponent;

/// Orders taken from the line at a time.
const AT_ONCE: usize = 256;
/// Bytes of letters that wait, above which nobody makes more.
const ROOM: usize = 8 << 20;
/// Pause after a failure that may pass.
const PAUSE: Duration = Duration::from_secs(1);

enum Order {
    Keep(Box<Letter>),
    /// Answers when all before it is acknowledged.
    Tell(oneshot::Sender<Result<()>>),
}

/// The way to the task that writes. The task ends with it.
pub(crate) struct Queue {
    orders: mpsc::UnboundedSender<Order>,
    /// Bytes of letters that are not acknowledged.
    waiting: Arc<watch::Sender<usize>>,
    trouble: Trouble,
}

impl Queue {
    /// A queue over a sink that is opened when the first letter comes.
    pub(crate) fn start(component: Arc<dyn SinkComponent>, context: SinkContext) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        let table = Arc::new(table(&context.pipeline));
        let trouble = context.trouble.clone();
        let waiting = Arc::new(watch::Sender::new(0));
        let writer = Writer {
            component,
            context,
            table,
            waiting: Arc::clone(&waiting),
            sink: None,
        };
        tokio::spawn(writer.run(inbox).in_current_span());
        Queue {
            orders,
            waiting,
            trouble,
        }
    }

    /// Waits until few enough letters wait. Cancel-safe.
    pub(crate) async fn room(&self) {
        // It fails when the sender is gone, which is here.
        drop(
            self.waiting
                .subscribe()
                .wait_for(|bytes| *bytes < ROOM)
                .await,
        );
    }

    /// Why letters wait, when they do.
    pub(crate) fn problem(&self) -> Option<String> {
        self.trouble.get().filter(|_| *self.waiting.borrow() > 0)
    }

    /// Writes letters and waits until they are acknowledged.
    ///
    /// # Errors
    /// What the sink says and waiting does not mend.
    pub(crate) async fn put(&self, letters: Vec<Letter>) -> Result<()> {
        for letter in letters {
            self.send(letter)?;
        }
        let (tell, told) = oneshot::channel();
        self.orders.send(Order::Tell(tell)).map_err(|_| gone())?;
        told.await.map_err(|_| gone())?
    }

    /// Hands a letter over; [`Queue::blocking_persist`] waits for it.
    ///
    /// # Errors
    /// When the task has ended.
    pub(crate) fn send(&self, letter: Letter) -> Result<()> {
        let bytes = letter.size();
        self.waiting.send_modify(|waiting| *waiting += bytes);
        self.orders
            .send(Order::Keep(Box::new(letter)))
            .map_err(|_| gone())
    }

    /// Waits until everything handed over is acknowledged. For a blocking thread.
    ///
    /// # Errors
    /// As for [`Queue::put`].
    pub(crate) fn blocking_persist(&self) -> Result<()> {
        let (tell, told) = oneshot::channel();
        self.orders.send(Order::Tell(tell)).map_err(|_| gone())?;
        told.blocking_recv().map_err(|_| gone())?
    }
}

fn gone() -> Error {
    Error::new(
        ErrorKind::Abandoned,
        "the writer of dead letters has ended without a word",
    )
}

struct Writer {
    component: Arc<dyn SinkComponent>,
    context: SinkContext,
    table: Arc<TableSchema>,
    waiting: Arc<watch::Sender<usize>>,
    sink: Option<Box<dyn Sink>>,
}

impl Writer {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Order>) {
        let mut orders = Vec::new();
        let mut failed: Option<Error> = None;
        while inbox.recv_many(&mut orders, AT_ONCE).await > 0 {
            let (mut letters, mut tell) = (Vec::new(), Vec::new());
            for order in orders.drain(..) {
                match order {
                    Order::Keep(letter) => letters.push(*letter),
                    Order::Tell(sender) => tell.push(sender),
                }
            }
            if failed.is_none() {
                failed = self.write_all(&letters).await.err();
            }
            for sender in tell {
                // Whoever asked may have gone.
                let _ = sender.send(failed.clone().map_or(Ok(()), Err));
            }
        }
        if let Some(sink) = self.sink.take() {
            // Everything is acknowledged.
            drop(sink.close().await);
        }
    }

    /// Writes letters one by one. One that the queue refuses for good, mostly because it is too large for it, goes without
    /// its row: what it was, where, and why can still be read.
    async fn write_all(&mut self, letters: &[Letter]) -> Result<()> {
        for letter in letters {
            match self.write_one(letter.record(), letter).await {
                Err(error) if error.kind() == ErrorKind::Refused => {
                    let change = &letter.head.change;
                    tracing::warn!(%error, change, "a dead letter is refused by its queue: it goes without its row");
                    self.write_one(letter.without_row(&error), letter).await?;
                }
                other => other?,
            }
            let bytes = letter.size();
            self.waiting.send_modify(|waiting| *waiting -= bytes);
        }
        Ok(())
    }

    /// Tries for as long as the failure may pass.
    async fn write_one(&mut self, record: Record, letter: &Letter) -> Result<()> {
        let batch = Arc::new(batch(&self.table, &record, letter));
        let mut logged = None;
        loop {
            let Err(error) = self.write(&batch).await.at("dead_letters") else {
                self.context.trouble.clear();
                return Ok(());
            };
            self.sink = None;
            if error.kind().policy() == Policy::Stop {
                return Err(error);
            }
            let text = error.to_string();
            self.context.trouble.report(text.clone());
            if logged.as_ref() != Some(&text) {
                tracing::warn!(%error, "a dead letter cannot be written; it is tried again, and its sink waits");
                logged = Some(text);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn write(&mut self, batch: &Arc<Batch>) -> Result<()> {
        let sink = match &mut self.sink {
            Some(sink) => sink,
            None => {
                let sink = self.component.open(self.context.clone()).await?;
                self.sink.insert(sink)
            }
        };
        let durable = sink.write(Arc::clone(batch)).await?;
        sink.flush().await?;
        durable.await.map(|_| ())
    }
}

fn batch(table: &Arc<TableSchema>, record: &Record, letter: &Letter) -> Batch {
    let head = &letter.head;
    let mut builder = BatchBuilder::new();
    builder.begin(Transaction {
        commit: head.position.commit,
        commit_micros: head.kept_micros,
        xid: 0,
        origin: None,
        previous_commit: None,
        prepared: None,
        global: None,
    });
    let index = builder.schema(table);
    let mut block = Vec::new();
    for (_, value) in record {
        let offset = block.len() as u32;
        match value {
            Value::String(text) => block.extend_from_slice(text.as_bytes()),
            other => block.extend_from_slice(other.to_string().as_bytes()),
        }
        let length = block.len() as u32 - offset;
        builder.cells().push(Cell::text(offset, length));
    }
    let lsn = head.position.commit;
    builder.push(Op::Insert, index, head.position.ordinal, lsn, None, Some(0));
    let source = Arc::new(SourceInfo {
        name: head.source.as_str().into(),
        identity: head.identity.clone(),
    });
    builder.finish(source, Phase::Replay, None, Bytes::from(block))
}

/// The table that letters are rows of; the key is `id`.
fn table(pipeline: &str) -> TableSchema {
    let names = [
        "id", "place", "reason", "message", "source", "table", "position", "letter",
    ];
    let column = |(slot, name): (usize, &&str)| {
        let (oid, ty) = match *name {
            "letter" => (3802, "jsonb"),
            _ => (25, "text"),
        };
        Column {
            name: (*name).into(),
            ty: ColumnType {
                oid,
                typmod: -1,
                name: ty.into(),
                kind: TypeKind::Base,
            },
            slot: slot as u16,
            not_null: true,
        }
    };
    TableSchema {
        source: pipeline.into(),
        id: TableId::new("lockstep", "dead_letters"),
        origin: TableId::new("lockstep", "dead_letters"),
        relation: 0,
        version: 1,
        columns: names.iter().enumerate().map(column).collect(),
        key: vec![0],
        identity: ReplicaIdentity::Default,
        width: names.len() as u16,
    }
}

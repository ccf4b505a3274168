//! The thread of a sink: lines into files, one fsync for many batches.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lockstep_core::batch::{Batch, Phase};
use lockstep_core::durable::{Delivered, Receipt};
use lockstep_core::error::At;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::{Encoder, HEADER_ID, Record};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::files::Files;
use crate::sidecar::Sidecar;

/// What the thread is told.
pub(crate) enum Order {
    /// Batches that go to one sync; mostly it is one batch.
    Write {
        parts: Vec<(Arc<Batch>, Receipt)>,
        /// Given back when they are encoded.
        _room: OwnedSemaphorePermit,
    },
    /// Everything before it is made durable; then the thread ends.
    Close(oneshot::Sender<Result<()>>),
}

/// What the sink and its thread both look at.
pub(crate) struct Shared {
    /// The sink is gone.
    pub(crate) dropped: AtomicBool,
    /// Why the thread ended.
    failure: Mutex<Option<Error>>,
    /// Room in the inbox, in batches.
    pub(crate) room: Arc<Semaphore>,
}

impl Shared {
    pub(crate) fn new(room: usize) -> Self {
        Shared {
            dropped: AtomicBool::new(false),
            failure: Mutex::new(None),
            room: Arc::new(Semaphore::new(room)),
        }
    }

    pub(crate) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    pub(crate) fn failure(&self) -> Option<Error> {
        let slot = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        slot.clone()
    }
}

pub(crate) struct Writer {
    pub(crate) encoder: Encoder,
    pub(crate) files: Files,
    pub(crate) sidecar: Sidecar,
    pub(crate) interval: Duration,
    pub(crate) shared: Arc<Shared>,
    pub(crate) awaiting: VecDeque<(Receipt, Delivered)>,
    /// When the oldest of `awaiting` was taken.
    pub(crate) since: Instant,
}

impl Writer {
    /// Works until told to close, until the sink is dropped, or until something fails.
    pub(crate) fn run(mut self, inbox: &Receiver<Order>) {
        let error = match self.serve(inbox) {
            Ok(done) => {
                // The lock is given back before the answer; whoever closes may have gone.
                drop(self);
                if let Some(done) = done {
                    let _ = done.send(Ok(()));
                }
                return;
            }
            Err(error) => error,
        };
        *self
            .shared
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
        self.shared.room.close();
        for (receipt, _) in self.awaiting.drain(..) {
            receipt.resolve(Err(error.clone()));
        }
        while let Ok(order) = inbox.try_recv() {
            match order {
                Order::Write { parts, .. } => {
                    for (_, receipt) in parts {
                        receipt.resolve(Err(error.clone()));
                    }
                }
                Order::Close(done) => drop(done.send(Err(error.clone()))),
            }
        }
    }

    /// `Ok(Some)`: asked to close, and done. `Ok(None)`: the sink is gone.
    fn serve(&mut self, inbox: &Receiver<Order>) -> Result<Option<oneshot::Sender<Result<()>>>> {
        loop {
            if self.shared.is_dropped() {
                return Ok(None);
            }
            let order = match inbox.try_recv() {
                Ok(order) => order,
                Err(TryRecvError::Disconnected) => return Ok(None),
                Err(TryRecvError::Empty) => {
                    self.sync()?;
                    match inbox.recv() {
                        Ok(order) => order,
                        Err(_) => return Ok(None),
                    }
                }
            };
            match order {
                Order::Write { parts, .. } => {
                    if self.awaiting.is_empty() {
                        self.since = Instant::now();
                    }
                    self.take_together(parts)?;
                    if self.since.elapsed() >= self.interval {
                        self.sync()?;
                    }
                }
                Order::Close(done) => {
                    self.sync()?;
                    return Ok(Some(done));
                }
            }
        }
    }

    fn take_together(&mut self, parts: Vec<(Arc<Batch>, Receipt)>) -> Result<()> {
        let mut failed = None;
        for (batch, receipt) in parts {
            let taken = match failed {
                None => self.take(&batch),
                Some(_) => Ok(Delivered::default()),
            };
            // Answered with the others when it failed.
            let delivered = taken.as_ref().copied().unwrap_or_default();
            self.awaiting.push_back((receipt, delivered));
            failed = failed.or_else(|| taken.err());
        }
        failed.map_or(Ok(()), Err)
    }

    fn take(&mut self, batch: &Batch) -> Result<Delivered> {
        let mut total = Delivered::default();
        for (index, change) in batch.changes().iter().enumerate() {
            if self.shared.is_dropped() {
                return Err(Error::new(ErrorKind::Stopping, "the sink was dropped"));
            }
            let schema = batch.schema(change);
            let output = self.files.of(schema, &mut self.sidecar)?;
            let output = self.files.output(output);
            let encoded = self.encoder.encode(batch, change, &mut |record| {
                let buffer = output.buffer();
                let start = buffer.len();
                if line(&record, buffer) {
                    total.written += 1;
                    total.bytes += (buffer.len() - start) as u64;
                }
                output.appended()
            });
            let encoded = encoded.at(format!(
                "change {} of table {}",
                batch.source.change_id(batch.position(change)),
                schema.origin
            ));
            if let Err(refused) = encoded {
                let rest = &batch.changes()[index + 1..];
                return Err(self.encoder.survey(batch, rest, refused, &mut |_| Ok(())));
            }
        }
        // Rows of an initial copy come from several readers at once: their positions say nothing of each other.
        if let (Phase::Stream, Some(last)) = (batch.phase, batch.changes().last()) {
            self.sidecar.note(&batch.source, batch.progress_at(last));
        }
        Ok(total)
    }

    /// Data first, then the record of it: a crash in between leaves lines that the next start removes.
    fn sync(&mut self) -> Result<()> {
        if self.awaiting.is_empty() {
            return Ok(());
        }
        if self
            .awaiting
            .iter()
            .any(|(_, delivered)| delivered.written > 0)
        {
            self.files.sync(&mut self.sidecar)?;
            self.sidecar.synced();
            self.sidecar.save()?;
        }
        for (receipt, delivered) in self.awaiting.drain(..) {
            receipt.resolve(Ok(delivered));
        }
        Ok(())
    }
}

/// Appends `{"id":…,"key":…,"value":…}` and a newline. A tombstone, which has a meaning for compacted topics only, is
/// left out.
fn line(record: &Record<'_>, out: &mut Vec<u8>) -> bool {
    let Some(value) = record.json_value() else {
        return false;
    };
    out.extend_from_slice(b"{\"id\":\"");
    let start = out.len();
    if let Some((_, id)) = record.headers.iter().find(|(name, _)| *name == HEADER_ID) {
        escape(id, out);
    }
    out.extend_from_slice(b"\",\"key\":");
    out.extend_from_slice(record.json_key().as_deref().unwrap_or(b"null"));
    out.extend_from_slice(b",\"value\":");
    out.extend_from_slice(&value);
    // A newline can only be space between tokens: `json` columns keep theirs. A line is one record.
    for byte in &mut out[start..] {
        if *byte == b'\n' || *byte == b'\r' {
            *byte = b' ';
        }
    }
    out.extend_from_slice(b"}\n");
    true
}

/// A database's name may hold quotes and more.
fn escape(id: &[u8], out: &mut Vec<u8>) {
    if id
        .iter()
        .all(|&byte| byte >= b' ' && byte != b'"' && byte != b'\\')
    {
        return out.extend_from_slice(id);
    }
    let text = String::from_utf8_lossy(id);
    let quoted = serde_json::to_string(&*text).expect("text is always JSON");
    out.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_escaped() {
        let mut out = Vec::new();
        escape(b"1/1/my\"db/0/1", &mut out);
        assert_eq!(out, br#"1/1/my\"db/0/1"#);
    }
}

//! Transactions that the server sends while they are still in progress: taken down piece by piece, and given back whole
//! when they commit, as if they had been sent then.
//!
//! A *piece* lies between Stream Start and Stream Stop; what is in it carries the id of the (sub)transaction that did
//! it. Stream Abort names what was rolled back. On Stream Commit the assembler gets the messages that are left, without
//! those ids: byte for byte what it would have got without streaming, in the same order (a transaction's changes in the
//! order of the log), so that positions and ordinals are the same either way.

mod spool;
mod xids;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use lockstep_core::batch::Transaction;
use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_core::position::Lsn;

use crate::error::protocol;
use crate::pgoutput::{Context, EPOCH_MICROS, Message, decode};
use spool::{Reader, Spool, Spools};
pub use xids::Part;
use xids::Xids;

/// Before each message in a spool: length, id of the subtransaction, and LSN (of descriptions: their number).
const HEADER: usize = 16;

/// What became of a payload.
#[derive(Debug)]
pub enum Taken {
    /// It is no part of a transaction in progress: the assembler's.
    Plain,
    /// Kept, or an end of pieces.
    Kept,
    /// A transaction that has been kept has committed.
    Committed(Box<Committed>),
    /// It cannot be told what was rolled back: the transactions in progress are to be received without streaming.
    Doubt(Error),
}

/// A transaction that was kept, and has committed.
#[derive(Debug)]
pub struct Committed {
    /// Its head, without `previous_commit`.
    pub head: Transaction,
    /// End of its commit record.
    pub end: Lsn,
    pieces: Pieces,
}

/// The messages of a transaction that are not rolled back.
#[derive(Debug)]
pub struct Pieces {
    reader: Reader,
    seen: Xids,
    aborted: Xids,
    has_messages: bool,
    xid: u32,
}

/// A message in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub start: usize,
    pub end: usize,
    /// Of the change; of a description, its number.
    pub lsn: Lsn,
}

struct Open {
    spool: Spool,
    /// Subtransactions that changes came of.
    seen: Xids,
    /// The last of them.
    last: u32,
    aborted: Xids,
    origin: Option<Arc<str>>,
    has_messages: bool,
    /// A logical message came after the last change of the transaction itself. The server sends messages in the name of
    /// the transaction, whatever subtransaction they belong to; but a change of the transaction itself says that every
    /// subtransaction before it has ended, and a rollback of one that has ended has been reported.
    doubtful: bool,
}

/// The transactions in progress.
pub struct Streams {
    spools: Spools,
    open: HashMap<u32, Open>,
    /// Whose piece is being received.
    receiving: Option<u32>,
    /// Bytes kept.
    kept: u64,
}

impl Streams {
    /// With files in `directory`, which exists.
    pub fn new(directory: &Path) -> Self {
        Self::with(Spools::new(directory))
    }

    fn with(spools: Spools) -> Self {
        Streams {
            spools,
            open: HashMap::new(),
            receiving: None,
            kept: 0,
        }
    }

    /// Takes in a payload, sent with `wal_start`. `number` counts payloads; descriptions are kept with it.
    ///
    /// # Errors
    /// Of kind `Protocol`, when bytes or their order break the rules; of kind `Full` or `Storage`, when it cannot be kept.
    #[inline]
    pub fn take(&mut self, payload: &[u8], wal_start: Lsn, number: u64) -> Result<Taken> {
        match (self.receiving, payload.first()) {
            (Some(xid), _) => self.piece(xid, payload, wal_start, number),
            (None, Some(b'S' | b'c' | b'A')) => self.bound(payload),
            (None, _) => Ok(Taken::Plain),
        }
    }

    /// Transactions in progress.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Bytes kept of them.
    pub fn kept(&self) -> u64 {
        self.kept
    }

    fn piece(&mut self, xid: u32, payload: &[u8], wal_start: Lsn, number: u64) -> Result<Taken> {
        let open = self
            .open
            .get_mut(&xid)
            .ok_or_else(|| protocol("a piece of a transaction that did not begin"))?;
        match *payload {
            [
                tag @ (b'I' | b'U' | b'D' | b'T' | b'M' | b'R' | b'Y'),
                a,
                b,
                c,
                d,
                ref rest @ ..,
            ] => {
                let subxid = u32::from_be_bytes([a, b, c, d]);
                let lsn = match tag {
                    b'R' => number,
                    _ => wal_start.0,
                };
                match tag {
                    b'M' => (open.doubtful, open.has_messages) = (true, true),
                    b'I' | b'U' | b'D' | b'T' if subxid == xid => open.doubtful = false,
                    _ => {}
                }
                if subxid != xid && subxid != open.last {
                    open.last = subxid;
                    open.seen.insert(subxid);
                }
                let length = u32::try_from(1 + rest.len())
                    .map_err(|_| protocol("a message of more than 4 GiB"))?;
                let mut header = [0; HEADER];
                header[..4].copy_from_slice(&length.to_be_bytes());
                header[4..8].copy_from_slice(&subxid.to_be_bytes());
                header[8..].copy_from_slice(&lsn.to_be_bytes());
                self.spools
                    .append(&mut open.spool, &[&header, &[tag], rest]);
                self.kept += (HEADER + 1 + rest.len()) as u64;
                if self.spools.is_over() {
                    self.spill()?;
                }
                Ok(Taken::Kept)
            }
            [b'E'] => {
                self.receiving = None;
                Ok(Taken::Kept)
            }
            [b'O', ..] => {
                if let Message::Origin { name, .. } = read(payload)? {
                    open.origin = Some(String::from_utf8_lossy(name).into());
                }
                Ok(Taken::Kept)
            }
            _ => Err(protocol(
                "a message that does not belong into a piece of a transaction",
            )),
        }
    }

    /// The beginning of a piece, or the end of a transaction.
    fn bound(&mut self, payload: &[u8]) -> Result<Taken> {
        match read(payload)? {
            Message::StreamStart { xid, first } => {
                if first {
                    // The server is right about what is the first: it knows of none before.
                    self.forget(xid);
                    self.open.insert(xid, Open::new());
                } else if !self.open.contains_key(&xid) {
                    return Err(protocol(format!(
                        "a further piece of transaction {xid} came, and none before"
                    )));
                }
                self.receiving = Some(xid);
                Ok(Taken::Kept)
            }
            Message::StreamAbort { xid, subxid, .. } if xid == subxid => {
                self.forget(xid);
                Ok(Taken::Kept)
            }
            Message::StreamAbort { xid, subxid, .. } => {
                // Of one that we know nothing of, there is nothing to drop.
                let Some(open) = self.open.get_mut(&xid) else {
                    return Ok(Taken::Kept);
                };
                if open.doubtful {
                    return Ok(Taken::Doubt(doubt(xid)));
                }
                open.aborted.insert(subxid);
                Ok(Taken::Kept)
            }
            Message::StreamCommit {
                xid,
                commit_lsn,
                end_lsn,
                commit_time,
            } => {
                let open = self.remove(xid).ok_or_else(|| {
                    protocol(format!(
                        "transaction {xid} was streamed and committed, and none of its pieces came"
                    ))
                })?;
                Ok(Taken::Committed(Box::new(Committed {
                    head: Transaction {
                        commit: Lsn(commit_lsn),
                        commit_micros: commit_time + EPOCH_MICROS,
                        xid,
                        origin: open.origin,
                        previous_commit: None,
                    },
                    end: Lsn(end_lsn),
                    pieces: Pieces {
                        reader: open.spool.read(),
                        seen: open.seen,
                        aborted: open.aborted,
                        has_messages: open.has_messages,
                        xid,
                    },
                })))
            }
            _ => Err(protocol("a bound of a streamed transaction cannot be read")),
        }
    }

    fn remove(&mut self, xid: u32) -> Option<Open> {
        let open = self.open.remove(&xid)?;
        self.spools.discard(&open.spool);
        self.kept -= open.spool.len();
        Some(open)
    }

    fn forget(&mut self, xid: u32) {
        drop(self.remove(xid));
    }

    /// Makes room in memory: the largest shares go to their files. One would do, but then the next payload may be the
    /// next to go over: half of what is held goes.
    fn spill(&mut self) -> Result<()> {
        let mut shares: Vec<(usize, u32)> = self
            .open
            .iter()
            .map(|(xid, open)| (open.spool.held(), *xid))
            .collect();
        shares.sort_unstable();
        let enough = shares.iter().map(|(held, _)| held).sum::<usize>() / 2;
        let mut spilled = 0;
        while spilled <= enough
            && let Some((held, xid)) = shares.pop()
            && let Some(open) = self.open.get_mut(&xid)
        {
            self.spools.spill(&mut open.spool)?;
            spilled += held;
        }
        Ok(())
    }
}

impl Open {
    fn new() -> Self {
        Open {
            spool: Spool::default(),
            seen: Xids::default(),
            last: 0,
            aborted: Xids::default(),
            origin: None,
            has_messages: false,
            doubtful: false,
        }
    }
}

impl Committed {
    /// Its messages.
    pub fn pieces(&mut self) -> &mut Pieces {
        &mut self.pieces
    }
}

impl Pieces {
    /// Subtransactions that changes came of, in parts.
    pub fn parts(&self) -> Vec<Part> {
        self.seen.parts()
    }

    /// Those of a part of which no rollback was told.
    pub fn kept(&self, part: Part) -> Vec<u32> {
        let kept = |xid: &u32| !self.aborted.contains(*xid);
        self.seen.of(part).filter(kept).collect()
    }

    /// What a subtransaction did is passed over.
    ///
    /// # Errors
    /// Of kind `Unavailable` when it cannot be told what that is: see [`Taken::Doubt`].
    pub fn roll_back(&mut self, subxid: u32) -> Result<()> {
        if self.has_messages {
            return Err(doubt(self.xid));
        }
        self.aborted.insert(subxid);
        Ok(())
    }

    /// Whether all of it has been read.
    pub fn is_done(&self) -> bool {
        self.reader.is_done()
    }

    /// Reads up to `most` more bytes to the end of `block`.
    ///
    /// # Errors
    /// Of kind `Storage`.
    pub fn fill(&mut self, block: &mut Vec<u8>, most: usize) -> Result<()> {
        self.reader.fill(block, most)
    }

    /// The next message of `block` from `at` on, and moves `at` behind it; `None` when it is not all there. What was
    /// rolled back is passed over.
    pub fn next(&self, block: &[u8], at: &mut usize) -> Option<Piece> {
        loop {
            let (header, rest) = block.get(*at..)?.split_first_chunk::<HEADER>()?;
            let [a, b, c, d, e, f, g, h, lsn @ ..] = *header;
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if rest.len() < length {
                return None;
            }
            let subxid = u32::from_be_bytes([e, f, g, h]);
            let start = *at + HEADER;
            *at = start + length;
            // Descriptions go the same way: after a rollback the server sends them again.
            if subxid == self.xid || !self.aborted.contains(subxid) {
                return Some(Piece {
                    start,
                    end: start + length,
                    lsn: Lsn(u64::from_be_bytes(lsn)),
                });
            }
        }
    }

    /// How many bytes the message at `at` has, of which only a beginning is in `block`.
    pub fn needed(block: &[u8], at: usize) -> usize {
        let length = block
            .get(at..)
            .and_then(<[u8]>::first_chunk::<4>)
            .map_or(0, |length| u32::from_be_bytes(*length) as usize);
        HEADER + length
    }
}

fn doubt(xid: u32) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!(
            "transaction {xid} has logical messages and rolled savepoints back, and PostgreSQL does not say which \
             messages went with them"
        ),
    )
}

fn read(payload: &[u8]) -> Result<Message<'_>> {
    decode(payload, Context::default())
        .map(|(message, _)| message)
        .map_err(|error| protocol("a pgoutput message cannot be decoded").source(error))
}

#[cfg(test)]
mod tests;

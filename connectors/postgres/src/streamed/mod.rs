//! Transactions that the server sends before they commit, while they are still in progress or when they are prepared: taken
//! down piece by piece, and given back whole when they commit, as if they had been sent then.
//!
//! A *piece* lies between Stream Start and Stream Stop; what is in it carries the id of the (sub)transaction that did
//! it. Stream Abort names what was rolled back. On Stream Commit the assembler gets the messages that are left, without
//! those ids: byte for byte what it would have got without streaming, in the same order (a transaction's changes in the
//! order of the log), so that positions and ordinals are the same either way.
//!
//! A *prepared* transaction comes between Begin Prepare and Prepare, without those ids and without what was rolled back
//! of it; or in pieces, and Stream Prepare is their end. Commit Prepared or Rollback Prepared says what becomes of it.

mod branches;
mod spool;
mod xids;

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use lockstep_core::batch::{self, Prepared, Transaction};
use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_core::position::Lsn;
use lockstep_pg::error::protocol;

use crate::pgoutput::{self, Context, EPOCH_MICROS, Message, decode};
pub use branches::InDoubt;
use branches::{Branch, Branches};
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
    /// The description of a table, kept as well, which holds for what other transactions send behind it.
    Described,
    /// A transaction that has been kept has committed.
    Committed(Box<Committed>),
    /// One was prepared, or rolled back after that.
    Told(batch::Branch),
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
    /// Relations that have been described in it, of one that comes whole.
    described: HashSet<u32>,
    /// The descriptions in its pieces: once it has committed, everybody knows them.
    descriptions: Descriptions,
    has_messages: bool,
    /// Content of the last message that says what it is a branch of.
    marker: Option<Arc<str>>,
    /// A logical message came after the last change of the transaction itself. The server sends messages in the name of
    /// the transaction, whatever subtransaction they belong to; but a change of the transaction itself says that every
    /// subtransaction before it has ended, and a rollback of one that has ended has been reported.
    doubtful: bool,
    /// Its rows cannot be told before it commits: it has changed a table's shape.
    is_hidden: bool,
}

/// Descriptions of relations, with the numbers of their payloads.
type Descriptions = HashMap<u32, (u64, Box<[u8]>)>;

/// A transaction whose messages follow.
#[derive(Clone, Copy)]
enum Receiving {
    /// A piece of it.
    Piece(u32),
    /// All of it, up to its PREPARE at this place of the log.
    Whole(u32, Lsn),
}

/// The transactions in progress, and those that are prepared.
pub struct Streams {
    spools: Spools,
    open: HashMap<u32, Open>,
    /// Whose messages are being received.
    receiving: Option<Receiving>,
    branches: Branches,
    /// Of each relation the last that everybody knows.
    descriptions: Descriptions,
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
            branches: Branches::default(),
            descriptions: HashMap::new(),
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
            (Some(Receiving::Piece(xid)), _) => self.piece(xid, payload, wal_start, number),
            (Some(Receiving::Whole(xid, _)), _) => self.part(xid, payload, wal_start, number),
            (None, Some(b'S' | b'c' | b'A' | b'b' | b'p' | b'K' | b'r')) => self.bound(payload),
            (None, tag) => {
                if tag == Some(&b'R') {
                    self.describe(payload, number)?;
                }
                Ok(Taken::Plain)
            }
        }
    }

    /// Transactions in progress.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Transactions that are prepared, and not decided.
    pub fn in_doubt(&self) -> InDoubt {
        self.branches.in_doubt()
    }

    /// The place of the log behind which nothing may be confirmed, when every sink has what committed up to `durable`.
    pub fn hold(&mut self, durable: Lsn) -> Option<Lsn> {
        let coming = match self.receiving {
            Some(Receiving::Whole(_, prepared)) => Some(prepared),
            _ => None,
        };
        self.branches.hold(durable).into_iter().chain(coming).min()
    }

    /// What the branch that was prepared at `lsn` has changed so far as is known, as a transaction of that place; it stays prepared.
    /// `None` when there is none, or it is not to be shown.
    ///
    /// # Errors
    /// Of kind `Storage` when it cannot be read back.
    pub fn early(&mut self, lsn: Lsn) -> Result<Option<Committed>> {
        match self.branches.get_mut(lsn) {
            Some(branch) if !branch.open.is_hidden => branch.early().map(Some),
            _ => Ok(None),
        }
    }

    /// What the branch that was prepared at `lsn` has changed is not to be shown before it commits.
    pub fn hide(&mut self, lsn: Lsn) {
        if let Some(branch) = self.branches.get_mut(lsn) {
            branch.open.is_hidden = true;
        }
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
                    b'R' => {
                        let description = [&[tag], rest].concat();
                        let relation = relation_of(&description)?;
                        open.descriptions
                            .insert(relation, (number, description.into()));
                    }
                    b'M' => {
                        (open.doubtful, open.has_messages) = (true, true);
                        open.note_marker(&[&[tag], rest].concat())?;
                    }
                    b'I' | b'U' | b'D' | b'T' if subxid == xid => open.doubtful = false,
                    _ => {}
                }
                if subxid != xid && subxid != open.last {
                    open.last = subxid;
                    open.seen.insert(subxid);
                }
                self.kept += append(&mut self.spools, open, subxid, lsn, &[&[tag], rest])?;
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

    /// Everybody is sent a description.
    fn describe(&mut self, payload: &[u8], number: u64) -> Result<u32> {
        let relation = relation_of(payload)?;
        self.descriptions.insert(relation, (number, payload.into()));
        Ok(relation)
    }

    /// Everybody knows what was described in the pieces of a transaction.
    fn publish(&mut self, descriptions: &mut Descriptions) {
        for (relation, (number, description)) in descriptions.drain() {
            let last = self.descriptions.get(&relation);
            if last.is_none_or(|(last, _)| *last < number) {
                self.descriptions.insert(relation, (number, description));
            }
        }
    }

    /// A message of a transaction that is about to be prepared: it carries no id, as nothing is left that was rolled back.
    ///
    /// Descriptions that its rows go by are kept with it, also those that came before it: when it commits, others may have come.
    fn part(&mut self, xid: u32, payload: &[u8], wal_start: Lsn, number: u64) -> Result<Taken> {
        let described = match payload.first() {
            Some(b'R') => Some(self.describe(payload, number)?),
            _ => None,
        };
        let open = self
            .open
            .get_mut(&xid)
            .ok_or_else(|| protocol("a message of a transaction that did not begin"))?;
        match payload.first() {
            Some(tag @ (b'I' | b'U' | b'D' | b'T' | b'M' | b'R')) => {
                for relation in relations(payload) {
                    if open.described.insert(relation)
                        && let Some((number, description)) = self.descriptions.get(&relation)
                    {
                        self.kept += append(&mut self.spools, open, xid, *number, &[description])?;
                    }
                }
                if *tag == b'M' {
                    open.note_marker(payload)?;
                }
                let (lsn, taken) = match tag {
                    b'R' => (number, Taken::Described),
                    _ => (wal_start.0, Taken::Kept),
                };
                open.described.extend(described);
                self.kept += append(&mut self.spools, open, xid, lsn, &[payload])?;
                if self.spools.is_over() {
                    self.spill()?;
                }
                Ok(taken)
            }
            Some(b'Y') => Ok(Taken::Kept),
            Some(b'O') => {
                if let Message::Origin { name, .. } = read(payload)? {
                    open.origin = Some(String::from_utf8_lossy(name).into());
                }
                Ok(Taken::Kept)
            }
            Some(b'P') => {
                self.receiving = None;
                match read(payload)? {
                    Message::Prepare(prepared) if prepared.xid == xid => self.prepare(&prepared),
                    _ => Err(protocol("a transaction was prepared inside another")),
                }
            }
            _ => Err(protocol(
                "a message that does not belong into a transaction that is prepared",
            )),
        }
    }

    /// All of a transaction has come, and it waits for its coordinator.
    fn prepare(&mut self, prepared: &pgoutput::Prepared<'_>) -> Result<Taken> {
        let gid = text(prepared.gid);
        let open = self.open.remove(&prepared.xid).ok_or_else(|| {
            protocol(format!(
                "transaction {} was prepared as {gid:?}, and nothing of it came",
                prepared.xid
            ))
        })?;
        let first = Prepared {
            gid: gid.as_str().into(),
            lsn: Lsn(prepared.prepare_lsn),
            micros: prepared.prepare_time + EPOCH_MICROS,
            marker: open.marker.clone(),
        };
        let xid = prepared.xid;
        let place = first.lsn;
        let told = Taken::Told(batch::Branch::Prepared(Arc::new(first.clone())));
        let branch = Branch { xid, open, first };
        match self.branches.put(prepared.gid, branch) {
            None => Ok(told),
            // One that was prepared before its slot was switched comes again with its commit.
            Some(again) if again.xid == xid && again.first.lsn == place => {
                self.let_go(&again.open);
                Ok(told)
            }
            Some(_) => Err(protocol(format!(
                "a second transaction was prepared as {gid:?}, and nothing was said of the first"
            ))),
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
                self.receiving = Some(Receiving::Piece(xid));
                Ok(Taken::Kept)
            }
            Message::BeginPrepare(prepared) => {
                self.forget(prepared.xid);
                self.open.insert(prepared.xid, Open::new());
                let at = Lsn(prepared.prepare_lsn);
                self.receiving = Some(Receiving::Whole(prepared.xid, at));
                Ok(Taken::Kept)
            }
            Message::StreamPrepare(prepared) => self.prepare(&prepared),
            Message::RollbackPrepared {
                gid,
                xid,
                rollback_end_lsn,
                ..
            } => {
                let end = Lsn(rollback_end_lsn);
                // Nothing has come of one that changed nothing, or that was prepared before a place that is confirmed.
                let Some(branch) = self.branches.roll_back(gid, xid, end)? else {
                    return Ok(Taken::Kept);
                };
                self.let_go(&branch.open);
                let first = Arc::new(branch.first);
                Ok(Taken::Told(batch::Branch::RolledBack(first)))
            }
            Message::CommitPrepared {
                commit_lsn,
                end_lsn,
                commit_time,
                xid,
                gid,
            } => {
                let end = Lsn(end_lsn);
                let (open, first) = match self.branches.commit(gid, xid, end)? {
                    Some(Branch { open, first, .. }) => (open, Some(Arc::new(first))),
                    // One that changed nothing, on servers that tell of its end alone; or whose commit is known to be
                    // durable: nothing else was confirmed.
                    None => (Open::new(), None),
                };
                self.let_go(&open);
                let head = Transaction {
                    commit: Lsn(commit_lsn),
                    commit_micros: commit_time + EPOCH_MICROS,
                    xid,
                    origin: open.origin.clone(),
                    previous_commit: None,
                    prepared: first,
                    global: None,
                };
                Ok(Taken::Committed(Box::new(open.commit(head, end))))
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
                let mut open = self.remove(xid).ok_or_else(|| {
                    protocol(format!(
                        "transaction {xid} was streamed and committed, and none of its pieces came"
                    ))
                })?;
                self.publish(&mut open.descriptions);
                let head = Transaction {
                    commit: Lsn(commit_lsn),
                    commit_micros: commit_time + EPOCH_MICROS,
                    xid,
                    origin: open.origin.clone(),
                    previous_commit: None,
                    prepared: None,
                    global: None,
                };
                Ok(Taken::Committed(Box::new(open.commit(head, Lsn(end_lsn)))))
            }
            _ => Err(protocol("a bound of a streamed transaction cannot be read")),
        }
    }

    fn remove(&mut self, xid: u32) -> Option<Open> {
        let open = self.open.remove(&xid)?;
        self.let_go(&open);
        Some(open)
    }

    /// What one holds is not counted any more.
    fn let_go(&mut self, open: &Open) {
        self.spools.discard(&open.spool);
        self.kept -= open.spool.len();
    }

    fn forget(&mut self, xid: u32) {
        drop(self.remove(xid));
    }

    /// Makes room in memory: the largest shares go to their files. One would do, but then the next payload may be the
    /// next to go over: half of what is held goes.
    fn spill(&mut self) -> Result<()> {
        let open = self.open.values_mut().chain(self.branches.iter_mut());
        let mut shares: Vec<&mut Spool> = open.map(|open| &mut open.spool).collect();
        shares.sort_unstable_by_key(|spool| spool.held());
        let enough = shares.iter().map(|spool| spool.held()).sum::<usize>() / 2;
        let mut spilled = 0;
        while spilled <= enough
            && let Some(spool) = shares.pop()
        {
            spilled += spool.held();
            self.spools.spill(spool)?;
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
            described: HashSet::new(),
            descriptions: Descriptions::new(),
            has_messages: false,
            marker: None,
            doubtful: false,
            is_hidden: false,
        }
    }

    /// A logical message may say what the transaction is a branch of.
    fn note_marker(&mut self, message: &[u8]) -> Result<()> {
        if let Message::Logical {
            prefix, content, ..
        } = read(message)?
            && prefix == batch::MARKER.as_bytes()
        {
            self.marker = Some(text(content).into());
        }
        Ok(())
    }

    fn commit(self, head: Transaction, end: Lsn) -> Committed {
        Committed {
            end,
            pieces: Pieces {
                reader: self.spool.read(),
                seen: self.seen,
                aborted: self.aborted,
                has_messages: self.has_messages,
                xid: head.xid,
            },
            head,
        }
    }
}

impl Branch {
    fn early(&self) -> Result<Committed> {
        let open = &self.open;
        Ok(Committed {
            head: Transaction {
                commit: self.first.lsn,
                commit_micros: self.first.micros,
                xid: self.xid,
                origin: open.origin.clone(),
                previous_commit: None,
                prepared: Some(Arc::new(self.first.clone())),
                global: None,
            },
            end: self.first.lsn,
            pieces: Pieces {
                reader: open.spool.look()?,
                seen: open.seen.clone(),
                aborted: open.aborted.clone(),
                has_messages: open.has_messages,
                xid: self.xid,
            },
        })
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

/// A gid as text: what is not UTF-8, as in a database in SQL_ASCII, is written as `\xff`, so that no two become one.
fn text(gid: &[u8]) -> String {
    let mut text = String::with_capacity(gid.len());
    for chunk in gid.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Of a description outside of pieces.
fn relation_of(payload: &[u8]) -> Result<u32> {
    be32(payload.get(1..)).ok_or_else(|| protocol("the description of a table cannot be decoded"))
}

fn be32(bytes: Option<&[u8]>) -> Option<u32> {
    let bytes = bytes?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*bytes))
}

/// The relations of a message that has rows, or truncates.
fn relations(payload: &[u8]) -> impl Iterator<Item = u32> {
    let (from, count) = match payload.first() {
        Some(b'I' | b'U' | b'D') => (1, 1),
        // Their number, and a byte of options.
        Some(b'T') => (6, be32(payload.get(1..)).unwrap_or(0) as usize),
        _ => (0, 0),
    };
    (0..count).map_while(move |at| be32(payload.get(from + at * 4..)))
}

/// Appends a message to what is kept of a transaction; returns how many bytes that takes.
fn append(
    spools: &mut Spools,
    open: &mut Open,
    subxid: u32,
    lsn: u64,
    message: &[&[u8]],
) -> Result<u64> {
    let length: usize = message.iter().map(|part| part.len()).sum();
    let prefix = u32::try_from(length).map_err(|_| protocol("a message of more than 4 GiB"))?;
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&prefix.to_be_bytes());
    header[4..8].copy_from_slice(&subxid.to_be_bytes());
    header[8..].copy_from_slice(&lsn.to_be_bytes());
    spools.append(&mut open.spool, &[&header]);
    spools.append(&mut open.spool, message);
    Ok((HEADER + length) as u64)
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

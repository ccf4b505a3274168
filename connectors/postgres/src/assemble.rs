//! Messages to batches.

mod noted;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use lockstep_core::batch::{Batch, BatchBuilder, Cell, OldImage, Op, Phase, Transaction};
use lockstep_core::error::Result;
use lockstep_core::position::{Lsn, SourceInfo};
use lockstep_core::schema::{TableId, TableSchema};
use lockstep_pg::error::protocol;

use crate::catalog::{Described, identity_of};
use crate::pgoutput::{Context, EPOCH_MICROS, Message, Old, Relation, Tuple, Value, decode};
use noted::Noted;

/// What came out of a payload.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Taken in.
    Taken,
    /// A relation we have not seen in this shape: the caller resolves it and calls [`Assembler::define`].
    Define(Described),
    /// The same, of a row's relation: the payload has not been taken in, and is to come again.
    DefineFirst(Described),
}

/// A relation the stream has described.
#[derive(Clone)]
struct Known {
    described: Described,
    /// `None`: in the publication, but not ours.
    schema: Option<Arc<TableSchema>>,
    /// Of the payload with the description, see [`Assembler::number`].
    number: u64,
}

/// The transaction being received.
struct Current {
    transaction: Transaction,
    ordinal: u64,
}

/// A transaction that comes whole, after it was sent piece by piece, or when it was prepared. It brings all descriptions that
/// its rows need.
struct Streamed {
    /// Until its first change.
    head: Option<Transaction>,
    /// As its pieces describe them.
    relations: HashMap<u32, Known>,
}

/// Collects messages until the caller flushes. Pure: bytes in, batches out.
pub struct Assembler {
    source: Arc<SourceInfo>,
    builder: BatchBuilder,
    relations: HashMap<u32, Known>,
    noted: Noted,
    message: Arc<TableSchema>,
    current: Option<Current>,
    streamed: Option<Streamed>,
    /// Payloads that have come.
    numbered: u64,
    /// Of the last description.
    described: u64,
    /// Everything that ends at or below this has been taken in.
    through: Lsn,
    /// The same, of what came here.
    ended: Lsn,
    /// What the batches so far have said.
    said: Lsn,
    /// The last whole transaction.
    last: Option<Transaction>,
    /// How many changes came of it.
    changes: u64,
}

impl Assembler {
    /// An assembler for a stream that resumes at `from`.
    pub fn new(source: Arc<SourceInfo>, from: Lsn) -> Self {
        let message = Arc::new(TableSchema::message(Arc::clone(&source.name)));
        Assembler {
            source,
            builder: BatchBuilder::new(),
            relations: HashMap::new(),
            noted: Noted::default(),
            message,
            current: None,
            streamed: None,
            numbered: 0,
            described: 0,
            through: from,
            ended: Lsn::ZERO,
            said: from,
            last: None,
            changes: 0,
        }
    }

    /// Takes in the payload `block[start..end]`, sent with `wal_start`. The block must be the one that is flushed.
    ///
    /// # Errors
    /// Of kind `Protocol`, when the bytes or their order break the rules.
    pub fn take(&mut self, block: &[u8], start: usize, end: usize, wal_start: Lsn) -> Result<Step> {
        let (message, _) = decode(&block[start..end], Context::default())
            .map_err(|error| protocol("a pgoutput message cannot be decoded").source(error))?;
        if !self.noted.is_empty()
            && self.streamed.is_none()
            && let Some(described) = self.unheard(&message)
        {
            return Ok(Step::DefineFirst(described));
        }
        let base = block.as_ptr() as usize;
        match message {
            Message::Insert { relation, new } => {
                let Some(schema) = self.row_schema(relation)? else {
                    return Ok(Step::Taken);
                };
                let new = self.row(base, &schema, new)?;
                self.push(Op::Insert, &schema, wal_start, None, Some(new))?;
            }
            Message::Update { relation, old, new } => {
                let Some(schema) = self.row_schema(relation)? else {
                    return Ok(Step::Taken);
                };
                let old = old.map(|old| self.old(base, &schema, old)).transpose()?;
                let new = self.row(base, &schema, new)?;
                if let Some((OldImage::Full, old)) = old {
                    self.fill_unchanged(old, new, usize::from(schema.width));
                }
                self.push(Op::Update, &schema, wal_start, old, Some(new))?;
            }
            Message::Delete { relation, old } => {
                let Some(schema) = self.row_schema(relation)? else {
                    return Ok(Step::Taken);
                };
                let old = self.old(base, &schema, old)?;
                self.push(Op::Delete, &schema, wal_start, Some(old), None)?;
            }
            Message::Begin {
                commit_lsn,
                commit_time,
                xid,
            } => self.begin(commit_lsn, commit_time, xid)?,
            Message::Commit {
                commit_lsn,
                end_lsn,
                ..
            } => self.commit(Lsn(commit_lsn), Lsn(end_lsn))?,
            Message::Origin { name, .. } => {
                if let Some(current) = &mut self.current {
                    current.transaction.origin = Some(String::from_utf8_lossy(name).into());
                }
            }
            Message::Relation(relation) => {
                // Descriptions have no LSN; those in pieces were kept with their number.
                self.described = match self.streamed {
                    Some(_) => wal_start.0,
                    None => self.numbered,
                };
                return self.relation(&relation);
            }
            Message::Type { .. } => {}
            Message::Truncate { relations, .. } => {
                for relation in relations.iter() {
                    if let Some(schema) = self.row_schema(relation)? {
                        self.push(Op::Truncate, &schema, wal_start, None, None)?;
                    }
                }
            }
            Message::Logical {
                transactional,
                lsn,
                prefix,
                content,
            } => {
                self.logical(base, transactional, Lsn(lsn), prefix, content)?;
            }
            // PostgreSQL 18 sends it for subtransactions of a transaction that was rolled back while it was decoded, also
            // where nothing is streamed: nothing of them has been sent, so there is nothing to drop.
            Message::StreamAbort { .. } => {}
            Message::StreamStart { .. }
            | Message::StreamStop
            | Message::StreamCommit { .. }
            | Message::BeginPrepare(_)
            | Message::Prepare(_)
            | Message::StreamPrepare(_)
            | Message::CommitPrepared { .. }
            | Message::RollbackPrepared { .. } => {
                return Err(protocol(
                    "the server sent a message that was not asked for, or has no place here",
                ));
            }
        }
        Ok(Step::Taken)
    }

    fn begin(&mut self, commit_lsn: u64, commit_time: i64, xid: u32) -> Result<()> {
        self.begin_with(Transaction {
            commit: Lsn(commit_lsn),
            commit_micros: commit_time + EPOCH_MICROS,
            xid,
            origin: None,
            previous_commit: None,
            prepared: None,
            global: None,
        })
    }

    fn begin_with(&mut self, head: Transaction) -> Result<()> {
        if self.current.is_some() {
            return Err(protocol("a transaction began inside another"));
        }
        self.current = Some(Current {
            transaction: Transaction {
                previous_commit: self.previous_commit(),
                ..head
            },
            ordinal: 0,
        });
        Ok(())
    }

    /// Counts a payload as it comes. Descriptions of a table, in pieces of transactions in progress and outside, are told
    /// apart by it: the latest that came is what the server goes by.
    pub fn number(&mut self) -> u64 {
        self.numbered += 1;
        self.numbered
    }

    /// A transaction begins whose pieces came before its commit: [`Assembler::take_piece`] takes them, and
    /// [`Assembler::end_streamed`] ends it. With `empty_too` it counts as sent although no change is left of it, as
    /// without streaming before PostgreSQL 15.
    ///
    /// # Errors
    /// Of kind `Protocol`, inside another.
    pub fn begin_streamed(&mut self, head: Transaction, empty_too: bool) -> Result<()> {
        if self.current.is_some() || self.streamed.is_some() {
            return Err(protocol("a transaction ended inside another"));
        }
        let head = if empty_too {
            self.begin_with(head)?;
            None
        } else {
            Some(head)
        };
        self.streamed = Some(Streamed {
            head,
            relations: HashMap::new(),
        });
        Ok(())
    }

    /// As [`Assembler::take`], for a message of the transaction that began last, without the xid it carried.
    ///
    /// # Errors
    /// As there.
    pub fn take_piece(&mut self, block: &[u8], start: usize, end: usize, lsn: Lsn) -> Result<Step> {
        if let Some(streamed) = &mut self.streamed
            && matches!(block[start], b'I' | b'U' | b'D' | b'T' | b'M')
            && let Some(head) = streamed.head.take()
        {
            self.begin_with(head)?;
        }
        self.take(block, start, end, lsn)
    }

    /// It has ended, and its commit record at `end`.
    ///
    /// # Errors
    /// Of kind `Protocol`, when none began.
    pub fn end_streamed(&mut self, end: Lsn) -> Result<()> {
        let Some(streamed) = self.streamed.take() else {
            return Err(protocol("a transaction ended that did not begin"));
        };
        // The server describes a table again to everybody once it has another shape. Whatever came last is what it takes
        // to be known from now on, in whichever order the transactions commit.
        for (relation, known) in streamed.relations {
            self.noted.forget(relation, known.number);
            let newer = |last: &Known| last.number >= known.number;
            if !self.relations.get(&relation).is_some_and(newer) {
                self.relations.insert(relation, known);
            }
        }
        match &self.current {
            Some(current) => self.commit(current.transaction.commit, end),
            None => {
                self.end(end);
                Ok(())
            }
        }
    }

    /// It has not ended: what has been taken in of it shows it as it was prepared, and everybody else goes by what he went by.
    ///
    /// # Errors
    /// Of kind `Protocol`, when none began.
    pub fn end_early(&mut self) -> Result<()> {
        if self.streamed.take().is_none() {
            return Err(protocol("a transaction is left that did not begin"));
        }
        if self.current.take().is_some() {
            self.builder.end_transaction();
        }
        Ok(())
    }

    fn commit(&mut self, commit: Lsn, end: Lsn) -> Result<()> {
        match self.current.take() {
            Some(current) if current.transaction.commit == commit => {
                // In the next batch or later in this one, a new transaction must get a head of its own.
                self.builder.end_transaction();
                self.changes = current.ordinal;
                self.last = Some(current.transaction);
                self.end(end);
                Ok(())
            }
            Some(current) => Err(protocol(format!(
                "the commit at {commit} ends a transaction that began for {}",
                current.transaction.commit
            ))),
            None => Err(protocol("a commit without a begin")),
        }
    }

    /// The server has decoded everything up to `lsn`. Inside a transaction that says nothing about commits; one that is prepared, or
    /// in progress, has none yet.
    pub fn keepalive(&mut self, lsn: Lsn) {
        if self.current.is_none() {
            self.end(lsn);
        }
    }

    fn end(&mut self, end: Lsn) {
        self.through = self.through.max(end);
        self.ended = self.ended.max(end);
    }

    fn relation(&mut self, relation: &Relation<'_>) -> Result<Step> {
        let described = describe(relation)?;
        let own = self
            .streamed
            .as_ref()
            .and_then(|streamed| streamed.relations.get(&relation.oid));
        match own.or_else(|| self.relations.get(&relation.oid)) {
            Some(known) if known.described == described => {
                let schema = known.schema.clone();
                self.define(described, schema);
                Ok(Step::Taken)
            }
            _ => Ok(Step::Define(described)),
        }
    }

    /// Answers [`Step::Define`]; `None` leaves the table out.
    pub fn define(&mut self, described: Described, schema: Option<Arc<TableSchema>>) {
        let known = Known {
            described,
            schema,
            number: self.described,
        };
        let relation = known.described.relation;
        match &mut self.streamed {
            Some(streamed) => streamed.relations.insert(relation, known),
            None => {
                self.noted.forget(relation, known.number);
                self.relations.insert(relation, known)
            }
        };
    }

    /// Takes in a description that came inside a transaction which is to be prepared, as far as it is for everybody. Its
    /// transaction's own copy comes again when that commits.
    ///
    /// # Errors
    /// Of kind `Protocol`, when the bytes break the rules.
    pub fn note(&mut self, payload: &[u8], number: u64) -> Result<()> {
        let Ok((Message::Relation(relation), _)) = decode(payload, Context::default()) else {
            return Err(protocol("the description of a table cannot be decoded"));
        };
        let described = describe(&relation)?;
        match self.relations.get_mut(&relation.oid) {
            Some(known) if known.described == described => {
                known.number = number;
                self.noted.forget(relation.oid, number);
            }
            _ => self.noted.put(number, described),
        }
        Ok(())
    }

    /// The description that a row goes by, where it has only been noted so far.
    #[cold]
    fn unheard(&mut self, message: &Message<'_>) -> Option<Described> {
        match message {
            Message::Insert { relation, .. }
            | Message::Update { relation, .. }
            | Message::Delete { relation, .. } => self.unheard_of(*relation),
            Message::Truncate { relations, .. } => {
                let mut relations = relations.iter();
                relations.find_map(|relation| self.unheard_of(relation))
            }
            _ => None,
        }
    }

    fn unheard_of(&mut self, relation: u32) -> Option<Described> {
        let (number, described) = self.noted.get(relation)?;
        let newer = |known: &Known| known.number > number;
        if self.relations.get(&relation).is_some_and(newer) {
            return None;
        }
        self.described = number;
        Some(described.clone())
    }

    /// As the transaction sees it that is being received: one that was streamed has been told of each again.
    fn known(&self, relation: u32) -> Option<&Known> {
        match &self.streamed {
            Some(streamed) => streamed.relations.get(&relation),
            None => self.relations.get(&relation),
        }
    }

    fn row_schema(&self, relation: u32) -> Result<Option<Arc<TableSchema>>> {
        match self.known(relation) {
            Some(known) => Ok(known.schema.clone()),
            None => Err(protocol(format!(
                "a row of relation {relation} came before its description"
            ))),
        }
    }

    /// Adds a row's cells and returns where they begin.
    #[inline]
    fn row(&mut self, base: usize, schema: &TableSchema, tuple: Tuple<'_>) -> Result<usize> {
        if tuple.count() != schema.width {
            return Err(protocol(format!(
                "a row of {} has {} columns, its description {}",
                schema.origin,
                tuple.count(),
                schema.width
            )));
        }
        let cells = self.builder.cells();
        let start = cells.len();
        for value in tuple.values() {
            cells.push(cell(base, value)?);
        }
        Ok(start)
    }

    fn old(
        &mut self,
        base: usize,
        schema: &TableSchema,
        old: Old<'_>,
    ) -> Result<(OldImage, usize)> {
        match old {
            Old::Key(tuple) => Ok((OldImage::Key, self.row(base, schema, tuple)?)),
            Old::Row(tuple) => Ok((OldImage::Full, self.row(base, schema, tuple)?)),
        }
    }

    /// Under REPLICA IDENTITY FULL the old row has what the new one left out.
    fn fill_unchanged(&mut self, old: usize, new: usize, width: usize) {
        let cells = self.builder.cells();
        for at in 0..width {
            if cells[new + at].is_unchanged() {
                cells[new + at] = cells[old + at];
            }
        }
    }

    fn push(
        &mut self,
        op: Op,
        schema: &Arc<TableSchema>,
        lsn: Lsn,
        old: Option<(OldImage, usize)>,
        new: Option<usize>,
    ) -> Result<()> {
        let Some(current) = &mut self.current else {
            return Err(protocol("a change outside any transaction"));
        };
        current.ordinal += 1;
        if !self.builder.in_transaction() {
            self.builder.begin(current.transaction.clone());
        }
        let index = self.builder.schema(schema);
        self.builder.push(op, index, current.ordinal, lsn, old, new);
        Ok(())
    }

    fn logical(
        &mut self,
        base: usize,
        transactional: bool,
        lsn: Lsn,
        prefix: &[u8],
        content: &[u8],
    ) -> Result<()> {
        let values = [Value::Text(prefix), Value::Text(content)];
        let start = self.builder.cells().len();
        for value in values {
            let cell = cell(base, value)?;
            self.builder.cells().push(cell);
        }
        let schema = Arc::clone(&self.message);
        if transactional {
            return self.push(Op::Message, &schema, lsn, None, Some(start));
        }
        // Written outside any transaction: a transaction of its own, at its own place, with ordinal 0.
        if self.current.is_some() {
            return Err(protocol("a non-transactional message inside a transaction"));
        }
        self.builder.begin(Transaction {
            commit: lsn,
            commit_micros: now_micros(),
            xid: 0,
            origin: None,
            previous_commit: self.previous_commit(),
            prepared: None,
            global: None,
        });
        let index = self.builder.schema(&schema);
        self.builder
            .push(Op::Message, index, 0, lsn, None, Some(start));
        self.builder.end_transaction();
        Ok(())
    }

    /// Notes when the first byte of the batch came.
    pub fn received(&mut self, at: Instant) {
        self.builder.received(at);
    }

    fn previous_commit(&self) -> Option<Lsn> {
        self.last.as_ref().map(|last| last.commit)
    }

    /// The transaction that is being received.
    pub fn current(&self) -> Option<&Transaction> {
        self.current.as_ref().map(|current| &current.transaction)
    }

    /// The last whole transaction that was received.
    pub fn last(&self) -> Option<&Transaction> {
        self.last.as_ref()
    }

    /// Whether the last whole transaction that was received is this one, and changes came of it.
    pub fn has_come(&self, commit: Lsn) -> bool {
        self.changes > 0 && self.last.as_ref().is_some_and(|last| last.commit == commit)
    }

    /// Everything that ends at or below this has been taken in.
    pub fn through(&self) -> Lsn {
        self.through
    }

    /// As [`Assembler::through`], of what has been taken in here, and not of what was when it began; zero before anything was.
    pub fn ended(&self) -> Lsn {
        self.ended
    }

    /// What the batches so far have said.
    pub fn said(&self) -> Lsn {
        self.said
    }

    /// Whether every transaction that began has ended.
    pub fn between_transactions(&self) -> bool {
        self.current.is_none()
    }

    /// Whether changes wait for a flush.
    pub fn has_changes(&self) -> bool {
        !self.builder.is_empty()
    }

    /// The position to say when nothing else is to be said.
    pub fn progress(&mut self) -> Option<Batch> {
        let news = self.through > self.said && self.builder.is_empty();
        news.then(|| {
            self.said = self.through;
            Batch::progress(Arc::clone(&self.source), self.through)
        })
    }

    /// The changes so far, over the block they were read from.
    pub fn flush(&mut self, block: Bytes) -> Batch {
        let through = (self.through > self.said).then_some(self.through);
        self.said = self.through;
        self.builder
            .finish(Arc::clone(&self.source), Phase::Stream, through, block)
    }
}

/// What the wire says of a relation.
fn describe(relation: &Relation<'_>) -> Result<Described> {
    let text = |bytes: &[u8], what: &str| {
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|error| protocol(format!("{what} is not UTF-8")).source(error))
    };
    let schema = text(relation.schema, "a schema name")?;
    Ok(Described {
        relation: relation.oid,
        id: TableId::new(
            if schema.is_empty() {
                "pg_catalog"
            } else {
                &schema
            },
            &text(relation.name, "a table name")?,
        ),
        identity: identity_of(relation.identity),
        columns: relation
            .columns()
            .map(|column| {
                Ok((
                    text(column.name, "a column name")?,
                    column.type_oid,
                    column.typmod,
                    column.identity,
                ))
            })
            .collect::<Result<_>>()?,
    })
}

/// Where a value lies in the block.
#[inline]
fn cell(base: usize, value: Value<'_>) -> Result<Cell> {
    let place = |bytes: &[u8]| -> Result<(u32, u32)> {
        if bytes.len() > Cell::MAX_LENGTH {
            return Err(protocol(format!(
                "a value of {} bytes is larger than lockstep can carry",
                bytes.len()
            )));
        }
        Ok(((bytes.as_ptr() as usize - base) as u32, bytes.len() as u32))
    };
    Ok(match value {
        Value::Null => Cell::NULL,
        Value::Unchanged => Cell::UNCHANGED,
        Value::Text(bytes) => {
            let (offset, length) = place(bytes)?;
            Cell::text(offset, length)
        }
        Value::Binary(bytes) => {
            let (offset, length) = place(bytes)?;
            Cell::binary(offset, length)
        }
    })
}

/// Microseconds since the Unix epoch.
pub(crate) fn now_micros() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
        })
}

#[cfg(test)]
mod tests;

//! The payloads of pgoutput, protocol versions 1 to 4: bytes to messages, without I/O and without allocation.
//!
//! Layouts: PostgreSQL documentation §55.9 and `src/backend/replication/logical/proto.c`. All integers are big-endian.
//! Texts are NUL-terminated and returned as bytes of the server's encoding, which the session fixes to UTF-8.

mod decode;
mod reader;
mod tuple;
mod walk;

pub use decode::{Context, decode};
pub use reader::Malformed;
pub use tuple::{Tuple, TupleCells, Value};
#[doc(hidden)]
pub use walk::walk;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Message<'a> {
    /// `B`: a transaction begins; everything up to `Commit` belongs to it.
    Begin {
        /// LSN of the commit record.
        commit_lsn: u64,
        /// Commit time, microseconds since 2000-01-01 UTC.
        commit_time: i64,
        /// Transaction id.
        xid: u32,
    },
    /// `C`.
    Commit {
        /// LSN of the commit record.
        commit_lsn: u64,
        /// End of the commit record: the resume point.
        end_lsn: u64,
        /// Commit time, microseconds since 2000-01-01 UTC.
        commit_time: i64,
    },
    /// `O`: the transaction was replicated from elsewhere.
    Origin {
        /// LSN of the commit at the origin.
        lsn: u64,
        /// Name of the origin.
        name: &'a [u8],
    },
    /// `R`.
    Relation(Relation<'a>),
    /// `Y`: a type that is not built in.
    Type {
        /// `pg_type.oid`.
        oid: u32,
        /// Schema; empty for `pg_catalog`.
        schema: &'a [u8],
        /// Name; of the base type for a domain.
        name: &'a [u8],
    },
    /// `I`.
    Insert {
        /// Relation.
        relation: u32,
        /// New row.
        new: Tuple<'a>,
    },
    /// `U`.
    Update {
        /// Relation.
        relation: u32,
        /// Old key or row, when sent.
        old: Option<Old<'a>>,
        /// New row.
        new: Tuple<'a>,
    },
    /// `D`.
    Delete {
        /// Relation.
        relation: u32,
        /// Old key or row.
        old: Old<'a>,
    },
    /// `T`.
    Truncate {
        /// The relations, big-endian `u32`s one after the other.
        relations: Oids<'a>,
        /// CASCADE was given.
        cascade: bool,
        /// RESTART IDENTITY was given.
        restart_identity: bool,
    },
    /// `M`: `pg_logical_emit_message`.
    Logical {
        /// Part of a transaction, delivered with it; otherwise delivered at once.
        transactional: bool,
        /// Where it was written.
        lsn: u64,
        /// Prefix.
        prefix: &'a [u8],
        /// Content, any bytes.
        content: &'a [u8],
    },
    /// `S`: a piece of an unfinished transaction follows (protocol 2).
    StreamStart {
        /// Top-level transaction id.
        xid: u32,
        /// The first piece of this transaction.
        first: bool,
    },
    /// `E`: the piece ends.
    StreamStop,
    /// `c`: a streamed transaction committed.
    StreamCommit {
        /// Top-level transaction id.
        xid: u32,
        /// LSN of the commit record.
        commit_lsn: u64,
        /// End of the commit record.
        end_lsn: u64,
        /// Commit time, microseconds since 2000-01-01 UTC.
        commit_time: i64,
    },
    /// `A`: a streamed transaction, or one of its subtransactions, was rolled back.
    StreamAbort {
        /// Top-level transaction id.
        xid: u32,
        /// The one that was rolled back; equal to `xid` for the whole.
        subxid: u32,
        /// LSN and time of the abort, when streaming is `parallel` (protocol 4).
        at: Option<(u64, i64)>,
    },
    /// `b`: a prepared transaction begins (protocol 3).
    BeginPrepare(Prepared<'a>),
    /// `P`: it is prepared.
    Prepare(Prepared<'a>),
    /// `p`: a streamed transaction is prepared.
    StreamPrepare(Prepared<'a>),
    /// `K`.
    CommitPrepared {
        /// LSN of the COMMIT PREPARED record.
        commit_lsn: u64,
        /// Its end.
        end_lsn: u64,
        /// Commit time, microseconds since 2000-01-01 UTC.
        commit_time: i64,
        /// Transaction id.
        xid: u32,
        /// Global transaction id.
        gid: &'a [u8],
    },
    /// `r`.
    RollbackPrepared {
        /// End of the PREPARE record.
        prepare_end_lsn: u64,
        /// End of the ROLLBACK PREPARED record.
        rollback_end_lsn: u64,
        /// Time of the PREPARE.
        prepare_time: i64,
        /// Time of the ROLLBACK PREPARED.
        rollback_time: i64,
        /// Transaction id.
        xid: u32,
        /// Global transaction id.
        gid: &'a [u8],
    },
}

/// The fields that the three messages of a PREPARE share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prepared<'a> {
    /// LSN of the PREPARE record.
    pub prepare_lsn: u64,
    /// Its end.
    pub end_lsn: u64,
    /// Time of the PREPARE, microseconds since 2000-01-01 UTC.
    pub prepare_time: i64,
    /// Transaction id.
    pub xid: u32,
    /// Global transaction id.
    pub gid: &'a [u8],
}

/// The old image of an UPDATE or DELETE.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Old<'a> {
    /// `K`: only replica-identity columns have values; NULL elsewhere means *not sent*.
    Key(Tuple<'a>),
    /// `O`: the whole row.
    Row(Tuple<'a>),
}

/// The shape of a table, sent before its first row and again when it changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Relation<'a> {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Schema; empty for `pg_catalog`.
    pub schema: &'a [u8],
    /// Name.
    pub name: &'a [u8],
    /// Replica identity: `d`, `n`, `f` or `i`.
    pub identity: u8,
    /// Number of columns.
    pub count: u16,
    columns: &'a [u8],
}

/// A column of a [`Relation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Part of the replica identity; under FULL every column is.
    pub identity: bool,
    /// Name.
    pub name: &'a [u8],
    /// Type oid; a domain's own oid for a domain.
    pub type_oid: u32,
    /// Type modifier, −1 for none.
    pub typmod: i32,
}

impl<'a> Relation<'a> {
    /// The columns in order. `decode` has checked that they are all there.
    pub fn columns(&self) -> impl Iterator<Item = RelationColumn<'a>> + use<'a> {
        let mut reader = reader::Reader::new(self.columns);
        (0..self.count).map_while(move |_| decode::relation_column(&mut reader).ok())
    }
}

/// Relation oids of a TRUNCATE.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Oids<'a>(&'a [u8]);

impl<'a> Oids<'a> {
    /// The oids in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.0
            .as_chunks::<4>()
            .0
            .iter()
            .map(|chunk| u32::from_be_bytes(*chunk))
    }
}

/// Microseconds between the Unix epoch and PostgreSQL's (2000-01-01).
pub const EPOCH_MICROS: i64 = 946_684_800_000_000;

#[cfg(test)]
mod tests;

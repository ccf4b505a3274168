//! One payload to one message.

use super::reader::{Malformed, Reader};
use super::tuple::Tuple;
use super::{Message, Oids, Old, Prepared, Relation, RelationColumn};

/// What the bytes of a message depend on besides themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Between `S` and `E`: row messages carry the xid of their (sub)transaction.
    pub in_stream: bool,
    /// `streaming = parallel` was asked for: `A` carries LSN and time.
    pub parallel: bool,
}

/// Decodes one payload, the bytes behind an XLogData header. The second value is the xid that messages inside a
/// streamed piece carry.
///
/// # Errors
/// [`Malformed`] when the bytes are too few, too many, or of an unknown kind.
pub fn decode(payload: &[u8], context: Context) -> Result<(Message<'_>, Option<u32>), Malformed> {
    let mut reader = Reader::new(payload);
    let tag = reader.u8("a message's type")?;
    let xid = match tag {
        b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M' if context.in_stream => {
            Some(reader.u32("an xid")?)
        }
        _ => None,
    };
    let r = &mut reader;
    let message = match tag {
        b'B' => Message::Begin {
            commit_lsn: r.u64("Begin")?,
            commit_time: r.i64("Begin")?,
            xid: r.u32("Begin")?,
        },
        b'C' => {
            r.u8("Commit")?;
            Message::Commit {
                commit_lsn: r.u64("Commit")?,
                end_lsn: r.u64("Commit")?,
                commit_time: r.i64("Commit")?,
            }
        }
        b'O' => Message::Origin {
            lsn: r.u64("Origin")?,
            name: r.text("Origin")?,
        },
        b'R' => Message::Relation(relation(r)?),
        b'Y' => Message::Type {
            oid: r.u32("Type")?,
            schema: r.text("Type")?,
            name: r.text("Type")?,
        },
        b'I' => {
            let relation = r.u32("Insert")?;
            expect(r, b'N', "Insert")?;
            Message::Insert {
                relation,
                new: Tuple::read(r)?,
            }
        }
        b'U' => update(r)?,
        b'D' => {
            let relation = r.u32("Delete")?;
            let kind = r.u8("Delete")?;
            Message::Delete {
                relation,
                old: old(r, kind, "Delete")?,
            }
        }
        b'T' => truncate(r)?,
        b'M' => {
            let flags = r.u8("Message")?;
            let lsn = r.u64("Message")?;
            let prefix = r.text("Message")?;
            let length = r.u32("Message")?;
            let content = r.take(length as usize, "Message")?;
            Message::Logical {
                transactional: flags & 1 != 0,
                lsn,
                prefix,
                content,
            }
        }
        b'S' => Message::StreamStart {
            xid: r.u32("Stream Start")?,
            first: r.u8("Stream Start")? == 1,
        },
        b'E' => Message::StreamStop,
        b'c' => {
            let xid = r.u32("Stream Commit")?;
            r.u8("Stream Commit")?;
            Message::StreamCommit {
                xid,
                commit_lsn: r.u64("Stream Commit")?,
                end_lsn: r.u64("Stream Commit")?,
                commit_time: r.i64("Stream Commit")?,
            }
        }
        b'A' => {
            let (xid, subxid) = (r.u32("Stream Abort")?, r.u32("Stream Abort")?);
            let at = match context.parallel {
                true => Some((r.u64("Stream Abort")?, r.i64("Stream Abort")?)),
                false => None,
            };
            Message::StreamAbort { xid, subxid, at }
        }
        b'b' => Message::BeginPrepare(prepared(r)?),
        b'P' => {
            r.u8("Prepare")?;
            Message::Prepare(prepared(r)?)
        }
        b'p' => {
            r.u8("Stream Prepare")?;
            Message::StreamPrepare(prepared(r)?)
        }
        b'K' => {
            r.u8("Commit Prepared")?;
            Message::CommitPrepared {
                commit_lsn: r.u64("Commit Prepared")?,
                end_lsn: r.u64("Commit Prepared")?,
                commit_time: r.i64("Commit Prepared")?,
                xid: r.u32("Commit Prepared")?,
                gid: r.text("Commit Prepared")?,
            }
        }
        b'r' => {
            r.u8("Rollback Prepared")?;
            Message::RollbackPrepared {
                prepare_end_lsn: r.u64("Rollback Prepared")?,
                rollback_end_lsn: r.u64("Rollback Prepared")?,
                prepare_time: r.i64("Rollback Prepared")?,
                rollback_time: r.i64("Rollback Prepared")?,
                xid: r.u32("Rollback Prepared")?,
                gid: r.text("Rollback Prepared")?,
            }
        }
        _ => {
            return Err(Malformed {
                what: "a message of an unknown type",
                left: payload.len(),
            });
        }
    };
    match reader.rest() {
        [] => Ok((message, xid)),
        rest => Err(Malformed {
            what: "a message's end",
            left: rest.len(),
        }),
    }
}

#[inline]
fn expect(r: &mut Reader<'_>, byte: u8, what: &'static str) -> Result<(), Malformed> {
    if r.u8(what)? == byte {
        Ok(())
    } else {
        Err(Malformed {
            what,
            left: r.rest().len(),
        })
    }
}

#[inline]
fn old<'a>(r: &mut Reader<'a>, kind: u8, what: &'static str) -> Result<Old<'a>, Malformed> {
    match kind {
        b'K' => Tuple::read(r).map(Old::Key),
        b'O' => Tuple::read(r).map(Old::Row),
        _ => Err(Malformed {
            what,
            left: r.rest().len(),
        }),
    }
}

#[inline]
fn update<'a>(r: &mut Reader<'a>) -> Result<Message<'a>, Malformed> {
    let relation = r.u32("Update")?;
    let old = match r.u8("Update")? {
        b'N' => None,
        kind => {
            let old = old(r, kind, "Update")?;
            expect(r, b'N', "Update")?;
            Some(old)
        }
    };
    Ok(Message::Update {
        relation,
        old,
        new: Tuple::read(r)?,
    })
}

fn truncate<'a>(r: &mut Reader<'a>) -> Result<Message<'a>, Malformed> {
    let count = r.u32("Truncate")?;
    let flags = r.u8("Truncate")?;
    let bytes = (count as usize)
        .checked_mul(4)
        .ok_or_else(|| Malformed {
            what: "Truncate",
            left: r.rest().len(),
        })
        .and_then(|length| r.take(length, "Truncate"))?;
    Ok(Message::Truncate {
        relations: Oids(bytes),
        cascade: flags & 1 != 0,
        restart_identity: flags & 2 != 0,
    })
}

fn prepared<'a>(r: &mut Reader<'a>) -> Result<Prepared<'a>, Malformed> {
    Ok(Prepared {
        prepare_lsn: r.u64("Prepare")?,
        end_lsn: r.u64("Prepare")?,
        prepare_time: r.i64("Prepare")?,
        xid: r.u32("Prepare")?,
        gid: r.text("Prepare")?,
    })
}

fn relation<'a>(r: &mut Reader<'a>) -> Result<Relation<'a>, Malformed> {
    let oid = r.u32("Relation")?;
    let schema = r.text("Relation")?;
    let name = r.text("Relation")?;
    let identity = r.u8("Relation")?;
    let count = r.u16("Relation")?;
    let whole = r.rest();
    for _ in 0..count {
        relation_column(r)?;
    }
    let length = whole.len() - r.rest().len();
    Ok(Relation {
        oid,
        schema,
        name,
        identity,
        count,
        columns: &whole[..length],
    })
}

pub(super) fn relation_column<'a>(r: &mut Reader<'a>) -> Result<RelationColumn<'a>, Malformed> {
    Ok(RelationColumn {
        identity: r.u8("Relation")? & 1 != 0,
        name: r.text("Relation")?,
        type_oid: r.u32("Relation")?,
        typmod: r.i32("Relation")?,
    })
}

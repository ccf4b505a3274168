//! Where we are in a source's log.
//!
//! A PostgreSQL LSN alone identifies nothing: the rows of one `COPY` page share one, and row LSNs of concurrent
//! transactions interleave. What identifies a change is the LSN of the *commit record* of its transaction together
//! with its ordinal in that transaction; both come out the same whenever the transaction is decoded again.
//!
//! What a restart resumes from is something else: the *end* of a commit record ([`crate::batch::Batch::through`]).
//! The end of one commit may equal the commit LSN of the next, so the two are never compared with each other.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// A byte address in the write-ahead log.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The invalid LSN; nothing in the log lies at or below it.
    pub const ZERO: Lsn = Lsn(0);

    /// Sixteen lower-case hex digits: the order of the texts is the order of the numbers, which stays true where
    /// numbers are doubles (Redis Lua, JavaScript).
    #[must_use]
    pub fn to_hex16(self) -> String {
        format!("{:016x}", self.0)
    }
}

impl fmt::Display for Lsn {
    /// PostgreSQL's own form, `16/B374D848`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (high, low) = text.split_once('/')?;
            if high.is_empty() || low.is_empty() || high.len() > 8 || low.len() > 8 {
                return None;
            }
            let high = u64::from_str_radix(high, 16).ok()?;
            let low = u64::from_str_radix(low, 16).ok()?;
            Some(Lsn(high << 32 | low))
        };
        parse().ok_or_else(|| {
            Error::new(ErrorKind::Invalid, format!("`{text}` is not an LSN")).remedy(
                "write it as PostgreSQL does, two hexadecimal numbers with a slash: 16/B374D848",
            )
        })
    }
}

/// The identity of one change: commit record LSN and ordinal inside the transaction.
///
/// The changes of a transaction count from 1; ordinal 0 is a message written outside any transaction, which precedes
/// every transaction that commits at or above its LSN. Positions of one source are totally ordered, and the stream
/// delivers them in that order.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    /// LSN of the commit record. Rows of the initial copy carry the slot's consistent point.
    pub commit: Lsn,
    /// Ordinal inside the transaction.
    pub ordinal: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.commit, self.ordinal)
    }
}

/// Which log a position belongs to. Positions of different identities are never compared: a restored or promoted
/// server issues LSNs again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SourceIdentity {
    /// `system_identifier` of `IDENTIFY_SYSTEM`.
    pub system: u64,
    /// Timeline of `IDENTIFY_SYSTEM` when the log was first read. It stays the same when a promoted server goes on from
    /// where the last one was read: the log is the same one.
    pub timeline: u32,
    /// How often the source has given up a log for another one. The other one may be one that it knew before, with other
    /// records at the same addresses. Seconds since the Unix epoch where that was forgotten, so that it only ever grows.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub incarnation: u32,
    /// Database name.
    pub database: Arc<str>,
}

// By reference, as serde calls it.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl SourceIdentity {
    /// The timeline, and behind a dot the incarnation when there is one: `3`, `3.1`.
    #[must_use]
    pub fn branch(&self) -> String {
        match self.incarnation {
            0 => self.timeline.to_string(),
            incarnation => format!("{}.{incarnation}", self.timeline),
        }
    }
}

impl fmt::Display for SourceIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.system, self.branch(), self.database)
    }
}

impl FromStr for SourceIdentity {
    type Err = Error;

    /// Reads what it displays. A database's name may hold slashes.
    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (system, rest) = text.split_once('/')?;
            let (branch, database) = rest.split_once('/')?;
            let (timeline, incarnation) = branch.split_once('.').unwrap_or((branch, "0"));
            Some(SourceIdentity {
                system: system.parse().ok()?,
                timeline: timeline.parse().ok()?,
                incarnation: incarnation.parse().ok()?,
                database: database.into(),
            })
        };
        parse().ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("`{text}` is not the identity of a source"),
            )
        })
    }
}

/// A source as the other stages see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceInfo {
    /// Name in the pipeline file.
    pub name: Arc<str>,
    /// Whose log it is.
    pub identity: SourceIdentity,
}

impl SourceInfo {
    /// What [`SourceInfo::change_id`] was made from.
    #[must_use]
    pub fn parse_change_id(id: &str) -> Option<(SourceIdentity, Position)> {
        let (rest, ordinal) = id.rsplit_once('/')?;
        let (identity, commit) = rest.rsplit_once('/')?;
        let identity = identity.parse().ok()?;
        let position = Position {
            commit: Lsn(u64::from_str_radix(commit, 16).ok()?),
            ordinal: ordinal.parse().ok()?,
        };
        Some((identity, position))
    }

    /// The idempotency id of a change, `system/timeline/db/commit_lsn/ordinal`, the LSN as 16 hex digits.
    #[must_use]
    pub fn change_id(&self, position: Position) -> String {
        format!(
            "{}/{:016x}/{}",
            self.identity, position.commit.0, position.ordinal
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_text_round_trips() {
        let lsn = Lsn(0x16_B374_D848);
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert_eq!("16/B374D848".parse::<Lsn>().expect("valid"), lsn);
        for bad in ["", "/", "1/", "/1", "x/1", "1/123456789", "12"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn identities_round_trip() {
        for text in ["7/1/orders", "7/3.2/a/b"] {
            let identity: SourceIdentity = text.parse().expect("valid");
            assert_eq!(identity.to_string(), text);
        }
        for bad in ["", "7", "7/1", "x/1/d", "7/1.x/d"] {
            assert!(bad.parse::<SourceIdentity>().is_err(), "{bad}");
        }
    }

    #[test]
    fn change_ids_round_trip() {
        let source = SourceInfo {
            name: "orders".into(),
            identity: SourceIdentity {
                system: 7,
                timeline: 2,
                incarnation: 3,
                database: "a/b".into(),
            },
        };
        let position = Position {
            commit: Lsn(0x16_B374_D848),
            ordinal: 12,
        };
        let id = source.change_id(position);
        assert_eq!(
            SourceInfo::parse_change_id(&id),
            Some((source.identity, position))
        );
        assert_eq!(SourceInfo::parse_change_id("7/2/a/12"), None);
    }

    #[test]
    fn hex_order_is_number_order() {
        let (a, b) = (Lsn(9_007_199_254_740_992), Lsn(9_007_199_254_740_993));
        assert!(a.to_hex16() < b.to_hex16());
    }

    #[test]
    fn positions_order_by_commit_then_ordinal() {
        let at = |commit, ordinal| Position {
            commit: Lsn(commit),
            ordinal,
        };
        assert!(at(5, 9) < at(6, 0));
        assert!(at(6, 0) < at(6, 1));
    }
}

//! The ids that lockstep's own coordinator gives: XA triples, readable by every XA tool, that also say who may decide.

use std::fmt;

use super::{Manager, Xid};

/// A branch, as lockstep's coordinator calls it.
///
/// | part of the triple | bytes, big-endian |
/// |---|---|
/// | format | [`Manager::LOCKSTEP`] |
/// | gtrid | epoch of the coordinator, 4; drawn at random, 12 |
/// | bqual | number of the branch, from 1, 2; how many there are, 2; id of the log that decides, 8 |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Own {
    /// The epoch of the coordinator. Once that is closed in the log, nothing that the log does not hold can be committed any more.
    pub epoch: u32,
    /// What tells it from the other transactions of the epoch.
    pub drawn: [u8; 12],
    /// Which branch this is, from 1.
    pub branch: u16,
    /// How many there are, one that commits in one phase with the decision included.
    pub branches: u16,
    /// Which log decides. Drawn when the log is made: another one knows nothing, which must not be taken for an abort.
    pub log: u64,
}

impl Own {
    /// Reads a gid; `None` for those of others.
    #[must_use]
    pub fn parse(gid: &str) -> Option<Self> {
        Own::of(&Xid::parse(gid)?)
    }

    /// Reads a triple; `None` for those of others.
    #[must_use]
    pub fn of(xid: &Xid) -> Option<Self> {
        if xid.manager() != Manager::Lockstep {
            return None;
        }
        let (epoch, drawn) = xid.global.split_first_chunk::<4>()?;
        let (branch, rest) = xid.branch.split_first_chunk::<2>()?;
        let (branches, log) = rest.split_first_chunk::<2>()?;
        let own = Own {
            epoch: u32::from_be_bytes(*epoch),
            drawn: drawn.try_into().ok()?,
            branch: u16::from_be_bytes(*branch),
            branches: u16::from_be_bytes(*branches),
            log: u64::from_be_bytes(log.try_into().ok()?),
        };
        ((1..=own.branches).contains(&own.branch)).then_some(own)
    }

    /// The triple.
    #[must_use]
    pub fn xid(&self) -> Xid {
        let (branch, branches) = (self.branch.to_be_bytes(), self.branches.to_be_bytes());
        Xid {
            format: Manager::LOCKSTEP,
            global: [&self.epoch.to_be_bytes()[..], &self.drawn].concat(),
            branch: [&branch[..], &branches, &self.log.to_be_bytes()].concat(),
        }
    }

    /// What all branches share, as [`Branch::global`](super::Branch::global) gives it.
    #[must_use]
    pub fn global(&self) -> String {
        self.xid().branch().global().to_owned()
    }
}

impl fmt::Display for Own {
    /// The gid.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.xid().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Branch, Dialect, MOST_BYTES};
    use super::*;

    const OWN: Own = Own {
        epoch: 7,
        drawn: [9; 12],
        branch: 1,
        branches: 2,
        log: 0x0102_0304_0506_0708,
    };

    #[test]
    fn a_gid_of_our_own_is_written_and_read() {
        let gid = OWN.to_string();
        assert_eq!(gid, "1280004948_AAAABwkJCQkJCQkJCQkJCQ==_AAEAAgECAwQFBgcI");
        assert!(gid.len() <= MOST_BYTES);
        assert_eq!(Own::parse(&gid), Some(OWN));
        let branch = Branch::parse(&gid);
        assert_eq!(*branch.dialect(), Dialect::Xa(Manager::Lockstep));
        let other = Own { branch: 2, ..OWN };
        assert_eq!(branch.global(), other.global());
        assert_ne!(other.to_string(), gid);
    }

    #[test]
    fn what_is_none_of_ours_is_not_taken_for_one() {
        let beyond = Own { branch: 3, ..OWN };
        let zero = Own { branch: 0, ..OWN };
        for gid in [
            "x".to_owned(),
            "131077_AQ==_Ag==".to_owned(),
            "1280004948_AQ==_Ag==".to_owned(),
            beyond.to_string(),
            zero.to_string(),
        ] {
            assert_eq!(Own::parse(&gid), None, "{gid}");
        }
    }
}

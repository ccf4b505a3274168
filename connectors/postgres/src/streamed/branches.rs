//! Transactions that are prepared: whole, and waiting for the word of whoever coordinates them.
//!
//! **What may be confirmed.** What the server has sent of a transaction up to its PREPARE it never sends again once a place of
//! the log behind that record is confirmed: what would come is a bare COMMIT PREPARED. So no place behind the oldest PREPARE is,
//! until its transaction has been rolled back, or its commit is durable in every sink. That costs no room on the
//! server: a prepared transaction keeps its log anyway.

use std::collections::HashMap;

use lockstep_core::batch::Prepared;
use lockstep_core::error::Result;
use lockstep_core::position::Lsn;
use lockstep_pg::error::protocol;

use super::Open;

/// By what their coordinators call them: no two of one name are prepared on a server at a time.
#[derive(Default)]
pub(super) struct Branches {
    waiting: HashMap<Box<[u8]>, Branch>,
    /// Committed, and perhaps not durable yet.
    ended: Vec<Ended>,
}

/// One that waits.
pub(super) struct Branch {
    pub xid: u32,
    pub open: Open,
    pub first: Prepared,
}

struct Ended {
    prepared: Lsn,
    end: Lsn,
}

/// What is not decided yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InDoubt {
    /// How many transactions.
    pub count: u64,
    /// When the first of them was prepared, microseconds since the Unix epoch, and where in the log.
    pub first: Option<(i64, Lsn)>,
}

impl Branches {
    /// Takes one in; returns one of the same name that had not ended.
    pub fn put(&mut self, gid: &[u8], branch: Branch) -> Option<Branch> {
        self.waiting.insert(gid.into(), branch)
    }

    /// One is rolled back by the record that ends at `end`; `None`: nothing has come of it. Who waits for it has to hear of that, and
    /// after a connection was lost would not, if its PREPARE did not come again.
    ///
    /// # Errors
    /// As for [`Branches::commit`].
    pub fn roll_back(&mut self, gid: &[u8], xid: u32, end: Lsn) -> Result<Option<Branch>> {
        self.commit(gid, xid, end)
    }

    /// The one that was prepared at `lsn`.
    pub fn get_mut(&mut self, lsn: Lsn) -> Option<&mut Branch> {
        let mut waiting = self.waiting.values_mut();
        waiting.find(|branch| branch.first.lsn == lsn)
    }

    /// One ends; `None`: nothing has come of it.
    ///
    /// # Errors
    /// Of kind `Protocol`, when the one of that name is another transaction.
    fn take(&mut self, gid: &[u8], xid: u32) -> Result<Option<Branch>> {
        match self.waiting.get(gid) {
            Some(branch) if branch.xid != xid => Err(protocol(format!(
                "transaction {} was prepared as {:?}, and {xid} ends under that name",
                branch.xid, branch.first.gid
            ))),
            _ => Ok(self.waiting.remove(gid)),
        }
    }

    /// One commits; `end` is the end of the record that says so.
    ///
    /// # Errors
    /// Of kind `Protocol`, when the one of that name is another transaction.
    pub fn commit(&mut self, gid: &[u8], xid: u32, end: Lsn) -> Result<Option<Branch>> {
        let branch = self.take(gid, xid)?;
        self.ended.extend(branch.as_ref().map(|branch| Ended {
            prepared: branch.first.lsn,
            end,
        }));
        Ok(branch)
    }

    /// The place behind which nothing may be confirmed, when every sink has what committed up to `durable`.
    pub fn hold(&mut self, durable: Lsn) -> Option<Lsn> {
        self.ended.retain(|ended| ended.end > durable);
        let waiting = self.waiting.values().map(|branch| branch.first.lsn);
        waiting
            .chain(self.ended.iter().map(|ended| ended.prepared))
            .min()
    }

    pub fn in_doubt(&self) -> InDoubt {
        let waiting = self.waiting.values();
        let first = waiting.min_by_key(|branch| branch.first.lsn);
        InDoubt {
            count: self.waiting.len() as u64,
            first: first.map(|branch| (branch.first.micros, branch.first.lsn)),
        }
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Open> {
        self.waiting.values_mut().map(|branch| &mut branch.open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(lsn: u64) -> Branch {
        Branch {
            xid: 7,
            open: Open::new(),
            first: Prepared {
                gid: "g".into(),
                lsn: Lsn(lsn),
                micros: i64::try_from(lsn).expect("small"),
                marker: None,
            },
        }
    }

    #[test]
    fn nothing_behind_a_prepare_is_confirmed_until_its_commit_is_durable() {
        let mut branches = Branches::default();
        assert_eq!(branches.hold(Lsn(1000)), None);
        assert!(branches.put(b"a", branch(100)).is_none());
        assert!(branches.put(b"b", branch(180)).is_none());
        assert_eq!(branches.hold(Lsn(150)), Some(Lsn(100)));
        assert_eq!(
            branches.in_doubt(),
            InDoubt {
                count: 2,
                first: Some((100, Lsn(100)))
            }
        );
        let commit = |branches: &mut Branches| branches.commit(b"a", 7, Lsn(210));
        assert!(commit(&mut branches).expect("its own").is_some());
        assert_eq!(
            branches.hold(Lsn(209)),
            Some(Lsn(100)),
            "committed, and not durable"
        );
        assert_eq!(branches.hold(Lsn(210)), Some(Lsn(180)));
        let rolled_back = branches.roll_back(b"b", 7, Lsn(250));
        assert!(rolled_back.expect("its own").is_some());
        assert_eq!(branches.hold(Lsn(210)), Some(Lsn(180)), "not passed on yet");
        assert_eq!(branches.hold(Lsn(250)), None, "nothing of it is needed");
    }

    #[test]
    fn a_name_may_come_again_once_its_transaction_has_ended() {
        let mut branches = Branches::default();
        let nothing = branches.commit(b"a", 7, Lsn(5)).expect("nobody's");
        assert!(nothing.is_none(), "nothing came of it");
        assert!(branches.put(b"a", branch(10)).is_none());
        assert!(
            branches.roll_back(b"a", 8, Lsn(12)).is_err(),
            "another transaction"
        );
        assert!(
            branches
                .roll_back(b"a", 7, Lsn(12))
                .expect("its own")
                .is_some()
        );
        assert!(branches.put(b"a", branch(20)).is_none());
        assert!(branches.put(b"a", branch(30)).is_some(), "two at a time");
    }
}

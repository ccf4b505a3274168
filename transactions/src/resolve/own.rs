//! What the decision log of lockstep's coordinators says.

use std::collections::{BTreeMap, BTreeSet};

use super::{Judged, Rule, Verdict};
use crate::gid::Own;

/// A decision log, read under one snapshot: of the transactions that were asked for, and of all epochs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnLog {
    /// Its id, which is in every gid that it decides.
    pub id: u64,
    /// Of the transactions asked for, those that are decided to commit, by their global ids.
    pub decided: BTreeSet<String>,
    /// All that were ever opened.
    pub epochs: BTreeMap<u32, Epoch>,
}

/// The time from the opening of a coordinator to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// Its name.
    pub coordinator: String,
    /// It decides nothing any more. All that it ever decided was in the log before it was closed.
    pub is_closed: bool,
}

impl OwnLog {
    /// What is to become of a branch of this log. Pure.
    #[must_use]
    pub fn judge(&self, own: &Own) -> Judged {
        let alone = |why: String| Judged::new(Verdict::LeaveAlone, Rule::None, why);
        if own.log != self.id {
            return alone("another log decides it".to_owned());
        }
        if self.decided.contains(&own.global()) {
            let why = "it is in the decision log".to_owned();
            return Judged::new(Verdict::Commit, Rule::Log, why);
        }
        let epoch = own.epoch;
        match self.epochs.get(&epoch) {
            Some(closed) if closed.is_closed => Judged::new(
                Verdict::RollBack,
                Rule::Epoch,
                format!(
                    "it is not in the decision log, and epoch {epoch} of the coordinator `{}` is closed",
                    closed.coordinator
                ),
            ),
            Some(open) => alone(format!(
                "its coordinator `{name}` may still decide; where that is gone for good: UPDATE lockstep.gtx_epoch SET closed = \
                 now() WHERE epoch = {epoch}",
                name = open.coordinator
            )),
            None => alone(format!("the decision log knows no epoch {epoch}")),
        }
    }
}

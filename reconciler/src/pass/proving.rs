//! Rows that seem to differ are looked at until that is proven, or not so.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::position::Lsn;
use lockstep_core::sink::{Held, HeldVersion};
use lockstep_core::source::{CheckRows, Checked};

use super::{AT_ONCE, Found, Key, PAUSE, Pass, Purpose, ROUNDS, Suspects, found};
use crate::report::{Difference, Drift};
use crate::row::differing;
use crate::{Compared, Ends, Outcome, Verdict};

impl Pass {
    /// Looks once more at rows that differ, and at rows that changed while they were read: what differs then, at another
    /// place of the stream and by another snapshot, is reported.
    pub(super) async fn verify(
        &self,
        ends: &dyn Ends,
        mut suspects: Suspects,
        mut unsteady: Vec<Key>,
        purpose: Purpose,
        sinks: &[Arc<str>],
    ) -> Result<()> {
        // Of rows that were not steady nothing is known yet: a difference is found first, and proven then.
        let mut pause = PAUSE;
        let mut proven = Found::new();
        for _ in 0..ROUNDS {
            let wanted: BTreeSet<Key> = suspects
                .values()
                .flatten()
                .chain(&unsteady)
                .cloned()
                .collect();
            if wanted.is_empty() {
                return self.mend(ends, proven).await;
            }
            let wanted: Vec<Key> = wanted.into_iter().collect();
            // Where nothing is known of some rows, all have to say.
            let suspected: Vec<Arc<str>> = suspects.keys().cloned().collect();
            let asked = match unsteady.is_empty() {
                true => &suspected[..],
                false => sinks,
            };
            let (mut next, mut again) = (Suspects::new(), Vec::new());
            for keys in wanted.chunks(AT_ONCE) {
                let compared = self
                    .ask(ends, CheckRows::Keys(keys.to_vec()), asked)
                    .await?;
                again.extend(compared.checked.unsteady.iter().cloned());
                if purpose == Purpose::Rows {
                    self.see(&compared);
                    self.count_first(&compared, &unsteady);
                }
                for (sink, key, verdict) in found(&compared) {
                    let known = suspects.get(sink).is_some_and(|keys| keys.contains(key));
                    if !known {
                        let suspects = next.entry(Arc::clone(sink)).or_default();
                        suspects.insert(key.clone());
                    } else if let Some(drift) = self.prove(sink, key, verdict, &compared.checked) {
                        proven.entry(Arc::clone(sink)).or_default().push(drift);
                    }
                }
            }
            // A suspect that was not steady this time is one still.
            let unsure: HashSet<&Key> = again.iter().collect();
            for (sink, keys) in &suspects {
                let left = keys.iter().filter(|key| unsure.contains(key)).cloned();
                next.entry(Arc::clone(sink)).or_default().extend(left);
            }
            next.retain(|_, keys| !keys.is_empty());
            (suspects, unsteady) = (next, again);
            if !(suspects.is_empty() && unsteady.is_empty()) {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
        }
        let left: BTreeSet<&Key> = suspects.values().flatten().chain(&unsteady).collect();
        self.lock().report.undecided += left.len() as u64;
        self.mend(ends, proven).await
    }

    /// Rows that were not steady before are compared for the first time now.
    fn count_first(&self, compared: &Compared, unsteady: &[Key]) {
        let waited: HashSet<&Key> = unsteady.iter().collect();
        let first = compared
            .checked
            .keys
            .iter()
            .filter(|key| waited.contains(key))
            .count() as u64;
        let report = &mut self.lock().report;
        report.rows += first;
        for answer in &compared.answers {
            if let Outcome::Compared { .. } = &answer.outcome {
                let sink = report.sinks.entry(answer.sink.to_string()).or_default();
                sink.compared += first;
            }
        }
    }

    /// A difference that has been seen twice; gives it when it is told for the first time.
    fn prove(&self, sink: &str, key: &Key, verdict: &Verdict, checked: &Checked) -> Option<Drift> {
        if !self.is_new(&(sink, key)) {
            return None;
        }
        let progress = &mut *self.lock();
        let sinks = &mut progress.report.sinks;
        let sink = sinks.entry(sink.to_owned()).or_default();
        if verdict.aside {
            sink.aside += 1;
            return None;
        }
        let (held_as, difference) = match verdict.held.clone() {
            Held::Same => return None,
            // There is nothing to compare, and no letter that tells of it.
            Held::Refused { .. } => {
                progress.report.undecided += 1;
                return None;
            }
            Held::Missing { key } => (key, Difference::Missing),
            Held::Extra { key, actual } => (key, Difference::Extra { actual }),
            Held::Different {
                key,
                expected,
                actual,
                version,
            } => {
                let columns = differing(&expected, &actual);
                let changed_after = changed_after(checked, verdict.ordinal);
                let difference = match is_stale(version, changed_after) {
                    false => Difference::Different {
                        columns,
                        expected,
                        actual,
                    },
                    true => Difference::Stale {
                        columns,
                        expected,
                        actual,
                        held: place_of(version).map(|held| held.to_string()),
                        changed_after: changed_after.map(|after| after.to_string()),
                    },
                };
                (key, difference)
            }
        };
        let drift = Drift {
            key: key.clone(),
            held_as,
            fence: Some(checked.fence.to_string()),
            difference,
            repaired: false,
        };
        sink.take(drift.clone());
        Some(drift)
    }
}

/// The place of the log behind which a row was written last, if it is known.
fn changed_after(checked: &Checked, ordinal: u64) -> Option<Lsn> {
    let at = usize::try_from(ordinal).ok()?.checked_sub(1)?;
    checked.changed_after.get(at).copied().flatten()
}

/// The place of the log of which a sink has a row.
fn place_of(version: HeldVersion) -> Option<Lsn> {
    match version {
        HeldVersion::At(place) => Some(place),
        HeldVersion::EarlierLog | HeldVersion::Unknown => None,
    }
}

/// Whether the row that a sink has is proven to be one from before its last change. Neither what is altered in place nor a version
/// that somebody has taken away looks like it.
fn is_stale(version: HeldVersion, changed_after: Option<Lsn>) -> bool {
    match version {
        HeldVersion::Unknown => false,
        // The log of now began with a copy of all rows.
        HeldVersion::EarlierLog => true,
        HeldVersion::At(held) => changed_after.is_some_and(|after| held <= after),
    }
}

//! What is known of the keys that do not hold, from look to look.
//!
//! **The proof.** Let a look take its snapshots of all databases, and *then* ask each of them which transactions are in progress.
//! A *window* begins with a look, and ends with a later one whose snapshots see the end of all of these. A key is proven when all
//! looks over two windows, one behind the other, have found it broken with the same rows.
//!
//! Take a global transaction `g` that the first look of a window saw in A and not in B. Its branch in A was committed, so that in B
//! had been prepared before: it was in progress in B when that was asked, or had ended by then. Either way the last look of the
//! window sees it. So all that the first look saw by half, the last one sees whole.
//!
//! Suppose the last look of the second window sees a transaction `h` by half that has touched the key: in B, and not in A. It was
//! committed in B within this window, or it would be seen whole. The key's rows in B are those from before all the same. Rows that are there do not return
//! to what they were, so there are none, and `h` has taken away what some `g` had put there within the window, too. What `g` wrote of the key in
//! A is what both windows have seen there: it was committed before the first of them, and seen by half when that began. Then it was
//! whole when the second began, and did not put anything into B within that. So there is no such `h`: what the last look says is the work
//! of transactions that are whole, a state that there should not be.
//!
//! **Its limit** is that rows do not return to what they were. A counter may go up and come down again, and be caught by half
//! each time. [`LOOKS`] looks make that unlikely; a column that only ever changes to new values (a version, a time) makes
//! it impossible, since all columns of the queries are compared for this, whichever the rule is about.
//!
//! With one database there is no half: a look is a proof.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lockstep_core::query::{InProgress, Snapshot};
use serde::{Deserialize, Serialize};

use super::Key;
use super::report::{Broken, Standing, Waiting};

/// Looks that must find the same, across databases.
pub(super) const LOOKS: u32 = 4;
/// Windows that must have come to their end.
const WINDOWS: u32 = 2;
/// Keys that are followed; more are counted.
const MOST: usize = 10_000;
/// Keys that are told with their rows.
const TOLD: usize = 1_000;
/// Transactions that are told of each key.
const WAITING: usize = 10;

/// What a look saw of transactions, by side.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    pub at_micros: i64,
    pub snapshots: Vec<Snapshot>,
    /// In progress after the last of the snapshots had been taken.
    pub after: Arc<Vec<Vec<InProgress>>>,
}

/// What a look found of a key that does not hold.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub digest: u64,
    pub why: String,
    pub rows: BTreeMap<String, Vec<serde_json::Map<String, serde_json::Value>>>,
    pub more: u64,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Book {
    suspects: BTreeMap<Key, Suspect>,
    /// Names of the sides.
    sources: Vec<Arc<str>>,
    /// Keys that the last look over all of them found, and there was no room for.
    untold: u64,
    /// Keys whose rows are kept, to be told.
    shown: BTreeSet<Key>,
    /// The look under way.
    look: u64,
}

#[derive(Debug)]
struct Suspect {
    since_micros: i64,
    unchanged_micros: i64,
    digest: u64,
    /// How often it was seen like this, by this process.
    looks: u32,
    /// What was in progress after the first look of the window.
    after: Option<Arc<Vec<Vec<InProgress>>>>,
    /// Windows that have come to their end.
    windows: u32,
    waits_for: Vec<Waiting>,
    is_proven: bool,
    /// It has been told as violated.
    told: bool,
    /// The last look that saw it.
    look: u64,
    /// Of as many as are told.
    found: Option<Found>,
}

/// What is kept of a key over restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The values of the key.
    pub key: Key,
    /// See [`Broken::since_micros`].
    pub since_micros: i64,
    /// See [`Broken::unchanged_micros`].
    pub unchanged_micros: i64,
    /// Of its rows.
    pub digest: u64,
    /// It has been told as violated.
    pub told: bool,
}

/// How many keys stand how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub violated: u64,
    pub in_doubt: u64,
    pub undecided: u64,
    pub pending: u64,
}

impl Book {
    /// With what an earlier process has left. Nothing of it is proven: which transactions were in progress is not known any more.
    #[must_use]
    pub fn new(sources: Vec<Arc<str>>, kept: Vec<Kept>) -> Self {
        let suspects = kept.into_iter().map(|kept| {
            let suspect = Suspect {
                since_micros: kept.since_micros,
                unchanged_micros: kept.unchanged_micros,
                digest: kept.digest,
                looks: 0,
                after: None,
                windows: 0,
                waits_for: Vec::new(),
                is_proven: false,
                told: kept.told,
                look: 0,
                found: None,
            };
            (kept.key, suspect)
        });
        Book {
            suspects: suspects.collect(),
            sources,
            untold: 0,
            shown: BTreeSet::new(),
            look: 0,
        }
    }

    /// What the next process has to know.
    #[must_use]
    pub fn kept(&self) -> Vec<Kept> {
        let kept = self.suspects.iter().map(|(key, suspect)| Kept {
            key: key.clone(),
            since_micros: suspect.since_micros,
            unchanged_micros: suspect.unchanged_micros,
            digest: suspect.digest,
            told: suspect.told,
        });
        kept.collect()
    }

    /// A look begins; over all keys, or only over some.
    pub(super) fn begin(&mut self, over_all: bool) {
        self.look += 1;
        if over_all {
            self.untold = 0;
        }
    }

    /// The look under way found a key that does not hold.
    pub(super) fn found(&mut self, moment: &Moment, key: Key, found: Found) {
        if !self.suspects.contains_key(&key) && self.suspects.len() >= MOST {
            self.untold += 1;
            return;
        }
        let alone = self.sources.len() == 1;
        let is_shown = self.shown.contains(&key) || self.shown.len() < TOLD;
        if is_shown {
            self.shown.insert(key.clone());
        }
        let suspect = self.suspects.entry(key).or_insert_with(|| Suspect {
            since_micros: moment.at_micros,
            unchanged_micros: moment.at_micros,
            digest: found.digest,
            looks: 0,
            after: None,
            windows: 0,
            waits_for: Vec::new(),
            is_proven: false,
            told: false,
            look: 0,
            found: None,
        });
        if suspect.digest != found.digest {
            suspect.unchanged_micros = moment.at_micros;
            suspect.digest = found.digest;
            suspect.looks = 0;
            suspect.after = None;
            suspect.windows = 0;
        }
        suspect.looks += 1;
        suspect.look = self.look;
        suspect.found = is_shown.then_some(found);
        suspect.waits_for.clear();
        let Some(after) = &suspect.after else {
            suspect.after = Some(Arc::clone(&moment.after));
            suspect.is_proven = alone;
            return;
        };
        for ((running, snapshot), source) in after.iter().zip(&moment.snapshots).zip(&self.sources)
        {
            let still = running.iter().filter(|one| !snapshot.has_ended(one.xid));
            suspect.waits_for.extend(still.map(|one| Waiting {
                source: source.to_string(),
                xid: one.xid,
                gid: one.gid.clone(),
                prepared_micros: one.prepared_micros,
            }));
        }
        if suspect.waits_for.is_empty() {
            suspect.windows += 1;
            suspect.after = Some(Arc::clone(&moment.after));
        }
        suspect.is_proven = alone || (suspect.looks >= LOOKS && suspect.windows >= WINDOWS);
        // Prepared ones first: a person may have to decide them.
        suspect.waits_for.sort_by_key(|one| one.gid.is_none());
        suspect.waits_for.truncate(WAITING);
    }

    /// The look under way has come to its end: of the keys that it was over, those hold that it has not found. Gives those that had
    /// been told.
    pub(super) fn end(&mut self, is_in: impl Fn(&Key) -> bool) -> Vec<Key> {
        let look = self.look;
        let gone = self
            .suspects
            .extract_if(.., |key, suspect| suspect.look != look && is_in(key));
        let mut over = Vec::new();
        for (key, suspect) in gone {
            self.shown.remove(&key);
            if suspect.told {
                over.push(key);
            }
        }
        over
    }

    /// The keys that another look could prove.
    pub(super) fn open(&self, now_micros: i64, within: Duration) -> Vec<Key> {
        let open = self.suspects.iter().filter(|(_, suspect)| {
            !suspect.is_proven && suspect.standing(now_micros, within) != Standing::Pending
        });
        open.map(|(key, _)| key.clone()).collect()
    }

    /// How many keys stand how.
    pub(super) fn counts(&self, now_micros: i64, within: Duration) -> Counts {
        let mut counts = Counts {
            undecided: self.untold,
            ..Counts::default()
        };
        for suspect in self.suspects.values() {
            *match suspect.standing(now_micros, within) {
                Standing::Violated => &mut counts.violated,
                Standing::InDoubt => &mut counts.in_doubt,
                Standing::Undecided => &mut counts.undecided,
                Standing::Pending => &mut counts.pending,
            } += 1;
        }
        counts
    }

    /// What is to be told: those that are proven before the others, then by how long they have been so.
    pub(super) fn tell(&mut self, now_micros: i64, within: Duration) -> Vec<Broken> {
        let mut all: Vec<(Standing, i64, &Key, &mut Suspect)> = self
            .suspects
            .iter_mut()
            .map(|(key, suspect)| {
                let standing = suspect.standing(now_micros, within);
                (standing, suspect.since_micros, key, suspect)
            })
            .collect();
        all.sort_by_key(|(standing, since, _, _)| (*standing, *since));
        let told = all.into_iter().filter_map(|(standing, _, key, suspect)| {
            suspect.told |= standing == Standing::Violated;
            let found = suspect.found.clone()?;
            Some(Broken {
                key: key.clone(),
                standing,
                why: found.why,
                since_micros: suspect.since_micros,
                unchanged_micros: suspect.unchanged_micros,
                rows: found.rows,
                more: found.more,
                waits_for: suspect.waits_for.clone(),
            })
        });
        // All of them are marked as told, whichever have their rows kept.
        told.collect()
    }
}

impl Suspect {
    fn standing(&self, now_micros: i64, within: Duration) -> Standing {
        let within = i64::try_from(within.as_micros()).unwrap_or(i64::MAX);
        if now_micros.saturating_sub(self.unchanged_micros) < within {
            Standing::Pending
        } else if self.is_proven {
            Standing::Violated
        } else if self.waits_for.iter().any(|one| one.gid.is_some()) {
            Standing::InDoubt
        } else {
            Standing::Undecided
        }
    }
}

//! One pass over one table.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lockstep_core::error::Policy;
use lockstep_core::position::Lsn;
use lockstep_core::sink::{Held, HeldVersion};
use lockstep_core::source::{CheckRows, Checked};
use lockstep_core::{Error, Result};
use tokio::time::Instant;

use crate::audit::{Audit, Entry, Stage};
use crate::bookmark::Bookmark;
use crate::report::{Difference, Drift, SinkReport, State, TableReport};
use crate::row::differing;
use crate::seen::Seen;
use crate::{Compared, Ends, Outcome, Sent, Verdict};

/// Keys that are looked at in one go.
const AT_ONCE: usize = 1_000;
/// Differences that are kept in full for each sink; the rest is counted.
const TOLD: usize = 1_000;
/// How often a row is asked for that changes whenever it is read.
const ROUNDS: u32 = 6;
/// The pause before the second round; it doubles.
const PAUSE: Duration = Duration::from_millis(50);
/// How often it is tried to mend a row.
const TRIES: u32 = 3;
/// Before another try of what may pass.
const AGAIN: Duration = Duration::from_secs(1);
/// What a pace may be ahead of itself.
const AHEAD: Duration = Duration::from_millis(100);

type Key = Vec<String>;

/// Why keys are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// They are those of rows.
    Rows,
    /// A sink holds them.
    Extras,
}

/// Keys that were found to differ, by sink.
type Suspects = BTreeMap<Arc<str>, BTreeSet<Key>>;

/// A pass over one table, and how far it has come. Clones share it.
#[derive(Clone)]
pub struct Pass {
    progress: Arc<Mutex<Progress>>,
    /// Differences are mended, and who is told.
    audit: Option<Arc<dyn Audit>>,
    /// The rows that are compared; all of the table without.
    only: Option<Arc<[Key]>>,
    /// Rows per second that are read at most.
    pace: Option<NonZeroU32>,
}

/// What was found in one sink, to be mended.
type Found = BTreeMap<Arc<str>, Vec<Drift>>;

#[derive(Debug)]
struct Progress {
    report: TableReport,
    /// Where another process would go on.
    kept: Bookmark,
    /// Hashes of sink and key of what has been told: listings name keys twice.
    told: HashSet<u64>,
    hashes: RandomState,
    seen: Seen,
}

impl Pass {
    /// A pass that has not begun to look.
    #[must_use]
    pub fn new(source: &str, table: &str) -> Self {
        Pass::resumed(Bookmark::new(TableReport {
            source: source.to_owned(),
            table: table.to_owned(),
            state: State::Running,
            began_micros: now_micros(),
            ended_micros: None,
            rows: 0,
            undecided: 0,
            problem: None,
            sinks: BTreeMap::new(),
        }))
    }

    /// One that goes on where an earlier one stood.
    #[must_use]
    pub fn resumed(kept: Bookmark) -> Self {
        let hashes = RandomState::new();
        let mut told = HashSet::new();
        for (sink, report) in &kept.report.sinks {
            let of_sink = report.drift.iter();
            told.extend(of_sink.map(|drift| match drift.key.is_empty() {
                true => hashes.hash_one((sink, &drift.held_as)),
                false => hashes.hash_one((sink, &drift.key)),
            }));
        }
        let report = kept.report.clone();
        Pass {
            progress: Arc::new(Mutex::new(Progress {
                report,
                kept,
                told,
                hashes,
                seen: Seen::default(),
            })),
            audit: None,
            only: None,
            pace: None,
        }
    }

    /// One over rows with these keys, whether or not the source or a sink has them, and no others.
    #[must_use]
    pub fn over(self, keys: Vec<Vec<String>>) -> Self {
        Pass {
            only: Some(keys.into()),
            ..self
        }
    }

    /// One that reads so many rows of the table per second at most.
    #[must_use]
    pub fn paced(self, rows: Option<NonZeroU32>) -> Self {
        Pass { pace: rows, ..self }
    }

    /// One that mends what differs. `audit` is told before and after.
    #[must_use]
    pub fn mending(self, audit: Arc<dyn Audit>) -> Self {
        Pass {
            audit: Some(audit),
            ..self
        }
    }

    /// How it stands.
    #[must_use]
    pub fn report(&self) -> TableReport {
        self.lock().report.clone()
    }

    /// Where another one would go on.
    #[must_use]
    pub fn bookmark(&self) -> Bookmark {
        self.lock().kept.clone()
    }

    /// All until now is done.
    async fn keep(&self, change: impl FnOnce(&mut Bookmark)) -> Result<()> {
        let audited = match &self.audit {
            Some(audit) => audit.end().await?,
            None => 0,
        };
        let progress = &mut *self.lock();
        progress.kept.report.clone_from(&progress.report);
        progress.kept.audited = Some(audited);
        change(&mut progress.kept);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares all rows of the table, then looks in the sinks for rows that should not be there. What fails for now is tried
    /// again, for ever.
    pub async fn run(&self, ends: &dyn Ends) {
        let ended = self.compare(ends).await;
        let progress = &mut *self.lock();
        progress.seen = Seen::default();
        let report = &mut progress.report;
        report.ended_micros = Some(now_micros());
        report.state = match &ended {
            Ok(()) => State::Done,
            Err(_) => State::Failed,
        };
        report.problem = ended.err().map(|error| error.to_string());
    }

    /// Tells that nothing of the table can be compared with these sinks.
    pub fn cannot_be_made(&self, sinks: &[Arc<str>]) {
        let report = &mut self.lock().report;
        for sink in sinks {
            let sink = report.sinks.entry(sink.to_string()).or_default();
            sink.unreadable = true;
        }
        report.ended_micros = Some(now_micros());
        report.state = State::Done;
    }

    async fn compare(&self, ends: &dyn Ends) -> Result<()> {
        let begin = self.bookmark();
        match begin.audited {
            None => self.keep(|_| {}).await?,
            Some(end) => self.catch_up(ends, end).await?,
        }
        let mut all = ends.sinks();
        all.retain(|sink| !self.cannot_be_read(sink));
        if let Some(keys) = &self.only {
            let unknown = keys.to_vec();
            let rows = Purpose::Rows;
            return self
                .verify(ends, Suspects::new(), unknown, rows, &all)
                .await;
        }
        if !begin.all_rows {
            self.rows(ends, begin.after, &mut all).await?;
        }
        all.retain(|sink| !begin.searched.iter().any(|done| **done == **sink));
        for sink in all {
            self.extras(ends, &sink).await?;
            self.keep(|kept| kept.searched.push(sink.to_string()))
                .await?;
        }
        Ok(())
    }

    /// Compares all rows behind a key.
    async fn rows(
        &self,
        ends: &dyn Ends,
        mut after: Option<Key>,
        sinks: &mut Vec<Arc<str>>,
    ) -> Result<()> {
        let mut sent = None;
        let mut due = Instant::now();
        loop {
            let (compared, following) = self.chunk(ends, after.take(), sent, sinks).await?;
            sent = following;
            let checked = &compared.checked;
            let suspects = self.note(&compared);
            self.lock().report.rows += checked.keys.len() as u64;
            sinks.retain(|sink| !self.cannot_be_read(sink));
            let unsteady = checked.unsteady.clone();
            self.verify(ends, suspects, unsteady, Purpose::Rows, sinks)
                .await?;
            after.clone_from(&compared.checked.next);
            self.keep(|kept| {
                kept.all_rows = after.is_none();
                kept.after.clone_from(&after);
            })
            .await?;
            if after.is_none() {
                return Ok(());
            }
            if let Some(rows) = self.pace {
                let read = compared.checked.keys.len() + compared.checked.unsteady.len();
                let took = Duration::from_secs_f64(read as f64 / f64::from(rows.get()));
                due = due.max(Instant::now()) + took;
                // What follows is being read already.
                tokio::time::sleep_until(due - took.min(AHEAD)).await;
            }
        }
    }

    /// The rows behind a key, which may have been sent already, and what sinks say of them. Those that follow are read meanwhile.
    async fn chunk<'e>(
        &self,
        ends: &'e dyn Ends,
        after: Option<Key>,
        mut sent: Option<Sent<'e>>,
        sinks: &[Arc<str>],
    ) -> Result<(Compared, Option<Sent<'e>>)> {
        let both = async |sent: Option<Sent<'e>>| {
            let Sent { checked, answers } = match sent {
                Some(sent) => sent,
                None => ends.send(CheckRows::Behind(after.clone()), sinks).await?,
            };
            let following = async {
                let next = CheckRows::Behind(Some(checked.next.clone()?));
                // What keeps them from being sent is met again when it is their turn.
                ends.send(next, sinks).await.ok()
            };
            let (answers, following) = tokio::join!(answers, following);
            let answers = answers?;
            Ok((Compared { checked, answers }, following))
        };
        let (compared, following) = patiently(|| both(sent.take())).await?;
        self.failures(&compared);
        Ok((compared, following))
    }

    /// Takes in what the one before had mended beyond its bookmark, and finds out what became of what it was about to mend.
    /// What differs still is found again.
    async fn catch_up(&self, ends: &dyn Ends, audited: u64) -> Result<()> {
        let Some(audit) = &self.audit else {
            return Ok(());
        };
        let (source, table) = {
            let report = &self.lock().report;
            (report.source.clone(), report.table.clone())
        };
        let mut entries = audit.behind(audited).await?;
        entries.retain(|entry| entry.source == source && entry.table == table);
        let mut open: BTreeMap<(String, Key), Drift> = BTreeMap::new();
        for entry in entries {
            let place = (entry.sink.clone(), entry.drift.key.clone());
            match entry.stage {
                Stage::Planned => drop(open.insert(place, entry.drift)),
                Stage::Left => drop(open.remove(&place)),
                Stage::Mended => {
                    open.remove(&place);
                    self.of(&entry.sink, |sink| sink.take_mended(entry.drift));
                }
            }
        }
        let mut by_sink = BTreeMap::<String, Vec<Drift>>::new();
        for ((sink, _), drift) in open {
            by_sink.entry(sink).or_default().push(drift);
        }
        for (sink, drift) in by_sink {
            let sink: Arc<str> = sink.into();
            if !ends.sinks().contains(&sink) {
                continue;
            }
            for part in drift.chunks(AT_ONCE) {
                self.settle(ends, audit.as_ref(), &sink, part).await?;
            }
        }
        self.keep(|_| {}).await
    }

    /// Looks which rows of those that were about to be mended have been.
    async fn settle(
        &self,
        ends: &dyn Ends,
        audit: &dyn Audit,
        sink: &Arc<str>,
        part: &[Drift],
    ) -> Result<()> {
        let keys: Vec<Key> = part.iter().map(|drift| drift.key.clone()).collect();
        let only = std::slice::from_ref(sink);
        let compared = self.ask(ends, CheckRows::Keys(keys), only).await?;
        let equal = equal_in(&compared);
        let is_mended = |drift: &&Drift| equal.contains(&drift.key);
        let mended: Vec<Drift> = part.iter().filter(is_mended).cloned().collect();
        audit
            .record(self.entries(sink, &mended, Stage::Mended))
            .await?;
        self.of(sink, |sink| {
            mended.into_iter().for_each(|drift| sink.take_mended(drift));
        });
        Ok(())
    }

    /// Sends rows to be compared, and tells which sinks have not compared them.
    async fn ask(&self, ends: &dyn Ends, rows: CheckRows, sinks: &[Arc<str>]) -> Result<Compared> {
        let compared = patiently(|| ends.check(rows.clone(), sinks)).await?;
        self.failures(&compared);
        Ok(compared)
    }

    fn failures(&self, compared: &Compared) {
        for answer in &compared.answers {
            match &answer.outcome {
                Outcome::Compared { .. } => {}
                Outcome::Unreadable => self.of(&answer.sink, |sink| sink.unreadable = true),
                Outcome::Failed(error) => {
                    let problem = error.to_string();
                    self.of(&answer.sink, |sink| sink.problem = Some(problem));
                }
            }
        }
    }

    /// Remembers the rows that have been compared with every sink: as they are, or that they are not.
    fn see(&self, compared: &Compared) {
        let seen = &mut self.lock().seen;
        compared
            .checked
            .keys
            .iter()
            .for_each(|key| seen.insert(key));
    }

    fn cannot_be_read(&self, sink: &str) -> bool {
        let sinks = &self.lock().report.sinks;
        sinks.get(sink).is_some_and(|sink| sink.unreadable)
    }

    /// Takes in what sinks said of rows that were sent for the first time; gives those that differ.
    fn note(&self, compared: &Compared) -> Suspects {
        self.see(compared);
        let report = &mut self.lock().report;
        for answer in &compared.answers {
            if let Outcome::Compared { rows, .. } = &answer.outcome {
                let sink = report.sinks.entry(answer.sink.to_string()).or_default();
                sink.compared += rows;
            }
        }
        suspects_of(compared)
    }

    /// Looks once more at rows that differ, and at rows that changed while they were read: what differs then, at another
    /// place of the stream and by another snapshot, is reported.
    async fn verify(
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

    /// Mends what has been proven to differ, if it is to be.
    async fn mend(&self, ends: &dyn Ends, proven: Found) -> Result<()> {
        let Some(audit) = &self.audit else {
            return Ok(());
        };
        for (sink, drift) in proven {
            let mut left = drift;
            for _ in 0..TRIES {
                let mut still = Vec::new();
                for part in left.chunks(AT_ONCE) {
                    still.extend(self.mend_part(ends, audit.as_ref(), &sink, part).await?);
                }
                left = still;
                if left.is_empty() {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
            if !left.is_empty() {
                audit
                    .record(self.entries(&sink, &left, Stage::Left))
                    .await?;
            }
        }
        Ok(())
    }

    /// Gives what differs still, or changed meanwhile.
    async fn mend_part(
        &self,
        ends: &dyn Ends,
        audit: &dyn Audit,
        sink: &Arc<str>,
        part: &[Drift],
    ) -> Result<Vec<Drift>> {
        // Before: what is not on record is not done.
        audit
            .record(self.entries(sink, part, Stage::Planned))
            .await?;
        let keys: Vec<Key> = part.iter().map(|drift| drift.key.clone()).collect();
        let compared = patiently(|| ends.repair(keys.clone(), sink)).await?;
        self.failures(&compared);
        let equal = equal_in(&compared);
        let is_mended = |drift: &&Drift| equal.contains(&drift.key);
        let (mended, left): (Vec<&Drift>, Vec<&Drift>) = part.iter().partition(is_mended);
        let mended: Vec<Drift> = mended.into_iter().cloned().collect();
        audit
            .record(self.entries(sink, &mended, Stage::Mended))
            .await?;
        let keys: HashSet<&Key> = mended.iter().map(|drift| &drift.key).collect();
        self.of(sink, |sink| {
            sink.repaired += mended.len() as u64;
            let drift = sink.drift.iter_mut();
            drift
                .filter(|drift| keys.contains(&drift.key))
                .for_each(|drift| drift.repaired = true);
        });
        Ok(left.into_iter().cloned().collect())
    }

    fn entries(&self, sink: &str, drift: &[Drift], stage: Stage) -> Vec<Entry> {
        let report = &self.lock().report;
        let entry = |drift: &Drift| Entry {
            at_micros: now_micros(),
            source: report.source.clone(),
            table: report.table.clone(),
            sink: sink.to_owned(),
            stage,
            drift: drift.clone(),
        };
        drift.iter().map(entry).collect()
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

    /// Looks for rows that a sink holds and should not.
    async fn extras(&self, ends: &dyn Ends, name: &Arc<str>) -> Result<()> {
        let listings = ends.list(name).await;
        let mut listed = false;
        for mut listing in self.given(name, listings).unwrap_or_default() {
            let mut unknown: Vec<Key> = Vec::new();
            while let Some(page) = self.given(name, listing.next().await).flatten() {
                self.foreign(name, page.foreign);
                unknown.extend({
                    let seen = &mut self.lock().seen;
                    let keys = page.keys.into_iter();
                    keys.filter(|key| !seen.has(key)).collect::<Vec<Key>>()
                });
                while unknown.len() >= AT_ONCE {
                    let rest = unknown.split_off(AT_ONCE);
                    self.unless_there(ends, name, unknown).await?;
                    unknown = rest;
                }
            }
            self.unless_there(ends, name, unknown).await?;
            listed = true;
        }
        self.of(name, |sink| sink.listed = listed && sink.problem.is_none());
        Ok(())
    }

    /// What a sink has given; what it says instead is told.
    fn given<T>(&self, sink: &str, given: Result<T>) -> Option<T> {
        let failed = |error: Error| self.of(sink, |sink| sink.problem = Some(error.to_string()));
        given.map_err(failed).ok()
    }

    /// Tells keys that no row can have.
    fn foreign(&self, name: &Arc<str>, keys: Vec<String>) {
        for held_as in keys {
            if !self.is_new(&(name, &held_as)) {
                continue;
            }
            let actual = String::new();
            let drift = Drift {
                key: Vec::new(),
                held_as,
                fence: None,
                difference: Difference::Extra { actual },
                repaired: false,
            };
            self.of(name, |sink| sink.take(drift));
        }
    }

    /// Looks in the source for rows with keys that a sink holds; tells those that have none.
    async fn unless_there(&self, ends: &dyn Ends, name: &Arc<str>, keys: Vec<Key>) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let only = std::slice::from_ref(name);
        let compared = self.ask(ends, CheckRows::Absent(keys), only).await?;
        let suspects = suspects_of(&compared);
        let unsteady = compared.checked.unsteady;
        self.verify(ends, suspects, unsteady, Purpose::Extras, only)
            .await
    }

    /// Whether it is told for the first time.
    fn is_new(&self, what: &impl std::hash::Hash) -> bool {
        let progress = &mut *self.lock();
        let hash = progress.hashes.hash_one(what);
        progress.told.insert(hash)
    }

    fn of(&self, sink: &str, change: impl FnOnce(&mut SinkReport)) {
        let sinks = &mut self.lock().report.sinks;
        change(sinks.entry(sink.to_owned()).or_default());
    }
}

/// Of rows that were compared with one sink, the keys of those that are the same there.
fn equal_in(compared: &Compared) -> HashSet<&Key> {
    let differs: HashSet<&Key> = found(compared).map(|(_, key, _)| key).collect();
    match compared.answers.first().map(|answer| &answer.outcome) {
        Some(Outcome::Compared { .. }) => {
            let keys = compared.checked.keys.iter();
            keys.filter(|key| !differs.contains(key)).collect()
        }
        _ => HashSet::new(),
    }
}

impl SinkReport {
    fn take_mended(&mut self, mut drift: Drift) {
        drift.repaired = true;
        self.repaired += 1;
        self.take(drift);
    }

    fn take(&mut self, drift: Drift) {
        match drift.difference {
            Difference::Missing => self.missing += 1,
            Difference::Different { .. } => self.different += 1,
            Difference::Stale { .. } => self.stale += 1,
            Difference::Extra { .. } => self.extra += 1,
        }
        if self.drift.len() < TOLD {
            self.drift.push(drift.shortened());
        }
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

/// The rows that sinks have found to differ.
fn found(compared: &Compared) -> impl Iterator<Item = (&Arc<str>, &Key, &Verdict)> {
    let keys = &compared.checked.keys;
    compared.answers.iter().flat_map(move |answer| {
        let different: &[Verdict] = match &answer.outcome {
            Outcome::Compared { different, .. } => different,
            Outcome::Unreadable | Outcome::Failed(_) => &[],
        };
        let key = |verdict: &Verdict| keys.get((verdict.ordinal as usize).checked_sub(1)?);
        different
            .iter()
            .filter_map(move |verdict| Some((&answer.sink, key(verdict)?, verdict)))
    })
}

fn suspects_of(compared: &Compared) -> Suspects {
    let mut suspects = Suspects::new();
    for (sink, key, _) in found(compared) {
        suspects
            .entry(Arc::clone(sink))
            .or_default()
            .insert(key.clone());
    }
    suspects
}

/// Does something again and again while it fails for reasons that may pass.
async fn patiently<T, F>(mut work: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut logged = None;
    loop {
        match work().await {
            Err(error) if error.kind().policy() == Policy::Retry => {
                let text = error.to_string();
                if logged.as_ref() != Some(&text) {
                    tracing::info!(%error, "the comparison waits");
                    logged = Some(text);
                }
                tokio::time::sleep(AGAIN).await;
            }
            other => return other,
        }
    }
}

/// Microseconds since the Unix epoch.
fn now_micros() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
        })
}

#[cfg(test)]
mod tests;

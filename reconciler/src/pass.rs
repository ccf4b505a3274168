//! One pass over one table.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lockstep_core::error::Policy;
use lockstep_core::position::Lsn;
use lockstep_core::sink::{Held, Keys};
use lockstep_core::source::CheckRows;
use lockstep_core::{Error, Result};

use crate::audit::{Audit, Entry, Stage};
use crate::report::{Difference, Drift, SinkReport, State, TableReport};
use crate::row::differing;
use crate::{Compared, Ends, Outcome, Verdict};

/// Keys that are looked at in one go.
const AT_ONCE: usize = 500;
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
}

/// What was found in one sink, to be mended.
type Found = BTreeMap<Arc<str>, Vec<Drift>>;

#[derive(Debug)]
struct Progress {
    report: TableReport,
    /// Hashes of sink and key of what has been told: listings name keys twice.
    told: HashSet<u64>,
    hashes: RandomState,
}

impl Pass {
    /// A pass that has not begun to look.
    #[must_use]
    pub fn new(source: &str, table: &str) -> Self {
        let report = TableReport {
            source: source.to_owned(),
            table: table.to_owned(),
            state: State::Running,
            began_micros: now_micros(),
            ended_micros: None,
            rows: 0,
            undecided: 0,
            problem: None,
            sinks: BTreeMap::new(),
        };
        Pass {
            progress: Arc::new(Mutex::new(Progress {
                report,
                told: HashSet::new(),
                hashes: RandomState::new(),
            })),
            audit: None,
        }
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

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares all rows of the table, then looks in the sinks for rows that should not be there. What fails for now is tried
    /// again, for ever.
    pub async fn run(&self, ends: &dyn Ends) {
        let ended = self.compare(ends).await;
        let report = &mut self.lock().report;
        report.ended_micros = Some(now_micros());
        report.state = match &ended {
            Ok(()) => State::Done,
            Err(_) => State::Failed,
        };
        report.problem = ended.err().map(|error| error.to_string());
    }

    async fn compare(&self, ends: &dyn Ends) -> Result<()> {
        let mut after: Option<Key> = None;
        let mut all = ends.sinks();
        loop {
            let compared = self
                .ask(ends, CheckRows::Behind(after.take()), &all)
                .await?;
            let sent = compared.checked.keys.len() as u64;
            let next = compared.checked.next.clone();
            let unsteady = compared.checked.unsteady.clone();
            let suspects = self.note(&compared);
            self.lock().report.rows += sent;
            all.retain(|sink| !self.cannot_be_read(sink));
            self.verify(ends, suspects, unsteady, Purpose::Rows, &all)
                .await?;
            match next {
                Some(_) => after = next,
                None => break,
            }
        }
        for sink in all {
            self.extras(ends, &sink).await?;
        }
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

    fn cannot_be_read(&self, sink: &str) -> bool {
        let sinks = &self.lock().report.sinks;
        sinks.get(sink).is_some_and(|sink| sink.unreadable)
    }

    /// Takes in what sinks said of rows that were sent for the first time; gives those that differ.
    fn note(&self, compared: &Compared) -> Suspects {
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
                    self.count_first(&compared, &unsteady);
                }
                let fence = compared.checked.fence;
                for (sink, key, verdict) in found(&compared) {
                    let known = suspects.get(sink).is_some_and(|keys| keys.contains(key));
                    if !known {
                        let suspects = next.entry(Arc::clone(sink)).or_default();
                        suspects.insert(key.clone());
                    } else if let Some(drift) = self.prove(sink, key, verdict, fence) {
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
        let differs: HashSet<&Key> = found(&compared).map(|(_, key, _)| key).collect();
        let seen: HashSet<&Key> = match compared.answers.first().map(|answer| &answer.outcome) {
            Some(Outcome::Compared { .. }) => compared.checked.keys.iter().collect(),
            _ => HashSet::new(),
        };
        let is_mended = |drift: &&Drift| seen.contains(&drift.key) && !differs.contains(&drift.key);
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
    fn prove(&self, sink: &str, key: &Key, verdict: &Verdict, fence: Lsn) -> Option<Drift> {
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
            } => {
                let columns = differing(&expected, &actual);
                let difference = Difference::Different {
                    columns,
                    expected,
                    actual,
                };
                (key, difference)
            }
        };
        let drift = Drift {
            key: key.clone(),
            held_as,
            fence: Some(fence.to_string()),
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
            while let Some(page) = self.given(name, listing.next().await).flatten() {
                self.page(ends, name, page).await?;
            }
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

    /// Looks whether there are rows for the keys that a sink holds.
    async fn page(&self, ends: &dyn Ends, name: &Arc<str>, page: Keys) -> Result<()> {
        for held_as in page.foreign {
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
        for keys in page.keys.chunks(AT_ONCE) {
            let only = std::slice::from_ref(name);
            let compared = self
                .ask(ends, CheckRows::Absent(keys.to_vec()), only)
                .await?;
            let suspects = suspects_of(&compared);
            let unsteady = compared.checked.unsteady;
            self.verify(ends, suspects, unsteady, Purpose::Extras, only)
                .await?;
        }
        Ok(())
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

impl SinkReport {
    fn take(&mut self, drift: Drift) {
        match drift.difference {
            Difference::Missing => self.missing += 1,
            Difference::Different { .. } => self.different += 1,
            Difference::Extra { .. } => self.extra += 1,
        }
        if self.drift.len() < TOLD {
            self.drift.push(drift.shortened());
        }
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
async fn patiently<F>(mut work: impl FnMut() -> F) -> Result<Compared>
where
    F: Future<Output = Result<Compared>>,
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

//! One pass over one table.

mod extras;
mod mending;
mod proving;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lockstep_core::Result;
use lockstep_core::error::Policy;
use lockstep_core::source::CheckRows;
use tokio::time::Instant;

use crate::audit::Audit;
use crate::bookmark::Bookmark;
use crate::report::{Difference, Drift, SinkReport, State, TableReport};
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

//! Rows that are proven to differ are mended, on record before and after; what a process left that was killed is found out.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::source::CheckRows;

use super::{AT_ONCE, Found, Key, PAUSE, Pass, TRIES, found, now_micros, patiently};
use crate::audit::{Audit, Entry, Stage};
use crate::report::Drift;
use crate::{Compared, Ends, Outcome};

impl Pass {
    /// Mends what has been proven to differ, if it is to be.
    pub(super) async fn mend(&self, ends: &dyn Ends, proven: Found) -> Result<()> {
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

    /// Takes in what the one before had mended beyond its bookmark, and finds out what became of what it was about to mend.
    /// What differs still is found again.
    pub(super) async fn catch_up(&self, ends: &dyn Ends, audited: u64) -> Result<()> {
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

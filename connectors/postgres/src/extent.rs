//! How much of an initial copy is durable in every sink, kept beside the state file: a copy that is interrupted goes on
//! from there.
//!
//! What a later snapshot shows of the pages that were copied is either a row that was there, at the same place, or one that
//! somebody has written since. So what is left to read are the other pages, and of these the rows that are newer than
//! the first snapshot: an UPDATE may have carried a row from a page that was not copied into one that was. A table whose
//! file was replaced meanwhile (VACUUM FULL, CLUSTER, a rewriting ALTER TABLE) is read as a whole.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_core::feedback::Feedback;
use lockstep_core::folder::Folder;
use lockstep_core::position::Lsn;
use serde::{Deserialize, Serialize};

/// Between two looks at what has become durable. Each look that finds some costs a disk flush.
const LOOK: Duration = Duration::from_millis(200);

/// What is on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// Where the log goes on behind the copy.
    pub consistent_point: Lsn,
    /// The snapshot saw all transactions below this one.
    pub xmin: u64,
    /// By `schema.table`.
    pub tables: BTreeMap<String, Table>,
}

/// A table of a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    pub relation: u32,
    /// The table itself, or the leaves of a partitioned one.
    pub heaps: Vec<Heap>,
}

/// Something with pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heap {
    pub relation: u32,
    /// Its file: another one has its rows elsewhere.
    pub file: u32,
    /// What is durable, in order, and with a gap between each two.
    pub done: Vec<Pages>,
}

/// Pages `from` up to but not including `to`; without a `to`, all from there on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pages {
    pub from: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<i64>,
}

impl Heap {
    /// Takes pages in.
    fn add(&mut self, pages: Pages) {
        self.done.push(pages);
        self.done.sort_unstable();
        self.done.dedup_by(|next, before| match before.to {
            Some(to) if to < next.from => false,
            Some(to) => {
                before.to = next.to.map(|next| next.max(to));
                true
            }
            None => true,
        });
    }

    fn is_complete(&self) -> bool {
        self.done == [Pages { from: 0, to: None }]
    }
}

impl Table {
    pub fn is_complete(&self) -> bool {
        self.heaps.iter().all(Heap::is_complete)
    }

    /// What is left to read, as a condition; `None` when that is all of it. It holds for as long as the reading takes:
    /// files are compared when it is applied.
    pub fn rest(&self, xmin: u64) -> Option<String> {
        let mut cases = String::new();
        for heap in self.heaps.iter().filter(|heap| !heap.done.is_empty()) {
            let pages: Vec<String> = heap.done.iter().map(condition).collect();
            // A query of its own, so that it is asked once and not for every row.
            let _ = write!(
                cases,
                " WHEN {0} THEN (SELECT pg_catalog.pg_relation_filenode({0}::regclass)) = {1} AND ({2})",
                heap.relation,
                heap.file,
                pages.join(" OR ")
            );
        }
        if cases.is_empty() {
            return None;
        }
        // Numbers of transactions go round at 2^32; a row is older when its transaction is one of the 2^31 before. The
        // conversion by way of text works on all versions.
        let older = format!(
            "({} - xmin::text::bigint + 4294967296) % 4294967296 BETWEEN 1 AND 2147483647",
            xmin % (1 << 32)
        );
        Some(format!(
            "NOT (CASE tableoid::bigint{cases} ELSE false END AND {older})"
        ))
    }
}

fn condition(pages: &Pages) -> String {
    match pages.to {
        None => format!("ctid >= '({},0)'::tid", pages.from),
        Some(to) => format!(
            "ctid >= '({},0)'::tid AND ctid < '({to},0)'::tid",
            pages.from
        ),
    }
}

/// Keeps an [`Extent`] while the copy runs. Clones share it.
#[derive(Clone)]
pub struct Recorder(Arc<Mutex<Record>>);

struct Record {
    folder: Folder,
    extent: Extent,
    /// What has been sent and is not known to be durable, by its mark.
    sent: VecDeque<Sent>,
    last_mark: u64,
    /// Nothing more will be sent.
    whole: bool,
}

struct Sent {
    mark: u64,
    table: String,
    heap: u32,
    pages: Pages,
}

/// The name of the document in the source's state directory.
const NAME: &str = "copy.json";

/// What an earlier copy left; `None` when there is nothing that can be read, which costs no more than a whole copy.
pub fn read(folder: &Folder) -> Option<Extent> {
    let bytes = folder.read(NAME).ok()??;
    match serde_json::from_slice(&bytes) {
        Ok(extent) => Some(extent),
        Err(error) => {
            let path = folder.join(NAME);
            tracing::warn!(path = %path.display(), %error, "cannot be read; the tables are copied from the beginning");
            None
        }
    }
}

/// Removes what an earlier copy left.
pub fn remove(folder: &Folder) {
    if let Err(error) = folder.remove(NAME) {
        // It names the copy that it belongs to, so it does no harm.
        tracing::warn!(%error, "what an earlier copy left cannot be removed");
    }
}

impl Recorder {
    /// For a copy of these tables, of which nothing is durable.
    pub fn new(folder: &Folder, consistent_point: Lsn) -> Self {
        Recorder(Arc::new(Mutex::new(Record {
            folder: folder.clone(),
            extent: Extent {
                consistent_point,
                ..Extent::default()
            },
            sent: VecDeque::new(),
            last_mark: 0,
            whole: false,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What will be copied, and what the snapshot sees.
    pub fn plan(&self, tables: BTreeMap<String, Table>) {
        self.lock().extent.tables = tables;
    }

    /// The snapshot sees all transactions below `xmin`.
    pub fn saw(&self, xmin: u64) {
        self.lock().extent.xmin = xmin;
    }

    /// Pages have been sent, all of them. The mark to send behind them.
    pub fn sent(&self, table: String, heap: u32, pages: Pages) -> u64 {
        let mut record = self.lock();
        record.last_mark += 1;
        let mark = record.last_mark;
        record.sent.push_back(Sent {
            mark,
            table,
            heap,
            pages,
        });
        mark
    }

    /// Everything has been sent.
    pub fn whole(&self) {
        self.lock().whole = true;
    }

    /// Everything before `mark` is durable. What is to be written, if there is news.
    fn durable(&self, mark: u64) -> Option<Extent> {
        let mut record = self.lock();
        let mut news = false;
        while let Some(sent) = record.sent.pop_front_if(|sent| sent.mark <= mark) {
            let table = record.extent.tables.get_mut(&sent.table);
            let heaps = table.into_iter().flat_map(|table| &mut table.heaps);
            for heap in heaps.filter(|heap| heap.relation == sent.heap) {
                heap.add(sent.pages);
            }
            news = true;
        }
        news.then(|| record.extent.clone())
    }

    fn is_done(&self) -> bool {
        let record = self.lock();
        record.whole && record.sent.is_empty()
    }

    /// Writes down what becomes durable, until all of it is.
    pub async fn keep(self, feedback: Feedback) {
        let mut told = false;
        while !self.is_done() {
            tokio::time::sleep(LOOK).await;
            let Some(extent) = self.durable(feedback.marked()) else {
                continue;
            };
            let folder = self.lock().folder.clone();
            let written = tokio::task::spawn_blocking(move || folder.replace(NAME, &extent)).await;
            // The copy goes on: without the record, an interrupted one begins anew, and nothing is lost.
            if let Ok(Err(error)) = written
                && !std::mem::replace(&mut told, true)
            {
                tracing::warn!(%error, "if the copy is interrupted, more of it has to be read again");
            }
        }
    }
}

#[cfg(test)]
mod tests;

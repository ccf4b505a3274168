//! The index writer: batches in, commits out. Blocking.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::tantivy::directory::MmapDirectory;
use ::tantivy::indexer::IndexWriterOptions;
use ::tantivy::merge_policy::LogMergePolicy;
use ::tantivy::{Index, IndexReader, IndexWriter, ReloadPolicy, TantivyError, Term};
use lockstep_core::batch::{Batch, Phase};
use lockstep_core::durable::Delivered;
use lockstep_core::error::At;
use lockstep_core::position::Lsn;
use lockstep_core::progress::Progress as Reached;
use lockstep_core::refusal::{Refusals, reason};
use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::fold::{Part, Write, fold};
use lockstep_encode::plans::Plans;

use super::config::Config;
use super::erase::Erase;
use super::layout::{Held, Layout, Table};
use super::progress::Progress;
use super::storage;
use crate::document::{Incomplete, fields};

/// How long to wait for the lock: a sink that was dropped a moment ago gives it back when its thread ends.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Bytes of memory per document of the largest segments that are merged. What a merge holds grows with the documents, and
/// with the files, which are mapped: with 32 MiB and ten million documents this keeps it below what indexing takes.
const MEMORY_PER_MERGED: usize = 128;

/// Segments of fewer documents count as equally large when they are merged. A commit of hot rows leaves a hundred documents: with
/// the library's 10,000 those of a hundred commits would be written anew every seven.
const SMALLEST_LAYER: u32 = 500;

/// The one writer of an index.
pub(super) struct Engine {
    writer: IndexWriter,
    reader: IndexReader,
    layout: Layout,
    tables: Plans<Arc<Table>>,
    /// Of everything applied, committed or not.
    progress: Progress,
    /// Keys written since the last commit, by hash: the reader does not see them.
    uncommitted: HashSet<u64>,
    /// A table was truncated since the last commit: the reader still sees its rows.
    truncated: bool,
    /// Bytes of documents applied since the last commit.
    uncommitted_bytes: usize,
    /// The reader has not seen the last commit.
    reader_is_behind: bool,
    /// What the batch in hand has written, when it may read it.
    own: Option<OwnWrites>,
    incomplete: Incomplete,
}

/// Writes of one batch.
#[derive(Default)]
struct OwnWrites {
    /// What was written under each key since the last TRUNCATE of the table that it came from.
    documents: HashMap<Term, OwnWrite>,
    /// Tables of the database that were truncated.
    truncated: Vec<String>,
}

struct OwnWrite {
    /// The table of the database that it came from.
    origin: String,
    /// None where it was deleted.
    document: Option<String>,
}

impl OwnWrites {
    fn put(&mut self, table: &Table, key: Term, document: Option<String>) {
        let origin = table.origin.clone();
        self.documents.insert(key, OwnWrite { origin, document });
    }

    fn truncate(&mut self, table: &Table) {
        self.documents.retain(|_, own| own.origin != table.origin);
        self.truncated.push(table.origin.clone());
    }

    /// The document of a key, if the batch has written or deleted it.
    fn get(&self, table: &Table, key: &Term) -> Option<Option<String>> {
        match self.documents.get(key) {
            Some(own) => Some(own.document.clone()),
            None => self.truncated.contains(&table.origin).then_some(None),
        }
    }
}

/// Opens the index in a folder, or creates it.
fn open_or_create(path: &Path) -> Result<(Index, Layout)> {
    let place = || format!("index {}", path.display());
    fs::create_dir_all(path).map_err(|error| {
        Error::new(ErrorKind::Storage, "cannot make the folder of the index")
            .source(error)
            .remedy("choose a `path` that may be written")
            .at(place())
    })?;
    let (schema, layout) = Layout::new();
    let directory = MmapDirectory::open(path)
        .map_err(|error| storage("open the index", error.into()))
        .at(place())?;
    let index = Index::open_or_create(directory, schema)
        .map_err(|error| storage("open the index", error))
        .at(place())?;
    Ok((index, layout))
}

/// The position of the last commit.
pub(super) fn committed(index: &Index) -> Result<Progress> {
    let metas = index
        .load_metas()
        .map_err(|error| storage("read the state of the index", error))?;
    Progress::read(metas.payload.as_deref())
}

impl Engine {
    /// Takes the lock of the index.
    ///
    /// # Errors
    /// `Busy` when another writer has it.
    pub(super) fn open(config: &Config) -> Result<Self> {
        let (index, layout) = open_or_create(&config.path)?;
        let writer = lock(&index, config).at(format!("index {}", config.path.display()))?;
        // What a process left that was killed in the middle of a commit: the same changes have the same numbers when they come
        // again, and so would the files with their deletions.
        writer
            .garbage_collect_files()
            .wait()
            .map_err(|error| storage("remove what is no part of the index", error))?;
        // After the lock: nobody else moves it from here on.
        let progress = committed(&index)?;
        let reader = index
            .reader_builder()
            .reload_policy(ReloadPolicy::Manual)
            .try_into()
            .map_err(|error| storage("read the index", error))?;
        Ok(Engine {
            writer,
            reader,
            layout,
            tables: Plans::new(),
            progress,
            uncommitted: HashSet::new(),
            truncated: false,
            uncommitted_bytes: 0,
            reader_is_behind: false,
            own: None,
            incomplete: config.incomplete,
        })
    }

    /// The position reached; right after opening that is the committed one.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Bytes of documents that the next commit covers.
    pub(super) fn uncommitted_bytes(&self) -> usize {
        self.uncommitted_bytes
    }

    /// Applies a batch. It becomes durable and visible with the next commit.
    ///
    /// # Errors
    /// When a row cannot be written. The engine must then be dropped: part of the batch is applied.
    pub(super) fn apply(&mut self, batch: &Batch) -> Result<Delivered> {
        let mut delivered = Delivered::default();
        let reached = self.progress.get(&batch.source);
        let rest = beyond(batch, reached.as_ref(), &mut delivered);
        let batch = rest.as_ref().unwrap_or(batch);
        // Of the stream all that is there has been left out.
        let passed = reached.filter(|_| batch.phase != Phase::Stream);
        let passed = passed.map(|reached| reached.last().commit);
        let parts = fold(batch)?;
        let writes = || parts.iter().flat_map(Part::writes);
        self.settle(batch, writes())?;
        // In more than one part, a write may need what an earlier one of the batch wrote.
        self.own = (parts.len() > 1).then(OwnWrites::default);
        let mut refusals = Refusals::default();
        for write in writes() {
            let about =
                |error: Error| error.about(&batch.source, &write.schema().id, write.position());
            let done = self.write(batch, write, passed).map_err(about);
            delivered += refusals.take(done)?.unwrap_or_default();
        }
        refusals.finish()?;
        if batch.phase == Phase::Stream
            && let Some(last) = batch.changes().last()
        {
            let held = batch.progress_at(last);
            self.progress.advance(&batch.source, &held);
        }
        self.own = None;
        Ok(delivered)
    }

    fn write(
        &mut self,
        batch: &Batch,
        write: &Write<'_>,
        passed: Option<Lsn>,
    ) -> Result<Delivered> {
        let mut delivered = Delivered::default();
        match write {
            Write::Upsert {
                key,
                schema,
                row,
                missing_from,
                position,
                ..
            } => {
                let table = self.table(schema);
                let key_term = self.layout.key(&table, key)?;
                if self.is_newer(passed, position.commit, &key_term)? {
                    delivered.stale = 1;
                    return Ok(delivered);
                }
                let row = row.row(batch);
                let mut document = Vec::new();
                let incomplete = match missing_from {
                    None => table.documents.write(row, &mut document).map(|()| false),
                    Some(from) => self.splice(&table, from, |held| {
                        table.documents.splice(row, &fields(held)?, &mut document)
                    }),
                }
                .at(format!("row {key}"))
                .at(format!("table {}", table.name))?;
                delivered.bytes = document.len() as u64;
                delivered.written = 1;
                delivered.incomplete = u64::from(incomplete);
                self.put(&table, key_term, key, position.commit, &document)?;
            }
            Write::Delete {
                key,
                schema,
                position,
                ..
            } => {
                let table = self.table(schema);
                let key_term = self.layout.key(&table, key)?;
                if self.is_newer(passed, position.commit, &key_term)? {
                    delivered.stale = 1;
                    return Ok(delivered);
                }
                self.uncommitted.insert(hash(&key_term));
                if let Some(own) = &mut self.own {
                    own.put(&table, key_term.clone(), None);
                }
                self.erase(key_term)?;
                delivered.written = 1;
            }
            Write::Truncate { schema, .. } => {
                let table = self.table(schema);
                self.erase(self.layout.rows_of(&table))?;
                self.truncated = true;
                if let Some(own) = &mut self.own {
                    own.truncate(&table);
                }
                delivered.written = 1;
            }
        }
        Ok(delivered)
    }

    /// Makes everything applied durable and visible, with the position it stands for.
    ///
    /// # Errors
    /// When the disk refuses. The engine must then be dropped.
    pub(super) fn commit(&mut self) -> Result<()> {
        let payload = self.progress.write()?;
        let failed = |error| storage("commit", error);
        let mut prepared = self.writer.prepare_commit().map_err(failed)?;
        prepared.set_payload(&payload);
        prepared.commit().map_err(failed)?;
        self.uncommitted.clear();
        self.truncated = false;
        self.uncommitted_bytes = 0;
        self.reader_is_behind = true;
        Ok(())
    }

    /// Whether a batch needs documents that the reader does not see before the next commit.
    ///
    /// # Errors
    /// As for [`Engine::apply`].
    pub(super) fn needs_commit(&mut self, batch: &Batch) -> Result<bool> {
        let reached = self.progress.get(&batch.source);
        let rest = beyond(batch, reached.as_ref(), &mut Delivered::default());
        let batch = rest.as_ref().unwrap_or(batch);
        let parts = fold(batch)?;
        self.needs_hidden(batch, parts.iter().flat_map(Part::writes))
    }

    /// Commits first when a batch needs documents that the reader does not see yet: at this point, and not in the middle of a
    /// batch, the index is the state at its position.
    fn settle<'w>(
        &mut self,
        batch: &Batch,
        writes: impl Iterator<Item = &'w Write<'w>>,
    ) -> Result<()> {
        match self.needs_hidden(batch, writes)? {
            true => self.commit(),
            false => Ok(()),
        }
    }

    fn needs_hidden<'w>(
        &mut self,
        batch: &Batch,
        writes: impl Iterator<Item = &'w Write<'w>>,
    ) -> Result<bool> {
        for write in writes {
            let Write::Upsert {
                missing_from: Some(from),
                schema,
                ..
            } = write
            else {
                continue;
            };
            let table = self.table(schema);
            let about = |error: Error| error.about(&batch.source, &schema.id, write.position());
            let key = self.layout.key(&table, from).map_err(about)?;
            if self.is_hidden(&key) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the reader may not see the document of a key as it is.
    fn is_hidden(&self, key: &Term) -> bool {
        self.truncated || self.uncommitted.contains(&hash(key))
    }

    fn table(&mut self, schema: &Arc<TableSchema>) -> Arc<Table> {
        Arc::clone(
            self.tables
                .get(schema, |schema| Arc::new(Table::new(schema))),
        )
    }

    fn put(
        &mut self,
        table: &Table,
        key: Term,
        id: &str,
        version: Lsn,
        document: &[u8],
    ) -> Result<()> {
        let source = std::str::from_utf8(document).map_err(|error| {
            Error::new(ErrorKind::Refused, format!("row {id} is not UTF-8"))
                .because(reason::ENCODING)
                .source(error)
                .remedy("leave the column out with a `project` transform")
                .at(format!("table {}", table.name))
        })?;
        let made = self.layout.document(table, &key, id, version, source);
        self.uncommitted.insert(hash(&key));
        self.uncommitted_bytes += source.len();
        if let Some(own) = &mut self.own {
            own.put(table, key.clone(), Some(source.to_owned()));
        }
        self.erase(key)?;
        self.writer
            .add_document(made)
            .map_err(|error| storage("add a document", error))?;
        Ok(())
    }

    /// Deletes the documents with a term, as of now.
    fn erase(&self, term: Term) -> Result<()> {
        let erased = self.writer.delete_query(Box::new(Erase(term)));
        erased.map_err(|error| storage("delete a document", error))?;
        Ok(())
    }

    /// Whether the index holds a newer version. Asked only for rows of a later copy that are older than what has `passed`, and for
    /// changes that are written again.
    fn is_newer(&mut self, passed: Option<Lsn>, commit: Lsn, key: &Term) -> Result<bool> {
        if passed.is_none_or(|passed| passed <= commit) {
            return Ok(false);
        }
        if self.is_hidden(key) {
            // A copy does not move the position, so that a commit in the middle of it is as good as one at its end.
            self.commit()?;
        }
        let held = self.read(key)?;
        Ok(held.is_some_and(|held| held.version > commit))
    }

    /// Calls `splice` with the document under `from`. Whether the row is to be written without some of its columns.
    fn splice(
        &mut self,
        table: &Table,
        from: &str,
        splice: impl FnOnce(&str) -> Result<Vec<Arc<str>>>,
    ) -> Result<bool> {
        let key = self.layout.key(table, from)?;
        let own = self.own.as_ref().and_then(|own| own.get(table, &key));
        let held = match own {
            Some(own) => own,
            None => self.read(&key)?.map(|held| held.source),
        };
        let absent = splice(held.as_deref().unwrap_or("{}"))?;
        if absent.is_empty() {
            return Ok(false);
        }
        let what = format!(
            "an update left {} unchanged, and the document {from} of the index does not hold it",
            absent.join(", ")
        );
        match self.incomplete {
            Incomplete::Error => Err(Error::new(ErrorKind::Refused, what).because(reason::INCOMPLETE).remedy(
                "load the row with `lockstep snapshot FILE --table T`, then discard the letter; REPLICA IDENTITY FULL on the table keeps it from happening",
            )),
            Incomplete::Write => {
                tracing::warn!(table = table.name, "{what}: it is written without it");
                Ok(true)
            }
        }
    }

    /// The document of a key as of the last commit.
    fn read(&mut self, key: &Term) -> Result<Option<Held>> {
        if self.reader_is_behind {
            self.reader
                .reload()
                .map_err(|error| storage("read the index", error))?;
            self.reader_is_behind = false;
        }
        self.layout.find(&self.reader.searcher(), key.clone())
    }
}

/// The part of a batch that the index does not hold, when that is not all of it.
fn beyond(batch: &Batch, reached: Option<&Reached>, delivered: &mut Delivered) -> Option<Batch> {
    let reached = reached?;
    let first = batch.changes().first()?;
    let is_behind = batch.position(first) > reached.last() && batch.standing.is_none();
    if batch.phase != Phase::Stream || is_behind {
        return None;
    }
    let changes: Vec<_> = batch
        .changes()
        .iter()
        .filter(|change| !batch.is_held(change, reached))
        .copied()
        .collect();
    if changes.len() == batch.changes().len() {
        return None;
    }
    delivered.stale += (batch.changes().len() - changes.len()) as u64;
    Some(batch.with_changes(changes))
}

fn lock(index: &Index, config: &Config) -> Result<IndexWriter> {
    let options = IndexWriterOptions::builder()
        .num_worker_threads(1)
        .memory_budget_per_thread(config.memory.bytes())
        .num_merge_threads(1)
        .build();
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        match index.writer_with_options(options.clone()) {
            Ok(writer) => {
                let mut policy = LogMergePolicy::default();
                policy.set_max_docs_before_merge(config.memory.bytes() / MEMORY_PER_MERGED);
                policy.set_min_layer_size(SMALLEST_LAYER);
                writer.set_merge_policy(Box::new(policy));
                return Ok(writer);
            }
            Err(TantivyError::LockFailure(..)) if Instant::now() < give_up => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(error) => return Err(storage("open the index for writing", error)),
        }
    }
}

fn hash(key: &Term) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

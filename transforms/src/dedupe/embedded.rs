//! The judge's memory on disk: a fjall database in the transform's directory.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `claims` | digest of an idempotency key | [`History`] of [`Claim`]s |
//! | `rows` | digest of a row | [`History`] of [`Standing`]s; only rows that were ever held |
//! | `meta` | `format`, `sequence`, `source/<identity>`, `log/<name of a source>`, `given-up/<number>` | big-endian numbers |
//!
//! What a batch changes is gathered in memory and written as one atomic batch, handed to the operating system before
//! `apply` returns. What has left the window is removed when its table files are compacted (see [`super::expiry`]):
//! it costs no index, no write of its own and no pause, and what is still there counts for nothing because every look-up
//! compares times.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fjall::compaction::Leveled;
use fjall::config::PartitioningPolicy;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use lockstep_core::position::{SourceIdentity, SourceInfo};
use lockstep_core::transform::StateSize;
use lockstep_core::{Error, ErrorKind, Result};

use super::digest::Digest;
use super::expiry::{Expiry, Kind};
use super::history::{Claim, Fact, History, Moment, Standing};
use super::judge::{self, Case, Memory, Stood, Verdict, Window};
use super::notes::{Entry, Logs, Notes, Table};
use super::sieve::Sieve;

/// Bytes of writes held in memory per keyspace before they become a file.
const CLAIMS_MEMTABLE: u64 = 2 << 20;
const SMALL_MEMTABLE: u64 = 1 << 20;
/// Bytes of files held in memory.
const CACHE: u64 = 2 << 20;
/// Bytes of the filters in front of the keyspaces: made for 3.3 million keys, and for 420 000 held rows; beyond that they
/// let more look-ups through.
const CLAIMS_SIEVE: usize = 4 << 20;
const ROWS_SIEVE: usize = 512 << 10;
/// fjall's smallest journal.
const JOURNAL: u64 = 64 << 20;
/// One flushes while the other compacts.
const WORKERS: usize = 2;
/// New files that wait before they are merged; fjall slows writers down at 20.
const FILES_BEFORE_MERGE: u8 = 10;
/// Changes with the layout of the values.
const FORMAT: u64 = 1;

const CLAIMS: &str = "claims";
const ROWS: &str = "rows";
const META: &str = "meta";

/// The memory.
pub(crate) struct Embedded {
    database: Database,
    claims: Keyspace,
    rows: Keyspace,
    meta: Keyspace,
    path: PathBuf,
    expiry: Arc<Expiry>,
    window: Window,
    logs: Logs,
    claims_sieve: Sieve,
    rows_sieve: Sieve,
    sequence: u64,
    pending: Notes,
}

impl Embedded {
    /// Opens the memory in `path`, or makes an empty one.
    ///
    /// # Errors
    /// Of kind `Storage`.
    pub(crate) fn open(path: &Path, window: Window) -> Result<Self> {
        let failed = |error: fjall::Error| open_error(path, error);
        std::fs::create_dir_all(path).map_err(|error| open_error(path, error.into()))?;
        let expiry = Arc::new(Expiry::new(window));
        let filters = Arc::clone(&expiry);
        let database = Database::builder(path)
            .cache_size(CACHE)
            .max_journaling_size(JOURNAL)
            .worker_threads(WORKERS)
            .with_compaction_filter_factories(Arc::new(move |keyspace| match keyspace {
                CLAIMS => Some(Expiry::factory(&filters, Kind::Claims)),
                ROWS => Some(Expiry::factory(&filters, Kind::Rows)),
                _ => None,
            }))
            .open()
            .map_err(failed)?;
        let keyspace = |name: &str, memtable: u64| {
            database
                .keyspace(name, || options(memtable))
                .map_err(failed)
        };
        let (claims, rows) = (
            keyspace(CLAIMS, CLAIMS_MEMTABLE)?,
            keyspace(ROWS, SMALL_MEMTABLE)?,
        );
        let mut store = Embedded {
            claims_sieve: Sieve::new(CLAIMS_SIEVE, claims.is_empty().map_err(failed)?),
            rows_sieve: Sieve::new(ROWS_SIEVE, rows.is_empty().map_err(failed)?),
            claims,
            rows,
            meta: keyspace(META, SMALL_MEMTABLE)?,
            database,
            path: path.to_owned(),
            expiry,
            window,
            logs: Logs::default(),
            sequence: 0,
            pending: Notes::default(),
        };
        store.load()?;
        Ok(store)
    }

    fn load(&mut self) -> Result<()> {
        match self.number("format")? {
            Some(FORMAT) => {}
            None => self.set_number("format", FORMAT)?,
            Some(other) => {
                return Err(self.corrupt(format!(
                    "it is of format {other}, and this version reads format {FORMAT}"
                )));
            }
        }
        self.sequence = self.number("sequence")?.unwrap_or(0);
        self.load_logs()
    }

    fn load_logs(&mut self) -> Result<()> {
        for (identity, number) in self.numbers(SOURCE_PREFIX)? {
            let identity = identity.parse().map_err(|_| self.unreadable())?;
            self.logs.numbers.insert(identity, number);
        }
        self.logs.current = self.numbers(LOG_PREFIX)?.into_iter().collect();
        for (_, number) in self.numbers(GIVEN_UP_PREFIX)? {
            self.logs.given_up.insert(number);
            self.expiry.give_up(number);
        }
        Ok(())
    }

    /// The numbers of logs below a prefix, with what follows it.
    fn numbers(&self, prefix: &str) -> Result<Vec<(String, u16)>> {
        let read = |(key, value): (fjall::UserKey, fjall::UserValue)| {
            let name = std::str::from_utf8(&key[prefix.len()..]).ok()?;
            let number = u64::from_be_bytes(value.as_ref().try_into().ok()?);
            Some((name.to_owned(), u16::try_from(number).ok()?))
        };
        self.meta
            .prefix(prefix)
            .map(|guard| {
                let pair = guard.into_inner().map_err(|error| self.failed(error))?;
                read(pair).ok_or_else(|| self.unreadable())
            })
            .collect()
    }

    /// The number of the log that a source reads. A new one is written down at once, and the one before it is given up.
    pub(crate) fn log(&mut self, source: &SourceInfo) -> Result<u16> {
        if let Some(number) = self.logs.read_by(&source.name, &source.identity) {
            return Ok(number);
        }
        let number = self.number_of(&source.identity)?;
        let mut logs = self.logs.clone();
        let given_up = logs.switch(&source.name, number);
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        let bytes = |number: u16| u64::from(number).to_be_bytes();
        batch.insert(
            &self.meta,
            format!("{LOG_PREFIX}{}", source.name),
            bytes(number),
        );
        batch.remove(&self.meta, format!("{GIVEN_UP_PREFIX}{number}"));
        if let Some(log) = given_up {
            batch.insert(&self.meta, format!("{GIVEN_UP_PREFIX}{log}"), bytes(log));
        }
        batch.commit().map_err(|error| self.failed(error))?;
        self.logs = logs;
        self.expiry.take_up(number);
        if let Some(log) = given_up {
            self.expiry.give_up(log);
        }
        Ok(number)
    }

    fn number_of(&mut self, identity: &SourceIdentity) -> Result<u16> {
        if let Some(number) = self.logs.numbers.get(identity) {
            return Ok(*number);
        }
        let number = u16::try_from(self.logs.numbers.len()).map_err(|_| {
            self.corrupt("it has seen more than 65535 source identities".to_owned())
        })?;
        let key = format!("{SOURCE_PREFIX}{identity}");
        self.set_number(&key, u64::from(number))?;
        self.logs.numbers.insert(identity.clone(), number);
        Ok(number)
    }

    /// See [`judge::all`]; what was found out is written when this returns.
    pub(crate) fn judge(&mut self, cases: &[Case], verdicts: &mut Vec<Verdict>) -> Result<()> {
        self.begin();
        let window = self.window;
        judge::all(self, &window, cases, verdicts)?;
        self.commit()?;
        if let Some(last) = cases.iter().rev().find_map(Case::at) {
            self.expiry.advance(last.source, last.micros);
        }
        Ok(())
    }

    /// Forgets what the batch before has read, or left behind by failing.
    fn begin(&mut self) {
        self.pending.clear(self.sequence);
    }

    /// Writes what the batch has changed, atomically, to the operating system.
    ///
    /// # Errors
    /// Of kind `Storage`, or `Full` when the disk is; then nothing of it counts.
    fn commit(&mut self) -> Result<()> {
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        let mut bytes = Vec::new();
        put(&mut batch, &self.claims, &self.pending.claims, &mut bytes);
        let claims = batch.len();
        put(&mut batch, &self.rows, &self.pending.rows, &mut bytes);
        let rows = batch.len() - claims;
        if self.pending.sequence != self.sequence {
            batch.insert(&self.meta, "sequence", self.pending.sequence.to_be_bytes());
        }
        if batch.is_empty() {
            return Ok(());
        }
        batch.commit().map_err(|error| self.failed(error))?;
        self.sequence = self.pending.sequence;
        self.expiry.count(self.sequence);
        note(&mut self.claims_sieve, &self.pending.claims);
        note(&mut self.rows_sieve, &self.pending.rows);
        let stepped = self.claims_sieve.step(&self.claims, claims);
        stepped.map_err(|error| self.failed(error))?;
        let stepped = self.rows_sieve.step(&self.rows, rows);
        stepped.map_err(|error| self.failed(error))
    }

    /// Makes everything safe against power loss.
    pub(crate) fn sync(&self) -> Result<()> {
        self.database
            .persist(PersistMode::SyncAll)
            .map_err(|error| self.failed(error))
    }

    /// How much there is, about: what has left the window counts until it is removed.
    pub(crate) fn size(&self) -> StateSize {
        StateSize {
            keys: self.claims.approximate_len() as u64,
            held: self.rows.approximate_len() as u64,
            bytes: self.database.disk_space().ok(),
        }
    }

    fn number(&self, key: &str) -> Result<Option<u64>> {
        let value = self.meta.get(key).map_err(|error| self.failed(error))?;
        let Some(value) = value else { return Ok(None) };
        match value.as_ref().try_into() {
            Ok(bytes) => Ok(Some(u64::from_be_bytes(bytes))),
            Err(_) => Err(self.corrupt(format!("`{key}` in it is no number"))),
        }
    }

    fn set_number(&self, key: &str, number: u64) -> Result<()> {
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        batch.insert(&self.meta, key, number.to_be_bytes());
        batch.commit().map_err(|error| self.failed(error))
    }

    fn failed(&self, error: fjall::Error) -> Error {
        let kind = kind_of(&error);
        let remedy = match kind {
            ErrorKind::Full => {
                "make room on the disk of the state directory; nothing was acknowledged"
            }
            _ => "make sure that the disk is writable, then start again; nothing was acknowledged",
        };
        Error::new(
            kind,
            format!("the dedupe store {} failed", self.path.display()),
        )
        .source(error)
        .remedy(remedy)
    }

    fn unreadable(&self) -> Error {
        self.corrupt("a source identity in it cannot be read".to_owned())
    }

    fn corrupt(&self, problem: String) -> Error {
        Error::new(
            ErrorKind::Storage,
            format!("the dedupe store {} cannot be used: {problem}", self.path.display()),
        )
        .remedy("restore the directory, or move it away to begin with an empty memory: repeats of older keys then pass")
    }
}

/// Look-ups that reach the store are rare and writes the rule, so files pile up before they are merged: each merge
/// rewrites most of what is there. Filters and indices are read in parts of a few KiB: whole ones would be megabytes, and
/// push each other out of the cache.
fn options(memtable: u64) -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .max_memtable_size(memtable)
        .compaction_strategy(Arc::new(
            Leveled::default().with_l0_threshold(FILES_BEFORE_MERGE),
        ))
        .filter_block_partitioning_policy(PartitioningPolicy::all(true))
        .index_block_partitioning_policy(PartitioningPolicy::all(true))
}

const SOURCE_PREFIX: &str = "source/";
const LOG_PREFIX: &str = "log/";
const GIVEN_UP_PREFIX: &str = "given-up/";

/// A write in the background that failed does not say why: opened anew, the store does.
fn kind_of(error: &fjall::Error) -> ErrorKind {
    match error {
        fjall::Error::Poisoned => ErrorKind::Full,
        _ => ErrorKind::of_storage(error),
    }
}

fn open_error(path: &Path, error: fjall::Error) -> Error {
    let locked = matches!(error, fjall::Error::Locked);
    let error = Error::new(
        kind_of(&error),
        format!("the dedupe store {} cannot be opened", path.display()),
    )
    .source(error);
    if locked {
        error.remedy("another process works in this directory: stop it, or give this pipeline a state directory of its own")
    } else {
        error.remedy("make sure that the directory is writable and the disk has room")
    }
}

fn put<F: Fact>(
    batch: &mut fjall::OwnedWriteBatch,
    keyspace: &Keyspace,
    table: &Table<F>,
    bytes: &mut Vec<u8>,
) {
    for (digest, entry) in table.iter().filter(|(_, entry)| entry.changed) {
        bytes.clear();
        entry.history.write(bytes);
        batch.insert(keyspace, digest.0, bytes.as_slice());
    }
}

fn note<F>(sieve: &mut Sieve, table: &Table<F>) {
    for (digest, _) in table.iter().filter(|(_, entry)| entry.changed) {
        sieve.add(digest);
    }
}

impl Embedded {
    fn load_claims(&mut self, key: Digest) -> Result<&mut Entry<Claim>> {
        if !self.pending.claims.contains_key(&key) {
            let known = match self.claims_sieve.may_hold(&key) {
                true => self.find(&self.claims, key)?,
                false => None,
            };
            let entry = Entry::of(known.unwrap_or_default());
            self.pending.claims.insert(key, entry);
        }
        Ok(self.pending.claims.entry(key).or_default())
    }

    fn find<F: Fact>(&self, keyspace: &Keyspace, digest: Digest) -> Result<Option<History<F>>> {
        let value = keyspace.get(digest.0).map_err(|error| self.failed(error))?;
        let Some(value) = value else { return Ok(None) };
        match History::read(&value) {
            Some(mut history) => {
                if !self.logs.given_up.is_empty() {
                    history.forget(|log| self.logs.counts(log));
                }
                Ok(Some(history))
            }
            None => Err(self.corrupt("a value in it cannot be read".to_owned())),
        }
    }
}

impl Memory for Embedded {
    fn claim(&mut self, key: Digest, now: &Moment) -> Result<Option<Claim>> {
        Ok(self.load_claims(key)?.history.known(now).copied())
    }

    fn add_claim(&mut self, key: Digest, claim: Claim) -> Result<()> {
        let entry = self.load_claims(key)?;
        entry.history.add(claim);
        entry.changed = true;
        Ok(())
    }

    fn standing(&mut self, row: Digest, now: &Moment) -> Result<Stood> {
        if let Some(entry) = self.pending.rows.get(&row) {
            return Ok(Stood::of(&entry.history, now));
        }
        if !self.rows_sieve.may_hold(&row) {
            return Ok(Stood::default());
        }
        // Rows that were never held are the rule, and are not kept in memory.
        let found = self.find(&self.rows, row)?;
        Ok(found.map_or_else(Stood::default, |found| Stood::of(&found, now)))
    }

    fn add_standing(&mut self, row: Digest, standing: Standing) -> Result<()> {
        if !self.pending.rows.contains_key(&row) {
            let known = match self.rows_sieve.may_hold(&row) {
                true => self.find(&self.rows, row)?,
                false => None,
            };
            let entry = Entry::of(known.unwrap_or_default());
            self.pending.rows.insert(row, entry);
        }
        let entry = self.pending.rows.entry(row).or_default();
        entry.history.add(standing);
        entry.changed = true;
        Ok(())
    }

    fn next_sequence(&mut self) -> u64 {
        self.pending.sequence += 1;
        self.pending.sequence
    }

    fn sequence(&self) -> u64 {
        self.pending.sequence
    }
}

#[cfg(test)]
mod tests {
    use lockstep_core::position::{Lsn, Position};

    use super::super::digest::Hasher;
    use super::super::history::State;
    use super::*;

    const HOUR: i64 = 3600 * 1_000_000;

    fn digest(number: u64) -> Digest {
        let mut hasher = Hasher::root("test");
        hasher.part(&number.to_be_bytes());
        hasher.finish()
    }

    fn at(source: u16, micros: i64) -> Moment {
        Moment {
            source,
            position: Position {
                commit: Lsn(1),
                ordinal: 1,
            },
            micros,
        }
    }

    fn claim(store: &mut Embedded, number: u64, at: Moment) {
        let claim = Claim {
            at,
            sequence: store.next_sequence(),
            since: at.micros,
            owner: digest(number),
        };
        store.add_claim(digest(number), claim).expect("a claim");
    }

    fn stand(store: &mut Embedded, number: u64, at: Moment, state: State) {
        let standing = Standing { at, state };
        store
            .add_standing(digest(number), standing)
            .expect("a standing");
    }

    /// Compacts everything, and counts what is left.
    fn compacted(store: &Embedded) -> (usize, usize) {
        for keyspace in [&store.claims, &store.rows] {
            keyspace.rotate_memtable_and_wait().expect("a flush");
            keyspace.major_compact().expect("a compaction");
        }
        let size = |keyspace: &Keyspace| keyspace.len().expect("a count");
        (size(&store.claims), size(&store.rows))
    }

    #[test]
    fn what_left_the_window_is_removed_and_held_rows_stay() {
        let directory = tempfile::tempdir().expect("a directory");
        let window = Window {
            micros: HOUR,
            keys: None,
        };
        let mut store = Embedded::open(directory.path(), window).expect("a store");
        store.begin();
        for number in 0..500 {
            claim(&mut store, number, at(0, 0));
            claim(&mut store, 1000 + number, at(1, 0));
            let state = match number % 5 {
                0 => State::Held(digest(number)),
                1 => State::HeldOnce(digest(number)),
                _ => State::Free,
            };
            stand(&mut store, number, at(0, 0), state);
        }
        store.commit().expect("a write");
        assert_eq!(
            compacted(&store),
            (1000, 500),
            "nothing is known of the time"
        );
        store.expiry.advance(0, 25 * HOUR);
        assert_eq!(compacted(&store), (1000, 500), "replays may still ask");
        store.expiry.advance(0, 26 * HOUR);
        store.begin();
        claim(&mut store, 5000, at(0, 26 * HOUR));
        store.commit().expect("a write");
        assert_eq!(
            compacted(&store),
            (501, 100),
            "the other source has not moved"
        );
    }

    #[test]
    fn a_window_by_count_is_removed_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let window = Window {
            micros: HOUR,
            keys: Some(100),
        };
        let mut store = Embedded::open(directory.path(), window).expect("a store");
        let mut left = 0;
        for part in 0..5 {
            store.begin();
            for number in 5_000 * part..5_000 * (part + 1) {
                claim(&mut store, number, at(0, 0));
            }
            store.commit().expect("a write");
            left = compacted(&store).0;
        }
        assert!((10_100..=10_101).contains(&left), "{left}");
    }

    #[test]
    fn sources_and_the_sequence_come_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let window = Window {
            micros: HOUR,
            keys: None,
        };
        let log = |name: &str, timeline| SourceInfo {
            name: name.into(),
            identity: SourceIdentity {
                system: 7,
                timeline,
                incarnation: timeline - 1,
                database: "a/b".into(),
            },
        };
        let mut store = Embedded::open(directory.path(), window).expect("a store");
        assert_eq!(store.log(&log("a", 1)).expect("a number"), 0);
        assert_eq!(store.log(&log("b", 2)).expect("a number"), 1);
        store.begin();
        claim(&mut store, 1, at(0, 0));
        store.commit().expect("a write");
        drop(store);
        let mut store = Embedded::open(directory.path(), window).expect("a store");
        assert_eq!(store.log(&log("b", 2)).expect("a number"), 1);
        assert_eq!(store.log(&log("c", 3)).expect("a number"), 2);
        store.begin();
        assert_eq!(store.sequence(), 1);
        let knows = |number, store: &mut Embedded| {
            store.begin();
            let claim = store.claim(digest(number), &at(0, 0));
            claim.expect("a look-up").is_some()
        };
        assert!(knows(1, &mut store));
        assert!(!knows(2, &mut store));
        // `a` reads another log: what was known from the first counts no more, also after a restart.
        assert_eq!(store.log(&log("a", 4)).expect("a number"), 3);
        assert!(!knows(1, &mut store));
        drop(store);
        let mut store = Embedded::open(directory.path(), window).expect("a store");
        assert!(!knows(1, &mut store));
        assert_eq!(compacted(&store).0, 0, "and is removed");
    }

    #[test]
    fn a_batch_that_failed_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let window = Window {
            micros: HOUR,
            keys: None,
        };
        let mut store = Embedded::open(directory.path(), window).expect("a store");
        store.begin();
        claim(&mut store, 1, at(0, 0));
        store.begin();
        assert!(
            store
                .claim(digest(1), &at(0, 0))
                .expect("a look-up")
                .is_none()
        );
        assert_eq!(store.sequence(), 0);
    }

    #[test]
    fn another_format_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let window = Window {
            micros: HOUR,
            keys: None,
        };
        let store = Embedded::open(directory.path(), window).expect("a store");
        store.set_number("format", 9).expect("a write");
        drop(store);
        let Err(error) = Embedded::open(directory.path(), window) else {
            panic!("opened");
        };
        assert!(error.to_string().contains("it is of format 9"), "{error}");
    }
}

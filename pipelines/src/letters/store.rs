//! The embedded store: a fjall database in `dead-letters` of the state directory, made when the first letter comes.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `heads` | number of the letter, 8 bytes | [`Head`] as JSON |
//! | `bodies` | number of the letter, 8 bytes | [`Body`] as JSON |
//! | `names` | what tells the change from all others, see [`name`] | number of its letter; empty once it was delivered |
//! | `meta` | `next` | the next number, 8 bytes |
//!
//! A name outlives its letter: a change that comes again after a crash, because its position was not confirmed yet, is
//! known and not written a second time.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use lockstep_core::batch::{Batch, Change};
use lockstep_core::position::{Lsn, Position, SourceIdentity};
use lockstep_core::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::letter::{Body, Head, Letter};

/// Bytes of writes held in memory per keyspace before they become a file.
const MEMTABLE: u64 = 1 << 20;
/// Bytes of files held in memory.
const CACHE: u64 = 1 << 20;
/// fjall's smallest journal.
const JOURNAL: u64 = 64 << 20;

/// How much a store takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Letters.
    pub rows: u64,
    /// Bytes of letters.
    pub bytes: u64,
}

/// See the module's page. Calls wait for the disk at most where they say so.
pub(crate) struct Store {
    folder: PathBuf,
    limits: Limits,
    open: Mutex<Option<Open>>,
    /// It has been looked for, and is not there: nobody else makes it.
    absent: AtomicBool,
    /// A write has found no room. The database takes no more since then: it is opened anew for the next call.
    spoiled: AtomicBool,
}

struct Open {
    database: Database,
    heads: Keyspace,
    bodies: Keyspace,
    names: Keyspace,
    meta: Keyspace,
    next: u64,
    rows: u64,
    bytes: u64,
    places: HashMap<String, Place>,
}

/// What is known of one place without looking.
#[derive(Debug, Default)]
struct Place {
    rows: u64,
    /// By hash of source, table and key: how many letters, and the first of their positions.
    keys: HashMap<u64, (u32, Position)>,
    /// By source: the last change of the stream that lies aside, or lay.
    horizon: HashMap<SourceIdentity, Position>,
}

/// Whether a letter is new, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) id: u64,
    pub(crate) new: bool,
}

impl Store {
    /// A store in `folder`. Nothing is opened or made yet.
    pub(crate) fn new(folder: PathBuf, limits: Limits) -> Self {
        Store {
            folder,
            limits,
            open: Mutex::default(),
            absent: AtomicBool::new(false),
            spoiled: AtomicBool::new(false),
        }
    }

    /// Keeps letters. A change that is kept already is kept once; a row of a copy replaces the one of an earlier copy.
    /// What was kept is with the operating system when this returns, and on disk after [`Store::persist`].
    ///
    /// # Errors
    /// Kind `Storage` when the store is full, `Full` when the disk is. Nothing is kept then.
    pub(crate) fn keep(&self, letters: &[Letter]) -> Result<Vec<Kept>> {
        let mut guard = self.opened(true)?;
        let Some(open) = guard.as_mut() else {
            return Ok(Vec::new());
        };
        let failed = |error| self.failed(error);
        let mut batch = open.database.batch().durability(Some(PersistMode::Buffer));
        let mut kept = Vec::with_capacity(letters.len());
        // The names of this call, which the database does not have yet.
        let mut fresh: HashMap<Vec<u8>, u64> = HashMap::new();
        let mut added = Vec::new();
        let (mut rows, mut bytes, mut next) = (open.rows, open.bytes, open.next);
        for letter in letters {
            let name = name(letter);
            let stored = open.names.get(&name).map_err(failed)?;
            let stored = stored.and_then(|value| number(&value));
            let known = fresh.get(&name).copied().or(stored);
            if let Some(id) = known {
                kept.push(Kept { id, new: false });
                if letter.head.copied && !fresh.contains_key(&name) {
                    let before = self.head(open, id)?;
                    let after = Letter {
                        head: Head {
                            id,
                            attempts: before.as_ref().map_or(1, |before| before.attempts + 1),
                            kept_micros: before
                                .as_ref()
                                .map_or(letter.head.kept_micros, |before| before.kept_micros),
                            bytes: before.map_or(0, |before| before.bytes),
                            ..letter.head.clone()
                        },
                        body: letter.body.clone(),
                    };
                    self.put(open, &mut batch, &after)?;
                }
                continue;
            }
            let id = next;
            next += 1;
            let mut letter = letter.clone();
            letter.head.id = id;
            letter.head.bytes = (json(&letter.head)?.len() + json(&letter.body)?.len()) as u64;
            rows += 1;
            bytes += letter.head.bytes;
            if rows > self.limits.rows || bytes > self.limits.bytes {
                return Err(self.full(open));
            }
            self.put(open, &mut batch, &letter)?;
            batch.insert(&open.names, name.as_slice(), id.to_be_bytes());
            fresh.insert(name, id);
            kept.push(Kept { id, new: true });
            added.push(letter.head);
        }
        batch.insert(&open.meta, "next", next.to_be_bytes());
        batch.commit().map_err(failed)?;
        (open.rows, open.bytes, open.next) = (rows, bytes, next);
        for head in &added {
            open.note(head);
        }
        Ok(kept)
    }

    /// Makes everything safe against power loss. Waits for the disk.
    ///
    /// # Errors
    /// Kind `Storage`.
    pub(crate) fn persist(&self) -> Result<()> {
        match self.opened(false)?.as_ref() {
            Some(open) => open
                .database
                .persist(PersistMode::SyncAll)
                .map_err(|error| self.failed(error)),
            None => Ok(()),
        }
    }

    /// Removes letters; what a sink's stream had stays known by name. On disk when this returns.
    ///
    /// # Errors
    /// Kind `Storage`.
    pub(crate) fn remove(&self, ids: &[u64]) -> Result<()> {
        let mut guard = self.opened(false)?;
        let Some(open) = guard.as_mut() else {
            return Ok(());
        };
        let mut batch = open.database.batch().durability(Some(PersistMode::SyncAll));
        let mut gone = Vec::new();
        for &id in ids {
            let Some(letter) = self.letter(open, id)? else {
                continue;
            };
            batch.remove(&open.heads, id.to_be_bytes());
            batch.remove(&open.bodies, id.to_be_bytes());
            if letter.head.copied || !letter.head.place.starts_with("sinks.") {
                batch.remove(&open.names, name(&letter));
            } else {
                batch.insert(&open.names, name(&letter), []);
            }
            gone.push(letter.head);
        }
        batch.commit().map_err(|error| self.failed(error))?;
        for head in &gone {
            open.forget(head);
        }
        Ok(())
    }

    /// A letter was refused once more.
    ///
    /// # Errors
    /// Kind `Storage`.
    pub(crate) fn tried(&self, id: u64, reason: &str, message: &str, now: i64) -> Result<()> {
        self.change(&[id], |head| {
            head.attempts += 1;
            head.tried_micros = now;
            head.reason = reason.to_owned();
            head.message = message.to_owned();
        })
    }

    /// Something has passed the letters of these keys, or of the whole table, that leaves nothing for them to do in a sink
    /// that holds rows.
    ///
    /// # Errors
    /// Kind `Storage`.
    pub(crate) fn overtake(
        &self,
        place: &str,
        passed: impl Fn(&Head) -> Option<String>,
    ) -> Result<()> {
        let mut ids = Vec::new();
        for head in self.list()? {
            if head.place == place && head.overtaken.is_none() && passed(&head).is_some() {
                ids.push(head.id);
            }
        }
        self.change(&ids, |head| head.overtaken = passed(head))
    }

    fn change(&self, ids: &[u64], change: impl Fn(&mut Head)) -> Result<()> {
        let guard = self.opened(false)?;
        let Some(open) = guard.as_ref().filter(|_| !ids.is_empty()) else {
            return Ok(());
        };
        let mut batch = open.database.batch().durability(Some(PersistMode::Buffer));
        for &id in ids {
            if let Some(mut head) = self.head(open, id)? {
                change(&mut head);
                batch.insert(&open.heads, id.to_be_bytes(), json(&head)?);
            }
        }
        batch.commit().map_err(|error| self.failed(error))
    }

    /// All letters, oldest first.
    ///
    /// # Errors
    /// Kind `Storage`.
    pub(crate) fn list(&self) -> Result<Vec<Head>> {
        let guard = self.opened(false)?;
        let Some(open) = guard.as_ref() else {
            return Ok(Vec::new());
        };
        let heads = open.heads.iter();
        heads
            .map(|entry| {
                let value = entry.value().map_err(|error| self.failed(error))?;
                self.parse(&value)
            })
            .collect()
    }

    /// One letter.
    ///
    /// # Errors
    /// Kind `Storage`.
    pub(crate) fn get(&self, id: u64) -> Result<Option<Letter>> {
        match self.opened(false)?.as_ref() {
            Some(open) => self.letter(open, id),
            None => Ok(None),
        }
    }

    /// Letters by place.
    ///
    /// # Errors
    /// Kind `Storage`.
    pub(crate) fn counts(&self) -> Result<HashMap<String, u64>> {
        let guard = self.opened(false)?;
        let places = guard.as_ref().map(|open| &open.places);
        let counts = places.into_iter().flatten();
        Ok(counts
            .filter(|(_, place)| place.rows > 0)
            .map(|(name, place)| (name.clone(), place.rows))
            .collect())
    }

    /// Whether a place has letters.
    ///
    /// # Errors
    /// Kind `Storage`.
    pub(crate) fn has(&self, place: &str) -> Result<bool> {
        let guard = self.opened(false)?;
        let place = guard.as_ref().and_then(|open| open.places.get(place));
        Ok(place.is_some_and(|place| place.rows > 0))
    }

    /// The last change of a source's stream that this place has, or had.
    ///
    /// # Errors
    /// Kind `Storage`.
    pub(crate) fn horizon(&self, place: &str, source: &SourceIdentity) -> Result<Option<Position>> {
        let guard = self.opened(false)?;
        let place = guard.as_ref().and_then(|open| open.places.get(place));
        Ok(place.and_then(|place| place.horizon.get(source).copied()))
    }

    /// Whether a change of the stream lies aside, or lay.
    ///
    /// # Errors
    /// Kind `Storage`.
    pub(crate) fn knows(&self, place: &str, batch: &Batch, change: &Change) -> Result<bool> {
        let guard = self.opened(false)?;
        let Some(open) = guard.as_ref() else {
            return Ok(false);
        };
        let mut name = stream_name(place, &batch.source.identity, batch.position(change));
        name.extend_from_slice(batch.schema(change).id.to_string().as_bytes());
        open.names
            .contains_key(name)
            .map_err(|error| self.failed(error))
    }

    /// Whether any of the keys of a table has a letter from before `position`.
    ///
    /// # Errors
    /// Kind `Storage`.
    pub(crate) fn blocks(
        &self,
        place: &str,
        source: &SourceIdentity,
        table: &str,
        keys: &[String],
        position: Position,
    ) -> Result<bool> {
        let guard = self.opened(false)?;
        let Some(place) = guard.as_ref().and_then(|open| open.places.get(place)) else {
            return Ok(false);
        };
        let blocks = |key: &String| {
            let entry = place.keys.get(&hash(source, table, key));
            entry.is_some_and(|(_, first)| *first < position)
        };
        Ok(keys.iter().any(blocks))
    }

    /// The names of delivered changes before `position` are not needed any more: the source does not go back there.
    ///
    /// # Errors
    /// Kind `Storage`.
    pub(crate) fn passed(
        &self,
        place: &str,
        source: &SourceIdentity,
        position: Position,
    ) -> Result<()> {
        let guard = self.opened(false)?;
        let Some(open) = guard.as_ref() else {
            return Ok(());
        };
        let from = stream_name(place, source, Position::default());
        let to = stream_name(place, source, position);
        let mut batch = open.database.batch();
        for entry in open.names.range(from..to) {
            let (name, value) = entry.into_inner().map_err(|error| self.failed(error))?;
            if value.is_empty() {
                batch.remove(&open.names, name);
            }
        }
        batch.commit().map_err(|error| self.failed(error))
    }

    fn put(&self, open: &Open, batch: &mut OwnedWriteBatch, letter: &Letter) -> Result<()> {
        let id = letter.head.id.to_be_bytes();
        batch.insert(&open.heads, id, json(&letter.head)?);
        batch.insert(&open.bodies, id, json(&letter.body)?);
        Ok(())
    }

    fn head(&self, open: &Open, id: u64) -> Result<Option<Head>> {
        let value = open.heads.get(id.to_be_bytes());
        let value = value.map_err(|error| self.failed(error))?;
        value.map(|value| self.parse(&value)).transpose()
    }

    fn letter(&self, open: &Open, id: u64) -> Result<Option<Letter>> {
        let Some(head) = self.head(open, id)? else {
            return Ok(None);
        };
        let body = open.bodies.get(id.to_be_bytes());
        let body: Option<Body> = body
            .map_err(|error| self.failed(error))?
            .map(|value| self.parse(&value))
            .transpose()?;
        Ok(body.map(|body| Letter { head, body }))
    }

    fn opened(&self, make: bool) -> Result<MutexGuard<'_, Option<Open>>> {
        let mut guard = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if self.spoiled.swap(false, Ordering::Relaxed) {
            *guard = None;
        }
        if guard.is_some() || !make && self.absent.load(Ordering::Relaxed) {
            return Ok(guard);
        }
        if make || self.folder.exists() {
            *guard = Some(self.open()?);
        } else {
            self.absent.store(true, Ordering::Relaxed);
        }
        Ok(guard)
    }

    fn open(&self) -> Result<Open> {
        let is_new = !self.folder.exists();
        let opened = self.open_folder();
        if opened.is_err() && is_new {
            // Half of a database is none, and cannot be opened later. It may fail for the same reason.
            let _ = std::fs::remove_dir_all(&self.folder);
        }
        opened
    }

    fn open_folder(&self) -> Result<Open> {
        let failed = |error| self.failed(error);
        std::fs::create_dir_all(&self.folder).map_err(|error| failed(error.into()))?;
        let database = Database::builder(&self.folder)
            .cache_size(CACHE)
            .max_journaling_size(JOURNAL)
            .worker_threads(1)
            .open()
            .map_err(failed)?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE);
        let keyspace = |name: &str| database.keyspace(name, options).map_err(failed);
        let mut open = Open {
            heads: keyspace("heads")?,
            bodies: keyspace("bodies")?,
            names: keyspace("names")?,
            meta: keyspace("meta")?,
            database: database.clone(),
            next: 1,
            rows: 0,
            bytes: 0,
            places: HashMap::new(),
        };
        let next = open.meta.get("next").map_err(failed)?;
        open.next = next.and_then(|value| number(&value)).unwrap_or(1);
        for entry in open.heads.iter() {
            let head: Head = self.parse(&entry.value().map_err(failed)?)?;
            (open.rows, open.bytes) = (open.rows + 1, open.bytes + head.bytes);
            open.note(&head);
        }
        for entry in open.names.iter() {
            let name = entry.key().map_err(failed)?;
            if let Some((place, source, position)) = parse_stream_name(&name) {
                open.place(place).raise(source, position);
            }
        }
        Ok(open)
    }

    fn parse<T: DeserializeOwned>(&self, value: &[u8]) -> Result<T> {
        serde_json::from_slice(value).map_err(|error| {
            self.error(format!("{} holds what cannot be read", self.place()))
                .source(error)
                .remedy("use the version of lockstep that wrote it, or move the directory away: what lies aside is then lost")
        })
    }

    fn failed(&self, error: fjall::Error) -> Error {
        let kind = match error {
            // A write in the background has failed, and it does not say why. It is opened anew, and then says what is wrong.
            fjall::Error::Poisoned => ErrorKind::Full,
            _ => ErrorKind::of_storage(&error),
        };
        if kind == ErrorKind::Full {
            self.spoiled.store(true, Ordering::Relaxed);
        }
        let remedy = match (kind, &error) {
            (_, fjall::Error::Locked) => "another process works in this directory: stop it",
            (ErrorKind::Full, _) => "make room on the disk of the state directory",
            _ => {
                "give the state directory room and write permission, then start again; nothing was acknowledged"
            }
        };
        let message = format!("{} failed", self.place());
        Error::new(kind, message).source(error).remedy(remedy)
    }

    fn full(&self, open: &Open) -> Error {
        self.error(format!(
            "{} is full: {} rows, {} bytes, and `[dead_letters]` allows {} rows, {} bytes",
            self.place(),
            open.rows,
            open.bytes,
            self.limits.rows,
            self.limits.bytes
        ))
        .remedy("repair what `lockstep dead-letters list` names, then replay or discard; or raise `max` or `max_bytes`")
    }

    fn place(&self) -> String {
        format!("the dead-letter store {}", self.folder.display())
    }

    fn error(&self, message: String) -> Error {
        Error::new(ErrorKind::Storage, message)
    }
}

impl Open {
    fn place(&mut self, name: &str) -> &mut Place {
        self.places.entry(name.to_owned()).or_default()
    }

    /// A letter is there.
    fn note(&mut self, head: &Head) {
        let place = self.place(&head.place);
        place.rows += 1;
        for key in &head.keys {
            let hash = hash(&head.identity, &head.table, key);
            let (count, first) = place.keys.entry(hash).or_insert((0, head.position));
            *count += 1;
            *first = (*first).min(head.position);
        }
        if !head.copied {
            place.raise(head.identity.clone(), head.position);
        }
    }

    /// A letter is gone.
    fn forget(&mut self, head: &Head) {
        self.rows = self.rows.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(head.bytes);
        let place = self.place(&head.place);
        place.rows = place.rows.saturating_sub(1);
        for key in &head.keys {
            let hash = hash(&head.identity, &head.table, key);
            if let Some((count, _)) = place.keys.get_mut(&hash) {
                *count -= 1;
                if *count == 0 {
                    place.keys.remove(&hash);
                }
            }
        }
    }
}

impl Place {
    fn raise(&mut self, source: SourceIdentity, position: Position) {
        let horizon = self.horizon.entry(source).or_default();
        *horizon = (*horizon).max(position);
    }
}

/// Of one process only: never written.
fn hash(source: &SourceIdentity, table: &str, key: &str) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one((source, table, key))
}

fn number(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes)
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|error| Error::new(ErrorKind::Protocol, "a dead letter has no JSON").source(error))
}

/// Place, source, and for the stream position and table; for a copy, which counts its rows anew each time, table and key.
fn name(letter: &Letter) -> Vec<u8> {
    let head = &letter.head;
    if head.copied && !head.keys.is_empty() {
        let keys = head.keys.join("\0");
        let text = format!("{}\0{}\0C{}\0{keys}", head.place, head.identity, head.table);
        return text.into_bytes();
    }
    let mut name = stream_name(&head.place, &head.identity, head.position);
    name.extend_from_slice(head.table.as_bytes());
    name
}

/// The beginning of the name of a change of the stream; names of one place and source are in the order of positions.
fn stream_name(place: &str, source: &SourceIdentity, position: Position) -> Vec<u8> {
    let mut name = format!("{place}\0{source}\0S").into_bytes();
    name.extend_from_slice(&position.commit.0.to_be_bytes());
    name.extend_from_slice(&position.ordinal.to_be_bytes());
    name
}

fn parse_stream_name(name: &[u8]) -> Option<(&str, SourceIdentity, Position)> {
    let mut parts = name.splitn(3, |byte| *byte == 0);
    let place = std::str::from_utf8(parts.next()?).ok()?;
    let source = std::str::from_utf8(parts.next()?).ok()?;
    let rest = parts.next()?.strip_prefix(b"S")?;
    let source = source.parse().ok()?;
    let position = Position {
        commit: Lsn(number(rest.get(..8)?)?),
        ordinal: number(rest.get(8..16)?)?,
    };
    Some((place, source, position))
}

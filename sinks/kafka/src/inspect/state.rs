//! The topics that are being compared, within one bound of memory.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lockstep_core::position::SourceInfo;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::Held;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::Format;
use rdkafka::Message;
use rdkafka::message::{BorrowedMessage, Headers};

use super::broker::{Bounds, Broker, Part, Stop};
use super::digest::Digests;
use super::index::{At, Full};
use super::lens::Lens;
use super::log::{Log, Owner, Raw, Standing};
use super::verdict;
use crate::config::KafkaConfig;
use crate::error::Failure;

/// Records that are read once more in one comparison, to be shown. Where more differ it is looked at again in smaller parts, of no
/// more keys than this.
const SHOWN: usize = 1_000;
/// A topic that has been read to its end so lately needs not be read on before a comparison, which does it.
const FRESH: Duration = Duration::from_secs(1);
/// By how much the clocks of producers may differ.
const SLACK_MILLIS: i64 = 60_000;

/// A row that should be in a topic, or should not.
#[derive(Debug)]
pub(super) struct Asked {
    pub topic: Arc<str>,
    pub owner: Owner,
    pub key: Vec<u8>,
    /// Its JSON; `None` when it should not be there.
    pub row: Option<String>,
}

/// See the module's page.
pub(super) struct State {
    config: Arc<KafkaConfig>,
    format: Format,
    lens: Lens,
    digests: Digests,
    broker: Broker,
    /// The tables whose rows go to each topic.
    owners: HashMap<Arc<str>, Vec<Owner>>,
    logs: HashMap<Arc<str>, Arc<Mutex<Log>>>,
    /// Topics that are too large: they are not read again and again.
    too_large: HashMap<Arc<str>, Failure>,
    /// Counts what was asked for.
    turn: u64,
}

impl State {
    pub(super) fn new(
        config: &Arc<KafkaConfig>,
        lens: &Lens,
        tables: &[(Arc<str>, Arc<TableSchema>)],
    ) -> Result<Self> {
        let mut state = State {
            format: config.format.with_decimals(config.decimals),
            lens: lens.clone(),
            digests: Digests::new(),
            broker: Broker::new(config).map_err(|failure| failure.error())?,
            config: Arc::clone(config),
            owners: HashMap::new(),
            logs: HashMap::new(),
            too_large: HashMap::new(),
            turn: 0,
        };
        for (topic, table) in tables {
            state.shares(topic, &Owner::of(table));
        }
        Ok(state)
    }

    /// Rows of a table go to a topic.
    fn shares(&mut self, topic: &Arc<str>, owner: &Owner) {
        let owners = self.owners.entry(Arc::clone(topic)).or_default();
        if !owners.contains(owner) {
            owners.push(owner.clone());
        }
    }

    /// Reads a topic, unless that was done lately.
    pub(super) fn prepare(
        &mut self,
        topic: &Arc<str>,
        owner: &Owner,
        stop: Stop<'_>,
    ) -> Result<()> {
        self.shares(topic, owner);
        if let Some(log) = self.known(topic) {
            let read = lock(&log).read;
            if read.is_some_and(|read| read.elapsed() < FRESH) {
                return Ok(());
            }
        }
        self.read(topic, stop).map(drop)
    }

    /// The rows that a topic has of a table, once it has been read to its end.
    pub(super) fn count(&mut self, topic: &Arc<str>, owner: &Owner, stop: Stop<'_>) -> Result<u64> {
        self.shares(topic, owner);
        let log = self.read(topic, stop)?;
        let log = lock(&log);
        Ok(log.index.live(log.owner(owner)) as u64)
    }

    /// What is known of a topic, once it has been read to its end, and where that is.
    pub(super) fn log(
        &mut self,
        topic: &Arc<str>,
        owner: &Owner,
        stop: Stop<'_>,
    ) -> Result<(Arc<Mutex<Log>>, Bounds)> {
        self.shares(topic, owner);
        let log = self.read(topic, stop)?;
        let bounds = {
            let log = lock(&log);
            Bounds {
                starts: log.starts.clone(),
                ends: log.next.clone(),
            }
        };
        Ok((log, bounds))
    }

    /// How rows stand in their topics, as those end now.
    pub(super) fn compare(
        &mut self,
        source: &SourceInfo,
        asked: &[Asked],
        stop: Stop<'_>,
    ) -> Result<Vec<Held>> {
        let mut topics: HashSet<Arc<str>> = HashSet::new();
        for one in asked {
            self.shares(&one.topic, &one.owner);
            topics.insert(Arc::clone(&one.topic));
        }
        let mut held: Vec<Held> = asked.iter().map(|_| Held::Same).collect();
        for topic in topics {
            let log = self.read(&topic, stop)?;
            let ours = asked.iter().enumerate();
            let ours = ours.filter(|(_, one)| one.topic == topic);
            let mut suspects: Vec<(At, usize)> = Vec::new();
            let expired = {
                let log = lock(&log);
                for (index, one) in ours {
                    let owner = log.owner(&one.owner);
                    match log.standing(owner, &one.key, one.row.as_deref()) {
                        Standing::Same => {}
                        Standing::Missing => held[index] = verdict::missing(one),
                        Standing::Suspect(at) => suspects.push((at, index)),
                    }
                }
                log.expired
            };
            for (at, index) in suspects.split_off(suspects.len().min(SHOWN)) {
                held[index] = verdict::unseen(&asked[index], at);
            }
            let mut shown = suspects;
            shown.sort_unstable();
            let mut wanted: Vec<At> = shown.iter().map(|(at, _)| *at).collect();
            wanted.dedup();
            for (_, index) in &shown {
                // Unless its record is there still.
                held[*index] = verdict::gone(&asked[*index], expired);
            }
            let (format, lens) = (self.format, &self.lens);
            let fetched = self.broker.fetch(&topic, &wanted, stop, |at, message| {
                let version = verdict::version(source, &header(message));
                let value = lens.json_of(message.payload())?;
                // A key may be asked for twice.
                let of_it = shown.iter().filter(|(place, _)| *place == at);
                for (_, index) in of_it {
                    held[*index] = verdict::of(format, &asked[*index], value.as_deref(), version);
                }
                Ok(())
            });
            fetched.map_err(|failure| failure.error())?;
        }
        Ok(held)
    }

    fn known(&mut self, topic: &Arc<str>) -> Option<Arc<Mutex<Log>>> {
        let owners = self.owners.get(topic)?;
        let log = self.logs.get(topic).map(Arc::clone)?;
        self.turn += 1;
        {
            let mut log = lock(&log);
            if !log.is_of(owners) {
                return None;
            }
            log.used = self.turn;
        }
        Some(log)
    }

    /// Reads a topic on to its end.
    fn read(&mut self, topic: &Arc<str>, stop: Stop<'_>) -> Result<Arc<Mutex<Log>>> {
        if let Some(failure) = self.too_large.get(topic) {
            return Err(failure.error());
        }
        let bounds = self.broker.bounds(topic, stop);
        let bounds = bounds.map_err(|failure| failure.error())?;
        let log = self.known(topic).filter(|log| {
            let known = &lock(log).next;
            // One that ends before what has been read of it has been made anew.
            let mut pairs = known.iter().zip(&bounds.ends);
            known.len() <= bounds.ends.len() && pairs.all(|(next, end)| next <= end)
        });
        let begins = log.is_none();
        let log = log.unwrap_or_else(|| {
            let owners = self.owners.get(topic).cloned().unwrap_or_default();
            let log = Log::new(self.format, self.digests, owners);
            let log = Arc::new(Mutex::new(log));
            self.logs.insert(Arc::clone(topic), Arc::clone(&log));
            self.turn += 1;
            lock(&log).used = self.turn;
            log
        });
        {
            let log = &mut *lock(&log);
            for start in &bounds.starts[log.next.len()..] {
                log.next.push(*start);
            }
            if !log.expired && bounds.starts.iter().any(|start| *start > 0) {
                log.expired = self.broker.may_expire(topic);
            }
            log.starts = bounds.starts;
        }
        let parts = {
            let log = lock(&log);
            let pairs = log.next.iter().zip(&bounds.ends).enumerate();
            let parts = pairs.map(|(partition, (next, end))| {
                Part::new(i32::try_from(partition).unwrap_or(i32::MAX), *next, *end)
            });
            parts.collect::<Vec<Part>>()
        };
        let begun = Instant::now();
        let records = self.take(topic, &log, parts, stop)?;
        let log_now = &mut *lock(&log);
        // All partitions stand at their ends: what comes is newer than all there is.
        log_now.index.forget(i64::MAX);
        log_now.read = Some(Instant::now());
        if begins {
            let (keys, took) = (log_now.index.keys(), begun.elapsed());
            tracing::info!(%topic, records, keys, ?took, "read to be compared");
            if log_now.unkeyed > 0 {
                tracing::warn!(
                    %topic, records = log_now.unkeyed,
                    "changes without a key, from before the table had one, are not compared"
                );
            }
        }
        Ok(Arc::clone(&log))
    }

    /// Takes in what a topic has more. How many records it was.
    fn take(
        &mut self,
        topic: &Arc<str>,
        log: &Arc<Mutex<Log>>,
        mut parts: Vec<Part>,
        stop: Stop<'_>,
    ) -> Result<u64> {
        let budget = self.config.compare_memory.bytes();
        let (logs, lens) = (&mut self.logs, &self.lens);
        let mut room = room(logs, topic, budget);
        let mut records = 0;
        let mut guard = lock(log);
        let read = self.broker.read(topic, &mut parts, stop, |message, parts| {
            records += 1;
            let (key, value) = (
                lens.json_of(message.key())?,
                lens.json_of(message.payload())?,
            );
            let raw = raw(message, key.as_deref(), value.as_deref());
            while let Err(Full) = guard.take(&raw, room) {
                let keys = guard.index.keys();
                // Records that are to come are not older than the last ones that were read, but for what clocks differ.
                let open = parts.iter().filter(|part| !part.done);
                let oldest = open.map(|part| part.stamp).min().unwrap_or(i64::MAX);
                guard.index.forget(match parts.len() {
                    1 => i64::MAX,
                    _ => oldest.saturating_sub(SLACK_MILLIS),
                });
                // To go over all of them for a few is not worth while.
                if keys - guard.index.keys() > keys / 16 {
                    continue;
                }
                if !drop_oldest(logs, topic) {
                    return Err(too_many(topic, guard.index.keys(), budget));
                }
                room = self::room(logs, topic, budget);
            }
            if let Some(next) = usize::try_from(message.partition())
                .ok()
                .and_then(|partition| guard.next.get_mut(partition))
            {
                *next = (*next).max(message.offset() + 1);
            }
            Ok(())
        });
        for part in &parts {
            let place = usize::try_from(part.partition).ok();
            if let Some(next) = place.and_then(|partition| guard.next.get_mut(partition)) {
                *next = (*next).max(part.next);
            }
        }
        drop(guard);
        let Err(failure) = read else {
            return Ok(records);
        };
        let error = failure.error();
        if failure.kind == ErrorKind::Invalid {
            logs.remove(topic);
            self.too_large.insert(Arc::clone(topic), failure);
        }
        Err(error)
    }
}

/// Bytes that the index of a topic may take beside those of the others.
fn room(logs: &HashMap<Arc<str>, Arc<Mutex<Log>>>, topic: &Arc<str>, budget: usize) -> usize {
    let others = logs.iter().filter(|(name, _)| *name != topic);
    let others: usize = others.map(|(_, log)| lock(log).index.bytes()).sum();
    budget.saturating_sub(others)
}

/// Forgets the topic that was asked for the longest time ago, but not this one. False when there is no other.
fn drop_oldest(logs: &mut HashMap<Arc<str>, Arc<Mutex<Log>>>, topic: &Arc<str>) -> bool {
    let others = logs.iter().filter(|(name, _)| *name != topic);
    let oldest = others.min_by_key(|(_, log)| lock(log).used);
    let oldest = oldest.map(|(name, _)| Arc::clone(name));
    oldest.is_some_and(|oldest| logs.remove(&oldest).is_some())
}

fn too_many(topic: &str, keys: usize, budget: usize) -> Failure {
    Failure::new(
        ErrorKind::Invalid,
        format!(
            "topic `{topic}` has more than {keys} keys, and what is kept of them to compare it must not exceed {budget} bytes (`compare_memory`)"
        ),
        "raise `compare_memory` of the sink: a million keys take 60 to 120 MB",
    )
}

fn raw<'m>(
    message: &BorrowedMessage<'_>,
    key: Option<&'m [u8]>,
    value: Option<&'m [u8]>,
) -> Raw<'m> {
    let id = lockstep_encode::envelope::HEADER_ID;
    Raw {
        at: At {
            partition: message.partition(),
            offset: message.offset(),
        },
        stamp: message.timestamp().to_millis().unwrap_or_default(),
        key,
        value,
        // Only of records that say nothing by themselves.
        has_id: message.payload().is_none()
            && message
                .headers()
                .is_some_and(|headers| headers.iter().any(|header| header.key == id)),
    }
}

/// Looks headers of a record up by name.
fn header<'m>(message: &'m BorrowedMessage<'_>) -> impl Fn(&str) -> Option<&'m str> {
    move |name| {
        let headers = message.headers()?;
        let found = headers.iter().find(|header| header.key == name)?;
        std::str::from_utf8(found.value?).ok()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread that reads has gone without a word.
pub(super) fn lost(error: &tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Abandoned, format!("reading the topics: {error}"))
}

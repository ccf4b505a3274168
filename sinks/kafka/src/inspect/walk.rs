//! A walk over the keys of the rows that a topic has.
//!
//! The index has hashes: keys are read from the topic once more, and those given whose latest record it is.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use lockstep_core::sink::{Keys, Listing};
use lockstep_core::{Error, Result};
use lockstep_encode::key::KeyJson;
use rdkafka::Message;
use tokio::sync::mpsc;

use super::broker::{Bounds, Part, read, reader};
use super::digest::Digest;
use super::index::At;
use super::lens::Lens;
use super::log::{Log, Owner};
use super::state::lock;
use crate::config::KafkaConfig;
use crate::error::Failure;
use crate::progress::stopped;

/// Keys in a page.
const PAGE: usize = 1000;
/// Pages that may wait to be taken.
const AHEAD: usize = 2;

/// What is walked.
pub(super) struct Over {
    pub config: Arc<KafkaConfig>,
    pub lens: Lens,
    pub topic: Arc<str>,
    pub owner: Owner,
    pub key: KeyJson,
    pub log: Arc<Mutex<Log>>,
    pub bounds: Bounds,
}

/// See the module's page.
pub(super) struct Walk(mpsc::Receiver<Result<Keys>>);

impl Walk {
    /// Begins one, on a thread of its own that ends with it.
    pub(super) fn begin(over: Over) -> Self {
        let (pages, taken) = mpsc::channel(AHEAD);
        tokio::task::spawn_blocking(move || {
            if let Err(failure) = over.walk(&pages) {
                // Whoever walks may have gone.
                let _ = pages.blocking_send(Err(failure.error()));
            }
        });
        Walk(taken)
    }
}

#[async_trait]
impl Listing for Walk {
    async fn next(&mut self) -> Result<Option<Keys>, Error> {
        self.0.recv().await.transpose()
    }
}

impl Over {
    fn walk(&self, pages: &mpsc::Sender<Result<Keys>>) -> Result<(), Failure> {
        let strange = Keys {
            keys: Vec::new(),
            foreign: self.strange(),
        };
        self.send(pages, strange)?;
        let consumer = reader(&self.config)?;
        let pairs = self.bounds.starts.iter().zip(&self.bounds.ends).enumerate();
        let mut parts: Vec<Part> = pairs
            .map(|(partition, (start, end))| {
                Part::new(i32::try_from(partition).unwrap_or(i32::MAX), *start, *end)
            })
            .collect();
        let format = self.config.format;
        let owner = lock(&self.log).owner(&self.owner);
        let shared = lock(&self.log).is_shared();
        let mut found: Vec<(Digest, Vec<u8>, At)> = Vec::with_capacity(PAGE);
        let stop = || pages.is_closed();
        read(&consumer, &self.topic, &mut parts, &stop, |message, _| {
            let (Some(key), Some(value)) = (message.key(), message.payload()) else {
                return Ok(());
            };
            // Whose it is need be known only where several tables share the topic. What cannot be read is everybody's.
            if shared {
                let value = self.lens.json(value)?;
                let reading = format.read(&value);
                if reading.is_some_and(|reading| !self.owner.is(&reading.place)) {
                    return Ok(());
                }
            }
            let at = At {
                partition: message.partition(),
                offset: message.offset(),
            };
            let key = self.lens.json(key)?.into_owned();
            let hash = lock(&self.log).key(owner, &key);
            found.push((hash, key, at));
            if found.len() < PAGE {
                return Ok(());
            }
            let page = self.page(&mut found);
            self.send(pages, page)
        })?;
        let page = self.page(&mut found);
        self.send(pages, page)
    }

    /// Those of the keys whose latest record this is; or was when the walk began.
    fn page(&self, found: &mut Vec<(Digest, Vec<u8>, At)>) -> Keys {
        let mut page = Keys::default();
        let log = lock(&self.log);
        for (hash, key, at) in found.drain(..) {
            let is_latest = log.latest(hash).is_some_and(|record| {
                record.at == at || self.is_behind(record.at) && record.at.partition == at.partition
            });
            if !is_latest {
                continue;
            }
            match self.key.values(&key) {
                Some(values) => page.keys.push(values),
                None => {
                    let key = String::from_utf8_lossy(&key);
                    page.foreign.push(format!("{} {key}", self.topic));
                }
            }
        }
        page
    }

    /// Whether a record has come since the walk began.
    fn is_behind(&self, at: At) -> bool {
        let partition = usize::try_from(at.partition).ok();
        let end = partition.and_then(|partition| self.bounds.ends.get(partition));
        end.is_none_or(|end| at.offset >= *end)
    }

    fn strange(&self) -> Vec<String> {
        let log = lock(&self.log);
        let told = log.strange.iter().map(|strange| {
            let At { partition, offset } = strange.first;
            let count = strange.count;
            format!("{} records without a key in partition {partition}: {count}, the first at offset {offset}", self.topic)
        });
        told.collect()
    }

    fn send(&self, pages: &mpsc::Sender<Result<Keys>>, page: Keys) -> Result<(), Failure> {
        if page == Keys::default() {
            return Ok(());
        }
        pages.blocking_send(Ok(page)).map_err(|_| stopped())
    }
}

//! A replay on its way through a lane: which letters come next, and what has become of those before.

use std::collections::{HashSet, VecDeque};

use lockstep_core::durable::Delivered;
use lockstep_core::refusal::{Refusal, reason};
use lockstep_core::{Error, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::letters::{Head, Letter, Schemas, Selection, Store};

/// Letters that are read at a time, by number and by bytes.
const CHUNK: usize = 512;
const CHUNK_BYTES: u64 = 4 << 20;
/// Refusals that a report tells about one by one.
const TOLD: usize = 100;

/// What a lane is asked for.
pub(crate) struct Request {
    /// Which letters of its sink.
    pub selection: Selection,
    /// Where the answer goes. Whoever asked may have gone; the replay goes on all the same.
    pub reply: oneshot::Sender<Result<Report>>,
}

/// What has become of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Written, acknowledged as durable and removed from the store.
    pub delivered: u64,
    /// Not written, because the sink has something newer; removed from the store, nothing is missing.
    pub stale: u64,
    /// Refused again; they stay.
    pub refused: u64,
    /// Not tried, because an earlier change of their key was refused again; they stay.
    pub behind: u64,
    /// Put aside by a transform on purpose; they can be shown and discarded, and have no sink to go to.
    pub not_for_a_sink: u64,
    /// The first of those refused.
    pub refusals: Vec<Refused>,
    /// Why it ended before all letters were tried.
    pub stopped: Option<String>,
}

/// A letter that was refused again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its number.
    pub id: u64,
    /// A word for the cause.
    pub reason: String,
    /// What was said.
    pub message: String,
}

/// Table and key.
type Key = (String, String);

/// What a lane keeps of a letter that it writes.
pub(super) struct Tag {
    pub id: u64,
    pub keys: Vec<Key>,
}

/// See the module's page.
pub(super) struct Course {
    pub request: Request,
    pub report: Report,
    pub schemas: Schemas,
    /// Letters to come, in the order of positions.
    queue: VecDeque<u64>,
    tried: HashSet<u64>,
    /// Keys whose letters belong to the replay.
    keys: HashSet<Key>,
    /// Keys with a letter that was refused again.
    stuck: HashSet<Key>,
    /// To be removed.
    done: Vec<u64>,
}

impl Course {
    pub fn new(request: Request) -> Self {
        Course {
            request,
            report: Report::default(),
            schemas: Schemas::default(),
            queue: VecDeque::new(),
            tried: HashSet::new(),
            keys: HashSet::new(),
            stuck: HashSet::new(),
            done: Vec::new(),
        }
    }

    /// Removes what was delivered and reads the next letters; none when all were tried. Waits for the disk.
    pub fn next(&mut self, store: &Store, place: &str, waits: bool) -> Result<Vec<Letter>> {
        store.remove(&std::mem::take(&mut self.done))?;
        let mut letters = Vec::new();
        let mut bytes = 0;
        loop {
            while let Some(id) = self.queue.pop_front() {
                self.tried.insert(id);
                let Some(letter) = store.get(id)? else {
                    continue;
                };
                if waits
                    && keys(&letter.head)
                        .iter()
                        .any(|key| self.stuck.contains(key))
                {
                    self.report.behind += 1;
                    continue;
                }
                bytes += letter.head.bytes;
                letters.push(letter);
                if letters.len() == CHUNK || bytes > CHUNK_BYTES {
                    return Ok(letters);
                }
            }
            if !letters.is_empty() {
                return Ok(letters);
            }
            self.look(store, place, waits)?;
            if self.queue.is_empty() {
                return Ok(letters);
            }
        }
    }

    /// Finds the letters that have not been tried. Where later changes wait, a letter comes with all of its key.
    fn look(&mut self, store: &Store, place: &str, waits: bool) -> Result<()> {
        let mut heads = store.list()?;
        heads.retain(|head| head.place == place && !self.tried.contains(&head.id));
        let mut taken: HashSet<u64> = heads
            .iter()
            .filter(|head| self.request.selection.takes(head))
            .map(|head| head.id)
            .collect();
        if waits {
            loop {
                let before = (taken.len(), self.keys.len());
                for head in &heads {
                    let keys = keys(head);
                    if taken.contains(&head.id) || keys.iter().any(|key| self.keys.contains(key)) {
                        taken.insert(head.id);
                        self.keys.extend(keys);
                    }
                }
                if (taken.len(), self.keys.len()) == before {
                    break;
                }
            }
        }
        heads.retain(|head| taken.contains(&head.id));
        heads.sort_by(|a, b| {
            let order = |head: &Head| (!head.copied, head.position, head.id);
            (&a.source, order(a)).cmp(&(&b.source, order(b)))
        });
        self.queue = heads.into_iter().map(|head| head.id).collect();
        Ok(())
    }

    /// A letter has been written, or the sink had something newer.
    pub fn settled(&mut self, id: u64, delivered: Delivered) {
        if delivered.stale > 0 && delivered.written == 0 {
            self.stale(id);
        } else {
            self.report.delivered += 1;
            self.done.push(id);
        }
    }

    /// There is nothing for a letter to do.
    pub fn stale(&mut self, id: u64) {
        self.report.stale += 1;
        self.done.push(id);
    }

    /// A letter was refused again.
    pub fn refused(&mut self, tag: &Tag, refusal: &Refusal) {
        self.stays(tag, refusal.reason, refusal.message.clone());
    }

    /// A letter cannot be made a change again.
    pub fn unreadable(&mut self, tag: &Tag, error: &Error) {
        self.stays(tag, reason::REFUSED, error.to_string());
    }

    fn stays(&mut self, tag: &Tag, reason: &str, message: String) {
        self.report.refused += 1;
        self.stuck.extend(tag.keys.iter().cloned());
        if self.report.refusals.len() < TOLD {
            self.report.refusals.push(Refused {
                id: tag.id,
                reason: reason.to_owned(),
                message,
            });
        }
    }

    /// Whether a letter has to wait for one that was refused again; it is counted then.
    pub fn is_stuck(&mut self, tag: &Tag) -> bool {
        let stuck = tag.keys.iter().any(|key| self.stuck.contains(key));
        self.report.behind += u64::from(stuck);
        stuck
    }

    /// Removes what was delivered. Waits for the disk.
    pub fn clear(&mut self, store: &Store) -> Result<()> {
        store.remove(&std::mem::take(&mut self.done))
    }

    /// Tells how it ended.
    pub fn answer(mut self, stopped: Option<&Error>) {
        self.report.stopped = stopped.map(ToString::to_string);
        drop(self.request.reply.send(Ok(self.report)));
    }
}

impl Tag {
    pub fn of(head: &Head) -> Self {
        Tag {
            id: head.id,
            keys: keys(head),
        }
    }
}

fn keys(head: &Head) -> Vec<Key> {
    let keys = head.keys.iter();
    keys.map(|key| (head.table.clone(), key.clone())).collect()
}

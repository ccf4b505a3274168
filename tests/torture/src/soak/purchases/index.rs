//! Looks into the embedded index, as a program that opens a reader of it.
//!
//! What a reader sees is a set of segments that never change. Those that were seen before are not read again, so that all of what
//! is there can be looked at every time.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tantivy::index::SegmentId;
use tantivy::schema::Value as _;
use tantivy::{Index, IndexReader, ReloadPolicy, SegmentReader, TantivyDocument, TantivyError};

use super::violations::Violations;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// A reader in a thread of its own.
#[derive(Debug)]
pub struct Search {
    ends: Arc<AtomicBool>,
    looking: JoinHandle<Result<Seen, String>>,
}

/// What it has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// States of the index that were looked at.
    pub looks: u64,
    /// How often half of a purchase was seen.
    pub halves: u64,
    /// Purchases that are there in the end.
    pub purchases: HashSet<u64>,
}

impl Search {
    /// Begins to look, as soon as there is an index.
    pub fn watch(path: &Path, violations: &Violations) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let looker = Looker {
            path: path.to_owned(),
            ends: Arc::clone(&ends),
            violations: violations.clone(),
            segments: HashMap::new(),
            times: HashMap::new(),
            looks: 0,
            halves: 0,
        };
        Search {
            ends,
            looking: std::thread::spawn(move || looker.run()),
        }
    }

    /// Looks once more, and ends.
    ///
    /// # Errors
    /// When the index could not be read.
    pub async fn end(self) -> Result<Seen, String> {
        self.ends.store(true, Ordering::Release);
        let looking = self.looking;
        let joined = tokio::task::spawn_blocking(move || looking.join()).await;
        let joined = joined.map_err(|error| error.to_string())?;
        joined.map_err(|_| "the reader of the index has panicked".to_owned())?
    }
}

/// A segment as it was seen: documents of it may be deleted later.
type Key = (SegmentId, u32);

/// A document: whether it is a reservation, and the purchase's number.
type Document = (bool, u64);

struct Looker {
    path: PathBuf,
    ends: Arc<AtomicBool>,
    violations: Violations,
    segments: HashMap<Key, Vec<Document>>,
    /// How many orders and reservations there are of each purchase.
    times: HashMap<u64, [i32; 2]>,
    looks: u64,
    halves: u64,
}

impl Looker {
    fn run(mut self) -> Result<Seen, String> {
        let mut reader = None;
        loop {
            let is_last = self.ends.load(Ordering::Acquire);
            let looked = self.look(&mut reader);
            match looked {
                Ok(()) => self.looks += 1,
                // It is being made, or files of it have gone between two steps of opening it.
                Err(error) if is_last => return Err(format!("the index: {error}")),
                Err(_) => {}
            }
            if is_last {
                return Ok(Seen {
                    looks: self.looks,
                    halves: self.halves,
                    purchases: self.times.keys().copied().collect(),
                });
            }
            std::thread::sleep(LOOK);
        }
    }

    fn look(&mut self, reader: &mut Option<IndexReader>) -> Result<(), TantivyError> {
        let reader = match reader {
            Some(reader) => reader,
            None => {
                let index = Index::open_in_dir(&self.path)?;
                let builder = index.reader_builder().reload_policy(ReloadPolicy::Manual);
                reader.insert(builder.try_into()?)
            }
        };
        reader.reload()?;
        let searcher = reader.searcher();
        let mut present = HashSet::new();
        let mut new: Vec<(Key, Vec<Document>)> = Vec::new();
        for segment in searcher.segment_readers() {
            let key = (segment.segment_id(), segment.num_docs());
            present.insert(key);
            if !self.segments.contains_key(&key) {
                new.push((key, documents(segment)?));
            }
        }
        // Only now, when nothing can fail any more, is anything counted.
        let mut changed = HashSet::new();
        let times = &mut self.times;
        let mut count = |documents: &[Document], by: i32| {
            for &(is_reservation, number) in documents {
                times.entry(number).or_default()[usize::from(is_reservation)] += by;
                changed.insert(number);
            }
        };
        self.segments.retain(|key, documents| {
            let stays = present.contains(key);
            if !stays {
                count(documents, -1);
            }
            stays
        });
        new.iter().for_each(|(_, documents)| count(documents, 1));
        self.segments.extend(new);
        for number in changed {
            match self.times.get(&number) {
                Some([0, 0]) => {
                    self.times.remove(&number);
                    self.violations
                        .add(format!("index: purchase {number} is gone again"));
                }
                Some([1, 1]) | None => {}
                Some(times) => {
                    self.halves += 1;
                    self.violations.add(format!(
                        "index: purchase {number} has {times:?} orders and reservations"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// What a segment has that is not deleted.
fn documents(segment: &SegmentReader) -> Result<Vec<Document>, TantivyError> {
    let schema = segment.schema();
    let (table, id) = (schema.get_field("_table")?, schema.get_field("_id")?);
    let store = segment.get_store_reader(1)?;
    let mut documents = Vec::new();
    for document in store.iter::<TantivyDocument>(segment.alive_bitset()) {
        let document = document?;
        let text = |field| {
            let value = document.get_first(field);
            value.and_then(|value| value.as_str().map(str::to_owned))
        };
        let is_reservation = match text(table).as_deref() {
            Some("orders.public.orders") => false,
            Some("inventory.public.reservations") => true,
            // The index's own.
            _ => continue,
        };
        let number = text(id).and_then(|id| id.parse().ok());
        documents.push((
            is_reservation,
            number.ok_or_else(|| TantivyError::InternalError("an id that is no number".into()))?,
        ));
    }
    Ok(documents)
}

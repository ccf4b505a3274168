//! What the latest record of each key says, in few bytes per key.
//!
//! Of a key are kept a hash, the digest of the row, and where the record is; the record itself is read again where it is to be
//! shown. Within a partition the later record counts, as for any consumer and for compaction. A key that is in several
//! partitions was moved by a change of their number: then the record with the later timestamp counts. (Not the one with the
//! later position in the source's log: positions of another log, as after a move to another server, cannot be compared with it,
//! and records that someone else has written have none.)

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::digest::Digest;

/// Small tables instead of one, so that growing needs room for one of them twice, and not for all.
const SHARDS: usize = 64;
/// What a slot of a table takes: the entry, and a byte beside it.
const SLOT: usize = size_of::<(Digest, Entry)>() + 1;

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    pub partition: i32,
    pub offset: i64,
}

/// What a record says of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// A row with this digest; the columns that it has not are known by this number.
    Row(Digest, u16),
    /// Something that is no row.
    Broken,
    /// There is no row.
    Gone,
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub at: At,
    /// Milliseconds; of all records of a topic by the same clock.
    pub stamp: i64,
    /// Which of the tables in the topic.
    pub owner: u16,
    pub says: Says,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    digest: Digest,
    offset: i64,
    stamp: i64,
    partition: i32,
    owner: u16,
    /// The columns that the row has not, or one of the two below.
    shape: u16,
}

const BROKEN: u16 = u16::MAX;
const GONE: u16 = u16::MAX - 1;
/// Numbers of sets of columns are below.
pub(super) const SHAPES: u16 = GONE;

impl From<Record> for Entry {
    fn from(record: Record) -> Self {
        let (digest, shape) = match record.says {
            Says::Row(digest, shape) => (digest, shape),
            Says::Broken => (Digest::default(), BROKEN),
            Says::Gone => (Digest::default(), GONE),
        };
        Entry {
            digest,
            offset: record.at.offset,
            stamp: record.stamp,
            partition: record.at.partition,
            owner: record.owner,
            shape,
        }
    }
}

impl From<Entry> for Record {
    fn from(entry: Entry) -> Self {
        Record {
            at: At {
                partition: entry.partition,
                offset: entry.offset,
            },
            stamp: entry.stamp,
            owner: entry.owner,
            says: match entry.shape {
                BROKEN => Says::Broken,
                GONE => Says::Gone,
                shape => Says::Row(entry.digest, shape),
            },
        }
    }
}

/// There is no room for another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// See the module's page.
#[derive(Debug)]
pub(super) struct Index {
    shards: Vec<HashMap<Digest, Entry, BuildHasherDefault<Plain>>>,
    /// Bytes that the tables take.
    bytes: usize,
    keys: usize,
}

impl Index {
    pub(super) fn new() -> Self {
        Index {
            shards: (0..SHARDS).map(|_| HashMap::default()).collect(),
            bytes: 0,
            keys: 0,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keys that take room.
    pub(super) fn keys(&self) -> usize {
        self.keys
    }

    /// Rows that a table has.
    pub(super) fn live(&self, owner: u16) -> usize {
        let all = self.shards.iter().flat_map(HashMap::values);
        all.filter(|entry| entry.owner == owner && entry.shape != GONE)
            .count()
    }

    /// What the latest record of a key says, if it says that there is something.
    pub(super) fn get(&self, key: Digest) -> Option<Record> {
        let entry = self.shards[shard(key)].get(&key)?;
        (entry.shape != GONE).then(|| (*entry).into())
    }

    /// Takes a record in. With `room`, the most bytes that the tables may take then.
    pub(super) fn put(&mut self, key: Digest, record: Record, room: usize) -> Result<(), Full> {
        let shard = &mut self.shards[shard(key)];
        if let Some(known) = shard.get_mut(&key) {
            let newer = match known.partition == record.at.partition {
                true => true,
                false => (record.stamp, record.at.partition) > (known.stamp, known.partition),
            };
            if newer {
                *known = record.into();
            }
            return Ok(());
        }
        let before = table_bytes(shard.capacity());
        if shard.len() == shard.capacity() {
            let grown = table_bytes(shard.capacity() + 1);
            if self.bytes - before + grown > room {
                return Err(Full);
            }
        }
        shard.insert(key, record.into());
        self.bytes = self.bytes - before + table_bytes(shard.capacity());
        self.keys += 1;
        Ok(())
    }

    /// All rows of a table have gone from a partition.
    pub(super) fn truncate(&mut self, owner: u16, partition: i32) {
        self.retain(|entry| entry.owner != owner || entry.partition != partition);
    }

    /// Forgets keys that have no row: those whose last record is older than `stamp`. What is read from now on must be newer, or an
    /// older record of another partition would count again.
    pub(super) fn forget(&mut self, stamp: i64) {
        self.retain(|entry| entry.shape != GONE || entry.stamp >= stamp);
    }

    fn retain(&mut self, mut keep: impl FnMut(&Entry) -> bool) {
        for shard in &mut self.shards {
            let before = shard.len();
            let kept = shard.values().filter(|entry| keep(entry)).count();
            if kept == before {
                continue;
            }
            // A table that entries are taken out of may grow all the same when others come.
            let mut left = HashMap::with_capacity_and_hasher(kept, BuildHasherDefault::default());
            left.extend(shard.drain().filter(|(_, entry)| keep(entry)));
            self.bytes -= table_bytes(shard.capacity());
            self.bytes += table_bytes(left.capacity());
            self.keys -= before - kept;
            *shard = left;
        }
    }
}

fn shard(key: Digest) -> usize {
    // Tables look at the other half.
    key.0[1] as usize % SHARDS
}

/// Bytes of a table that has room for so many: a power of two of slots, of which an eighth stays free.
fn table_bytes(capacity: usize) -> usize {
    match capacity {
        0 => 0,
        1..=3 => 4 * SLOT,
        4..=7 => 8 * SLOT,
        _ => (capacity * 8).div_ceil(7).next_power_of_two() * SLOT,
    }
}

/// A hash of what is one already.
#[derive(Debug, Default)]
struct Plain(u64);

impl Hasher for Plain {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = usize::MAX;

    fn key(number: u64) -> Digest {
        let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Digest([mixed, mixed.rotate_left(32)])
    }

    fn record(partition: i32, offset: i64, stamp: i64, says: Says) -> Record {
        Record {
            at: At { partition, offset },
            stamp,
            owner: 0,
            says,
        }
    }

    fn row(number: u64) -> Says {
        Says::Row(key(number), 0)
    }

    #[test]
    fn in_a_partition_the_later_record_counts_whatever_its_time() {
        let mut index = Index::new();
        index
            .put(key(1), record(0, 1, 100, row(1)), ROOM)
            .expect("room");
        index
            .put(key(1), record(0, 2, 50, row(2)), ROOM)
            .expect("room");
        assert_eq!(index.get(key(1)).map(|record| record.says), Some(row(2)));
        index
            .put(key(1), record(0, 3, 10, Says::Gone), ROOM)
            .expect("room");
        assert_eq!((index.get(key(1)), index.live(0)), (None, 0));
        index
            .put(key(1), record(0, 4, 5, row(4)), ROOM)
            .expect("room");
        assert_eq!(
            (index.get(key(1)), index.live(0)),
            (Some(record(0, 4, 5, row(4))), 1)
        );
    }

    /// In whatever order partitions are read.
    #[test]
    fn between_partitions_the_later_time_counts() {
        let old = [record(0, 7, 100, row(1)), record(0, 8, 200, row(2))];
        for new in [record(3, 1, 300, row(3)), record(3, 1, 300, Says::Gone)] {
            for order in [
                [old[0], old[1], new],
                [new, old[0], old[1]],
                [old[0], new, old[1]],
            ] {
                let mut index = Index::new();
                for record in order {
                    index.put(key(1), record, ROOM).expect("room");
                }
                let expected = (new.says != Says::Gone).then_some(new);
                assert_eq!(index.get(key(1)), expected, "{order:?}");
            }
        }
    }

    #[test]
    fn truncate_ends_what_one_table_has_in_one_partition() {
        let mut index = Index::new();
        let other = |record: Record| Record { owner: 1, ..record };
        index
            .put(key(1), record(0, 1, 1, row(1)), ROOM)
            .expect("room");
        index
            .put(key(2), record(1, 1, 1, row(1)), ROOM)
            .expect("room");
        index
            .put(key(3), other(record(0, 2, 1, row(1))), ROOM)
            .expect("room");
        index.truncate(0, 0);
        index
            .put(key(4), record(0, 4, 1, row(1)), ROOM)
            .expect("room");
        let there: Vec<bool> = (1..=4).map(|n| index.get(key(n)).is_some()).collect();
        assert_eq!(there, [false, true, true, true]);
        assert_eq!((index.live(0), index.live(1)), (2, 1));
    }

    #[test]
    fn its_bytes_are_what_the_tables_take() {
        let mut index = Index::new();
        for number in 0..20_000 {
            index
                .put(key(number), record(0, 0, 0, row(number)), ROOM)
                .expect("room");
        }
        let taken: usize = index
            .shards
            .iter()
            .map(|shard| table_bytes(shard.capacity()))
            .sum();
        assert_eq!((index.bytes(), index.keys()), (taken, 20_000));
        // What hashbrown takes: slots in a power of two, of which an eighth stays free, and a byte for each.
        for capacity in [1, 3, 7, 14, 28, 448, 57_344] {
            let table: HashMap<u64, ()> = HashMap::with_capacity(capacity);
            assert_eq!(
                table_bytes(capacity),
                table_bytes(table.capacity()),
                "{capacity}"
            );
        }
    }

    #[test]
    fn no_key_is_taken_beyond_the_room_and_known_ones_are() {
        let mut index = Index::new();
        let room = 1 << 20;
        let mut number = 0;
        while number < 100_000
            && index.put(key(number), record(0, 0, 5, Says::Gone), room) == Ok(())
        {
            number += 1;
        }
        assert!(
            index.bytes() <= room && number > 4_000,
            "{number} {}",
            index.bytes()
        );
        assert_eq!(index.put(key(1), record(0, 9, 5, row(1)), room), Ok(()));
        // Nothing older is to come: keys without a row make room for others.
        index.forget(5);
        assert_eq!(index.keys() as u64, number);
        index.forget(6);
        assert_eq!((index.keys(), index.live(0)), (1, 1));
        for more in 0..number / 2 {
            index
                .put(key(1_000_000 + more), record(0, 0, 5, row(1)), room)
                .expect("room");
        }
    }
}

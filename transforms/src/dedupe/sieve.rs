//! Answers in memory that a digest is not in the store, which is the rule: keys are new, and rows were never held.
//!
//! A Bloom filter of fixed size in front of a keyspace. It only ever says *not there* or *look*. It cannot forget, so
//! when it has taken in more than it is made for, a fresh one is filled from the store, a few entries with each batch,
//! while the old one serves; the same fills it after a start.

use fjall::Keyspace;

use super::digest::Digest;

/// Words of 64 bits per block; the bits of one digest share a block, so that a look-up touches one cache line.
const BLOCK: usize = 8;
/// Bits per digest, by which about one look-up in a hundred is for nothing when the filter is full.
const BITS_SET: u32 = 6;
const BITS_PER_DIGEST: usize = 10;
/// Entries read per batch while a fresh filter is filled.
const STEP_MIN: usize = 64;
const STEP_MAX: usize = 1000;

/// The filter.
pub(crate) struct Sieve {
    filter: Filter,
    /// The filter holds every digest of the store.
    complete: bool,
    /// Digests it may take in before a fresh one is made.
    limit: usize,
    refill: Option<Refill>,
    blocks: usize,
}

struct Refill {
    filter: Filter,
    /// The next digest to read, `None` at the beginning.
    after: Option<[u8; 16]>,
}

#[derive(Default)]
struct Filter {
    words: Vec<u64>,
    taken: usize,
}

impl Sieve {
    /// A filter of `bytes` in front of an empty keyspace, or of one that is still to be read.
    pub(crate) fn new(bytes: usize, empty: bool) -> Self {
        let blocks = (bytes / (BLOCK * 8)).max(1);
        let refill = Refill {
            filter: Filter::new(blocks),
            after: None,
        };
        Sieve {
            filter: if empty {
                Filter::new(blocks)
            } else {
                Filter::default()
            },
            complete: empty,
            limit: capacity(blocks),
            refill: (!empty).then_some(refill),
            blocks,
        }
    }

    /// Whether the digest may be in the store.
    pub(crate) fn may_hold(&self, digest: &Digest) -> bool {
        !self.complete || self.filter.may_hold(digest)
    }

    /// The digest is in the store from now on.
    pub(crate) fn add(&mut self, digest: &Digest) {
        if self.complete {
            self.filter.add(digest);
        }
        if let Some(refill) = &mut self.refill {
            refill.filter.add(digest);
        }
    }

    /// Goes on with what is to be read of the store. Called after a batch that wrote `written` entries.
    pub(crate) fn step(&mut self, keyspace: &Keyspace, written: usize) -> fjall::Result<()> {
        if self.refill.is_none() && self.filter.taken > self.limit {
            self.refill = Some(Refill {
                filter: Filter::new(self.blocks),
                after: None,
            });
        }
        let Some(refill) = &mut self.refill else {
            return Ok(());
        };
        if refill.read(keyspace, written.clamp(STEP_MIN, STEP_MAX))? {
            self.filter = std::mem::take(&mut refill.filter);
            self.complete = true;
            // A store that is larger than the filter is made for is not read again and again.
            self.limit = capacity(self.blocks).max(2 * self.filter.taken);
            self.refill = None;
        }
        Ok(())
    }
}

impl Refill {
    /// Takes in the next entries; says whether they were the last.
    fn read(&mut self, keyspace: &Keyspace, count: usize) -> fjall::Result<bool> {
        use std::ops::Bound;
        let start = self.after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut read = 0;
        for guard in keyspace
            .range::<[u8; 16], _>((start, Bound::Unbounded))
            .take(count)
        {
            let key = guard.key()?;
            // Keys of another length are none of ours, and no look-up asks for them.
            if let Ok(digest) = <[u8; 16]>::try_from(key.as_ref()) {
                self.filter.add(&Digest(digest));
                self.after = Some(digest);
            }
            read += 1;
        }
        Ok(read < count)
    }
}

fn capacity(blocks: usize) -> usize {
    blocks * BLOCK * 64 / BITS_PER_DIGEST
}

impl Filter {
    fn new(blocks: usize) -> Self {
        Filter {
            words: vec![0; blocks * BLOCK],
            taken: 0,
        }
    }

    /// The block of a digest, and the bits in it, nine of the digest's own bits for each.
    fn place(&self, digest: &Digest) -> (usize, u64) {
        let [a, b, c, d, e, f, g, h, rest @ ..] = digest.0;
        let block =
            u64::from_le_bytes([a, b, c, d, e, f, g, h]) as usize % (self.words.len() / BLOCK);
        (block * BLOCK, u64::from_le_bytes(rest))
    }

    fn add(&mut self, digest: &Digest) {
        let (start, bits) = self.place(digest);
        for turn in 0..BITS_SET {
            let bit = (bits >> (9 * turn)) as usize & 511;
            self.words[start + bit / 64] |= 1 << (bit % 64);
        }
        self.taken += 1;
    }

    fn may_hold(&self, digest: &Digest) -> bool {
        let (start, bits) = self.place(digest);
        (0..BITS_SET).all(|turn| {
            let bit = (bits >> (9 * turn)) as usize & 511;
            self.words[start + bit / 64] & (1 << (bit % 64)) != 0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::digest::Hasher;
    use super::*;

    fn digest(number: u64) -> Digest {
        let mut hasher = Hasher::root("test");
        hasher.part(&number.to_be_bytes());
        hasher.finish()
    }

    #[test]
    fn holds_what_it_took_and_little_else() {
        let mut sieve = Sieve::new(64 << 10, true);
        let count = capacity(sieve.blocks) as u64;
        for number in 0..count {
            sieve.add(&digest(number));
        }
        assert!((0..count).all(|number| sieve.may_hold(&digest(number))));
        let wrong = (count..2 * count)
            .filter(|number| sieve.may_hold(&digest(*number)))
            .count() as u64;
        assert!(wrong * 40 < count, "{wrong} of {count}");
    }

    #[test]
    fn is_filled_from_the_store_and_filled_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let database = fjall::Database::builder(directory.path())
            .open()
            .expect("a database");
        let keyspace = database
            .keyspace("k", fjall::KeyspaceCreateOptions::default)
            .expect("a keyspace");
        for number in 0..300 {
            keyspace.insert(digest(number).0, []).expect("an insert");
        }
        let mut sieve = Sieve::new(256, false);
        assert!(sieve.may_hold(&digest(1_000_000)), "not read yet");
        sieve.add(&digest(300));
        while sieve.refill.is_some() {
            sieve.step(&keyspace, 0).expect("a step");
        }
        assert!((0..=300).all(|number| sieve.may_hold(&digest(number))));
        assert_eq!(sieve.limit, 602, "twice what is there");
        // Most of what was there goes; what comes next is taken in twice while the fresh filter is filled.
        for number in 0..290 {
            keyspace.remove(digest(number).0).expect("a removal");
        }
        for number in 1000..1400 {
            sieve.add(&digest(number));
            keyspace.insert(digest(number).0, []).expect("an insert");
            sieve.step(&keyspace, 0).expect("a step");
        }
        while sieve.refill.is_some() {
            sieve.step(&keyspace, 0).expect("a step");
        }
        assert!(
            (1000..1400)
                .chain(290..300)
                .all(|number| sieve.may_hold(&digest(number)))
        );
        assert!(sieve.filter.taken < 602, "{}", sieve.filter.taken);
    }
}

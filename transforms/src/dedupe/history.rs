//! What is remembered about a key or a row, with the positions at which it became so.
//!
//! A change is judged by what was known *just before its own position*, not by what is known now: after a crash the
//! stream is replayed from an earlier position over a memory that has already seen what follows, and every change must
//! be judged again as it was the first time (I5). So nothing is overwritten; a fact of a later position is passed over.

use lockstep_core::position::{Lsn, Position};

use super::digest::Digest;

/// Facts kept per key or row; the oldest go first. They pile up only when one key or row changes hands again and
/// again within a window.
const MAX_FACTS: usize = 32;

/// The place of a change in the log of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Number of the source identity, see [`super::notes::Logs`].
    pub(crate) source: u16,
    /// Position in the log of that identity. Rows of an initial copy have no order of their own: ordinal 0.
    pub(crate) position: Position,
    /// Commit time, microseconds since the Unix epoch.
    pub(crate) micros: i64,
}

/// How a fact stands to a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    Before,
    /// The fact was made by this very change, earlier.
    Itself,
    /// The fact lies ahead of the change: the change is a replay.
    Ahead,
}

impl Moment {
    /// How a fact of `self` stands to a change at `now`. Positions of different logs have no order; what another log
    /// has brought in is known.
    fn sight(&self, now: &Moment) -> Sight {
        if self.source != now.source || self.position < now.position {
            Sight::Before
        } else if self.position == now.position {
            Sight::Itself
        } else {
            Sight::Ahead
        }
    }
}

/// A fact: what became so, and when.
pub(crate) trait Fact: Copy {
    /// Bytes in the store.
    const SIZE: usize;
    fn moment(&self) -> &Moment;
    /// What it ages from, microseconds since the Unix epoch.
    fn since(&self) -> i64;
    fn write(&self, out: &mut Vec<u8>);
    fn read(bytes: &[u8]) -> Option<Self>;
}

/// Who holds a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) at: Moment,
    /// Counts the keys that were claimed before it, for windows by count.
    pub(crate) sequence: u64,
    /// Commit time of the first occurrence. A claim that passes to another row keeps it.
    pub(crate) since: i64,
    /// The row.
    pub(crate) owner: Digest,
}

/// Whether a row is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) at: Moment,
    pub(crate) state: State,
}

/// See [`Standing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The row passes, or is gone.
    Free,
    /// The row repeats this key of another row.
    Held(Digest),
    /// The same, of a row without primary key: no later change can be told to be its own.
    HeldOnce(Digest),
}

impl State {
    /// The key for which the row is held.
    pub(crate) fn held(self) -> Option<Digest> {
        match self {
            State::Free => None,
            State::Held(key) | State::HeldOnce(key) => Some(key),
        }
    }
}

/// The facts about a key or a row. Facts of one source stand in the order of their positions.
#[derive(Clone, Debug)]
pub(crate) struct History<F> {
    facts: Vec<F>,
}

impl<F> Default for History<F> {
    fn default() -> Self {
        History { facts: Vec::new() }
    }
}

impl<F: Fact> History<F> {
    /// The fact that a change at `now` finds, itself included.
    pub(crate) fn known(&self, now: &Moment) -> Option<&F> {
        let mut facts = self.facts.iter().rev();
        facts.find(|fact| fact.moment().sight(now) != Sight::Ahead)
    }

    /// The fact that a change at `now` found the first time it came.
    pub(crate) fn before(&self, now: &Moment) -> Option<&F> {
        let mut facts = self.facts.iter().rev();
        facts.find(|fact| fact.moment().sight(now) == Sight::Before)
    }

    /// The fact that this change made when it came before.
    pub(crate) fn itself(&self, now: &Moment) -> Option<&F> {
        let mut facts = self.facts.iter().rev();
        facts.find(|fact| fact.moment().sight(now) == Sight::Itself)
    }

    /// Adds a fact at its place; one of the same change is replaced.
    pub(crate) fn add(&mut self, fact: F) {
        let now = *fact.moment();
        self.facts
            .retain(|known| known.moment().sight(&now) != Sight::Itself);
        let ahead = |known: &F| known.moment().sight(&now) == Sight::Ahead;
        let place = self
            .facts
            .iter()
            .position(ahead)
            .unwrap_or(self.facts.len());
        self.facts.insert(place, fact);
        if self.facts.len() > MAX_FACTS {
            self.facts.remove(0);
        }
    }

    /// Forgets facts of logs that do not count any more.
    pub(crate) fn forget(&mut self, counts: impl Fn(u16) -> bool) {
        self.facts.retain(|fact| counts(fact.moment().source));
    }

    /// The latest fact.
    pub(crate) fn latest(&self) -> Option<&F> {
        self.facts.last()
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        for fact in &self.facts {
            fact.write(out);
        }
    }

    /// `None` when the bytes are no history.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        if !bytes.len().is_multiple_of(F::SIZE) {
            return None;
        }
        let facts = bytes.chunks_exact(F::SIZE).map(F::read);
        facts
            .collect::<Option<Vec<F>>>()
            .map(|facts| History { facts })
    }
}

const MOMENT: usize = 2 + 8 + 8 + 8;

impl Moment {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.source.to_be_bytes());
        out.extend_from_slice(&self.position.commit.0.to_be_bytes());
        out.extend_from_slice(&self.position.ordinal.to_be_bytes());
        out.extend_from_slice(&self.micros.to_be_bytes());
    }

    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (source, rest) = bytes.split_first_chunk()?;
        let (commit, rest) = rest.split_first_chunk()?;
        let (ordinal, rest) = rest.split_first_chunk()?;
        let (micros, rest) = rest.split_first_chunk()?;
        let moment = Moment {
            source: u16::from_be_bytes(*source),
            position: Position {
                commit: Lsn(u64::from_be_bytes(*commit)),
                ordinal: u64::from_be_bytes(*ordinal),
            },
            micros: i64::from_be_bytes(*micros),
        };
        Some((moment, rest))
    }
}

impl Fact for Claim {
    const SIZE: usize = MOMENT + 8 + 8 + 16;

    fn since(&self) -> i64 {
        self.since
    }

    fn moment(&self) -> &Moment {
        &self.at
    }

    fn write(&self, out: &mut Vec<u8>) {
        self.at.write(out);
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&self.since.to_be_bytes());
        out.extend_from_slice(&self.owner.0);
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (at, rest) = Moment::read(bytes)?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let (since, rest) = rest.split_first_chunk()?;
        Some(Claim {
            at,
            sequence: u64::from_be_bytes(*sequence),
            since: i64::from_be_bytes(*since),
            owner: Digest(rest.try_into().ok()?),
        })
    }
}

impl Fact for Standing {
    const SIZE: usize = MOMENT + 1 + 16;

    fn since(&self) -> i64 {
        self.at.micros
    }

    fn moment(&self) -> &Moment {
        &self.at
    }

    fn write(&self, out: &mut Vec<u8>) {
        self.at.write(out);
        let (tag, key) = match self.state {
            State::Free => (0, Digest([0; 16])),
            State::Held(key) => (1, key),
            State::HeldOnce(key) => (2, key),
        };
        out.push(tag);
        out.extend_from_slice(&key.0);
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (at, rest) = Moment::read(bytes)?;
        let (tag, key) = rest.split_first()?;
        let key = Digest(key.try_into().ok()?);
        let state = match tag {
            0 => State::Free,
            1 => State::Held(key),
            2 => State::HeldOnce(key),
            _ => return None,
        };
        Some(Standing { at, state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(source: u16, commit: u64) -> Moment {
        Moment {
            source,
            position: Position {
                commit: Lsn(commit),
                ordinal: 1,
            },
            micros: -5,
        }
    }

    fn claim(at: Moment, owner: u8) -> Claim {
        Claim {
            at,
            sequence: 7,
            since: -5,
            owner: Digest([owner; 16]),
        }
    }

    #[test]
    fn a_replay_does_not_see_ahead() {
        let mut history = History::default();
        history.add(claim(at(0, 10), 1));
        history.add(claim(at(0, 30), 2));
        let owner = |now| history.known(&now).map(|claim| claim.owner.0[0]);
        assert_eq!(owner(at(0, 9)), None);
        assert_eq!(owner(at(0, 10)), Some(1));
        assert_eq!(owner(at(0, 29)), Some(1));
        assert_eq!(owner(at(0, 30)), Some(2));
        assert_eq!(
            owner(at(1, 1)),
            Some(2),
            "another log has no order to this one"
        );
        assert!(history.before(&at(0, 10)).is_none());
        assert!(history.itself(&at(0, 10)).is_some());
    }

    #[test]
    fn facts_take_their_place() {
        let mut history = History::default();
        for (source, commit, owner) in [(0, 30, 3), (1, 5, 9), (0, 10, 1), (0, 30, 4)] {
            history.add(claim(at(source, commit), owner));
        }
        let owners: Vec<u8> = history.facts.iter().map(|claim| claim.owner.0[0]).collect();
        assert_eq!(owners, [1, 9, 4].to_vec().into_iter().collect::<Vec<_>>());
        let mut bytes = Vec::new();
        history.write(&mut bytes);
        assert_eq!(
            History::<Claim>::read(&bytes).expect("a history").facts,
            history.facts
        );
        assert!(History::<Claim>::read(&bytes[1..]).is_none());
    }

    #[test]
    fn facts_are_bounded() {
        let mut history = History::default();
        for commit in 0..1000 {
            let state = State::Held(Digest([1; 16]));
            history.add(Standing {
                at: at(0, commit),
                state,
            });
        }
        assert_eq!(history.facts.len(), MAX_FACTS);
        assert_eq!(
            history.latest().map(|fact| fact.at.position.commit.0),
            Some(999)
        );
    }
}

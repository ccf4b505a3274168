//! Decides which rows repeat a key. Knows no bytes and no store: rows and keys are digests.
//!
//! A key belongs to the row that brought it first, its *owner*, for the length of the window. A row that brings a key
//! of another owner is *held*, and stays held with all its later changes until it is deleted, loses the key or takes
//! one that is free. Deleting the owner does not free the key: it names one intended effect, and that has been passed
//! on.

use lockstep_core::Result;

use super::digest::Digest;
use super::history::{Claim, History, Moment, Standing, State};

/// What the judge remembers, with what it has written in this batch.
pub(crate) trait Memory {
    /// The claim that a change at `now` finds.
    fn claim(&mut self, key: Digest, now: &Moment) -> Result<Option<Claim>>;
    fn add_claim(&mut self, key: Digest, claim: Claim) -> Result<()>;
    /// What a change at `now` finds about a row: before it, and by itself when it came before.
    fn standing(&mut self, row: Digest, now: &Moment) -> Result<Stood>;
    fn add_standing(&mut self, row: Digest, standing: Standing) -> Result<()>;
    /// Counts the keys claimed so far, and this one.
    fn next_sequence(&mut self) -> u64;
    /// Keys claimed so far.
    fn sequence(&self) -> u64;
}

/// See [`Memory::standing`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stood {
    /// The key for which the row was held just before.
    pub(crate) held: Option<Digest>,
    /// What this change made of the row when it came before.
    pub(crate) itself: Option<State>,
}

impl Stood {
    /// What a change at `now` finds in the history of a row.
    pub(crate) fn of(history: &History<Standing>, now: &Moment) -> Self {
        Stood {
            held: history
                .before(now)
                .and_then(|standing| standing.state.held()),
            itself: history.itself(now).map(|standing| standing.state),
        }
    }
}

/// How long keys are remembered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// By commit time, microseconds.
    pub(crate) micros: i64,
    /// By count.
    pub(crate) keys: Option<u64>,
}

/// Claims beyond a window by count that are kept at least: a replay that goes back further would find fewer keys than
/// the first pass did.
const REPLAYED: u64 = 10_000;

impl Window {
    /// How many later claims a claim outlives in the store; `None` without a window by count.
    pub(crate) fn outlived(&self) -> Option<u64> {
        let keys = self.keys?;
        Some(keys.saturating_add(keys.max(REPLAYED)))
    }
}

/// What a change means.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Case {
    /// It is nothing to judge.
    Passes,
    Arrives(Arrival),
    Changes(Alteration),
    Departs {
        at: Moment,
        row: Digest,
    },
    /// A row as it is, to be compared: nothing happens to it, and nothing is remembered.
    Asks {
        at: Moment,
        row: Digest,
    },
}

/// A row that comes in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) at: Moment,
    pub(crate) row: Digest,
    /// Whether the row has a primary key, by which it is recognised when it changes.
    pub(crate) recognisable: bool,
    pub(crate) key: Option<Digest>,
    /// A row of an initial copy: it need not be new.
    pub(crate) copied: bool,
}

/// A row that changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alteration {
    pub(crate) at: Moment,
    /// The row as it was named before.
    pub(crate) from: Digest,
    pub(crate) row: Digest,
    pub(crate) key: KeyAfter,
}

/// The key of a row after an UPDATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyAfter {
    /// It has none.
    None,
    /// The same as before, which need not have been sent.
    Kept(Option<Digest>),
    /// This; whether it had it before is not known.
    Perhaps(Digest),
    /// This, and it had another before.
    Set(Digest),
}

/// Whether a row is seen behind the transform, before and after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) was_held: bool,
    pub(crate) held: bool,
    /// The row repeats a key, and this was not known before: not a replay, not a later change of a held row.
    pub(crate) discovered: bool,
}

const PASS: Verdict = Verdict {
    was_held: false,
    held: false,
    discovered: false,
};

impl Window {
    fn is_open(&self, claim: &Claim, now: &Moment, sequence: u64) -> bool {
        let young = now.micros.saturating_sub(claim.since) <= self.micros;
        let counted = self
            .keys
            .is_none_or(|keys| sequence.saturating_sub(claim.sequence) < keys);
        claim.at == *now || (young && counted)
    }
}

impl Case {
    /// When the change was; `None` when that does not matter.
    pub(crate) fn at(&self) -> Option<&Moment> {
        match self {
            Case::Passes | Case::Asks { .. } => None,
            Case::Arrives(arrival) => Some(&arrival.at),
            Case::Changes(change) => Some(&change.at),
            Case::Departs { at, .. } => Some(at),
        }
    }

    /// The key that the judge may ask about.
    pub(crate) fn key(&self) -> Option<Digest> {
        match self {
            Case::Arrives(arrival) => arrival.key,
            Case::Changes(change) => match change.key {
                KeyAfter::Kept(key) => key,
                KeyAfter::Perhaps(key) | KeyAfter::Set(key) => Some(key),
                KeyAfter::None => None,
            },
            Case::Passes | Case::Departs { .. } | Case::Asks { .. } => None,
        }
    }

    /// The rows that the judge may ask about.
    pub(crate) fn rows(&self) -> [Option<Digest>; 2] {
        match self {
            Case::Passes => [None, None],
            Case::Arrives(arrival) => [Some(arrival.row), None],
            Case::Changes(change) => [
                Some(change.row),
                (change.from != change.row).then_some(change.from),
            ],
            Case::Departs { row, .. } | Case::Asks { row, .. } => [Some(*row), None],
        }
    }
}

/// A verdict for each case, in order.
pub(crate) fn all(
    memory: &mut impl Memory,
    window: &Window,
    cases: &[Case],
    verdicts: &mut Vec<Verdict>,
) -> Result<()> {
    for case in cases {
        verdicts.push(match case {
            Case::Passes => PASS,
            Case::Arrives(arrival) => arrive(memory, window, arrival)?,
            Case::Changes(change) => alter(memory, window, change)?,
            Case::Departs { at, row } => depart(memory, *at, *row)?,
            Case::Asks { at, row } => {
                let held = memory.standing(*row, at)?.held.is_some();
                Verdict {
                    was_held: held,
                    held,
                    ..PASS
                }
            }
        });
    }
    Ok(())
}

/// An INSERT, or a row of an initial copy.
fn arrive(memory: &mut impl Memory, window: &Window, arrival: &Arrival) -> Result<Verdict> {
    let Arrival { at, row, key, .. } = *arrival;
    let stood = memory.standing(row, &at)?;
    // A copy finds held rows where they are; only an INSERT begins anew.
    let still = arrival.copied && key.is_some() && stood.held == key;
    let state = match (key, stood.itself) {
        (None, _) => State::Free,
        (Some(_), Some(state)) => state,
        (Some(key), None) if still => State::Held(key),
        (Some(key), None) => match take(memory, window, &at, key, row, row)? {
            State::Held(key) if !arrival.recognisable => State::HeldOnce(key),
            state => state,
        },
    };
    let held = state.held().is_some();
    if (held || stood.held.is_some()) && stood.itself.is_none() {
        memory.add_standing(row, Standing { at, state })?;
    }
    Ok(Verdict {
        was_held: held,
        held,
        discovered: held && stood.itself.is_none() && !still,
    })
}

/// An UPDATE.
fn alter(memory: &mut impl Memory, window: &Window, change: &Alteration) -> Result<Verdict> {
    let Alteration { at, from, row, .. } = *change;
    let moved = from != row;
    let before = memory.standing(from, &at)?;
    let there = if moved {
        memory.standing(row, &at)?
    } else {
        before
    };
    let state = match there.itself {
        Some(state) => state,
        None => decide(memory, window, change, before.held)?,
    };
    if there.itself.is_none() {
        let found = if moved { there.held } else { before.held };
        let found = found.map_or(State::Free, State::Held);
        if state != found {
            memory.add_standing(row, Standing { at, state })?;
        }
    }
    if moved {
        leave(memory, &at, from, before)?;
        if state == State::Free {
            hand_over(memory, window, change)?;
        }
    }
    let held = state.held().is_some();
    Ok(Verdict {
        was_held: before.held.is_some(),
        held,
        discovered: held && before.held.is_none() && there.itself.is_none(),
    })
}

/// A DELETE.
fn depart(memory: &mut impl Memory, at: Moment, row: Digest) -> Result<Verdict> {
    let stood = memory.standing(row, &at)?;
    leave(memory, &at, row, stood)?;
    let held = stood.held.is_some();
    Ok(Verdict {
        was_held: held,
        held,
        ..PASS
    })
}

fn leave(memory: &mut impl Memory, at: &Moment, row: Digest, stood: Stood) -> Result<()> {
    if stood.held.is_some() && stood.itself.is_none() {
        let state = State::Free;
        memory.add_standing(row, Standing { at: *at, state })?;
    }
    Ok(())
}

/// What an UPDATE makes of a row.
fn decide(
    memory: &mut impl Memory,
    window: &Window,
    change: &Alteration,
    held: Option<Digest>,
) -> Result<State> {
    let Alteration { at, from, row, key } = change;
    match (held, *key) {
        (_, KeyAfter::None) | (None, KeyAfter::Kept(_)) => Ok(State::Free),
        // A row that passes is not taken back on suspicion: it may have had the key since before the window.
        (None, KeyAfter::Perhaps(_)) => Ok(State::Free),
        (None, KeyAfter::Set(key)) => take(memory, window, at, key, *from, *row),
        (Some(held), KeyAfter::Kept(_)) => Ok(State::Held(held)),
        (Some(held), KeyAfter::Perhaps(key) | KeyAfter::Set(key)) if key == held => {
            Ok(State::Held(held))
        }
        (Some(_), KeyAfter::Perhaps(key) | KeyAfter::Set(key)) => {
            take(memory, window, at, key, *from, *row)
        }
    }
}

/// Takes a key for a row: it is free or the row's own, or the row is held.
fn take(
    memory: &mut impl Memory,
    window: &Window,
    at: &Moment,
    key: Digest,
    from: Digest,
    row: Digest,
) -> Result<State> {
    let sequence = memory.sequence();
    match memory.claim(key, at)? {
        Some(claim) if window.is_open(&claim, at, sequence) => {
            if claim.owner == from || claim.owner == row {
                Ok(State::Free)
            } else {
                Ok(State::Held(key))
            }
        }
        _ => {
            let claim = Claim {
                at: *at,
                sequence: memory.next_sequence(),
                since: at.micros,
                owner: row,
            };
            memory.add_claim(key, claim)?;
            Ok(State::Free)
        }
    }
}

/// The owner of a key changed its name: the key goes with it.
fn hand_over(memory: &mut impl Memory, window: &Window, change: &Alteration) -> Result<()> {
    let (KeyAfter::Kept(Some(key)) | KeyAfter::Perhaps(key) | KeyAfter::Set(key)) = change.key
    else {
        return Ok(());
    };
    let sequence = memory.sequence();
    match memory.claim(key, &change.at)? {
        Some(claim)
            if claim.owner == change.from && window.is_open(&claim, &change.at, sequence) =>
        {
            let claim = Claim {
                at: change.at,
                owner: change.row,
                ..claim
            };
            memory.add_claim(key, claim)
        }
        _ => Ok(()),
    }
}

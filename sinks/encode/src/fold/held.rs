//! Where a sink has the values that an UPDATE left unchanged, when the sink may be ahead of what is written.
//!
//! After a crash a sink holds anything between the point that is replayed from and the last write that reached it: the row
//! that a key change took the values from may be gone, its key may have been taken by another row, and the row itself may
//! be gone by now. What is held then tells which of these it is by its version.

/// What a sink holds under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen<V> {
    /// There is a row.
    pub is_there: bool,
    /// Of the row, or of its deletion as far as the sink remembers.
    pub version: Option<V>,
}

impl<V> Seen<V> {
    /// Nothing, and no memory of anything.
    pub const NOTHING: Seen<V> = Seen {
        is_there: false,
        version: None,
    };
}

/// A write whose values are looked for, by its versions in the sink.
#[derive(Clone, Copy, Debug)]
pub struct Looked<V> {
    /// Of the write.
    pub version: V,
    /// Of [`super::Write::Upsert::missing_before`].
    pub before: V,
    /// The values were under another key, see [`super::Write::Upsert::missing_from`].
    pub moved: bool,
    /// Of the latest TRUNCATE of the table that the sink has carried out.
    pub truncated: Option<V>,
}

/// Where the values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Under the key they were left under.
    From,
    /// Under the row's own key: the write is a replay, and has put them there before.
    To,
    /// Nowhere, since the row has been removed by a later change that has been written before: the write is a replay, and
    /// may be left out.
    Later,
    /// Nowhere, or at a place that cannot be told from another row's. Versions that do not tell the changes of one
    /// transaction apart cannot tell two rows that had the same key in it.
    Nowhere,
}

/// Finds the values. `to` is what is under the row's own key; it is not looked at unless the row has moved.
pub fn locate<V: Ord>(looked: &Looked<V>, from: &Seen<V>, to: &Seen<V>) -> Place {
    if !looked.moved {
        return match from.is_there {
            true => Place::From,
            // The row was there before this change: what is gone at its version has gone after it.
            false if from.version.as_ref() == Some(&looked.version) => Place::Later,
            false => looked.without(from),
        };
    }
    let before = &looked.before;
    // A row without a version is one that lockstep has not written: older than anything.
    let older = from.is_there && from.version.as_ref().is_none_or(|at| at < before);
    if older {
        return Place::From;
    }
    let same = from.is_there && from.version.as_ref() == Some(before);
    let written = to.is_there && to.version.as_ref().is_some_and(|at| at >= before);
    match (written, same) {
        (true, true) if to.version.as_ref() == Some(before) => Place::Nowhere,
        (true, _) => Place::To,
        // Written earlier in the transaction that moves it.
        (false, true) => Place::From,
        (false, false) => looked.without(to),
    }
}

impl<V: Ord> Looked<V> {
    /// The values are nowhere: is the row gone by a later change? `seen` is what is under its key.
    fn without(&self, seen: &Seen<V>) -> Place {
        let version = Some(&self.version);
        let removed = seen.version.as_ref().filter(|_| !seen.is_there) > version;
        match removed || self.truncated.as_ref() > version {
            true => Place::Later,
            false => Place::Nowhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOVED: Looked<u64> = Looked {
        version: 12,
        before: 10,
        moved: true,
        truncated: None,
    };

    fn row(version: u64) -> Seen<u64> {
        Seen {
            is_there: true,
            version: Some(version),
        }
    }

    fn gone(version: u64) -> Seen<u64> {
        Seen {
            is_there: false,
            version: Some(version),
        }
    }

    #[test]
    fn values_of_a_moved_row() {
        let of = |from, to| locate(&MOVED, &from, &to);
        assert_eq!(of(row(9), Seen::NOTHING), Place::From);
        assert_eq!(of(row(9), row(3)), Place::From);
        assert_eq!(of(gone(10), row(10)), Place::To, "a replay");
        assert_eq!(of(row(11), row(10)), Place::To, "the old key is taken");
        assert_eq!(of(row(10), Seen::NOTHING), Place::From, "one transaction");
        assert_eq!(of(row(10), row(10)), Place::Nowhere, "which of the two?");
        assert_eq!(of(row(10), row(11)), Place::To);
        assert_eq!(of(gone(10), gone(13)), Place::Later);
        assert_eq!(of(gone(10), gone(12)), Place::Nowhere, "before or after?");
        assert_eq!(of(row(11), Seen::NOTHING), Place::Nowhere);
        let foreign = Seen {
            is_there: true,
            version: None,
        };
        assert_eq!(of(foreign, Seen::NOTHING), Place::From);
    }

    #[test]
    fn values_of_a_row_that_stays() {
        let stays = Looked {
            moved: false,
            ..MOVED
        };
        let of = |from| locate(&stays, &from, &Seen::NOTHING);
        assert_eq!(of(row(15)), Place::From, "the write will be refused");
        assert_eq!(of(gone(13)), Place::Later);
        assert_eq!(of(gone(12)), Place::Later);
        assert_eq!(of(gone(11)), Place::Nowhere);
        assert_eq!(of(Seen::NOTHING), Place::Nowhere);
    }

    #[test]
    fn a_later_truncate_explains_what_is_gone() {
        let at = |truncated| {
            let looked = Looked {
                truncated: Some(truncated),
                ..MOVED
            };
            locate(&looked, &Seen::NOTHING, &Seen::NOTHING)
        };
        assert_eq!(at(13), Place::Later);
        assert_eq!(at(12), Place::Nowhere);
    }
}

//! The order in which the writes of a part reach a sink that is not atomic.
//!
//! When a row moves to another key, what is under its old key must stay until the row is acknowledged under the new one: a
//! crash in between would leave the row nowhere, and the replay, whose batches may be cut elsewhere, may need the values of
//! it that the log does not carry.

use std::collections::HashMap;

use lockstep_core::schema::TableId;

use super::{Part, Write};

/// See [`Part::rounds`]. Linear in writes and moves.
pub(super) fn of<'w, 'a>(part: &'w Part<'a>) -> Vec<Vec<&'w Write<'a>>> {
    let writes = &part.writes;
    if part.moves.is_empty() {
        return vec![writes.iter().collect()];
    }
    let waits = Waits::of(part);
    let mut open = waits.for_others.clone();
    let mut ready: Vec<usize> = (0..writes.len()).filter(|&at| open[at] == 0).collect();
    let mut rounds = Vec::new();
    let mut left = writes.len();
    while !ready.is_empty() {
        left -= ready.len();
        let mut next = Vec::new();
        for &done in &ready {
            for &at in &waits.waiting[done] {
                open[at] -= 1;
                if open[at] == 0 {
                    next.push(at);
                }
            }
        }
        rounds.push(ready.iter().map(|&at| &writes[at]).collect());
        ready = next;
    }
    // The fold cuts before a circle of moves closes; were one here, its writes must still not be left out.
    debug_assert_eq!(left, 0, "moves lead back to where they began");
    if left > 0 {
        let in_circles = (0..writes.len()).filter(|&at| open[at] > 0);
        rounds.push(in_circles.map(|at| &writes[at]).collect());
    }
    rounds
}

/// Who waits for whom, by place in the part.
struct Waits {
    /// For how many others each write waits.
    for_others: Vec<usize>,
    /// The writes that wait for each.
    waiting: Vec<Vec<usize>>,
}

impl Waits {
    fn of(part: &Part<'_>) -> Self {
        let places: HashMap<(&TableId, &str), usize> = part
            .writes
            .iter()
            .enumerate()
            .filter_map(|(at, write)| Some((place(write)?, at)))
            .collect();
        let mut waits = Waits {
            for_others: vec![0; part.writes.len()],
            waiting: vec![Vec::new(); part.writes.len()],
        };
        for moved in &part.moves {
            let at = |key| places.get(&(moved.table, key)).copied();
            if let (Some(from), Some(to)) = (at(&*moved.from), at(&*moved.to))
                && from != to
            {
                waits.for_others[from] += 1;
                waits.waiting[to].push(from);
            }
        }
        waits
    }
}

fn place<'w>(write: &'w Write<'_>) -> Option<(&'w TableId, &'w str)> {
    match write {
        Write::Upsert { schema, key, .. } | Write::Delete { schema, key, .. } => {
            Some((&schema.id, key))
        }
        Write::Truncate { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lockstep_core::position::{Lsn, Position};
    use lockstep_core::schema::TableSchema;

    use super::super::Move;
    use super::*;

    fn rounds(moves: &[(&str, &str)], keys: &[&str]) -> Vec<Vec<String>> {
        let schema = Arc::new(TableSchema::message("orders".into()));
        let write = |key: &&str| Write::Delete {
            key: (*key).to_owned(),
            schema: &schema,
            position: Position {
                commit: Lsn(1),
                ordinal: 1,
            },
            commit_micros: 0,
        };
        let moved = |(from, to): &(&str, &str)| Move {
            table: &schema.id,
            from: (*from).to_owned(),
            to: (*to).to_owned(),
        };
        let part = Part {
            writes: keys.iter().map(write).collect(),
            moves: moves.iter().map(moved).collect(),
        };
        let shown = |write: &&Write<'_>| place(write).map(|(_, key)| key.to_owned());
        part.rounds()
            .iter()
            .map(|round| round.iter().filter_map(shown).collect())
            .collect()
    }

    #[test]
    fn an_old_key_follows_the_new_one() {
        assert_eq!(rounds(&[], &["1", "2"]), [["1", "2"]]);
        assert_eq!(
            rounds(&[("1", "2")], &["1", "2", "3"]),
            [vec!["2", "3"], vec!["1"]]
        );
        let chain = [("1", "2"), ("2", "3")];
        assert_eq!(rounds(&chain, &["1", "2", "3"]), [["3"], ["2"], ["1"]]);
        // Elsewhere by now, and not in this part.
        assert_eq!(rounds(&[("1", "9")], &["1"]), [["1"]]);
    }

    #[test]
    fn a_key_that_two_rows_left_waits_for_both() {
        let moves = [("2", "9"), ("1", "2"), ("1", "3"), ("3", "4")];
        assert_eq!(
            rounds(&moves, &["1", "2", "3", "4", "9"]),
            [vec!["4", "9"], vec!["3", "2"], vec!["1"]]
        );
    }
}

//! The order in which the writes of a batch reach the cluster.
//!
//! A bulk request is not atomic. When a row moves to another key, what is under its old key must stay until the row is
//! acknowledged under the new one: a crash in between would leave the row nowhere, and the replay, whose batches may be cut
//! elsewhere, may need the values of it that the log does not carry.

use std::collections::{HashMap, HashSet};

use lockstep_core::Result;
use lockstep_core::batch::{Batch, CellRef, Op};
use lockstep_core::schema::TableId;
use lockstep_encode::fold::Write;
use lockstep_encode::key::key_text;

/// Where the rows of a batch moved to: old key → new key. Empty for nearly all batches.
#[derive(Default)]
pub(super) struct Moves<'a>(HashMap<(&'a TableId, String), String>);

impl<'a> Moves<'a> {
    /// The key changes of a batch.
    ///
    /// # Errors
    /// When a key cannot be written.
    pub(super) fn of(batch: &'a Batch) -> Result<Self> {
        let mut moves = HashMap::new();
        for change in batch.changes() {
            if change.op != Op::Update {
                continue;
            }
            let (Some(old), Some(new)) = (batch.old_row(change), batch.new_row(change)) else {
                continue;
            };
            let schema = batch.schema(change);
            let differs = |column| old.get(column) != new.get(column);
            // A key with a TOASTed value is at most partly carried; such moves keep the order of the list.
            let whole = schema
                .key_columns()
                .all(|column| new.get(column) != CellRef::Unchanged);
            if whole && old.has_key(schema) && schema.key_columns().any(differs) {
                let (mut from, mut to) = (String::new(), String::new());
                key_text(schema, old, &mut from)?;
                key_text(schema, new, &mut to)?;
                moves.insert((&schema.id, from), to);
            }
        }
        Ok(Moves(moves))
    }

    /// The writes of a part ([`lockstep_encode::fold::parts`]) in rounds, each to be acknowledged before the next begins:
    /// a write to a key from which a row moved comes after the write to the key that it moved to. Rows that changed places
    /// in a circle come in one round: there is no order for them.
    pub(super) fn rounds<'w>(&self, part: &'w [Write<'a>]) -> Vec<Vec<&'w Write<'a>>> {
        if self.0.is_empty() {
            return vec![part.iter().collect()];
        }
        let (mut rest, first): (Vec<_>, Vec<_>) = part
            .iter()
            .partition(|write| self.destination(write).is_some());
        let mut rounds = vec![first];
        while !rest.is_empty() {
            let open: HashSet<_> = rest.iter().filter_map(|write| place(write)).collect();
            let (blocked, ready): (Vec<_>, Vec<_>) = rest.iter().copied().partition(|write| {
                self.destination(write)
                    .is_some_and(|destination| open.contains(&destination))
            });
            if ready.is_empty() {
                rounds.push(blocked);
                break;
            }
            rounds.push(ready);
            rest = blocked;
        }
        rounds.retain(|round| !round.is_empty());
        rounds
    }

    /// Where the row that was under the key of a write went.
    fn destination<'s>(&'s self, write: &Write<'a>) -> Option<(&'a TableId, &'s str)> {
        let (table, key) = place(write)?;
        let to = self.0.get(&(table, key.to_owned()))?;
        Some((table, to))
    }
}

fn place<'w, 'a>(write: &'w Write<'a>) -> Option<(&'a TableId, &'w str)> {
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

    use super::*;
    use lockstep_core::position::{Lsn, Position};
    use lockstep_core::schema::TableSchema;

    fn rounds(moves: &[(&str, &str)], keys: &[&str]) -> Vec<Vec<String>> {
        let schema = Arc::new(TableSchema::message("orders".into()));
        let of = |(from, to): &(&str, &str)| ((&schema.id, (*from).to_owned()), (*to).to_owned());
        let moves = Moves(moves.iter().map(of).collect());
        let writes: Vec<_> = keys
            .iter()
            .map(|key| Write::Delete {
                key: (*key).to_owned(),
                schema: &schema,
                position: Position {
                    commit: Lsn(1),
                    ordinal: 1,
                },
                commit_micros: 0,
            })
            .collect();
        let shown = |write: &&Write<'_>| place(write).map(|(_, key)| key.to_owned());
        moves
            .rounds(&writes)
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
        let circle = [("1", "2"), ("2", "1")];
        assert_eq!(
            rounds(&circle, &["1", "2", "3"]),
            [vec!["3"], vec!["1", "2"]]
        );
    }
}

//! What identifies a row in the stream.

use lockstep_core::schema::ReplicaIdentity;

use super::{Described, TableFacts};

/// Indices of the key columns, in key order. The key is what identifies a row in the stream: the columns of the
/// replica-identity index, else the primary key. Under FULL every column is flagged, so the catalog's primary key is
/// taken; without one there is no key.
pub(super) fn of(described: &Described, facts: Option<&TableFacts>) -> Vec<u16> {
    let index_of = |name: &String| {
        described
            .columns
            .iter()
            .position(|column| column.0 == *name)
            .map(|at| at as u16)
    };
    let named = |names: &[String]| -> Option<Vec<u16>> {
        let found: Option<Vec<u16>> = names.iter().map(index_of).collect();
        found.filter(|found| !found.is_empty())
    };
    let flagged: Vec<u16> = (0..described.columns.len() as u16)
        .filter(|&at| described.columns[usize::from(at)].3)
        .collect();
    let same_set = |found: &Vec<u16>| {
        let mut sorted = found.clone();
        sorted.sort_unstable();
        sorted == flagged
    };
    match described.identity {
        ReplicaIdentity::Full | ReplicaIdentity::Nothing => facts
            .and_then(|facts| named(&facts.primary_key))
            .unwrap_or_default(),
        // The catalog may already be ahead of the stream: its order counts only for the same columns, which may have
        // been renamed since.
        ReplicaIdentity::Default | ReplicaIdentity::Index => {
            let order = facts.map(|facts| match described.identity {
                ReplicaIdentity::Index => (facts, &facts.identity_index),
                _ => (facts, &facts.primary_key),
            });
            order
                .and_then(|(facts, names)| {
                    named(names)
                        .filter(same_set)
                        .or_else(|| placed(described, facts, names).filter(same_set))
                })
                .unwrap_or(flagged)
        }
    }
}

/// Indices of the columns that have these names in the catalog, when names are all that has changed of the columns there
/// were: later ones come behind them.
fn placed(described: &Described, facts: &TableFacts, names: &[String]) -> Option<Vec<u16>> {
    let same_types = described.columns.len() <= facts.columns.len()
        && described
            .columns
            .iter()
            .zip(&facts.columns)
            .all(|(column, now)| column.1 == now.type_oid);
    let place = |name: &String| {
        let at = facts
            .columns
            .iter()
            .position(|column| column.name == *name)?;
        (at < described.columns.len()).then_some(at as u16)
    };
    same_types
        .then(|| names.iter().map(place).collect())
        .flatten()
}

#[cfg(test)]
mod tests {
    use lockstep_core::schema::TableId;

    use super::*;
    use crate::catalog::ColumnFacts;

    fn described(columns: &[(&str, bool)]) -> Described {
        let column = |(name, key): &(&str, bool)| ((*name).to_owned(), 23, -1, *key);
        Described {
            relation: 1,
            id: TableId::new("public", "t"),
            identity: ReplicaIdentity::Default,
            columns: columns.iter().map(column).collect(),
        }
    }

    fn facts(columns: &[(&str, u32)], key: &[&str]) -> TableFacts {
        let column = |(name, type_oid): &(&str, u32)| ColumnFacts {
            name: (*name).to_owned(),
            type_oid: *type_oid,
            typmod: -1,
            not_null: true,
            generated: false,
        };
        TableFacts {
            columns: columns.iter().map(column).collect(),
            primary_key: key.iter().map(|&name| name.to_owned()).collect(),
            identity_index: Vec::new(),
            identity: ReplicaIdentity::Default,
            deferrable_key: false,
        }
    }

    #[test]
    fn the_order_of_a_key_survives_what_has_happened_since() {
        let then = described(&[("a", true), ("b", true), ("c", false)]);
        let key = |facts| of(&then, Some(&facts));
        let now = [("a", 23), ("b", 23), ("c", 23)];
        assert_eq!(key(facts(&now, &["b", "a"])), [1, 0]);
        let renamed = [("a", 23), ("z", 23), ("c", 23), ("new", 25)];
        assert_eq!(key(facts(&renamed, &["z", "a"])), [1, 0], "renamed since");
        assert_eq!(key(facts(&now, &["c"])), [0, 1], "another key since");
        let shifted = [("b", 23), ("c", 23)];
        assert_eq!(key(facts(&shifted, &["b", "c"])), [0, 1], "dropped since");
    }
}

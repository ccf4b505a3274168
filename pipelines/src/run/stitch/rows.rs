//! Which rows a transaction has changed, as digests.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use lockstep_core::batch::{Batch, CellRef, Change, Op, Row};
use lockstep_core::schema::TableSchema;
use lockstep_transactions::marker;
use lockstep_transactions::order::Keys;

/// What has changed more of them counts as if it may have changed any.
const MOST: usize = 10_000;

/// The rows of a transaction as far as it has come.
#[derive(Debug, Default)]
pub(super) struct Rows {
    digests: HashSet<u64>,
    is_any: bool,
}

impl Rows {
    /// Takes note of changes of a batch.
    pub fn note(&mut self, batch: &Batch, changes: &[Change]) {
        for change in changes {
            if self.is_any {
                return;
            }
            self.note_one(batch, change);
            self.is_any |= self.digests.len() > MOST;
        }
    }

    fn note_one(&mut self, batch: &Batch, change: &Change) {
        let schema = batch.schema(change);
        if change.op == Op::Truncate {
            self.is_any = true;
            return;
        }
        let schema_is = |prefix: &str| {
            let row = batch.new_row(change)?;
            let column = schema.columns.first()?;
            Some(row.get(column).text()? == prefix.as_bytes())
        };
        // What says which transaction a branch belongs to is no row of anybody.
        if change.op == Op::Message && schema_is(marker::PREFIX) == Some(true) {
            return;
        }
        let rows = [batch.old_row(change), batch.new_row(change)];
        for row in rows.into_iter().flatten() {
            match digest(schema, change.op, row) {
                Some(digest) => {
                    self.digests.insert(digest);
                }
                None => self.is_any = true,
            }
        }
    }

    pub fn keys(self) -> Keys {
        match self.is_any {
            true => Keys::Any,
            false => Keys::These(self.digests.into_iter().collect()),
        }
    }
}

/// `None`: it cannot be told apart from others.
fn digest(schema: &TableSchema, op: Op, row: Row<'_>) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    schema.origin.hash(&mut hasher);
    // Messages of one prefix keep their order among each other.
    let messages = schema.columns.iter().take(1).filter(|_| op == Op::Message);
    let mut columns = 0;
    for column in schema.key_columns().chain(messages) {
        columns += 1;
        match row.get(column) {
            CellRef::Text(bytes) | CellRef::Binary(bytes) => bytes.hash(&mut hasher),
            CellRef::Null | CellRef::Unchanged => return None,
        }
    }
    (columns > 0).then(|| hasher.finish())
}

#[cfg(test)]
mod tests {
    use lockstep_conformance::feed::{Feed, INT4, TEXT, V, source, table};

    use super::*;

    /// The rows that these changes of a table of numbers and notes have in common with others.
    fn keys(make: impl FnOnce(&mut Feed) -> &mut Feed) -> Keys {
        let mut feed = Feed::new(&source("shop"));
        feed.begin(10);
        make(&mut feed);
        let batch = feed.finish();
        let mut rows = Rows::default();
        rows.note(&batch, batch.changes());
        rows.keys()
    }

    fn count(keys: &Keys) -> Option<usize> {
        match keys {
            Keys::Any => None,
            Keys::These(rows) => Some(rows.len()),
        }
    }

    #[test]
    fn rows_are_told_apart_by_table_and_key() {
        let t = table(
            "shop",
            "t",
            1,
            &[("id", "int4", INT4), ("note", "text", TEXT)],
        );
        let u = table(
            "shop",
            "u",
            1,
            &[("id", "int4", INT4), ("note", "text", TEXT)],
        );
        let one = keys(|feed| feed.insert(&t, &["1".into(), "a".into()]));
        let again = keys(|feed| feed.update(&t, &["1".into(), "b".into()]));
        let gone = keys(|feed| feed.delete(&t, "1"));
        assert_eq!((&one, &one), (&again, &gone));
        assert_eq!(count(&one), Some(1));
        for other in [
            keys(|feed| feed.insert(&t, &["2".into(), "a".into()])),
            keys(|feed| feed.insert(&u, &["1".into(), "a".into()])),
        ] {
            assert_ne!(one, other);
        }
        // One that moves has both.
        let moved = keys(|feed| feed.rekey(&t, "1", &["2".into(), "a".into()]));
        assert_eq!(count(&moved), Some(2));
    }

    #[test]
    fn what_cannot_be_told_apart_may_be_any() {
        let t = table(
            "shop",
            "t",
            1,
            &[("id", "int4", INT4), ("note", "text", TEXT)],
        );
        let mut nameless = (*t).clone();
        nameless.key.clear();
        let nameless = std::sync::Arc::new(nameless);
        for any in [
            keys(|feed| feed.truncate(&t)),
            keys(|feed| feed.insert(&nameless, &["1".into(), "a".into()])),
            keys(|feed| feed.update(&t, &[V::Unchanged, "a".into()])),
            keys(|feed| {
                for id in 0..=MOST {
                    feed.insert(&t, &[V::Text(&id.to_string()), "a".into()]);
                }
                feed
            }),
        ] {
            assert_eq!(count(&any), None);
        }
    }
}

use std::collections::{BTreeMap, HashSet};

use lockstep_core::ErrorKind;
use lockstep_core::batch::{CellRef, OldImage, Phase};
use proptest::prelude::*;

use super::*;
use crate::testing::{Maker, Value, base, table};

/// Columns after the key.
const WIDTH: usize = 3;
pub(super) type Cells = [String; WIDTH];
/// Table name → key → values.
pub(super) type State = BTreeMap<(usize, String), Cells>;

/// What a client of the database does.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Insert {
        table: usize,
        key: u8,
    },
    /// `touched`: which columns get a new value; the others are unchanged TOAST.
    Update {
        table: usize,
        key: u8,
        touched: [bool; WIDTH],
    },
    Rekey {
        table: usize,
        from: u8,
        to: u8,
        touched: [bool; WIDTH],
    },
    Delete {
        table: usize,
        key: u8,
    },
    Truncate {
        table: usize,
    },
    /// A new shape of the table: another `Arc` with the last column of another type.
    Alter {
        table: usize,
    },
    Commit,
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let table = 0..2_usize;
    let key = 0..5_u8;
    prop_oneof![
        3 => (table.clone(), key.clone()).prop_map(|(table, key)| Step::Insert { table, key }),
        4 => (table.clone(), key.clone(), any::<[bool; WIDTH]>())
            .prop_map(|(table, key, touched)| Step::Update { table, key, touched }),
        5 => (table.clone(), key.clone(), key.clone(), any::<[bool; WIDTH]>())
            .prop_map(|(table, from, to, touched)| Step::Rekey { table, from, to, touched }),
        2 => (table.clone(), key.clone()).prop_map(|(table, key)| Step::Delete { table, key }),
        1 => table.clone().prop_map(|table| Step::Truncate { table }),
        1 => table.prop_map(|table| Step::Alter { table }),
        2 => Just(Step::Commit),
    ]
}

fn shape(table_index: usize, version: u32) -> Arc<TableSchema> {
    let last = if version.is_multiple_of(2) {
        base(25, "text")
    } else {
        base(1043, "varchar")
    };
    table(
        ["orders", "items"][table_index],
        &[
            ("id", base(25, "text")),
            ("a", base(25, "text")),
            ("b", base(25, "text")),
            ("c", last),
        ],
        1,
    )
}

/// Plays the steps that are possible against `state`, which ends as the database ends, and records them as changes.
pub(super) fn play(steps: &[Step], state: &mut State) -> Batch {
    let mut maker = Maker::new(100);
    let mut commit = 100;
    let mut versions = [0, 0];
    let mut schemas = [shape(0, 0), shape(1, 0)];
    let mut fresh = 0;
    let mut value = || {
        fresh += 1;
        format!("v{fresh}")
    };
    for step in steps {
        match step {
            Step::Insert { table, key } => {
                let key = key.to_string();
                if state.contains_key(&(*table, key.clone())) {
                    continue;
                }
                let cells: Cells = std::array::from_fn(|_| value());
                let row = [&*key, &cells[0], &cells[1], &cells[2]].map(Value::Text);
                maker.push(Op::Insert, &schemas[*table], None, Some(&row));
                state.insert((*table, key), cells);
            }
            Step::Update {
                table,
                key,
                touched,
            } => {
                update(
                    &mut maker,
                    &schemas[*table],
                    state,
                    *table,
                    *key,
                    *key,
                    *touched,
                    &mut value,
                );
            }
            Step::Rekey {
                table,
                from,
                to,
                touched,
            } => {
                if from != to {
                    update(
                        &mut maker,
                        &schemas[*table],
                        state,
                        *table,
                        *from,
                        *to,
                        *touched,
                        &mut value,
                    );
                }
            }
            Step::Delete { table, key } => {
                let key = key.to_string();
                if state.remove(&(*table, key.clone())).is_none() {
                    continue;
                }
                let old = [Value::Text(&key), Value::Null, Value::Null, Value::Null];
                maker.push(
                    Op::Delete,
                    &schemas[*table],
                    Some((OldImage::Key, &old)),
                    None,
                );
            }
            Step::Truncate { table } => {
                state.retain(|(of, _), _| of != table);
                maker.push(Op::Truncate, &schemas[*table], None, None);
            }
            Step::Alter { table } => {
                versions[*table] += 1;
                schemas[*table] = shape(*table, versions[*table]);
            }
            Step::Commit => {
                commit += 10;
                maker.begin(commit, Some(commit - 10));
            }
        }
    }
    maker.batch(Phase::Stream)
}

#[allow(clippy::too_many_arguments)]
fn update(
    maker: &mut Maker,
    schema: &Arc<TableSchema>,
    state: &mut State,
    table: usize,
    from: u8,
    to: u8,
    touched: [bool; WIDTH],
    value: &mut dyn FnMut() -> String,
) {
    let (from, to) = (from.to_string(), to.to_string());
    if from != to && state.contains_key(&(table, to.clone())) {
        return;
    }
    let Some(mut cells) = state.remove(&(table, from.clone())) else {
        return;
    };
    for (cell, _) in cells
        .iter_mut()
        .zip(touched)
        .filter(|(_, touched)| *touched)
    {
        *cell = value();
    }
    let mut row = vec![Value::Text(&to)];
    row.extend(cells.iter().zip(touched).map(|(cell, touched)| {
        if touched {
            Value::Text(cell)
        } else {
            Value::Unchanged
        }
    }));
    let old = [Value::Text(&from), Value::Null, Value::Null, Value::Null];
    let old = (from != to).then_some((OldImage::Key, &old[..]));
    maker.push(Op::Update, schema, old, Some(&row));
    state.insert((table, to), cells);
}

pub(super) fn table_index(schema: &TableSchema) -> usize {
    usize::from(&*schema.id.name == "items")
}

/// Applies folded writes in order, as the simplest sink would.
fn apply(batch: &Batch, parts: &[Part<'_>], state: &mut State) {
    for write in parts.iter().flat_map(Part::writes) {
        let held = held(write, state);
        apply_one(batch, write, held, state);
    }
}

/// Applies them part by part: reads first, then writes from the back.
fn apply_parts(batch: &Batch, parts: &[Part<'_>], state: &mut State) {
    for part in parts {
        let held: Vec<_> = part
            .writes()
            .iter()
            .map(|write| held(write, state))
            .collect();
        for (write, held) in part.writes().iter().zip(held).rev() {
            apply_one(batch, write, held, state);
        }
    }
}

/// What a write has to read.
fn held(write: &Write<'_>, state: &State) -> Option<Cells> {
    let Write::Upsert {
        missing_from: Some(from),
        schema,
        ..
    } = write
    else {
        return None;
    };
    let held = state.get(&(table_index(schema), from.clone()));
    Some(
        held.unwrap_or_else(|| panic!("{from} is not in the sink"))
            .clone(),
    )
}

fn apply_one(batch: &Batch, write: &Write<'_>, held: Option<Cells>, state: &mut State) {
    let table = table_index(write.schema());
    match write {
        Write::Truncate { .. } => state.retain(|(of, _), _| *of != table),
        Write::Delete { key, .. } => {
            state.remove(&(table, key.clone()));
        }
        Write::Upsert {
            key, schema, row, ..
        } => {
            let cells = spliced(row.row(batch), schema, held.as_ref());
            state.insert((table, key.clone()), cells);
        }
    }
}

/// The values of a row, what it keeps taken from `held`.
pub(super) fn spliced(row: Row<'_>, schema: &TableSchema, held: Option<&Cells>) -> Cells {
    let mut unresolved = false;
    let cells = std::array::from_fn(|index| match row.get(&schema.columns[index + 1]) {
        CellRef::Text(value) => String::from_utf8(value.to_vec()).expect("UTF-8"),
        CellRef::Unchanged => {
            unresolved = true;
            held.expect("a place to read it from")[index].clone()
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(unresolved, held.is_some());
    cells
}

fn keys_are_unique(parts: &[Part<'_>]) -> bool {
    let mut seen = HashSet::new();
    parts
        .iter()
        .flat_map(Part::writes)
        .all(|write| match write {
            Write::Upsert { key, schema, .. } | Write::Delete { key, schema, .. } => {
                seen.insert((schema.id.clone(), key.clone()))
            }
            Write::Truncate { .. } => true,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn folding_ends_where_the_changes_end(
        present in proptest::collection::vec((0..2_usize, 0..5_u8), 0..6),
        steps in proptest::collection::vec(step(), 0..40),
    ) {
        let mut sink: State = present
            .iter()
            .map(|(table, key)| {
                ((*table, key.to_string()), std::array::from_fn(|column| format!("old{key}{column}")))
            })
            .collect();
        let mut database = sink.clone();
        let batch = play(&steps, &mut database);
        let parts = fold(&batch).expect("all tables have keys");
        prop_assert!(parts.iter().all(|part| keys_are_unique(std::slice::from_ref(part))));
        let mut by_parts = sink.clone();
        apply(&batch, &parts, &mut sink);
        prop_assert_eq!(sink, database.clone());
        apply_parts(&batch, &parts, &mut by_parts);
        prop_assert_eq!(by_parts, database);
    }

    #[test]
    fn without_unchanged_values_a_key_occurs_once(steps in proptest::collection::vec(step(), 0..40)) {
        let steps: Vec<Step> = steps
            .into_iter()
            .filter(|step| !matches!(step, Step::Truncate { .. }))
            .map(|step| match step {
                Step::Update { table, key, .. } => Step::Update { table, key, touched: [true; WIDTH] },
                Step::Rekey { table, from, to, .. } => Step::Rekey { table, from, to, touched: [true; WIDTH] },
                step => step,
            })
            .collect();
        let batch = play(&steps, &mut State::new());
        prop_assert!(keys_are_unique(&fold(&batch).expect("all tables have keys")));
    }
}

fn keyed(name: &str, keys: u16) -> Arc<TableSchema> {
    table(
        name,
        &[("id", base(23, "int4")), ("note", base(25, "text"))],
        keys,
    )
}

#[test]
fn a_key_change_is_an_upsert_that_reads_the_old_key_and_a_delete() {
    let schema = keyed("orders", 1);
    let mut maker = Maker::new(100);
    let old = ["3".into(), Value::Null];
    maker.push(
        Op::Update,
        &schema,
        Some((OldImage::Key, &old)),
        Some(&["33".into(), Value::Unchanged]),
    );
    let batch = maker.batch(Phase::Stream);
    let parts = fold(&batch).expect("has a key");
    let [
        Write::Upsert {
            key,
            missing_from,
            position,
            ..
        },
        Write::Delete { key: old_key, .. },
    ] = parts[0].writes()
    else {
        panic!("{parts:?}");
    };
    assert_eq!(
        (&**key, missing_from.as_deref(), &**old_key),
        ("33", Some("3"), "3")
    );
    assert_eq!((position.commit.0, position.ordinal), (100, 1));
}

#[test]
fn values_left_behind_are_those_from_before_the_key_change() {
    let schema = keyed("orders", 1);
    let mut maker = Maker::new(100);
    let unchanged = |key: &'static str| [key.into(), Value::Unchanged];
    let old = unchanged("3");
    maker.push(
        Op::Update,
        &schema,
        Some((OldImage::Key, &old)),
        Some(&unchanged("33")),
    );
    // Another row takes the old key, and the moved one is changed once more.
    maker.begin(200, Some(100));
    maker.push(Op::Insert, &schema, None, Some(&["3".into(), "new".into()]));
    maker.begin(300, Some(200));
    maker.push(Op::Update, &schema, None, Some(&unchanged("33")));
    maker.push(Op::Update, &schema, None, Some(&unchanged("4")));
    let batch = maker.batch(Phase::Stream);
    let parts = fold(&batch).expect("has a key");
    let missing: Vec<_> = parts
        .iter()
        .flat_map(Part::writes)
        .filter_map(|write| match write {
            Write::Upsert {
                key,
                missing_from: Some(from),
                missing_before,
                position,
                ..
            } => Some((&**key, &**from, missing_before.commit.0, position.commit.0)),
            _ => None,
        })
        .collect();
    assert_eq!(missing, [("33", "3", 100, 300), ("4", "4", 300, 300)]);
}

#[test]
fn a_truncate_is_about_one_table_of_the_database() {
    let schema = keyed("orders", 1);
    let beside = Arc::new(TableSchema {
        origin: TableId::new("public", "orders_2025"),
        ..(*schema).clone()
    });
    let mut maker = Maker::new(100);
    maker.push(Op::Insert, &schema, None, Some(&["1".into(), "a".into()]));
    maker.push(Op::Insert, &beside, None, Some(&["2".into(), "b".into()]));
    maker.push(Op::Truncate, &schema, None, None);
    let batch = maker.batch(Phase::Stream);
    let parts = fold(&batch).expect("has a key");
    let keys: Vec<_> = parts
        .iter()
        .flat_map(Part::writes)
        .map(|write| match write {
            Write::Upsert { key, .. } | Write::Delete { key, .. } => key.as_str(),
            Write::Truncate { .. } => "truncate",
        })
        .collect();
    assert_eq!(keys, ["2", "truncate"]);
}

#[test]
fn a_write_carries_the_position_of_the_last_change() {
    let schema = keyed("orders", 1);
    let mut maker = Maker::new(100);
    maker.push(Op::Insert, &schema, None, Some(&["1".into(), "a".into()]));
    maker.begin(200, Some(100));
    maker.push(
        Op::Update,
        &schema,
        None,
        Some(&["1".into(), Value::Unchanged]),
    );
    let batch = maker.batch(Phase::Stream);
    let parts = fold(&batch).expect("has a key");
    assert!(is_independent(&parts));
    let [part] = &parts[..] else {
        panic!("{parts:?}");
    };
    let writes = part.writes();
    assert_eq!(writes.len(), 1);
    assert_eq!(writes[0].position().commit.0, 200);
    let Write::Upsert {
        row,
        missing_from: None,
        ..
    } = &writes[0]
    else {
        panic!("{writes:?}");
    };
    assert_eq!(row.row(&batch).get(&schema.columns[1]), CellRef::Text(b"a"));
}

#[test]
fn messages_are_skipped_and_tables_without_key_refused() {
    let mut maker = Maker::new(100);
    let message = Arc::new(TableSchema::message("orders".into()));
    maker.push(Op::Message, &message, None, Some(&["p".into(), "c".into()]));
    assert!(
        fold(&maker.batch(Phase::Stream))
            .expect("nothing to do")
            .is_empty()
    );

    let mut maker = Maker::new(100);
    maker.push(
        Op::Insert,
        &keyed("log", 0),
        None,
        Some(&["1".into(), "a".into()]),
    );
    let batch = maker.batch(Phase::Stream);
    let error = fold(&batch).expect_err("no key");
    assert_eq!(error.kind(), ErrorKind::Setup);
    assert!(error.to_string().contains("public.log"), "{error}");
}

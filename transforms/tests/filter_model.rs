//! `filter` against direct models: of the predicate language, and of what a filtered copy should hold.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;

use common::*;
use lockstep_core::batch::{Batch, OldImage, Op};
use lockstep_core::schema::ReplicaIdentity;
use lockstep_transforms::Filter;
use proptest::prelude::*;
use serde_json::json;

/// A row: an integer, a numeric in hundredths, a text, a boolean.
#[derive(Clone, Debug)]
struct Values {
    int: Option<i64>,
    cents: Option<i64>,
    text: Option<String>,
    flag: Option<bool>,
}

#[derive(Clone, Debug)]
enum Model {
    Int(&'static str, i64),
    Cents(&'static str, i64),
    Text(&'static str, String),
    IntIn(Vec<i64>),
    TextIn(Vec<String>),
    Prefix(String),
    Null(u8),
    Flag,
    Not(Box<Model>),
    And(Box<Model>, Box<Model>),
    Or(Box<Model>, Box<Model>),
}

const OPERATORS: [&str; 6] = ["=", "<>", "<", "<=", ">", ">="];
const COLUMNS: [&str; 4] = ["a", "b", "s", "f"];

fn compare<T: Ord>(operator: &str, left: &T, right: &T) -> bool {
    match operator {
        "=" => left == right,
        "<>" => left != right,
        "<" => left < right,
        "<=" => left <= right,
        ">" => left > right,
        _ => left >= right,
    }
}

impl Model {
    /// SQL's three values.
    fn eval(&self, row: &Values) -> Option<bool> {
        match self {
            Model::Int(operator, value) => row.int.map(|int| compare(operator, &int, value)),
            Model::Cents(operator, value) => {
                row.cents.map(|cents| compare(operator, &cents, value))
            }
            Model::Text(operator, value) => {
                row.text.as_ref().map(|text| compare(operator, text, value))
            }
            Model::IntIn(list) => row.int.map(|int| list.contains(&int)),
            Model::TextIn(list) => row.text.as_ref().map(|text| list.contains(text)),
            Model::Prefix(prefix) => row
                .text
                .as_ref()
                .map(|text| text.starts_with(prefix.as_str())),
            Model::Null(column) => Some(match column {
                0 => row.int.is_none(),
                1 => row.cents.is_none(),
                2 => row.text.is_none(),
                _ => row.flag.is_none(),
            }),
            Model::Flag => row.flag,
            Model::Not(inner) => inner.eval(row).map(|value| !value),
            Model::And(left, right) => match (left.eval(row), right.eval(row)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
            Model::Or(left, right) => match (left.eval(row), right.eval(row)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
        }
    }

    /// As a user would write it, with as few parentheses as needed.
    fn write(&self, level: u8) -> String {
        let quote = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let (text, own) = match self {
            Model::Int(operator, value) => (format!("a {operator} {value}"), 3),
            Model::Cents(operator, value) => (format!("B{operator}{}", decimal(*value)), 3),
            Model::Text(operator, value) => (format!("s {operator} {}", quote(value)), 3),
            Model::IntIn(list) => {
                let list: Vec<String> = list.iter().map(i64::to_string).collect();
                (format!("a IN ({})", list.join(",")), 3)
            }
            Model::TextIn(list) => {
                let list: Vec<String> = list.iter().map(|text| quote(text)).collect();
                (format!("s in ({})", list.join(", ")), 3)
            }
            Model::Prefix(prefix) => {
                let escaped = prefix
                    .replace('\\', r"\\")
                    .replace('%', r"\%")
                    .replace('_', r"\_");
                (format!("s like {}", quote(&format!("{escaped}%"))), 3)
            }
            Model::Null(column) => (format!("{} is null", COLUMNS[usize::from(*column)]), 3),
            Model::Flag => ("f".to_owned(), 3),
            Model::Not(inner) => (format!("not {}", inner.write(2)), 2),
            Model::And(left, right) => (format!("{} and {}", left.write(1), right.write(2)), 1),
            Model::Or(left, right) => (format!("{} or {}", left.write(0), right.write(1)), 0),
        };
        if own < level {
            format!("({text})")
        } else {
            text
        }
    }

    /// The same in CEL, where NULL is the same as NULL and as nothing else.
    fn write_cel(&self) -> String {
        let quote = |text: &str| format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"));
        let unless_null =
            |column: &str, test: String| format!("({column} != null ? {test} : null)");
        let compared = |column: &str, operator: &str, value: String| match operator {
            "=" => unless_null(column, format!("{column} == {value}")),
            "<>" => unless_null(column, format!("{column} != {value}")),
            operator => format!("{column} {operator} {value}"),
        };
        let listed = |list: Vec<String>| format!("[{}]", list.join(", "));
        match self {
            Model::Int(operator, value) => compared("a", operator, value.to_string()),
            Model::Cents(operator, value) => compared("b", operator, decimal(*value)),
            Model::Text(operator, value) => compared("s", operator, quote(value)),
            Model::IntIn(list) => {
                let list = listed(list.iter().map(i64::to_string).collect());
                unless_null("a", format!("a in {list}"))
            }
            Model::TextIn(list) => {
                let list = listed(list.iter().map(|text| quote(text)).collect());
                unless_null("s", format!("s in {list}"))
            }
            Model::Prefix(prefix) => format!("s.startsWith({})", quote(prefix)),
            Model::Null(column) => format!("{} == null", COLUMNS[usize::from(*column)]),
            Model::Flag => "f".to_owned(),
            Model::Not(inner) => format!("!({})", inner.write_cel()),
            Model::And(left, right) => format!("({}) && ({})", left.write_cel(), right.write_cel()),
            Model::Or(left, right) => format!("({}) || ({})", left.write_cel(), right.write_cel()),
        }
    }
}

fn decimal(cents: i64) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    format!("{sign}{}.{:02}", cents.abs() / 100, cents.abs() % 100)
}

fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(
        prop::sample::select(vec!['a', 'b', '%', '_', '\\', '\'', 'é']),
        0..3,
    )
    .prop_map(|chars| chars.into_iter().collect())
}

fn model() -> impl Strategy<Value = Model> {
    let operator = || prop::sample::select(OPERATORS.to_vec());
    let leaf = prop_oneof![
        (operator(), -3_i64..4).prop_map(|(operator, value)| Model::Int(operator, value)),
        (operator(), -300_i64..300).prop_map(|(operator, value)| Model::Cents(operator, value)),
        (operator(), text()).prop_map(|(operator, value)| Model::Text(operator, value)),
        proptest::collection::vec(-3_i64..4, 1..4).prop_map(Model::IntIn),
        proptest::collection::vec(text(), 1..4).prop_map(Model::TextIn),
        text().prop_map(Model::Prefix),
        (0_u8..4).prop_map(Model::Null),
        Just(Model::Flag),
    ];
    leaf.prop_recursive(5, 24, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|inner| Model::Not(Box::new(inner))),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| Model::And(Box::new(a), Box::new(b))),
            (inner.clone(), inner).prop_map(|(a, b)| Model::Or(Box::new(a), Box::new(b))),
        ]
    })
}

fn values() -> impl Strategy<Value = Values> {
    (
        proptest::option::of(-3_i64..4),
        proptest::option::of(-300_i64..300),
        proptest::option::of(text()),
        proptest::option::of(any::<bool>()),
    )
        .prop_map(|(int, cents, text, flag)| Values {
            int,
            cents,
            text,
            flag,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_language_means_what_sql_means(model in model(), rows in proptest::collection::vec(values(), 1..20)) {
        let columns = ["a int8", "b numeric", "s text", "f bool"];
        let table = table("public.t", &columns, &[], ReplicaIdentity::Full);
        let predicate = model.write(0);
        let mut filter = open::<Filter>(json!({"where": &predicate}), &[&table]).unwrap();
        let when = model.write_cel();
        let mut by_expression = open::<Filter>(json!({"when": &when}), &[&table]).unwrap();
        for row in rows {
            let int = row.int.map_or_else(|| NULL.to_owned(), |int| int.to_string());
            // Trailing zeros must not matter.
            let cents = row.cents.map_or_else(|| NULL.to_owned(), |cents| format!("{}0", decimal(cents)));
            let text = row.text.clone().unwrap_or_else(|| NULL.to_owned());
            let flag = row.flag.map_or(NULL, |flag| if flag { "t" } else { "f" });
            let batch = || Feed::new().begin(1, 1).insert(&table, &[&int, &cents, &text, flag]).finish();
            let passed = !filter.apply_now(batch()).unwrap().changes().is_empty();
            let passed_by_expression = !by_expression.apply_now(batch()).unwrap().changes().is_empty();
            prop_assert_eq!(passed, passed_by_expression, "{} and {} over {:?}", predicate, when, row);
            prop_assert_eq!(passed, model.eval(&row) == Some(true), "{} over {:?}", predicate, row);
        }
    }
}

/// One step of a table's life.
#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Move(u8, u8, u8),
    Delete(u8),
    Truncate,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_u8..4, 0_u8..6).prop_map(|(id, value)| Step::Put(id, value)),
        3 => (0_u8..4, 0_u8..4, 0_u8..6).prop_map(|(from, to, value)| Step::Move(from, to, value)),
        3 => (0_u8..4).prop_map(Step::Delete),
        1 => Just(Step::Truncate),
    ]
}

/// A copy as a state sink keeps it.
fn fold(copy: &mut BTreeMap<String, String>, batch: &Batch) {
    for change in batch.changes() {
        let schema = batch.schema(change);
        let text = |row: lockstep_core::batch::Row<'_>, column: usize| {
            let text = row.get(&schema.columns[column]).text().unwrap();
            String::from_utf8(text.to_vec()).unwrap()
        };
        if change.op == Op::Truncate {
            copy.clear();
        }
        if let Some(old) = batch.old_row(change) {
            copy.remove(&text(old, 0));
        }
        if let Some(new) = batch.new_row(change) {
            copy.insert(text(new, 0), text(new, 1));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_copy_holds_the_rows_that_match(
        full in any::<bool>(),
        on_key in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let identity = if full { ReplicaIdentity::Full } else { ReplicaIdentity::Default };
        let table = table("public.t", &["id int8", "v int8"], &["id"], identity);
        let predicate = if on_key { "id >= 2" } else { "v >= 3" };
        let mut filter = open::<Filter>(json!({"where": predicate}), &[&table]).unwrap();
        let mut source: BTreeMap<u8, u8> = BTreeMap::new();
        let mut copy = BTreeMap::new();
        let image = if full { OldImage::Full } else { OldImage::Key };
        for (index, step) in steps.into_iter().enumerate() {
            let feed = Feed::new().begin(index as u64 + 1, 1);
            let old = |id: u8, source: &BTreeMap<u8, u8>| {
                let value = if full { source[&id].to_string() } else { NULL.to_owned() };
                [id.to_string(), value]
            };
            let feed = match step {
                Step::Put(id, value) => {
                    let new = [id.to_string(), value.to_string()];
                    let new = [new[0].as_str(), new[1].as_str()];
                    if !source.contains_key(&id) {
                        source.insert(id, value);
                        feed.insert(&table, &new)
                    } else if full {
                        let old = old(id, &source);
                        source.insert(id, value);
                        feed.update_from(&table, image, &[&old[0], &old[1]], &new)
                    } else {
                        source.insert(id, value);
                        feed.update(&table, &new)
                    }
                }
                Step::Move(from, to, value) if source.contains_key(&from) && !source.contains_key(&to) => {
                    let old = old(from, &source);
                    source.remove(&from);
                    source.insert(to, value);
                    feed.update_from(&table, image, &[&old[0], &old[1]], &[&to.to_string(), &value.to_string()])
                }
                Step::Delete(id) if source.contains_key(&id) => {
                    let old = old(id, &source);
                    source.remove(&id);
                    feed.delete(&table, image, &[&old[0], &old[1]])
                }
                Step::Truncate => {
                    source.clear();
                    feed.truncate(&table)
                }
                Step::Move(..) | Step::Delete(_) => feed,
            };
            fold(&mut copy, &filter.apply_now(feed.finish()).unwrap());
            let expected: BTreeMap<String, String> = source
                .iter()
                .filter(|(id, value)| if on_key { **id >= 2 } else { **value >= 3 })
                .map(|(id, value)| (id.to_string(), value.to_string()))
                .collect();
            prop_assert_eq!(&copy, &expected);
        }
    }
}

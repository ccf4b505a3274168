//! Each rule on rows that keep it and rows that do not.

use lockstep_core::Result;
use lockstep_core::query::{QueryColumn, Row};

use super::super::{Invariant, Rule, Shape};
use super::{invariant, text};

fn column(name: &str, exact: bool) -> QueryColumn {
    QueryColumn {
        name: name.to_owned(),
        kind: if exact { "numeric" } else { "float8" }.to_owned(),
        exact,
    }
}

/// Of a key, a quantity and a note.
fn row(quantity: &str, note: &str) -> Row {
    vec![text("k"), text(quantity), text(note)]
}

fn shape(rule: Rule) -> Shape {
    let columns = ["id", "quantity", "note"]
        .map(|name| column(name, true))
        .to_vec();
    Shape::of(&invariant(rule), &[columns.clone(), columns]).expect("fits")
}

fn broken(rule: Rule, left: &[(&str, &str)], right: &[(&str, &str)]) -> Option<String> {
    let rows = |rows: &[(&str, &str)]| {
        rows.iter()
            .map(|(quantity, note)| row(quantity, note))
            .collect()
    };
    shape(rule)
        .broken(&[rows(left), rows(right)])
        .expect("numbers")
}

#[test]
fn each_rule_says_what_is_wrong() {
    let (one, other) = (&[("1", "a")][..], &[("1", "b")][..]);
    let two = &[("1", "a"), ("2", "a")][..];
    // Notes are not compared.
    assert_eq!(broken(Rule::Equal, one, other), None);
    assert_eq!(broken(Rule::Equal, two, &[("2", "x"), ("1", "y")]), None);
    assert_eq!(
        broken(Rule::Equal, one, &[]).as_deref(),
        Some("inventory has no row")
    );
    assert_eq!(
        broken(Rule::Equal, &[], one).as_deref(),
        Some("orders has no row")
    );
    assert_eq!(
        broken(Rule::Equal, one, &[("2", "a")]).as_deref(),
        Some("quantity differs")
    );
    assert_eq!(
        broken(Rule::Equal, &[("1", ""), ("1", "")], one).as_deref(),
        Some("the rows differ")
    );

    assert_eq!(broken(Rule::SumEqual, two, &[("3", "")]), None);
    assert_eq!(broken(Rule::SumEqual, &[("0", "")], &[]), None);
    assert!(broken(Rule::SumEqual, two, one).is_some());

    assert_eq!(broken(Rule::AtMost, one, two), None);
    assert_eq!(broken(Rule::AtMost, &[], one), None);
    let told = broken(Rule::AtMost, two, one).expect("too much");
    assert_eq!(told, "quantity is 3 in orders and 1 in inventory");

    assert_eq!(broken(Rule::Subset, one, two), None);
    assert_eq!(broken(Rule::Subset, &[], two), None);
    assert_eq!(
        broken(Rule::Subset, two, one).as_deref(),
        Some("inventory has no such row")
    );
    assert_eq!(
        broken(Rule::Subset, two, &[]).as_deref(),
        Some("inventory has no row")
    );

    assert_eq!(broken(Rule::ExistsWithin, one, &[("9", "")]), None);
    assert_eq!(broken(Rule::ExistsWithin, &[], one), None);
    assert_eq!(
        broken(Rule::ExistsWithin, one, &[]).as_deref(),
        Some("inventory has no row")
    );

    assert_eq!(broken(Rule::NonNegative, &[("0", "")], &[("1", "")]), None);
    assert_eq!(
        broken(Rule::NonNegative, one, &[("-0.5", "")]).as_deref(),
        Some("quantity is -0.5")
    );

    assert_eq!(broken(Rule::Unique, one, &[]), None);
    assert_eq!(
        broken(Rule::Unique, one, other).as_deref(),
        Some("there are 2 rows of the key")
    );
    assert_eq!(
        broken(Rule::Unique, two, &[]).as_deref(),
        Some("there are 2 rows of the key")
    );
}

#[test]
fn a_direction_can_be_the_other_one() {
    let mut invariant = invariant(Rule::ExistsWithin);
    invariant.for_each = 1;
    let columns = vec![column("id", true)];
    let shape = Shape::of(&invariant, &[columns.clone(), columns]).expect("fits");
    let rows = vec![vec![text("k")]];
    assert_eq!(shape.broken(&[rows.clone(), vec![]]).expect("fits"), None);
    assert_eq!(
        shape.broken(&[vec![], rows]).expect("fits").as_deref(),
        Some("orders has no row")
    );
}

#[test]
fn queries_that_do_not_fit_the_rule_are_told() {
    let of = |change: fn(&mut Invariant),
              left: &[(&str, bool)],
              right: &[(&str, bool)]|
     -> Result<Shape> {
        let mut invariant = invariant(Rule::SumEqual);
        invariant.compare = None;
        change(&mut invariant);
        let columns = |columns: &[(&str, bool)]| {
            columns
                .iter()
                .map(|(name, exact)| column(name, *exact))
                .collect()
        };
        Shape::of(&invariant, &[columns(left), columns(right)])
    };
    let plain: fn(&mut Invariant) = |_| {};
    let key = ("id", true);
    assert!(of(plain, &[key, ("n", true)], &[key, ("n", true)]).is_ok());
    for (change, left, right, word) in [
        (
            plain,
            &[key, ("n", true)][..],
            &[key, ("m", true)][..],
            "differ by name",
        ),
        (plain, &[key], &[key], "no column to compute with"),
        (
            plain,
            &[key, ("n", false)],
            &[key, ("n", true)],
            "not exact",
        ),
        (
            plain,
            &[key, ("n", true), ("n", true)],
            &[key, ("n", true)],
            "two columns",
        ),
        (
            |one| one.compare = Some(vec!["x".to_owned()]),
            &[key, ("x", true)],
            &[key],
            "no column x",
        ),
    ] {
        let error = of(change, left, right).expect_err(word).to_string();
        assert!(error.contains(word) && error.contains("Remedy"), "{error}");
    }
    // Others may come along.
    let only = |one: &mut Invariant| one.compare = Some(vec!["n".to_owned()]);
    assert!(
        of(
            only,
            &[key, ("n", true), ("note", false)],
            &[key, ("n", true)]
        )
        .is_ok()
    );
    // Of a subset, the other side may have more.
    let subset = |one: &mut Invariant| one.rule = Rule::Subset;
    assert!(
        of(
            subset,
            &[key, ("n", false)],
            &[key, ("m", true), ("n", true)]
        )
        .is_ok()
    );
}

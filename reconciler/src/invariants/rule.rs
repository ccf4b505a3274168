//! The rules: whether the rows of one key are as they must be.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use lockstep_core::query::{QueryColumn, Row};
use lockstep_core::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Invariant;
use super::number::Number;

/// How the rows of one key relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Both sides have the same rows, each as often.
    Equal,
    /// The sums of both sides are the same, by column; no row is a sum of 0.
    SumEqual,
    /// The sums of the side `for_each` are no more than those of the other.
    AtMost,
    /// Each row of the side `for_each` is among those of the other.
    Subset,
    /// Where the side `for_each` has a row, the other has one, too; `within` says until when.
    ExistsWithin,
    /// No number is below zero.
    NonNegative,
    /// There is one row at most, all sides together.
    Unique,
}

impl Rule {
    /// The name in the pipeline file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::Equal => "equal",
            Rule::SumEqual => "sum_equal",
            Rule::AtMost => "at_most",
            Rule::Subset => "subset",
            Rule::ExistsWithin => "exists_within",
            Rule::NonNegative => "non_negative",
            Rule::Unique => "unique",
        }
    }

    /// Whether it is about two sides; else about any number of them.
    #[must_use]
    pub fn is_of_two(self) -> bool {
        !matches!(self, Rule::NonNegative | Rule::Unique)
    }

    /// Whether one of the sides has to be named.
    #[must_use]
    pub fn is_directed(self) -> bool {
        matches!(self, Rule::AtMost | Rule::Subset | Rule::ExistsWithin)
    }

    /// Whether it computes with values.
    fn is_of_numbers(self) -> bool {
        matches!(self, Rule::SumEqual | Rule::AtMost | Rule::NonNegative)
    }

    /// Whether it looks at other columns than the key.
    #[must_use]
    pub fn compares(self) -> bool {
        !matches!(self, Rule::ExistsWithin | Rule::Unique)
    }
}

/// A rule that knows where the columns stand that it is about.
#[derive(Clone, Debug)]
pub struct Shape {
    rule: Rule,
    for_each: usize,
    /// Names of the sides.
    sources: Vec<String>,
    /// Names of the columns that are compared.
    names: Vec<String>,
    /// Where they stand in rows, by side and in the order of `names`.
    places: Vec<Vec<usize>>,
}

fn wrong(message: String, remedy: &str) -> Error {
    Error::new(ErrorKind::Config, message).remedy(remedy)
}

impl Shape {
    /// `columns` are those of each side, the key's first.
    ///
    /// # Errors
    /// Of kind `Config`, when the rule is about columns that are not there or no numbers.
    pub fn of(invariant: &Invariant, columns: &[Vec<QueryColumn>]) -> Result<Self> {
        let rule = invariant.rule;
        let keys = invariant.key.len();
        let sources: Vec<String> = invariant
            .sides
            .iter()
            .map(|side| side.source.to_string())
            .collect();
        for (source, columns) in sources.iter().zip(columns) {
            let names: BTreeSet<&str> = columns.iter().map(|column| &*column.name).collect();
            if names.len() < columns.len() {
                let message = format!("the query of {source} has two columns of one name");
                return Err(wrong(message, "name them apart with AS"));
            }
        }
        let others = |side: usize| -> BTreeSet<String> {
            let others = columns[side].iter().skip(keys);
            others.map(|column| column.name.clone()).collect()
        };
        let names: Vec<String> = match (&invariant.compare, rule.compares()) {
            (_, false) => Vec::new(),
            (Some(names), true) => names.clone(),
            (None, true) if rule == Rule::Subset => {
                others(invariant.for_each).into_iter().collect()
            }
            (None, true) => {
                let all = others(0);
                if rule.is_of_two() && others(1) != all {
                    let message = "the queries have other columns than the key that differ by name";
                    return Err(wrong(
                        message.to_owned(),
                        "give them the same names with AS, or say in `compare` which ones the rule is about",
                    ));
                }
                all.into_iter().collect()
            }
        };
        if names.is_empty() && rule.is_of_numbers() {
            let message = format!("{} has no column to compute with", rule.as_str());
            return Err(wrong(message, "select one besides the key"));
        }
        let place = |side: usize, name: &String| {
            let source = &sources[side];
            let found = columns[side].iter().position(|column| column.name == *name);
            let at = found.ok_or_else(|| {
                let message = format!("the query of {source} has no column {name}");
                wrong(
                    message,
                    "give a column that name with AS, or leave it out of `compare`",
                )
            })?;
            let column = &columns[side][at];
            if rule.is_of_numbers() && !column.exact {
                let message = format!(
                    "column {name} of {source} is of type {}, and sums of it are not exact",
                    column.kind
                );
                return Err(wrong(message, "cast it to numeric or an integer type"));
            }
            Ok(at)
        };
        let places = (0..columns.len())
            .map(|side| names.iter().map(|name| place(side, name)).collect())
            .collect::<Result<_>>()?;
        Ok(Shape {
            rule,
            for_each: invariant.for_each,
            sources,
            names,
            places,
        })
    }

    /// What is wrong with the rows of one key, by side; `None` when nothing is.
    ///
    /// # Errors
    /// Of kind `Invalid`, when a value cannot be computed with.
    pub fn broken(&self, sides: &[Vec<Row>]) -> Result<Option<String>> {
        match self.rule {
            Rule::Equal => Ok(self.equal(sides)),
            Rule::SumEqual => self.sums(sides, |order| order != Ordering::Equal),
            Rule::AtMost => self.sums(sides, |order| order == Ordering::Greater),
            Rule::Subset => Ok(self.subset(sides)),
            Rule::ExistsWithin => Ok(self.exists(sides)),
            Rule::NonNegative => self.negative(sides),
            Rule::Unique => {
                let rows: usize = sides.iter().map(Vec::len).sum();
                Ok((rows > 1).then(|| format!("there are {rows} rows of the key")))
            }
        }
    }

    /// The side that rows are looked for in.
    fn other(&self) -> usize {
        1 - self.for_each.min(1)
    }

    fn compared<'a>(&self, side: usize, row: &'a Row) -> Vec<&'a Option<String>> {
        self.places[side].iter().map(|at| &row[*at]).collect()
    }

    fn equal(&self, sides: &[Vec<Row>]) -> Option<String> {
        let (left, right) = (&sides[0], &sides[1]);
        let missing = |side: usize| format!("{} has no row", self.sources[side]);
        match (left.is_empty(), right.is_empty()) {
            (true, false) => return Some(missing(0)),
            (false, true) => return Some(missing(1)),
            _ => {}
        }
        let mut balance: BTreeMap<Vec<&Option<String>>, i64> = BTreeMap::new();
        for row in left {
            *balance.entry(self.compared(0, row)).or_default() += 1;
        }
        for row in right {
            *balance.entry(self.compared(1, row)).or_default() -= 1;
        }
        if balance.values().all(|left| *left == 0) {
            return None;
        }
        if let ([left], [right]) = (&left[..], &right[..]) {
            let differs = |at: &usize| left[self.places[0][*at]] != right[self.places[1][*at]];
            let names: Vec<&str> = (0..self.names.len())
                .filter(differs)
                .map(|at| &*self.names[at])
                .collect();
            return Some(format!("{} differs", names.join(", ")));
        }
        Some("the rows differ".to_owned())
    }

    fn subset(&self, sides: &[Vec<Row>]) -> Option<String> {
        let there: BTreeSet<Vec<&Option<String>>> = sides[self.other()]
            .iter()
            .map(|row| self.compared(self.other(), row))
            .collect();
        let all = &sides[self.for_each];
        let absent = all
            .iter()
            .filter(|row| !there.contains(&self.compared(self.for_each, row)));
        let absent = absent.count();
        let other = &self.sources[self.other()];
        match (absent, there.is_empty()) {
            (0, _) => None,
            (_, true) => Some(format!("{other} has no row")),
            _ => Some(format!("{other} has no such row")),
        }
    }

    fn exists(&self, sides: &[Vec<Row>]) -> Option<String> {
        let is_alone = !sides[self.for_each].is_empty() && sides[self.other()].is_empty();
        is_alone.then(|| format!("{} has no row", self.sources[self.other()]))
    }

    fn sums(
        &self,
        sides: &[Vec<Row>],
        is_wrong: impl Fn(Ordering) -> bool,
    ) -> Result<Option<String>> {
        let (one, two) = match self.rule {
            Rule::AtMost => (self.for_each, self.other()),
            _ => (0, 1),
        };
        for (at, name) in self.names.iter().enumerate() {
            let sum = |side: usize| {
                let rows = sides[side].iter();
                rows.map(|row| self.number(side, at, row))
                    .try_fold(Number::default(), |sum, number| {
                        sum.plus(number?).ok_or_else(|| self.too_large(side, at))
                    })
            };
            let (left, right) = (sum(one)?, sum(two)?);
            let order = left.compare(right).ok_or_else(|| self.too_large(one, at))?;
            if is_wrong(order) {
                let (one, two) = (&self.sources[one], &self.sources[two]);
                return Ok(Some(format!(
                    "{name} is {left} in {one} and {right} in {two}"
                )));
            }
        }
        Ok(None)
    }

    fn negative(&self, sides: &[Vec<Row>]) -> Result<Option<String>> {
        for (side, rows) in sides.iter().enumerate() {
            for row in rows {
                for (at, name) in self.names.iter().enumerate() {
                    let number = self.number(side, at, row)?;
                    if number.is_negative() {
                        return Ok(Some(format!("{name} is {number}")));
                    }
                }
            }
        }
        Ok(None)
    }

    /// NULL counts as 0, as in `sum`.
    fn number(&self, side: usize, at: usize, row: &Row) -> Result<Number> {
        let Some(text) = &row[self.places[side][at]] else {
            return Ok(Number::default());
        };
        Number::parse(text).ok_or_else(|| {
            let (name, source) = (&self.names[at], &self.sources[side]);
            let message = format!("column {name} of {source} holds {text}, which cannot be added");
            Error::new(ErrorKind::Invalid, message)
                .remedy("leave such rows out of the query; numbers have 38 digits at most")
        })
    }

    fn too_large(&self, side: usize, at: usize) -> Error {
        let (name, source) = (&self.names[at], &self.sources[side]);
        let message = format!("the sum of {name} of {source} has more than 38 digits");
        Error::new(ErrorKind::Invalid, message).remedy("round the values in the query")
    }
}

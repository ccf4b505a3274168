//! Reads whole tables of a source and asks state sinks, row by row, whether they hold the same.
//!
//! All rows of a source are read in one REPEATABLE READ transaction. Let the sinks catch up first and write nothing
//! meanwhile: what the source gains or loses later counts as a difference.
//!
//! Where `dedupe` works on a column, rows with the same key are one in the sinks. Which of them it is depends on the order in
//! which the source was read, so of such a group exactly one row must be there, whichever it is.
//!
//! A column that was added in mid-stream is NULL in all rows that were not written since, and nothing in the log says so: a
//! copy of such a row may lack the column.

mod reader;

use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::config::Secret;
use lockstep_core::error::At as _;
use lockstep_core::position::{Lsn, SourceInfo};
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Held, Inspect};

use self::reader::Reader;
use super::rows::failed;
use super::shop::connect;

/// Differences shown per table and sink; the others are only counted.
const EXAMPLES: usize = 3;

/// Values in the form that the pipeline gets them, see [`lockstep_core::batch::CellRef::Text`].
const SESSION: &str = "SET DateStyle TO 'ISO, YMD'; SET TimeZone TO 'UTC'; SET IntervalStyle TO 'postgres';
    SET bytea_output TO 'hex'; SET extra_float_digits TO 3; SET client_encoding TO 'UTF8'; SET statement_timeout TO 0;
    BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";

/// What counts as equal.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The columns of the idempotency key where `dedupe` is at work, else empty. A table without these columns has no
    /// duplicates.
    pub once: Vec<String>,
    /// Columns that were added in mid-stream: where the source has NULL, a copy may lack them.
    pub added: Vec<String>,
}

/// A sink that can be read back.
pub struct Copy {
    /// Its name in the pipeline file.
    pub name: String,
    /// How to read it.
    pub inspect: Box<dyn Inspect>,
}

/// How one sink's copy of one table stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Name of the sink.
    pub sink: String,
    /// Name of the source.
    pub source: String,
    /// Name of the table, without its schema.
    pub table: String,
    /// Rows that the sink should hold: those of the table without `suppressed`.
    pub rows: u64,
    /// Rows that repeat an idempotency key and are rightly not there.
    pub suppressed: u64,
    /// Equal.
    pub same: u64,
    /// Not there.
    pub missing: u64,
    /// There, and not equal.
    pub different: u64,
    /// In the sink, and not in the table, or suppressed and there all the same.
    pub extra: u64,
    /// The first few differences, in words.
    pub examples: Vec<String>,
}

impl Compared {
    /// Whether the copy equals the table.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.missing == 0 && self.different == 0 && self.extra == 0 && self.same == self.rows
    }

    fn count(&mut self, held: Held) {
        self.rows += 1;
        match held {
            Held::Same => self.same += 1,
            Held::Missing { key } => {
                self.missing += 1;
                self.example(|| format!("{key} is missing"));
            }
            Held::Different {
                key,
                expected,
                actual,
                ..
            } => {
                self.different += 1;
                self.example(|| first_difference(&key, &expected, &actual));
            }
            Held::Refused { message } => {
                self.different += 1;
                self.example(|| message);
            }
            Held::Extra { key, .. } => {
                self.extra += 1;
                self.example(|| format!("{key} should not be there"));
            }
        }
    }

    /// Rows that share an idempotency key: exactly one of them should be there.
    fn count_group(&mut self, group: Vec<Held>) {
        let (mut there, mut missing): (Vec<_>, Vec<_>) = group
            .into_iter()
            .partition(|held| !matches!(held, Held::Missing { .. }));
        let copies = there.len() as u64;
        // The equal one is the one; the others are too many.
        there.sort_by_key(|held| *held != Held::Same);
        let Some(one) = there.into_iter().next().or_else(|| missing.pop()) else {
            return;
        };
        self.suppressed += missing.len() as u64;
        if copies > 1 {
            self.extra += copies - 1;
            self.example(|| format!("one idempotency key is there {copies} times"));
        }
        self.count(one);
    }

    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(text());
        }
    }
}

/// Compares all `tables` of one source with every copy. Results are ordered by table, then as `copies`.
///
/// # Errors
/// `Setup` when `tables` are not the tables as they are now; whatever the server or a sink reports.
pub async fn compare(
    url: &Secret,
    source: &Arc<SourceInfo>,
    tables: &[Arc<TableSchema>],
    rules: &Rules,
    copies: &mut [Copy],
) -> Result<Vec<Compared>> {
    let client = connect(url).await?;
    let doing = |error| failed("beginning to read the source", error);
    client.batch_execute(SESSION).await.map_err(doing)?;
    let now = client
        .query_one("SELECT pg_current_wal_lsn()::text", &[])
        .await
        .map_err(doing)?;
    let now: Lsn = now.get::<_, &str>(0).parse()?;
    let mut results = Vec::new();
    for table in tables {
        let reader = Reader {
            source: Arc::clone(source),
            table: Arc::clone(table),
            keys: once_columns(table, &rules.once),
            added: rules.added.clone(),
            now,
        };
        results.extend(
            reader
                .compare(&client, copies)
                .await
                .at(format!("table {}", table.origin))?,
        );
    }
    Ok(results)
}

/// The columns of the idempotency key, when the table has them all.
fn once_columns(table: &TableSchema, once: &[String]) -> Vec<String> {
    let all = once.iter().all(|name| table.column(name).is_some());
    if all { once.to_vec() } else { Vec::new() }
}

/// Both texts from a little before the place where they part.
fn first_difference(key: &str, expected: &str, actual: &str) -> String {
    const BEFORE: usize = 24;
    const SHOWN: usize = 64;
    let same = std::iter::zip(expected.chars(), actual.chars())
        .take_while(|(one, other)| one == other)
        .count();
    let skip = same.saturating_sub(BEFORE);
    let part = |text: &str| {
        let part: String = text.chars().skip(skip).take(SHOWN).collect();
        let more = text.chars().count() > skip + SHOWN;
        format!(
            "{}{part}{}",
            if skip > 0 { "…" } else { "" },
            if more { "…" } else { "" }
        )
    };
    format!(
        "{key} should hold {} and holds {}",
        part(expected),
        part(actual)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(key: &str) -> Held {
        Held::Missing { key: key.into() }
    }

    #[test]
    fn of_a_group_exactly_one_is_there() {
        let mut result = Compared::default();
        result.count_group(vec![missing("a"), Held::Same, missing("c")]);
        assert_eq!((result.rows, result.same, result.suppressed), (1, 1, 2));
        assert!(result.is_equal());
    }

    #[test]
    fn a_group_that_came_through_twice_is_extra() {
        let mut result = Compared::default();
        result.count_group(vec![Held::Same, Held::Same]);
        assert_eq!((result.rows, result.same, result.extra), (1, 1, 1));
        assert!(!result.is_equal());
    }

    #[test]
    fn a_group_that_is_gone_is_missing_once() {
        let mut result = Compared::default();
        result.count_group(vec![missing("a"), missing("b")]);
        assert_eq!((result.rows, result.missing, result.suppressed), (1, 1, 1));
        assert!(!result.is_equal());
    }

    #[test]
    fn a_difference_is_shown_where_it_is() {
        let long = "x".repeat(200);
        let text = first_difference("k", &format!("{long}1"), &format!("{long}2"));
        assert_eq!(
            text,
            format!("k should hold …{0}1 and holds …{0}2", "x".repeat(24))
        );
        let text = first_difference("k", "{\"a\":1}", "{\"a\":2}");
        assert_eq!(text, "k should hold {\"a\":1} and holds {\"a\":2}");
    }
}

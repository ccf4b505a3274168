//! Which tables a transform applies to, and messages about columns that are not there.

use std::collections::BTreeSet;

use lockstep_core::schema::{Column, TableSchema};
use lockstep_core::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The tables a transform applies to: `schema.table` or `source.schema.table`, with `*` for any run of characters.
/// Other tables pass as they are. Empty: every table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Tables(pub Vec<String>);

impl Tables {
    /// Checks how the patterns are written.
    ///
    /// # Errors
    /// Of kind `Config`, naming the pattern.
    pub fn validate(&self) -> Result<()> {
        for pattern in &self.0 {
            let parts = pattern.split('.').count();
            if !(2..=3).contains(&parts) || pattern.split('.').any(str::is_empty) {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!("`tables`: `{pattern}` is not a table"),
                )
                .remedy("write `schema.table` or `source.schema.table`, with `*` for any name"));
            }
        }
        Ok(())
    }
}

/// [`Tables`] at work: remembers what it has met, so that a pattern without any table is found.
pub(crate) struct Applies {
    patterns: Vec<Pattern>,
    seen: BTreeSet<String>,
    checked: bool,
}

struct Pattern {
    text: String,
    with_source: bool,
    met: bool,
}

/// Tables listed in a message.
const LISTED: usize = 50;

impl Applies {
    pub(crate) fn new(tables: &Tables) -> Self {
        let pattern = |text: &String| Pattern {
            text: text.clone(),
            with_source: text.split('.').count() == 3,
            met: false,
        };
        Applies {
            patterns: tables.0.iter().map(pattern).collect(),
            seen: BTreeSet::new(),
            checked: false,
        }
    }

    /// Whether the transform applies to this table. Never to logical messages and events, which are no table.
    pub(crate) fn to(&self, schema: &TableSchema) -> bool {
        !is_no_table(schema)
            && (self.patterns.is_empty()
                || self.patterns.iter().any(|pattern| pattern.matches(schema)))
    }

    /// Whether it applies to every table.
    pub(crate) fn to_all(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Notes a table, for [`Applies::check`].
    pub(crate) fn note(&mut self, schema: &TableSchema) {
        if self.checked || is_no_table(schema) {
            return;
        }
        for pattern in &mut self.patterns {
            pattern.met |= pattern.matches(schema);
        }
        if self.seen.len() < LISTED {
            self.seen.insert(format!("{}.{}", schema.source, schema.id));
        }
    }

    /// Called when every table has been noted.
    ///
    /// # Errors
    /// A pattern that no table matches: a slip of the pen must not leave a table untouched.
    pub(crate) fn check(&mut self) -> Result<()> {
        if self.checked {
            return Ok(());
        }
        if let Some(pattern) = self.patterns.iter().find(|pattern| !pattern.met) {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "`tables`: no table matches `{}`; there are {}",
                    pattern.text,
                    self.seen()
                ),
            )
            .remedy("correct the name, or take it out of `tables`"));
        }
        self.checked = true;
        Ok(())
    }

    /// The tables noted so far, for messages.
    pub(crate) fn seen(&self) -> String {
        if self.seen.is_empty() {
            return "no tables".to_owned();
        }
        self.seen.iter().cloned().collect::<Vec<_>>().join(", ")
    }
}

impl Pattern {
    fn matches(&self, schema: &TableSchema) -> bool {
        let name = if self.with_source {
            format!("{}.{}", schema.source, schema.id)
        } else {
            schema.id.to_string()
        };
        glob(self.text.as_bytes(), name.as_bytes())
    }
}

/// Whether `text` matches `pattern`, in which `*` stands for any run of bytes.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let Some(star) = pattern.iter().position(|&byte| byte == b'*') else {
        return pattern == text;
    };
    let (head, rest) = (&pattern[..star], &pattern[star + 1..]);
    text.starts_with(head) && (head.len()..=text.len()).any(|at| glob(rest, &text[at..]))
}

/// Whether this is the shape of logical messages, or of events of an `outbox`.
pub(crate) fn is_no_table(schema: &TableSchema) -> bool {
    is_message(schema) || schema.destination().is_some()
}

/// Whether this is the shape of logical messages.
pub(crate) fn is_message(schema: &TableSchema) -> bool {
    schema.relation == 0 && schema.id.name.is_empty()
}

/// The column `name` of `schema`.
///
/// # Errors
/// Of kind `Config`, listing the columns there are and the nearest name.
pub(crate) fn column<'a>(schema: &'a TableSchema, name: &str) -> Result<(usize, &'a Column)> {
    schema.column(name).ok_or_else(|| missing(schema, name))
}

fn missing(schema: &TableSchema, name: &str) -> Error {
    let error = Error::new(
        ErrorKind::Config,
        format!(
            "there is no column `{name}`; there are {}",
            schema.column_list()
        ),
    );
    let nearest = nearest(name, schema.columns.iter().map(|column| &*column.name));
    match nearest {
        Some(nearest) => error.remedy(format!("write `{nearest}`, if that is meant")),
        None => error.remedy("name a column of the table, or leave the table out"),
    }
}

/// The name most like `wanted`, when one is like it at all.
pub(crate) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const ALIKE: f64 = 0.75;
    names
        .map(|name| {
            let (a, b) = (wanted.to_lowercase(), name.to_lowercase());
            (strsim::jaro_winkler(&a, &b), name)
        })
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text, expected) in [
            ("public.orders", "public.orders", true),
            ("public.*", "public.orders", true),
            ("*.orders", "public.orders", true),
            ("*.orders_*", "public.orders_2026", true),
            ("*", "", true),
            ("public.order", "public.orders", false),
            ("*s.*x", "publics.y", false),
        ] {
            assert_eq!(
                glob(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn a_missing_column_lists_what_there_is() {
        let schema = TableSchema::message("orders".into());
        let error = column(&schema, "contents").expect_err("missing");
        let text = error.to_string();
        assert!(text.contains("there are prefix, content"), "{text}");
        assert!(text.contains("`content`, if that"), "{text}");
        assert_eq!(error.kind(), ErrorKind::Config);
    }

    #[test]
    fn patterns_are_checked() {
        for bad in ["orders", "a.b.c.d", "public.", ""] {
            assert!(Tables(vec![bad.to_owned()]).validate().is_err(), "{bad}");
        }
        let mut applies = Applies::new(&Tables(vec!["public.order".to_owned()]));
        let mut schema = TableSchema::message("shop".into());
        schema.relation = 1;
        schema.id = lockstep_core::schema::TableId::new("public", "orders");
        schema.origin = schema.id.clone();
        applies.note(&schema);
        assert!(!applies.to(&schema));
        let text = applies.check().expect_err("unmatched").to_string();
        assert!(text.contains("shop.public.orders"), "{text}");
    }
}

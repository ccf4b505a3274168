//! Rows on their way into PostgreSQL: as `INSERT`, and as `COPY`.

use std::fmt::Display;

use bytes::Bytes;
use futures_util::SinkExt as _;
use lockstep_core::{Error, ErrorKind, Result};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// The text form of each value; `None` is NULL.
pub type Row = Vec<Option<String>>;

/// Rows of one table.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Table.
    pub table: &'static str,
    /// Columns that the rows fill, in their order.
    pub columns: Vec<&'static str>,
    /// The rows.
    pub rows: Vec<Row>,
}

impl Rows {
    /// No rows yet.
    #[must_use]
    pub fn new(table: &'static str, columns: &[&'static str]) -> Self {
        Rows {
            table,
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// As [`Rows::new`] with one row.
    #[must_use]
    pub fn one(table: &'static str, columns: &[&'static str], row: Row) -> Self {
        let mut rows = Rows::new(table, columns);
        rows.rows.push(row);
        rows
    }

    /// Gives every row a further column.
    pub fn add_column(&mut self, column: &'static str, mut value: impl FnMut() -> Option<String>) {
        self.columns.push(column);
        for row in &mut self.rows {
            row.push(value());
        }
    }

    /// One statement that inserts all rows; there is at least one.
    #[must_use]
    pub fn insert(&self) -> String {
        let mut sql = format!(
            "INSERT INTO {} ({}) VALUES ",
            self.table,
            self.columns.join(", ")
        );
        for (index, row) in self.rows.iter().enumerate() {
            sql.push_str(if index == 0 { "(" } else { ", (" });
            for (index, value) in row.iter().enumerate() {
                if index > 0 {
                    sql.push_str(", ");
                }
                match value {
                    None => sql.push_str("NULL"),
                    Some(value) => quote_into(&mut sql, value),
                }
            }
            sql.push(')');
        }
        sql
    }
}

/// A value.
pub fn text(value: impl Display) -> Option<String> {
    Some(value.to_string())
}

/// An array of texts, as `text[]` is written.
pub fn array<'a>(elements: impl IntoIterator<Item = &'a str>) -> String {
    let mut out = String::from("{");
    for (index, element) in elements.into_iter().enumerate() {
        out.push_str(if index == 0 { "\"" } else { ",\"" });
        for c in element.chars() {
            if matches!(c, '"' | '\\') {
                out.push('\\');
            }
            out.push(c);
        }
        out.push('"');
    }
    out.push('}');
    out
}

/// A string literal, under `standard_conforming_strings`.
#[must_use]
pub fn quote(value: impl Display) -> String {
    let mut out = String::new();
    quote_into(&mut out, &value.to_string());
    out
}

fn quote_into(out: &mut String, value: &str) {
    out.push('\'');
    for c in value.chars() {
        if c == '\'' {
            out.push('\'');
        }
        out.push(c);
    }
    out.push('\'');
}

/// Copies `rows` into `table` in the text format and returns how many the server counted.
///
/// # Errors
/// As the server reports them.
pub async fn copy(
    client: &Client,
    table: &str,
    columns: &[&str],
    rows: impl Iterator<Item = Row>,
) -> Result<u64> {
    const CHUNK: usize = 64 << 10;
    let doing = |error| failed(format!("COPY {table}"), error);
    let statement = format!("COPY {table} ({}) FROM STDIN", columns.join(", "));
    let sink = client
        .copy_in::<_, Bytes>(&statement)
        .await
        .map_err(doing)?;
    let mut sink = std::pin::pin!(sink);
    let mut chunk = Vec::with_capacity(CHUNK + 4_096);
    for row in rows {
        copy_line(&mut chunk, &row);
        if chunk.len() >= CHUNK {
            let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK + 4_096));
            sink.send(full.into()).await.map_err(doing)?;
        }
    }
    sink.send(chunk.into()).await.map_err(doing)?;
    sink.finish().await.map_err(doing)
}

/// Appends one line of `COPY … TO/FROM` text format.
fn copy_line(out: &mut Vec<u8>, row: &Row) {
    for (index, value) in row.iter().enumerate() {
        if index > 0 {
            out.push(b'\t');
        }
        let Some(value) = value else {
            out.extend_from_slice(b"\\N");
            continue;
        };
        for byte in value.bytes() {
            match byte {
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\t' => out.extend_from_slice(b"\\t"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                _ => out.push(byte),
            }
        }
    }
    out.push(b'\n');
}

/// The house error for what a server of the shop answered. It keeps the server's answer, SQLSTATE included, as its source.
pub fn failed(doing: impl Display, error: tokio_postgres::Error) -> Error {
    let Some(code) = error.code().cloned() else {
        return Error::new(ErrorKind::Unavailable, format!("{doing} failed")).source(error);
    };
    let kind = match code {
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            ErrorKind::Authentication
        }
        SqlState::INSUFFICIENT_PRIVILEGE => ErrorKind::Permission,
        _ => ErrorKind::Setup,
    };
    let message = format!("{doing} failed, SQLSTATE {}", code.code());
    match error.into_source() {
        Some(answer) => Error::new(kind, message).source(answer),
        None => Error::new(kind, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_arrays_are_quoted() {
        assert_eq!(quote("O'Neill \\ x"), "'O''Neill \\ x'");
        assert_eq!(array([]), "{}");
        assert_eq!(array(["a", "b \"c\" \\"]), r#"{"a","b \"c\" \\"}"#);
    }

    #[test]
    fn an_insert_holds_all_rows() {
        let mut rows = Rows::new("t", &["a", "b"]);
        rows.rows.push(vec![text(1), None]);
        rows.rows.push(vec![text(2), text("it's")]);
        rows.add_column("c", || text("x"));
        assert_eq!(
            rows.insert(),
            "INSERT INTO t (a, b, c) VALUES ('1', NULL, 'x'), ('2', 'it''s', 'x')"
        );
    }

    #[test]
    fn a_copy_line_escapes() {
        let mut line = Vec::new();
        copy_line(&mut line, &vec![text("a\tb\\\n\r"), None, text("")]);
        assert_eq!(line, b"a\\tb\\\\\\n\\r\t\\N\t\n");
    }
}

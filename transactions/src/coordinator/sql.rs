//! Statements of the protocol: bounded in time, answers as texts, failures as house errors.

use std::time::Duration;

use lockstep_core::{Error, ErrorKind, Result};
use tokio_postgres::error::{DbError, Severity, SqlState};
use tokio_postgres::{Client, SimpleQueryMessage};

/// What the statements of one message answered.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The first row of all.
    row: Option<Vec<Option<String>>>,
    /// All rows.
    pub(super) rows: Vec<Vec<Option<String>>>,
    /// Rows that the last statement changed, or yielded.
    pub(super) count: u64,
}

impl Answer {
    /// A column of the first row; empty for NULL, and where there is none.
    pub(super) fn text(&self, column: usize) -> &str {
        let row = self.row.as_ref().and_then(|row| row.get(column));
        row.and_then(Option::as_deref).unwrap_or_default()
    }

    /// The same as a number.
    ///
    /// # Errors
    /// `Protocol` when it is none.
    pub(super) fn number<N: std::str::FromStr>(&self, column: usize) -> Result<N> {
        let text = self.text(column);
        text.parse()
            .map_err(|_| protocol(&format!("`{text}` is not a number")))
    }
}

/// Why a statement has no answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    /// SQLSTATE.
    pub(super) state: Option<SqlState>,
    /// The server has refused the statement, and goes on with the session: the statement has done nothing. Else it may have done
    /// all of its work.
    pub(super) refused: bool,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        failure.error
    }
}

/// Runs statements in one message; `doing` completes "cannot …".
///
/// # Errors
/// The server's; `Unavailable` when there is no answer in time.
pub(super) async fn run(
    client: &Client,
    doing: &str,
    sql: &str,
    within: Duration,
) -> Result<Answer, Failure> {
    let messages = match tokio::time::timeout(within, client.simple_query(sql)).await {
        Ok(Ok(messages)) => messages,
        Ok(Err(error)) => return Err(failed(doing, error)),
        Err(_) => {
            let message = format!("cannot {doing}: no answer for {} ms", within.as_millis());
            return Err(Failure {
                error: Error::new(ErrorKind::Unavailable, message),
                state: None,
                refused: false,
            });
        }
    };
    let mut answer = Answer::default();
    for message in messages {
        match message {
            SimpleQueryMessage::Row(row) => {
                let row = (0..row.len()).map(|at| row.get(at).map(str::to_owned));
                let row: Vec<_> = row.collect();
                answer.row.get_or_insert_with(|| row.clone());
                answer.rows.push(row);
            }
            SimpleQueryMessage::CommandComplete(count) => answer.count = count,
            _ => {}
        }
    }
    Ok(answer)
}

fn failed(doing: &str, error: tokio_postgres::Error) -> Failure {
    let db = error.as_db_error();
    let kind = db.map_or(ErrorKind::Unavailable, |db| kind_of(db.code().code()));
    let remedy = db.and_then(remedy_of);
    let (state, refused) = (
        db.map(|db| db.code().clone()),
        db.is_some_and(|db| db.parsed_severity() == Some(Severity::Error)),
    );
    let house = Error::new(kind, format!("cannot {doing}")).source(error);
    Failure {
        error: match remedy {
            Some(remedy) => house.remedy(remedy),
            None => house,
        },
        state,
        refused,
    }
}

/// The kind for a SQLSTATE: what may pass by itself is to be tried again.
fn kind_of(code: &str) -> ErrorKind {
    match (code, code.get(..2).unwrap_or_default()) {
        ("42501", _) => ErrorKind::Permission,
        // duplicate_object, of a gid; unique_violation in the log: another one has the same name.
        ("42710", _) => ErrorKind::Busy,
        ("55P03" | "57014", _) | (_, "53") => ErrorKind::Overloaded,
        (_, "08" | "57" | "58" | "XX") | ("25P03" | "25P04", _) => ErrorKind::Unavailable,
        (_, "28") => ErrorKind::Authentication,
        (_, "40") => ErrorKind::Busy,
        ("25006", _) | (_, "0A" | "3D" | "3F" | "42" | "55") => ErrorKind::Setup,
        // Constraints, data, what triggers raise: the work itself is refused.
        _ => ErrorKind::Invalid,
    }
}

fn remedy_of(error: &DbError) -> Option<&'static str> {
    match error.code().code() {
        // "prepared transactions are disabled"
        "55000" if error.message().contains("disabled") => Some(super::NO_PREPARED),
        "42501" => Some("as the user that prepared it, or as a superuser"),
        "0A000" => Some("in the database in which it was prepared"),
        "53200" => Some("raise max_prepared_transactions, then restart the server"),
        "25006" => Some("name the primary: a standby takes no changes"),
        _ => None,
    }
}

/// A state that must not be.
pub(super) fn protocol(message: &str) -> Error {
    Error::new(ErrorKind::Protocol, message)
}

/// `'it''s'`, whatever `standard_conforming_strings` is.
pub(super) fn quote(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

//! What both search sinks say of a document beside its row.

use lockstep_core::batch::{Batch, Change, Op, Row};
use lockstep_core::sink::{Held, HeldVersion, Keys};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::key::key_values;

use crate::document::same;

/// The row of a change that is compared: as it must be there, or the key of one that must not.
///
/// # Errors
/// When it has none.
pub(crate) fn compared_row<'b>(batch: &'b Batch, change: &Change) -> Result<Row<'b>> {
    let row = match change.op {
        Op::Delete => batch.old_row(change),
        _ => batch.new_row(change),
    };
    row.ok_or_else(|| {
        let message = "a change without a row cannot be compared";
        Error::new(ErrorKind::Invalid, message)
    })
}

/// How a document stands; `expected` is none where it must not be there. `version` is what is known of one that is there.
pub(crate) fn verdict(
    key: String,
    expected: Option<String>,
    actual: Option<String>,
    version: HeldVersion,
) -> Held {
    match (expected, actual) {
        (None, None) => Held::Same,
        (Some(_), None) => Held::Missing { key },
        (None, Some(actual)) => Held::Extra { key, actual },
        (Some(expected), Some(actual)) if same(&expected, &actual) => Held::Same,
        (Some(expected), Some(actual)) => Held::Different {
            key,
            expected,
            actual,
            version,
        },
    }
}

/// A row that the sink would refuse is an answer, too.
///
/// # Errors
/// Any other.
pub(crate) fn unless_refused(held: Result<Held>) -> Result<Held> {
    match held {
        Err(error) if error.kind() == ErrorKind::Refused => Ok(Held::Refused {
            message: error.to_string(),
        }),
        held => held,
    }
}

/// Ids as keys of a table with so many key columns.
pub(crate) fn page(ids: Vec<String>, columns: usize) -> Keys {
    let mut page = Keys::default();
    for id in ids {
        match key_values(&id, columns) {
            Some(values) => page.keys.push(values),
            None => page.foreign.push(id),
        }
    }
    page
}

//! Rows for which an expression gives no value: put aside, or a reason to stop.

use std::sync::Arc;

use lockstep_core::batch::{Batch, Change, Phase};
use lockstep_core::schema::TableSchema;
use lockstep_core::transform::{DeadLetters, TransformContext};
use lockstep_core::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::filter::predicate::Missing;

/// Why a row is put aside for which an expression cannot be worked out.
pub const EXPRESSION: &str = "expression";

/// What becomes of a row for which an expression cannot be worked out: a division by zero, a text that is no number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It is put aside, with the reason `expression`, and the rest goes on.
    #[default]
    DeadLetter,
    /// The pipeline stops at the row, with nothing acknowledged.
    Stop,
}

/// Where such rows go.
pub(crate) struct Failing {
    on_error: OnFailure,
    place: String,
    dead_letters: Arc<dyn DeadLetters>,
}

impl Failing {
    pub(crate) fn new(on_error: OnFailure, context: &TransformContext) -> Self {
        Failing {
            on_error,
            place: format!("transforms.{}", context.name),
            dead_letters: Arc::clone(&context.dead_letters),
        }
    }

    /// Takes a change that does not go on. `what`: the key of the section that has the expression.
    pub(crate) fn take(
        &self,
        batch: &Batch,
        change: &Change,
        what: &str,
        problem: &str,
    ) -> Result<()> {
        if self.on_error == OnFailure::Stop {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("the expression cannot be worked out for a row: {problem}"),
            )
            .remedy("correct the row or the expression, or set `on_error = \"dead_letter\"`")
            .at(what));
        }
        // A row that is only looked at lies aside already, from when it came.
        if batch.phase == Phase::Check {
            return Ok(());
        }
        let table = &batch.schema(change).id;
        tracing::warn!(place = self.place, %table, what, problem, "a row is put aside: its expression cannot be worked out");
        let row = batch.new_row(change).or_else(|| batch.old_row(change));
        self.dead_letters
            .keep(&self.place, EXPRESSION, batch, change, row)
    }
}

/// The error of a value that is missing. `who`: what needs it.
pub(crate) fn missing(who: &str, missing: &Missing, schema: &TableSchema) -> Error {
    match missing {
        Missing::Unchanged(column) => Error::new(
            ErrorKind::Setup,
            format!("{who} needs the value of the column `{column}`, and the log does not carry it because the UPDATE left it alone"),
        )
        .remedy(format!(
            "run: ALTER TABLE {} REPLICA IDENTITY FULL; or leave the column out",
            schema.origin
        )),
        Missing::Unreadable(column) => Error::new(
            ErrorKind::Protocol,
            format!("{who} cannot read the value of the column `{column}`"),
        )
        .remedy("leave the column out, and report the value and its type"),
    }
}

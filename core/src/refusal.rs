//! Changes that a sink will never take as they are, and why.
//!
//! A sink names them in its error ([`Error::refusing`]); the runtime puts them aside and writes the rest without them.

use crate::batch::{Batch, Change};
use crate::error::{Error, ErrorKind, Result};
use crate::position::{Position, SourceIdentity, SourceInfo};
use crate::schema::TableId;

/// Words for causes, as metrics and lists of dead letters show them.
pub mod reason {
    /// The row has a value that cannot be written in the sink's format: bytes that are not UTF-8, no valid JSON.
    pub const ENCODING: &str = "encoding";
    /// The row does not carry its key, or the key is none that the sink can have.
    pub const KEY: &str = "key";
    /// The record is larger than the other side takes.
    pub const TOO_LARGE: &str = "too_large";
    /// The row does not fit the mapping of the index.
    pub const MAPPING: &str = "mapping";
    /// What the sink holds under the key is of another type.
    pub const WRONG_TYPE: &str = "wrong_type";
    /// An UPDATE left a value unchanged that the sink does not hold.
    pub const INCOMPLETE: &str = "incomplete";
    /// A queue is to take it, and no queue is there that would.
    pub const UNROUTABLE: &str = "unroutable";
    /// Any other refusal.
    pub const REFUSED: &str = "refused";
    /// An earlier change of the same key lies aside, and later ones wait for it.
    pub const BEHIND: &str = "behind";
    /// Of no change: somebody newer writes there, by a greater token or an opening of its own, and who is refused is too late.
    pub const FENCED: &str = "fenced";
}

/// One change that a sink refuses. Identity of the source, position and table tell it from all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whose log it is from.
    pub source: SourceIdentity,
    /// Where its records go ([`crate::schema::TableSchema::id`]); `None` for all changes at the position: a row that moves
    /// to another table is two.
    pub table: Option<TableId>,
    /// Its position. A write that several changes were folded to has the position of the last one.
    pub position: Position,
    /// A word of [`reason`].
    pub reason: &'static str,
    /// What happened and what to do about it, for people.
    pub message: String,
}

impl Refusal {
    /// Whether this is about `change` of `batch`.
    #[must_use]
    pub fn is_of(&self, batch: &Batch, change: &Change) -> bool {
        self.position == batch.position(change)
            && self.source == batch.source.identity
            && self
                .table
                .as_ref()
                .is_none_or(|table| *table == batch.schema(change).id)
    }
}

impl Error {
    /// The error is about the change at `position`. One of kind `Refused` then refuses exactly that; others, and one that
    /// names its changes already, stay as they are.
    #[must_use]
    pub fn about(self, source: &SourceInfo, table: &TableId, position: Position) -> Self {
        if self.kind() != ErrorKind::Refused || !self.refusals().is_empty() {
            return self;
        }
        let refusal = Refusal {
            source: source.identity.clone(),
            table: Some(table.clone()),
            position,
            reason: self.reason().unwrap_or(reason::REFUSED),
            message: self.to_string(),
        };
        self.refusing(vec![refusal])
    }
}

/// Gathers refusals, so that one error names all of them and not only the first.
#[derive(Debug, Default)]
pub struct Refusals(Option<Error>);

impl Refusals {
    /// Takes an error that names exactly what is refused; `None` then. Anything else comes back.
    ///
    /// # Errors
    /// Those that are no such refusal.
    pub fn take<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.refusals().is_empty() || error.is_suspicion() => Err(error),
            Err(error) => {
                self.add(error);
                Ok(None)
            }
        }
    }

    fn add(&mut self, error: Error) {
        self.0 = Some(match self.0.take() {
            None => error,
            Some(first) => {
                let all = [first.refusals(), error.refusals()].concat();
                first.refusing(all)
            }
        });
    }

    /// Whether nothing was refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The first refusal, naming all that were gathered.
    ///
    /// # Errors
    /// When there was one.
    pub fn finish(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Lsn;

    fn error(kind: ErrorKind, ordinal: u64) -> Error {
        let source = SourceInfo {
            name: "orders".into(),
            identity: SourceIdentity {
                system: 1,
                timeline: 1,
                incarnation: 0,
                database: "shop".into(),
            },
        };
        let position = Position {
            commit: Lsn(16),
            ordinal,
        };
        Error::new(kind, "no").because(reason::MAPPING).about(
            &source,
            &TableId::new("public", "t"),
            position,
        )
    }

    #[test]
    fn one_error_names_all_that_is_refused() {
        let mut refusals = Refusals::default();
        assert_eq!(refusals.take(Ok(1)).expect("a value"), Some(1));
        for ordinal in 1..=2 {
            let taken = refusals.take::<()>(Err(error(ErrorKind::Refused, ordinal)));
            assert_eq!(taken.expect("gathered"), None);
        }
        let named = refusals.finish().expect_err("refused");
        let ordinals: Vec<u64> = named
            .refusals()
            .iter()
            .map(|refusal| refusal.position.ordinal)
            .collect();
        assert_eq!(ordinals, [1, 2]);
        assert_eq!(named.refusals()[0].reason, "mapping");
        assert_eq!(named.refusals()[0].message, "LS009 no");
    }

    #[test]
    fn other_errors_and_suspicions_pass() {
        let mut refusals = Refusals::default();
        let down = error(ErrorKind::Unavailable, 1);
        assert!(down.refusals().is_empty());
        assert!(refusals.take::<()>(Err(down)).is_err());
        let one = error(ErrorKind::Refused, 1);
        let suspects = one.refusals().to_vec();
        assert!(refusals.take::<()>(Err(one.suspecting(suspects))).is_err());
        assert!(refusals.is_empty());
    }
}

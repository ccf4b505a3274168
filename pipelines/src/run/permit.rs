//! The right to run a pipeline, asked for before anything is read or written in its name.

use lockstep_core::token::Token;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_leases::Right;

/// Given by a lease, or for ever where none decides. A clone is the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Permit(Option<Right>);

impl From<Right> for Permit {
    fn from(right: Right) -> Self {
        Permit(Some(right))
    }
}

impl Permit {
    /// What goes along with writes.
    pub fn token(&self) -> Option<Token> {
        self.0.as_ref().map(Right::token)
    }

    /// Whether it still holds. The answer may be outdated before it is used: then the token protects what is written.
    ///
    /// # Errors
    /// Of kind `Busy` when it does not.
    pub fn check(&self) -> Result<()> {
        match &self.0 {
            Some(right) if !right.is_valid_now() => Err(lost()),
            _ => Ok(()),
        }
    }

    /// Resolves when it does not hold any more; never where no lease decides. Cancel-safe.
    pub async fn lost(&self) {
        match &self.0 {
            Some(right) => right.lost().await,
            None => std::future::pending().await,
        }
    }
}

/// The error of who had the lease.
pub(super) fn lost() -> Error {
    Error::new(
        ErrorKind::Busy,
        "the lease of the pipeline is lost: another process may run it now",
    )
    .remedy("start this one again: it waits until it is its turn")
}

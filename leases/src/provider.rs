//! Where leases are kept: the contract of a provider.

use std::time::Duration;

use async_trait::async_trait;
use lockstep_core::Result;
pub use lockstep_core::token::Token;

/// Where leases are kept.
///
/// What it owes, beside what its methods say:
/// - **One at a time.** From the answer that gives a lease to a candidate, or prolongs it, until the granted time has passed
///   since the request was sent, no other candidate of that name is given it, unless this one has released it.
/// - **Greater tokens.** Each acquisition of a name has a greater token than every earlier one, for as long as the provider
///   keeps what it was told. What may make it forget stands in its documentation.
/// - **No clock but one.** Nothing depends on what the wall clock of a holder or of a waiter says. A provider may use its
///   server's.
pub trait Provider: Send + Sync + 'static {
    /// One who wants the lease of `name`. Both names have been checked: 1 to 63 letters, digits, `_`, `-` and `.` for the
    /// lease, 1 to 200 printable characters for the holder, which is for people to read and need not be unique.
    ///
    /// Does no I/O: the first attempt connects.
    ///
    /// # Errors
    /// When the provider cannot keep a lease of that name.
    fn candidate(&self, name: &str, holder: &str) -> Result<Box<dyn Candidate>>;

    /// The server, for messages, without credentials.
    fn place(&self) -> String;
}

impl Provider for Box<dyn Provider> {
    fn candidate(&self, name: &str, holder: &str) -> Result<Box<dyn Candidate>> {
        self.as_ref().candidate(name, holder)
    }

    fn place(&self) -> String {
        self.as_ref().place()
    }
}

/// One who wants a lease, and has it after a while.
///
/// Every future may be dropped before it is ready. What has become of its request is then unknown; the next call finds out.
/// A candidate that is dropped leaves nothing behind that would keep others waiting for longer than its time.
///
/// Errors that may pass by themselves ([`lockstep_core::error::Policy::Retry`]) are followed by another call, which connects
/// anew where needed.
#[async_trait]
pub trait Candidate: Send {
    /// Takes the lease if nobody has it. An attempt whose answer was lost is followed by one that finds the lease taken by this
    /// candidate, and gives it to it.
    async fn attempt(&mut self) -> Result<Attempt>;

    /// After a refusal: returns when another attempt may be worth it, as when the holder has let go, and after `limit` at the
    /// latest. May return early for no reason.
    async fn wait(&mut self, limit: Duration) -> Result<()>;

    /// Prolongs the lease by as long as it was given for. A request that is held back on its way must not bring a lease back
    /// that has run out.
    async fn renew(&mut self) -> Result<Renewal>;

    /// Lets go, so that a waiting candidate has it at once; does nothing to a lease that is another's by now. Also withdraws one
    /// that was refused.
    async fn release(&mut self) -> Result<()>;
}

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The lease is this candidate's.
    Taken {
        /// The number of the acquisition.
        token: Token,
        /// For how long, from before the attempt began.
        granted: Duration,
    },
    /// Somebody has it.
    Refused {
        /// After how long it runs out, unless it is renewed, where the provider can tell.
        left: Option<Duration>,
    },
}

/// What came of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It is good for so long, from before the request was sent.
    Prolonged(Duration),
    /// It is this candidate's no more.
    Lost,
}

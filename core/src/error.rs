//! One error for all stages: what happened, where it came from, what to do about it.
//!
//! [`ErrorKind`] decides the policy, by one exhaustive match ([`ErrorKind::policy`]); the text is for people.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::refusal::Refusal;

/// `Result` with the house error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure it is. A new kind does not compile until its policy and its code are decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The pipeline file or the command line is wrong.
    Config,
    /// A value a user or an API gave is wrong.
    Invalid,
    /// The other side cannot be reached or went away; it may come back.
    Unavailable,
    /// The other side refuses the credentials.
    Authentication,
    /// The other side knows us and does not allow this.
    Permission,
    /// The other side is not set up for the job (`wal_level`, missing table, missing primary key, …).
    Setup,
    /// The slot is in use by another process, or another writer holds a newer token.
    Busy,
    /// The other side asks us to slow down, or a limit is reached for now.
    Overloaded,
    /// A record that this sink will never take (mapping conflict, too large, wrong type).
    Refused,
    /// Bytes that break a protocol's rules, or a state that must not be.
    Protocol,
    /// Positions do not line up: the log that was to be continued is not there any more.
    Lost,
    /// A local file or store failed.
    Storage,
    /// A local disk is full; somebody may make room.
    Full,
    /// The work was given up because the process is stopping.
    Stopping,
    /// A receipt was dropped without an answer. Never counted as success.
    Abandoned,
}

/// What the runtime does about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Wait with growing pauses and try again, for ever; `/readyz` is red meanwhile.
    Retry,
    /// Stop the pipeline with this error: only a person can mend it. Nothing is acknowledged, so nothing is lost.
    Stop,
}

impl ErrorKind {
    /// All of them, in the order of their codes.
    pub const ALL: [ErrorKind; 15] = [
        ErrorKind::Config,
        ErrorKind::Invalid,
        ErrorKind::Unavailable,
        ErrorKind::Authentication,
        ErrorKind::Permission,
        ErrorKind::Setup,
        ErrorKind::Busy,
        ErrorKind::Overloaded,
        ErrorKind::Refused,
        ErrorKind::Protocol,
        ErrorKind::Lost,
        ErrorKind::Storage,
        ErrorKind::Stopping,
        ErrorKind::Abandoned,
        ErrorKind::Full,
    ];

    /// What the runtime does about an error of this kind.
    #[must_use]
    pub fn policy(self) -> Policy {
        match self {
            ErrorKind::Unavailable
            | ErrorKind::Busy
            | ErrorKind::Overloaded
            | ErrorKind::Full
            | ErrorKind::Abandoned => Policy::Retry,
            ErrorKind::Config
            | ErrorKind::Invalid
            | ErrorKind::Authentication
            | ErrorKind::Permission
            | ErrorKind::Setup
            | ErrorKind::Refused
            | ErrorKind::Protocol
            | ErrorKind::Lost
            | ErrorKind::Storage
            | ErrorKind::Stopping => Policy::Stop,
        }
    }

    /// The stable code printed with the error; `docs/errors.md` has a section for each, which `lockstep explain` prints.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            ErrorKind::Config => "LS001",
            ErrorKind::Invalid => "LS002",
            ErrorKind::Unavailable => "LS003",
            ErrorKind::Authentication => "LS004",
            ErrorKind::Permission => "LS005",
            ErrorKind::Setup => "LS006",
            ErrorKind::Busy => "LS007",
            ErrorKind::Overloaded => "LS008",
            ErrorKind::Refused => "LS009",
            ErrorKind::Protocol => "LS010",
            ErrorKind::Lost => "LS011",
            ErrorKind::Storage => "LS012",
            ErrorKind::Stopping => "LS013",
            ErrorKind::Abandoned => "LS014",
            ErrorKind::Full => "LS015",
        }
    }

    /// [`ErrorKind::Full`] when this error, or one underneath it, says that a disk or a quota is full; else
    /// [`ErrorKind::Storage`].
    #[must_use]
    pub fn of_storage(error: &(dyn StdError + 'static)) -> Self {
        let full = |error: &(dyn StdError + 'static)| {
            let shared = error.downcast_ref::<Arc<std::io::Error>>();
            let error = error
                .downcast_ref()
                .or_else(|| shared.map(|shared| &**shared));
            error.is_some_and(|error: &std::io::Error| {
                matches!(
                    error.kind(),
                    std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
                )
            })
        };
        let mut below = Some(error);
        while let Some(error) = below {
            if full(error) {
                return ErrorKind::Full;
            }
            below = error.source();
        }
        ErrorKind::Storage
    }
}

/// An error that names the place, the cause and the remedy. A clone tells the same.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    /// Outermost last: `sinks.events`, then the pipeline.
    places: Vec<String>,
    remedy: Option<String>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
    /// A word for counters, see [`Error::because`].
    reason: Option<&'static str>,
    /// See [`Error::refusing`].
    refusals: Vec<Refusal>,
    /// The refusals are suspects, see [`Error::suspecting`].
    suspects: bool,
}

impl Error {
    /// An error of `kind`; `message` says what happened in one sentence without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            places: Vec::new(),
            remedy: None,
            source: None,
            reason: None,
            refusals: Vec::new(),
            suspects: false,
        }))
    }

    /// What the reader can do about it, as an instruction.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = Some(remedy.into());
        self
    }

    /// The error underneath. It is kept, not turned to text.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(Arc::from(source.into()));
        self
    }

    /// What it comes from, for whoever decides by that. It is printed with the error.
    #[must_use]
    pub fn cause(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }

    /// One word for the cause of a refusal, from [`crate::refusal::reason`], for counters and lists.
    #[must_use]
    pub fn because(mut self, reason: &'static str) -> Self {
        self.0.reason = Some(reason);
        self
    }

    /// Exactly these changes are refused, and nothing but them: without them the sink takes what it was given. For errors
    /// of kind [`ErrorKind::Refused`]; replaces what was said before.
    #[must_use]
    pub fn refusing(mut self, refusals: Vec<Refusal>) -> Self {
        self.0.refusals = refusals;
        self.0.suspects = false;
        self
    }

    /// These changes were refused together, and at least one of them for good; the sink cannot tell which. The runtime
    /// writes each by itself to find out.
    #[must_use]
    pub fn suspecting(mut self, suspects: Vec<Refusal>) -> Self {
        self.0.refusals = suspects;
        self.0.suspects = true;
        self
    }

    /// The changes that are refused, or suspected; none when the error is about no change in particular.
    #[must_use]
    pub fn refusals(&self) -> &[Refusal] {
        &self.0.refusals
    }

    /// Whether [`Error::refusals`] are suspects only.
    #[must_use]
    pub fn is_suspicion(&self) -> bool {
        self.0.suspects
    }

    /// The word given to [`Error::because`].
    #[must_use]
    pub fn reason(&self) -> Option<&'static str> {
        self.0.reason
    }

    /// Names the place it happened in, from the inside out: `.at("table public.orders").at("sources.orders")`.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.0.places.push(place.into());
        self
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The sentence, without places, causes and remedy.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What the reader can do about it.
    #[must_use]
    pub fn remedy_text(&self) -> Option<&str> {
        self.0.remedy.as_deref()
    }
}

impl fmt::Display for Error {
    /// `LS004 sources.orders: the server refuses the password: <cause>. Remedy: …` on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.0.kind.code())?;
        for place in self.0.places.iter().rev() {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.0.message)?;
        let mut cause = self.cause();
        while let Some(inner) = cause {
            write!(f, ": {inner}")?;
            cause = inner.source();
        }
        if let Some(remedy) = &self.0.remedy {
            write!(f, ". Remedy: {remedy}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StdError for Error {
    // `Display` already prints the causes; naming the source again would print them twice in chains.
}

/// Adds a place to the error of a result.
pub trait At<T> {
    /// See [`Error::at`].
    ///
    /// # Errors
    /// The same error with the place added.
    fn at(self, place: impl Into<String>) -> Result<T>;
}

impl<T> At<T> for Result<T> {
    fn at(self, place: impl Into<String>) -> Result<T> {
        self.map_err(|error| error.at(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_place_cause_and_remedy() {
        let io = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        let error = Error::new(ErrorKind::Unavailable, "cannot connect to 127.0.0.1:1")
            .source(io)
            .remedy("start the server")
            .at("broker")
            .at("sinks.events");
        assert_eq!(
            error.to_string(),
            "LS003 sinks.events: broker: cannot connect to 127.0.0.1:1: connection refused. Remedy: start the server"
        );
        assert_eq!(error.kind().policy(), Policy::Retry);
    }

    #[test]
    fn a_full_disk_is_found_however_deep_it_lies() {
        #[derive(Debug)]
        struct Around(std::io::Error);
        impl fmt::Display for Around {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("around")
            }
        }
        impl StdError for Around {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                Some(&self.0)
            }
        }
        // As the kernel says it.
        let full = || std::io::Error::from_raw_os_error(28);
        assert_eq!(ErrorKind::of_storage(&full()), ErrorKind::Full);
        assert_eq!(ErrorKind::of_storage(&Around(full())), ErrorKind::Full);
        assert_eq!(ErrorKind::of_storage(&Arc::new(full())), ErrorKind::Full);
        let other = std::io::Error::other("broken");
        assert_eq!(ErrorKind::of_storage(&Around(other)), ErrorKind::Storage);
        assert_eq!(ErrorKind::Full.policy(), Policy::Retry);
    }
}
